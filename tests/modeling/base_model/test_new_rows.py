"""A copy of a model with rows for new tokens: all other rows bit for bit, as transformers loads it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tunesmith.errors import InputError
from tunesmith.modeling.base_model.new_rows import NewRows, rows_needed, write_with_rows

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def copy_of(base: Path, target: Path, dtype: torch.dtype) -> Path:
    """A copy of a model in another dtype, with its embedding in a shard of its own."""
    shutil.copytree(base, target)
    weights = {name: value.to(dtype) for name, value in load_file(target / "model.safetensors").items()}
    (target / "model.safetensors").unlink()
    located = {name: "model-1.safetensors" if name == EMBEDDING else "model-2.safetensors" for name in weights}
    for file in set(located.values()):
        part = {name: value for name, value in weights.items() if located[name] == file}
        save_file(part, target / file, metadata={"format": "pt"})
    size = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": located}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matrices_grow_and_other_rows_keep_their_bits(tiny_llama, tiny_llama_untied, tmp_path, dtype, tied):
    base = copy_of(tiny_llama if tied else tiny_llama_untied, tmp_path / "base", dtype)
    new = NewRows(386, {384: [], 385: [5, 9]}, num_known=300)
    write_with_rows(base, tmp_path / "new", new, {"tokenizer_config.json": {"a": "b"}})
    before = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    after, info = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, weights = before.state_dict(), after.state_dict()
    for name in expected:
        assert torch.equal(weights[name][: len(expected[name])], expected[name]), name
    for name in (EMBEDDING, HEAD):
        wide = expected[name].double()
        assert weights[name].shape[0] == 386
        assert torch.equal(weights[name][384], wide[:300].mean(0).to(torch.float32).to(dtype))
        assert torch.equal(weights[name][385], wide[[5, 9]].mean(0).to(torch.float32).to(dtype))
    assert after.config.vocab_size == 386
    assert json.loads((tmp_path / "new" / "tokenizer_config.json").read_text()) == {"a": "b"}
    assert (tmp_path / "new" / "model-2.safetensors").is_symlink() == tied  # the untied head is in it
    assert (tmp_path / "new" / "tokenizer.json").is_symlink()
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    added = 2 * 32 * dtype.itemsize * (1 if tied else 2)
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in load_all(base).values()) + added


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}


def test_free_rows_are_initialized_without_growing_the_matrix(tiny_llama, tmp_path):
    write_with_rows(tiny_llama, tmp_path / "new", NewRows(384, {380: [7], 381: []}, num_known=380), {})
    before, after = load_all(tiny_llama)[EMBEDDING], load_all(tmp_path / "new")[EMBEDDING]
    assert (before != after).any(1).nonzero().flatten().tolist() == [380, 381]
    assert torch.equal(after[380], before[7])
    assert (tmp_path / "new" / "config.json").is_symlink()


def test_copy_of_an_export_is_not_verified_against_its_manifest(tiny_llama, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "manifest.json").write_text("{}")
    write_with_rows(base, tmp_path / "new", NewRows(385, {384: []}, num_known=384), {})
    assert not (tmp_path / "new" / "manifest.json").exists()


def test_quantized_embedding_is_refused_with_its_format(tiny_llama, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    weights = load_file(base / "model.safetensors")
    weights[EMBEDDING] = weights[EMBEDDING].to(torch.float8_e4m3fn)
    save_file(weights, base / "model.safetensors")
    with pytest.raises(InputError, match="stored as F8_E4M3"):
        write_with_rows(base, tmp_path / "new", NewRows(385, {384: []}, num_known=384), {})


def test_model_without_an_embedding_of_its_vocabulary_is_refused(tiny_llama, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 99}))
    with pytest.raises(InputError, match="a row for each of its 99 tokens"):
        write_with_rows(base, tmp_path / "new", NewRows(100, {99: []}, num_known=99), {})


@pytest.mark.parametrize(
    ("rows", "needed"), [(None, 0), ([3, 7], 8), ({"embed_tokens": [5], "lm_head": [9, 2]}, 10)], ids=str
)
def test_rows_that_an_adapter_needs(tmp_path, rows, needed):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"trainable_token_indices": rows}))
    assert rows_needed(tmp_path) == needed


def test_bf16_means_are_rounded_to_even():
    from tunesmith.modeling.base_model.new_rows import _bits

    values = np.array([1.00390625, 1.01171875, -3.0, 3.4e38, 0.0])
    expected = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    assert _bits(values, "BF16").tolist() == expected.view(torch.uint16).tolist()
