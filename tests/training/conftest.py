"""Attempts of one run, on this machine and on a new one."""

import pytest

from tests.training.attempts import Attempt
from tests.training.export.test_export import LORA, Trained
from tunesmith.configs.plan import Plan
from tunesmith.rundir import faults
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoint import mirror as mirrors


@pytest.fixture(scope="module")
def trained(tiny_llama, tmp_path_factory) -> Trained:
    recipe = {
        "evaluation": {"early_stopping": {"patience": 2}, "num_answers": 0},
        "checkpoint": {"keep_last": 1},
    }
    return Trained(tiny_llama, tmp_path_factory.mktemp("trained") / "run", LORA, recipe=recipe)


@pytest.fixture
def attempt(trained, tmp_path, monkeypatch) -> Attempt:
    monkeypatch.setattr(mirrors, "WAIT_S", 0.0)
    monkeypatch.setattr(mirrors, "TRIES", 1)
    monkeypatch.setattr(faults, "_fault_counts", {})
    return Attempt(trained, RunDir(tmp_path / "here" / "run"), f"file://{tmp_path}/mirror")


@pytest.fixture
def elsewhere(attempt, trained, tmp_path):
    """elsewhere(plan) -> the same run on a machine with an empty disk."""

    def make(plan: Plan | None = None) -> Attempt:
        return Attempt(trained, RunDir(tmp_path / "there" / "run"), f"file://{tmp_path}/mirror", plan)

    return make
