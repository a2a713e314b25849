"""Reading a run directory: attempts, lost steps, damaged files, and the verdict."""

import json
import shutil
import time
from dataclasses import replace

import pytest

from tests.event_lines import an_event
from tunesmith.report.comparison import compare
from tunesmith.report.outcome import verdict_of
from tunesmith.report.page import render
from tunesmith.report.record import read_record
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status


def verdict(run: RunDir):
    record = read_record(run)
    return verdict_of(record, compare(record))


def test_attempts_of_a_run_that_was_killed_twice(finished):
    record = read_record(finished.run)
    assert [attempt.number for attempt in record.attempts] == [1, 2, 3]
    assert [attempt.last_step for attempt in record.attempts] == [52, 60, finished.plan.batch.total_steps]
    assert [attempt.num_lost for attempt in record.attempts] == [12, 20, 0]
    assert record.attempts[0].seconds_lost == pytest.approx(12 * 2.15, rel=0.2)
    assert [attempt.end is None for attempt in record.attempts] == [True, True, False]
    assert record.attempts[2].resume
    assert record.attempts[2].resume.set_aside


def test_lost_steps_are_dropped_and_the_rest_is_ordered(finished):
    record = read_record(finished.run)
    assert [event.step for event in record.steps] == list(range(1, finished.plan.batch.total_steps + 1))
    assert [event.step for event in record.evaluations] == [0, 20, 40, 60, finished.plan.batch.total_steps]


def test_torn_and_damaged_lines_are_skipped(finished):
    lines = finished.run.events.read_bytes().splitlines(keepends=True)
    index = next(i for i, line in enumerate(lines) if b'"kind":"step"' in line.replace(b" ", b""))
    lines[index] = b'{"kind": "step", "step": "one"}\n{"kind": "evaluation"}\n{"kind": 5}\n\xff\xfe\n'
    finished.run.events.write_bytes(b"".join(lines)[:-30])
    record = read_record(finished.run)
    assert len(record.steps) == finished.plan.batch.total_steps - 1
    assert record.end is None


def test_attempt_that_failed_while_loading_is_separate(example):
    example.start().train(20)
    example.end("preempted", 75)
    example.emit("phase", phase="loading")
    example.emit("error", what="the model is missing", where="models/x", remedy="download it")
    example.emit("end", outcome="failed", step=20, exit_code=1, seconds=1.0)
    record = read_record(example.run)
    assert [attempt.start is None for attempt in record.attempts] == [False, True]
    assert [len(attempt.errors) for attempt in record.attempts] == [0, 1]
    assert len(record.steps) == 20, "an attempt that never started drops no steps"
    assert verdict(example.run).cause == "the model is missing"


def test_restarting_from_step_0_keeps_only_the_evaluation_before_training(example):
    example.start().evaluate("before").train(21)
    example.start(0)
    example.train(3)
    record = read_record(example.run)
    assert [event.step for event in record.steps] == [1, 2, 3]
    assert [event.when for event in record.evaluations] == ["before"]


def test_empty_directory_gives_an_empty_record(tmp_path):
    record = read_record(RunDir(tmp_path))
    assert (record.plan, record.recipe_text, record.status, record.last, record.outcome) == (None,) * 5
    assert record.plan_fault == "plan.json is missing"
    assert record.name == tmp_path.name
    assert not record.is_running
    assert record.ledger == {}


def test_damaged_plan_is_reported(example):
    example.run.plan.write_text('{"schema_version": 1}')
    record = read_record(example.run)
    assert record.plan is None
    assert record.plan_fault == "plan.json is damaged or has an unsupported version"


def test_verdict_done(finished):
    result = verdict(finished.run)
    assert (result.word, result.tone, result.remedy) == ("Done", "good", None)
    assert "Validation loss fell from 2.8381 to 1.7755 (−37.4%)" in result.sentence


def test_verdict_warns_if_the_loss_rose_or_did_not_clearly_change(example):
    example.start().evaluate("before")
    example.step = 1
    example.evaluate("after").end("done", 0)
    record = read_record(example.run)
    last = record.evaluations[-1]
    record.evaluations[-1] = replace(last, scores=replace(last.scores, loss=3.0))
    assert verdict_of(record, None).tone == "warn"
    assert "rose from" in verdict_of(record, None).sentence
    path = example.run.evaluation(1)
    scores = [json.loads(line) for line in example.run.evaluation(0).read_text().splitlines()]
    moved = [{**score, "loss": score["loss"] + (-1) ** index * 0.1} for index, score in enumerate(scores)]
    path.write_text("".join(json.dumps(score) + "\n" for score in moved))
    result = verdict_of(record, compare(record))
    assert result.tone == "warn"
    assert "may be due to chance" in result.sentence


def test_verdict_is_running_or_interrupted_depending_on_the_process(example):
    example.start().train(5)
    result = verdict(example.run)
    assert (result.word, result.tone) == ("Running", "busy")
    assert f"Phase training: 5 of {example.plan.batch.total_steps} steps, about" in result.sentence
    raw = json.loads(example.run.status.read_text())
    raw["pid"] = 2**22 + 1
    example.run.status.write_text(json.dumps(raw))
    result = verdict(example.run)
    assert (result.word, result.tone) == ("Interrupted", "bad")
    assert result.cause
    assert result.remedy
    assert result.remedy == (
        f"tunesmith resume {example.run.root} (continues from the start, since there is no checkpoint yet)"
    )


def test_verdict_of_a_killed_process_names_its_log(example):
    example.start().train(5)
    Status("training", heartbeat=time.time()).write(example.run.status)
    raw = json.loads(example.run.status.read_text())
    example.run.status.write_text(json.dumps({**raw, "host": "elsewhere", "heartbeat": 0}))
    example.run.log(1).write_text("Traceback")
    assert verdict(example.run).where == str(example.run.log(1))


def test_verdict_failed_and_preempted(example):
    example.start().train(4)
    example.end("preempted", 75)
    result = verdict(example.run)
    assert (result.word, result.tone) == ("Preempted", "warn")
    assert result.remedy == f"tunesmith resume {example.run.root}"
    example.start(0)
    example.end("failed", 1, what="the disk is full", where="/runs", remedy="free it")
    result = verdict(example.run)
    assert (result.word, result.cause, result.where, result.remedy) == (
        "Failed",
        "the disk is full",
        "/runs",
        "free it",
    )


def test_verdict_of_a_launcher_that_failed_before_starting_a_worker(tmp_path):
    run = RunDir(tmp_path)
    log = EventLog(run.events)
    log.write(an_event("error", what="1 row cannot be used", where="a.jsonl:3", remedy="fix it"))
    Status("failed", attempt=1, exit_code=2).write(run.status)
    result = verdict(run)
    assert (result.word, result.cause, result.remedy) == ("Failed", "1 row cannot be used", "fix it")
    assert "exit code 2" in result.sentence


def test_verdict_before_the_run_has_started(example, tmp_path):
    assert verdict(example.run).remedy == f"tunesmith resume {example.run.root}"
    assert "tunesmith train" in str(verdict(RunDir(tmp_path / "empty")).remedy)


def test_the_export_of_a_moved_run_is_where_the_run_is_now(finished, tmp_path):
    """The events name the place of that time; another run may be there now."""
    there = tmp_path / "there"
    shutil.copytree(finished.run.root, there)
    record = read_record(RunDir(there))
    recorded = str(record.exports[-1].path)
    assert record.export_path == there / "export"
    assert recorded != str(record.export_path)
    assert recorded not in render(record.run)
