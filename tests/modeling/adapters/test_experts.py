"""Adapters on experts: discovered in the module tree, equal to plain peft and to the merged model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from transformers import AutoModelForCausalLM

from benchmarks.expert_adapters import RANK, attention_alone, saved_bytes, with_peft_forward
from benchmarks.expert_adapters import adapted as adapted_benchmark
from tests.modeling.moe_models import MODELS, fill, make_moe
from tunesmith.configs.sections.method import LastLayers, Lora
from tunesmith.errors import InputError
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.adapters.output_ratio import output_ratio
from tunesmith.training.export.files import plain_weights

TOKENS = torch.randint(3, 97, (2, 11), generator=torch.Generator().manual_seed(3))


def adapted(family: str, targets: list[str] | str = "all-linear") -> Any:
    method = Lora(kind="lora", lora_rank=3, target_modules=targets)  # type: ignore[arg-type]
    model = apply_method(make_moe(family), method)
    fill(model)
    return model


def logits_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    logits = model(input_ids=TOKENS).logits
    logits.square().mean().backward()
    return logits.detach(), {name: weight.grad for name, weight in trained_parameters(model).items()}


ROUNDING = 2**-24 * 97 * 8
"""fp32, which grouped products need: unit rounding, terms of the longest sum (the vocabulary), products in sequence
from the logits to the gradient of an adapter."""


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.any()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=ROUNDING * float(expected.detach().abs().max()))


@pytest.mark.parametrize("family", MODELS)
def test_adapters_equal_plain_peft_and_the_merged_model(family, tmp_path):
    make_moe(family).save_pretrained(tmp_path / "base")
    model = adapted(family)
    logits, gradients = logits_and_gradients(model)
    model.save_pretrained(tmp_path / "adapter")

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True).eval()
    expected, plain_gradients = logits_and_gradients(plain)
    close(logits, expected)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        close(gradient, plain_gradients[name])

    merged = make_moe(family)
    merged.load_state_dict(
        {name: weight() for name, weight in plain_weights(model.get_base_model(), torch.float32).items()}
    )
    merged.save_pretrained(tmp_path / "merged")
    assert stored(tmp_path / "merged") == stored(tmp_path / "base"), "tensor names of the base model"
    with torch.no_grad():
        close(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=TOKENS).logits, logits)


def stored(directory: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(str(directory / "model.safetensors"), framework="pt") as file:
        return set(file.keys())


def test_the_weight_update_of_all_experts_is_never_built(monkeypatch):
    model = adapted("Mixtral")

    def fail(*_: object):
        raise AssertionError("peft's forward was used")

    monkeypatch.setattr(ParamWrapper, "_activate_lora", fail)
    logits_and_gradients(model)
    with model.disable_adapter():
        disabled = model(input_ids=TOKENS).logits
    close(disabled, make_moe("Mixtral")(input_ids=TOKENS).logits)


def test_memory_is_at_most_1_3_times_that_of_adapters_on_attention():
    """With equally many active trained weights. Time depends on the machine: benchmarks/expert_adapters.py."""
    attention = saved_bytes(attention_alone())
    assert attention < saved_bytes(adapted_benchmark(RANK)) <= 1.3 * attention
    assert saved_bytes(with_peft_forward(adapted_benchmark(RANK))) > 1.6 * attention


def test_experts_without_tokens_get_no_gradient():
    model = adapted("Mixtral")
    token = TOKENS[:1, :1]
    model(input_ids=token).logits.sum().backward()
    name = "base_model.model.model.layers.0.mlp.experts.lora_A.default.weight"
    gradient = trained_parameters(model)[name].grad
    assert gradient is not None
    by_expert = gradient.view(4, 3, -1).abs().amax((1, 2))
    assert int((by_expert > 0).sum()) == 2


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
def test_routers_are_frozen_unless_named(family):
    assert not [name for name in trained_parameters(adapted(family)) if ".gate." in name]
    model = adapted(family, ["q_proj", "gate"])
    gradients = logits_and_gradients(model)[1]
    routers = [name for name in gradients if ".gate." in name]
    assert len(routers) == 2 * (2 if family == "Mixtral" else 1)
    assert all(gradients[name].any() for name in routers)
    assert all(".gate." in name or ".q_proj." in name for name in gradients)


def test_one_projection_of_the_experts_can_be_named():
    names = trained_parameters(adapted("Mixtral", ["experts.down_proj"]))
    assert set(names) == {
        f"base_model.model.model.layers.{layer}.mlp.experts.lora_{side}.default.weight"
        for layer in (0, 1)
        for side in "AB"
    }
    with pytest.raises(InputError, match="did you mean 'down_proj'"):
        adapted("Mixtral", ["down_porj"])
    with pytest.raises(InputError, match="lora_dropout is not available for adapters on experts"):
        apply_method(make_moe("Mixtral"), Lora(kind="lora", lora_dropout=0.1))


def test_conv1d_and_linear_in_one_model():
    """GPT-2 stores its blocks transposed and its head as a linear layer."""
    model: Any = apply_method(make_moe("GPT2", tie_word_embeddings=False), Lora(
        kind="lora", lora_rank=3, target_modules=["c_attn", "lm_head"]
    ))  # fmt: skip
    fill(model)
    logits, gradients = logits_and_gradients(model)
    assert all(gradient.any() for gradient in gradients.values())
    merged = make_moe("GPT2", tie_word_embeddings=False)
    merged.load_state_dict(
        {name: weight() for name, weight in plain_weights(model.get_base_model(), torch.float32).items()}
    )
    with torch.no_grad():
        close(merged(input_ids=TOKENS).logits, logits)


@pytest.mark.parametrize("family", ["Qwen2Moe", "GPTNeoX", "Falcon"])
def test_the_last_block_is_found_in_the_module_tree(family):
    model = make_moe(family)
    frozen = copy.deepcopy(dict(model.named_parameters()))
    trained = trained_parameters(apply_method(model, LastLayers(kind="last_layers", num_layers=1)))
    blocks = {name.split(".")[2] for name in frozen if ".layers." in name or ".h." in name}
    assert blocks == {"0", "1"}
    assert not [name for name in trained if ".0." in name.replace(".experts.0.", ".")]
    assert {name for name in frozen if ".layers.1." in name or ".h.1." in name} <= trained.keys()


@pytest.mark.parametrize(("family", "target"), [
    ("Mixtral", "experts.down_proj"), ("Mixtral", "gate"), ("JetMoe", "output_linear"),
])  # fmt: skip
def test_the_output_of_adapters_on_experts_is_measured(family, target):
    model = adapted(family, [target])
    ratio = output_ratio(model, TOKENS.tolist())
    assert ratio is not None
    fill(model, 0.1)  # half as large: a quarter of the product
    assert output_ratio(model, TOKENS.tolist()) == pytest.approx(ratio / 4, rel=0.3)
