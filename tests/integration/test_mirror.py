"""A run whose directory is lost resumes from the mirror, with data from a URL."""

import shutil

import pytest

from tests.event_lines import event_lines
from tests.integration.test_resume import losses, weights
from tunesmith.rundir.paths import RunDir

pytestmark = pytest.mark.slow


def test_lost_run_directory_is_resumed_from_the_mirror_bit_for_bit(project, tmp_path):
    sections = {
        "data": {"train": [f"file://{tmp_path}/chats.jsonl"]},
        "checkpoint": {"mirror": f"file://{tmp_path}/mirror"},
        "evaluation": {"num_answers": 0},
    }
    recipe = project.write(**sections)
    result = project.run("train", recipe, "--run-dir", "lost", TUNESMITH_FAULT="step.update:7=kill")
    assert result.returncode == 1
    lost = RunDir(project.directory / "lost")
    recorded = losses(lost)
    mirrored_step = max(event["step"] for event in event_lines(lost.events, "mirror"))
    assert mirrored_step >= 4
    shutil.rmtree(lost.root)

    again = project.train(recipe, "lost")
    (event,) = event_lines(again.events, "resume")
    assert event["step"] >= mirrored_step
    assert "downloaded from file://" in event["why"]
    assert min(losses(again)) == event["step"] + 1

    whole = project.train(project.write("plain.yaml", evaluation={"num_answers": 0}, data=sections["data"]), "whole")
    assert {**recorded, **losses(again)} == losses(whole)
    assert weights(again) == weights(whole)
