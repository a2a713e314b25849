"""The batch script of a Slurm job: `#SBATCH` lines, its input as exported variables, and the body from slurm/.

Values in `#SBATCH` lines are words validated by the schema of the cluster file, numbers, or quoted paths. Values of
exported variables are quoted for the shell. The body contains no values.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tunesmith.slurm
from tunesmith.configs.slurm_site import SlurmSite
from tunesmith.errors import InputError
from tunesmith.rundir.paths import RunDir

if TYPE_CHECKING:
    from tunesmith.launcher.backends.base import Backend

SCRIPTS = Path(next(iter(tunesmith.slurm.__path__))).resolve()
PASSED_ON = ("PYTHONPATH", "TUNESMITH_CACHE", "HF_HOME", "HF_HUB_OFFLINE")
"""Variables of the submitting environment that the job needs; sites may not pass on any others."""


@dataclass(frozen=True)
class BatchJob:
    """One batch job. array: number of runs below run_dir (000, 001, ...), one task each; 0: run_dir is the run.
    parallel: maximum number of array tasks at a time; 0: unlimited."""

    name: str
    stage: str
    run_dir: Path
    working_dir: Path
    nodes: int = 1
    gpus_per_node: int = 0
    launcher: str = "ray"
    array: int = 0
    parallel: int = 0


def script(job: BatchJob, site: SlurmSite, *, slurm: Path = SCRIPTS, python: str = sys.executable) -> str:
    """The complete batch script. Raises InputError if a path cannot be quoted in it."""
    body = (slurm / "job.sh").read_text(encoding="utf-8").removeprefix("#!/bin/bash\n")
    exports = environment(job, site, slurm, python)
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    return "\n".join(["#!/bin/bash", *header(job, site), "", *lines, "", body])


def header(job: BatchJob, site: SlurmSite) -> list[str]:
    """The `#SBATCH` lines. Jobs without GPUs use the `cpu` section of the cluster file."""
    cpu = site.cpu if job.stage == "prepare" else None
    logs = RunDir(job.run_dir).logs if not job.array else job.run_dir
    options: dict[str, str | int | None] = {
        "job-name": f"tunesmith-{job.name}-{job.stage}",
        "partition": (cpu and cpu.partition) or site.partition,
        "account": site.account,
        "qos": (cpu and cpu.qos) or site.qos,
        "constraint": None if cpu else site.constraint,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpu.cpus_per_node if cpu else site.cpus_per_node,
        "mem": _gib(cpu.memory_gib if cpu else site.memory_gib),
        "gres": f"{site.gres}:{job.gpus_per_node}" if job.gpus_per_node else None,
        "time": site.time_limit_minutes,
        "signal": f"B:USR2@{site.save_before_s}",
        "array": _array(job) if job.array else None,
        "chdir": _path(job.working_dir),
        "output": _path(logs / ("slurm-%A_%a.log" if job.array else "slurm-%j.log"), replaced=("%A", "%a", "%j")),
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    return [*lines, "#SBATCH --open-mode=append", "#SBATCH --requeue"]


def environment(job: BatchJob, site: SlurmSite, slurm: Path, python: str) -> dict[str, str]:
    """The variables that the body reads. The interpreter is the container script, that of the cluster file, or the
    current one."""
    own = {
        "TUNESMITH_RUN_DIR": str(job.run_dir),
        "TUNESMITH_STAGE": job.stage,
        "TUNESMITH_LAUNCHER": job.launcher,
        "TUNESMITH_PYTHON": str(container_file(job.run_dir)) if site.container else site.python or python,
        "TUNESMITH_SCRIPTS": str(slurm),
        "TUNESMITH_MAX_LIVES": str(site.max_lives),
        "TUNESMITH_GPUS": str(job.gpus_per_node),
        "TUNESMITH_INTERFACE": site.interface or "",
        "TUNESMITH_SCRATCH": site.scratch or "",
        "TUNESMITH_MIN_SCRATCH_GIB": str(site.min_scratch_gib),
        "TUNESMITH_MAX_CLOCK_OFFSET_S": str(site.max_clock_offset_s),
        "TUNESMITH_MODULES": "\n".join(site.modules),
        "TUNESMITH_JOIN_S": str(site.join_s),
        "TUNESMITH_START_TIMEOUT_S": str(site.join_s),
    }
    return {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)} | own


def in_allocation() -> "Backend":
    """The back end in the driver process of a job. Raises InputError outside of a job."""
    if os.environ.get("TUNESMITH_LAUNCHER") == "torchrun":
        from tunesmith.launcher.slurm.torchrun import Torchrun

        return Torchrun()
    if not os.environ.get("RAY_ADDRESS"):
        raise InputError("not in the batch step of a Tunesmith job", remedy="submit it: tunesmith train --on slurm")
    from tunesmith.launcher.ray.backend import RayBackend

    return RayBackend(os.environ["RAY_ADDRESS"])


def container_file(run_dir: Path) -> Path:
    return RunDir(run_dir).jobs / "python"


def container_script(site: SlurmSite, python: str = sys.executable) -> str:
    """The script that replaces the interpreter if a site runs everything in a container."""
    command = [*site.container, site.python or python]
    return f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'


def _gib(memory: int | None) -> str | None:
    return None if memory is None else f"{memory}G"


def _array(job: BatchJob) -> str:
    return f"0-{job.array - 1}" + (f"%{job.parallel}" if job.parallel else "")


def _path(path: Path, replaced: tuple[str, ...] = ()) -> str:
    """Quote a path for sbatch; double percent signs that sbatch would replace."""
    text = str(path)
    if any(ord(sign) < 32 or sign in '\\"\x7f' for sign in text):
        raise InputError(
            "the path cannot be used in a batch script: it contains a double quote, a backslash or a control character",
            where=repr(text),
            remedy="choose another directory (--run-dir)",
        )
    if replaced:
        head, name = os.path.split(text)
        text = os.path.join(head.replace("%", "%%"), name)
    return f'"{text}"'
