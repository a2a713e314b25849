"""Runs are created, interrupted, resumed and rejected, with the console script and real workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.waiting import LIMIT_S, wait_for
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status

COMMAND = Path(sys.executable).with_name("tunesmith")


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_llama) -> Path:
    """A directory with a recipe, rows, a copy of a tiny model, and a separate cache."""
    directory = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_llama, directory / "model")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {number}?"},
                {"role": "assistant", "content": f"Case {number} is handled today."},
            ]
        }
        for number in range(20)
    ]
    (directory / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "recipe.yaml").write_text(
        "# my first recipe\nname: tiny\nmodel: {base: model}\nmethod: {kind: lora, lora_rank: 4}\n"
        "data: {train: [chats.jsonl], validation: 0.2, max_seq_len: 256, packing: false}\n"
        "optimization: {global_batch_size: 4, max_steps: 3, learning_rate: 1e-3}\n"
        "evaluation: {num_answers: 1, max_new_tokens: 4}\nseed: 7\n"
    )
    return directory


def tunesmith(project: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        cwd=project,
        env={**os.environ, "TUNESMITH_CACHE": str(project / "cache"), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(project) -> tuple[RunDir, subprocess.CompletedProcess[str]]:
    ended = tunesmith(project, "train", "recipe.yaml", "--set", "checkpoint.every_steps=2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return RunDir(project / "runs" / "tiny"), ended


@pytest.fixture
def broken_off(trained, project, request) -> RunDir:
    """A copy of the trained run, as if it had been interrupted after its last checkpoint."""
    run = RunDir(project / "runs" / f"copy-{request.node.name[:40].replace('[', '-').rstrip(']')}")
    shutil.copytree(trained[0].root, run.root)
    run.status.unlink()
    shutil.rmtree(run.export)
    kept = [line for line in run.events.read_text().splitlines(keepends=True) if '"kind":"end"' not in line]
    run.events.write_text("".join(kept))
    return run


def test_training_prints_progress_and_results(trained):
    run, ended = trained
    lines = ended.stdout.splitlines()
    assert any(line.startswith("step 3/3  loss ") for line in lines)
    for text in ("(before training)", "(after training)", "4 held-out rows", "perplexity", "report.html", "20 kept"):
        assert text in ended.stdout
    assert run.report.is_file()
    assert (run.export / "adapter_config.json").is_file()


def test_the_run_stores_the_recipe_text_and_the_overrides(trained, project):
    text = trained[0].recipe.read_text()
    assert text.startswith((project / "recipe.yaml").read_text())
    assert text.endswith("# --set checkpoint.every_steps=2\n")


def test_json_output_is_one_object_on_standard_output(trained, project):
    arguments = ["train", "recipe.yaml", "--set", "checkpoint.every_steps=2", "--json"]
    ended = tunesmith(project, *arguments)
    assert ended.returncode == 0
    assert "nothing to train" in ended.stderr
    result = json.loads(ended.stdout)
    assert (result["phase"], result["exit_code"], result["step"]) == ("done", 0, 3)
    assert 0 < result["evaluation"]["after"]["loss"] < 20
    assert Path(result["export"]).is_dir()
    assert result["rows"]["fates"]["kept"] == 20


def test_another_recipe_is_rejected_with_the_difference(trained, project):
    before = trained[0].events.read_bytes()
    ended = tunesmith(project, "train", "recipe.yaml", "--set", "checkpoint.every_steps=2", "--set", "seed=8")
    assert ended.returncode == 2
    assert "seed: 7 -> 8" in ended.stderr
    assert trained[0].events.read_bytes() == before


@pytest.mark.parametrize("command", ["resume", "train"])
def test_changed_rows_are_rejected(broken_off, project, command):
    rows = project / "chats.jsonl"
    kept = rows.read_bytes()
    try:
        rows.write_bytes(b"".join(kept.splitlines(keepends=True)[:-1]))
        arguments = [broken_off.root] if command == "resume" else ["recipe.yaml", "--run-dir", broken_off.root]
        overrides = ["--set", "checkpoint.every_steps=2"] if command == "train" else []
        ended = tunesmith(project, command, *arguments, *overrides)
    finally:
        rows.write_bytes(kept)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "the data is not the data that the run was started with" in ended.stderr
    assert "->" in ended.stderr


def test_data_files_are_not_needed_once_they_are_prepared(broken_off, project):
    """The index contains them; without the index the run cannot be resumed, and the error names the missing file."""
    rows = project / "chats.jsonl"
    rows.rename(project / "away.jsonl")
    try:
        index = Path(json.loads(broken_off.plan.read_text())["data"]["train"]["index"]).parent
        index.rename(index.with_name("lost"))
        lost = tunesmith(project, "resume", broken_off.root)
        index.with_name("lost").rename(index)
        ended = tunesmith(project, "resume", broken_off.root)
    finally:
        (project / "away.jsonl").rename(rows)
    assert lost.returncode == 2
    assert "no data found for 'chats.jsonl'" in lost.stderr
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "using the prepared rows" in ended.stdout


def test_a_changed_model_is_rejected(broken_off, project):
    weights = project / "model" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        ended = tunesmith(project, "resume", broken_off.root)
    finally:
        weights.write_bytes(kept)
    assert ended.returncode == 2
    assert "different weights" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_lost_cache_is_rebuilt_and_the_run_resumes(broken_off, project):
    shutil.rmtree(project / "cache")
    elsewhere = str(project / "another-cache")
    ended = tunesmith(project, "resume", broken_off.root, TUNESMITH_CACHE=elsewhere)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resuming the run" in ended.stdout
    assert "resuming after step 3" in ended.stdout
    assert broken_off.log(2).is_file()
    assert [event["attempt"] for event in event_lines(broken_off.events, "start")] == [1, 2]
    plan = json.loads(broken_off.plan.read_text())
    assert plan["data"]["train"]["index"].startswith(elsewhere)


def test_a_killed_worker_is_reported_and_the_run_can_be_resumed(project):
    ended = tunesmith(project, "train", "recipe.yaml", "--run-dir", "killed", TUNESMITH_FAULT="step.forward:2=kill")
    assert ended.returncode == 1
    assert "SIGKILL" in ended.stderr
    assert "tunesmith resume killed" in ended.stderr
    status = read_status(RunDir(project / "killed").status)
    assert status is not None
    assert (status.phase, status.exit_code) == ("failed", 1)
    assert json.loads(tunesmith(project, "status", "killed", "--json").stdout)["cause"].startswith(
        "the worker was killed"
    )


def test_sigterm_during_preparation_exits_with_75_and_the_same_command_continues(project):
    """A named pipe instead of the data file blocks the preparation."""
    rows = project / "held-up.jsonl"
    os.mkfifo(rows)
    arguments = ["train", "recipe.yaml", "--run-dir", "held-up", "--set", "data.train=[held-up.jsonl]"]
    process = subprocess.Popen([str(COMMAND), *arguments], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run = RunDir(project / "held-up")

    def is_preparing() -> bool:
        return (status := read_status(run.status)) is not None and status.phase == "preparing"

    wait_for(is_preparing, processes=[process])
    pipe = wait_for(lambda: opened_by_a_reader(rows), processes=[process])  # kept open: the reader waits for rows
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=LIMIT_S)
    os.close(pipe)
    assert process.returncode == 75, output + errors
    status = read_status(run.status)
    assert status is not None
    assert (status.phase, status.exit_code) == ("preempted", 75)
    rows.unlink()
    shutil.copy(project / "chats.jsonl", rows)
    again = tunesmith(project, *arguments, "--set", "optimization.max_steps=1")
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_run_can_be_exported_evaluated_and_used_for_chat(trained, project):
    run = trained[0]
    merged = tunesmith(project, "export", "tiny", "--merge", "--to", "merged", "--json")
    assert merged.returncode == 0, merged.stderr
    assert json.loads(merged.stdout)["form"] == "model"
    assert (project / "merged" / "model.safetensors").is_file()
    scored = tunesmith(project, "evaluate", "tiny", "--data", "chats.jsonl", "--baseline", "model", "--json")
    assert scored.returncode == 0, scored.stderr
    scores = json.loads(scored.stdout)
    assert scores["num_rows"] == 20
    assert scores["metrics"]["loss"] < scores["baseline_metrics"]["loss"]
    answered = tunesmith(project, "chat", run.root, "Question 3?", "--max-new-tokens", "4", "--json")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["num_tokens"] <= 4


def test_a_run_is_proved_by_replaying_steps(trained, project):
    proved = tunesmith(project, "prove", "tiny", "--json")
    assert proved.returncode == 0, proved.stdout
    proofs = json.loads(proved.stdout)
    assert len(proofs) >= 10
    assert "step 3, from the checkpoint of step 2" in proofs[-1]["evidence"]
    assert "bit-identical" in proofs[-1]["evidence"]


def test_a_modified_recorded_loss_is_detected(broken_off, project):
    lines = [json.loads(line) for line in broken_off.events.read_text().splitlines()]
    for event in lines:
        if event["kind"] == "step" and event["step"] == 3:
            event["loss"] *= 1.05  # in bf16 less than 1% is rounding
    broken_off.events.write_text("".join(json.dumps(event) + "\n" for event in lines))
    proved = tunesmith(project, "prove", broken_off.root)
    assert proved.returncode == 1
    assert "FAILED  Replaying steps from a checkpoint" in proved.stdout


def test_a_chat_is_read_from_standard_input(trained, project):
    ended = subprocess.run(
        [str(COMMAND), "chat", "tiny", "--max-new-tokens", "3"],
        cwd=project,
        input="Question 1?\nQuestion 2?\n\nnever read\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") >= 2


def opened_by_a_reader(pipe: Path) -> int | None:
    """A descriptor of a named pipe's end for writing; None while nothing opens the other end."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None
