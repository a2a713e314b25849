"""Losses of replayed steps are compared with the recorded losses."""

import pytest

from tunesmith.launcher.runs.replay import _judge, replay


@pytest.fixture
def plan(make_run):
    from tunesmith.launcher.attempts import stored_plan

    return stored_plan(make_run("for-its-plan"))


@pytest.mark.parametrize(
    ("recorded", "trained", "passed", "expected"),
    [
        ({3: 2.5, 4: 2.25}, {3: 2.5, 4: 2.25}, True, "all losses are bit-identical"),
        ({3: 2.5, 4: 2.25}, {3: 2.5, 4: 2.25000001}, True, "difference of the losses 4.4e-9"),
        ({3: 2.5, 4: 2.25}, {3: 2.5, 4: 2.2501}, False, "allowed 1e-05"),
        ({3: 2.5, 4: 2.25}, {3: 2.5}, False, "the loss of step 4 was 2.25 and is now None"),
        ({3: None}, {3: None}, True, "bit-identical"),
        ({3: 2.5}, {3: None}, False, "is now None"),
    ],
)
def test_losses_are_compared_step_by_step(plan, recorded, trained, passed, expected):
    proof = _judge(plan, 2, recorded, trained)
    assert proof.passed is passed
    assert expected in proof.evidence
    assert "from the checkpoint of step 2" in proof.evidence


def test_the_proof_is_open_without_a_checkpoint(make_run):
    run = make_run("bot")
    assert replay(run, 2).passed is None
    (run.checkpoints / "step-00000001").mkdir()  # without a manifest it is not a checkpoint
    assert replay(run, 2).passed is None
