"""Progress output of a run: plain lines in a file, a bar on a terminal, nothing on a closed pipe."""

import io
import os
import threading

import pytest

from tests.event_lines import an_event
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.progress import LINES_PER_RUN, Progress
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.paths import RunDir


def step(number: int, total: int = 100, **changes) -> dict:
    event = {"kind": "step", "step": number, "total_steps": total, "loss": 2.5, "tokens_per_s": 118.0, "step_s": 2.0}
    return {**event, **changes}


def printed(*events: dict) -> list[str]:
    stream = io.StringIO()
    progress = Progress(stream)
    for event in events:
        progress.show(an_event(**event))
    return stream.getvalue().splitlines()


def test_a_step_is_printed_with_loss_speed_and_time_left():
    (line,) = printed(step(1))
    assert line == "step 1/100  loss 2.5000  118 tokens/s  3 min 18 s left"


def test_plain_lines_are_spread_evenly_over_the_run():
    lines = printed(*(step(number, 1000) for number in range(1, 1001)))
    assert len(lines) == LINES_PER_RUN + 1
    assert lines[0].startswith("step 1/1000")
    assert lines[-1].startswith("step 1000/1000")
    assert "left" not in lines[-1]


def test_the_time_left_follows_from_recent_steps():
    """A slow start (loading, compiling) no longer counts."""
    events = [step(number, 100, step_s=100.0 if number < 30 else 1.0) for number in range(1, 51)]
    assert printed(*events)[-1].endswith("50.0 s left")


def test_skipped_steps_and_non_finite_losses_are_marked():
    (line,) = printed(step(1, loss="nan", skipped=True))
    assert "loss NaN (skipped)" in line


def test_other_events_are_printed():
    lines = printed(
        {"kind": "phase", "phase": "loading"},
        {"kind": "phase", "phase": "evaluating"},
        {"kind": "evaluation", "step": 0, "when": "before", "loss": 3.0, "perplexity": 20.0855, "token_accuracy": 0.25},
        {"kind": "evaluation", "step": 8, "when": "during", "loss": 2.0, "perplexity": 7.389, "best": True},
        {"kind": "checkpoint", "step": 20, "num_bytes": 14 << 20, "seconds": 1.5, "reason": "schedule"},
        {"kind": "checkpoint", "step": 20, "num_bytes": 14 << 20, "seconds": 0.01, "reason": "end"},
        {"kind": "warning", "message": "step 3 was skipped", "code": "step_skipped"},
        {
            "kind": "export",
            "path": "/r/export",
            "form": "adapter",
            "gate": {"max_logit_difference": 1.2e-6, "tolerance": 1e-3},
        },
        {"kind": "end", "outcome": "done"},
    )
    assert lines == [
        "loading the model",
        "validation loss 3.0000, perplexity 20.09, token accuracy 25.0% (before training)",
        "validation loss 2.0000, perplexity 7.389, token accuracy – (step 8, the best so far)",
        "checkpoint of step 20: 14.0 MiB in 1.5 s",
        "warning: step 3 was skipped",
        "export: adapter in /r/export, read back: largest logit difference 1.2e-6 (limit 0.001)",
    ]


def test_an_evaluation_shows_the_loss_of_each_data_set():
    by_name = {"support": {"loss": 1.5, "num_examples": 9}, "general": {"loss": 2.25}}
    scores = {"loss": 2.0, "perplexity": 7.389, "token_accuracy": 0.5, "datasets": by_name}
    (line,) = printed({"kind": "evaluation", "step": 8, "when": "during", **scores})
    assert line.endswith("(step 8); loss by data set: support 1.5000, general 2.2500")


def test_a_checkpoint_that_was_set_aside_is_reported():
    damaged = {"path": "/r/checkpoints/step-00000020", "why": "model.safetensors does not match its hash"}
    lines = printed({"kind": "resume", "step": 10, "why": "the newest that verifies", "set_aside": [damaged]})
    assert lines == [
        "set aside step-00000020: model.safetensors does not match its hash",
        "resuming after step 10: the newest that verifies",
    ]


@pytest.fixture
def plan(a_recipe, a_model, some_data):
    return make_plan(a_recipe(), a_model(), some_data(), Hardware(2, "", 64 << 30, "", frozenset()))


def test_only_new_events_are_printed(tmp_path, plan):
    run = RunDir(tmp_path)
    log = EventLog(run.events)
    log.write(an_event("warning", message="of an earlier attempt", code="x"))
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.following(run, plan):
        log.write(an_event("warning", message="now", code="x"))
        progress.poll()
        log.write(an_event("warning", message="at the very end", code="x"))
    progress.poll()
    assert stream.getvalue().splitlines() == ["warning: now", "warning: at the very end"]


def test_a_terminal_gets_a_bar_and_is_restored(tmp_path, plan):
    leader, follower = os.openpty()
    pieces: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(leader, pieces))
    reader.start()
    with os.fdopen(follower, "w") as stream:
        progress = Progress(stream)
        progress.preparing("tokenising", 1 << 20, 2 << 20)
        with progress.following(RunDir(tmp_path), plan):
            progress.show(an_event(**step(7, 13)))
            progress.print("a line above the bar")
    reader.join()
    os.close(leader)
    text = b"".join(pieces).decode()
    assert "1.0 MiB of 2.0 MiB" in text
    assert "7/13" in text
    assert "a line above the bar" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 2  # the cursor was restored each time
    assert text.endswith("\x1b[2K")  # and the bar is gone


def read_all(fd: int, pieces: list[bytes]) -> None:
    try:
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
    except OSError:  # the other end of a pseudo-terminal was closed
        pass


def test_a_closed_pipe_stops_the_output_but_not_the_run():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        progress = Progress(stream)
        for number in range(1, 4):
            progress.show(step(number))
        progress.close()
