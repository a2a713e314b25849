"""Complete runs as jobs of a real Slurm cluster, started with the installed command like a user does."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
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
LONG = ("--set", "optimization.epochs=12", "--set", "optimization.learning_rate=1e-2")
"""108 steps: enough for four starts of HELD steps."""
HELD = 25
"""With `--cluster held.yaml`, a process waits after this number of steps until the file `release` exists."""


@dataclass
class Project:
    """A user's working directory on the login node."""

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
        """Return the job ID of each stage."""
        output = self.run("train", "recipe.yaml", "--on", "slurm", "--run-dir", run, "--json", *arguments)
        return json.loads(output)["jobs"]

    def path(self, run: str) -> RunDir:
        return RunDir(self.directory / run)

    def logs(self, run: str) -> str:
        files = sorted(self.path(run).logs.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in files)


@pytest.fixture(scope="module")
def project(cluster, tiny_llama, tmp_path_factory) -> Project:
    """Forty chats, LoRA on a tiny LLaMA, two nodes with one process each; eighteen steps."""
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
    held = [f"TUNESMITH_FAULT=step.forward:{HELD + 1}=hang", f"TUNESMITH_FAULT_UNTIL={directory / 'release'}"]
    (directory / "held.yaml").write_text(yaml.safe_dump({**SITE, "container": ["env", *held]}))
    return Project(directory, {**cluster.environment, "TUNESMITH_CACHE": str(directory / "cache")})


@pytest.fixture(scope="module")
def reference(cluster, project) -> RunDir:
    """An uninterrupted run on two nodes under torchrun, monitored while it runs. Its processes start cold: what they
    leave behind is a subject."""
    cold = {name: value for name, value in project.environment.items() if name != "TUNESMITH_WARM_PROCESSES"}
    project = replace(project, environment=cold)
    run = project.path("runs/reference")
    release = project.directory / "release"
    with cluster.closed_partition():
        jobs = project.submit("runs/reference", "--launcher", "torchrun", "--cluster", "held.yaml", *LONG)
        assert "Queued" in project.run("status", "runs/reference")
    command = [str(COMMAND), "logs", "runs/reference", "--launcher", "--follow"]
    cluster.wait(jobs["train"], "RUNNING")
    wait_for(lambda: list(run.logs.glob("job-*")))
    follower = subprocess.Popen(
        command, cwd=project.directory, env=project.environment, stdout=subprocess.PIPE, text=True
    )
    wait_for_step(run, HELD, project)
    status = json.loads(project.run("status", "runs/reference", "--json"))
    job = status["jobs"][0]
    assert (status["phase"], job["state"], job["nodes"]) == ("training", "RUNNING", "node[1-2]")
    assert 0 < status["step"] <= HELD  # the status is written from time to time
    assert status["total_steps"] == 108
    release.touch()
    ended = cluster.wait(jobs["train"])
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), project.logs("runs/reference")
    output, _ = follower.communicate(timeout=LIMIT_S)  # exits when the run ends
    (log,) = run.logs.glob("job-*")
    assert output == log.read_text()
    assert "step 108/108" in output
    release.unlink()
    return run


def test_a_job_on_two_nodes_trains_and_leaves_no_process_running(cluster, project, reference):
    assert (reference.export / "adapter_model.safetensors").is_file()
    assert len(losses(reference)) == 108
    assert losses(reference)[108] < losses(reference)[1] - 0.1
    (start,) = event_lines(reference.events, "start")
    assert start["world_size"] == 2
    assert [path.name for path in sorted(reference.ledger.iterdir())] == ["rank-00000.jsonl", "rank-00001.jsonl"]
    assert "completed on node[1-2]" in project.run("status", "runs/reference")
    assert "finished" in project.run("resume", "runs/reference")
    assert cluster.processes() == []


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("ray", marks=pytest.mark.soak)])
def test_a_job_survives_the_time_limit_a_requeue_and_a_node_failure(cluster, project, reference, launcher):
    """Three starts of the job end early; the fourth completes, with the rows and weights of the uninterrupted run."""
    name = f"runs/disturbed-{launcher}"
    release = project.directory / "release"
    job = project.submit(name, "--launcher", launcher, "--cluster", "held.yaml", *LONG)["train"]
    run = project.path(name)
    wait_for_step(run, HELD, project)  # the run hangs here until the signal has arrived
    hours, minutes, _ = map(int, cluster.job(job)["RunTime"].split(":"))
    # One to two minutes are left now, so the signal is due; Slurm checks twice a minute.
    cluster.call("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
    first_log = run.logs / f"job-{job}-life-001.log"
    wait_for(lambda: "asked to stop" in first_log.read_text(), explain=lambda: project.logs(name))
    release.touch()
    cluster.wait(job, "PENDING")
    release.unlink()
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    assert "stopped, and the state is saved" in first_log.read_text()
    assert "state saved, requeueing" in first_log.read_text()
    saved = next(event for event in event_lines(run.events, "checkpoint") if event["reason"] == "preemption")
    assert project.run("status", name).startswith("Waiting.")

    wait_for_start(run, 2, project)
    cluster.call("scontrol", "requeue", job)
    wait_for_start(run, 3, project)
    cluster.kill_node("node2")
    try:
        wait_for(lambda: len(starts_of(run)) == 4, explain=lambda: project.logs(name))
        release.touch()
        ended = cluster.wait(job)
    finally:
        cluster.start_node("node2")
        release.unlink(missing_ok=True)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), project.logs(name)
    assert ended["NodeList"] == "node[1,3]"
    starts = starts_of(run)
    assert [start["life"] for start in starts] == [1, 2, 3, 4]
    steps = [start["step"] for start in starts]
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
def test_two_jobs_with_separate_ray_clusters_share_two_nodes(cluster, project):
    """They use different ports, tokens and directories: both complete, and no Ray process is left."""
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
    """broken(pattern, action) -> name of a cluster file whose interpreter performs the action on matching calls."""

    def make(pattern: str, action: str, **changes) -> str:
        python = project.directory / "broken-python"
        python.write_text(f'#!/bin/bash\ncase "$*" in\n{pattern}) {action} ;;\nesac\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (project.directory / "broken.yaml").write_text(yaml.safe_dump({**SITE, "python": str(python), **changes}))
        return "broken.yaml"

    return make


def require_failure(cluster, project: Project, run: str, job: str, cause: str) -> dict[str, str]:
    """The job exited with 1, `status` shows the cause, and no process is left running."""
    ended = cluster.wait(job, timeout_s=LIMIT_S)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), project.logs(run)
    status = project.run("status", run)
    assert status.startswith("Failed."), status
    assert cause in status
    assert not losses(project.path(run))
    assert cluster.processes() == []
    return ended


