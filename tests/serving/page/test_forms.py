"""What the API refuses stands beside the control that it speaks of, is tied to it, and takes the focus there."""

import httpx
import pytest

CASES = [
    ("Epochs", "0", 'takes "auto" or a whole number from 1 to 50; given: 0'),
    ("Epochs", "two", "given: 'two'"),
    ("Batch size", "1.5", "given: 1.5"),
    ("Learning rate multiplier", "-1", "above 0, at most 100"),
    ("Seed", "-4", "`seed` takes a whole number"),
    ("Suffix", "x" * 65, "longer than 64 characters"),
]


@pytest.fixture(scope="module")
def refused_file(site):
    content = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 12
    told = httpx.post(f"{site.url}/v1/files", data={"purpose": "fine-tune"}, files={"file": ("few.jsonl", content)})
    return told.json()["id"]


def test_refusals_stand_beside_their_control(visit, site, refused_file):
    page = visit(site.url, "400 (Bad Request)")
    page.show(f"#/new?file={refused_file}")
    page.until(lambda: page.labelled("Training file").get_attribute("value") == refused_file)
    for label, text, said in CASES:
        page.write(label, text)
        page.named("Start the job").click()
        control = page.labelled(label)
        page.until(lambda control=control: control.get_attribute("aria-invalid") == "true")
        told = [page.text(f"#{id}") for id in control.get_attribute("aria-describedby").split()]
        assert said in told[-1]
        assert page.run("return document.activeElement === arguments[0]", control)
        control.clear()
    assert site.store.jobs.naming_file(refused_file) == []


def test_what_is_needed_is_said_before_anything_is_sent(page, site):
    page.show("#/new")
    page.until(lambda: page.all("#field-model option"))
    page.named("Start the job").click()
    assert page.text("#field-training_file-fault") == "This is needed."
    assert page.run("return document.activeElement.id") == "field-training_file"


def test_beta_belongs_to_dpo(page):
    page.show("#/new")
    assert not page.labelled("Beta").is_displayed()
    page.choose("Method", "dpo")
    assert page.labelled("Beta").is_displayed()


def test_a_bad_file_is_refused_beside_its_control(visit, site, tmp_path):
    page = visit(site.url, "400 (Bad Request)")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": \n')
    page.show("#/files")
    page.labelled("File of examples").send_keys(str(bad))
    page.named("Upload").click()
    page.until(lambda: "line 1" in page.text("#field-file-fault").lower())


def test_a_refused_question_is_said_in_its_conversation(visit, site):
    page = visit(site.url, "400 (Bad Request)")
    page.show("#/playground")
    page.until(lambda: page.labelled("Base").get_attribute("value"))
    page.write("Longest answer", "100000")
    page.write("Question", "Hello?")
    page.named("Ask both").click()
    page.until(lambda: len(page.all(".turn .fault")) == 2)
    assert "context" in page.text(".turn .fault")
    assert page.labelled("Question").get_attribute("value") == "Hello?"
