"""Conversion of a GGUF file, written here from a known model: the same logits and tokens."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tunesmith.configs.recipe import Full
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.base_model.source import resolve_model
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


def write_gguf(path, directory, end_of_turn: str) -> None:
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
    generation = json.loads((converted[0] / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 2]
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
    assert json.loads((other / "generation_config.json").read_text())["eos_token_id"] == 0
