"""Checkpoints around the steps: the last one reaches the mirror, and a save is not cut off."""

import os
import shutil
import threading
import time

import pytest

from tunesmith.errors import RunFault
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import MirrorEvent
from tunesmith.training.distributed import interruption as interruptions


@pytest.mark.parametrize("reason", ["end", "preemption"])
@pytest.mark.parametrize("times", ["1", "2"])
def test_the_last_checkpoint_is_sent_again_where_it_did_not_arrive(attempt, monkeypatch, reason, times):
    """Saved as due, which only warns; then as the last one, when nothing is left to write but it must arrive."""
    monkeypatch.setenv("TUNESMITH_FAULT", f"mirror.files:{times}=raise")
    saving = attempt.saving()
    if times == "1":
        attempt.state.step = 3
        saving.save("schedule")
        assert attempt.mirror.steps() == []
        assert "step 3 is not in the mirror" in attempt.warnings()[0]
        saving.save(reason)
    else:
        attempt.state.step = 2
        saving.save("schedule")
        attempt.state.step = 3
        with pytest.raises(RunFault, match="could not be sent to its mirror"):
            saving.save(reason)
        assert attempt.mirror.steps() == [2]
        saving.save(reason)
    assert attempt.mirror.steps() == [3]


def test_an_attempt_that_made_no_step_sends_what_the_one_before_could_not(attempt, tmp_path):
    attempt.save(3, "end")
    shutil.rmtree(tmp_path / "mirror")
    attempt.saving().save("preemption")
    assert attempt.mirror.steps() == [3]
    attempt.saving().save("preemption")
    assert [event.step for event in read_events(attempt.run.events, MirrorEvent)] == [3, 3]


def test_a_mirror_that_lets_nothing_be_deleted_is_a_warning_of_its_own(attempt, monkeypatch):
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.delete=raise")
    saving = attempt.saving()
    attempt.state.step = 2
    saving.save("schedule")
    attempt.state.step = 3
    saving.save("end")
    assert attempt.mirror.steps() == [2, 3]
    assert [event.step for event in read_events(attempt.run.events, MirrorEvent)] == [2, 3]
    (told,) = attempt.warnings()
    assert "older checkpoints stay in the mirror" in told


def test_an_orphans_time_does_not_run_during_its_last_save(attempt, tmp_path, monkeypatch):
    """The mirror takes longer than an orphan may; the time runs on when the save is over."""
    until = tmp_path / "arrive"
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.files=hang")
    monkeypatch.setenv("TUNESMITH_FAULT_UNTIL", str(until))
    monkeypatch.setenv("TUNESMITH_ORPHAN_GRACE_S", "0.2")
    monkeypatch.setattr(interruptions, "POLL_S", 0.02)
    ended = threading.Event()
    monkeypatch.setattr(interruptions, "terminate", lambda error, stacks: ended.set())
    saving = threading.Thread(target=attempt.save, args=[3, "preemption"])
    saving.start()
    while not os.path.isdir(tmp_path / "mirror"):
        time.sleep(0.01)
    threading.Thread(target=attempt.interruption._terminate_when_late).start()
    assert not ended.wait(1.0)
    until.touch()
    saving.join(10)
    assert attempt.mirror.steps() == [3]
    assert ended.wait(5.0)
