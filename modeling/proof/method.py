"""What the method adds to a loaded model, before the first step: every planned adapter is there and has an effect, and
the router loss equals that of the model's own class.

Losses cannot show either: an adapter starts without an effect, and the router loss is not part of the loss that is
compared with the model's own.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from tunesmith.configs.plan import AdapterTarget
from tunesmith.errors import RunFault
from tunesmith.modeling.loading.attention_choice import attention_of
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.routing import load_balancing_loss
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to
from tunesmith.modeling.proof.compare import Comparison
from tunesmith.modeling.proof.examples import Examples, examples
from tunesmith.modeling.proof.limits import limits_of, relative_difference
from tunesmith.modeling.proof.loaded import LENGTHS, LoadedComparison

ADAPTERS, EFFECT, ROUTER_LOSS = "planned adapters", "adapters that affect the loss", "router loss"


def compare_adapters(model: nn.Module, planned: Sequence[AdapterTarget]) -> LoadedComparison:
    """Compare the adapters of a loaded model with the planned ones, by the sizes of the weights that they adapt: names
    and shapes may differ, because transformers renames, fuses and splits published tensors.

    The difference is the fraction of the planned size that has no adapter. It is too large if all adapters of a name
    are missing; with some of them, only the reason names them: files may have layers that the class does not use.
    """
    loaded, expected = Counter[str](), Counter[str]()
    adapted = 0
    for name, module in _adapters(model):
        loaded[name] += 1
        adapted += module.in_features * module.out_features * getattr(module, "num_experts", 1)
    for target in planned:
        expected[target.name] += target.count
    size = sum(target.count * math.prod(target.shape) for target in planned)
    reason, limit = None, 0.0
    if adapted < size:
        missing = sorted((expected - loaded).keys())
        reason = ", ".join(f"{loaded[name]} of {expected[name]} {name} have an adapter" for name in missing)
        limit = 1.0 if all(loaded[name] for name in missing) else 0.0
    return _without_losses(Comparison(ADAPTERS, max(0.0, 1 - adapted / size), limit, reason))


def compare_effects(loss: CausalLoss) -> LoadedComparison:
    """Compare which adapters the loss depends on: of each name at least one. All weights must be whole on this rank.

    The difference is the fraction of names without one: their modules' weights are read elsewhere, not by calling the
    module, or the modules do not take part in the forward pass.
    """
    by_name: dict[str, list[nn.Parameter]] = {}
    for name, module in _adapters(loss.model):
        # Not those of a layer inside it: peft nests the adapters of several parameters of one module.
        own = [p for key, p in module.named_parameters() if key.startswith("lora_") and p.requires_grad]
        by_name.setdefault(name, []).extend(own)
    matrices = [p for group in by_name.values() for p in group]
    batch = _examples(loss)
    with evaluating(loss), torch.enable_grad():
        loss_D, _ = loss.document_losses(batch.tokens_T, batch.labels_T, batch.positions_T, batch.lengths)
        total = loss_D.sum()
        if total.requires_grad:
            gradients = iter(torch.autograd.grad(total, matrices, allow_unused=True))
        else:  # no adapter has an effect
            gradients = iter([None] * len(matrices))
    # Of a new adapter one matrix is zero, so that only the gradient of that one is not.
    touched = {name: [_is_nonzero(next(gradients)) for _ in group] for name, group in by_name.items()}
    without = sorted(name for name, flags in touched.items() if not any(flags))
    reason = f"the loss does not depend on the adapters of {', '.join(without)}" if without else None
    return _without_losses(Comparison(EFFECT, len(without) / max(1, len(touched)), 0.0, reason))


def compare_router_loss(loss: CausalLoss) -> LoadedComparison | None:
    """Compare the router loss of one document, before its coefficient, with that of the model's own class.

    None if the class does not compute one. All ranks compute together, because weights may be sharded.
    """
    limit = limits_of(loss.compute_dtype, loss.model).loss
    tokens_t, labels_t = next(_examples(loss).documents())
    positions_t = torch.arange(len(tokens_t), device=tokens_t.device)
    if loss.route(tokens_t, labels_t, positions_t, [len(tokens_t)]) is None:
        comparison = Comparison(ROUTER_LOSS, math.inf, limit, "the routers of this class were not found")
        return LoadedComparison(comparison, math.nan, math.nan)
    with loss.routing.recording():  # of the class's own forward: what both compute from is the same
        own = _own_router_loss(loss, tokens_t)
    sums = loss.routing.sums()
    if own is None or sums is None:
        return None
    num_rows = len(sums.count_LE) * sums.num_tokens
    value = load_balancing_loss(sums.count_LE.sum(0) / num_rows, sums.probability_LE.sum(0), num_rows)
    return LoadedComparison(Comparison(ROUTER_LOSS, relative_difference(value, own), limit), float(value), float(own))


def method_differs(result: LoadedComparison) -> RunFault:
    """Return the error of a method that is not applied as planned."""
    comparison = result.comparison
    if comparison.name == ROUTER_LOSS:
        numbers = f"{result.loss:.6g} instead of {result.own_loss:.6g}"
        return RunFault(
            f"the router loss is not that of the model's own class: {comparison.reason or numbers}",
            where="optimization.router_loss",
            remedy="set optimization.router_loss: {coefficient: 0} to train without it",
            code="model_differs",
        )
    return RunFault(
        f"the adapters are not those of the plan: {comparison.reason}",
        where="method.target_modules",
        remedy="list in method.target_modules only modules that can be adapted, without those above",
        code="model_differs",
    )


def _without_losses(comparison: Comparison) -> LoadedComparison:
    return LoadedComparison(comparison, math.nan, math.nan)


def _examples(loss: CausalLoss) -> Examples:
    inner = causal_lm(loss.model)
    return examples(inner.config, lengths=LENGTHS, device=next(inner.parameters()).device)


def _own_router_loss(loss: CausalLoss, tokens_t: Tensor) -> Tensor | None:
    """The router loss that the class computes itself; None if it has none."""
    inner: Any = causal_lm(loss.model)
    with evaluating(loss), torch.no_grad(), attention_of(inner, None), autocast_to(loss.compute_dtype, tokens_t.device):
        try:
            output = inner(input_ids=tokens_t[None], use_cache=False, output_router_logits=True)
        except TypeError:  # the forward has no such argument
            return None
    own = getattr(output, "aux_loss", None)
    return own if isinstance(own, Tensor) else None


def _adapters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every layer of peft with an adapter, and its name as in the plan."""
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer) or not module.r:
            continue
        parts = [part for part in path.split(".") if part != "base_layer"]
        name = parts[-1]
        if isinstance(module, ParamWrapper) and module.num_experts > 1:
            name = f"experts.{name if module.parameter_name == 'weight' else module.parameter_name}"
        yield name, module


def _is_nonzero(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())
