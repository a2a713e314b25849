"""A copy of a base model with rows for new tokens in embedding and head. Never imports torch.

Only the weight files that hold those tensors are written; the copy links to all other files of the base model.
V rows of the vocabulary, H columns: the hidden size, or 1 for a bias.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tunesmith.errors import InputError
from tunesmith.modeling.base_model.consistency import LAYER
from tunesmith.modeling.base_model.multimodal import text_model_in
from tunesmith.modeling.base_model.weight_files import INDEX, read_object

_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NOT_VOCABULARY = re.compile(r"position|norm|(?:^|\.)(?:wpe|ln_f)\b")
_CHUNK_ROWS = 4096
_CHUNK_BYTES = 4 << 20
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class NewRows:
    """Rows to initialize. All other rows are copied bit by bit.

    vocab_size: rows after the change. sources: for each initialized row, the rows whose mean it becomes; empty: the
    known ones. num_known: the first rows, which are those of the base model's tokenizer.
    """

    vocab_size: int
    sources: Mapping[int, Sequence[int]]
    num_known: int


def write_with_rows(base: Path, target: Path, new: NewRows, files: Mapping[str, Any]) -> None:
    """Write a copy of the model directory `base` to the new directory `target`. files: JSON files to replace, by name.

    Raises InputError if the model has no embedding of its vocabulary, or its numbers have another format than floats.
    """
    config, text = read_object(base / "config.json"), text_model_in(base)
    size = (config if text is None else text.config)["vocab_size"]
    written = dict(files)
    if new.vocab_size != size:
        # A multimodal configuration may have the size in both parts, or none: that of its class.
        for holder in (
            [config] if text is None else [config["text_config"], *([config] if "vocab_size" in config else [])]
        ):
            holder["vocab_size"] = new.vocab_size
        written["config.json"] = config
    target.mkdir(parents=True)
    num_tensors = added_bytes = 0
    index = read_object(base / INDEX) if (base / INDEX).is_file() else {}
    for path in (base / name for name in sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]):
        header = _header(path)
        if text is not None:
            header = {name: entry for name, entry in header.items() if text.names.own_name(name) is not None}
        tensors = _vocabulary_of(header, size, path)
        if tensors:
            added_bytes += _write_weights(path, target / path.name, tensors, new)
            num_tensors += len(tensors)
    if not num_tensors:
        raise InputError(
            f"no weight of the base model has a row for each of its {size:,} tokens",
            where=str(base),
            remedy="remove model.add_tokens, or add the tokens to the model with transformers' resize_token_embeddings",
        )
    if isinstance(total := index.get("metadata", {}).get("total_size"), int):
        index["metadata"]["total_size"] = total + added_bytes
        written[INDEX] = index
    for name, content in written.items():
        (target / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    link_others(base, target)


def link_others(base: Path, target: Path, skipped: Callable[[str], bool] = lambda name: False) -> None:
    """Link to the files of the model directory `base` that the directory `target` does not have, except its manifest
    and the names that are `skipped`."""
    for path in sorted(base.iterdir()):
        is_own = (target / path.name).exists() or path.name == _MANIFEST or path.name.startswith(".")
        if not is_own and not skipped(path.name):
            (target / path.name).symlink_to(path.resolve())


def rows_needed(adapter: Path) -> int:
    """Number of rows that embedding and head must have for an adapter with trained rows (peft's
    `trainable_token_indices`); 0 if it has none. adapter: its directory."""
    rows = read_object(adapter / "adapter_config.json").get("trainable_token_indices") or []
    lists = rows.values() if isinstance(rows, dict) else [rows]
    return max((row + 1 for numbers in lists for row in numbers if isinstance(row, int)), default=0)


def _header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, in the order of their data, and its metadata under `__metadata__`."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.pop("__metadata__", None)
    ordered = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
    return ordered if metadata is None else {"__metadata__": metadata, **ordered}


def _vocabulary_of(header: dict[str, Any], size: int, path: Path) -> set[str]:
    """Names of the tensors with a row per token: embedding, head, and the head's bias."""
    names = {
        name
        for name, entry in header.items()
        if name != "__metadata__"
        and entry["shape"][:1] == [size]
        and LAYER.search(name) is None
        and _NOT_VOCABULARY.search(name) is None
    }
    for name in sorted(names):
        if header[name]["dtype"] not in _WIDTH:
            raise InputError(
                f"tokens cannot be added: {name} is stored as {header[name]['dtype']}",
                where=str(path),
                remedy="use the base model in bf16, fp16 or fp32",
            )
    return names


