"""Loading models from a directory: only safetensors are read, and code in the directory is never executed."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # isort: skip  # before peft imports it

import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

import tunesmith.modeling.loading.packed_attention_hook  # noqa: F401  # registers PACKED, a possible `attention`
from tunesmith.errors import InputError
from tunesmith.model_files import ADAPTER_CONFIG, require_undamaged
from tunesmith.modeling.base_model.adapter_files import ADAPTER_WEIGHTS, adapter_base, require_text_only
from tunesmith.modeling.base_model.multimodal import ADAPTER_PREFIX
from tunesmith.modeling.base_model.new_rows import rows_needed
from tunesmith.modeling.base_model.quantized_weights import quantized_weights
from tunesmith.modeling.loading.attention_choice import set_attention
from tunesmith.modeling.loading.checks import require_finite, require_same_shapes, require_whole
from tunesmith.modeling.loading.document_rope import rotate_by_document
from tunesmith.modeling.loading.keyword_passing import pass_keywords
from tunesmith.modeling.loading.stream import stream_model
from tunesmith.modeling.loading.text_model import adapter_options, causal_options, without_report


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    device: str | torch.device = "cpu",
    base: Path | None = None,
) -> PreTrainedModel | PeftModel:
    """Load the causal language model of a Hugging Face directory, in eval mode; for an adapter's directory, its base
    model with the adapter.

    dtype: of the weights; quantized ones are dequantized to it. attention: a transformers attention implementation,
    or PACKED of packed_attention_hook.py, which registers it on import; classes that do not let it be chosen keep their
    own; None: transformers' choice for the class (sdpa, or eager without it). base: directory of an adapter's base
    model; None: as named in the adapter.
    InputError if the directory is not a model, or its weights are missing, damaged, incomplete or not safetensors.
    RunFault if it is an export whose files do not match its manifest.
    """
    if (directory / ADAPTER_CONFIG).is_file():
        return _load_adapter(directory, base, dtype=dtype, attention=attention).to(device).eval()
    if (directory / "config.json").is_file() and quantized_weights(directory) is not None:
        require_undamaged(directory)
        return stream_model(directory, dtype=dtype, attention=attention, device=device)
    model, info = from_directory(
        AutoModelForCausalLM,
        directory,
        " of a causal language model",
        dtype=dtype,
        ignore_mismatched_sizes=True,
        **causal_options(directory),
    )
    require_same_shapes(info["mismatched_keys"], directory)
    require_whole(info["missing_keys"], directory)
    require_finite(model.named_parameters(), directory)
    set_attention(model, attention)
    rotate_by_document(model)
    pass_keywords(model)
    return model.to(device).eval()


def _load_adapter(directory: Path, base: Path | None, *, dtype: torch.dtype, attention: str | None) -> PeftModel:
    """Load an adapter on its base model. Arguments and errors as of `load_model`."""
    require_undamaged(directory)
    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"the adapter has no {ADAPTER_WEIGHTS}", where=str(directory), remedy="save it as safetensors")
    base = base or adapter_base(directory)
    require_text_only(directory, base)
    plain = load_model(base, dtype=dtype, attention=attention)
    make_room(plain, directory)
    try:
        options = adapter_options(base, directory)
        model = get_peft_model(plain, options.config)  # type: ignore[arg-type]
        # peft would leave modules without their weights, and skip weights without a module.
        loaded = model.load_adapter(str(directory), "default", key_mapping=options.key_mapping)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _not_loaded(directory, str(error).strip().splitlines()[0]) from error
    assert isinstance(model, PeftModel)
    if loaded.missing_keys:
        raise _not_loaded(directory, f"missing adapter keys: {loaded.missing_keys[0]}")
    if loaded.unexpected_keys:
        path = loaded.unexpected_keys[0].removeprefix(ADAPTER_PREFIX).partition(".lora_")[0]
        raise _not_loaded(directory, f"{len(loaded.unexpected_keys)} of its weights are for no module, such as {path}")
    require_finite(((name, weight) for name, weight in model.named_parameters() if "lora_" in name), directory)
    return model


def _not_loaded(directory: Path, why: str) -> InputError:
    return InputError(
        f"the adapter cannot be loaded: {why}",
        where=str(directory),
        remedy="export it again, or copy it again from its source: its files are damaged, or of another model",
    )


def make_room(model: Any, adapter: Path) -> None:
    """Append rows to embedding and head if an adapter trained rows beyond them. Its rows replace the appended ones."""
    num_rows = rows_needed(adapter)
    if num_rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(num_rows, mean_resizing=False)


def from_directory(kind: Any, directory: Path, noun: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return a model and transformers' loading info, from local files only. kind: a transformers Auto class; noun: the
    expected model kind, for the error. InputError if it cannot be loaded, RunFault if it is a damaged export."""
    require_undamaged(directory)
    try:
        with quiet(), without_report() if "key_mapping" in options else nullcontext():
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
