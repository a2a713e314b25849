"""docs/benchmarks.md matches the results, and every benchmark runs at its smallest size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import chat  # noqa: E402  # pyright: ignore[reportMissingImports]
import goals  # noqa: E402  # pyright: ignore[reportMissingImports]
import tables  # noqa: E402  # pyright: ignore[reportMissingImports]
import train  # noqa: E402  # pyright: ignore[reportMissingImports]


def run(script: str, *arguments: object) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]


def results(directory: Path, name: str) -> dict:
    return json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))


def test_page_matches_the_results():
    written = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert written == tables.page(), "run `python benchmarks/tables.py`"
    for goal in goals.GOALS:
        assert f"| {goal.what} |" in written


@pytest.mark.parametrize(
    ("sense", "passing", "failing", "verdict"),
    [("at least", 0.9, 0.45, "no, by 50%"), ("at most", 0.9, 1.8, "no, by 100%")],
)
def test_missed_goal_shows_its_shortfall_and_profile(sense, passing, failing, verdict, monkeypatch):
    goal = goals.Goal("speed", sense, 0.9, "some", ("speed",), "some.py")
    result = {"speed": {"median": failing, "low": 0.1, "high": 2.0}, "profile": [{"where": "f", "share": 0.7}]}
    assert tables.row(goal, result).split(" | ")[2:5] == [f"{failing:.2f}", "0.10 to 2.00", verdict]
    monkeypatch.setattr(tables, "GOALS", [goal])
    assert "f 70%" in "\n".join(tables.shortfalls({"some": result}))
    result["speed"]["median"] = passing
    assert " | yes | " in tables.row(goal, result)
    assert tables.shortfalls({"some": result}) == []


def test_goal_without_a_result_shows_the_reason():
    goal = goals.Goal("speed", "at least", 1.5, "some", ("ratios", "other", "speed"), "some.py")
    assert "not measured" in tables.row(goal, None)
    assert "not installed: x" in tables.row(goal, {"skipped": {"other": "not installed: x"}})


def test_every_command_of_the_page_is_valid():
    for goal in goals.GOALS:
        script, *options = goal.command.split()
        text = (ROOT / "benchmarks" / script).read_text(encoding="utf-8")
        for option in options:
            assert not option.startswith("--") or f'"{option}"' in text, goal.command


def test_data_benchmark_runs(tiny_llama, tmp_path):
    run("data.py", "--rows", 80, "--pairs", 1, "--model", tiny_llama, "--results", tmp_path)
    result = results(tmp_path, "data")
    assert result["rate_of_bare"]["runs"] == 1
    assert result["rate_of_bare"]["median"] > 0
    assert 0 <= result["padding"]["median"] < 1
    assert result["resume_ms"]["runs"] == 21
    assert 0.5 < sum(entry["share"] for entry in result["profile"]) <= 1


@pytest.mark.soak
def test_scale_benchmark_runs(tiny_llama, tmp_path):
    small = ["--rows", 40, 80, "--ranks", 1, 8, "--parameters", 900_000, 1_800_000, "--repeats", 1]
    run("scale.py", *small, "--model", tiny_llama, "--results", tmp_path)
    result = results(tmp_path, "scale")
    assert [size["rows"] for size in result["rows"]] == [40, 80]
    assert all(math.isfinite(value) and value > 0 for value in result["growth"].values())


@pytest.mark.soak
def test_start_benchmark_runs(tiny_llama, tmp_path):
    run("start.py", "--pairs", 1, "--steps", 3, "--model", tiny_llama, "--results", tmp_path)
    result = results(tmp_path, "start")
    assert result["start_cpu_s"]["median"] > 0
    assert result["upkeep"]["steps"] == 2
    assert result["upkeep"]["cpu_s"]["Ledger.write"] > 0
    assert 0 < result["upkeep"]["share"] < 1


@pytest.mark.soak
def test_training_benchmark_runs(tiny_llama, tmp_path):
    systems = ["--only", "tunesmith", "bare_unpadded"]
    run("train.py", "--steps", 2, "--rounds", 1, *systems, "--profile", "--model", tiny_llama, "--results", tmp_path)
    result = results(tmp_path, "train")
    shares = {entry["where"]: entry["share"] for entry in result["profile"]}
    assert shares["aten::mm"] > 0
    assert sum(shares.values()) <= 1
    assert [sorted(round_) for round_ in result["rounds"]] == [["bare_unpadded", "tunesmith"]]
    assert result["skipped"] == {}


def test_rounds_of_several_calls_accumulate(tmp_path):
    def one(rate: float, peak: float) -> dict[str, float]:
        return {"tokens_per_cpu_s": rate, "peak_bytes": peak, "first_step_cpu_s": 1.0, "final_loss": 2.0}

    profile_entries = [{"where": "aten::mm", "share": 0.5}]
    train.report(
        "train", tmp_path, [{"tunesmith": one(80, 2e9), "bare": one(40, 8e9)}], {"trl": "not here"}, 3, profile_entries
    )
    rounds, skipped, profile = train.earlier(tmp_path / "train.json")
    rounds.append({"tunesmith": one(90, 2e9), "bare": one(60, 4e9)})
    train.report("train", tmp_path, [*rounds, {"tunesmith": one(10, 1e9), "trl": one(20, 2e9)}], skipped, 3, profile)
    result = results(tmp_path, "train")
    assert result["entrants"]["tunesmith"]["tokens_per_cpu_s"] == {"median": 80, "low": 10, "high": 90, "runs": 3}
    assert result["ratios"]["bare"]["speed"] == {"median": 1.75, "low": 1.5, "high": 2.0, "runs": 2}
    assert result["ratios"]["trl"]["memory"]["median"] == 0.5
    assert result["profile"] == profile_entries
    assert train.earlier(tmp_path / "other.json") == ([], {}, [])


def test_checkpoint_benchmark_runs(tmp_path):
    run("checkpoint.py", "--parameters", 900_000, "--repeats", 1, "--results", tmp_path)
    (size,) = results(tmp_path, "checkpoint")["sizes"]
    assert size["bytes"] > 12 * 880_000
    assert size["bytes_per_s_of_raw"]["median"] > 0


def test_kernel_benchmark_runs(tmp_path):
    run("kernels.py", "--device", "cpu", "--only", "rms_norm", "--runs", 1, "--results", tmp_path)
    assert results(tmp_path, "kernels-cpu")["operations"]["rms_norm"]["entrants"]


@pytest.mark.soak
def test_evaluation_benchmark_runs(tiny_llama, tmp_path):
    run("evaluation.py", tiny_llama, "--rows", 8, "--pairs", 1, "--results", tmp_path)
    result = results(tmp_path, "evaluation")
    assert result["two_processes_of_two_independent"]["cpu"]["median"] > 0
    assert result["memory"]["scored"] > 0


@pytest.mark.soak
def test_chat_benchmark_runs(tiny_llama, tmp_path):
    run("chat.py", "--rounds", 1, "--steps", 2, "--tokens", 4, "--model", tiny_llama, "--results", tmp_path)
    result = results(tmp_path, "chat")
    assert result["chat_of_idle"]["median"] > 0
    assert result["training_of_alone"]["median"] > 0
    assert result["tokens_per_s"].keys() == {"chat_idle", "chat_shared", "training_alone", "training_shared"}


def test_chat_benchmark_counts_only_steps_between_two_times():
    steps = [{"time": float(end), "step_s": 2.0, "num_tokens": 100 * end} for end in (2, 4, 6, 8)]
    assert [step["time"] for step in chat.between(steps, 1.5, 7.0)] == [4.0, 6.0]
    assert chat.rate(steps[:2]) == 150.0


def test_model_proof_benchmark_runs(tiny_llama, tmp_path):
    run("model_proof.py", "--runs", 1, "--model", tiny_llama, "--results", tmp_path)
    result = results(tmp_path, "model-proof")
    assert 0 < result["worker_s"]["median"] < result["plan_s"]["median"]
    assert result["of_an_hour"]["median"] == pytest.approx(
        (result["plan_s"]["median"] + result["worker_s"]["median"]) / 3600
    )
