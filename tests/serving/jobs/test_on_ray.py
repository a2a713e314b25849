"""`tunesmith serve --backend ray` on a real cluster: jobs of the unchanged openai package become Ray's.

The cluster is of this machine alone, and is ended by the pids of what was started: `ray stop` would end others' too.
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
from tests.serving.jobs.service import wait_for
from tests.serving.jobs.whole_server import LONG, SHORT, WholeServer
from tests.slurm.conftest import free_ports
from tunesmith.rundir.launch import Launch, read_launch

RAY = Path(sys.executable).with_name("ray")


@contextmanager
def ray_head(log: Path) -> Iterator[str]:
    """A cluster of one node with two cores and a token; the address at which it takes jobs."""
    port, jobs_port, agent_port, client_port = free_ports(4)
    place = Path(tempfile.mkdtemp(prefix="tsr"))  # short: sockets lie below it
    words = [str(RAY), "start", "--head", "--block", "--port", str(port), "--include-dashboard", "true"]
    words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(jobs_port), "--num-cpus", "2"]
    # Their own too: another Ray of this machine holds the usual ones, and without its agent a node takes no jobs.
    words += ["--dashboard-agent-listen-port", str(agent_port), "--ray-client-server-port", str(client_port)]
    words += ["--node-ip-address", "127.0.0.1", "--temp-dir", str(place)]
    with open(log, "ab") as output:
        head = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(lambda: head.poll() is None and answers(jobs_port), 90)
        yield f"http://127.0.0.1:{jobs_port}"
    finally:
        head.kill()
        head.wait()
        for pid in left_by(place):  # what they have started themselves ends with them
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/version").status_code in (200, 401)
    except httpx.HTTPError:
        return False


def left_by(place: Path) -> list[int]:
    """Processes whose command names the cluster's directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(place) in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


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
        made = WholeServer(folder, backend="ray", address=address, bases={"tiny": str(tiny_llama)}, max_jobs=2)
        yield made.start()
        made.cancel_all()
        made.stop()
    patch.undo()


def ray_says(launch: Launch | None) -> str:
    """Of a job. In a process of its own: Ray reads how it proves itself once, when it is imported."""
    assert launch is not None
    return in_its_own_process(
        "from tunesmith.launcher.ray.job import job_state\n"
        "from tunesmith.rundir.launch import Launch\n"
        f"print(job_state(Launch({launch.backend!r}, {launch.address!r}, {launch.job!r})))"
    )


def in_its_own_process(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def launch_of(server: WholeServer, job: str) -> Launch | None:
    found = read_launch(server.run_of(job).launch)
    return found if found.job else None


@pytest.mark.soak
def test_a_job_becomes_a_ray_job_and_its_model_answers(server, chat_rows):
    job = server.create(server.upload(chat_rows[:24]), SHORT)
    done = server.wait_until(job, "succeeded")
    assert ray_says(launch_of(server, job)) == "SUCCEEDED"
    assert server.told_steps(job) == list(range(1, 13))
    assert [point.step_number for point in server.jobs.checkpoints.list(job)] == [12, 6]
    assert len(server.client().files.content(done.result_files[0]).text.splitlines()) == 13
    assert server.answer(done.fine_tuned_model) == server.answer(f"{done.fine_tuned_model}:ckpt-step-12")


@pytest.mark.soak
def test_a_job_is_adopted_paused_resumed_and_cancelled(server, chat_rows):
    job = server.create(server.upload(chat_rows), LONG)
    wait_for(lambda: server.step(job) > 5)
    launch = launch_of(server, job)
    server.kill()
    seen = server.step(job)
    wait_for(lambda: server.step(job) > seen)  # the cluster's job knows nothing of it
    server.start()
    wait_for(lambda: len(server.told_steps(job)) > seen)
    assert launch_of(server, job) == launch
    server.jobs.pause(job)
    server.wait_until(job, "paused")
    paused_at = server.step(job)
    server.jobs.resume(job)
    wait_for(lambda: server.step(job) > paused_at)
    again = launch_of(server, job)
    assert again.job != launch.job
    server.jobs.cancel(job)
    wait_for(lambda: ray_says(again) in ("SUCCEEDED", "FAILED", "STOPPED"))
    told = server.told_steps(job)
    assert told == list(range(1, len(told) + 1))
    assert len(told) >= paused_at
    assert [start["attempt"] for start in event_lines(server.run_of(job).events, "start")] == [1, 2]


@pytest.mark.soak
def test_a_job_that_waits_in_the_cluster_is_ended_there(server, tmp_path):
    """Nothing of it has begun that could see a request to stop."""
    address = json.loads(server.config.read_text())["address"]
    code = f"""
import time
from pathlib import Path
from ray.job_submission import JobSubmissionClient
from tunesmith.launcher.ray.job import job_state
from tunesmith.rundir.launch import Launch
from tunesmith.serving.jobs.job_run import JobRun, Place

name = JobSubmissionClient({address!r}).submit_job(entrypoint="true", entrypoint_resources={{"of-no-node": 1}})
run = JobRun(Path({str(tmp_path / "job")!r}), Path({str(tmp_path / "run")!r}), Place("ray", {address!r}))
run.run.create()
launch = Launch("ray", {address!r}, name)
launch.write(run.run.launch)
print(run.standing())
until = time.monotonic() + 60
while not run.ask_to_stop():
    assert time.monotonic() < until
    time.sleep(0.1)
print(run.standing() != "working", job_state(launch) in ("PENDING", "STOPPED"))
"""
    assert in_its_own_process(code).splitlines() == ["working", "True True"]
