"""Conversion of a GGUF file, written here from a known model: the same logits and tokens."""

import json
import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tunesmith.configs.sections.method import Full
from tunesmith.data.tokenization.tokenizer import Tokenizer as OurTokenizer
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.base_model.source import resolve_model
from tunesmith.modeling.loading.gguf import convert
from tunesmith.modeling.loading.gguf_rope import llama3_divisors, rope_scaling, rotated_part
from tunesmith.modeling.loading.load import load_model

gguf = pytest.importorskip("gguf", reason="pip install 'tunesmith[gguf]'")

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj":
    "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
HEADS, KEY_HEADS = 4, 2


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries and keys in the order of llama.cpp, which rotates adjacent pairs; transformers rotates halves."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, directory, end_of_turn: str = "<|im_end|>", rope: dict[str, Any] | None = None) -> None:
    """rope: further keys below `llama.rope.`; a list is a tensor of this name."""
    config = json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // HEADS)
    for key, value in (rope or {}).items():
        if isinstance(value, list):
            writer.add_tensor(key, np.array(value, np.float32))
        else:
            kind = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
            kind[type(value)](f"llama.rope.{key}", value)
    writer.add_vocab_size(config["vocab_size"])
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {added["content"] for added in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '" + end_of_turn + "\n' }}{% endfor %}"
    )
    for name, weight in load_file(directory / "model.safetensors").items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KEY_HEADS}.get(part)
            weight = weight if heads is None else interleaved(weight, heads)
            name = f"blk.{layer}.{NAMES[part]}.weight"
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tiny_llama, tmp_path_factory):
    """(converted directory, cache, GGUF file), resolved like the model.base of a recipe."""
    root = tmp_path_factory.mktemp("gguf")
    write_gguf(root / "tiny.gguf", tiny_llama, "<|im_end|>")
    return resolve_model("tiny.gguf", None, root, cache=root / "cache"), root / "cache", root / "tiny.gguf"


def test_the_converted_model_gives_the_same_logits(converted, tiny_llama):
    directory, _, _ = converted
    tokens = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected = load_model(tiny_llama, dtype=torch.float32)(tokens).logits
        torch.testing.assert_close(
            load_model(directory, dtype=torch.float32)(tokens).logits, expected, rtol=1e-5, atol=1e-5
        )
    assert model_facts(directory, "tiny.gguf", Full(kind="full")).tied_embeddings


def test_the_converted_tokenizer_gives_the_same_tokens(converted, tiny_llama):
    text = "<|im_start|>user\nLicensed under the Apache License, 2.0 — naïve?<|im_end|>\n"
    actual, expected = (Tokenizer.from_file(str(d / "tokenizer.json")) for d in (converted[0], tiny_llama))
    assert actual.encode(text).ids == expected.encode(text).ids
    assert actual.decode(actual.encode(text).ids, skip_special_tokens=False) == text


def test_every_end_of_turn_token_is_a_stop_token(converted):
    """The file's EOS token is 0; the chat template ends a turn with token 2."""
    assert set(OurTokenizer.load(converted[0]).stop_token_ids) == {0, 2}
    assert "<|im_end|>" in (converted[0] / "chat_template.jinja").read_text()


def test_a_file_is_converted_once_without_leftovers(converted):
    directory, cache, source = converted
    before = (directory / "model.safetensors").stat()
    assert resolve_model(str(source), None, source.parent, cache=cache) == directory
    assert (directory / "model.safetensors").stat().st_ino == before.st_ino
    assert list((cache / "models").iterdir()) == [directory]


def test_a_changed_file_of_the_same_name_is_converted_again(converted, tiny_llama, tmp_path):
    _, cache, source = converted
    write_gguf(tmp_path / source.name, tiny_llama, "<|endoftext|>")
    other = resolve_model(source.name, None, tmp_path, cache=cache)
    assert other != converted[0]
    assert OurTokenizer.load(other).stop_token_ids == (0,)


def test_a_special_token_after_the_words_is_no_stop_token(tiny_llama, tmp_path):
    """The template writes one, then the token that ends the turn."""
    write_gguf(tmp_path / "tiny.gguf", tiny_llama, "<|im_start|> done<|im_end|>")
    directory = resolve_model("tiny.gguf", None, tmp_path, cache=tmp_path / "cache")
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 0
    assert set(OurTokenizer.load(directory).stop_token_ids) == {0, 2}


