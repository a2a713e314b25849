"""Whole runs as jobs of a real Slurm cluster, driven by the installed command as a user does."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.event_lines import event_lines
from tests.waiting import LIMIT_S, wait_for
from tunesmith.rundir.ledger import read_ledger
from tunesmith.rundir.paths import RunDir

pytestmark = pytest.mark.slow
COMMAND = Path(sys.executable).with_name("tunesmith")
SITE = {"partition": "main", "cpus_per_node": 1, "time_limit_minutes": 10, "save_before_s": 120, "interface": "lo"}
LONG = ("--set", "optimization.epochs=100")
"""900 steps: long enough to be disturbed in."""


@dataclass
class Project:
    """A user's directory on the login node."""

    directory: Path
    environment: dict[str, str]

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        ended = subprocess.run(
            [str(COMMAND), *map(str, arguments)],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    def submit(self, run: str, *arguments: str | Path) -> dict[str, str]:
        """The number of each stage's job."""
        told = self.run("train", "recipe.yaml", "--on", "slurm", "--run-dir", run, "--json", *arguments)
        return json.loads(told)["jobs"]

    def path(self, run: str) -> RunDir:
        return RunDir(self.directory / run)

    def logs(self, run: str) -> str:
        files = sorted(self.path(run).logs.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in files)


@pytest.fixture(scope="module")
def project(cluster, tiny_llama, tmp_path_factory) -> Project:
    """Forty chats, LoRA on a tiny LLaMA, two nodes with a process each; eighteen steps."""
    directory = tmp_path_factory.mktemp("project")
    rows = [
        [{"role": "user", "content": f"What about {n}?"}, {"role": "assistant", "content": f"It is {n}. " * 3}]
        for n in range(40)
    ]
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in rows)
    (directory / "chats.jsonl").write_text(lines)
    recipe = {
        "name": "tiny",
        "model": {"base": str(tiny_llama)},
        "method": {"kind": "lora", "lora_rank": 4, "lora_alpha": 8},
        "data": {"train": ["chats.jsonl"], "validation": 0.1, "max_seq_len": 128, "packing": False},
        "optimization": {"learning_rate": 1e-3, "global_batch_size": 4, "epochs": 2},
        "resources": {"nodes": 2},
        "checkpoint": {"every_steps": 10},
        "evaluation": {"num_answers": 1, "max_new_tokens": 4},
        "precision": "fp32",
        "seed": 7,
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (directory / "cluster.yaml").write_text(yaml.safe_dump(SITE))
    return Project(directory, {**cluster.environment, "TUNESMITH_CACHE": str(directory / "cache")})


@pytest.fixture(scope="module")
def reference(cluster, project) -> RunDir:
    """An undisturbed run of two nodes under torchrun, watched while it runs."""
    cluster.call("scontrol", "update", "PartitionName=main", "State=DOWN")  # nothing starts until it is looked at
    jobs = project.submit("runs/reference", "--launcher", "torchrun", *LONG)
    run = project.path("runs/reference")
    assert "Queued" in project.run("status", "runs/reference")
    cluster.call("scontrol", "update", "PartitionName=main", "State=UP")
    words = [str(COMMAND), "logs", "runs/reference", "--launcher", "--follow"]
    cluster.wait(jobs["train"], "RUNNING")
    wait_for(lambda: list(run.logs.glob("job-*")))
    follower = subprocess.Popen(
        words, cwd=project.directory, env=project.environment, stdout=subprocess.PIPE, text=True
    )
    wait_for_step(run, 20, project)
    told = json.loads(project.run("status", "runs/reference", "--json"))
    assert (told["phase"], told["jobs"][0]["state"], told["jobs"][0]["nodes"]) == ("training", "RUNNING", "node[1-2]")
    assert 20 <= told["step"] < told["total_steps"] == 900
    ended = cluster.wait(jobs["train"])
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), project.logs("runs/reference")
    said, _ = follower.communicate(timeout=LIMIT_S)  # it ends by itself
    (log,) = run.logs.glob("job-*")
    assert said == log.read_text()
    assert "step 900/900" in said
    return run


