"""The batch script: recorded headers, shellcheck, and quoting of hostile values."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from tunesmith.configs.slurm_site import SHIPPED, SlurmSite, find_site, load_site
from tunesmith.errors import InputError
from tunesmith.launcher.slurm.script import SCRIPTS, BatchJob, container_script, environment, header, script

RECORDED = Path(__file__).parent / "recorded"
JOB = BatchJob("support-bot", "train", Path("/shared/runs/support-bot"), Path("/shared"), nodes=4, gpus_per_node=8)
HOSTILE = [
    "two words",
    'it\'s "quoted"',
    "a\n#SBATCH --nodes=99\nb",
    "$(touch /tmp/tunesmith-was-here) `id` $HOME",
    "; rm -rf / #",
    "back\\slash %j",
]


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_the_header_of_each_shipped_cluster_file_is_as_recorded(name):
    """Covers both kinds of stages. After an intended change: review the difference and update the recorded file."""
    cluster, _ = find_site(name)
    prepare = dataclasses.replace(JOB, stage="prepare", nodes=1, gpus_per_node=0)
    text = "\n".join([*header(JOB, cluster), "", *header(prepare, cluster)]) + "\n"
    assert text == (RECORDED / f"{name}.txt").read_text(encoding="utf-8")


def test_every_recorded_header_belongs_to_a_shipped_file():
    assert {path.stem for path in RECORDED.glob("*.txt")} == {path.stem for path in SHIPPED.glob("*.yaml")}


def test_sbatch_options_precede_the_first_command():
    text = script(JOB, SlurmSite(partition="p"))
    commands = [number for number, line in enumerate(text.splitlines()) if line and not line.startswith("#")]
    options = [number for number, line in enumerate(text.splitlines()) if line.startswith("#SBATCH")]
    assert len(options) > 8
    assert max(options) < min(commands)


@pytest.mark.parametrize("value", HOSTILE)
def test_values_reach_the_shell_unchanged(value, tmp_path):
    """Modules, scratch, interpreter and paths: bash evaluates the lines of the script and returns every value."""
    cluster = SlurmSite.model_construct(
        **{**SlurmSite(partition="p").model_dump(), "modules": [value], "scratch": value, "python": value}
    )
    job = dataclasses.replace(JOB, run_dir=Path("/runs") / value.replace("/", "_"))
    expected = environment(job, cluster, SCRIPTS, "python")
    head = [f"export {line}" for line in _script_of_exports(job, cluster)]
    lines = subprocess.run(
        ["bash", "-c", "\n".join(head) + "\nenv -0"], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"}
    ).stdout.split(b"\0")
    variables = dict(line.decode().split("=", 1) for line in lines if b"=" in line)
    assert {name: variables.get(name) for name in expected} == expected
    assert variables["TUNESMITH_SCRATCH"] == value
    assert not Path("/tmp/tunesmith-was-here").exists()


def _script_of_exports(job: BatchJob, cluster: SlurmSite) -> list[str]:
    """The exported variables of the script, extracted from the text between the header and the body."""
    harmless = dataclasses.replace(job, run_dir=JOB.run_dir)
    text = script(harmless, cluster).replace(str(JOB.run_dir), "@")
    start, end = text.index("\nexport "), text.index("\n\n# The body of every Tunesmith")
    import shlex

    lines = text[start + 1 : end].removeprefix("export ").split("\nexport ")
    return [line.replace("=@", f"={shlex.quote(str(job.run_dir))}", 1) for line in lines]


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "gres", "interface"])
@pytest.mark.parametrize("value", [*HOSTILE, "", "--nodes=99", "#SBATCH"])
def test_hostile_values_for_sbatch_options_are_rejected(key, value, tmp_path):
    import yaml

    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"partition": "p", key: value}))
    with pytest.raises(InputError) as caught:
        load_site(path)
    assert f"`{key}`" in str(caught.value)
    assert "cluster.yaml:" in str(caught.value)


@pytest.mark.parametrize("name", ["a\nb", 'a"b', "a\\b"])
def test_a_path_that_cannot_be_quoted_in_a_script_is_rejected(name):
    with pytest.raises(InputError, match="batch script"):
        script(dataclasses.replace(JOB, run_dir=Path("/runs") / name), SlurmSite(partition="p"))


def test_a_container_replaces_the_interpreter(tmp_path):
    cluster = SlurmSite(partition="p", container=["env", "WORD=it's two"], python="/bin/echo")
    wrapper = tmp_path / "python"
    wrapper.write_text(container_script(cluster))
    output = subprocess.run(["sh", wrapper, "a b", "$HOME"], capture_output=True, text=True, check=True).stdout
    assert output == "a b $HOME\n"
    assert environment(JOB, cluster, SCRIPTS, "python")["TUNESMITH_PYTHON"] == "/shared/runs/support-bot/jobs/python"


def test_an_unknown_key_or_file_gives_one_clear_message(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("partition: p\nacount: me\n")
    with pytest.raises(InputError, match=r"cluster.yaml:2: `acount`: unknown key"):
        load_site(path)
    with pytest.raises(InputError, match="cluster init"):
        find_site(str(tmp_path / "none.yaml"))


def test_the_scripts_pass_shellcheck(tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: tools/debian_packages.sh installs it on Debian")
    files = sorted(SCRIPTS.glob("*.sh"))
    assert len(files) >= 5
    whole = tmp_path / "whole.sh"
    whole.write_text(script(JOB, SlurmSite(partition="p", modules=["a b"])))
    ended = subprocess.run(
        ["shellcheck", "--external-sources", *files, whole], capture_output=True, text=True, cwd=SCRIPTS.parent
    )
    assert ended.returncode == 0, ended.stdout


def test_every_key_of_a_cluster_file_is_documented():
    text = (SCRIPTS.parent / "docs" / "slurm.md").read_text(encoding="utf-8")
    assert not [key for key in SlurmSite.model_fields if f"`{key}`" not in text]
