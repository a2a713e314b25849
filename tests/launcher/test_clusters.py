"""Which cluster a run belongs to: by name, by the run's launch.json, by the options that were given."""

import json
import socket

import pytest
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.errors import InputError
from tunesmith.launcher.backends.cluster import ClusterJob, JobState, Submission, SubmitOptions
from tunesmith.launcher.clusters import CLUSTERS, NAMES, cluster_named, open_backend, require_options
from tunesmith.launcher.runs.cluster_jobs import have_ended, job_lines, jobs_of
from tunesmith.launcher.runs.outcome import as_object
from tunesmith.launcher.runs.remote import chosen_launch, stop_run
from tunesmith.rundir.launch import Launch

LATER = json.dumps({"backend": "kubernetes", "address": "k8s:1", "job": "7"})


def test_names_are_unique_and_this_machine_is_the_default():
    assert len(set(NAMES)) == len(CLUSTERS)
    assert NAMES[0] == Launch().backend == "local"
    with pytest.raises(InputError, match="'kubernetes'"), open_backend(Launch("kubernetes")):
        pass


def test_a_back_end_that_is_not_known_is_an_error_and_not_this_machine(make_run):
    run = make_run("later", "preempted")
    run.launch.write_text(LATER)
    for ask in (lambda: chosen_launch(run, None, None), lambda: stop_run(run, 1), lambda: jobs_of(run)):
        with pytest.raises(InputError) as refused:
            ask()
        assert "kubernetes" in refused.value.what
        assert refused.value.where == str(run.launch)
        assert "local, ray, slurm" in (refused.value.remedy or "")
    assert chosen_launch(run, "local", None) == Launch("local", "", "")
    assert chosen_launch(run, None, "head:6379") == Launch("ray", "head:6379", "")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_launch_is_an_error_where_it_decides_something(make_run, text):
    run = make_run("damaged", "preempted")
    run.launch.write_text(text)
    for ask in (lambda: chosen_launch(run, None, None), lambda: stop_run(run, 1)):
        with pytest.raises(InputError, match="cannot be read") as refused:
            ask()
        assert refused.value.where == str(run.launch)
    assert as_object(run)["phase"] == "preempted"  # `status` reports what it can
    assert jobs_of(run) == []
    assert chosen_launch(run, "ray", None) == Launch("ray", "", "")


def test_the_command_line_reports_both_without_a_traceback(make_run):
    run = make_run("broken", "preempted")
    for text, status_code in ((LATER, 2), ("{", 0)):
        run.launch.write_text(text)
        for arguments, code in ((["status", str(run.root)], status_code), (["stop", str(run.root)], 2)):
            ended = CliRunner().invoke(app, arguments)
            found = int(ended.exception.exit_code) if isinstance(ended.exception, InputError) else ended.exit_code
            assert found == code, (arguments, ended.output, ended.exception)


def test_the_place_is_the_one_asked_for_or_the_one_before(make_run):
    run = make_run("placed", "preempted")
    Launch("ray", "head:6379", "old").write(run.launch)
    assert chosen_launch(run, None, None) == Launch("ray", "head:6379", "")
    assert chosen_launch(run, "slurm", None) == Launch("slurm", "", "")
    with pytest.raises(InputError, match="--on takes local, ray, slurm; given: moon"):
        chosen_launch(run, "moon", None)
    with pytest.raises(InputError, match="--address names a Ray cluster") as refused:
        chosen_launch(run, "slurm", "head:6379")
    assert (refused.value.where, refused.value.remedy) == ("--on slurm", "add --on ray, or leave it out")


@pytest.mark.parametrize("name", ["local", "ray"])
def test_options_that_a_cluster_does_not_take_are_refused(name):
    require_options(cluster_named(name), SubmitOptions())
    require_options(cluster_named("slurm"), SubmitOptions(after=("5",), chain=True))
    with pytest.raises(InputError) as refused:
        require_options(cluster_named(name), SubmitOptions(after=("5",), chain=True))
    assert refused.value.what == "--after is for Slurm"
    assert (refused.value.where, refused.value.remedy) == ("--after", "add --on slurm, or leave it out")


def test_who_takes_a_run_over():
    """A process that is the job itself drives its run; Slurm's jobs have an entry point of their own."""
    expected = {
        Launch("local"): False,
        Launch("local", job="j"): False,
        Launch("ray"): False,
        Launch("ray", "head:6379"): False,
        Launch("ray", "http://head:8265"): True,
        Launch("ray", "http://head:8265", "j"): False,
        Launch("slurm"): True,
    }
    assert {launch: cluster_named(launch.backend).takes_over(launch) for launch in expected} == expected


def test_arguments_of_a_servers_jobs():
    assert cluster_named("local").arguments("", "") == ["--on", "local"]
    assert cluster_named("ray").arguments("http://h:1", "") == ["--on", "ray", "--address", "http://h:1"]
    slurm = ["--on", "slurm", "--launcher", "torchrun", "--cluster", "site.yaml"]
    assert cluster_named("slurm").arguments("", "site.yaml") == slurm


def test_a_command_carries_its_place(make_run):
    run = make_run("command", "preempted")
    submission = Submission(run, Launch("ray", "http://h:1"), ("resume", "here"))
    assert submission.placed_command == ("resume", "here", "--on", "ray", "--address", "http://h:1")


def test_ray_is_reachable_where_somebody_listens():
    ray = cluster_named("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ray.is_reachable(f"127.0.0.1:{port}")
        assert ray.is_reachable(f"http://127.0.0.1:{port}")
    assert not ray.is_reachable(f"127.0.0.1:{port}")
    assert ray.is_reachable("auto")


def test_jobs_in_words(make_run):
    run = make_run("words", "failed")
    Launch("slurm", job="1,2,3").write(run.launch)
    jobs = [
        ClusterJob("prepare", "1", JobState.ENDED, "completed on node1", succeeded=True),
        ClusterJob("train", "2", JobState.ENDED, "failed (NonZeroExitCode)", fault="no rows"),
        ClusterJob("export", "3", JobState.ENDED, "cancelled (Dependency)"),
    ]
    assert job_lines(run, jobs) == [
        ("job 1", "prepare: completed on node1"),
        ("job 2", "train: failed (NonZeroExitCode): no rows"),
        ("job 3", "export: cancelled, since job 2 (train) did not end well"),
    ]
    assert have_ended(jobs)
    unknown = [
        ClusterJob("prepare", "1", JobState.FORGOTTEN, has_result=True),
        ClusterJob("train", "2", JobState.UNREACHABLE, fault="no rows"),
    ]
    assert job_lines(run, unknown) == [
        ("job 1", "prepare: done"),
        ("job 2", "train: no longer known to Slurm: no rows"),
    ]
    assert not have_ended(unknown)
    assert not have_ended([])
