"""`evaluate --tasks`, with scores in place of the harness."""

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("lm_eval")

from tunesmith.cli.main import app
from tunesmith.evaluation.harness import TaskScores


def test_scores_of_tasks_are_written_to_a_directory_that_does_not_exist_yet(tmp_path, monkeypatch):
    scores = TaskScores("tiny", {"task": {"acc,none": 0.5, "acc_stderr,none": float("nan")}})
    monkeypatch.setattr("tunesmith.evaluation.harness.run_tasks", lambda *_, **__: scores)
    out = tmp_path / "results" / "tiny"
    ended = CliRunner().invoke(app, ["evaluate", "tiny", "--tasks", "task", "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    assert json.loads((out / "tasks.json").read_text())["results"]["task"] == {"acc,none": 0.5, "acc_stderr,none": None}
