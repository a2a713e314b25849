"""Runs on real Ray clusters: a local one started by the run, and one of two hosts."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the ray extra is not installed")

from tests.event_lines import event_lines
from tests.integration.conftest import COMMAND
from tests.integration.hosts import why_not
from tests.integration.processes import AWAIT_TERM_AT_STEP_4, rows_by_step, steps_of, workers_of
from tests.integration.ray_hosts import RayHosts, ray_hosts
from tests.selection import needs
from tests.waiting import LIMIT_S, wait_for
from tunesmith.errors import ExitCode
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status

TWO = ("--set", "resources.workers=2", "--on", "ray")


def test_killed_worker_is_restarted_and_every_row_is_used_once(project, alone):
    """On a local cluster. Rows prepared by Ray tasks and their receipts equal those of one machine."""
    running = project.start("train", project.write(), "--run-dir", "ray", *TWO, TUNESMITH_CACHE="ray-cache")
    run = RunDir(project.directory / "ray")
    wait_for(lambda: any(run.checkpoints.glob("step-*[0-9]")))
    os.kill(wait_for(lambda: workers_of(run).get(1)), signal.SIGKILL)
    output, errors = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 0, output + errors
    assert [start["world_size"] for start in event_lines(run.events, "start")] == [2, 2]
    assert rows_by_step(run) == rows_by_step(alone)
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-5)
    assert _bytes_below(run.receipts) == _bytes_below(alone.receipts)
    index, index_alone = (json.loads(one.plan.read_text())["data"]["train"]["index"] for one in (run, alone))
    assert index != index_alone
    assert _bytes_below(Path(index)) == _bytes_below(Path(index_alone))


def test_run_preempted_by_sigterm_resumes_without_ray(project, alone):
    running = project.start("train", project.write(), "--run-dir", "preempted", *TWO, **AWAIT_TERM_AT_STEP_4)
    run = RunDir(project.directory / "preempted")
    wait_for(lambda: len(steps_of(run)) >= 2)
    running.send_signal(signal.SIGTERM)
    output, errors = running.communicate(timeout=LIMIT_S)
    assert running.returncode == ExitCode.PREEMPTED, output + errors
    assert not workers_of(run)
    resumed = project.run("resume", "preempted", "--on", "local")
    assert resumed.returncode == 0, resumed.stderr
    assert rows_by_step(run) == rows_by_step(alone)
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-5)


def test_unreachable_cluster_is_named(project):
    refused = project.run("train", project.write(), "--on", "ray", "--address", "127.0.0.1:1", timeout=LIMIT_S)
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "does not respond" in refused.stderr
    assert "127.0.0.1:1" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture(scope="module")
@needs("cluster")
def cluster(tmp_path_factory):
    """Two emulated hosts, each with one core for Ray."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with ray_hosts(2, tmp_path_factory.mktemp("cluster")) as created:
        yield created


