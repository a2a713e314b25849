"""How far fp32 results may lie from fp64: derived from the model at hand, not from what one CPU printed.

Sums in fp32 are rounded after every term, in an order that differs between CPUs. Where n terms are summed, the
roundings add up like a random walk of at most n steps: about what one rounding of every factor does to the sum, times
less than sqrt(n / 2). What one rounding of every weight does to a result is measured in fp64, where the model's own
condition shows: a gradient whose terms cancel may lie further off than others.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

UNIT_FP32 = 2.0**-24
"""The largest relative error of one rounding to fp32."""
STEPS = 8.0
"""sqrt(n / 2) for sums of n = 128 terms. Measured over 1,000 gradients of a tiny LLaMA with AVX2, AVX-512 and without
either: half of them are 1 or less of `effect_of_rounding` off, none more than 4.3."""
_DRAWS = 6

Results = Mapping[str, Tensor]


def effect_of_rounding(
    model: nn.Module, results_of: Callable[[nn.Module], Results]
) -> tuple[Results, dict[str, float]]:
    """The results of an fp64 model, and by how much of its norm each changes where every weight is rounded once.

    Root mean square over a few draws: by chance a single one may leave a result where it was. The model is left as it
    was, without gradients.
    """
    exact = _fresh(model, results_of)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    squares = dict.fromkeys(exact, 0.0)
    for seed in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                assert weight.dtype == torch.float64
                drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(weight * (1.0 + UNIT_FP32 * drawn))
        for name, result in _fresh(model, results_of).items():
            squares[name] += _difference(result, exact[name]) ** 2 / _DRAWS
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)
    # The result itself is rounded too.
    return exact, {name: square**0.5 + UNIT_FP32 for name, square in squares.items()}


def require_rounding_only(results: Results, exact: Results, rounding: Mapping[str, float]) -> None:
    """Every result lies as far from the exact one as rounding explains; at most 1e-3 of it, however ill-conditioned."""
    assert results.keys() == exact.keys()
    for name, result in results.items():
        assert exact[name].norm() > 0, name
        difference, allowed = _difference(result, exact[name]), STEPS * rounding[name]
        assert allowed < 1e-3, f"{name}: rounding alone changes {allowed:.1e} of it: the test could not see a fault"
        assert difference <= allowed, f"{name}: {difference:.1e} of it differs, {allowed:.1e} is explained by rounding"


def _fresh(model: nn.Module, results_of: Callable[[nn.Module], Results]) -> Results:
    model.zero_grad(set_to_none=True)
    results = results_of(model)
    model.zero_grad(set_to_none=True)
    return results


def _difference(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact.double()).norm() / exact.double().norm())
