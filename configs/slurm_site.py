"""A Slurm site's settings, one YAML file per site: partition, account, GPU name, modules, container, network.

Values used in `#SBATCH` lines are single words of safe characters; values used in shell commands are quoted when the
script is written. So no value can end a line or add an option.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from tunesmith.configs.sections.section import Section
from tunesmith.configs.yaml_tree import InvalidYaml, key_name, read_tree
from tunesmith.errors import InputError

SHIPPED = Path(__file__).parent / "clusters"
MAX_BYTES = 1 << 20

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:/@+\[\]=&|*-]{0,199}$")]
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,500}$")]


class Cpu(Section):
    """Where jobs without GPUs run, such as data preparation."""

    partition: Word | None = None
    qos: Word | None = None
    cpus_per_node: PositiveInt = 8
    memory_gib: PositiveInt | None = None


class SlurmSite(Section):
    """A site. Only the partition is required; omitted options use the site's defaults."""

    partition: Word
    """Partition of training jobs."""
    account: Word | None = None
    """Account that jobs are charged to."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Required node features, such as `a100|h100`."""
    gres: Word = "gpu"
    """The site's GPU resource, without a count: `gpu:h100` becomes `gpu:h100:4`."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs to request on each node if the recipe does not set resources.gpus_per_node."""
    cpus_per_node: PositiveInt = 8
    """Cores to request on each node of a training job."""
    memory_gib: PositiveInt | None = None
    """Memory per node, in GiB; null: the partition's default."""
    time_limit_minutes: PositiveInt = 1440
    """Time limit of a job. A run that reaches it saves a checkpoint and is requeued."""
    save_before_s: Annotated[int, Field(ge=10, le=3600)] = 300
    """Seconds before the time limit at which the job is signalled to save."""
    join_s: PositiveInt = 300
    """Timeout in seconds for the nodes of a job to join."""
    max_lives: PositiveInt = 20
    """Maximum number of times a job starts: the first start and every requeue."""
    modules: tuple[Text, ...] = ()
    """Modules to load with `module load` before anything else."""
    container: tuple[Text, ...] = ()
    """A command and its first arguments, before the interpreter: [apptainer, exec, --nv, /images/tunesmith.sif]."""
    python: Text | None = None
    """Absolute path of the Python interpreter on the nodes; null: the interpreter that submits the job."""
    interface: Word | None = None
    """Network interface between nodes, such as `ib0`; null: the one that the node names resolve to."""
    scratch: Text | None = None
    """A directory on a fast disk of each node, in which every job creates a subdirectory. Null: $TMPDIR, or /tmp."""
    min_scratch_gib: NonNegativeInt = 1
    """Free space in GiB below which a node counts as unhealthy."""
    max_clock_offset_s: PositiveInt = 60
    """Maximum clock offset from the first node, in seconds; a node beyond it counts as unhealthy."""
    cpu: Cpu | None = None
    """Settings of jobs without GPUs; null: the same as for training jobs."""


def find_site(text: str | None) -> tuple[SlurmSite, str]:
    """Return a site and its path, by file or by the name of a shipped one; default: `cluster.yaml` in this directory.

    Raises InputError with every problem of the file.
    """
    names = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    path = Path(text or "cluster.yaml")
    if text in names and not path.exists():
        path = SHIPPED / f"{text}.yaml"
    if not path.is_file():
        raise InputError(
            "cluster file not found" if text is None else f"cluster file {text!r} not found",
            where=str(path),
            remedy="create cluster.yaml with `tunesmith cluster init`, or pass --cluster "
            f"(shipped: {', '.join(names)})",
        )
    return load_site(path), str(path)


def load_site(path: Path) -> SlurmSite:
    """Load a cluster file. Raises InputError with file, line and key of every problem."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError("this file is too large for a cluster file", where=str(path))
        tree = read_tree(path.read_text(encoding="utf-8-sig"), str(path))
    except (InvalidYaml, UnicodeDecodeError) as error:
        raise InputError(f"the cluster file is not valid YAML: {error}", where=str(path)) from None
    except OSError as error:
        raise InputError(f"the cluster file cannot be read: {error.strerror}", where=str(path)) from None
    if not isinstance(tree.values, dict):
        raise InputError("the cluster file is not a mapping", where=str(path), remedy="add `partition: NAME` to it")
    try:
        return SlurmSite.model_validate_json(json.dumps(tree.values), strict=True)
    except ValidationError as error:
        findings = error.errors(include_url=False)
    lines = []
    for finding in findings:
        key = key_name(finding["loc"])
        lines.append(f"  {tree.place(finding['loc'])}: `{key}`: {_message(finding)}")
    keys = ", ".join(SlurmSite.model_fields)
    raise InputError(
        "the cluster file has problems:\n" + "\n".join(lines), where=str(path), remedy=f"its keys are {keys}"
    )


def _message(finding) -> str:
    if finding["type"] == "extra_forbidden":
        return "unknown key"
    if finding["type"] == "string_pattern_mismatch":
        return "contains characters that are not allowed in a batch script, such as spaces, quotes or line breaks"
    return str(finding["msg"])
