"""Runs on a real Ray cluster: one of the run's own, and one of two hosts."""

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
from tests.integration.processes import fed, held, let_go, steps_of, wait_for, workers_of
from tests.integration.ray_hosts import RayHosts, ray_hosts
from tests.selection import needs
from tunesmith.errors import ExitCode
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status

TWO = ("--set", "resources.workers=2", "--on", "ray")


def test_a_killed_worker_is_started_again_and_every_row_is_fed_once(project, alone):
    """On a cluster of the run's own. The rows, prepared by Ray's tasks, and their receipts are those of one machine."""
    running = project.start("train", project.write(), "--run-dir", "ray", *TWO, TUNESMITH_CACHE="ray-cache")
    run = RunDir(project.directory / "ray")
    wait_for(lambda: any(run.checkpoints.glob("step-*[0-9]")))
    os.kill(wait_for(lambda: workers_of(run).get(1)), signal.SIGKILL)
    output, errors = running.communicate(timeout=300)
    assert running.returncode == 0, output + errors
    assert [start["world_size"] for start in event_lines(run.events, "start")] == [2, 2]
    assert fed(run) == fed(alone)
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-5)
    assert _bytes_below(run.receipts) == _bytes_below(alone.receipts)
    index, index_alone = (json.loads(each.plan.read_text())["data"]["train"]["index"] for each in (run, alone))
    assert index != index_alone
    assert _bytes_below(Path(index)) == _bytes_below(Path(index_alone))


def test_sigterm_saves_exits_75_and_goes_on_without_ray(project, alone):
    running = project.start("train", project.write(), "--run-dir", "asked", *TWO, **held(project.directory))
    run = RunDir(project.directory / "asked")
    wait_for(lambda: len(steps_of(run)) >= 2)
    running.send_signal(signal.SIGTERM)
    let_go(project.directory)
    output, errors = running.communicate(timeout=120)
    assert running.returncode == ExitCode.PREEMPTED, output + errors
    assert not workers_of(run)
    resumed = project.run("resume", "asked", "--on", "local")
    assert resumed.returncode == 0, resumed.stderr
    assert fed(run) == fed(alone)
    assert steps_of(run) == pytest.approx(steps_of(alone), abs=1e-5)


def test_a_cluster_that_does_not_answer_is_named(project):
    refused = project.run("train", project.write(), "--on", "ray", "--address", "127.0.0.1:1", timeout=60)
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "does not answer" in refused.stderr
    assert "127.0.0.1:1" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture(scope="module")
