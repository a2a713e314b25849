"""PyTorch's weight files (`.bin`), which are pickles: conversion to safetensors in a restricted process. Never imports
torch."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError, RunFault
from tunesmith.modeling.base_model.weight_files import read_object, weight_shapes
from tunesmith.os_errors import remedy_for

PATTERNS = ("*.bin", "*.pt", "*.pth")
PICKLE_INDEX = "pytorch_model.bin.index.json"
_MODULE = "tunesmith.modeling.loading.pickles"
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
_NOT_COPIED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".onnx", ".safetensors", ".py")
"""Ends of files that are not copied: weights in other formats, pickles, and code."""
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Variables that the restricted process has: no tokens or keys."""


def pickles_in(directory: Path) -> list[str]:
    """Return the names of the weight files in a directory that are pickles."""
    return [
        path.name
        for pattern in PATTERNS
        for path in sorted(directory.glob(pattern))
        if not path.name.startswith(_NOT_WEIGHTS)
    ]


def weight_pickles(directory: Path) -> list[Path]:
    """Return the files that hold the weights of a model directory. InputError if they are missing or ambiguous."""
    index = directory / PICKLE_INDEX
    if index.is_file():
        located = read_object(index).get("weight_map")
        names = sorted(set(located.values())) if isinstance(located, dict) else []
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise InputError("the index of the weights has no valid weight_map", where=str(index))
    else:
        candidates = pickles_in(directory)
        names = ["pytorch_model.bin"] if "pytorch_model.bin" in candidates else candidates
        if len(names) != 1:
            raise InputError(
                f"{len(names)} files may be the weights ({', '.join(names[:3])})"
                if names
                else "there are no .bin weights",
                where=str(directory),
                remedy=f"use a directory with pytorch_model.bin, or with {PICKLE_INDEX}",
            )
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise InputError(f"{missing[0]} is missing", where=str(directory), remedy="download the model again")
    return [directory / name for name in names]


def safetensors_name(name: str, *, alone: bool) -> str:
    """Return the name of the converted file. alone: whether it is the only one."""
    return "model.safetensors" if alone else Path(name).stem.replace("pytorch_model", "model") + ".safetensors"


def convert_pickles(source: Path, target: Path) -> dict[str, Any]:
    """Write a copy of a model directory with its `.bin` weights as safetensors to the new directory `target`.

    Returns what the restricted process reports (see modeling/loading/pickles.py). The target appears when it is
    complete.
    InputError if the source is no such model or the target exists, RunFault if the target cannot be written.
    """
    if not source.is_dir() or not (source / "config.json").is_file():
        raise InputError("this is not a model directory", where=str(source), remedy="use a directory with config.json")
    weight_pickles(source)
    if target.exists():
        raise InputError("the target exists", where=str(target), remedy="choose a new directory")
    temporary = target.with_name(f"{target.name}.tmp.{os.getpid()}")
    try:
        for leftover in target.parent.glob(f"{target.name}.tmp.*"):
            if not _is_running(leftover.suffix[1:]):
                shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        result = _run(source, temporary)
        _copy_others(source, temporary)
        weight_shapes(temporary)  # as every reader does
        temporary.rename(target)
        return result
    except OSError as error:
        remedy = remedy_for(error, "free disk space, or choose another directory")
        raise RunFault(
            f"the converted model could not be written: {error}", where=str(target), remedy=remedy
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run(source: Path, temporary: Path) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "HOME": str(temporary)}
    command = [sys.executable, "-P", "-m", _MODULE, str(source.resolve()), str(temporary.resolve())]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if ended.returncode == 0:
        return json.loads(ended.stdout.splitlines()[-1])
    lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
    if ended.returncode == 2:
        raise InputError("\n".join(lines))
    what = lines[-1]
    if ended.returncode < 0:
        what = f"killed by {signal.Signals(-ended.returncode).name} (memory, or a limit of the restricted process)"
    raise RunFault(
        f"the conversion failed: {what}", where=str(source), remedy="free memory and disk space, and try again"
    )


def _copy_others(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer, templates and license."""
    for path in sorted(source.iterdir()):
        others = path.name.endswith(_NOT_COPIED) or path.name == PICKLE_INDEX or path.name.startswith(".")
        if path.is_file() and not others and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def _is_running(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()
