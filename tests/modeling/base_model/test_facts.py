"""Facts of a model directory, read from headers; models that cannot be trained are rejected before loading."""

import shutil

import pytest

from tunesmith.configs.recipe import Full, Lora
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.facts import model_facts, weight_shapes
from tunesmith.modeling.base_model.fingerprint import file_digest

FULL = Full(kind="full")


@pytest.mark.weights
def test_facts_of_smollm2(smollm2):
    facts = model_facts(smollm2, "models/smollm2-135m", Lora(kind="lora", lora_rank=16))
    assert facts.num_params == 134_515_008
    assert facts.num_trained_params == 4_884_480
    assert (facts.num_layers, facts.hidden_size, facts.vocab_size, facts.tied_embeddings) == (30, 576, 49152, True)
    assert facts.directory == str(smollm2.resolve())


def test_the_fingerprint_depends_on_content_not_location(copy, tiny_llama, tmp_path):
    before = model_facts(copy, "x", FULL).fingerprint
    assert before == model_facts(tiny_llama, "y", FULL).fingerprint
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_facts(copy, "x", FULL).fingerprint != before
    shutil.copy(tiny_llama / "model.safetensors", weights)
    assert model_facts(copy, "x", FULL).fingerprint == before
    (copy / "tokenizer_config.json").write_text("{}")
    assert model_facts(copy, "x", FULL).fingerprint != before


def test_a_cached_hash_is_used_unless_the_file_changed(tmp_path):
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"one")
    first = file_digest(path, cache)
    assert first == file_digest(path)
    [cached] = (cache / "digests").iterdir()
    cached.write_text("0" * 64)
    assert file_digest(path, cache) == "0" * 64
    path.write_bytes(b"other")
    assert file_digest(path, cache) == file_digest(path) != first


def test_shards_are_read_as_one(copy, tmp_path):
    from transformers import AutoModelForCausalLM

    whole = weight_shapes(copy)
    AutoModelForCausalLM.from_pretrained(copy).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    sharded = tmp_path / "sharded"
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert weight_shapes(sharded) == whole
    missing = sorted(sharded.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing.name} is missing"):
        weight_shapes(sharded)


@pytest.mark.parametrize(("num_bytes", "what"), [(0, "damaged"), (4, "damaged"), (50, "damaged"), (-1, "instead of")])
def test_a_truncated_file_is_named(copy, num_bytes, what):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    with pytest.raises(InputError, match=what) as caught:
        model_facts(copy, "x", FULL)
    assert caught.value.where == str(weights)


def test_pickled_weights_are_rejected(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin, a pickle"):
        model_facts(copy, "x", FULL)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="no weights"):
        model_facts(copy, "x", FULL)


def test_an_unsupported_class_suggests_the_nearest(change_config, copy):
    change_config(copy, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(InputError, match="LlamaForSequenceClassification") as caught:
        model_facts(copy, "x", FULL)
    assert "nearest supported class: LlamaForCausalLM" in str(caught.value)


def test_quantized_weights_and_a_damaged_config_are_rejected(change_config, copy):
    change_config(copy, quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match="quantized"):
        model_facts(copy, "x", FULL)
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        model_facts(copy, "x", FULL)


def test_a_missing_tokenizer_is_rejected(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        model_facts(copy, "x", FULL)
