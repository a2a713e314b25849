"""Facts of a model directory, read from headers; models that cannot be trained are rejected before loading."""

import shutil
from pathlib import Path

import pytest

from tunesmith.configs.sections.method import Full, Lora
from tunesmith.errors import InputError
from tunesmith.modeling.base_model import fingerprint
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.base_model.fingerprint import file_digest
from tunesmith.modeling.base_model.weight_files import weight_shapes

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


def test_a_cached_hash_is_used_unless_the_file_changed(tmp_path, monkeypatch):
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"one")
    first = file_digest(path, cache)
    assert first == file_digest(path)

    def reject(*_arguments):
        raise AssertionError("the file is read again")

    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "open", reject, raising=False)
        assert file_digest(path, cache) == first
    path.write_bytes(b"other")
    assert file_digest(path, cache) == file_digest(path) != first


def other_digest(kept: Path) -> None:
    kept.write_text("0" * 64 + kept.read_text()[64:])


def flipped_bit(kept: Path) -> None:
    content = bytearray(kept.read_bytes())
    content[10] ^= 1
    kept.write_bytes(content)


def entry_of_another_file(kept: Path) -> None:
    other = kept.parent.parent.parent / "another"
    other.write_bytes(b"two")
    file_digest(other, kept.parent.parent)
    [entry] = [path for path in kept.parent.iterdir() if path != kept]
    shutil.copy(entry, kept)


def directory_instead(kept: Path) -> None:
    kept.unlink()
    kept.mkdir()


DAMAGE = {
    "an entry of an earlier version": lambda kept: kept.write_text("0" * 64),
    "another digest": other_digest,
    "a flipped bit": flipped_bit,
    "half of it": lambda kept: kept.write_text(kept.read_text()[:80]),
    "an empty file": lambda kept: kept.write_text(""),
    "no text": lambda kept: kept.write_bytes(b"\xff" * 129),
    "the entry of another file": entry_of_another_file,
    "a directory": directory_instead,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cached_hash_is_ignored_and_replaced(tmp_path, damage):
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"one")
    first = file_digest(path, cache)
    [kept] = (cache / "digests").iterdir()
    DAMAGE[damage](kept)
    assert file_digest(path, cache) == first
    if damage != "a directory":
        content = kept.read_text()
        assert content.startswith(first)
        assert file_digest(path, cache) == first
        assert kept.read_text() == content


def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path):
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"one")
    cache.write_text("a file in the place of the cache")
    assert file_digest(path, cache) == file_digest(path)


def test_the_fingerprint_does_not_depend_on_a_damaged_cache(copy, tmp_path):
    """Otherwise a resume would say that the base model has changed."""
    before = model_facts(copy, "x", FULL, cache=tmp_path / "cache").fingerprint
    for kept in (tmp_path / "cache" / "digests").iterdir():
        kept.write_text("0" * 64)
    assert model_facts(copy, "x", FULL, cache=tmp_path / "cache").fingerprint == before


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
    assert "nearest supported classes: LlamaForCausalLM, " in str(caught.value)


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
