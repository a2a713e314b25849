"""Browser and server for the page tests; after each test, the console and the request targets are checked."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.selection import needs
from tests.serving.api_process import Api
from tests.serving.page.browser import Browser
from tunesmith.serving.store.store import Store


@pytest.fixture(scope="session")
@needs("browser", group="browser")
def browser() -> Iterator[Browser]:
    driven = Browser()
    yield driven
    driven.close()


class Site:
    """A server with its URL and its store."""

    def __init__(self, api: Api):
        self.api, self.url = api, f"http://127.0.0.1:{api.port}"
        self.store = Store(f"sqlite:///{api.home / 'store.sqlite3'}")

    def files(self) -> dict[str, str]:
        """Ids of the newest files by name."""
        listed = httpx.get(f"{self.url}/v1/files", params={"limit": 100}, timeout=300).json()
        return {file["filename"]: file["id"] for file in reversed(listed["data"])}

    def close(self) -> None:
        self.store.close()
        self.api.stop()


@pytest.fixture(scope="session")
def site(browser, tmp_path_factory, tiny_llama) -> Iterator[Site]:
    """A running server. Depends on `browser`: without one, the server is not started."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "tunesmith-cache"))
    started = Site(Api(tmp_path_factory.mktemp("site"), bases={"tiny": str(tiny_llama)}).start())
    yield started
    started.close()
    patch.undo()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Browser]]:
    """visit(url, *expected) -> the browser on that server. expected: substrings of console messages to ignore."""
    visits: list[tuple[str, tuple[str, ...]]] = []

    def begin(url: str, *expected: str) -> Browser:
        visits.append((url, expected))
        browser.begin(url)
        return browser

    yield begin
    for url, expected in visits:
        errors = [line for line in browser.logs() if not any(part in line for part in expected)]
        assert not errors
        other_hosts = {urlsplit(target).netloc for target in browser.requests()} - {urlsplit(url).netloc}
        assert not other_hosts
    browser.scheme("light")
    browser.resize(1200, 900)


@pytest.fixture
def page(visit, site) -> Browser:
    return visit(site.url)


@pytest.fixture
def upload(page, site, tmp_path) -> Callable[..., str]:
    """upload(name, rows) -> the file id; uploads through the form of the page."""

    def send(name: str, rows: list) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        page.show("#/files")
        page.labelled("Data file").send_keys(str(path))
        page.named("Upload").click()
        page.named(f"New job from {name}")
        return site.files()[name]

    return send


@pytest.fixture
def screenshot(browser) -> Callable[[str], None]:
    """screenshot(name): save both color schemes in the folder TUNESMITH_SCREENSHOTS, if it is set."""
    folder = os.environ.get("TUNESMITH_SCREENSHOTS")

    def take(name: str, height: int = 900) -> None:
        if folder:
            browser.resize(1200, height)
            for scheme in ("light", "dark"):
                browser.scheme(scheme)
                Path(folder).mkdir(parents=True, exist_ok=True)
                browser.driver.save_screenshot(str(Path(folder) / f"{name}-{scheme}.png"))
            browser.scheme("light")
            browser.resize(1200, 900)

    return take
