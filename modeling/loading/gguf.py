"""Conversion of a GGUF file to a Hugging Face directory: python -m tunesmith.modeling.loading.gguf FILE DIRECTORY

Writes fp32 safetensors (quantized weights are dequantized, which does not restore lost precision), config, tokenizer
with its chat template, and a generation config with the end-of-sequence token.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunesmith.errors import InputError, TunesmithError
from tunesmith.modeling.loading.gguf_rope import TENSORS, rope_scaling, rotated_part


def convert(source: Path, directory: Path) -> None:
    """Write the model of `source` to a new directory. InputError if it is not a GGUF file or its kind is unsupported.

    Peak memory: about 20 bytes per parameter.
    """
    with open(source, "rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError("this is not a GGUF file", where=str(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
        _name_special_tokens(tokenizer, source)
        model = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=source.name, dtype=torch.float32, **_unpacked()
        )
    except ImportError as error:
        raise InputError(
            "GGUF files need the package gguf", where=str(source), remedy="pip install 'tunesmith[gguf]'"
        ) from error
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the GGUF file cannot be converted: {str(error).strip() or type(error).__name__}",
            where=str(source),
            remedy="use the model's Hugging Face directory instead",
        ) from error
    _carry_rope_scaling(model.config, source)
    model.generation_config = GenerationConfig(  # what the chat template ends turns with is known to our tokenizer
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _name_special_tokens(tokenizer: Any, source: Path) -> None:
    """Set the BOS, EOS and padding tokens of the file; transformers 5.17 uses BOS as EOS."""
    from gguf import GGUFReader

    fields = GGUFReader(source).fields
    for attribute, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        if field := fields.get(f"tokenizer.ggml.{key}_token_id"):
            setattr(tokenizer, attribute, tokenizer.convert_ids_to_tokens(int(field.contents())))


def _carry_rope_scaling(config: Any, source: Path) -> None:
    """Add the file's scaling of rotary embeddings, which transformers ignores, to the model's configuration."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    prefix = f"{reader.fields['general.architecture'].contents()}.rope."
    values = {
        key.removeprefix(prefix): field.contents() for key, field in reader.fields.items() if key.startswith(prefix)
    }
    tensors = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name in TENSORS}
    parameters = getattr(config, "rope_parameters", None) or {}
    own = parameters.get("full_attention", parameters)  # Gemma 3 scales only the layers with full attention
    try:
        own |= rope_scaling(values, tensors, theta=own.get("rope_theta", 1e4), context=config.max_position_embeddings)
        own |= rotated_part(config, values.get("dimension_count"))
        type(config).from_dict(config.to_dict())  # transformers' own check
    except InputError as error:
        raise InputError(error.what, where=str(source), remedy=error.remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"its rotary embedding cannot be carried over: {error}",
            where=str(source),
            remedy="use the model's Hugging Face directory instead",
        ) from error


def _unpacked() -> dict[str, Any]:
    """Arguments of from_pretrained for dequantized weights; transformers before 5.2x always dequantized."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def main(arguments: list[str]) -> int:
    """Run the conversion and return its exit code."""
    if len(arguments) != 2:
        print("usage: python -m tunesmith.modeling.loading.gguf FILE DIRECTORY", file=sys.stderr)
        return 2
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except TunesmithError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
