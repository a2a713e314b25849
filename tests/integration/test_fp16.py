"""A run in fp16: steps that overflow are skipped and recorded, and resuming is bit-identical."""

import shutil

import pytest

from tests.event_lines import event_lines
from tests.integration.test_resume import flip_bit, losses, reopen, weights
from tunesmith.rundir.ledger import read_ledger
from tunesmith.rundir.paths import RunDir

INITIAL = 2.0**24
"""A loss scale with which the tiny model overflows a few times."""


@pytest.mark.slow
@pytest.mark.cold
def test_fp16_skips_steps_that_overflow_and_resumes_bit_for_bit(project):
    recipe = project.write(
        precision="fp16",
        method={"kind": "lora", "lora_rank": 4, "lora_alpha": 8},
        optimization={"max_skipped_steps": 1},
        checkpoint={"every_steps": 2, "keep_last": 3},
    )
    run = project.train(recipe, "fp16", TUNESMITH_FAULT=f"loss_scale={INITIAL}")
    steps = list(event_lines(run.events, "step"))
    skipped = [event["step"] for event in steps if event["skipped"]]
    # More steps in a row than max_skipped_steps, without the verdict on a loss that is not finite.
    assert skipped[:2] == [1, 2]
    assert len(skipped) < len(steps) / 2
    scale = INITIAL
    for event in steps:
        scale /= 2 if event["skipped"] else 1
        assert event["loss_scale"] == scale
    assert [step for step, (entry,) in read_ledger(run).items() if entry.skipped] == skipped
    warnings = [event["message"] for event in event_lines(run.events, "warning") if event["code"] == "loss_scale"]
    assert len(warnings) == len(skipped)
    assert f"the loss scale is now {INITIAL / 2:g}" in warnings[0]
    assert min(losses(run).values()) < losses(run)[1]

    expected = weights(run), losses(run), [event["loss_scale"] for event in steps]
    again = RunDir(project.directory / "again")
    shutil.copytree(run.root, again.root)
    reopen(again)
    last = max(again.checkpoints.glob("step-*"))
    flip_bit(last / "model.safetensors")
    result = project.run("resume", "again")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = list(event_lines(again.events, "step"))
    assert len(lines) > len(steps)  # the last steps were trained again
    by_step = {event["step"]: event["loss_scale"] for event in lines}
    assert (weights(again), losses(again), list(by_step.values())) == expected
