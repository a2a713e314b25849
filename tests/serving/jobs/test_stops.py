"""Failures while a job runs locally: the server or supervisor exits, the run directory is deleted, the disk is full."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.event_lines import event_lines
from tests.serving.jobs.service import Service
from tests.serving.jobs.whole_server import LONG, SHORT, WholeServer, supervisors_of
from tests.waiting import wait_for
from tunesmith.rundir.status import read_status


@pytest.fixture(scope="module")
def server(tiny_llama, tmp_path_factory) -> Iterator[WholeServer]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.getbasetemp() / "tunesmith-cache"))
    server = WholeServer(tmp_path_factory.mktemp("server"), bases={"tiny": str(tiny_llama)}, max_jobs=2)
    yield server.start()
    server.cancel_all()
    server.stop()
    patch.undo()


def test_a_run_continues_without_server_and_supervisor(server, many_chat_rows):
    """SIGTERM stops the server and its children, but not the run. A supervisor that is killed is restarted."""
    job = server.create(server.upload(many_chat_rows), LONG)
    wait_for(lambda: server.step(job) > 5)
    (first,) = supervisors_of(server.process.pid)
    os.kill(first, signal.SIGKILL)
    (second,) = wait_for(lambda: [pid for pid in supervisors_of(server.process.pid) if pid != first])
    num_steps = len(server.event_steps(job))
    wait_for(lambda: len(server.event_steps(job)) > num_steps)

    server.stop(signal.SIGTERM)
    wait_for(lambda: not is_alive(second))
    seen = server.step(job)
    wait_for(lambda: server.step(job) > seen)
    server.start()
    wait_for(lambda: len(server.event_steps(job)) > seen)
    server.jobs.cancel(job)
    wait_for(lambda: read_status(server.run_of(job).status).phase == "preempted")
    assert [start["attempt"] for start in event_lines(server.run_of(job).events, "start")] == [1]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_deleting_the_run_directory_fails_the_job(server, many_chat_rows):
    job = server.create(server.upload(many_chat_rows), LONG)
    run = server.run_of(job)
    wait_for(lambda: len(server.event_steps(job)) > 5)
    worker = read_status(run.status).pid
    shutil.rmtree(run.root, ignore_errors=True)
    failed = server.wait_until(job, "failed")
    assert failed.error.code == "run_lost"
    assert str(run.root) in failed.error.message
    wait_for(lambda: not is_alive(worker))
    assert not run.exists  # it was not started again


@pytest.fixture
def small_disk(tmp_path) -> Iterator:
    """A disk of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system requires root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_model_is_published_once_the_disk_has_space(small_disk, tiny_llama, tmp_path, chat_rows):
    """There is no space for the result file: the job reports it and waits; nothing is lost."""
    service = Service(tmp_path / "server", tiny_llama, files_url=str(small_disk))
    service.start_server()
    job = service.create(service.upload(chat_rows[:24]), method=method(SHORT)).id
    supervisor = service.start_supervisor(TUNESMITH_FAULT="job.result=kill")
    wait_for(lambda: supervisor.poll() is not None)
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    service.start_supervisor()
    wait_for(lambda: any("disk is full" in event.message for event in service.events(job)))
    filler.unlink()
    done = service.succeeded(job)
    assert len(service.client.files.content(done.result_files[0]).text.splitlines()) == 13
    assert [event.message for event in service.events(job)][-1] == "The job has successfully completed"
    service.close()


def method(hyperparameters: dict) -> dict:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
