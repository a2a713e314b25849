"""A checkpoint of a LoRA run as an adapter that can be served: the same tensors under peft's names, byte for byte.

Only the names in the safetensors header change, so no tensor library is needed and the values cannot differ. The last
checkpoint of a run holds the weights of its export, which passed the gate: `same_tensors` compares the two.
"""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.configs.recipe import Lora
from tunesmith.errors import RunFault
from tunesmith.rundir.atomic import fsync_directory
from tunesmith.rundir.paths import RunDir

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CHECKPOINT_WEIGHTS = "model.safetensors"
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own limit
_CHUNK_BYTES = 4 << 20


class TensorEntry(TypedDict):
    """A tensor in the header of a safetensors file. data_offsets: of its first byte and behind its last, counted from
    the end of the header."""

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
    """Make `target` of a checkpoint of the run; one that stands already stays.

    Written beside its place and renamed: it is whole or not there. Raises OSError, and RunFault where the checkpoint
    holds other than adapters.
    """
    if target.is_dir():
        return
    temporary = target.with_name(f"{target.name}.tmp.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _rename_tensors(checkpoint / CHECKPOINT_WEIGHTS, temporary / WEIGHTS)
        config = _config_of(read_plan(run.plan), temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same bytes
                raise
        fsync_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two adapters hold the same tensors, bit for bit, in whatever order."""
    with open(first / WEIGHTS, "rb") as one, open(second / WEIGHTS, "rb") as other:
        (mine, my_start), (theirs, their_start) = _header(one), _header(other)
        if mine.keys() != theirs.keys():
            return False
        for name, entry in mine.items():
            twin = theirs[name]
            if (entry["dtype"], entry["shape"]) != (twin["dtype"], twin["shape"]):
                return False
            if _bytes_of(one, my_start, entry) != _bytes_of(other, their_start, twin):
                return False
    return True


def _config_of(plan: Plan, weights: Path) -> AdapterConfig:
    """What peft needs to know to put the adapter on its base."""
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
                raise RunFault(f"the checkpoint holds {name}, which is of no adapter", where=str(source))
            renamed[name.replace(".default", "", 1)] = entry
        text = json.dumps(renamed, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        out.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(file, out, _CHUNK_BYTES)
        out.flush()
        os.fsync(out.fileno())


def _header(file: BinaryIO) -> tuple[dict[str, TensorEntry], int]:
    """Tensors by name, and where their bytes begin; the file stands there afterwards."""
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
