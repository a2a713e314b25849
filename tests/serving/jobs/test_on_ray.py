"""`tunesmith serve --backend ray` on a real cluster: jobs of the unmodified openai package run as Ray jobs.

The cluster has only this machine, and is stopped by killing its processes: `ray stop` would stop other clusters, too.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray", reason="the ray extra is not installed")

from tests.event_lines import event_lines
from tests.selection import needs
from tests.serving.jobs.whole_server import LONG, SHORT, WholeServer
from tests.slurm.conftest import free_ports
from tests.waiting import wait_for
from tunesmith.rundir.launch import Launch, read_launch

RAY = Path(sys.executable).with_name("ray")


@contextmanager
def ray_head(log: Path) -> Iterator[str]:
    """A cluster with one node, two cores and an authentication token; yields its job server address."""
    port, jobs_port, agent_port, client_port = free_ports(4)
    place = Path(tempfile.mkdtemp(prefix="tsr"))  # short: socket paths have a length limit
    command = [str(RAY), "start", "--head", "--block", "--port", str(port), "--include-dashboard", "true"]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(jobs_port), "--num-cpus", "2"]
    # Another Ray cluster on this machine may use the default ports, and a node without its agent accepts no jobs.
    command += ["--dashboard-agent-listen-port", str(agent_port), "--ray-client-server-port", str(client_port)]
    command += ["--node-ip-address", "127.0.0.1", "--temp-dir", str(place)]
    with open(log, "ab") as output:
        head = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(lambda: head.poll() is None and is_ready(jobs_port))
        yield f"http://127.0.0.1:{jobs_port}"
    finally:
        head.kill()
        head.wait()
        for pid in remaining_processes(place):  # their child processes exit with them
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/version").status_code in (200, 401)
    except httpx.HTTPError:
        return False


def remaining_processes(place: Path) -> list[int]:
    """Ids of processes whose command line contains the cluster's directory."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(place) in (path / "cmdline").read_bytes():
                pids.append(int(path.name))
        except OSError:
            continue
    return pids


@pytest.fixture(scope="module")
@needs("cluster")
def server(tiny_llama, tmp_path_factory) -> Iterator[WholeServer]:
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("server")
    token = folder / "token"
    token.touch(0o600)
    token.write_text("0123456789abcdef" * 4)
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
    with ray_head(folder / "ray.log") as address:
        server = WholeServer(folder, backend="ray", address=address, bases={"tiny": str(tiny_llama)}, max_jobs=2)
        yield server.start()
        server.cancel_all()
        server.stop()
    patch.undo()


def ray_state(launch: Launch | None) -> str:
    """Ray's state of a job. Runs in a new process: Ray reads its authentication settings at import."""
    assert launch is not None
    return run_code(
        "from tunesmith.launcher.ray.job import job_state\n"
        "from tunesmith.rundir.launch import Launch\n"
        f"print(job_state(Launch({launch.backend!r}, {launch.address!r}, {launch.job!r})))"
    )


def run_code(code: str) -> str:
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def launch_of(server: WholeServer, job: str) -> Launch | None:
    launch = read_launch(server.run_of(job).launch)
    return launch if launch.job else None


@pytest.mark.soak
def test_a_job_runs_as_a_ray_job_and_its_model_is_served(server, chat_rows):
    job = server.create(server.upload(chat_rows[:24]), SHORT)
    done = server.wait_until(job, "succeeded")
    assert ray_state(launch_of(server, job)) == "SUCCEEDED"
    assert server.event_steps(job) == list(range(1, 13))
    assert [point.step_number for point in server.jobs.checkpoints.list(job)] == [12, 6]
    assert len(server.client().files.content(done.result_files[0]).text.splitlines()) == 13
    assert server.answer(done.fine_tuned_model) == server.answer(f"{done.fine_tuned_model}:ckpt-step-12")


@pytest.mark.soak
def test_a_job_is_picked_up_paused_resumed_and_cancelled(server, many_chat_rows):
    job = server.create(server.upload(many_chat_rows), LONG)
    wait_for(lambda: server.step(job) > 5)
    launch = launch_of(server, job)
    server.kill()
    seen = server.step(job)
    wait_for(lambda: server.step(job) > seen)  # the cluster's job is not affected
    server.start()
    wait_for(lambda: len(server.event_steps(job)) > seen)
    assert launch_of(server, job) == launch
    server.jobs.pause(job)
    server.wait_until(job, "paused")
    paused_at = server.step(job)
    server.jobs.resume(job)
    wait_for(lambda: server.step(job) > paused_at)
    resumed = launch_of(server, job)
    assert resumed.job != launch.job
    server.jobs.cancel(job)
    wait_for(lambda: ray_state(resumed) in ("SUCCEEDED", "FAILED", "STOPPED"))
    steps = server.event_steps(job)
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= paused_at
    assert [start["attempt"] for start in event_lines(server.run_of(job).events, "start")] == [1, 2]


@pytest.mark.soak
def test_a_pending_cluster_job_is_cancelled(server, tmp_path):
    """It has no running process that could react to a stop request."""
    address = json.loads(server.config.read_text())["address"]
    code = f"""
import time
from pathlib import Path
from ray.job_submission import JobSubmissionClient
from tunesmith.launcher.ray.job import job_state
from tunesmith.rundir.launch import Launch
from tunesmith.serving.jobs.job_run import JobRun, ClusterSpec

name = JobSubmissionClient({address!r}).submit_job(entrypoint="true", entrypoint_resources={{"of-no-node": 1}})
run = JobRun(Path({str(tmp_path / "job")!r}), Path({str(tmp_path / "run")!r}), ClusterSpec("ray", {address!r}))
run.run.create()
launch = Launch("ray", {address!r}, name)
launch.write(run.run.launch)
print(run.state())
deadline = time.monotonic() + 60
while not run.request_stop():
    assert time.monotonic() < deadline
    time.sleep(0.1)
print(run.state() != "working", job_state(launch) in ("PENDING", "STOPPED"))
"""
    assert run_code(code).splitlines() == ["working", "True True"]