def on(cluster: RayHosts, project, *arguments: str | Path, **environment: str) -> subprocess.Popen:
    """Start a tunesmith command on the head. Paths must be absolute: it runs in the head's root directory."""
    return subprocess.Popen(
        cluster.hosts[0].command(str(COMMAND), *map(str, arguments)),
        cwd=project.directory,
        env={**cluster.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ray_job_is_submitted_queried_and_stopped(cluster, project, alone):
    """From a machine outside the cluster, through the Ray Jobs API."""
    recipe = project.write()
    options = ["--on", "ray", "--address", cluster.jobs_address]
    passed = {name: cluster.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    command = ["train", recipe, "--run-dir", "job", "--set", "resources.workers=2", *options, "--detach"]
    begun = project.run(*command, **passed, **AWAIT_TERM_AT_STEP_4)
    run = RunDir(project.directory / "job")
    assert begun.returncode == 0, begun.stderr
    assert "as job tunesmith-job-" in begun.stdout
    wait_for(lambda: len(steps_of(run)) >= 2)
    assert project.run("status", "job").returncode == 0
    stopping = project.start("stop", "job", **passed)
    wait_for(run.stop_request.exists)
    _, errors = stopping.communicate(timeout=LIMIT_S)
    assert stopping.returncode == 0, errors
    assert read_status(run.status).exit_code == ExitCode.PREEMPTED
    assert {start["world_size"] for start in event_lines(run.events, "start")} == {2}
    resumed = project.run("resume", "job", "--on", "local", "--set", "resources.workers=1")
    assert resumed.returncode == 0, resumed.stderr
    assert rows_by_step(run) == rows_by_step(alone)


def test_host_without_access_to_the_run_directory_is_named(cluster, project):
    unshared = Path("/dev/shm") / f"tunesmith-{os.getpid()}"
    inside = ["mount", "-t", "tmpfs", "none", "/dev/shm"]
    subprocess.run(cluster.hosts[1].command(*inside), check=True)
    try:
        refused = on(
            cluster, project, "train", project.write(), "--run-dir", unshared, *TWO, "--address", cluster.address
        )
        _, errors = refused.communicate(timeout=LIMIT_S)
        assert refused.returncode == ExitCode.BAD_INPUT
        assert "machine host1 cannot access the run directory" in errors
    finally:
        subprocess.run(cluster.hosts[1].command("umount", "/dev/shm"), check=True)
        subprocess.run(["rm", "-rf", str(unshared)], check=True)


def elastic(cluster: RayHosts, project, name: str, epochs: int, hang_at: int) -> tuple[subprocess.Popen, Path]:
    """Start a run with one or two workers, depending on the free resources. Every attempt waits in its step `hang_at`
    until the file that is returned, too, exists."""
    release = project.directory / "release"
    faults = {"TUNESMITH_FAULT": f"step.forward:{hang_at}=hang", "TUNESMITH_FAULT_UNTIL": str(release)}
    options = ["--set", "resources.workers=[1,2]", "--set", f"optimization.epochs={epochs}", "--on", "ray"]
    arguments = ["train", project.write(), "--run-dir", project.directory / name, *options]
    return on(cluster, project, *arguments, "--address", cluster.address, **faults), release


def require_whole(project, run: RunDir, epochs: int) -> None:
    """Rows and losses are those of an undisturbed run on one machine."""
    whole = project.train(project.write(), "whole", "--set", f"optimization.epochs={epochs}")
    assert rows_by_step(run) == rows_by_step(whole)
    assert steps_of(run) == pytest.approx(steps_of(whole), abs=1e-4)


def world_sizes(run: RunDir) -> list[int]:
    return [start["world_size"] for start in event_lines(run.events, "start")]


@pytest.mark.soak
def test_run_scales_up_when_a_lost_host_returns(cluster, project):
    running, release = elastic(cluster, project, "grown", epochs=40, hang_at=60)
    run = RunDir(project.directory / "grown")
    wait_for(lambda: any(run.checkpoints.glob("step-*[0-9]")))
    cluster.hosts[1].kill()
    wait_for(lambda: world_sizes(run) == [2, 1])
    cluster.hosts[1].start()
    cluster.start_ray(cluster.hosts[1])
    wait_for(lambda: world_sizes(run) == [2, 1, 2])
    release.touch()
    output, errors = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 0, output + errors
    assert world_sizes(run) == [2, 1, 2]
    require_whole(project, run, epochs=40)


def test_run_continues_on_the_other_host_when_one_is_lost(cluster, project, alone):
    """Must be the last test with this cluster, since it kills a host."""
    running, release = elastic(cluster, project, "lost", epochs=3, hang_at=8)
    run = RunDir(project.directory / "lost")
    wait_for(lambda: any(run.checkpoints.glob("step-*[0-9]")))
    cluster.hosts[1].kill()
    release.touch()
    output, errors = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 0, output + errors
    assert world_sizes(run) == [2, 1]
    require_whole(project, run, epochs=3)


def test_killed_preparation_repeats_only_unfinished_shards(project):
    names = []
    for number in range(4):
        names.append(f"part-{number}.jsonl")
        rows = [
            {"prompt": f"{number} {row}?", "completion": f" {row * 7} and {number}, so it is." * 3}
            for row in range(9000)
        ]
        (project.directory / names[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = project.write(task="completion", data={"train": names, "validation": 0.0})
    shards = project.directory / "ray-cache" / "shards"

    def complete_shards() -> dict[str, int]:
        return {
            path.parent.name: path.stat().st_ino for path in shards.glob("*/manifest.json") if ".tmp" not in str(path)
        }

    killed = project.start("train", recipe, "--run-dir", "cut", "--dry-run", "--on", "ray", TUNESMITH_CACHE="ray-cache")
    wait_for(complete_shards, every_s=0.002)
    killed.kill()
    killed.communicate()
    before = wait_for(lambda: (complete := complete_shards()) and complete == complete_shards() and complete)
    assert len(before) < 4
    again = project.run(
        "train", recipe, "--run-dir", "cut", "--dry-run", "--json", "--on", "ray", TUNESMITH_CACHE="ray-cache"
    )
    assert again.returncode == 0, again.stderr
    after = complete_shards()
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    local = project.run("plan", recipe, "--json")
    index, index_local = (Path(json.loads(one.stdout)["data"]["train"]["index"]) for one in (again, local))
    assert index != index_local
    assert _bytes_below(index) == _bytes_below(index_local)


def _bytes_below(directory: Path) -> dict[str, bytes]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