def test_a_job_fails_if_ray_does_not_start(cluster, project, broken):
    site = broken("*ray.scripts.scripts*--head*", "echo no Ray for you; exit 7")
    job = project.submit("runs/no-ray", "--cluster", site)["train"]
    require_failure(cluster, project, "runs/no-ray", job, "Ray did not start on node1")
    assert "no Ray for you" in project.logs("runs/no-ray")


def test_a_job_fails_within_the_timeout_if_a_node_does_not_join(cluster, project, broken):
    site = broken("*ray.scripts.scripts*--address=*", "sleep 600; exit 0", join_s=12)
    started = time.monotonic()
    job = project.submit("runs/alone", "--cluster", site)["train"]
    require_failure(cluster, project, "runs/alone", job, "not every node joined Ray within 12 s")
    assert time.monotonic() - started < LIMIT_S


def test_an_exit_code_of_0_without_a_result_is_a_failure_and_a_bad_node_is_excluded(cluster, project, broken):
    """The driver exits with 0 immediately. Before that, the job finds node2 unhealthy and is requeued without it."""
    site = broken("*tunesmith.cli.batch_step*--stage*train", "exit 0")
    held = cluster.call("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true")
    job = project.submit("runs/empty", "--cluster", site, "--launcher", "torchrun", "--after", held)["train"]
    run = project.path("runs/empty")
    (run.jobs / f".health-{job}-node2").mkdir()  # node2 cannot write its probe file
    cluster.call("scontrol", "release", held)
    ended = require_failure(cluster, project, "runs/empty", job, "left no result")
    assert (ended["Restarts"], ended["ExcNodeList"], ended["NodeList"]) == ("1", "node2", "node[1,3]")
    assert "node node2 is unhealthy: the run directory" in (run.logs / "bad-nodes.log").read_text()


def test_a_job_fails_after_the_maximum_number_of_starts(cluster, project, broken):
    site = broken("*tunesmith.cli.batch_step*--stage*train", "exec sleep 600", max_lives=1)
    job = project.submit("runs/again", "--cluster", site, "--launcher", "torchrun")["train"]
    cluster.wait(job, "RUNNING")
    cluster.call("scontrol", "requeue", job)
    wait_for(lambda: cluster.job(job)["Restarts"] == "1" and cluster.state(job) == "FAILED")
    assert "started 1 times and did not finish" in project.logs("runs/again")


def test_a_job_fails_if_its_driver_crashes(cluster, project, broken):
    site = broken("*tunesmith.cli.batch_step*--stage*train", "kill -SEGV $$")
    job = project.submit("runs/crash", "--cluster", site, "--launcher", "torchrun")["train"]
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "139:0"), project.logs("runs/crash")
    status = project.run("status", "runs/crash")
    assert status.startswith("Failed.")
    assert "the driver process of the job was killed by signal 11" in status


@pytest.fixture(scope="module")
def chain(project) -> dict[str, str]:
    """The submitted jobs of a chain."""
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