@pytest.fixture(scope="module")
def long_waves(tiny_llama, tmp_path_factory):
    """The tiny model with Llama 3's base of the frequencies."""
    directory = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("long-waves") / "model")
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def with_rope(directory, **parameters):
    """The same model with other `rope_parameters`, as transformers computes it."""
    config = transformers.AutoConfig.from_pretrained(directory)
    config.rope_parameters |= parameters
    model = transformers.LlamaForCausalLM.from_pretrained(directory, config=config)
    with torch.no_grad():
        return model(TOKENS).logits


TOKENS = torch.arange(3, 60)[None]
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# For a head of 8 values: a wave longer than 8192 tokens, one between 2048 and 8192, and short ones, as llama.cpp's
# converter writes them.
WAVES = [2 * math.pi * 500000 ** (number / 4) for number in range(4)]
DIVISORS = [
    1.0 if wave < 2048 else 8.0 if wave > 8192 else 1 / ((1 - (8192 / wave - 1) / 3) / 8 + (8192 / wave - 1) / 3)
    for wave in WAVES
]
ODD = [1.0, 1.5, 2.0, 7.0]


@pytest.mark.parametrize(
    ("rope", "parameters"),
    [
        ({"scaling.type": "linear", "scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 512},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        ),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_beta_fast": 16.0, "scaling.finetuned": True},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "beta_fast": 16.0},
        ),
        ({"rope_freqs.weight": DIVISORS}, LLAMA3),
        (
            {"rope_freqs.weight": ODD},
            {"rope_type": "longrope", "short_factor": ODD, "long_factor": ODD, "attention_factor": 1.0},
        ),
        (
            {
                "rope_factors_short.weight": [1.0, 1.1, 1.2, 1.3], "rope_factors_long.weight": ODD,
                "scaling.original_context_length": 16, "scaling.attn_factor": 1.25,
            },
            {
                "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": ODD,
                "attention_factor": 1.25, "original_max_position_embeddings": 16,
            },
        ),
        ({"scaling.type": "none", "scaling.factor": 4.0}, {"rope_type": "default"}),
        ({"scaling.type": "linear", "scaling.factor": 1.0}, {"rope_type": "default"}),
    ],
)  # fmt: skip
def test_the_scaling_of_rotary_embeddings_is_carried_over(long_waves, tmp_path, rope, parameters):
    write_gguf(tmp_path / "tiny.gguf", long_waves, rope=rope)
    convert(tmp_path / "tiny.gguf", tmp_path / "converted")
    assert (
        json.loads((tmp_path / "converted" / "config.json").read_text())["rope_parameters"]["rope_type"]
        == (parameters["rope_type"])
    )
    with torch.no_grad():
        logits = load_model(tmp_path / "converted", dtype=torch.float32)(TOKENS).logits
    torch.testing.assert_close(logits, with_rope(long_waves, **parameters), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"scaling.type": "longrope", "scaling.factor": 4.0}, "longrope scaling without rope_factors_long.weight"),
        ({"scaling.type": "dynamic", "scaling.factor": 4.0}, "dynamic scaling"),
        ({"scaling.alpha": 1000.0}, r"the key rope\.scaling\.alpha"),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.attn_factor": 1.5}, r"rope\.scaling\.attn_factor"),
        ({"rope_freqs.weight": ODD, "scaling.factor": 4.0}, r"rope_freqs\.weight together with linear scaling"),
        ({"rope_factors_long.weight": ODD}, r"rope_factors_long\.weight alone"),
    ],
)
def test_a_scaling_that_cannot_be_carried_over_is_named(rope, named):
    scalars = {key: value for key, value in rope.items() if not isinstance(value, list)}
    tensors = {key: value for key, value in rope.items() if isinstance(value, list)}
    with pytest.raises(InputError, match=named):
        rope_scaling(scalars, tensors, theta=1e4, context=2048)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_divisors_of_llama_3_are_those_of_transformers(theta, factor):
    config = transformers.LlamaConfig(
        head_dim=64,
        max_position_embeddings=131072,
        rope_parameters=LLAMA3 | {"factor": factor, "rope_theta": theta},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    plain = theta ** (-torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(plain / torch.tensor(llama3_divisors(theta, 32, factor)), scaled, rtol=1e-5, atol=0)


def test_a_partly_rotated_head_is_carried_over_or_named():
    phi3 = transformers.Phi3Config(hidden_size=64, num_attention_heads=4)
    assert rotated_part(phi3, 12) == {"partial_rotary_factor": 0.75}
    assert rotated_part(phi3, 16) == rotated_part(phi3, None) == {}
    with pytest.raises(InputError, match=r"rope\.dimension_count: 12 of 16"):
        rotated_part(transformers.Qwen2Config(hidden_size=64, num_attention_heads=4), 12)