def test_a_job_of_two_nodes_trains_and_leaves_nothing_running(cluster, project, reference):
    assert (reference.export / "adapter_model.safetensors").is_file()
    assert len(losses(reference)) == 900
    assert losses(reference)[900] < losses(reference)[1] - 0.1
    (start,) = event_lines(reference.events, "start")
    assert start["world_size"] == 2
    assert [path.name for path in sorted(reference.ledger.iterdir())] == ["rank-00000.jsonl", "rank-00001.jsonl"]
    assert "completed on node[1-2]" in project.run("status", "runs/reference")
    assert "finished" in project.run("resume", "runs/reference")
    assert cluster.processes() == []


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("ray", marks=pytest.mark.soak)])
def test_time_limit_requeue_and_a_dead_node_are_survived(cluster, project, reference, launcher):
    """Three lives end early; the fourth comes to the end, with the rows and the weights of the undisturbed run."""
    name = f"runs/disturbed-{launcher}"
    go_on = project.directory / f"{launcher}-goes-on"
    held = ["env", "TUNESMITH_FAULT=step.forward:26=hang", f"TUNESMITH_FAULT_UNTIL={go_on}"]
    (project.directory / "held.yaml").write_text(yaml.safe_dump({**SITE, "container": held}))
    job = project.submit(name, "--launcher", launcher, "--cluster", "held.yaml", *LONG)["train"]
    run = project.path(name)
    wait_for_step(run, 25, project)  # here it stands still, until the signal has come
    hours, minutes, _ = map(int, cluster.job(job)["RunTime"].split(":"))
    # Between one and two minutes are left now, so the signal is due; Slurm looks twice a minute for such jobs.
    cluster.call("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
    first_life = run.logs / f"job-{job}-life-001.log"
    wait_for(lambda: "asked to stop" in first_life.read_text(), explain=lambda: project.logs(name))
    go_on.touch()
    cluster.wait(job, "PENDING")
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    told = first_life.read_text()
    assert "stopped, and the state is saved" in told
    assert "asked to save: requeueing" in told
    saved = next(event for event in event_lines(run.events, "checkpoint") if event["reason"] == "preemption")
    assert project.run("status", name).startswith("Waiting.")

    wait_for_starts(run, 2, project)
    wait_for_step(run, newest_step(run) + 25, project)
    cluster.call("scontrol", "requeue", job)
    wait_for_starts(run, 3, project)
    wait_for_step(run, newest_step(run) + 25, project)
    cluster.kill_node("node2")
    try:
        wait_for_starts(run, 4, project)
        ended = cluster.wait(job)
    finally:
        cluster.start_node("node2")
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), project.logs(name)
    assert ended["NodeList"] == "node[1,3]"
    lives = list(event_lines(run.job_starts, "life"))
    assert [life["life"] for life in lives] == [1, 2, 3, 4]
    steps = [life["step"] for life in lives]
    assert steps[:2] == [0, saved["step"]]
    assert steps == sorted(set(steps))
    assert [path.name for path in sorted(run.logs.glob("job-*-life-???.log"))] == [
        f"job-{job}-life-{n:03d}.log" for n in (1, 2, 3, 4)
    ]
    assert rows_of(run) == rows_of(reference)
    assert losses(run) == losses(reference)
    weights = "adapter_model.safetensors"
    assert (run.export / weights).read_bytes() == (reference.export / weights).read_bytes()


