"""AdamW over flat tensors: equal to torch and bitsandbytes, moments by parameter, and its fallback."""

import pytest
import torch

from tunesmith.configs.sections.optimization import Optimization
from tunesmith.kernels import dispatch
from tunesmith.kernels.adamw import adamw_
from tunesmith.kernels.dispatch import Implementation, Kernels
from tunesmith.kernels.parity import check
from tunesmith.modeling.patching.fast import sizes_of
from tunesmith.training.optim import flat_adamw
from tunesmith.training.optim.flat_adamw import FlatAdamW
from tunesmith.training.optim.optimizer import (
    MOMENTS,
    allocate_state,
    make_optimizer,
    moment_of,
    set_moments,
    update_operations,
)

SHAPES = {"a": (8, 40), "b": (100, 131), "c": (64, 64), "norm": (33,), "e": (16, 24), "large": (128, 96)}
OPTIONS = {"learning_rate": 1e-2, "weight_decay": 0.1}


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def update(optimizer, parameters, times, *, seed=1, without=()):
    """Update with gradients of unequal sizes; parameters named in `without` get one only every other time."""
    generator = torch.Generator().manual_seed(seed)
    for time in range(times):
        for name, parameter in parameters.items():
            gradient = torch.randn(parameter.shape, generator=generator) * 3.0 ** -(len(name))
            parameter.grad = None if name in without and time % 2 else gradient
        optimizer.step()


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(flat_adamw, "JOINED_VALUES", 8000)  # "b" and "large" are not joined
    monkeypatch.setattr(flat_adamw, "FLAT_VALUES", 4500)  # "c" does not fit with the others


@pytest.mark.parametrize("without", [(), ("c", "a")])
def test_fifty_updates_equal_torch_adamw(without):
    ours, expected, exact = make_parameters(), make_parameters(), make_parameters()
    optimization = Optimization(**OPTIONS)
    optimizer = make_optimizer(ours, optimization, Kernels())
    assert isinstance(optimizer, FlatAdamW)
    reference = make_optimizer(expected, optimization)
    assert type(reference) is torch.optim.AdamW
    matrices, vectors = [p for p in exact.values() if p.ndim == 2], [exact["norm"]]
    for parameter in exact.values():
        parameter.data = parameter.data.double()
    double = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2
    )
    update(optimizer, ours, 50, without=without)
    update(reference, expected, 50, without=without)
    generator = torch.Generator().manual_seed(1)
    for time in range(50):
        for name, parameter in exact.items():
            gradient = torch.randn(parameter.shape, generator=generator) * 3.0 ** -(len(name))
            parameter.grad = None if name in without and time % 2 else gradient.double()
        double.step()
    start = make_parameters()
    for name, parameter in ours.items():
        assert (parameter - start[name]).norm() > 0.1
        assert (parameter - expected[name]).norm() <= 1e-6 * expected[name].norm()
        assert (parameter.double() - exact[name]).norm() <= 1e-6 * exact[name].norm()
        for moment in MOMENTS:
            actual = moment_of(optimizer, parameter, moment)
            expected_moment = moment_of(reference, expected[name], moment)
            assert actual.shape == parameter.shape
            assert (actual - expected_moment).norm() <= 1e-6 * expected_moment.norm()


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_training_with_restored_moments_is_bitwise_identical(kind):
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    optimization = Optimization(optimizer=kind, **OPTIONS)
    ours = make_parameters()
    optimizer = make_optimizer(ours, optimization, Kernels())
    assert isinstance(optimizer, FlatAdamW)
    assert not any(moment_of(optimizer, parameter, "exp_avg").any() for parameter in ours.values())
    update(optimizer, ours, 7)
    copies = {name: torch.nn.Parameter(parameter.detach().clone()) for name, parameter in ours.items()}
    again = make_optimizer(copies, optimization, Kernels())
    for name, parameter in ours.items():
        moments = {moment: moment_of(optimizer, parameter, moment).clone() for moment in MOMENTS}
        set_moments(again, copies[name], moments, 7)
        for moment in MOMENTS:
            assert torch.equal(moment_of(again, copies[name], moment), moments[moment]), (name, moment)
    update(optimizer, ours, 3, seed=2)
    update(again, copies, 3, seed=2)
    assert all(torch.equal(copies[name], parameter) for name, parameter in ours.items())


