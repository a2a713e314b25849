"""Slurm's commands on a real cluster: options, job states, dependencies and the generated cluster file."""

from pathlib import Path

import pytest

from tunesmith.configs.slurm_site import SlurmSite, load_site
from tunesmith.errors import InputError
from tunesmith.launcher.planning.prepare_run import read_request
from tunesmith.launcher.slurm.client import cancel, states, submit
from tunesmith.launcher.slurm.partitions import cluster_text, minutes_of, partitions_of, require_fits, survey
from tunesmith.launcher.slurm.script import BatchJob, header
from tunesmith.launcher.slurm.submit import SlurmSubmission, submit_run
from tunesmith.rundir.paths import RunDir

RECIPE_FILE = Path(__file__).parents[2] / "configs" / "recipes" / "support-bot.yaml"


@pytest.fixture
def slurm(cluster, monkeypatch):
    """Make the Slurm commands of this process use the test's cluster."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    return cluster


def test_options_reach_slurm_unchanged(slurm, tmp_path):
    """The directory name looks like options and contains spaces, an apostrophe, a percent sign and a comment."""
    folder = tmp_path / "it's 100%j $(id) #SBATCH --nodes=3 --job-name=other"
    (folder / "run" / "logs").mkdir(parents=True)
    job = BatchJob("bot", "train", folder / "run", folder, nodes=1)
    site = SlurmSite(partition="main", cpus_per_node=1, time_limit_minutes=5, save_before_s=60)
    number = submit("\n".join(["#!/bin/bash", *header(job, site), "pwd; echo here", ""]))
    output = slurm.call("scontrol", "show", "job", number)
    slurm.wait(number)
    assert f"WorkDir={folder}\n" in output
    for setting in ("NumNodes=1", "JobName=tunesmith-bot-train", "TimeLimit=00:05:00", "Requeue=1", "Partition=main"):
        assert setting in output
    assert (folder / "run" / "logs" / f"slurm-{number}.log").read_text() == f"{folder}\nhere\n"


def test_states_dependencies_and_cancelling(slurm, tmp_path):
    output = f"#SBATCH --output={tmp_path}/%j.log"
    bad = submit(f"#!/bin/sh\n{output}\nsleep 2; exit 3\n")
    never = submit(f"#!/bin/sh\n{output}\necho never\n", after=[bad])
    long = submit(f"#!/bin/sh\n{output}\nsleep 600\n")
    assert states([never])[never].reason == "Dependency"
    slurm.wait(long, "RUNNING")
    assert str(states([long])[long]).startswith("running on node")
    cancel([long])
    assert slurm.wait(bad)["JobState"] == "FAILED"
    assert slurm.wait(never)["JobState"] == "CANCELLED"
    slurm.wait(long)
    jobs = states([bad, never, long, "999999"])
    assert [jobs[number].state for number in (bad, never, long)] == ["FAILED", "CANCELLED", "CANCELLED"]
    assert "999999" not in jobs
    assert not (tmp_path / f"{never}.log").exists()


def test_error_messages_of_slurm_are_passed_on(slurm):
    with pytest.raises(InputError, match="invalid partition"):
        submit("#!/bin/sh\n#SBATCH --partition=nowhere\ntrue\n")


def test_a_missing_slurm_installation_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="Slurm is not installed"):
        submit("#!/bin/sh\n")
    with pytest.raises(InputError, match="Slurm is not installed"):
        survey()
    assert states(["1"]) == {}


def test_a_cluster_file_of_the_real_cluster_loads(slurm, tmp_path):
    path = Path(tmp_path / "cluster.yaml")
    path.write_text(cluster_text(survey()))
    site = load_site(path)
    assert (site.partition, site.gpus_per_node, site.cpus_per_node, site.time_limit_minutes) == ("main", 0, 8, 60)


SINFO = """\
debug*|up|30:00|2|16|64000+|(null)
gpu|up|2-00:00:00|12|64|515000|gpu:h100:8(S:0-1)
gpu|up|2-00:00:00|4|48+|256000|gpu:a100:4
old|drain|infinite|4|8|1000|gpu:8
cpu|up|infinite|100|128|256000|(null)
"""


def test_sinfo_output_is_converted_to_a_cluster_file(tmp_path):
    (tmp_path / "c.yaml").write_text(cluster_text(partitions_of(SINFO)))
    site = load_site(tmp_path / "c.yaml")
    assert (site.partition, site.gres, site.gpus_per_node, site.cpus_per_node) == ("gpu", "gpu:a100", 4, 48)
    assert site.time_limit_minutes == 1440
    assert site.cpu is not None
    assert site.cpu.partition == "cpu"
    (tmp_path / "d.yaml").write_text(cluster_text(partitions_of(SINFO), "debug"))
    assert load_site(tmp_path / "d.yaml").time_limit_minutes == 30
    with pytest.raises(InputError, match="no partition 'old' is up"):
        cluster_text(partitions_of(SINFO), "old")
    assert [minutes_of(text) for text in ("1-12:00:00", "30:00", "infinite")] == [2160, 30, None]


SIZES = """\
debug*|up|30:00|2|16|64000|(null)|1-infinite
gpu|up|2-00:00:00|12|64|515000|gpu:h100:8|1-4
gpu|up|2-00:00:00|4|48|256000|gpu:a100:4|1-4
cpu|up|infinite|100|128|256000|(null)|1-infinite
"""


@pytest.mark.parametrize(
    ("names", "nodes", "minutes", "qos", "expected"),
    [
        ("debug", 3, 10, False, "needs 3 nodes, but partition debug has 2\n"),
        ("debug", 3, 10, True, "needs 3 nodes, but partition debug has 2\n"),
        ("gpu", 5, 10, False, "needs 5 nodes, but partition gpu has 16, of which a job may use 4"),
        ("debug,gpu", 5, 10, False, "partition gpu has 16, of which a job may use 4"),
        ("debug", 1, 31, False, "a job of 31 minutes does not fit: partition debug allows 30"),
        ("debug,gpu", 1, 2881, False, "allows 2880"),
    ],
)
def test_a_job_that_would_wait_forever_is_rejected_with_what_the_partition_has(names, nodes, minutes, qos, expected):
    with pytest.raises(InputError, match=expected) as caught:
        require_fits(partitions_of(SIZES), names, nodes=nodes, minutes=minutes, has_qos=qos)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("names", "nodes", "minutes", "qos"),
    [
        ("debug", 2, 30, False),
        ("gpu", 4, 2880, False),
        ("gpu", 16, 9999, True),
        ("cpu", 100, 99999, False),
        ("debug,cpu", 50, 1440, False),
        ("hidden", 50, 1440, False),
        ("debug,hidden", 50, 1440, False),
    ],
)
def test_a_job_that_can_start_one_day_is_submitted(names, nodes, minutes, qos):
    require_fits(partitions_of(SIZES), names, nodes=nodes, minutes=minutes, has_qos=qos)
    require_fits([], names, nodes=nodes, minutes=minutes)


def test_nodes_beyond_the_cluster_are_rejected_before_anything_is_created(slurm, tmp_path):
    """Slurm itself accepts the job and keeps it pending forever."""
    request = read_request(RECIPE_FILE, ["resources.nodes=99"])
    site = SlurmSite(partition="main", cpus_per_node=1, time_limit_minutes=5)
    run = RunDir(tmp_path / "run")
    with pytest.raises(InputError, match="needs 99 nodes, but partition main has"):
        submit_run(request, run, SlurmSubmission(site))
    assert not run.root.exists()
