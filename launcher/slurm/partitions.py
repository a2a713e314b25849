"""Generates a cluster file from the output of `sinfo`; users fill in what sinfo does not report."""

import re
import subprocess
from dataclasses import dataclass, replace

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
    max_nodes: int | None = None
    """Of one job; None: no limit beyond the number of nodes."""

    @property
    def largest_job(self) -> int:
        """Number of nodes of the largest job."""
        return self.num_nodes if self.max_nodes is None else min(self.num_nodes, self.max_nodes)


def survey() -> list[Partition]:
    """The partitions that are up. Raises InputError if Slurm is not installed or does not respond."""
    try:
        output = subprocess.run(
            ["sinfo", "--noheader", "--format=%P|%a|%l|%D|%c|%m|%G|%s"],
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
    """Parse sinfo's lines (partition, state, limit, nodes, cores, MiB, gres, job size), one per kind of node."""
    partitions: dict[str, Partition] = {}
    for line in output.splitlines():
        name, up, limit, nodes, cpus, memory, gres, job_size = [*line.strip().split("|"), *[""] * 8][:8]
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
            max_nodes=_largest(job_size),
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
                here.max_nodes,
            )
        partitions[here.name] = here
    return list(partitions.values())


def require_fits(partitions: list[Partition], names: str, *, nodes: int, minutes: int, has_qos: bool = False) -> None:
    """Raise InputError if no partition of a job (names: joined by commas) ever has as many nodes, or allows its time.

    Slurm accepts such a job and keeps it pending forever. A partition that sinfo does not show is left to sbatch.
    has_qos: the job names a quality of service, which may override the limits of a partition, but not its nodes.
    """
    known = {partition.name: partition for partition in partitions}
    used = [known[name] for name in names.split(",") if name in known]
    if not used or len(used) < len(names.split(",")):
        return
    if has_qos:
        used = [replace(partition, max_nodes=None, minutes=None) for partition in used]
    if all(nodes > partition.largest_job for partition in used):
        best = max(used, key=lambda partition: partition.largest_job)
        limit = f", of which a job may use {best.max_nodes}" if best.largest_job < best.num_nodes else ""
        raise InputError(
            f"the run needs {nodes} nodes, but partition {best.name} has {best.num_nodes}{limit}",
            where=f"--nodes {nodes}",
            remedy=f"use --nodes {best.largest_job} or fewer, or another partition in the cluster file",
        )
    limits = [partition.minutes for partition in used]
    if all(limit is not None and minutes > limit for limit in limits):
        longest = max(limit for limit in limits if limit is not None)
        raise InputError(
            f"a job of {minutes} minutes does not fit: partition {names} allows {longest}",
            where="time_limit_minutes of the cluster file",
            remedy=f"set time_limit_minutes to {longest} or less: a run that reaches the limit saves and is requeued",
        )


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


def _largest(job_size: str) -> int | None:
    """`1-4` or `4` -> 4; None for `1-infinite` and anything invalid."""
    last = job_size.strip().rpartition("-")[2]
    return int(last) if last.isdigit() else None


def _number(text: str) -> int:
    """`64`, `64+` (minimum of different nodes) -> 64."""
    match = re.match(r"\d+", text.strip())
    return int(match.group()) if match else 0
