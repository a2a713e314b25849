"""Hosts that fail: real processes, reached through an ssh that runs commands here, one in its own mount namespace."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.warm_processes.pool import python_path
from tunesmith.launcher.doctor.hosts import Hosts
from tunesmith.launcher.doctor.nodes import CLOCK_SLACK_S, check_collective, check_nodes
from tunesmith.training.distributed.preflight import CLOCK_SLACK_S as CLOCK_SLACK_OF_RUNS

SSH = """
shift 5
host=$1 command=$2
case $host in
    down) echo 'ssh: connect to host down port 22: No route to host' >&2; exit 255 ;;
    silent) exec sleep 600 ;;
    banner) echo 'Welcome to this cluster'; exit 0 ;;
    never-joins) case $command in *bandwidth*) exec sleep 600 ;; esac ;;
    elsewhere) exec unshare --mount sh -c "mount -t tmpfs none '{shared}' && $command" ;;
    late | outdated) command=$(printf %s "$command" | sed "s|PYTHONPATH=|PYTHONPATH={first}/$host:|") ;;
esac
exec sh -c "$command"
"""


@pytest.fixture
def shared(tmp_path, program, monkeypatch) -> Path:
    """A directory that all hosts see but `elsewhere`."""
    place = tmp_path / "shared"
    place.mkdir()
    first = tmp_path / "first"
    (first / "late").mkdir(parents=True)
    (first / "late" / "sitecustomize.py").write_text("import time\nnow = time.time\ntime.time = lambda: now() - 60\n")
    (first / "outdated" / "peft-0.1.0.dist-info").mkdir(parents=True)
    (first / "outdated" / "peft-0.1.0.dist-info" / "METADATA").write_text("Name: peft\nVersion: 0.1.0\n")
    monkeypatch.setenv("PYTHONPATH", python_path())
    program("ssh", SSH.format(shared=place, first=first))
    return place


def results_of(shared: Path, *names: str, timeout_s: float = 60.0, collective_s: float = 120.0):
    return {result.check: result for result in check_nodes(Hosts(names), shared, timeout_s, collective_s)}


def findings_of(results) -> dict[str, list[str]]:
    return {name: [f.what for f in result.findings] for name, result in results.items() if result.findings}


def test_two_hosts_in_order_pass_and_the_bandwidth_is_measured(shared):
    results = results_of(shared, "localhost", "second")
    collective = results.pop("collective")
    assert findings_of(results) == {}
    assert [finding.severity for finding in collective.findings] in ([], ["warning"])  # the speed of this machine
    speed = float(collective.seen.removeprefix("gloo, 2 ranks, ").split()[0])
    assert 0.01 < speed < 1000
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "what"),
    [
        ("down", "down does not answer: ssh: connect to host down port 22: No route to host"),
        ("banner", "banner does not answer: unexpected output: Welcome to this cluster"),
        ("silent", "silent does not answer: no answer within 3 s"),
    ],
)
def test_a_host_that_does_not_answer_is_named_and_no_collective_is_started(shared, host, what):
    results = results_of(shared, "localhost", host, timeout_s=3.0)
    assert [f.what for f in results["hosts"].findings if host in f.what] == [what]
    assert "collective" not in results


def test_a_directory_that_a_host_does_not_see_is_an_error(shared):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no permission to create a mount namespace")
    by_check = findings_of(results_of(shared, "localhost", "elsewhere", "down"))
    assert by_check["shared-directory"] == [f"elsewhere does not see the files in {shared}"]


def test_a_directory_that_cannot_be_written_is_an_error(small_disk, shared):
    place = small_disk("ro,size=4m")
    by_check = findings_of(results_of(place, "localhost", "down"))
    assert by_check["shared-directory"] == [f"{place} cannot be written: Read-only file system"]


def test_a_clock_that_is_late_is_an_error(shared):
    by_check = findings_of(results_of(shared, "localhost", "late", "down"))
    assert by_check["host-clocks"] == ["the clock of late is 60 s behind this host's"]
    assert CLOCK_SLACK_S == CLOCK_SLACK_OF_RUNS


def test_another_version_on_a_host_is_an_error(shared):
    (what,) = findings_of(results_of(shared, "localhost", "outdated", "down"))["host-versions"]
    assert what.startswith("peft 0.1.0 on outdated, but ")


def test_a_rank_that_never_joins_is_bounded_and_named(shared):
    started = time.monotonic()
    results = results_of(shared, "localhost", "never-joins", collective_s=8.0)
    assert time.monotonic() - started < 60
    (what,) = findings_of(results)["collective"]
    assert "never-joins: no answer within 8 s" in what


def test_a_slow_network_is_a_warning(shared):
    results = results_of(shared, "localhost", "down")
    assert "collective" not in results
    (finding,) = check_collective(Hosts(("localhost",)), 29512, 60.0, slow_bytes_per_s=1e15).findings
    assert (finding.severity, "only gloo" in finding.what) == ("warning", True)


def test_nodes_of_an_allocation_are_reached_by_srun(shared, program):
    program(
        "srun", 'case "$*" in "--overlap --nodes=1 --ntasks=1 --nodelist=node"*) shift 4; exec "$@" ;; esac; exit 9'
    )
    results = list(check_nodes(Hosts(("node1", "node2"), in_allocation=True), shared, collective_s=5.0))
    assert results[0].findings == ()
    assert results[1].findings == ()
