"""Generates a cluster file from the output of `sinfo`; users fill in what sinfo does not report."""

import re
import subprocess
from dataclasses import dataclass

from tunesmith.errors import InputError

ANSWER_S = 30.0
_GPU = re.compile(r"(gpu(?::[A-Za-z][\w.-]*)?):(\d+)")


@dataclass(frozen=True)
class Partition:
    """gres: Slurm's name of the GPUs, such as `gpu:h100`; empty without GPUs. minutes: time limit; None: unlimited.
    cpus, memory_gib, gpus: per node; the minimum if the nodes differ."""

    name: str
    is_default: bool
    minutes: int | None
    num_nodes: int
    cpus: int
    memory_gib: int
    gres: str
    gpus: int


def survey() -> list[Partition]:
    """The partitions that are up. Raises InputError if Slurm is not installed or does not respond."""
    try:
        output = subprocess.run(
            ["sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G"],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=True,
        ).stdout
    except FileNotFoundError:
        raise InputError(
            "Slurm is not installed here: command sinfo not found", remedy="run it on a login node of the cluster"
        ) from None
    except (OSError, subprocess.SubprocessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        raise InputError(f"Slurm does not respond: {' '.join(message.split())}", where="sinfo") from None
    return partitions_of(output)


def partitions_of(output: str) -> list[Partition]:
    """Parse sinfo's lines (partition, state, limit, nodes, cores, MiB, gres), one per kind of node."""
    partitions: dict[str, Partition] = {}
    for line in output.splitlines():
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
        other = partitions.get(here.name)
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
        partitions[here.name] = here
    return list(partitions.values())


def minutes_of(limit: str) -> int | None:
    """`1-12:00:00` -> 2160; None for `infinite` and anything invalid."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if not match:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def cluster_text(partitions: list[Partition], name: str | None = None) -> str:
    """A cluster file for the named partition; otherwise for the largest with GPUs, or the default one.

    Raises InputError if there is no such partition.
    """
    chosen = _chosen(partitions, name)
    lines = [
        f"# Written by `tunesmith cluster init` from sinfo: {chosen.num_nodes} nodes with {chosen.cpus} cores"
        + (f" and {chosen.gpus} GPUs." if chosen.gpus else "."),
        f"partition: {chosen.name}",
        "# account: my-project         # if the site requires one",
        "# qos: normal",
    ]
    if chosen.gpus:
        lines += [f"gres: {chosen.gres}", f"gpus_per_node: {chosen.gpus}"]
    lines.append(f"cpus_per_node: {max(1, chosen.cpus)}")
    lines.append(f"time_limit_minutes: {min(chosen.minutes or 1440, 1440)}")
    lines += [
        "save_before_s: 300            # longer than one step plus one checkpoint",
        "# modules: [cuda]             # modules to load",
        "# container: [apptainer, exec, --nv, /images/tunesmith.sif]",
        "# interface: ib0              # network between nodes, if not the one that their names resolve to",
        "# scratch: /scratch           # local disk of each node",
    ]
    others = [part for part in partitions if not part.gpus and part.name != chosen.name]
    if chosen.gpus and others:
        cpu = max(others, key=lambda part: part.num_nodes)
        lines.append(f"cpu: {{partition: {cpu.name}, cpus_per_node: {max(1, min(cpu.cpus, 32))}}}  # prepares the rows")
    return "\n".join(lines) + "\n"


def _chosen(partitions: list[Partition], name: str | None) -> Partition:
    names = ", ".join(part.name for part in partitions)
    if name is not None:
        for part in partitions:
            if part.name == name:
                return part
        raise InputError(f"no partition {name!r} is up", where="--partition", remedy=f"use one of {names}")
    if not partitions:
        raise InputError("no partition of this cluster is up", where="sinfo", remedy="ask its administrator")
    return max(partitions, key=lambda part: (part.gpus > 0, part.is_default, part.num_nodes))


def _number(text: str) -> int:
    """`64`, `64+` (minimum of different nodes) -> 64."""
    match = re.match(r"\d+", text.strip())
    return int(match.group()) if match else 0