def test_8_bit_updates_equal_bitsandbytes_within_rounding():
    pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    optimization = Optimization(optimizer="adamw_8bit", **OPTIONS)
    ours, expected, start = make_parameters(), make_parameters(), make_parameters()
    optimizer, reference = make_optimizer(ours, optimization, Kernels()), make_optimizer(expected, optimization)
    assert isinstance(optimizer, FlatAdamW)
    assert not isinstance(reference, FlatAdamW)
    update(optimizer, ours, 5)
    update(reference, expected, 5)
    for name, parameter in ours.items():
        moved = (expected[name] - start[name]).norm()
        assert moved > 0.1
        assert (parameter - expected[name]).norm() <= 1e-2 * moved
        for moment in MOMENTS:
            actual = moment_of(optimizer, parameter, moment)
            expected_moment = moment_of(reference, expected[name], moment)
            assert (actual - expected_moment).norm() <= 2e-2 * expected_moment.norm()


def test_moments_transfer_between_flat_adamw_and_bitsandbytes():
    """Moments of bitsandbytes' optimizer are restored bitwise in the flat one, and vice versa."""
    pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    optimization = Optimization(optimizer="adamw_8bit", **OPTIONS)
    for first, second in ((None, Kernels()), (Kernels(), None)):
        parameters, copies = make_parameters(), make_parameters()
        before, after = make_optimizer(parameters, optimization, first), make_optimizer(copies, optimization, second)
        update(before, parameters, 4)
        for name, parameter in parameters.items():
            moments = {moment: moment_of(before, parameter, moment).clone() for moment in MOMENTS}
            set_moments(after, copies[name], moments, 4)
            assert all(torch.equal(moment_of(after, copies[name], m), moments[m]) for m in MOMENTS)


def test_a_kernel_that_fails_the_parity_check_falls_back_to_torch_adamw(tiny_llama, monkeypatch):
    from tunesmith.modeling.loading.load import load_model

    model = load_model(tiny_llama, dtype=torch.float32, attention="tunesmith_packed")
    sizes = sizes_of(model, "cpu", None)
    optimization = Optimization(**OPTIONS)
    operations = update_operations(Optimization(optimizer="adamw_8bit"))
    good = check(Kernels(), sizes, operations)
    assert {parity.operation for parity in good} == {"adamw", "adamw_8bit"}
    assert all(parity.holds and parity.difference < 1e-4 for parity in good)

    def wrong(*tensors, learning_rate, **options):
        adamw_(*tensors, learning_rate=1.01 * learning_rate, **options)

    planted = Implementation("planted", wrong, lambda _: True)
    monkeypatch.setitem(dispatch.TABLE, "adamw", [planted, *dispatch.TABLE["adamw"]])
    kernels = Kernels()
    (bad,) = check(kernels, sizes, update_operations(optimization))
    assert not bad.holds
    assert bad.difference == pytest.approx(1e-2, rel=0.2)
    assert isinstance(make_optimizer(make_parameters(), optimization, kernels), FlatAdamW)
    kernels.switch_off("adamw")
    assert type(make_optimizer(make_parameters(), optimization, kernels)) is torch.optim.AdamW
    assert type(make_optimizer(make_parameters(), optimization, Kernels("off"))) is torch.optim.AdamW


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("kernels", [Kernels(), None])
def test_allocating_state_changes_nothing_even_if_memory_runs_out(monkeypatch, optimizer, kernels):
    if optimizer != "adamw":
        pytest.importorskip("bitsandbytes")
    optimization = Optimization.model_validate({**OPTIONS, "optimizer": optimizer})
    parameters, expected, start = make_parameters(), make_parameters(), make_parameters()
    ours, reference = (make_optimizer(each, optimization, kernels) for each in (parameters, expected))

    zeros_like, calls = torch.zeros_like, 0

    def limited(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError
        return zeros_like(*arguments, **options)

    if not isinstance(ours, FlatAdamW):  # torch and bitsandbytes allocate by zeros_like, tensor by tensor
        with monkeypatch.context() as patched:
            patched.setattr(torch, "zeros_like", limited)
            with pytest.raises(MemoryError):
                allocate_state(ours)
    allocate_state(ours)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, start[name])
        assert not any(moment_of(ours, parameter, moment).any() for moment in MOMENTS)
    update(ours, parameters, 3)
    update(reference, expected, 3)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, expected[name])
        for moment in MOMENTS:
            assert torch.equal(moment_of(ours, parameter, moment), moment_of(reference, expected[name], moment))
