"""Selection of a run's cluster: by name, by its launch.json, and by the given options."""

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


def test_an_unknown_back_end_is_an_error_and_not_the_default(make_run):
    run = make_run("later", "preempted")
    run.launch.write_text(LATER)
    for call in (lambda: chosen_launch(run, None, None), lambda: stop_run(run, 1), lambda: jobs_of(run)):
        with pytest.raises(InputError) as caught:
            call()
        assert "kubernetes" in caught.value.what
        assert caught.value.where == str(run.launch)
        assert "local, ray, slurm" in (caught.value.remedy or "")
    assert chosen_launch(run, "local", None) == Launch("local", "", "")
    assert chosen_launch(run, None, "head:6379") == Launch("ray", "head:6379", "")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_launch_is_an_error_only_if_it_matters(make_run, text):
    run = make_run("damaged", "preempted")
    run.launch.write_text(text)
    for call in (lambda: chosen_launch(run, None, None), lambda: stop_run(run, 1)):
        with pytest.raises(InputError, match="cannot read where the run was started") as caught:
            call()
        assert caught.value.where == str(run.launch)
    assert as_object(run)["phase"] == "preempted"  # `status` reports what it can
    assert jobs_of(run) == []
    assert chosen_launch(run, "ray", None) == Launch("ray", "", "")


def test_unknown_and_damaged_launches_cause_no_traceback(make_run):
    run = make_run("broken", "preempted")
    for text, status_code in ((LATER, 2), ("{", 0)):
        run.launch.write_text(text)
        for arguments, code in ((["status", str(run.root)], status_code), (["stop", str(run.root)], 2)):
            ended = CliRunner().invoke(app, arguments)
            exit_code = int(ended.exception.exit_code) if isinstance(ended.exception, InputError) else ended.exit_code
            assert exit_code == code, (arguments, ended.output, ended.exception)


def test_a_run_starts_on_the_given_or_the_previous_back_end(make_run):
    run = make_run("placed", "preempted")
    Launch("ray", "head:6379", "old").write(run.launch)
    assert chosen_launch(run, None, None) == Launch("ray", "head:6379", "")
    assert chosen_launch(run, "slurm", None) == Launch("slurm", "", "")
    with pytest.raises(InputError, match="--on takes local, ray, slurm; got moon"):
        chosen_launch(run, "moon", None)
    with pytest.raises(InputError, match="--address is only for a Ray cluster") as caught:
        chosen_launch(run, "slurm", "head:6379")
    assert (caught.value.where, caught.value.remedy) == ("--on slurm", "add --on ray, or omit --address")


@pytest.mark.parametrize("name", ["local", "ray"])
def test_unsupported_options_of_a_cluster_are_rejected(name):
    require_options(cluster_named(name), SubmitOptions())
    require_options(cluster_named("slurm"), SubmitOptions(after=("5",), chain=True))
    with pytest.raises(InputError) as caught:
        require_options(cluster_named(name), SubmitOptions(after=("5",), chain=True))
    assert caught.value.what == "--after requires Slurm"
    assert (caught.value.where, caught.value.remedy) == ("--after", "add --on slurm, or omit it")


def test_which_launches_are_submitted_to_the_cluster():
    """A process that runs as the job drives its run itself; Slurm jobs have a separate entry point."""
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


def test_arguments_for_jobs_of_a_server():
    assert cluster_named("local").arguments("", "") == ["--on", "local"]
    assert cluster_named("ray").arguments("http://h:1", "") == ["--on", "ray", "--address", "http://h:1"]
    slurm = ["--on", "slurm", "--launcher", "torchrun", "--cluster", "site.yaml"]
    assert cluster_named("slurm").arguments("", "site.yaml") == slurm


def test_a_submitted_command_includes_back_end_and_address(make_run):
    run = make_run("command", "preempted")
    submission = Submission(run, Launch("ray", "http://h:1"), ("resume", "here"))
    assert submission.placed_command == ("resume", "here", "--on", "ray", "--address", "http://h:1")


def test_ray_is_reachable_if_a_server_listens():
    ray = cluster_named("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ray.is_reachable(f"127.0.0.1:{port}")
        assert ray.is_reachable(f"http://127.0.0.1:{port}")
    assert not ray.is_reachable(f"127.0.0.1:{port}")
    assert ray.is_reachable("auto")


def test_job_lines_show_states_and_causes(make_run):
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
        ("job 3", "export: cancelled, since job 2 (train) failed"),
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
