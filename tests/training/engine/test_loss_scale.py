"""Dynamic loss scaling: the rules of torch.amp.GradScaler, and what an engine does when fp16 overflows."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.engine.test_plain import ALONE, OPTIMIZATION, index, loader_for  # noqa: F401
from tunesmith.configs.sections.method import Full
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.loading.load import load_model
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.engine import loss_scale
from tunesmith.training.engine.loss_scale import LossScale, loss_scale_for
from tunesmith.training.engine.plain import PlainEngine


def engine_in(model_dir: Path, dtype: torch.dtype, scale: float | None) -> PlainEngine:
    model = apply_method(load_model(model_dir, dtype=torch.float32, attention="tunesmith_packed"), Full(kind="full"))
    loss = CausalLoss(model, compute_dtype=dtype)
    scaling = None if scale is None else LossScale(scale)
    return PlainEngine(loss, trained_parameters(model), OPTIMIZATION, ALONE, device="cpu", loss_scale=scaling)


def step(engine: PlainEngine, loader, number: int) -> tuple[float, bool]:
    sums = engine.train_batch(loader.step_batch(number))
    _, updated = engine.optim_step(1e-2)
    return sums.loss_sum / sums.supervised_tokens, updated


def test_the_rules_are_those_of_the_grad_scaler(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    ours = LossScale()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        finite = bool(torch.rand((), generator=generator) < 0.8)
        assert ours.scale == scaler.get_scale()
        scaler.scale(parameter.sum())
        parameter.grad = torch.full((2,), 1.0 if finite else float("inf"))
        scaler.step(optimizer)
        scaler.update()
        ours.update(finite=finite)
    assert ours.scale != 2.0**16


def test_only_fp16_is_scaled():
    assert loss_scale_for("fp16") == LossScale(2.0**16, 0)
    assert loss_scale_for("bf16") is None
    assert loss_scale_for("fp32") is None


def test_the_scale_is_part_of_the_state():
    scale = LossScale(1024.0, 17)
    state = RunState()
    scale.store(state)
    again = LossScale()
    again.restore(RunState.from_json(json.loads(json.dumps(state.to_json()))))
    assert again == scale
    again.restore(RunState())  # a checkpoint of another precision
    assert again == scale


def test_a_skipped_step_is_explained_by_the_scale_while_it_can_fall():
    assert LossScale(1.0).explains_skip(3.5)
    assert not LossScale(0.5).explains_skip(3.5)
    assert not LossScale(65536.0).explains_skip(float("nan"))


def test_scaling_does_not_round(tiny_llama, index):  # noqa: F811
    """In fp32 the gradient, its norm and the update are bitwise those without a scale."""
    plain, scaled = (engine_in(tiny_llama, torch.float32, scale) for scale in (None, 2.0**10))
    loader = loader_for(index, 4)
    for number in (1, 2, 3):
        assert step(plain, loader, number) == step(scaled, loader, number)
    for name, tensor in plain.model_tensors():
        assert torch.equal(dict(scaled.model_tensors())[name], tensor), name


def test_an_overflow_skips_the_step_and_halves_the_scale(tiny_llama, index):  # noqa: F811
    engine = engine_in(tiny_llama, torch.float16, 2.0**40)
    loader = loader_for(index, 4)
    before = {name: tensor.clone() for name, tensor in engine.model_tensors()}
    loss, updated = step(engine, loader, 1)
    assert not updated
    assert engine.loss_scale == LossScale(2.0**39, 0)
    assert engine.loss_scale.explains_skip(loss)
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.model_tensors())
    skips = 1
    while not updated:
        again, updated = step(engine, loader, 1)
        assert again == loss  # the weights are unchanged
        skips += not updated
    assert engine.loss_scale == LossScale(2.0 ** (40 - skips), 1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in engine.model_tensors())


def test_losses_in_fp16_are_within_its_rounding_of_fp32(tiny_llama, index):  # noqa: F811
    fp32, fp16 = engine_in(tiny_llama, torch.float32, None), engine_in(tiny_llama, torch.float16, 2.0**12)
    loader = loader_for(index, 4)
    losses = [[step(engine, loader, number) for number in range(1, 7)] for engine in (fp32, fp16)]
    assert all(updated for steps in losses for _, updated in steps)
    # fp16 rounds by 2^-11 in each product; bf16 is compared with 1e-2.
    for (expected, _), (actual, _) in zip(*losses, strict=True):
        assert actual == pytest.approx(expected, rel=1.25e-3)
    assert losses[0] != losses[1]
    assert losses[1][-1][0] < losses[1][0][0] - 0.1
