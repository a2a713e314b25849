"""One browser and one server for the tests of this folder that leave it as it was; each test has a session of its own,
and ends with a look at what the console said and where requests went."""

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
    made = Browser()
    yield made
    made.close()


class Site:
    """A server with its address and its store, kept together."""

    def __init__(self, api: Api):
        self.api, self.url = api, f"http://127.0.0.1:{api.port}"
        self.store = Store(f"sqlite:///{api.home / 'store.sqlite3'}")

    def files(self) -> dict[str, str]:
        """Ids by name, of the newest files."""
        told = httpx.get(f"{self.url}/v1/files", params={"limit": 100}, timeout=60).json()
        return {file["filename"]: file["id"] for file in reversed(told["data"])}

    def close(self) -> None:
        self.store.close()
        self.api.stop()


@pytest.fixture(scope="session")
def site(browser, tmp_path_factory, tiny_llama) -> Iterator[Site]:
    """browser: where there is none, no server is started either."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "tunesmith-cache"))
    made = Site(Api(tmp_path_factory.mktemp("site"), bases={"tiny": str(tiny_llama)}).start())
    yield made
    made.close()
    patch.undo()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Browser]]:
    """visit(url, *expected) -> the browser on that server. expected: parts of console lines that the test provokes."""
    told: list[tuple[str, tuple[str, ...]]] = []

    def begin(url: str, *expected: str) -> Browser:
        told.append((url, expected))
        browser.begin(url)
        return browser

    yield begin
    for url, expected in told:
        errors = [line for line in browser.logs() if not any(part in line for part in expected)]
        assert not errors
        elsewhere = {urlsplit(asked).netloc for asked in browser.requests()} - {urlsplit(url).netloc}
        assert not elsewhere
    browser.scheme("light")
    browser.resize(1200, 900)


@pytest.fixture
def page(visit, site) -> Browser:
    return visit(site.url)


@pytest.fixture
def upload(page, site, tmp_path) -> Callable[..., str]:
    """upload(name, rows) -> the id of the file, which goes through the page's own form."""

    def send(name: str, rows: list) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        page.show("#/files")
        page.labelled("File of examples").send_keys(str(path))
        page.named("Upload").click()
        page.named(f"New job from {name}")
        return site.files()[name]

    return send


@pytest.fixture
def screenshot(browser) -> Callable[[str], None]:
    """screenshot(name): both schemes, into the folder that TUNESMITH_SCREENSHOTS names; without it, nothing."""
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
