"""API errors are shown next to the control they concern, are associated with it, and move the focus there."""

import httpx
import pytest

CASES = [
    ("Epochs", "0", 'must be "auto" or an integer from 1 to 50, not 0'),
    ("Epochs", "two", "not 'two'"),
    ("Batch size", "1.5", "not 1.5"),
    ("Learning rate multiplier", "-1", "above 0, at most 100"),
    ("Seed", "-4", "`seed` must be an integer"),
    ("Suffix", "x" * 65, "longer than 64 characters"),
]


@pytest.fixture(scope="module")
def few_rows_file(site):
    content = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 12
    response = httpx.post(f"{site.url}/v1/files", data={"purpose": "fine-tune"}, files={"file": ("few.jsonl", content)})
    return response.json()["id"]


def test_api_errors_are_shown_next_to_their_control(visit, site, few_rows_file):
    page = visit(site.url, "400 (Bad Request)")
    page.show(f"#/new?file={few_rows_file}")
    page.until(lambda: page.labelled("Training file").get_attribute("value") == few_rows_file)
    for label, text, error in CASES:
        page.write(label, text)
        page.named("Create job").click()
        control = page.labelled(label)
        page.until(lambda control=control: control.get_attribute("aria-invalid") == "true")
        notes = [page.text(f"#{id}") for id in control.get_attribute("aria-describedby").split()]
        assert error in notes[-1]
        assert page.run("return document.activeElement === arguments[0]", control)
        control.clear()
    assert site.store.jobs.naming_file(few_rows_file) == []


def test_required_fields_are_checked_before_sending(page, site):
    page.show("#/new")
    page.until(lambda: page.all("#field-model option"))
    page.named("Create job").click()
    assert page.text("#field-training_file-fault") == "This field is required."
    assert page.run("return document.activeElement.id") == "field-training_file"


def test_beta_is_shown_only_for_dpo(page):
    page.show("#/new")
    assert not page.labelled("Beta").is_displayed()
    page.choose("Method", "dpo")
    assert page.labelled("Beta").is_displayed()


def test_an_invalid_file_is_reported_next_to_its_control(visit, site, tmp_path):
    page = visit(site.url, "400 (Bad Request)")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": \n')
    page.show("#/files")
    page.labelled("Data file").send_keys(str(bad))
    page.named("Upload").click()
    page.until(lambda: "line 1" in page.text("#field-file-fault").lower())


def test_a_generation_error_is_shown_in_the_conversation(visit, site):
    page = visit(site.url, "400 (Bad Request)")
    page.show("#/playground")
    page.until(lambda: page.labelled("Base model").get_attribute("value"))
    page.write("Max tokens", "100000")
    page.write("Message", "Hello?")
    page.named("Send").click()
    page.until(lambda: len(page.all(".turn .fault")) == 2)
    assert "context" in page.text(".turn .fault")
    assert page.labelled("Message").get_attribute("value") == "Hello?"
