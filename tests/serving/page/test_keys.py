"""A server that requires keys: the page asks for one, stores it in the tab, and never puts it in a URL."""

import pytest

from tests.serving.api_process import Api


@pytest.fixture(scope="module")
def keyed(browser, tmp_path_factory, tiny_llama):
    api = Api(tmp_path_factory.mktemp("keyed"), bases={"tiny": str(tiny_llama)}).start()
    yield api, f"http://127.0.0.1:{api.port}", api.keys("create", "reader").split()[-1]
    api.stop()


def test_the_page_asks_for_a_key_and_uses_it(visit, keyed):
    _, url, key = keyed
    page = visit(url, "401 (Unauthorized)")
    page.show("#/files")
    page.until(lambda: page.text("h1") == "API key")
    assert page.text("#announcement") == "This server requires an API key."
    page.write("API key", "sk-wrong")
    page.named("Use this key").click()
    page.until(lambda: page.text("#field-key-fault") == "Incorrect API key provided")
    assert page.labelled("API key").get_attribute("aria-invalid") == "true"
    assert page.run("return document.activeElement.id") == "field-key"
    page.write("API key", key)
    page.named("Use this key").click()
    page.until(lambda: page.text("h1") == "Files")  # the view requested first
    page.until(lambda: "No files yet." in page.text("main"))
    assert page.run("return Object.values(sessionStorage)") == [key]
    assert page.run("return localStorage.length + document.cookie.length") == 0
    page.show("#/jobs")
    page.until(lambda: "No jobs yet." in page.text("main"))
    assert not [url for url in page.requests() if key in url]
    page.named("API key").click()
    page.named("Forget this key").click()
    assert page.run("return sessionStorage.length") == 0
    page.named("Jobs").click()
    page.until(lambda: page.text("h1") == "API key")


def test_missing_scopes_are_reported(visit, keyed):
    api, url, _ = keyed
    narrow = api.keys("create", "narrow", "--scope", "jobs:read").split()[-1]
    page = visit(url, "401 (Unauthorized)", "403 (Forbidden)")
    page.show("#/jobs")
    page.until(lambda: page.text("h1") == "API key")
    page.write("API key", narrow)
    page.named("Use this key").click()
    page.until(lambda: "No jobs yet." in page.text("main"))
    page.named("Files").click()
    page.until(lambda: "Missing scopes: files:read" in page.text("main"))