@pytest.mark.soak
def test_two_jobs_with_rays_of_their_own_share_two_nodes(cluster, project):
    """Other ports, other tokens, other directories: both come to the end, and no Ray is left."""
    options = ("--set", "optimization.epochs=2", "--set", "checkpoint.every_steps=5")
    jobs = {name: project.submit(name, *options)["train"] for name in ("runs/ray-a", "runs/ray-b")}
    ended = {name: cluster.wait(job, timeout_s=LIMIT_S) for name, job in jobs.items()}
    for name, facts in ended.items():
        assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), project.logs(name)
        assert facts["NodeList"] == "node[1-2]"
    assert max(facts["StartTime"] for facts in ended.values()) < min(facts["EndTime"] for facts in ended.values())
    first, second = (project.path(name) for name in jobs)
    assert losses(first) == losses(second)
    assert len(losses(first)) == 18
    (start,) = event_lines(first.events, "start")
    assert start["world_size"] == 2
    assert not list(first.jobs.glob("*.token"))
    assert cluster.processes() == []


@pytest.fixture
def broken(project):
    """broken(pattern, action) -> the name of a cluster file whose interpreter does that to calls that match."""

    def make(pattern: str, action: str, **changes) -> str:
        stand_in = project.directory / "broken-python"
        stand_in.write_text(f'#!/bin/bash\ncase "$*" in\n{pattern}) {action} ;;\nesac\nexec {sys.executable} "$@"\n')
        stand_in.chmod(0o755)
        (project.directory / "broken.yaml").write_text(yaml.safe_dump({**SITE, "python": str(stand_in), **changes}))
        return "broken.yaml"

    return make


def require_failure(cluster, project: Project, run: str, job: str, words: str) -> dict[str, str]:
    """The job failed with 1, and the run directory tells why in one sentence; nothing is left running."""
    ended = cluster.wait(job, timeout_s=LIMIT_S)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), project.logs(run)
    told = project.run("status", run)
    assert told.startswith("Failed."), told
    assert words in told
    assert not losses(project.path(run))
    assert cluster.processes() == []
    return ended


def test_a_ray_that_does_not_start_fails_the_job(cluster, project, broken):
    site = broken("*ray.scripts.scripts*--head*", "echo no Ray for you; exit 7")
    job = project.submit("runs/no-ray", "--cluster", site)["train"]
    require_failure(cluster, project, "runs/no-ray", job, "Ray did not start on node1")
    assert "no Ray for you" in project.logs("runs/no-ray")


def test_a_node_that_never_joins_fails_the_job_within_its_bound(cluster, project, broken):
    site = broken("*ray.scripts.scripts*--address=*", "sleep 600; exit 0", join_s=12)
    started = time.monotonic()
    job = project.submit("runs/alone", "--cluster", site)["train"]
    require_failure(cluster, project, "runs/alone", job, "not every node joined Ray within 12 s")
    assert time.monotonic() - started < 90


def test_an_exit_of_0_without_a_result_is_a_failure_and_a_bad_node_is_left_out(cluster, project, broken):
    """A driver that ends with 0 at once. Before it, the job finds node2 unfit and moves away from it."""
    site = broken("*tunesmith.cli.batch_step*--stage*train", "exit 0")
    held = cluster.call("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true")
    job = project.submit("runs/empty", "--cluster", site, "--launcher", "torchrun", "--after", held)["train"]
    run = project.path("runs/empty")
    (run.jobs / f".health-{job}-node2").mkdir()  # there node2 cannot write
    cluster.call("scontrol", "release", held)
    ended = require_failure(cluster, project, "runs/empty", job, "left no result")
    assert (ended["Restarts"], ended["ExcNodeList"], ended["NodeList"]) == ("1", "node2", "node[1,3]")
    assert "node node2 is not fit: the run directory" in (run.logs / "bad-nodes.log").read_text()


def test_a_job_that_keeps_being_requeued_ends_at_its_bound(cluster, project, broken):
    site = broken("*tunesmith.cli.batch_step*--stage*train", "exec sleep 600", max_lives=1)
    job = project.submit("runs/again", "--cluster", site, "--launcher", "torchrun")["train"]
    cluster.wait(job, "RUNNING")
    cluster.call("scontrol", "requeue", job)
    wait_for(lambda: cluster.job(job)["Restarts"] == "1" and cluster.state(job) == "FAILED")
    assert "started 1 times and did not end" in project.logs("runs/again")


