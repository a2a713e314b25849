"""Ranks that are late at the milestones of a run: nobody deadlocks, and the result is that of an undisturbed run."""

import hashlib
import itertools
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.event_lines import event_lines
from tests.integration.conftest import make_project
from tests.rank_processes import rank_environment
from tests.waiting import LIMIT_S, wait_for
from tunesmith.rundir.ledger import read_ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed.heartbeat import read_json, waits_for_others

MILESTONES = [
    "stage.loading",
    "stage.validation",  # before the first step, then in mid-run
    "stage.retained",
    "stage.few_shot",
    "before.answers",
    "stage.validation:2",
    "stage.checkpoint:1",  # of the best loss so far
    "stage.best",
    "stage.export",
]
"""Fault points that every rank passes, in the order of the run."""


@pytest.fixture(scope="module")
def plan_for(tmp_path_factory, tiny_llama, chat_rows):
    """plan_for(world_size) -> the plan of a run with every kind of evaluation, early stopping and checkpoints."""
    project = make_project(tmp_path_factory.mktemp("slow"), tiny_llama, chat_rows)
    general = project.directory / "general.jsonl"
    general.write_text("".join(json.dumps({"text": f"General knowledge, item {n}."}) + "\n" for n in range(12)))
    recipe = project.write(
        optimization={"epochs": 1, "max_steps": 3},
        evaluation={
            "every_steps": 1,
            "num_answers": 1,
            "max_new_tokens": 4,
            "few_shot": 1,
            "retain": str(general),
            "early_stopping": {"patience": 3},
        },
        checkpoint={"every_steps": 2},
    )

    def plan(world_size: int) -> str:
        planned = project.run("plan", recipe, "--set", f"resources.workers={world_size}", "--json")
        assert planned.returncode == 0, planned.stderr
        return planned.stdout

    return plan


@dataclass
class Ranks:
    """The processes of one run. late: by rank, the fault points at which it blocks until all other ranks wait."""

    run: RunDir
    world_size: int
    port: int
    python: str
    late: dict[int, list[str]] = field(default_factory=dict)

    def train(self) -> RunDir:
        processes = [self._start(rank) for rank in range(self.world_size)]
        try:
            for milestone in MILESTONES:
                for rank, delays in self.late.items():
                    if milestone in delays:
                        self._delay(rank, milestone, processes)
            codes = [process.wait(timeout=LIMIT_S) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0] * self.world_size, self._logs()
        return self.run

    def _delay(self, rank: int, milestone: str, processes: list[subprocess.Popen]) -> None:
        """Let the late rank continue once every other rank has done all that it can do without it."""
        wait_for((self._until(rank) / f"{milestone}.reached").exists, explain=self._logs, processes=processes)
        others = [self.run.beats / f"rank-{other:05d}.json" for other in range(self.world_size) if other != rank]
        wait_for(
            lambda: all(waits_for_others(read_json(path) or {}) for path in others),
            explain=lambda: f"not all ranks wait for rank {rank} at {milestone}: {self._logs()}",
            processes=processes,
        )
        (self._until(rank) / milestone).touch()

    def _until(self, rank: int) -> Path:
        return self.run.root.with_name(f"{self.run.name}-rank-{rank}")

    def _start(self, rank: int) -> subprocess.Popen:
        self._until(rank).mkdir()
        environment = rank_environment(rank, self.world_size, self.port) | {
            "TUNESMITH_FAULT": ",".join(f"{milestone}=hang" for milestone in self.late.get(rank, [])),
            "TUNESMITH_FAULT_UNTIL": str(self._until(rank)),
        }
        command = [self.python, "-P", "-m", "tunesmith.training.worker", str(self.run.root), "--attempt", "1"]
        with open(self.run.log(1, rank), "w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def _logs(self) -> str:
        return "\n".join(self.run.log(1, rank).read_text() for rank in range(self.world_size))


def new_run(path: Path, plan: str) -> RunDir:
    run = RunDir(path)
    run.create()
    run.plan.write_text(plan)
    return run


def result_of(run: RunDir) -> dict:
    """Everything that a run computes: losses, scores, answers, rows, checkpoints and export."""
    computed = ("loss", "scores", "items", "best", "when", "step", "shots", "reason")
    kinds = ("step", "evaluation", "retained", "few_shot", "answers", "checkpoint", "warning", "error", "end")
    events = {kind: [{k: e[k] for k in computed if k in e} for e in event_lines(run.events, kind)] for kind in kinds}
    files = [*run.checkpoints.glob("*/*.safetensors"), *run.export.glob("*.safetensors")]
    hashes = {str(path.relative_to(run.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert hashes
    rows = {step: sorted(entry.rows for entry in entries) for step, entries in read_ledger(run).items()}
    return {"events": events, "hashes": hashes, "rows": rows}


@pytest.fixture(scope="module")
def undisturbed(plan_for, tmp_path_factory, warm_python):
    """undisturbed(world_size, port) -> the result of a run without delays."""
    known: dict[int, dict] = {}

    def result(world_size: int, port: int) -> dict:
        if world_size not in known:
            run = new_run(tmp_path_factory.mktemp("undisturbed") / "run", plan_for(world_size))
            known[world_size] = result_of(Ranks(run, world_size, port, warm_python).train())
        return known[world_size]

    return result


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_that_are_late_in_turn_compute_the_same(plan_for, undisturbed, tmp_path, free_port, warm_python, first):
    """Two ranks; at each milestone one of them is late, and in the other case the other one."""
    late = {first: MILESTONES[0::2], 1 - first: MILESTONES[1::2]}
    run = Ranks(new_run(tmp_path / "run", plan_for(2)), 2, free_port, warm_python, late).train()
    result = result_of(run)
    assert len(result["events"]["answers"]) == 2
    assert result == undisturbed(2, free_port)


@pytest.mark.soak
@pytest.mark.parametrize(("rank", "milestone"), list(itertools.product(range(4), MILESTONES)))
def test_each_of_four_ranks_may_be_late_at_each_milestone(
    plan_for, undisturbed, tmp_path, free_port, warm_python, rank, milestone
):
    run = Ranks(new_run(tmp_path / "run", plan_for(4)), 4, free_port, warm_python, {rank: [milestone]}).train()
    assert result_of(run) == undisturbed(4, free_port)
