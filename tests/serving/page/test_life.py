"""A reader's whole way: files, a job by the form, its curve while a real model trains, and a chat with the result."""

import os
import signal

import httpx
import pytest

from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status

QUESTION = "Question 3: what about my delivery?"


def num_points(page) -> int:
    """Points of the training loss that are drawn."""
    drawn = page.run("return document.querySelector('.plot svg')?.dataset.points ?? '0'")
    return int(drawn.split()[0])


@pytest.mark.slow
def test_from_a_file_to_an_answer(page, site, upload, chat_rows, screenshot):
    train = upload("train.jsonl", [*chat_rows[:50], chat_rows[0]])
    validation = upload("validation.jsonl", chat_rows[45:])
    screenshot("page-files")
    page.named("New job from train.jsonl").click()
    page.until(lambda: page.labelled("Training file").get_attribute("value") == train)
    page.choose("Validation file", validation)
    for label, text in [("Epochs", "8"), ("Batch size", "4"), ("Learning rate multiplier", "20")]:
        page.write(label, text)
    page.write("Suffix", "support")
    page.write("Seed", "7")
    screenshot("page-new-job")
    page.named("Start the job").click()
    page.until(lambda: page.text("h1").startswith("Job ftjob-"))
    job_id = page.text("h1").removeprefix("Job ")
    assert page.run("return document.activeElement.tagName") == "H1"

    # Its process is held where it is, so that its curve can be looked at in the middle, and is paused from there.
    status = page.until(lambda: trained(site, job_id))
    os.kill(status.pid, signal.SIGSTOP)
    try:
        page.until(lambda: num_points(page) > 0)
        page.named("Pause").click()
        page.until(lambda: page.text(".head .state") == "pausing")
    finally:
        os.kill(status.pid, signal.SIGCONT)
    page.until(lambda: page.text(".head .state") == "paused")
    steps = [event.data["step"] for event in site.store.events.list(job_id, None, 100).rows if event.type == "metrics"]
    page.until(lambda: num_points(page) == max(steps))
    held = num_points(page)
    assert 0 < held < 102
    page.named("Resume").click()
    page.until(lambda: num_points(page) > held)
    screenshot("page-job-running")
    page.until(lambda: page.text(".head .state") == "succeeded")
    page.until(lambda: num_points(page) == 102)

    said = page.run("return document.querySelector('.plot svg').getAttribute('aria-label')")
    measured = [event.data for event in site.store.events.list(job_id, None, 100).rows if event.type == "metrics"]
    last = next(one["train_loss"] for one in measured if one["step"] == 102)
    assert f"to {last:.4g} at step 102; Validation from" in said
    told = page.text("main")
    assert "Rows read\t51\t15" in told
    assert "of these refused\t0\t5" in told
    assert "of 10 examples have a lower loss after training" in told
    kept = [line for line in told.splitlines() if ":ckpt-step-" in line and "Try it" in line]
    assert [line.split("\t")[0] for line in kept] == ["102", "91", "78"]
    job = site.store.jobs.get(job_id)
    assert job.suffix == "support"
    assert job.seed == 7
    assert job.fine_tuned_model in told
    page.named("Download the metrics as CSV").click()
    page.until(lambda: page.text("#said") == f"{job_id}-results.csv is downloaded.")
    screenshot("page-job", 1500)

    page.named("Try it in the playground").click()
    page.until(lambda: page.labelled("Tuned").get_attribute("value") == job.fine_tuned_model)
    assert page.labelled("Base").get_attribute("value") == "tiny"
    page.write("Longest answer", "24")
    page.write("Question", QUESTION)
    page.named("Ask both").click()
    page.until(lambda: len(page.all(".words:not([aria-busy])")) == 2)
    answers = [page.run("return arguments[0].textContent", one) for one in page.all(".words")]
    assert answers == [answer(site, model) for model in ("tiny", job.fine_tuned_model)]
    assert answers[0] != answers[1]
    assert page.labelled("Question").get_attribute("value") == ""
    screenshot("page-playground")
    page.show("#/jobs")
    page.until(lambda: job_id in page.text("main"))
    assert "succeeded" in page.text("tbody tr")
    screenshot("page-jobs")


def trained(site, job_id: str) -> Status | None:
    """Where its run stands, once it has trained a step."""
    status = read_status(RunDir(site.api.home / "runs" / job_id).status)
    return status if status is not None and status.step > 0 else None


def answer(site, model: str) -> str:
    """The API's own, to the same question."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    told = httpx.post(f"{site.url}/v1/chat/completions", json={**body, "max_completion_tokens": 24}, timeout=60)
    return told.json()["choices"][0]["message"]["content"] or "(an empty answer)"


def test_a_job_is_cancelled_after_a_question(page, site, upload, chat_rows):
    file = upload("cancelled.jsonl", chat_rows)
    page.show(f"#/new?file={file}")
    page.until(lambda: page.labelled("Training file").get_attribute("value") == file)
    page.write("Epochs", "50")
    page.named("Start the job").click()
    page.until(lambda: page.text("h1").startswith("Job ftjob-"))
    job_id = page.text("h1").removeprefix("Job ")
    page.named("Cancel").click()
    page.named("Keep it").click()
    assert not page.all("dialog")
    assert site.store.jobs.get(job_id).status != "cancelled"
    page.named("Cancel").click()
    page.named("Cancel the job").click()
    page.until(lambda: page.text(".head .state") == "cancelled")
    assert site.store.jobs.get(job_id).status == "cancelled"
    assert page.run("return document.activeElement !== document.body")
    page.until(lambda: site.store.jobs.get(job_id).settled)


def test_a_file_is_deleted_after_a_question(page, site, upload, chat_rows):
    file = upload("short-lived.jsonl", chat_rows[:12])
    page.named("Delete short-lived.jsonl").click()
    page.named("Delete the file").click()
    page.until(lambda: page.text("#said") == "short-lived.jsonl is deleted.")
    assert "short-lived.jsonl" not in page.text("main")
    assert site.store.files.get(file) is None
