"""The weight files of a base model, read from their headers and index. Never imports torch."""

import json
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError

INDEX = "model.safetensors.index.json"

Shapes = dict[str, list[int]]


def read_object(path: Path) -> Any:
    """Read a JSON object. InputError if the file cannot be read or contains anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        problem = "it is not a JSON object"
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    raise InputError(
        f"the model's {path.name} cannot be read: {problem}", where=str(path), remedy="download the model again"
    )


def weight_shapes(directory: Path) -> Shapes:
    """Return the shape of each tensor by name, from the headers of the safetensors files. InputError if a file is
    missing or truncated."""
    index = directory / INDEX
    located = _weight_map(index) if index.is_file() else {}
    files = [directory / name for name in sorted(set(located.values()))] or [directory / "model.safetensors"]
    if not index.is_file() and not files[0].is_file():
        pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in sorted(directory.glob(pattern))]
        raise InputError(
            f"the weights are in {pickles[0]}, a pickle, which can execute code when loaded"
            if pickles
            else "there are no weights",
            where=str(directory),
            remedy=f"convert them once, in a restricted process: tunesmith convert {directory} {directory}-safetensors"
            if pickles
            else "model.safetensors is missing; of a model that is published as .bin files: hf download it, then run "
            "tunesmith convert",
        )
    shapes: Shapes = {}
    for path in files:
        if not path.is_file():
            raise InputError(f"{path.name} is missing", where=str(directory), remedy="download the model again")
        stored = _header_shapes(path)
        if lost := sorted(name for name, file in located.items() if file == path.name and name not in stored):
            raise InputError(
                f"{len(lost)} weights are not in {path.name}, where {INDEX} locates them, such as {lost[0]}",
                where=str(index),
                remedy="download the model again",
            )
        shapes |= stored
    return shapes


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each weight. A name with a folder would leave the model's directory."""
    located = read_object(index).get("weight_map")
    if not isinstance(located, dict) or not located:
        raise InputError(
            "the index of the weights has no weight_map", where=str(index), remedy="download the model again"
        )
    for name, file in located.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(
                f"{name} is located in {file!r}, which is not a file name",
                where=f"{index}: weight_map",
                remedy="download the model again",
            )
    return located


def _header_shapes(path: Path) -> Shapes:
    """Format: 8 bytes of header length, the header as JSON, then the data (https://huggingface.co/docs/safetensors)."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes instead of {8 + length + end}")
        return {name: entry["shape"] for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "download the model again"
        raise InputError(f"{path.name} is damaged: {error}", where=str(path), remedy=remedy) from error
