"""User input never becomes markup; the Content-Security-Policy allows only resources of the server itself."""

import httpx
import pytest

from tests.serving.page.seeds import put_events, put_job

MARKUP = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/style.css", "/page/icon.svg", "/favicon.ico"])
def test_every_file_of_the_page_is_sent_with_the_policy(site, path):
    response = httpx.get(site.url + path)
    assert response.status_code == 200
    assert set(response.headers["content-security-policy"].split("; ")) == POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    again = httpx.get(site.url + path, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == response.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/"])
def test_other_files_are_not_served(site, path):
    assert httpx.get(site.url + path).status_code == 404


def test_user_input_stays_text(page, site, upload, chat_rows):
    upload("<img src=x onerror=alert(1)>.jsonl", chat_rows[:12])
    job = put_job(
        site.store,
        suffix=MARKUP,
        labels={MARKUP: MARKUP},
        status="failed",
        error={"code": MARKUP, "message": MARKUP, "param": None},
        fine_tuned_model=None,
    )
    put_events(site.store, job, 0, [MARKUP])
    for view in (
        f"#/jobs/{job}",
        "#/jobs",
        "#/files",
        "#/new",
        "#/playground",
        f"#/jobs/{MARKUP}",
        f"#/new?file={MARKUP}",
    ):
        if view == f"#/jobs/{MARKUP}":
            continue
        page.show(view)
        page.until(lambda: not page.all(".none:not([hidden])") or "Loading" not in page.text(".none:not([hidden])"))
        assert page.all("main img, main script") == []
        assert page.run("return document.title") != "broken"
    page.show(f"#/jobs/{job}")
    page.until(lambda: MARKUP in page.text("section:last-of-type tbody"))
    assert page.text(".head .banner") == f"{MARKUP} ({MARKUP})"
    assert f"{MARKUP}: {MARKUP}" in page.text(".facts")
    page.show("#/files")
    page.until(lambda: "<img src=x onerror=alert(1)>.jsonl" in page.text("main"))


def test_the_url_and_messages_stay_text(visit, site):
    page = visit(site.url, "404 (Not Found)", "400 (Bad Request)")
    page.show("#/jobs/%3Cimg%20src%3Dx%3E")
    page.until(lambda: page.text("h1") == "Job <img src=x>")
    assert page.all("main img") == []
    page.show("#/playground")
    page.until(lambda: page.labelled("Base model").get_attribute("value"))
    page.write("Message", MARKUP)
    page.write("Max tokens", "4")
    page.named("Send").click()
    page.until(lambda: len(page.all(".response:not([aria-busy])")) == 2)
    assert page.text(".message") == f"You {MARKUP}"
    assert page.all("main img, main script") == []


def test_injected_scripts_do_not_run(visit, site):
    """The policy protects the page even if a view had an injection bug."""
    page = visit(site.url, "Content Security Policy", "Content-Security-Policy")
    page.run(
        "const one = document.createElement('div');"
        "one.innerHTML = '<img src=\"x\" onerror=\"document.title=\\'broken\\'\">';"
        "document.body.append(one);"
        "const two = document.createElement('script'); two.textContent = \"document.title='broken'\";"
        "document.body.append(two);"
    )
    error = page.run("return fetch('http://localhost.invalid/').then(() => 'sent', (error) => String(error))")
    assert "TypeError" in error
    assert page.run("return document.title") != "broken"
    assert any("Content Security Policy" in line for line in page.logs())
