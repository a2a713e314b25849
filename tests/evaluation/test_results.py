import json
import math

import numpy as np
import pytest

from tunesmith.errors import RunFault
from tunesmith.evaluation.results import ExampleScores, read_scores, write_scores

SCORES = ExampleScores(
    row=np.array([3, 4, 9]),
    loss_sum=np.array([1.25, 0.0, 7.1]),
    num_tokens=np.array([2, 0, 3]),
    num_correct=np.array([1, 0, 3]),
)


def test_scores_round_trip(tmp_path):
    path = tmp_path / "evaluations" / "step-00000007.jsonl"
    write_scores(path, SCORES)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"id": 3, "loss": 0.625, "loss_sum": 1.25, "num_tokens": 2, "num_correct": 1}
    assert lines[1]["loss"] is None
    again = read_scores(path)
    assert again.row.tolist() == [3, 4, 9]
    assert again.num_tokens.tolist() == [2, 0, 3]
    assert again.num_correct.tolist() == [1, 0, 3]
    assert again.loss_sum == pytest.approx(SCORES.loss_sum, rel=1e-15)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_non_finite_scores_round_trip_as_valid_json(tmp_path):
    path = tmp_path / "step-00000001.jsonl"
    bad = np.array([math.nan, math.inf])
    write_scores(path, ExampleScores(np.array([0, 1]), bad, np.array([1, 1]), np.array([0, 0])))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = read_scores(path)
    assert math.isnan(again.loss_sum[0])
    assert math.isinf(again.loss_sum[1])


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "step-00000001.jsonl"
    write_scores(path, SCORES)
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    other = ExampleScores(SCORES.row[:1], SCORES.loss_sum[:1], SCORES.num_tokens[:1], SCORES.num_correct[:1])
    with pytest.raises(OSError, match="space"):
        write_scores(path, other)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_error_names_the_damaged_line(tmp_path):
    path = tmp_path / "step-00000001.jsonl"
    write_scores(path, SCORES)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:10], lines[2]]))
    with pytest.raises(RunFault) as caught:
        read_scores(path)
    assert caught.value.where == f"{path}:2"
