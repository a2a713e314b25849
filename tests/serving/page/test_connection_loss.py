"""Connection loss: the page reports it, keeps its content, and recovers when the server is back."""

import pytest

from tests.serving.api_process import Api
from tests.serving.page.conftest import Site
from tests.serving.page.seeds import put_job


@pytest.fixture(scope="module")
def fragile(browser, tmp_path_factory, tiny_llama):
    server = Site(Api(tmp_path_factory.mktemp("fragile"), bases={"tiny": str(tiny_llama)}).start())
    yield server
    server.close()


def test_a_lost_connection_is_reported_and_restored(visit, fragile):
    page = visit(fragile.url, "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
    job = put_job(fragile.store)
    page.show("#/jobs")
    page.until(lambda: job in page.text("main"))
    fragile.api.stop()
    page.until(lambda: "Cannot reach the server" in page.text("#connection"))
    assert job in page.text("main")
    page.named("New job").click()
    page.until(lambda: "Cannot reach the server." in page.text("main"))
    page.named("Jobs").click()
    later = put_job(fragile.store)
    fragile.api.start()
    page.until(lambda: later in page.text("main"))
    page.until(lambda: page.run("return document.getElementById('connection').hidden"))
    assert page.text("#announcement") == "Connection to the server restored."
