"""Every view for everybody: names, headings, tables, the keyboard's way, contrast in both schemes, narrow screens."""

from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from tests.serving.page.seeds import put_events, put_job, put_run

CHECK = Path(__file__).with_name("access.js").read_text(encoding="utf-8")
VIEWS = {
    "jobs": "#/jobs",
    "job": "#/jobs/{done}",
    "failed job": "#/jobs/{failed}",
    "paused job": "#/jobs/{paused}",
    "new job": "#/new",
    "files": "#/files",
    "playground": "#/playground",
    "key": "#/key",
}
"""Every view, in the states that look different."""
FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def seeded(site) -> dict[str, str]:
    done = put_job(site.store, suffix="seen", validation_file="file-v", labels={"team": "a"})
    put_events(site.store, done, 40, ["a warning", "another"])
    put_run(site.api.home / "runs" / done)
    failed = put_job(
        site.store, status="failed", fine_tuned_model=None, error={"code": "run_failed", "message": "Why."}
    )
    paused = put_job(site.store, status="paused", fine_tuned_model=None, finished_at=None)
    return {"done": done, "failed": failed, "paused": paused}


@pytest.fixture
def shown(page, seeded, site):
    """shown(view) -> the browser, once the view holds what it asked for; all of its parts open."""
    if not site.files():
        row = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        httpx.post(f"{site.url}/v1/files", data={"purpose": "fine-tune"}, files={"file": ("seen.jsonl", row * 12)})

    def show(view: str):
        page.show(VIEWS[view].format(**seeded))
        waiting = {"jobs": "tbody tr", "files": "tbody tr", "new job": "#field-model option", "job": ".plot svg"}
        page.until(lambda: page.all(waiting.get(view, "h1")))
        if "job" in view and view not in ("new job", "jobs"):
            page.until(lambda: page.text(".head .state"))
        if view == "playground":
            page.until(lambda: page.all("#field-base option"))
        page.run("for (const one of document.querySelectorAll('details')) one.open = true")
        return page

    return show


@pytest.mark.parametrize("view", VIEWS)
def test_the_view_is_there_for_everybody(shown, view):
    page = shown(view)
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        found = page.run(CHECK)
        assert found["faults"] == [], scheme
        assert found["texts"] > 10
    for control in page.all(FOCUSABLE):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    page.resize(360, 800)
    width = page.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] == 360


@pytest.mark.parametrize("view", VIEWS)
def test_the_keyboard_reaches_everything_in_order(shown, view):
    page = shown(view)
    expected = page.run(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter((one) => one.checkVisibility() && one.tabIndex >= 0)",
        FOCUSABLE,
    )
    reached = []
    page.run("document.activeElement.blur(); window.getSelection().removeAllRanges()")
    for _ in range(len(expected)):
        reached.append(page.tab())
        style = page.run(
            "const style = getComputedStyle(document.activeElement);"
            "return [style.outlineStyle, parseFloat(style.outlineWidth)]"
        )
        assert style[0] != "none", reached[-1].get_attribute("outerHTML")
        assert style[1] >= 2, reached[-1].get_attribute("outerHTML")
    assert reached == expected
    assert reached[0].get_attribute("textContent") == "Skip to the content"


def test_a_check_that_finds_faults(page):
    """The check itself, on a page that is bad in each of its ways."""
    page.run(
        "document.documentElement.lang = 'xx';"
        "const p = document.createElement('p'); p.textContent = 'pale'; p.style.color = '#888888'; main.append(p);"
        "const h = document.createElement('h3'); h.textContent = 'deep'; main.prepend(h);"
        "const t = document.createElement('table'); main.append(t);"
        "t.createTHead().insertRow().insertCell(); t.createTBody();"
        "const i = document.createElement('p'); i.id = 'main'; main.append(i)"
    )
    faults = " ".join(page.run(CHECK)["faults"])
    for words in ("pale", "no language", "no caption", "no header", "main is there twice", "heading of level 3"):
        assert words in faults


def test_the_whole_page_by_keyboard_alone(page, seeded):
    page.show("#/jobs")
    page.until(lambda: page.all("tbody tr"))
    page.press(Keys.TAB, Keys.ENTER)
    assert page.run("return document.activeElement.id") == "main"
    page.show("#/jobs")
    for name in ("New job", "Files", "Playground", "API key", "Jobs"):
        page.run("document.activeElement.blur()")
        while page.tab().text != name:
            pass
        page.press(Keys.ENTER)
        page.until(lambda name=name: page.text("h1") == name)
        assert page.run("return document.activeElement.tagName") == "H1"  # a screen reader begins there
        assert page.text("nav a[aria-current=page]") == name
        assert page.run("return document.title") == f"{name} – Tunesmith"


def test_a_question_keeps_the_focus_and_gives_it_back(page, seeded):
    page.show(f"#/jobs/{seeded['paused']}")
    page.named("Cancel").send_keys(Keys.ENTER)
    assert page.run("return document.activeElement.textContent") == "Keep it"
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog"))
    assert page.run("return document.activeElement.textContent") == "Cancel"


def test_nothing_moves_where_motion_is_not_wanted(page):
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.show("#/new")
    moving = page.run(
        "return [...document.querySelectorAll('*')].map((one) => getComputedStyle(one))"
        ".filter((style) => style.transitionDuration !== '0s' || style.animationName !== 'none').length"
    )
    assert moving == 0
