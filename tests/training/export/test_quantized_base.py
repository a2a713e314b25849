"""Exports of runs on quantized base models: adapters refer to the base as published, whole models are plain."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.modeling.quantized_checkpoints import write_four_bits, write_fp8
from tests.training.export.test_export import LORA, Trained
from tunesmith.evaluation.trained import load_trained
from tunesmith.modeling.adapters.method import apply_method
from tunesmith.modeling.loading.base import load_base
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.training.export.plain_model import load_plain

QLORA = {**LORA, "kind": "qlora"}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra `qlora`"
)


@pytest.fixture(scope="module")
def fp8(wide_llama, tmp_path_factory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("fp8") / "base"
    return directory, write_fp8(wide_llama, directory, (24, 40))


@pytest.fixture(scope="module")
def four_bits(wide_llama, tmp_path_factory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("four") / "base"
    return directory, write_four_bits(wide_llama, directory, "nf4", True, torch.bfloat16)


def trained_on(base: Path, root: Path, method: dict) -> Trained:
    """A trained run whose base model is loaded as in training."""
    trained = Trained(base, root, method)
    recipe = trained.plan.recipe
    model = load_base(base, recipe.method, dtype=torch.float32, device="cpu")
    trained.model = apply_method(model, recipe.method, dropout=0.0, seed=1)
    trained.loss = CausalLoss(trained.model)
    return trained.train()


def require_plain(directory: Path, trained: Trained) -> None:
    """The whole model is an ordinary one, and computes what the trained one does."""
    assert "quantization_config" not in json.loads((directory / "config.json").read_text())
    assert all(weight.dtype == torch.float32 for weight in load_file(directory / "model.safetensors").values())
    plain = AutoModelForCausalLM.from_pretrained(directory)
    row = torch.tensor([trained.documents[0][0]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=row).logits[0], trained.logits()[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [LORA, {"kind": "full"}, pytest.param(QLORA, marks=needs_bitsandbytes)])
def test_exports_of_a_run_on_fp8_weights(fp8, tmp_path, method):
    base, _ = fp8
    trained = trained_on(base, tmp_path / "run", method)
    export = trained.export()
    assert export.gate["passed"]
    whole = export.path
    if method["kind"] != "full":
        assert json.loads((export.path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
        assert "FineGrainedFP8Config(dequantize=True)" in (export.path / "README.md").read_text()
        whole = trained.export(form="model", to=tmp_path / "merged").path
    assert "quantized" not in (whole / "README.md").read_text()
    require_plain(whole, trained)


def test_the_gate_compares_with_the_dequantized_base(fp8, tmp_path):
    base, dequantized = fp8
    trained = trained_on(base, tmp_path / "run", LORA)
    plain, fault = load_plain(trained.export().path, trained.plan, torch.float32, torch.device("cpu"))
    assert fault is None
    assert plain is not None
    weights = {name.replace("base_layer.", ""): weight for name, weight in plain.state_dict().items()}
    for name, weight in load_file(dequantized / "model.safetensors").items():
        assert torch.equal(weights[f"base_model.model.{name}"], weight)


@needs_bitsandbytes
def test_exports_of_a_run_on_4_bit_weights(four_bits, tmp_path):
    base, _ = four_bits
    trained = trained_on(base, tmp_path / "run", QLORA)
    checkpoint = trained.save(6)
    export = trained.export()
    assert export.gate["passed"]
    require_plain(trained.export(form="model", to=tmp_path / "merged").path, trained)
    read = load_trained(trained.plan, checkpoint)
    row = torch.tensor([trained.documents[0][0]])
    with torch.no_grad():
        torch.testing.assert_close(read(input_ids=row).logits[0], trained.logits()[0], rtol=1e-4, atol=1e-4)
