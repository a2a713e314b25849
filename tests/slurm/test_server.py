"""`tunesmith serve --backend slurm` on a real cluster: jobs created with the openai package run as Slurm jobs."""

import json

import openai
import pytest
import yaml

from tests.event_lines import event_lines
from tests.serving.jobs.whole_server import LONG, SHORT, WholeServer
from tests.waiting import wait_for
from tunesmith.rundir.job import read_job

SITE = {"partition": "main", "cpus_per_node": 1, "time_limit_minutes": 20, "interface": "lo"}


@pytest.fixture(scope="module")
def server(cluster, tiny_llama, tmp_path_factory):
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("server")
    for name in ("SLURM_CONF", "PATH", "TMPDIR"):
        patch.setenv(name, cluster.environment[name])
    patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
    (folder / "cluster.yaml").write_text(yaml.safe_dump(SITE))
    server = WholeServer(folder, backend="slurm", bases={"tiny": str(tiny_llama)}, max_jobs=1)
    yield server.start()
    server.stop()
    patch.undo()


def number_of(server: WholeServer, job: str) -> str | None:
    """ID of the Slurm job that runs a job of the API."""
    record = read_job(server.run_of(job))
    return record.stages.get("train") if record else None


def test_a_job_runs_as_a_slurm_job_and_its_model_answers(server, cluster, chat_rows):
    job = server.create(server.upload(chat_rows[:24]), SHORT)
    done = server.wait_until(job, "succeeded")
    assert cluster.job(number_of(server, job))["JobState"] == "COMPLETED"
    assert server.event_steps(job) == list(range(1, 13))
    assert [point.step_number for point in server.jobs.checkpoints.list(job)] == [12, 6]
    result = server.client().files.content(done.result_files[0]).text.splitlines()
    assert len(result) == 13
    assert server.answer(done.fine_tuned_model) == server.answer(f"{done.fine_tuned_model}:ckpt-step-12")


def test_waiting_jobs_can_be_cancelled_in_both_queues(server, cluster, chat_rows):
    """The first waits in Slurm's queue, the second in the server's, since max_jobs is 1. The first also waits for the
    Slurm controller, which is down when it is created."""
    with cluster.closed_partition():
        cluster.stop_controller()
        file = server.upload(chat_rows)
        first, second = server.create(file, LONG), server.create(file, LONG)
        wait_for(lambda: any("is not responding" in event.message for event in server.jobs.list_events(first)))
        cluster.start_controller()
        number = wait_for(lambda: number_of(server, first))
        assert cluster.state(number) == "PENDING"
        assert server.wait_until(second, "queued").status == "queued"
        assert server.jobs.cancel(second).status == "cancelled"
        assert server.jobs.cancel(first).status == "cancelled"
        assert cluster.wait(number)["JobState"] == "CANCELLED"
        assert read_job(server.run_of(second)) is None


@pytest.mark.soak
def test_a_job_survives_a_server_restart_and_can_be_paused_resumed_and_cancelled(server, cluster, chat_rows):
    job = server.create(server.upload(chat_rows), LONG)
    wait_for(lambda: server.step(job) > 5)
    number = number_of(server, job)
    server.kill()
    step = server.step(job)
    wait_for(lambda: server.step(job) > step)  # the Slurm job is not affected
    server.start()
    wait_for(lambda: len(server.event_steps(job)) > step)
    assert number_of(server, job) == number
    assert server.jobs.pause(job).status == "pausing"
    server.wait_until(job, "paused")
    assert cluster.wait(number)["ExitCode"] == "143:0"
    paused_at = server.step(job)
    with pytest.raises(openai.BadRequestError):
        server.jobs.pause(job)
    assert server.jobs.resume(job).status == "queued"
    wait_for(lambda: server.step(job) > paused_at)
    again = number_of(server, job)
    assert again != number
    assert server.jobs.cancel(job).status == "cancelled"
    assert cluster.wait(again)["ExitCode"] == "143:0"
    steps = server.event_steps(job)
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= paused_at
    assert [start["attempt"] for start in event_lines(server.run_of(job).events, "start")] == [1, 2]
    assert json.loads(server.run_of(job).status.read_text())["phase"] == "preempted"
    wait_for(lambda: cluster.processes() == [])


def test_a_slurm_server_needs_a_cluster_file(tmp_path, tiny_llama):
    with pytest.raises(AssertionError, match="cluster init"):
        WholeServer(tmp_path, backend="slurm", bases={"tiny": str(tiny_llama)}).start()