def test_a_driver_that_crashes_fails_the_job(cluster, project, broken):
    site = broken("*tunesmith.cli.batch_step*--stage*train", "kill -SEGV $$")
    job = project.submit("runs/crash", "--cluster", site, "--launcher", "torchrun")["train"]
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "139:0"), project.logs("runs/crash")
    told = project.run("status", "runs/crash")
    assert told.startswith("Failed.")
    assert "the driver of the job was killed by signal 11" in told


@pytest.fixture(scope="module")
def chain(project) -> dict[str, str]:
    """The jobs of a chain, submitted; it runs while others wait."""
    (project.directory / "held-out.jsonl").write_text((project.directory / "chats.jsonl").read_text())
    options = ("--nodes", "1", "--launcher", "torchrun", "--chain", "--evaluate", "held-out.jsonl")
    jobs = project.submit("runs/chain", *options, "--set", "optimization.max_steps=3")
    assert list(jobs) == ["prepare", "train", "evaluate", "export"]
    assert project.run("status", "runs/chain").count("pending (Dependency)") >= 2
    return jobs


def test_a_chain_prepares_trains_evaluates_and_exports(cluster, project, chain):
    jobs = chain
    for job in jobs.values():
        assert cluster.wait(job)["JobState"] == "COMPLETED", project.logs("runs/chain")
    run = project.path("runs/chain")
    results = {stage: json.loads(run.result(stage, job).read_text()) for stage, job in jobs.items()}
    assert results["prepare"]["rows"] == 36
    assert results["train"]["step"] == 3
    assert results["evaluate"]["metrics"]["num_examples"] == 40
    assert results["evaluate"]["comparison"]["loss"]["value"] < 0
    assert results["export"]["gate"]["passed"]
    assert (run.root / "merged" / "model.safetensors").is_file()
    assert not [line for line in (run.jobs / "prepare.sbatch").read_text().splitlines() if "gres" in line]


def test_a_failure_in_a_chain_cancels_the_rest_and_says_why(cluster, project):
    (project.directory / "bad.jsonl").write_text('{"messages": [{"role": "asistant", "content": "Hello"}]}\n')
    jobs = project.submit("runs/bad", "--launcher", "torchrun", "--chain", "--set", "data.train=[bad.jsonl]")
    states = [cluster.wait(job)["JobState"] for job in jobs.values()]
    assert states == ["FAILED", "CANCELLED", "CANCELLED"]
    told = project.run("status", "runs/bad")
    assert "bad.jsonl" in told
    assert f"train: cancelled, since job {jobs['prepare']} (prepare) did not end well" in told
    assert json.loads(project.run("status", "runs/bad", "--json"))["jobs"][0]["fault"]


def test_a_sweep_is_an_array_whose_runs_can_be_stopped_and_cancelled(cluster, project):
    """One task ends by itself; `tunesmith stop` and scancel let the others save, and neither is requeued."""
    sweep = ("--sweep", "optimization.max_steps=[2, 20000, 30000]", "--set", "optimization.epochs=5000")
    options = ("--nodes", "1", "--launcher", "torchrun", "--run-dir", "runs/sweep", "--json", *sweep)
    made = json.loads(project.run("train", "recipe.yaml", "--on", "slurm", *options))
    runs = [RunDir(project.directory / entry["run"]) for entry in made["runs"]]
    assert [entry["set"] for entry in made["runs"]] == [[f"optimization.max_steps={n}"] for n in (2, 20000, 30000)]
    for run in runs[1:]:
        wait_for(lambda run=run: newest_step(run) > 12, explain=lambda: project.logs("runs/sweep/001"))
    assert "state is saved" in project.run("stop", "runs/sweep/001")
    assert "submitted: job" in project.run("resume", "runs/sweep/001")
    project.run("stop", "runs/sweep/001")
    assert json.loads(project.run("status", "runs/sweep/001", "--json"))["phase"] == "preempted"
    step = newest_step(runs[1])
    assert runs[1].checkpoint(step).is_dir()
    cluster.call("scancel", f"{made['job']}_2")
    wait_for(lambda: not cluster.call("squeue", "--noheader"), explain=lambda: cluster.call("squeue"))
    assert len(losses(runs[0])) == 2
    states = {job["ArrayTaskId"]: job for job in cluster.jobs(made["job"])}
    assert [states[n]["JobState"] for n in "012"] == ["COMPLETED", "FAILED", "CANCELLED"]
    assert [states[n]["Restarts"] for n in "012"] == ["0", "0", "0"]
    assert states["1"]["ExitCode"] == "143:0"
    assert list(runs[2].checkpoints.glob("step-*"))


