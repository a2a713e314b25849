"""Loading models and adapters; damaged, incomplete and unsafe ones are rejected with the name of the file."""

import json
import shutil

import pytest
import torch

from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.base_model.adapter_files import adapter_base
from tunesmith.modeling.loading.load import load_model

TOKENS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def copy(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "model")


def test_weights_have_the_requested_dtype_in_eval_mode(tiny_llama):
    model = load_model(tiny_llama, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training


@pytest.mark.parametrize("keep_bytes", [0, 5, 2000])
def test_a_truncated_file_is_rejected(copy, keep_bytes):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep_bytes])
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_model(copy, dtype=torch.float32)
    assert str(copy) in str(caught.value)


def test_missing_weights_are_rejected_rather_than_initialized_at_random(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing, the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(copy, dtype=torch.float32)


def test_pickles_are_not_read(copy):
    model = load_model(copy, dtype=torch.float32)
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(copy, dtype=torch.float32)


def test_an_empty_directory_is_rejected(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path, dtype=torch.float32)


@pytest.fixture
def adapter(copy, tmp_path):
    """(directory of a nonzero adapter, logits of the model it was saved from)"""
    model = apply_method(load_model(copy, dtype=torch.float32), Lora(kind="lora"))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", model.eval()(TOKENS).logits


def test_an_adapter_is_loaded_with_its_base(adapter, copy):
    directory, expected = adapter
    model = load_model(directory, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected)
        assert not torch.equal(load_model(copy, dtype=torch.float32)(TOKENS).logits, expected)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora" in name)


def test_an_adapter_may_name_its_base_by_a_relative_path(adapter, copy):
    directory, expected = adapter
    config = json.loads((directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../model"
    (directory / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_base(directory) == copy
    with torch.no_grad():
        assert torch.equal(load_model(directory, dtype=torch.float32)(TOKENS).logits, expected)


def test_an_adapter_without_base_or_weights_is_rejected(adapter, copy):
    directory, _ = adapter
    copy.rename(copy.with_name("elsewhere"))
    with pytest.raises(InputError, match="base model"):
        load_model(directory, dtype=torch.float32)
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        load_model(directory, dtype=torch.float32)
