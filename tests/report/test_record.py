"""What is read from a run directory: attempts, what was lost, and damage."""

import json
import time
from dataclasses import replace

import pytest

from tests.event_lines import an_event
from tunesmith.report.comparison import compare
from tunesmith.report.outcome import verdict_of
from tunesmith.report.record import read_record
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status


def verdict(run: RunDir):
    record = read_record(run)
    return verdict_of(record, compare(record))


def test_a_run_that_was_killed_twice_is_told_attempt_by_attempt(finished):
    record = read_record(finished.run)
    assert [attempt.number for attempt in record.attempts] == [1, 2, 3]
    assert [attempt.last_step for attempt in record.attempts] == [52, 60, finished.plan.batch.total_steps]
    assert [attempt.num_lost for attempt in record.attempts] == [12, 20, 0]
    assert record.attempts[0].seconds_lost == pytest.approx(12 * 2.15, rel=0.2)
    assert [attempt.end is None for attempt in record.attempts] == [True, True, False]
    assert record.attempts[2].resume
    assert record.attempts[2].resume.set_aside


def test_only_steps_that_count_are_kept_in_order(finished):
    record = read_record(finished.run)
    assert [event.step for event in record.steps] == list(range(1, finished.plan.batch.total_steps + 1))
    assert [event.step for event in record.evaluations] == [0, 20, 40, 60, finished.plan.batch.total_steps]


def test_a_torn_line_and_damaged_ones_cost_only_themselves(finished):
    lines = finished.run.events.read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"kind":"step"' in line.replace(b" ", b""))
    lines[place] = b'{"kind": "step", "step": "one"}\n{"kind": "evaluation"}\n{"kind": 5}\n\xff\xfe\n'
    finished.run.events.write_bytes(b"".join(lines)[:-30])
    record = read_record(finished.run)
    assert len(record.steps) == finished.plan.batch.total_steps - 1
    assert record.end is None


def test_an_attempt_that_failed_while_loading_stands_by_itself(example):
    example.start().train(20)
    example.end("preempted", 75)
    example.tell("phase", phase="loading")
    example.tell("error", what="the model is gone", where="models/x", remedy="fetch it")
    example.tell("end", outcome="failed", step=20, exit_code=1, seconds=1.0)
    record = read_record(example.run)
    assert [attempt.start is None for attempt in record.attempts] == [False, True]
    assert [len(attempt.errors) for attempt in record.attempts] == [0, 1]
    assert len(record.steps) == 20, "an attempt that never started took nothing back"
    assert verdict(example.run).cause == "the model is gone"


def test_going_back_to_the_start_forgets_everything_but_the_evaluation_before(example):
    example.start().evaluate("before").train(21)
    example.start(0)
    example.train(3)
    record = read_record(example.run)
    assert [event.step for event in record.steps] == [1, 2, 3]
    assert [event.when for event in record.evaluations] == ["before"]


def test_an_empty_directory_is_an_empty_record(tmp_path):
    record = read_record(RunDir(tmp_path))
    assert (record.plan, record.recipe_text, record.status, record.last, record.outcome) == (None,) * 5
    assert record.plan_fault == "plan.json is missing"
    assert record.name == tmp_path.name
    assert not record.is_running
    assert record.ledger == {}


def test_a_damaged_plan_is_told(example):
    example.run.plan.write_text('{"schema_version": 1}')
    record = read_record(example.run)
    assert record.plan is None
    assert record.plan_fault == "plan.json is damaged or of another version"


def test_verdict_done(finished):
    told = verdict(finished.run)
    assert (told.word, told.tone, told.remedy) == ("Done", "good", None)
    assert "Validation loss fell from 2.8381 to 1.7755 (−37.4%)" in told.sentence


def test_verdict_when_the_loss_rose_or_may_not_have_moved(example):
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
    moved = [{**score, "loss": score["loss"] + (-1) ** place * 0.1} for place, score in enumerate(scores)]
    path.write_text("".join(json.dumps(score) + "\n" for score in moved))
    told = verdict_of(record, compare(record))
    assert told.tone == "warn"
    assert "may be chance" in told.sentence


def test_verdict_running_and_broken_off_by_the_life_of_the_process(example):
    example.start().train(5)
    told = verdict(example.run)
    assert (told.word, told.tone) == ("Running", "busy")
    assert f"Now training: 5 of {example.plan.batch.total_steps} steps, about" in told.sentence
    raw = json.loads(example.run.status.read_text())
    raw["pid"] = 2**22 + 1
    example.run.status.write_text(json.dumps(raw))
    told = verdict(example.run)
    assert (told.word, told.tone) == ("Broken off", "bad")
    assert told.cause
    assert told.remedy
    assert told.remedy.startswith(f"tunesmith resume {example.run.root}")


def test_verdict_of_a_process_that_died_without_a_word_names_its_log(example):
    example.start().train(5)
    Status("training", heartbeat=time.time()).write(example.run.status)
    raw = json.loads(example.run.status.read_text())
    example.run.status.write_text(json.dumps({**raw, "host": "elsewhere", "heartbeat": 0}))
    example.run.log(1).write_text("Traceback")
    assert verdict(example.run).where == str(example.run.log(1))


def test_verdict_failed_and_preempted(example):
    example.start().train(4)
    example.end("preempted", 75)
    told = verdict(example.run)
    assert (told.word, told.tone) == ("Preempted", "warn")
    assert told.remedy == f"tunesmith resume {example.run.root}"
    example.start(0)
    example.end("failed", 1, what="the disk is full", where="/runs", remedy="free it")
    told = verdict(example.run)
    assert (told.word, told.cause, told.where, told.remedy) == ("Failed", "the disk is full", "/runs", "free it")


def test_verdict_of_a_launcher_that_failed_before_there_was_a_worker(tmp_path):
    run = RunDir(tmp_path)
    log = EventLog(run.events)
    log.write(an_event("error", what="1 row cannot be used", where="a.jsonl:3", remedy="mend it"))
    Status("failed", attempt=1, exit_code=2).write(run.status)
    told = verdict(run)
    assert (told.word, told.cause, told.remedy) == ("Failed", "1 row cannot be used", "mend it")
    assert "exit code 2" in told.sentence


def test_verdict_before_anything_has_run(example, tmp_path):
    assert verdict(example.run).remedy == f"tunesmith resume {example.run.root}"
    assert "tunesmith train" in str(verdict(RunDir(tmp_path / "empty")).remedy)