LISTING = (
    "import atexit, sys\n"
    "atexit.register(lambda: print('loaded:', *sorted({name.split('.')[0] for name in sys.modules})))\n"
    "from tunesmith.cli.main import main\nmain()\n"
)


def test_a_login_node_loads_neither_torch_nor_ray(cluster, project):
    """Dry run, submission, status, stop: in processes of their own, that tell what they have loaded."""
    held = cluster.call("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true")
    place = ("--run-dir", "runs/light")
    for arguments, words in (
        (("train", "recipe.yaml", "--on", "slurm", "--dry-run", *place), "#SBATCH --nodes=2"),
        (("train", "recipe.yaml", "--on", "slurm", "--after", held, *place), "submitted: job"),
        (("status", "runs/light"), "train: pending (Dependency)"),
        (("runs",), "queued"),
        (("stop", "runs/light"), "ended: job"),
        (("status", "runs/light"), "Not started."),
        (("cluster", "init", "made.yaml"), "partition: main"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", LISTING, *arguments],
            cwd=project.directory,
            env=project.environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert words in ended.stdout
        loaded = set(ended.stdout.rpartition("loaded:")[2].split())
        assert "typer" in loaded
        assert not loaded & {"torch", "ray", "transformers", "peft", "deepspeed"}, arguments
    cluster.call("scancel", held)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--after", "5"], "add --on slurm"),
        (["--on", "slurm", "--cluster", "none.yaml"], "cluster init"),
        (["--on", "slurm", "--launcher", "mpi"], "ray or torchrun"),
        (["--on", "slurm", "--after", "5; rm"], "a job's number"),
        (["--on", "slurm", "--sweep", "seed=3"], "KEY=[VALUE"),
        (["--on", "slurm", "--sweep", "sead=[3]"], "sead"),
        (["--on", "slurm", "--sweep", "resources.nodes=[1, 2]"], "one size"),
        (["--on", "slurm", "--evaluate", "x.jsonl"], "add --chain"),
    ],
)
def test_wrong_options_are_one_clear_message(project, arguments, words):
    told = project.run("train", "recipe.yaml", "--run-dir", "runs/wrong", *arguments, code=2)
    assert words in told
    assert not project.path("runs/wrong").root.exists()


def losses(run: RunDir) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in event_lines(run.events, "step")}


def rows_of(run: RunDir) -> dict[int, list[tuple[int, ...]]]:
    return {step: [entry.rows for entry in entries] for step, entries in read_ledger(run).items()}


def newest_step(run: RunDir) -> int:
    return max(losses(run), default=0)


def wait_for_step(run: RunDir, step: int, project: Project) -> None:
    wait_for(lambda: newest_step(run) >= step, explain=lambda: project.logs(f"runs/{run.name}"))


def wait_for_starts(run: RunDir, number: int, project: Project) -> None:
    def has_started() -> bool:
        return len(list(event_lines(run.job_starts, "life"))) >= number

    wait_for(has_started, explain=lambda: project.logs(f"runs/{run.name}"))
