"""End to end: upload files, create a job, follow its training curves, and chat with the fine-tuned model."""

import os
import signal

import httpx
import pytest

from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status

MESSAGE = "Question 3: what about my delivery?"


def num_points(page) -> int:
    """Number of plotted training loss points."""
    drawn = page.run("return document.querySelector('.plot svg')?.dataset.points ?? '0'")
    return int(drawn.split()[0])


@pytest.mark.slow
def test_from_upload_to_chat_with_the_fine_tuned_model(page, site, upload, chat_rows, screenshot):
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
    page.named("Create job").click()
    page.until(lambda: page.text("h1").startswith("Job ftjob-"))
    job_id = page.text("h1").removeprefix("Job ")
    assert page.run("return document.activeElement.tagName") == "H1"

    # The process is stopped so that the curve can be inspected midway; the job is then paused from there.
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
    paused_at = num_points(page)
    assert 0 < paused_at < 102
    page.named("Resume").click()
    page.until(lambda: num_points(page) > paused_at)
    screenshot("page-job-running")
    page.until(lambda: page.text(".head .state") == "succeeded")
    page.until(lambda: num_points(page) == 102)

    summary = page.run("return document.querySelector('.plot svg').getAttribute('aria-label')")
    measured = [event.data for event in site.store.events.list(job_id, None, 100).rows if event.type == "metrics"]
    last = next(one["train_loss"] for one in measured if one["step"] == 102)
    assert f"to {last:.4g} at step 102; Validation from" in summary
    content = page.text("main")
    assert "Rows read\t51\t15" in content
    assert "Rows rejected\t0\t5" in content
    assert "of 10 validation examples have a lower loss after training" in content
    checkpoints = [line for line in content.splitlines() if ":ckpt-step-" in line and "Try" in line]
    assert [line.split("\t")[0] for line in checkpoints] == ["102", "91", "78"]
    job = site.store.jobs.get(job_id)
    assert job.suffix == "support"
    assert job.seed == 7
    assert job.fine_tuned_model in content
    page.named("Download metrics (CSV)").click()
    page.until(lambda: page.text("#announcement") == f"Downloaded {job_id}-results.csv.")
    screenshot("page-job", 1500)

    page.named("Try in playground").click()
    page.until(lambda: page.labelled("Fine-tuned model").get_attribute("value") == job.fine_tuned_model)
    assert page.labelled("Base model").get_attribute("value") == "tiny"
    page.write("Max tokens", "24")
    page.write("Message", MESSAGE)
    page.named("Send").click()
    page.until(lambda: len(page.all(".response:not([aria-busy])")) == 2)
    responses = [page.run("return arguments[0].textContent", one) for one in page.all(".response")]
    assert responses == [api_response(site, model) for model in ("tiny", job.fine_tuned_model)]
    assert responses[0] != responses[1]
    assert page.labelled("Message").get_attribute("value") == ""
    screenshot("page-playground")
    page.show("#/jobs")
    page.until(lambda: job_id in page.text("main"))
    assert "succeeded" in page.text("tbody tr")
    screenshot("page-jobs")


def trained(site, job_id: str) -> Status | None:
    """Status of the job's run, once it has trained a step."""
    status = read_status(RunDir(site.api.home / "runs" / job_id).status)
    return status if status is not None and status.step > 0 else None


def api_response(site, model: str) -> str:
    """The response of the API to the same message."""
    body = {"model": model, "messages": [{"role": "user", "content": MESSAGE}], "temperature": 0}
    response = httpx.post(f"{site.url}/v1/chat/completions", json={**body, "max_completion_tokens": 24}, timeout=300)
    return response.json()["choices"][0]["message"]["content"] or "(empty response)"


def test_a_job_is_cancelled_after_confirmation(page, site, upload, chat_rows):
    file = upload("cancelled.jsonl", chat_rows)
    page.show(f"#/new?file={file}")
    page.until(lambda: page.labelled("Training file").get_attribute("value") == file)
    page.write("Epochs", "50")
    page.named("Create job").click()
    page.until(lambda: page.text("h1").startswith("Job ftjob-"))
    job_id = page.text("h1").removeprefix("Job ")
    page.named("Cancel").click()
    page.named("Keep it").click()
    assert not page.all("dialog")
    assert site.store.jobs.get(job_id).status != "cancelled"
    page.named("Cancel").click()
    page.named("Cancel job").click()
    page.until(lambda: page.text(".head .state") == "cancelled")
    assert site.store.jobs.get(job_id).status == "cancelled"
    assert page.run("return document.activeElement !== document.body")
    page.until(lambda: site.store.jobs.get(job_id).settled)


def test_a_file_is_deleted_after_confirmation(page, site, upload, chat_rows):
    file = upload("unused.jsonl", chat_rows[:12])
    page.named("Delete unused.jsonl").click()
    page.named("Delete file").click()
    page.until(lambda: page.text("#announcement") == "Deleted unused.jsonl.")
    assert "unused.jsonl" not in page.text("main")
    assert site.store.files.get(file) is None
