"""Accessibility of every view: names, headings, tables, keyboard order, contrast in both schemes, narrow screens."""

from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from tests.serving.page.seeds import put_events, put_job, put_run

CHECK = Path(__file__).with_name("accessibility.js").read_text(encoding="utf-8")
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
"""Every view, in each state with a different appearance."""
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
    """shown(view) -> the browser with the view loaded and all details expanded."""
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
def test_every_view_is_accessible(shown, view):
    page = shown(view)
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        result = page.run(CHECK)
        assert result["faults"] == [], scheme
        assert result["texts"] > 10
    for control in page.all(FOCUSABLE):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    page.resize(360, 800)
    width = page.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1] == 360


@pytest.mark.parametrize("view", VIEWS)
def test_tab_reaches_every_control_in_document_order(shown, view):
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
    assert reached[0].get_attribute("textContent") == "Skip to content"


def test_the_accessibility_check_reports_faults(page):
    """The check finds each kind of fault on a page built to have them."""
    page.run(
        "document.documentElement.lang = 'xx';"
        "const p = document.createElement('p'); p.textContent = 'pale'; p.style.color = '#888888'; main.append(p);"
        "const h = document.createElement('h3'); h.textContent = 'deep'; main.prepend(h);"
        "const t = document.createElement('table'); main.append(t);"
        "t.createTHead().insertRow().insertCell(); t.createTBody();"
        "const i = document.createElement('p'); i.id = 'main'; main.append(i)"
    )
    faults = " ".join(page.run(CHECK)["faults"])
    for fault in ("pale", "no lang attribute", "no caption", "no header", "duplicate id main", "heading level 3"):
        assert fault in faults


def test_navigation_works_by_keyboard_alone(page, seeded):
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
        assert page.run("return document.activeElement.tagName") == "H1"  # screen readers start reading there
        assert page.text("nav a[aria-current=page]") == name
        assert page.run("return document.title") == f"{name} – Tunesmith"


def test_a_confirmation_dialog_takes_and_restores_the_focus(page, seeded):
    page.show(f"#/jobs/{seeded['paused']}")
    page.named("Cancel").send_keys(Keys.ENTER)
    assert page.run("return document.activeElement.textContent") == "Keep it"
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog"))
    assert page.run("return document.activeElement.textContent") == "Cancel"


def test_reduced_motion_disables_all_transitions(page):
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.show("#/new")
    moving = page.run(
        "return [...document.querySelectorAll('*')].map((one) => getComputedStyle(one))"
        ".filter((style) => style.transitionDuration !== '0s' || style.animationName !== 'none').length"
    )
    assert moving == 0
