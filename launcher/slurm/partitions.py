"""What a Slurm cluster says of itself, as a cluster file: `sinfo` is asked, the rest is left to people."""

import re
import subprocess
from dataclasses import dataclass

from tunesmith.errors import InputError

ANSWER_S = 30.0
_GPU = re.compile(r"(gpu(?::[A-Za-z][\w.-]*)?):(\d+)")


@dataclass(frozen=True)
class Partition:
    """gres: Slurm's name of a GPU there, such as `gpu:h100`; empty without any. Of several kinds of node: the weakest.
    minutes: the time limit; None: none. memory_gib: of a node."""

    name: str
    is_default: bool
    minutes: int | None
    num_nodes: int
    cpus: int
    memory_gib: int
    gres: str
    gpus: int


def survey() -> list[Partition]:
    """The partitions that are up. Raises InputError where there is no Slurm here, or it does not answer."""
    try:
        told = subprocess.run(
            ["sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G"],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=True,
        ).stdout
    except FileNotFoundError:
        raise InputError(
            "there is no Slurm here: the command sinfo was not found", remedy="run it on a login node of the cluster"
        ) from None
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        raise InputError(f"Slurm does not answer: {' '.join(words.split())}", where="sinfo") from None
    return partitions_of(told)


def partitions_of(told: str) -> list[Partition]:
    """From sinfo's lines (partition, state, limit, nodes, cores, MiB, gres); one a kind of node."""
    found: dict[str, Partition] = {}
    for line in told.splitlines():
        name, up, limit, nodes, cpus, memory, gres = [*line.strip().split("|"), *[""] * 7][:7]
        if up != "up":
            continue
        gpu = _GPU.search(gres)
        here = Partition(
            name=name.rstrip("*"),
            is_default=name.endswith("*"),
            minutes=minutes_of(limit),
            num_nodes=_number(nodes),
            cpus=_number(cpus),
            memory_gib=_number(memory) // 1024,
            gres=gpu.group(1) if gpu else "",
            gpus=int(gpu.group(2)) if gpu else 0,
        )
        other = found.get(here.name)
        if other is not None:
            here = Partition(
                here.name,
                here.is_default,
                here.minutes,
                here.num_nodes + other.num_nodes,
                min(here.cpus, other.cpus),
                min(here.memory_gib, other.memory_gib),
                here.gres if here.gpus <= other.gpus else other.gres,
                min(here.gpus, other.gpus),
            )
        found[here.name] = here
    return list(found.values())


def minutes_of(limit: str) -> int | None:
    """`1-12:00:00` -> 2160; None for `infinite` and what cannot be read."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if not match:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def cluster_text(partitions: list[Partition], wanted: str | None = None) -> str:
    """A cluster file for the named partition; otherwise for the largest with GPUs, or the default one.

    Raises InputError where there is no such partition.
    """
    chosen = _chosen(partitions, wanted)
    lines = [
        f"# Written by `tunesmith cluster init` from what sinfo told: {chosen.num_nodes} nodes of {chosen.cpus} cores"
        + (f" and {chosen.gpus} GPUs." if chosen.gpus else "."),
        f"partition: {chosen.name}",
        "# account: my-project         # who pays, where the site asks for it",
        "# qos: normal",
    ]
    if chosen.gpus:
        lines += [f"gres: {chosen.gres}", f"gpus_per_node: {chosen.gpus}"]
    lines.append(f"cpus_per_node: {max(1, chosen.cpus)}")
    lines.append(f"time_limit_minutes: {min(chosen.minutes or 1440, 1440)}")
    lines += [
        "save_before_s: 300            # longer than one step and one save",
        "# modules: [cuda]             # what `module load` must bring",
        "# container: [apptainer, exec, --nv, /images/tunesmith.sif]",
        "# interface: ib0              # the network between nodes, where it is not the one their names resolve to",
        "# scratch: /scratch           # a fast disk of each node",
    ]
    others = [part for part in partitions if not part.gpus and part.name != chosen.name]
    if chosen.gpus and others:
        cpu = max(others, key=lambda part: part.num_nodes)
        lines.append(f"cpu: {{partition: {cpu.name}, cpus_per_node: {max(1, min(cpu.cpus, 32))}}}  # prepares the rows")
    return "\n".join(lines) + "\n"


def _chosen(partitions: list[Partition], wanted: str | None) -> Partition:
    names = ", ".join(part.name for part in partitions)
    if wanted is not None:
        for part in partitions:
            if part.name == wanted:
                return part
        raise InputError(f"there is no partition {wanted!r} that is up", where="--partition", remedy=f"there: {names}")
    if not partitions:
        raise InputError("no partition of this cluster is up", where="sinfo", remedy="ask who runs it")
    return max(partitions, key=lambda part: (part.gpus > 0, part.is_default, part.num_nodes))


def _number(text: str) -> int:
    """`64`, `64+` (of unlike nodes: the least) -> 64."""
    match = re.match(r"\d+", text.strip())
    return int(match.group()) if match else 0
