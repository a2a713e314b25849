"""The batch script: its header against recorded texts, its shell against shellcheck, its values against mischief."""

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
MISCHIEF = [
    "two words",
    'it\'s "quoted"',
    "a\n#SBATCH --nodes=99\nb",
    "$(touch /tmp/tunesmith-was-here) `id` $HOME",
    "; rm -rf / #",
    "back\\slash %j",
]


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_the_header_of_each_shipped_cluster_file_is_as_recorded(name):
    """Both stages that differ; after a wanted change: look at the difference and copy it."""
    cluster, _ = find_site(name)
    prepare = dataclasses.replace(JOB, stage="prepare", nodes=1, gpus_per_node=0)
    made = "\n".join([*header(JOB, cluster), "", *header(prepare, cluster)]) + "\n"
    assert made == (RECORDED / f"{name}.txt").read_text(encoding="utf-8")


def test_every_recorded_header_belongs_to_a_shipped_file():
    assert {path.stem for path in RECORDED.glob("*.txt")} == {path.stem for path in SHIPPED.glob("*.yaml")}


def test_no_option_stands_below_the_first_command():
    text = script(JOB, SlurmSite(partition="p"))
    commands = [number for number, line in enumerate(text.splitlines()) if line and not line.startswith("#")]
    options = [number for number, line in enumerate(text.splitlines()) if line.startswith("#SBATCH")]
    assert len(options) > 8
    assert max(options) < min(commands)


@pytest.mark.parametrize("value", MISCHIEF)
def test_what_reaches_the_shell_arrives_as_it_was_written(value, tmp_path):
    """Modules, scratch, interpreter and paths: bash reads the script's own lines, and gives every value back."""
    cluster = SlurmSite.model_construct(
        **{**SlurmSite(partition="p").model_dump(), "modules": [value], "scratch": value, "python": value}
    )
    job = dataclasses.replace(JOB, run_dir=Path("/runs") / value.replace("/", "_"))
    expected = environment(job, cluster, SCRIPTS, "python")
    head = [f"export {line}" for line in _script_of_exports(job, cluster)]
    told = subprocess.run(
        ["bash", "-c", "\n".join(head) + "\nenv -0"], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"}
    ).stdout.split(b"\0")
    found = dict(line.decode().split("=", 1) for line in told if b"=" in line)
    assert {name: found.get(name) for name in expected} == expected
    assert found["TUNESMITH_SCRATCH"] == value
    assert not Path("/tmp/tunesmith-was-here").exists()


def _script_of_exports(job: BatchJob, cluster: SlurmSite) -> list[str]:
    """The exported variables of the script, cut out of it by its first and its last name; the header is left out."""
    harmless = dataclasses.replace(job, run_dir=JOB.run_dir)
    text = script(harmless, cluster).replace(str(JOB.run_dir), "@")
    start, end = text.index("\nexport "), text.index("\n\n# The body of every Tunesmith")
    import shlex

    lines = text[start + 1 : end].removeprefix("export ").split("\nexport ")
    return [line.replace("=@", f"={shlex.quote(str(job.run_dir))}", 1) for line in lines]


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "gres", "interface"])
@pytest.mark.parametrize("value", [*MISCHIEF, "", "--nodes=99", "#SBATCH"])
def test_what_reaches_an_sbatch_line_is_one_harmless_word(key, value, tmp_path):
    import yaml

    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"partition": "p", key: value}))
    with pytest.raises(InputError) as refused:
        load_site(path)
    assert f"`{key}`" in str(refused.value)
    assert "cluster.yaml:" in str(refused.value)


@pytest.mark.parametrize("name", ["a\nb", 'a"b', "a\\b"])
def test_a_path_that_cannot_stand_in_a_script_is_refused(name):
    with pytest.raises(InputError, match="batch script"):
        script(dataclasses.replace(JOB, run_dir=Path("/runs") / name), SlurmSite(partition="p"))


def test_a_container_stands_in_for_the_interpreter(tmp_path):
    cluster = SlurmSite(partition="p", container=["env", "WORD=it's two"], python="/bin/echo")
    stand_in = tmp_path / "python"
    stand_in.write_text(container_script(cluster))
    told = subprocess.run(["sh", stand_in, "a b", "$HOME"], capture_output=True, text=True, check=True).stdout
    assert told == "a b $HOME\n"
    assert environment(JOB, cluster, SCRIPTS, "python")["TUNESMITH_PYTHON"] == "/shared/runs/support-bot/jobs/python"


def test_an_unknown_key_or_file_is_one_clear_message(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("partition: p\nacount: me\n")
    with pytest.raises(InputError, match=r"cluster.yaml:2: `acount`: unknown key"):
        load_site(path)
    with pytest.raises(InputError, match="cluster init"):
        find_site(str(tmp_path / "none.yaml"))


def test_the_shell_is_clean(tmp_path):
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


def test_the_page_names_every_key_of_a_cluster_file():
    text = (SCRIPTS.parent / "docs" / "slurm.md").read_text(encoding="utf-8")
    assert not [key for key in SlurmSite.model_fields if f"`{key}`" not in text]
