"""Losses that were trained again are held to those that were recorded."""

import pytest

from tunesmith.launcher.runs.replay import _judge, replay


@pytest.fixture
def plan(make_run):
    from tunesmith.launcher.attempts import stored_plan

    return stored_plan(make_run("for-its-plan"))


@pytest.mark.parametrize(
    ("recorded", "trained", "passed", "words"),
    [
        ({3: 2.5, 4: 2.25}, {3: 2.5, 4: 2.25}, True, "every loss is the same to the last bit"),
        ({3: 2.5, 4: 2.25}, {3: 2.5, 4: 2.25000001}, True, "differ by 4.4e-9"),
        ({3: 2.5, 4: 2.25}, {3: 2.5, 4: 2.2501}, False, "allowed 1e-05"),
        ({3: 2.5, 4: 2.25}, {3: 2.5}, False, "step 4 had the loss 2.25 and now has None"),
        ({3: None}, {3: None}, True, "the same"),
        ({3: 2.5}, {3: None}, False, "now has None"),
    ],
)
def test_losses_are_compared_step_by_step(plan, recorded, trained, passed, words):
    proof = _judge(plan, 2, recorded, trained)
    assert proof.passed is passed
    assert words in proof.evidence
    assert "from the checkpoint of step 2" in proof.evidence


def test_without_a_checkpoint_the_proof_stays_open(make_run):
    run = make_run("bot")
    assert replay(run, 2).passed is None
    (run.checkpoints / "step-00000001").mkdir()  # without a manifest it is none
    assert replay(run, 2).passed is None