@needs("cluster")
def cluster(tmp_path_factory):
    """Two hosts in network namespaces, each with one core for Ray."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with ray_hosts(2, tmp_path_factory.mktemp("cluster")) as made:
        yield made


def on(cluster: RayHosts, project, *words: str | Path, **environment: str) -> subprocess.Popen:
    """A command of tunesmith on the head. Paths are absolute: it begins in the head's root directory."""
    return subprocess.Popen(
        cluster.hosts[0].command(str(COMMAND), *map(str, words)),
        cwd=project.directory,
        env={**cluster.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_job_is_handed_over_told_of_and_stopped(cluster, project, alone):
    """From a machine that is not of the cluster: through the cluster's own way of taking jobs."""
    recipe = project.write()
    place = ["--on", "ray", "--address", cluster.jobs_address]
    passed = {name: cluster.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    command = ["train", recipe, "--run-dir", "job", "--set", "resources.workers=2", *place, "--detach"]
    begun = project.run(*command, **passed, **held(project.directory))
    run = RunDir(project.directory / "job")
    assert begun.returncode == 0, begun.stderr
    assert "as job tunesmith-job-" in begun.stdout
    wait_for(lambda: len(steps_of(run)) >= 2, timeout_s=180)
    assert project.run("status", "job").returncode == 0
    stopping = project.start("stop", "job", **passed)
    wait_for(run.stop_request.exists)
    let_go(project.directory)
    _, errors = stopping.communicate(timeout=120)
    assert stopping.returncode == 0, errors
    assert read_status(run.status).exit_code == ExitCode.PREEMPTED
    assert {start["world_size"] for start in event_lines(run.events, "start")} == {2}
    resumed = project.run("resume", "job", "--on", "local", "--set", "resources.workers=1")
    assert resumed.returncode == 0, resumed.stderr
    assert fed(run) == fed(alone)


def test_a_host_that_does_not_see_the_run_directory_is_named(cluster, project):
    unshared = Path("/dev/shm") / f"tunesmith-{os.getpid()}"
    inside = ["mount", "-t", "tmpfs", "none", "/dev/shm"]
    subprocess.run(cluster.hosts[1].command(*inside), check=True)
    try:
        refused = on(
            cluster, project, "train", project.write(), "--run-dir", unshared, *TWO, "--address", cluster.address
        )
        _, errors = refused.communicate(timeout=60)
        assert refused.returncode == ExitCode.BAD_INPUT
        assert "machine host1 does not see the run directory" in errors
    finally:
        subprocess.run(cluster.hosts[1].command("umount", "/dev/shm"), check=True)
        subprocess.run(["rm", "-rf", str(unshared)], check=True)


LONG = ("--set", "optimization.epochs=40")


def elastic(cluster: RayHosts, project, name: str, **environment: str) -> subprocess.Popen:
    """A run of one or two workers, as the cluster has room."""
    words = ["train", project.write(), "--run-dir", project.directory / name, "--set", "resources.workers=[1,2]", *LONG]
    return on(cluster, project, *words, "--on", "ray", "--address", cluster.address, **environment)


def world_sizes(run: RunDir) -> list[int]:
    return [start["world_size"] for start in event_lines(run.events, "start")]


@pytest.mark.soak
def test_a_run_grows_again_when_the_lost_host_returns(cluster, project):
    """Its second life stands still until a third, of two workers again, has begun."""
    go_on = project.directory / "go-on"
    faults = {"TUNESMITH_FAULT": "step.forward:60=hang", "TUNESMITH_FAULT_UNTIL": str(go_on)}
    running = elastic(cluster, project, "grown", **faults)
    run = RunDir(project.directory / "grown")
    wait_for(lambda: any(run.checkpoints.glob("step-*[0-9]")), timeout_s=120)
    cluster.hosts[1].kill()
    wait_for(lambda: world_sizes(run) == [2, 1], timeout_s=180)
    cluster.hosts[1].start()
    cluster.start_ray(cluster.hosts[1])
    wait_for(lambda: world_sizes(run) == [2, 1, 2], timeout_s=300)
    go_on.touch()
    output, errors = running.communicate(timeout=240)
    assert running.returncode == 0, output + errors
    assert world_sizes(run) == [2, 1, 2]
    whole = project.train(project.write(), "whole", *LONG)
    assert fed(run) == fed(whole)
    assert steps_of(run) == pytest.approx(steps_of(whole), abs=1e-4)


def test_a_run_goes_on_with_the_other_host_when_one_is_lost(cluster, project, alone):
    """The last test of this cluster: one of its hosts is killed."""
    running = elastic(cluster, project, "lost")
    run = RunDir(project.directory / "lost")
    wait_for(lambda: any(run.checkpoints.glob("step-*[0-9]")), timeout_s=120)
    cluster.hosts[1].kill()
    output, errors = running.communicate(timeout=240)
    assert running.returncode == 0, output + errors
    assert world_sizes(run) == [2, 1]
    whole = project.train(project.write(), "whole", *LONG)
    assert fed(run) == fed(whole)
    assert steps_of(run) == pytest.approx(steps_of(whole), abs=1e-4)


def test_a_killed_preparation_makes_only_the_shards_in_work_again(project):
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

    def whole() -> dict[str, int]:
        return {
            path.parent.name: path.stat().st_ino for path in shards.glob("*/manifest.json") if ".tmp" not in str(path)
        }

    killed = project.start("train", recipe, "--run-dir", "cut", "--dry-run", "--on", "ray", TUNESMITH_CACHE="ray-cache")
    wait_for(whole, every_s=0.002)
    killed.kill()
    killed.communicate()
    before = wait_for(lambda: (found := whole()) and found == whole() and found)
    assert len(before) < 4
    again = project.run(
        "train", recipe, "--run-dir", "cut", "--dry-run", "--json", "--on", "ray", TUNESMITH_CACHE="ray-cache"
    )
    assert again.returncode == 0, again.stderr
    after = whole()
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    local = project.run("plan", recipe, "--json")
    index, index_local = (Path(json.loads(each.stdout)["data"]["train"]["index"]) for each in (again, local))
    assert index != index_local
    assert _bytes_below(index) == _bytes_below(index_local)


def _bytes_below(directory: Path) -> dict[str, bytes]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