def _write_weights(source: Path, target: Path, tensors: set[str], new: NewRows) -> int:
    """Write a weight file with the new rows in these tensors. Returns the number of bytes that it is larger."""
    old = _header(source)
    header: dict[str, Any] = {}
    end = added = 0
    for name, entry in old.items():
        if name == "__metadata__":
            header[name] = entry
            continue
        first, last = entry["data_offsets"]
        shape, num_bytes = list(entry["shape"]), last - first
        if name in tensors:
            shape[0] = new.vocab_size
            grown = num_bytes // entry["shape"][0] * new.vocab_size
            added, num_bytes = added + grown - num_bytes, grown
        header[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    with open(source, "rb") as reading, open(target, "xb") as writing:
        begin = 8 + int.from_bytes(reading.read(8), "little")
        writing.write(len(text).to_bytes(8, "little") + text)
        for name, entry in old.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            if name in tensors:
                _write_rows(source, begin + first, entry, new, writing)
            else:
                reading.seek(begin + first)
                _copy(reading, writing, last - first)
    shutil.copymode(source, target)
    return added


def _copy(reading: BinaryIO, writing: BinaryIO, num_bytes: int) -> None:
    while num_bytes:
        chunk = reading.read(min(num_bytes, _CHUNK_BYTES))
        if not chunk:
            raise OSError("the weight file ended early")
        writing.write(chunk)
        num_bytes -= len(chunk)


def _write_rows(source: Path, offset: int, entry: dict[str, Any], new: NewRows, writing: BinaryIO) -> None:
    dtype, (size, *rest) = entry["dtype"], entry["shape"]
    columns = int(np.prod(rest, dtype=np.int64))
    raw = np.dtype(f"<u{_WIDTH[dtype]}")
    bits_VH = np.memmap(source, dtype=raw, mode="r", offset=offset, shape=(size, columns))
    rows = initial_rows(bits_VH, dtype, new)
    for first in range(0, size, _CHUNK_ROWS):
        part = np.array(bits_VH[first : first + _CHUNK_ROWS])
        for row in rows.keys() & range(first, first + len(part)):
            part[row - first] = rows[row]
        writing.write(part.tobytes())
    for row in range(size, new.vocab_size):
        writing.write(rows[row].tobytes())


def initial_rows(bits_VH: np.ndarray, dtype: str, new: NewRows) -> dict[int, np.ndarray]:
    """Return the initialized rows as bits, [H] each, by number. bits: [V, H], unsigned integers of the width of
    `dtype`. Means are computed in fp64 and rounded once."""
    known = [row for row in range(min(new.num_known, len(bits_VH))) if row not in new.sources]
    total_H = np.zeros(bits_VH.shape[1])
    for first in range(0, len(known), _CHUNK_ROWS):
        total_H += _floats(bits_VH[known[first : first + _CHUNK_ROWS]], dtype).sum(axis=0)
    mean_H = _bits(total_H / len(known), dtype)
    return {
        row: _bits(_floats(bits_VH[list(rows)], dtype).mean(axis=0), dtype) if len(rows) else mean_H
        for row, rows in new.sources.items()
    }


def _floats(bits: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.ascontiguousarray(bits).view(f"<f{_WIDTH[dtype]}").astype(np.float64)


def _bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of `dtype`, as bits; bf16 is rounded from fp32, to even."""
    if dtype != "BF16":
        return values.astype(f"<f{_WIDTH[dtype]}").view(f"<u{_WIDTH[dtype]}")
    wide = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype("<u2")
