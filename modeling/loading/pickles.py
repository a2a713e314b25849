"""Conversion of PyTorch's weight files to safetensors: python -m tunesmith.modeling.loading.pickles SOURCE TARGET

Only for the restricted process that `tunesmith convert` starts. Prints a JSON object: restrictions, number of tensors
and bytes, and the names of shared tensors that are not stored twice.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import InputError, TunesmithError
from tunesmith.modeling.base_model.pickle_files import safetensors_name, weight_pickles
from tunesmith.modeling.base_model.weight_files import INDEX, read_object
from tunesmith.modeling.loading.restrictions import restrict

_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|predictions\.decoder)\.weight$")
"""Heads that transformers ties to the embedding, and does not save if config.json says so."""
_BYTES_PER_BYTE = 4
"""Address space per byte of the largest file: the file, its tensors, copies of shared ones, and the file read back."""
_LIBRARY_BYTES = 16 << 30
"""Address space of Python and torch, most of which is never used."""
_SECONDS, _BYTES_PER_SECOND = 600, 10 << 20


def convert(source: Path, target: Path) -> dict[str, Any]:
    """Write the weights of `source` to the directory `target`, one safetensors file for each file, and an index for
    several. Every file is read back and compared bit by bit. InputError if a file has anything but tensors."""
    paths = weight_pickles(source)
    sizes = [path.stat().st_size for path in paths]
    tied = read_object(source / "config.json").get("tie_word_embeddings", True) is not False
    in_force = restrict(
        target.resolve(),
        memory_bytes=_LIBRARY_BYTES + _BYTES_PER_BYTE * max(sizes),
        file_bytes=2 * max(sizes) + (64 << 20),  # shared tensors are stored once for each name
        cpu_s=_SECONDS + sum(sizes) // _BYTES_PER_SECOND,
    )
    located: dict[str, str] = {}
    total, dropped = 0, []
    for path in paths:
        tensors = _read(path)
        kept = {name: tensors[name] for name in _stored_names(tensors, tied)}
        dropped += sorted(tensors.keys() - kept.keys())
        name = safetensors_name(path.name, alone=len(paths) == 1)
        _write(kept, target / name)
        located |= dict.fromkeys(kept, name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
    if len(paths) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(located.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return {"restrictions": in_force, "num_tensors": len(located), "num_bytes": total, "dropped": dropped}


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or malicious file causes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the file is damaged, or contains more than tensors: {lines[0]}",
            where=str(path),
            remedy="download it again; files with other objects are never loaded: use safetensors of the publisher",
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise InputError(
            "the file is not a dictionary of tensors by name",
            where=str(path),
            remedy="convert the weights of the model alone, not a training checkpoint",
        )
    return content


def _stored_names(tensors: dict[str, torch.Tensor], tied: bool) -> list[str]:
    """The names to store: all but heads that are another tensor of the file, if config.json ties them."""
    bodies = {_place(tensor) for name, tensor in tensors.items() if not _HEAD.search(name) and tensor.numel()}
    return [name for name, tensor in tensors.items() if not (tied and _HEAD.search(name) and _place(tensor) in bodies)]


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a file and compare it, read back. Tensors that share memory are stored once for each name."""
    save_file(
        {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        path,
        {"format": "pt"},
    )
    written = load_file(path)
    for name, tensor in tensors.items():
        if name not in written or not _same_bits(tensor, written[name]) or len(written) != len(tensors):
            raise InputError(
                f"{name} was not written correctly", where=str(path), remedy="check the disk and its space"
            )


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return torch.equal(*bits)  # as bytes: NaN is not equal to itself


if __name__ == "__main__":
    try:
        print(json.dumps(convert(Path(sys.argv[1]), Path(sys.argv[2]))))
    except TunesmithError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.exit_code))
