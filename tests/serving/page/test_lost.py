"""A server that goes away and comes back: it is said, the page keeps what it shows, and goes on by itself."""

import pytest

from tests.serving.api_process import Api
from tests.serving.page.conftest import Site
from tests.serving.page.seeds import put_job


@pytest.fixture(scope="module")
def fragile(browser, tmp_path_factory, tiny_llama):
    made = Site(Api(tmp_path_factory.mktemp("fragile"), bases={"tiny": str(tiny_llama)}).start())
    yield made
    made.close()


def test_a_lost_connection_is_said_and_recovered_from(visit, fragile):
    page = visit(fragile.url, "ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
    job = put_job(fragile.store)
    page.show("#/jobs")
    page.until(lambda: job in page.text("main"))
    fragile.api.stop()
    page.until(lambda: "The server does not answer" in page.text("#connection"))
    assert job in page.text("main")
    page.named("New job").click()
    page.until(lambda: "The server does not answer." in page.text("main"))
    page.named("Jobs").click()
    later = put_job(fragile.store)
    fragile.api.start()
    page.until(lambda: later in page.text("main"))
    page.until(lambda: page.run("return document.getElementById('connection').hidden"))
    assert page.text("#said") == "The server answers again."
