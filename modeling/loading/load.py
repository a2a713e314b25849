"""Loading models from a directory: only safetensors are read, and code in the directory is never executed."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # isort: skip  # before peft imports it

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

import tunesmith.modeling.loading.packed_attention_hook  # noqa: F401  # registers PACKED, a possible `attention`
from tunesmith.errors import InputError
from tunesmith.model_files import require_undamaged
from tunesmith.modeling.base_model.source import cached_hub_model
from tunesmith.modeling.loading.document_rope import rotate_by_document
from tunesmith.progress import advance

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    attention: str = "sdpa",
    device: str | torch.device = "cpu",
    base: Path | None = None,
) -> PreTrainedModel | PeftModel:
    """Load the causal language model of a Hugging Face directory, in eval mode; for an adapter's directory, its base
    model with the adapter.

    dtype: of the weights. attention: a transformers attention implementation, or PACKED of packed_attention_hook.py,
    which registers it on import. base: directory of an adapter's base model; None: as named in the adapter.
    InputError if the directory is not a model, or its weights are missing, damaged, incomplete or not safetensors.
    RunFault if it is an export whose files do not match its manifest.
    """
    if (directory / ADAPTER_CONFIG).is_file():
        return _load_adapter(directory, base, dtype=dtype, attention=attention).to(device).eval()
    model, info = from_directory(
        AutoModelForCausalLM,
        directory,
        " of a causal language model",
        dtype=dtype,
        attn_implementation=attention,
        ignore_mismatched_sizes=True,
    )
    require_same_shapes(info["mismatched_keys"], directory)
    require_whole(info["missing_keys"], directory)
    require_finite(model.named_parameters(), directory)
    rotate_by_document(model)
    return model.to(device).eval()


def _load_adapter(directory: Path, base: Path | None, *, dtype: torch.dtype, attention: str) -> PeftModel:
    """Load an adapter on its base model. Arguments and errors as of `load_model`."""
    require_undamaged(directory)
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"the adapter has no {ADAPTER_WEIGHTS}", where=str(directory), remedy="save it as safetensors")
    plain = load_model(base or adapter_base(directory), dtype=dtype, attention=attention)
    try:
        model = PeftModel.from_pretrained(plain, str(directory), is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"the adapter cannot be loaded: {str(error).strip().splitlines()[0]}",
            where=str(directory),
            remedy="export it again, or copy it again from its source: its files are damaged, or of another model",
        ) from error
    require_finite(((name, weight) for name, weight in model.named_parameters() if "lora_" in name), directory)
    return model


def from_directory(kind: Any, directory: Path, noun: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return a model and transformers' loading info, from local files only. kind: a transformers Auto class; noun: the
    expected model kind, for the error. InputError if it cannot be loaded, RunFault if it is a damaged export."""
    require_undamaged(directory)
    try:
        with quiet():
            return kind.from_pretrained(
                directory,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"the model cannot be loaded: {str(error).strip().splitlines()[0]}",
            where=str(directory),
            remedy=f"use a complete Hugging Face directory{noun} with safetensors weights",
        ) from error


def require_whole(odd: Iterable[str], directory: Path, how: str = "missing") -> None:
    """Raise InputError if there are odd weights: transformers would silently initialize them at random."""
    if names := sorted(odd):
        raise InputError(
            f"{len(names)} weights are {how}, the first is {names[0]}",
            where=str(directory),
            remedy="download the model again: its files are incomplete, or of another architecture",
        )


def require_same_shapes(odd: Iterable[tuple[str, Iterable[int], Iterable[int]]], directory: Path) -> None:
    """Raise InputError if there are weights of another shape than the configuration gives. odd: name, shape in the
    files, and shape of the model's parameter."""
    for name, stored, expected in sorted(odd):
        raise InputError(
            f"{name} has the shape {list(stored)}, but config.json gives {list(expected)}",
            where=str(directory),
            remedy="download the model again: config.json and the weights are of different models",
        )


def require_finite(weights: Iterable[tuple[str, torch.Tensor]], directory: Path) -> None:
    """Raise InputError if a weight is NaN or infinite: every loss would be NaN, and the learning rate be suspected."""
    for name, weight in weights:
        advance()
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise InputError(
                f"the weight {name} contains values that are not finite (NaN or infinity)",
                where=str(directory),
                remedy="download the model again, or load it in the precision that it was trained in",
            )


def adapter_base(directory: Path) -> Path:
    """Return the directory of an adapter's base model. Relative paths are resolved from the adapter, then from the
    working directory; a hub id is looked up in the hub's cache on this machine."""
    path = directory / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        remedy = "export it again, or copy it again from its source"
        raise InputError(f"the adapter cannot be read: {error}", where=str(path), remedy=remedy) from error
    tried = [(directory / name).resolve(), Path(name).resolve()]
    for candidate in tried:
        if name and (candidate / "config.json").is_file():
            return candidate
    if (cached := cached_hub_model(name, revision)) is not None:
        return cached
    raise InputError(
        f"the adapter's base model {name!r} is not on this machine",
        where=str(path),
        remedy=f"tried {' and '.join(map(str, tried))} and the hub's cache; download it (hf download {name}"
        + (f" --revision {revision}" if revision else "")
        + ") or set base_model_name_or_path to its directory",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Disable transformers' progress bars, which would interfere with Tunesmith's."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_sequence_model(directory: Path, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Load the encoder-decoder model of a Hugging Face directory, in eval mode. InputError as for `load_model`."""
    model, info = from_directory(
        AutoModelForSeq2SeqLM,
        directory,
        " of an encoder-decoder model",
        dtype=dtype,
        ignore_mismatched_sizes=True,
    )
    require_same_shapes(info["mismatched_keys"], directory)
    require_whole(info["missing_keys"], directory)
    require_finite(model.named_parameters(), directory)
    return model.to(device).eval()
