"""Adapters on experts in a batch: each sequence gets the logits that peft computes with its adapter alone."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.modeling.moe_models import make_moe
from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.inference.adapters import Adapters
from tunesmith.modeling.adapters.method import apply_method, trained_parameters

TOKENS = torch.randint(3, 97, (3, 7), generator=torch.Generator().manual_seed(3))
TARGETS = {"a": "all-linear", "b": ["experts.down_proj"]}


@pytest.fixture(scope="module", params=["Mixtral", "Qwen3Moe", "GptOss"])
def saved(request, tmp_path_factory):
    """Directories of a base model, and of two adapters of it."""
    root = tmp_path_factory.mktemp(request.param)
    make_moe(request.param).save_pretrained(root / "base")
    for name, targets in TARGETS.items():
        model = apply_method(make_moe(request.param), Lora(kind="lora", lora_rank=3, target_modules=targets))
        generator = torch.Generator().manual_seed(ord(name))
        with torch.no_grad():
            for weight in trained_parameters(model).values():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
        assert isinstance(model, PeftModel)
        model.save_pretrained(root / name)
    return root


def load(root):
    return AutoModelForCausalLM.from_pretrained(root / "base").eval()


def served(root, *names):
    adapters = Adapters(load(root), torch.float32, torch.device("cpu"))
    for name in names:
        adapters.use(str(root / name))
    return adapters


@torch.no_grad()
def test_sequences_of_a_batch_get_the_logits_of_their_own_adapter(saved):
    adapters = served(saved, *TARGETS)
    length = TOKENS.shape[1]
    ranges = [(length, 2 * length, str(saved / "a")), (2 * length, 3 * length, str(saved / "b"))]
    adapters.rows.body = adapters.rows.head = ranges
    logits = adapters.model(input_ids=TOKENS).logits
    plain = load(saved)(input_ids=TOKENS[:1]).logits[0]
    expected = [plain]
    for number, name in enumerate(TARGETS, start=1):
        peft = PeftModel.from_pretrained(load(saved), str(saved / name)).eval()
        expected.append(peft(input_ids=TOKENS[number : number + 1]).logits[0])
    torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=1e-4 * float(plain.abs().max()))
    adapters.rows.body = adapters.rows.head = []
    base = load(saved)(input_ids=TOKENS).logits
    torch.testing.assert_close(adapters.model(input_ids=TOKENS).logits, base, rtol=0, atol=0)
    for number in (1, 2):
        assert (logits[number] - base[number]).abs().max() > 0.05 * base.abs().max(), "the adapters have an effect"


@torch.no_grad()
def test_scales_of_single_experts_are_those_of_peft(saved, tmp_path):
    shutil.copytree(saved / "a", tmp_path / "scaled")
    path = tmp_path / "scaled" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alpha_pattern": {"experts.down_proj": 90}}))
    adapters = served(saved)
    adapters.use(str(path.parent))
    adapters.rows.body = adapters.rows.head = [(0, TOKENS[0].numel(), str(path.parent))]
    logits = adapters.model(input_ids=TOKENS[:1]).logits
    expected = PeftModel.from_pretrained(load(saved), str(path.parent)).eval()(input_ids=TOKENS[:1]).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    unscaled = PeftModel.from_pretrained(load(saved), str(saved / "a")).eval()(input_ids=TOKENS[:1]).logits
    assert (unscaled - expected).abs().max() > 0.05 * expected.abs().max()


@torch.no_grad()
def test_an_unloaded_adapter_has_no_effect(saved):
    adapters = served(saved, "b")
    assert adapters.loaded[str(saved / "b")] == sum(
        weight.numel() * 4 for name, weight in stored(saved / "b").items() if "lora_" in name
    )
    adapters.unload(str(saved / "b"))
    adapters.rows.body = [(0, TOKENS.numel(), str(saved / "b"))]
    expected = load(saved)(input_ids=TOKENS).logits
    torch.testing.assert_close(adapters.model(input_ids=TOKENS).logits, expected, rtol=0, atol=0)


def stored(directory):
    from safetensors.torch import load_file

    return load_file(directory / "adapter_model.safetensors")


def test_adapters_that_do_not_fit_the_experts_are_refused(saved, tmp_path):
    shutil.copytree(saved / "b", tmp_path / "other")
    path = tmp_path / "other" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_parameters"] = ["experts.gate_up_proj"]
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"experts\.gate_up_proj is \[4, \d+, 32\] in the base model"):
        Adapters(load(saved), torch.float32, torch.device("cpu")).use(str(tmp_path / "other"))