def test_a_failure_in_a_chain_cancels_the_rest_and_reports_the_cause(cluster, project):
    (project.directory / "bad.jsonl").write_text('{"messages": [{"role": "asistant", "content": "Hello"}]}\n')
    jobs = project.submit("runs/bad", "--launcher", "torchrun", "--chain", "--set", "data.train=[bad.jsonl]")
    states = [cluster.wait(job)["JobState"] for job in jobs.values()]
    assert states == ["FAILED", "CANCELLED", "CANCELLED"]
    status = project.run("status", "runs/bad")
    assert "bad.jsonl" in status
    assert f"train: cancelled, since job {jobs['prepare']} (prepare) failed" in status
    assert json.loads(project.run("status", "runs/bad", "--json"))["jobs"][0]["fault"]


def test_runs_of_a_sweep_can_be_stopped_and_cancelled(cluster, project):
    """One task completes; `tunesmith stop` and scancel let the others save their state, and neither is requeued."""
    sweep = ("--sweep", "optimization.max_steps=[2, 20000, 30000]", "--set", "optimization.epochs=5000")
    options = ("--nodes", "1", "--launcher", "torchrun", "--run-dir", "runs/sweep", "--json", *sweep)
    array = json.loads(project.run("train", "recipe.yaml", "--on", "slurm", *options))
    runs = [RunDir(project.directory / entry["run"]) for entry in array["runs"]]
    assert [entry["set"] for entry in array["runs"]] == [[f"optimization.max_steps={n}"] for n in (2, 20000, 30000)]
    for run in runs[1:]:
        wait_for(lambda run=run: newest_step(run) > 12, explain=lambda: project.logs("runs/sweep/001"))
    assert "state is saved" in project.run("stop", "runs/sweep/001")
    assert "submitted: job" in project.run("resume", "runs/sweep/001")
    project.run("stop", "runs/sweep/001")
    assert json.loads(project.run("status", "runs/sweep/001", "--json"))["phase"] == "preempted"
    step = newest_step(runs[1])
    assert runs[1].checkpoint(step).is_dir()
    cluster.call("scancel", f"{array['job']}_2")
    wait_for(lambda: not cluster.call("squeue", "--noheader"), explain=lambda: cluster.call("squeue"))
    assert len(losses(runs[0])) == 2
    states = {job["ArrayTaskId"]: job for job in cluster.jobs(array["job"])}
    assert [states[n]["JobState"] for n in "012"] == ["COMPLETED", "FAILED", "CANCELLED"]
    assert [states[n]["Restarts"] for n in "012"] == ["0", "0", "0"]
    assert states["1"]["ExitCode"] == "143:0"
    assert list(runs[2].checkpoints.glob("step-*"))


LISTING = (
    "import atexit, sys\n"
    "atexit.register(lambda: print('loaded:', *sorted({name.split('.')[0] for name in sys.modules})))\n"
    "from tunesmith.cli.main import main\nmain()\n"
)


def test_commands_on_a_login_node_import_neither_torch_nor_ray(cluster, project):
    """Dry run, submission, status and stop in separate processes that list the modules they have imported."""
    held = cluster.call("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true")
    place = ("--run-dir", "runs/light")
    for arguments, expected in (
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
        assert expected in ended.stdout
        loaded = set(ended.stdout.rpartition("loaded:")[2].split())
        assert "typer" in loaded
        assert not loaded & {"torch", "ray", "transformers", "peft", "deepspeed"}, arguments
    cluster.call("scancel", held)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--after", "5"], "add --on slurm"),
        (["--on", "slurm", "--cluster", "none.yaml"], "cluster init"),
        (["--on", "slurm", "--launcher", "mpi"], "ray or torchrun"),
        (["--on", "slurm", "--after", "5; rm"], "a job ID"),
        (["--on", "slurm", "--sweep", "seed=3"], "KEY=[VALUE"),
        (["--on", "slurm", "--sweep", "sead=[3]"], "sead"),
        (["--on", "slurm", "--sweep", "resources.nodes=[1, 2]"], "same resources"),
        (["--on", "slurm", "--evaluate", "x.jsonl"], "add --chain"),
    ],
)
def test_wrong_options_give_one_clear_message(project, arguments, expected):
    assert expected in project.run("train", "recipe.yaml", "--run-dir", "runs/wrong", *arguments, code=2)
    assert not project.path("runs/wrong").root.exists()


def losses(run: RunDir) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in event_lines(run.events, "step")}


def rows_of(run: RunDir) -> dict[int, list[tuple[int, ...]]]:
    return {step: [entry.rows for entry in entries] for step, entries in read_ledger(run).items()}


def newest_step(run: RunDir) -> int:
    return max(losses(run), default=0)


def wait_for_step(run: RunDir, step: int, project: Project) -> None:
    wait_for(lambda: newest_step(run) >= step, explain=lambda: project.logs(f"runs/{run.name}"))


def starts_of(run: RunDir) -> list[dict]:
    return list(event_lines(run.job_starts, "life"))


def wait_for_start(run: RunDir, number: int, project: Project) -> None:
    """Wait until the job has started this number of times and the last start has trained HELD steps."""
    wait_for(lambda: len(starts_of(run)) >= number, explain=lambda: project.logs(f"runs/{run.name}"))
    wait_for_step(run, starts_of(run)[number - 1]["step"] + HELD, project)
