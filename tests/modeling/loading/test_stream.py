"""A streamed model equals the one loaded by transformers, for every supported class, dense or in 4 bits."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.modeling.base_model.test_supported import make_model
from tests.modeling.decoders import DECODERS
from tunesmith.configs.sections.method import Lora, QLora
from tunesmith.errors import InputError, RunFault
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading import base
from tunesmith.modeling.loading.attention_choice import attention_of
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.loading.stream import stored_in_fp32, stream_model

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra `qlora`"
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """directories(class name) -> a tiny model of that class on disk."""
    made: dict[str, Path] = {}

    def directory_of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            make_model(name).save_pretrained(made[name])
        return made[name]

    return directory_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DECODERS)
def test_a_streamed_model_equals_the_one_loaded_by_transformers(directories, name, dtype):
    expected = load_model(directories(name), dtype=dtype, attention="tunesmith_packed")
    actual = stream_model(directories(name), dtype=dtype, attention="tunesmith_packed")
    for kind in ("named_parameters", "named_buffers"):
        expected_tensors, tensors = dict(getattr(expected, kind)()), dict(getattr(actual, kind)())
        assert list(tensors) == list(expected_tensors)
        for key, tensor in expected_tensors.items():
            assert tensors[key].dtype == tensor.dtype
            assert torch.equal(tensors[key], tensor), key
    assert actual.generation_config.to_dict() == expected.generation_config.to_dict()
    assert actual.config.to_dict() == expected.config.to_dict()
    tied = expected.get_output_embeddings().weight is expected.get_input_embeddings().weight
    assert (actual.get_output_embeddings().weight is actual.get_input_embeddings().weight) == tied
    assert not actual.training


def test_every_parameter_is_placed_once_in_model_order(tiny_llama):
    placed = []
    model = stream_model(tiny_llama, dtype=torch.float32, attention="sdpa", place=placed.append)
    assert [id(parameter) for parameter in model.parameters()] == [id(parameter) for parameter in placed]


@pytest.mark.parametrize(("device", "streamed"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_a_model_for_a_gpu_is_streamed_to_it(tiny_llama, monkeypatch, device, streamed):
    devices = []

    def stream(directory, *, device, **options):
        devices.append(device)
        return stream_model(directory, **options)

    monkeypatch.setattr(base, "stream_model", stream)
    method = Lora(kind="lora")
    model = base.load_base(tiny_llama, method, dtype=torch.float32, device=device)
    assert devices == ([device] if streamed else [])
    expected = load_model(tiny_llama, dtype=torch.float32)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


def test_a_missing_weight_is_reported(tiny_llama, tmp_path):
    weights = load_file(tiny_llama / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing, the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        stream_model(tmp_path, dtype=torch.float32, attention="sdpa")


def test_sharded_files_are_loaded(tiny_llama, tmp_path):
    weights = load_file(tiny_llama / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    names = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(weights)}
    for file in set(names.values()):
        part = {key: value for key, value in weights.items() if names[key] == file}
        save_file(part, tmp_path / file, metadata={"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    model = stream_model(tmp_path, dtype=torch.float32, attention="sdpa")
    assert torch.equal(model.get_input_embeddings().weight, weights["model.embed_tokens.weight"])


def test_stored_in_fp32_yields_only_fp32_weights(tiny_llama, tmp_path):
    model = stream_model(tiny_llama, dtype=torch.bfloat16, attention="sdpa")
    weights = dict(stored_in_fp32(tiny_llama, model))
    assert weights.keys() == dict(model.named_parameters()).keys()
    model.save_pretrained(tmp_path)
    assert dict(stored_in_fp32(tmp_path, model)) == {}


@needs_bitsandbytes
@pytest.mark.parametrize("double", [True, False])
def test_4_bit_weights_equal_those_quantized_by_transformers(tiny_llama, double):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, quantization_config=options)
    actual = stream_model(tiny_llama, dtype=torch.float32, attention="sdpa", nf4=True, double_quantization=double)
    packed, streamed = expected.state_dict(), actual.state_dict()
    assert streamed.keys() == packed.keys()
    assert sum(tensor.dtype == torch.uint8 for key, tensor in packed.items() if key.endswith("proj.weight")) == 14
    assert all(torch.equal(streamed[key], tensor) for key, tensor in packed.items())


@needs_bitsandbytes
def test_nf4_linear_has_the_gradient_of_the_dequantized_weight(tiny_llama):
    """Forward and backward of Nf4Linear compared with a linear layer with the dequantized weight."""
    from tunesmith.modeling.quantization.nf4 import Nf4Linear, dequantised

    model = stream_model(tiny_llama, dtype=torch.float32, attention="sdpa", nf4=True)
    layer = next(module for module in model.modules() if isinstance(module, Nf4Linear))
    weight = dequantised(layer.weight, torch.float32)
    assert weight.shape == (layer.out_features, layer.in_features)
    torch.manual_seed(0)
    first = torch.randn(2, 5, layer.in_features, requires_grad=True)
    second = first.detach().clone().requires_grad_(True)
    output, expected = layer(first), torch.nn.functional.linear(second, weight)
    assert torch.allclose(output, expected, atol=1e-6)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    expected.backward(gradient)
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.abs().max() > 1e-2
    assert torch.allclose(first.grad, second.grad, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(first).dtype == torch.bfloat16


@needs_bitsandbytes
@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_merges_into_the_dequantized_weights(wide_llama, use_dora):
    from tunesmith.training.export.files import plain_weights

    method = QLora(kind="qlora", lora_rank=4, use_dora=use_dora)
    model = apply_method(stream_model(wide_llama, dtype=torch.float32, attention="sdpa", nf4=True), method, seed=1)
    torch.manual_seed(0)
    for parameter in trained_parameters(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    inner = model.get_base_model()
    merged = {name: weight() for name, weight in plain_weights(inner, torch.float32).items()}
    plain = load_model(wide_llama, dtype=torch.float32)
    assert merged.keys() == plain.state_dict().keys()
    base = plain.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    plain.load_state_dict(merged)
    assert (merged["model.layers.0.mlp.up_proj.weight"] - base).abs().max() > 0.05
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad(), attention_of(inner, "sdpa"):
        assert torch.allclose(model(tokens).logits, plain(tokens).logits, atol=1e-4)


@needs_bitsandbytes
def test_quantizing_a_model_without_linear_layers_raises(directories):
    with pytest.raises(RunFault, match="GPT2LMHeadModel has no linear layers"):
        stream_model(directories("GPT2LMHeadModel"), dtype=torch.float32, attention="sdpa", nf4=True)
