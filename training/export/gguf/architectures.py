"""The classes of transformers that can be written as GGUF: their hyperparameters and tensors, as llama.cpp reads them.

The keys are those of llama.cpp's convert_hf_to_gguf. What llama.cpp computes differently is rejected by name before
anything is written; what this table gets wrong is found by the gate.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType

from tunesmith.errors import InputError
from tunesmith.modeling.loading.gguf_rope import FREQUENCIES, LONG, SHORT, llama3_divisors

Config = Any
"""A configuration of transformers, which has a value for every key."""
_OTHER_FORMATS = "export the Hugging Face directory instead (without --format), which vLLM and transformers load"


@dataclass(frozen=True)
class Architecture:
    """How a class is written. arch: llama.cpp's name. check: raises InputError for what llama.cpp does not compute.
    rotates_pairs: llama.cpp rotates neighboring values, so rows of queries and keys are reordered. norms_from_zero: the
    class adds 1 to the weights of its norms. activation: the only one that llama.cpp has for it."""

    arch: MODEL_ARCH
    check: Callable[[Config], None]
    activation: str = "silu"
    rotates_pairs: bool = False
    norms_from_zero: bool = False


def architecture_of(name: str, config: Config) -> Architecture:
    """Return how the class `name` is written. Raises InputError if it is not one that was compared with llama.cpp."""
    known = ARCHITECTURES.get(name)
    if known is None:
        raise rejected(f"the class {name} is not among those that were compared with llama.cpp: " + _LISTED)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation != known.activation:
        raise rejected(f"llama.cpp computes {name} with {known.activation}, the model uses {activation}")
    known.check(config)
    return known


def rejected(what: str) -> InputError:
    """The error for a model that cannot be written as GGUF."""
    return InputError(f"the model cannot be written as GGUF: {what}", where="--format gguf", remedy=_OTHER_FORMATS)


def head_size(config: Config) -> int:
    """Values per attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_parameters(config: Config) -> Mapping[str, Any]:
    """The rotary embedding of the layers with full attention."""
    parameters = config.rope_parameters
    return parameters.get("full_attention", parameters)


def context_length(config: Config, known: Architecture) -> int:
    """Tokens that the file states as its limit: of Mistral and Phi-3 the sliding window, which llama.cpp does not
    compute there; within it both give the same."""
    window = getattr(config, "sliding_window", None) if known.arch in (MODEL_ARCH.LLAMA, MODEL_ARCH.PHI3) else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def write_hyperparameters(writer: GGUFWriter, config: Config, known: Architecture) -> None:
    """Write the keys that say how the model computes."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_length(config, known))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if known.arch != MODEL_ARCH.PHI3:
        writer.add_key_length(head_size(config))
        writer.add_value_length(head_size(config))
    _write_rope(writer, config, known)
    if known.arch == MODEL_ARCH.LLAMA:
        writer.add_vocab_size(config.vocab_size)
    if known.arch in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3, MODEL_ARCH.PHI3):
        writer.add_sliding_window(config.sliding_window or 0)
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        writer.add_final_logit_softcapping(cap)


def _write_rope(writer: GGUFWriter, config: Config, known: Architecture) -> None:
    rope = rope_parameters(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if (local := config.rope_parameters.get("sliding_attention")) and known.arch == MODEL_ARCH.GEMMA3:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    if known.arch in (MODEL_ARCH.LLAMA, MODEL_ARCH.PHI3):
        writer.add_rope_dimension_count(int(head_size(config) * rope.get("partial_rotary_factor", 1.0)))
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(_original_context(config, rope))
        if (beta := rope.get("beta_fast")) is not None:
            writer.add_rope_scaling_yarn_beta_fast(beta)
        if (beta := rope.get("beta_slow")) is not None:
            writer.add_rope_scaling_yarn_beta_slow(beta)
    if known.arch == MODEL_ARCH.PHI3:
        writer.add_rope_scaling_orig_ctx_len(_original_context(config, rope))
        if kind == "longrope":
            scale = config.max_position_embeddings / _original_context(config, rope)
            attention = rope.get("attention_factor")
            if attention is None:
                attention = math.sqrt(1 + math.log(scale) / math.log(_original_context(config, rope)))
            writer.add_rope_scaling_attn_factors(attention if scale > 1 else 1.0)


def _original_context(config: Config, rope: Mapping[str, Any]) -> int:
    stated = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(stated or config.max_position_embeddings)


def extra_tensors(config: Config, known: Architecture) -> dict[str, np.ndarray]:
    """Return tensors that the checkpoint does not have: divisors of the rotary frequencies, fp32."""
    rope = rope_parameters(config)
    if rope.get("rope_type") == "llama3":
        divisors = llama3_divisors(
            rope["rope_theta"],
            head_size(config) // 2,
            rope["factor"],
            (rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]),
        )
        return {FREQUENCIES: np.array(divisors, dtype=np.float32)}
    if known.arch == MODEL_ARCH.PHI3 and rope.get("rope_type") == "longrope":
        names = {LONG: rope["long_factor"], SHORT: rope["short_factor"]}
        return {name: np.array(factors, dtype=np.float32) for name, factors in names.items()}
    return {}


def tensor_names(known: Architecture, num_blocks: int) -> Callable[[str], str]:
    """Return the function from a tensor's name in transformers to llama.cpp's. It raises InputError for unknown
    ones."""
    names = gguf.get_tensor_name_map(known.arch, num_blocks)

    def name_of(name: str) -> str:
        tensor = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor is None:
            raise rejected(f"llama.cpp has no tensor for {name}")
        return tensor

    return name_of


def changed(name: str, weight: np.ndarray, config: Config, known: Architecture) -> np.ndarray:
    """Return a weight as llama.cpp expects it. name: in transformers. weight: fp32, as in torch."""
    if known.norms_from_zero and name.endswith("norm.weight"):
        return weight + np.float32(1)
    if known.rotates_pairs and ".self_attn." in name:
        if ".q_proj." in name:
            return permuted(weight, config.num_attention_heads)
        if ".k_proj." in name:
            return permuted(weight, config.num_key_value_heads)
    return weight


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head: transformers rotates value i with value i + half, llama.cpp 2i with 2i + 1."""
    rows = len(weight)
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _require_rope(config: Config, *kinds: str) -> None:
    rope = rope_parameters(config)
    kind = rope.get("rope_type", "default")
    if kind not in ("default", *kinds):
        raise rejected(f"the rotary scaling {kind} was not compared with llama.cpp")
    if kind == "yarn":
        odd = sorted({"attention_factor", "mscale", "mscale_all_dim"} & {key for key in rope if rope[key] is not None})
        if odd or not rope.get("truncate", True):
            raise rejected(f"llama.cpp's YaRN has no equivalent of {odd[0] if odd else 'truncate: false'}")
    local = config.rope_parameters.get("sliding_attention", {})
    if local.get("rope_type", "default") != "default":
        raise rejected("the rotary embedding of layers with a sliding window is scaled")


