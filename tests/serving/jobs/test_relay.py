"""Conversion of a run's log to API events: once each, in order, however the log is split between reads."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.rundir.paths import RunDir
from tunesmith.serving.jobs.relay import ApiEvent, Relay, SavedCheckpoint, result_csv


def step(number, loss=None, **more):
    return {"time": 100.0 + number, "kind": "step", "step": number, "total_steps": 6, "loss": loss or 3.0 / number,
            "token_accuracy": 0.5, "num_tokens": 10, **more}  # fmt: skip


def evaluation(number, when="during"):
    facts = {"loss": 1.5, "token_accuracy": 0.25}
    return {"time": 100.5 + number, "kind": "evaluation", "step": number, "when": when, **facts}


def checkpoint(number, reason="schedule"):
    return {"time": 100.7 + number, "kind": "checkpoint", "step": number, "path": "x", "reason": reason}


START = {"time": 99.0, "kind": "start", "attempt": 1, "step": 0}
LOG = [
    START,
    {"time": 99.5, "kind": "evaluation", "step": 0, "when": "before", "loss": 9.0, "token_accuracy": 0.1},
    *(step(1), step(2), evaluation(2), checkpoint(2), step(3)),
    {"time": 103.1, "kind": "warning", "message": "careful", "code": "c"},
    *(step(4), evaluation(4), checkpoint(4, "preemption")),
    {**START, "attempt": 2, "step": 4, "time": 110.0},
    *(step(5), step(6), evaluation(6), checkpoint(6, "end"), evaluation(6, "after")),
    {"time": 120.0, "kind": "end", "outcome": "done"},
]


def a_run(directory, validation=True):
    run = RunDir(directory)
    run.plan.write_text(
        json.dumps(
            {
                "batch": {
                    "evaluation_every_steps": 2 if validation else None,
                    "checkpoint_every_steps": 2,
                    "total_steps": 6,
                },
                "data": {"validation": {} if validation else None},
            }
        )
    )
    return run


def lines(events):
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def read(run, data, cuts=()):
    """(relay, all its items) while the log grows in parts. cuts: byte offsets of the parts."""
    relay, items = Relay(run), []
    run.events.write_bytes(b"")
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        with open(run.events, "ab") as file:
            file.write(data[start:stop])
        items += relay.new()
    return relay, [*items, *relay.new(at_end=True)]


def test_events_of_a_complete_run(tmp_path):
    relay, items = read(a_run(tmp_path), lines(LOG))
    events = [item for item in items if isinstance(item, ApiEvent)]
    metrics = [event for event in events if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[0].data == {
        "step": 1, "total_steps": 6, "train_loss": 3.0, "train_mean_token_accuracy": 0.5,
    }  # fmt: skip
    assert metrics[0].message == "Step 1/6: training loss=3.00"
    measured = ("valid_loss", "full_valid_loss", "valid_mean_token_accuracy", "full_valid_mean_token_accuracy")
    assert [metrics[1].data[name] for name in measured] == [1.5, 1.5, 0.25, 0.25]
    assert metrics[5].data["valid_loss"] == 1.5
    assert not set(measured) & metrics[2].data.keys()
    assert [event.message for event in events if event.level == "warn"] == ["careful"]
    assert [event.message for event in events if event.key.startswith("attempt")] == ["Training resumed from step 4"]
    assert [(item.step, "valid_loss" in item.metrics) for item in items if isinstance(item, SavedCheckpoint)] == [
        (2, True),
        (6, True),
    ]
    assert relay.trained_tokens == 60


def test_a_repeated_step_keeps_its_key(tmp_path):
    """Killed after step 3 and resumed from the checkpoint of step 2: step 3 occurs twice, with the same numbers."""
    events = [*LOG[:7], {**START, "attempt": 2, "step": 2, "time": 105.0}, *LOG[6:10], *LOG[12:]]
    relay, items = read(a_run(tmp_path), lines(events))
    keys = [item.key for item in items if isinstance(item, ApiEvent)]
    assert keys.count("step:3") == 2
    assert set(keys) >= {f"step:{number}" for number in range(1, 7)}
    assert relay.trained_tokens == 60


def test_a_step_whose_evaluation_was_lost_waits_for_its_repetition(tmp_path):
    events = [START, step(1), step(2), {**START, "attempt": 2, "step": 0}, step(1), step(2), evaluation(2)]
    _, items = read(a_run(tmp_path), lines(events))
    steps = [item for item in items if isinstance(item, ApiEvent) and item.key == "step:2"]
    assert len(steps) == 1
    assert steps[0].data["valid_loss"] == 1.5


def resume(number):
    return {"time": 104.0 + number, "kind": "resume", "step": number, "path": f"step-{number}", "why": "w"}


@pytest.mark.parametrize("validation", [True, False])
def test_a_checkpoint_that_was_committed_but_not_recorded_is_relayed_once(tmp_path, validation):
    """The worker was killed between the two; it is resumed from that checkpoint."""
    run, again = a_run(tmp_path, validation), {**START, "attempt": 2, "step": 2}

    def epoch(number):
        return [step(number - 1), step(number), *([evaluation(number)] if validation else [])]

    recorded = [*epoch(4), checkpoint(4), resume(4), {**again, "step": 4}]
    _, items = read(run, lines([START, *epoch(2), resume(2), again, *recorded, step(5)]))
    saved = [item for item in items if isinstance(item, SavedCheckpoint)]
    assert [(item.step, item.metrics["train_loss"]) for item in saved] == [(2, 1.5), (4, 0.75)]
    assert ("valid_loss" in saved[0].metrics) is validation
    _, items = read(run, lines([START, step(1), resume(1), again]))  # saved by a preemption, not by an epoch
    assert not [item for item in items if isinstance(item, SavedCheckpoint)]
    _, items = read(run, lines([START, *map(step, range(1, 7)), evaluation(6), resume(6), again]))
    assert [item.step for item in items if isinstance(item, SavedCheckpoint)] == [6]


def test_without_validation_steps_are_reported_at_once(tmp_path):
    run = a_run(tmp_path, validation=False)
    relay = Relay(run)
    run.events.write_bytes(lines([START, step(1), step(2)]))
    assert [item.key for item in relay.new()] == ["step:1", "step:2"]


def test_non_finite_losses_are_omitted(tmp_path):
    _, items = read(a_run(tmp_path), lines([START, step(1, loss="nan")]))
    assert "train_loss" not in items[0].data
    json.dumps(items[0].data, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(lines(LOG))), max_size=6))
def test_events_do_not_depend_on_how_the_log_is_read(tmp_path_factory, cuts):
    run = a_run(tmp_path_factory.mktemp("run"))
    whole = read(run, lines(LOG))[1]
    assert read(run, lines(LOG), sorted(cuts))[1] == whole


def test_result_csv(tmp_path):
    relay, _ = read(a_run(tmp_path), lines(LOG))
    rows = result_csv(relay.metrics).splitlines()
    assert rows[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert rows[1] == "1,3.00000,0.50000,,"
    assert rows[2] == "2,1.50000,0.50000,1.50000,0.25000"
    assert len(rows) == 7


@pytest.mark.parametrize("torn", [1, 20])
def test_an_incomplete_line_is_not_read(tmp_path, torn):
    run = a_run(tmp_path, validation=False)
    data = lines([START, step(1)])
    relay = Relay(run)
    run.events.write_bytes(data[:-torn])
    assert relay.new() == []
    run.events.write_bytes(data)
    assert [item.key for item in relay.new()] == ["step:1"]
