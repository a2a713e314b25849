"""8-bit moments in fp32 checkpoints: quantized values round-trip bitwise, whatever the signs of their extremes."""

import pytest
import torch

from tunesmith.configs.sections.optimization import Optimization
from tunesmith.training.optim.optimizer import MOMENTS, make_optimizer, moment_of, set_moments

pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
OPTIMIZATION = Optimization(optimizer="adamw_8bit", learning_rate=1e-2, weight_decay=0.01)


def trained(num_updates: int = 7) -> tuple[torch.optim.Optimizer, dict[str, torch.nn.Parameter]]:
    torch.manual_seed(0)
    parameters = {"large": torch.nn.Parameter(torch.randn(100, 131)), "small": torch.nn.Parameter(torch.randn(9, 3))}
    optimizer = make_optimizer(parameters, OPTIMIZATION)
    update(optimizer, parameters, num_updates)
    return optimizer, parameters


def update(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], times: int) -> None:
    torch.manual_seed(1)
    for _ in range(times):
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter) * torch.rand(len(parameter), 1) ** 4
            parameter.grad[3] = 0.0
        optimizer.step()


def test_moments_equal_those_dequantized_by_bitsandbytes():
    from bitsandbytes.functional import dequantize_blockwise

    optimizer, parameters = trained()
    state = optimizer.state[parameters["large"]]
    for number, moment in enumerate(MOMENTS, start=1):
        codes, scales, table = (state[f"{key}{number}"] for key in ("state", "absmax", "qmap"))
        expected = dequantize_blockwise(codes, absmax=scales, code=table, blocksize=256)
        actual = moment_of(optimizer, parameters["large"], moment)
        assert actual.abs().max() > 1e-3
        assert torch.equal(actual, expected.view_as(actual))


def test_restored_moments_are_bitwise_identical_and_training_continues_identically():
    optimizer, parameters = trained()
    copies = {name: torch.nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    again = make_optimizer(copies, OPTIMIZATION)
    for name, parameter in parameters.items():
        moments = {moment: moment_of(optimizer, parameter, moment).clone() for moment in MOMENTS}
        set_moments(again, copies[name], moments, 7)
        for key, value in optimizer.state[parameter].items():
            actual = again.state[copies[name]][key]
            assert torch.equal(actual, value) if torch.is_tensor(value) else actual == value, (name, key)
    assert optimizer.state[parameters["large"]]["state1"].dtype == torch.uint8
    update(optimizer, parameters, 3)
    update(again, copies, 3)
    assert all(torch.equal(copies[name], parameter) for name, parameter in parameters.items())


def test_arbitrary_moments_are_rounded_to_the_nearest_code():
    optimizer, parameters = trained()
    torch.manual_seed(2)
    values = {moment: torch.randn(100, 131).abs() + 0.01 for moment in MOMENTS}
    set_moments(optimizer, parameters["large"], values, 7)
    for moment in MOMENTS:
        rounded = moment_of(optimizer, parameters["large"], moment)
        assert (rounded - values[moment]).abs().max() < 0.05 * values[moment].max()
        assert (rounded - values[moment]).abs().max() > 0
