"""After the last step: the best weights are there or the run says why not."""

import shutil

import pytest

from tunesmith.errors import RunFault
from tunesmith.training.finishing import load_best


def test_the_best_checkpoint_stays_in_the_mirror_and_comes_back_with_the_newest(attempt, elsewhere):
    saving = attempt.saving()
    for step in (2, 4, 6):
        attempt.state.step = step
        attempt.state.note_validation(1.0 + abs(step - 4), 0.0)
        saving.save("schedule")
    shutil.rmtree(attempt.run.checkpoint(4))  # what is deleted here is not deleted there
    attempt.state.step = 8
    saving.save("end")
    assert attempt.mirror.steps() == [4, 8]

    again = elsewhere()
    assert again.resume().step == 8
    assert sorted(path.name for path in again.run.checkpoints.iterdir()) == ["step-00000004", "step-00000008"]
    load_best(again.context, again.state)
    assert again.state.step == 4


def test_a_best_checkpoint_that_is_nowhere_fails_the_run_and_the_untrained_model_has_none(attempt):
    saving = attempt.saving()
    attempt.state.note_validation(1.0, 0.0)
    attempt.state.step = 6
    saving.save("end")
    load_best(attempt.context, attempt.state)
    assert "no step had a lower validation loss than the untrained model" in attempt.warnings()[0]
    attempt.state.best_step = 4
    with pytest.raises(RunFault, match="checkpoint of step 4, whose validation loss was the lowest") as raised:
        load_best(attempt.context, attempt.state)
    assert "--step 6" in str(raised.value)
