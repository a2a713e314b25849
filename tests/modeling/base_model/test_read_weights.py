"""Layers whose weights a family reads instead of calling them get no adapter."""

from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.base_model.adapter_targets import adapter_shapes
from tunesmith.modeling.base_model.read_weights import read_layers

SIZES: Any = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}


@pytest.mark.parametrize(
    ("model_type", "linear"),
    [
        ("mamba", {"x_proj", "dt_proj", "out_proj"}),
        ("falcon_mamba", {"x_proj", "dt_proj", "out_proj"}),
        ("jamba", {"dt_proj"}),
        *(
            (name, {"out_proj"})
            for name in ("mamba2", "bamba", "granitemoehybrid", "zamba2", "falcon_h1", "nemotron_h")
        ),
        ("gemma3n_text", {"correction_coefs"}),
        ("bloom", set()),  # reads them only with another pretraining_tp
        ("llama", set()),
        ("no_such_family", set()),
    ],
)
def test_layers_that_are_read_in_training_or_always(model_type, linear):
    assert set(read_layers(model_type)) - {"conv1d"} == linear


def test_read_layers_are_those_that_a_fused_kernel_gets_instead_of_being_called(monkeypatch):
    """The kernel's arguments are recorded: without the kernel no comparison sees that the weights are read."""
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES))
    weights = {id(layer.weight): path.rpartition(".")[2] for path, layer in model.named_modules() if is_linear(layer)}
    read: set[str] = set()

    def record(*arguments, **_):
        read.update(weights[id(argument)] for argument in arguments if id(argument) in weights)

    monkeypatch.setattr("transformers.models.mamba.modeling_mamba.mamba_inner_fn", record)
    model.train()(input_ids=torch.arange(8)[None])
    assert read == set(read_layers("mamba")) - {"conv1d"}


def test_read_layers_get_no_adapter():
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**SIZES))
    shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
    method = Lora(kind="lora", lora_rank=2)
    planned = {path.rpartition(".")[2] for path in adapter_shapes(shapes, method, True, "mamba")}
    adapted = apply_method(model, method)
    assert isinstance(adapted, PeftModel)
    names = {path.rpartition(".")[2] for path, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert planned == names == {"in_proj"}
    with pytest.raises(InputError, match="an adapter on out_proj would have no effect"):
        adapter_shapes(shapes, Lora(kind="lora", target_modules=["in_proj", "out_proj"]), True, "mamba")


def is_linear(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Linear)
