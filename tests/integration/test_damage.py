"""Prepared rows that are damaged during a run: the run ends with the cause, and a resumed run has the same result."""

from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.integration.conftest import make_project
from tests.integration.processes import rows_by_step, steps_of
from tests.waiting import LIMIT_S, wait_for
from tunesmith.configs.plan import read_plan
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status


@pytest.mark.slow
def test_damage_during_a_run_is_named_by_the_rank_that_finds_it(tmp_path, tiny_llama, chat_rows, alone):
    """Both ranks hang before they read step 3; a document of rank 1 is damaged meanwhile."""
    project = make_project(tmp_path, tiny_llama, chat_rows)
    cache = str(tmp_path / "cache")
    until = tmp_path / "damaged"
    fault = {"TUNESMITH_FAULT": "step.data:3=hang", "TUNESMITH_FAULT_UNTIL": str(until), "TUNESMITH_CACHE": cache}
    recipe = project.write(evaluation={"num_answers": 0})
    running = project.start("train", recipe, "--run-dir", "run", "--set", "resources.workers=2", **fault)
    run = RunDir(project.directory / "run")
    wait_for(Path(f"{until}.reached").exists, processes=[running])
    plan = read_plan(run.plan)
    damage_sample(Path(plan.data.train.index), sample_of(alone, step=3, rank=1))
    until.touch()
    output, errors = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 1, output + errors
    assert "the prepared data was damaged: train/tokens.u32 does not match its hash" in errors
    assert plan.data.train.index in errors
    (error,) = event_lines(run.events, "error")
    assert "tokens.u32 does not match its hash" in error["what"]
    status = read_status(run.status)
    assert status is not None
    assert (status.phase, status.exit_code, len(steps_of(run))) == ("failed", 1, 2)

    proved = project.run("prove", "run", TUNESMITH_CACHE=cache)
    assert proved.returncode == 1
    assert "train/tokens.u32 does not match its hash" in proved.stdout
    resumed = project.run("resume", "run", TUNESMITH_CACHE=cache)
    assert resumed.returncode == 0, resumed.stderr
    assert "the prepared data was damaged and is prepared again" in resumed.stdout
    assert "train/tokens.u32 does not match its hash" in resumed.stdout
    assert rows_by_step(run) == rows_by_step(alone)
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-5)


def sample_of(run: RunDir, *, step: int, rank: int) -> int:
    """A sample that one of two ranks reads in a step."""
    (entry,) = (line for line in event_lines(run.ledger_of(0), "ledger") if line["step"] == step)
    return entry["samples"][rank]


def damage_sample(directory: Path, sample: int) -> None:
    """Change a token of the sample in the file."""
    index = TokenIndex.open(directory)
    document = int(index.documents_of(sample)[0])
    start = sum(len(index.document(number).tokens) for number in range(document))
    with open(directory / "tokens.u32", "r+b") as file:
        file.seek(4 * start)
        byte = file.read(1)[0]
        file.seek(4 * start)
        file.write(bytes([byte ^ 1]))
