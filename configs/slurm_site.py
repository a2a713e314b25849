"""What a site's Slurm wants to know: partition, account, GPUs' name, modules, container, network. One YAML file a site.

Everything that reaches an `#SBATCH` line is one word of harmless characters; everything that reaches the shell is
quoted where the script is written. So no value can end a line or add an option.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from tunesmith.configs.recipe import Section
from tunesmith.configs.yaml_tree import NotYaml, key_name, read_tree
from tunesmith.errors import InputError

SHIPPED = Path(__file__).parent / "clusters"
MAX_BYTES = 1 << 20

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:/@+\[\]=&|*-]{0,199}$")]
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,500}$")]


class Cpu(Section):
    """Where jobs run that need no GPU: preparing rows."""

    partition: Word | None = None
    qos: Word | None = None
    cpus_per_node: PositiveInt = 8
    memory_gib: PositiveInt | None = None


class SlurmSite(Section):
    """A site. Only the partition is needed; what is left out is left to the site's own defaults."""

    partition: Word
    """Where training jobs run."""
    account: Word | None = None
    """Who pays."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Node features that are asked for, such as `a100|h100`."""
    gres: Word = "gpu"
    """The site's name of a GPU; the number follows by itself: `gpu:h100` becomes `gpu:h100:4`."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs that are asked for on each node where the recipe does not say (resources.gpus_per_node)."""
    cpus_per_node: PositiveInt = 8
    """Cores that are asked for on each node of a training job."""
    memory_gib: PositiveInt | None = None
    """Memory on each node, in GiB; null: the partition's default."""
    time_limit_minutes: PositiveInt = 1440
    """How long a job may run before it is asked to save and is requeued."""
    save_before_s: Annotated[int, Field(ge=10, le=3600)] = 300
    """Seconds before the limit at which it is asked to."""
    join_s: PositiveInt = 300
    """Seconds in which the nodes of a job must have found each other."""
    max_lives: PositiveInt = 20
    """Times that a job starts at most: the first start, and every requeue."""
    modules: tuple[Text, ...] = ()
    """Loaded by `module load` before anything else."""
    container: tuple[Text, ...] = ()
    """A command and its first arguments, before the interpreter: [apptainer, exec, --nv, /images/tunesmith.sif]."""
    python: Text | None = None
    """The interpreter on the nodes, absolute; null: the one that submits."""
    interface: Word | None = None
    """The network interface between nodes, such as `ib0`; null: whatever the nodes' names resolve to."""
    scratch: Text | None = None
    """A directory on a fast disk of each node, in which every job makes one of its own. Null: $TMPDIR, or /tmp."""
    min_scratch_gib: NonNegativeInt = 1
    """Free space below which a node counts as unhealthy."""
    max_clock_offset_s: PositiveInt = 60
    """A node whose clock is further from the first node's counts as unhealthy."""
    cpu: Cpu | None = None
    """Null: jobs without GPUs run where the others do."""


def find_site(text: str | None) -> tuple[SlurmSite, str]:
    """A site by its file, or by the name of a shipped one; by default `cluster.yaml` here. Also where it was found.

    Raises InputError with everything that is wrong with it.
    """
    names = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    path = Path(text or "cluster.yaml")
    if text in names and not path.exists():
        path = SHIPPED / f"{text}.yaml"
    if not path.is_file():
        raise InputError(
            "there is no file that describes this cluster" if text is None else f"there is no cluster file {text!r}",
            where=str(path),
            remedy=f"`tunesmith cluster init` writes cluster.yaml; or name one with --cluster (shipped: "
            f"{', '.join(names)})",
        )
    return load_site(path), str(path)


def load_site(path: Path) -> SlurmSite:
    """Raises InputError that names file, line and key of everything that is wrong."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError("this file is too large for a cluster's", where=str(path))
        tree = read_tree(path.read_text(encoding="utf-8-sig"), str(path))
    except (NotYaml, UnicodeDecodeError) as error:
        raise InputError(f"the cluster file is not YAML: {error}", where=str(path)) from None
    except OSError as error:
        raise InputError(f"the cluster file cannot be read: {error.strerror}", where=str(path)) from None
    if not isinstance(tree.values, dict):
        raise InputError("the cluster file is no section", where=str(path), remedy="write `partition: NAME` into it")
    try:
        return SlurmSite.model_validate_json(json.dumps(tree.values), strict=True)
    except ValidationError as error:
        findings = error.errors(include_url=False)
    lines = []
    for finding in findings:
        key = key_name(finding["loc"])
        lines.append(f"  {tree.place(finding['loc'])}: `{key}`: {_in_words(finding)}")
    keys = ", ".join(SlurmSite.model_fields)
    raise InputError(
        "the cluster file has problems:\n" + "\n".join(lines), where=str(path), remedy=f"its keys are {keys}"
    )


def _in_words(finding) -> str:
    if finding["type"] == "extra_forbidden":
        return "no such key"
    if finding["type"] == "string_pattern_mismatch":
        return "holds characters that a batch script must not get (spaces, quotes, line breaks and the like)"
    return str(finding["msg"])
