"""Runs on a mixture of data sets: shares at every checkpoint, resume after a kill, another number of processes."""

import json
import os
import random
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.integration.conftest import Project, make_project
from tests.integration.processes import rows_by_step, steps_of
from tunesmith.configs.plan import read_plan
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.rundir.ledger import read_ledger
from tunesmith.rundir.paths import RunDir

SETS = [
    {"path": "chats.jsonl", "name": "support", "weight": 3},
    {"path": "faq.csv", "weight": 2, "columns": {"prompt": "question", "completion": "answer"}, "max_rows": 20},
    {"path": "few.jsonl", "weight": 1},
]
TWO = ("--set", "resources.workers=2")


def mixed_project(directory: Path, tiny_llama: Path, chat_rows: list[dict]) -> Project:
    project = make_project(directory, tiny_llama, chat_rows)
    faq = "".join(f"question {number},the answer is {number * number}\n" for number in range(30))
    (directory / "faq.csv").write_text("question,answer\n" + faq)
    few = [{"prompt": f"few {number}", "completion": f"row {number}"} for number in range(4)]
    (directory / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    return project


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_llama, chat_rows) -> Project:
    return mixed_project(tmp_path_factory.mktemp("mixture"), tiny_llama, chat_rows)


@pytest.fixture(scope="module")
def recipe(shared) -> Path:
    method = {"kind": "lora", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1}
    # 19 samples: an epoch ends within a step, and every data set is within a pass when it does.
    data = {"train": SETS, "mixing": {"epoch_samples": 19}, "max_seq_len": 128, "too_long": "truncate"}
    return shared.write("mixed.yaml", data=data, method=method)


@pytest.fixture(scope="module")
def finished(shared, recipe, warm_pool) -> RunDir:
    """An uninterrupted run of one process."""
    return shared.train(recipe, "finished", **warm_pool.environment())


def weights(run: RunDir) -> dict[str, bytes]:
    newest = max(path for path in run.checkpoints.iterdir() if path.name.startswith("step-") and "." not in path.name)
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def require_shares(run: RunDir) -> None:
    """Count the rows in the ledger by the data set in their receipts: at every checkpoint each data set has its share
    of the samples to within one, and every sample has rows of one data set only."""
    receipts = [json.loads(line) for line in (run.receipts / "train.jsonl").read_text().splitlines()]
    dataset_of = {receipt["row"]: receipt["dataset"] for receipt in receipts}
    plan, ledger = read_plan(run.plan), read_ledger(run)
    index = TokenIndex.open(Path(plan.data.train.index))
    checkpoints = sorted({event["step"] for event in event_lines(run.events, "checkpoint")})
    assert len(checkpoints) >= 5
    for step in checkpoints:
        samples = [s for each in range(1, step + 1) for entry in ledger[each] for s in entry.samples]
        used = dict.fromkeys(["support", "faq", "few"], 0)
        for sample in samples:
            (dataset,) = {dataset_of[row] for row in index.sample(sample).rows}
            used[dataset] += 1
        for each in plan.data.datasets:
            assert abs(used[each.name] * 19 - len(samples) * each.samples_per_epoch) < 19, f"step {step}"


def test_the_plan_the_log_and_the_report_show_each_data_set(shared, finished):
    plan = read_plan(finished.plan)
    assert [(each.name, each.samples_per_epoch) for each in plan.data.datasets] == [
        ("support", 10),
        ("faq", 6),
        ("few", 3),
    ]
    require_shares(finished)
    assert shared.run("prove", "finished").returncode == 0
    last = list(event_lines(finished.events, "evaluation"))[-1]
    assert set(last["datasets"]) == {"support", "faq", "few"}
    tokens = {name: scores["num_tokens"] for name, scores in last["datasets"].items()}
    losses = sum(scores["loss"] * tokens[name] for name, scores in last["datasets"].items())
    assert sum(tokens.values()) == last["num_tokens"]
    assert losses / last["num_tokens"] == pytest.approx(last["loss"], rel=1e-12)
    assert "Data sets" in finished.report.read_text(encoding="utf-8")


def test_a_run_killed_at_a_random_step_resumes_bit_for_bit(shared, recipe, finished):
    total = len(steps_of(finished))
    step = random.Random(os.getpid()).randint(1, total - 1)
    assert (
        shared.run("train", recipe, "--run-dir", "killed", TUNESMITH_FAULT=f"step.update:{step}=kill").returncode == 1
    )
    killed = RunDir(shared.directory / "killed")
    resumed = shared.run("resume", "killed")
    assert resumed.returncode == 0, f"killed at {step}: {resumed.stdout}{resumed.stderr}"
    assert steps_of(killed) == steps_of(finished), f"killed at {step}"
    assert weights(killed) == weights(finished), f"killed at {step}"
    assert {s: [e.samples for e in entries] for s, entries in read_ledger(killed).items()} == {
        s: [e.samples for e in entries] for s, entries in read_ledger(finished).items()
    }
    require_shares(killed)


def test_a_run_resumed_with_two_processes_trains_on_the_same_rows(shared, recipe, finished):
    fault = {"TUNESMITH_FAULT": "step.update:7=kill"}
    assert shared.run("train", recipe, "--run-dir", "wider", **fault).returncode == 1
    wider = RunDir(shared.directory / "wider")
    resumed = shared.run("resume", "wider", *TWO)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    starts = list(event_lines(wider.events, "start"))
    assert [start["world_size"] for start in starts] == [1, 2]
    assert starts[1]["step"] in (4, 6)
    assert rows_by_step(wider) == rows_by_step(finished)
    # Two processes have other dropout masks than one: the losses are equal up to the checkpoint.
    assert all(steps_of(wider)[step] == steps_of(finished)[step] for step in range(1, starts[1]["step"] + 1))
    require_shares(wider)
    assert shared.run("prove", "wider").returncode == 0


def test_a_changed_weight_needs_a_new_run(shared, recipe, finished):
    changed = recipe.with_name("changed.yaml")
    changed.write_text(recipe.read_text().replace("weight: 2", "weight: 1"))
    refused = shared.run("train", changed, "--run-dir", "finished")
    assert refused.returncode == 2
    assert "data.train" in refused.stderr
