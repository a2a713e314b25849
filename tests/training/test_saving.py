"""Saving between steps: the last checkpoint reaches the mirror, and the last save is not interrupted."""

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
def test_the_last_checkpoint_is_uploaded_again_after_a_failure(attempt, monkeypatch, reason, times):
    """A failed scheduled upload only warns; the last save writes nothing new but must upload."""
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
        with pytest.raises(RunFault, match="could not be uploaded to its mirror"):
            saving.save(reason)
        assert attempt.mirror.steps() == [2]
        saving.save(reason)
    assert attempt.mirror.steps() == [3]


def test_an_attempt_without_steps_uploads_a_missing_checkpoint(attempt, tmp_path):
    attempt.save(3, "end")
    shutil.rmtree(tmp_path / "mirror")
    attempt.saving().save("preemption")
    assert attempt.mirror.steps() == [3]
    attempt.saving().save("preemption")
    assert [event.step for event in read_events(attempt.run.events, MirrorEvent)] == [3, 3]


def test_a_failed_deletion_in_the_mirror_is_a_warning(attempt, monkeypatch):
    monkeypatch.setenv("TUNESMITH_FAULT", "mirror.delete=raise")
    saving = attempt.saving()
    attempt.state.step = 2
    saving.save("schedule")
    attempt.state.step = 3
    saving.save("end")
    assert attempt.mirror.steps() == [2, 3]
    assert [event.step for event in read_events(attempt.run.events, MirrorEvent)] == [2, 3]
    (warning,) = attempt.warnings()
    assert "older checkpoints remain in the mirror" in warning


def test_the_last_save_does_not_count_against_the_grace_period(attempt, tmp_path, monkeypatch):
    """The mirror takes longer than the grace period of an orphan, which continues after the save."""
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
    saving.join(300)
    assert attempt.mirror.steps() == [3]
    assert ended.wait(300)