def _llama(config: Config) -> None:
    _require_rope(config, "linear", "llama3", "yarn")


def _qwen(config: Config) -> None:
    _require_rope(config, "yarn")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise rejected("some layers have a sliding window (use_sliding_window), which llama.cpp does not compute")


def _gemma(period: int, largest: int) -> Callable[[Config], None]:
    """period: every so many layers attention is full. largest: blocks of the model for which llama.cpp scales queries
    by width and number of heads."""

    def check(config: Config) -> None:
        _require_rope(config, "linear")
        types = [
            "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(config.num_hidden_layers)
        ]
        if list(config.layer_types) != types:
            raise rejected(f"llama.cpp has full attention in every {period}th layer, the model in others")
        size = head_size(config)
        if config.num_hidden_layers == largest:
            size = config.hidden_size // config.num_attention_heads
        if config.query_pre_attn_scalar != size:
            raise rejected(f"llama.cpp scales queries by {size}, the model by {config.query_pre_attn_scalar}")
        if not config.tie_word_embeddings:
            raise rejected(
                "llama.cpp computes the class with the embedding as its head; the head was trained on its own"
            )
        if getattr(config, "use_bidirectional_attention", False):
            raise rejected("attention is bidirectional")

    return check


def _phi3(config: Config) -> None:
    _require_rope(config, "longrope")


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(MODEL_ARCH.LLAMA, _llama, rotates_pairs=True),
    "MistralForCausalLM": Architecture(MODEL_ARCH.LLAMA, _llama, rotates_pairs=True),
    "Qwen2ForCausalLM": Architecture(MODEL_ARCH.QWEN2, _qwen),
    "Qwen3ForCausalLM": Architecture(MODEL_ARCH.QWEN3, _qwen),
    "Gemma2ForCausalLM": Architecture(MODEL_ARCH.GEMMA2, _gemma(2, 46), "gelu_pytorch_tanh", norms_from_zero=True),
    "Gemma3ForCausalLM": Architecture(MODEL_ARCH.GEMMA3, _gemma(6, 62), "gelu_pytorch_tanh", norms_from_zero=True),
    "Phi3ForCausalLM": Architecture(MODEL_ARCH.PHI3, _phi3),
}
_LISTED = ", ".join(ARCHITECTURES)
