"""Conversion of a LoRA checkpoint to a servable adapter: the same tensors under peft's names, byte for byte.

Only the names in the safetensors header change, so no tensor library is needed and the values cannot differ. The last
checkpoint of a run has the same weights as its export, which passed the export gate: `same_tensors` compares the two.
"""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.configs.sections.method import Lora
from tunesmith.errors import RunFault
from tunesmith.model_files import ADAPTER_SETTINGS, settings_digest
from tunesmith.rundir.atomic import fsync_directory
from tunesmith.rundir.commit import seal, verify
from tunesmith.rundir.paths import RunDir

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CHECKPOINT_WEIGHTS = "model.safetensors"
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
_CHUNK_BYTES = 4 << 20


class TensorEntry(TypedDict):
    """A tensor in the header of a safetensors file. data_offsets: [start, end) in bytes, from the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class AdapterConfig(TypedDict):
    """peft's `adapter_config.json` of a LoRA adapter."""

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"]
    base_model_name_or_path: str
    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool
    bias: Literal["none"]
    inference_mode: bool
    target_modules: list[str]


def write_served_adapter(run: RunDir, checkpoint: Path, target: Path) -> None:
    """Convert a checkpoint of the run to an adapter in `target`; no-op if `target` exists.

    Written to a temporary directory, sealed with a manifest and renamed, so that `target` is never incomplete. Raises
    OSError, and RunFault if the checkpoint is damaged, or contains other tensors than those of adapters.
    """
    if target.is_dir():
        return
    if (fault := verify(checkpoint)) is not None:
        raise RunFault(f"the checkpoint is damaged: {fault}", where=str(checkpoint))
    temporary = target.with_name(f"{target.name}.tmp.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _rename_tensors(checkpoint / CHECKPOINT_WEIGHTS, temporary / WEIGHTS)
        config = _config_of(read_plan(run.plan), temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        facts: dict[str, Any] = {ADAPTER_SETTINGS: {"sha256": settings_digest(temporary / CONFIG)}}
        seal(temporary, **facts)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process wrote the same content first
                raise
        fsync_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two adapters contain the same tensors, bit for bit, in any order."""
    with open(first / WEIGHTS, "rb") as file, open(second / WEIGHTS, "rb") as other_file:
        (tensors, start), (other_tensors, other_start) = _header(file), _header(other_file)
        if tensors.keys() != other_tensors.keys():
            return False
        for name, entry in tensors.items():
            other = other_tensors[name]
            if (entry["dtype"], entry["shape"]) != (other["dtype"], other["shape"]):
                return False
            if _bytes_of(file, start, entry) != _bytes_of(other_file, other_start, other):
                return False
    return True


def _config_of(plan: Plan, weights: Path) -> AdapterConfig:
    """The peft configuration of the adapter."""
    method = plan.recipe.method
    assert isinstance(method, Lora)  # jobs train nothing else
    with open(weights, "rb") as file:
        names = _header(file)[0]
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": plan.model.directory,
        "r": method.lora_rank,
        "lora_alpha": method.lora_alpha,
        "lora_dropout": method.lora_dropout,
        "use_rslora": method.use_rslora,
        "use_dora": method.use_dora,
        "fan_in_fan_out": plan.model.model_type == "gpt2",  # whose matrices are stored transposed
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(modules),
    }


def _rename_tensors(source: Path, target: Path) -> None:
    with open(source, "rb") as file, open(target, "wb") as out:
        header, _ = _header(file)
        renamed: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for name, entry in header.items():
            if ".lora_" not in name or ".default" not in name:
                raise RunFault(f"the checkpoint contains {name}, which is not an adapter tensor", where=str(source))
            renamed[name.replace(".default", "", 1)] = entry
        text = json.dumps(renamed, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        out.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(file, out, _CHUNK_BYTES)
        out.flush()
        os.fsync(out.fileno())


def _header(file: BinaryIO) -> tuple[dict[str, TensorEntry], int]:
    """(tensors by name, offset of the data). The file position is at the data afterwards."""
    file.seek(0)
    (size,) = struct.unpack("<Q", file.read(8))
    if size > _MAX_HEADER_BYTES:
        raise RunFault("the weights are damaged: their header is too large", where=file.name)
    header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _bytes_of(file: BinaryIO, start: int, entry: TensorEntry) -> bytes:
    first, last = entry["data_offsets"]
    file.seek(start + first)
    return file.read(last - first)
