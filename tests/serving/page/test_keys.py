"""A server that needs keys: the page asks for one, keeps it in the tab, and never puts it into an address."""

import pytest

from tests.serving.api_process import Api


@pytest.fixture(scope="module")
def keyed(browser, tmp_path_factory, tiny_llama):
    api = Api(tmp_path_factory.mktemp("keyed"), bases={"tiny": str(tiny_llama)}).start()
    yield api, f"http://127.0.0.1:{api.port}", api.keys("create", "reader").split()[-1]
    api.stop()


def test_a_key_is_asked_for_and_used(visit, keyed):
    _, url, key = keyed
    page = visit(url, "401 (Unauthorized)")
    page.show("#/files")
    page.until(lambda: page.text("h1") == "API key")
    assert page.text("#said") == "This server needs an API key."
    page.write("API key", "sk-wrong")
    page.named("Use this key").click()
    page.until(lambda: page.text("#field-key-fault") == "Incorrect API key provided")
    assert page.labelled("API key").get_attribute("aria-invalid") == "true"
    assert page.run("return document.activeElement.id") == "field-key"
    page.write("API key", key)
    page.named("Use this key").click()
    page.until(lambda: page.text("h1") == "Files")  # where the reader wanted to go
    page.until(lambda: "There is no file yet." in page.text("main"))
    assert page.run("return Object.values(sessionStorage)") == [key]
    assert page.run("return localStorage.length + document.cookie.length") == 0
    page.show("#/jobs")
    page.until(lambda: "There is no job yet." in page.text("main"))
    assert not [asked for asked in page.requests() if key in asked]
    page.named("API key").click()
    page.named("Forget the key").click()
    assert page.run("return sessionStorage.length") == 0
    page.named("Jobs").click()
    page.until(lambda: page.text("h1") == "API key")


def test_a_key_that_may_not_do_all_is_told_so(visit, keyed):
    api, url, _ = keyed
    narrow = api.keys("create", "narrow", "--scope", "jobs:read").split()[-1]
    page = visit(url, "401 (Unauthorized)", "403 (Forbidden)")
    page.show("#/jobs")
    page.until(lambda: page.text("h1") == "API key")
    page.write("API key", narrow)
    page.named("Use this key").click()
    page.until(lambda: "There is no job yet." in page.text("main"))
    page.named("Files").click()
    page.until(lambda: "Missing scopes: files:read" in page.text("main"))
