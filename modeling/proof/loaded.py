"""The proof on the loaded weights of a run: losses only, in the run's precision, before the first step."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tunesmith.errors import RunFault
from tunesmith.modeling.loading.attention_choice import attention_of
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.forward_path import ForwardPath
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.proof.compare import (
    PATHS,
    Comparison,
    reason_of,
    reference_of,
)
from tunesmith.modeling.proof.examples import Examples, examples
from tunesmith.modeling.proof.limits import limits_of, relative_difference

LENGTHS = (16, 4, 8)
"""Tokens of the documents: fewer than those of the plan's proof, which looks for leaks and compares gradients."""


@dataclass(frozen=True)
class LoadedComparison:
    """The losses of one path and of the model's own forward, in nats per supervised token."""

    comparison: Comparison
    loss: float
    own_loss: float


def prove_loaded(
    loss: CausalLoss,
    *,
    agree: Callable[[bool], bool] = bool,
    path: ForwardPath | None = None,
    one_batch: bool = False,
) -> tuple[ForwardPath | None, list[LoadedComparison]]:
    """Compare the losses of a loaded model with those of its own forward.

    loss: the run's loss module; it uses the path that holds afterwards. agree: collective that returns whether a flag
    is set on any rank: all ranks compute together, because weights may be sharded, and use the same path. path: the
    planned one; None: the first that holds. one_batch: see ForwardPath. Returns the path, None if none holds, and all
    comparisons. Errors of the model's own forward are raised.
    """
    inner = causal_lm(loss.model)
    device = next(inner.parameters()).device
    batch = examples(inner.config, lengths=LENGTHS, device=device)
    with evaluating(loss), attention_of(inner, None):
        own = reference_of(loss.model, batch, compute_dtype=loss.compute_dtype, gradients=False)
    own_D = _by_document(own.loss_T, batch)
    results: list[LoadedComparison] = []
    paths = [path] if path is not None else [replace(p, one_batch=one_batch) for p in PATHS]
    for candidate in paths:
        results.append(_compare(loss, candidate, batch, own_D))
        if not agree(not results[-1].comparison.holds):
            return candidate, results
    return None, results


def _compare(loss: CausalLoss, path: ForwardPath, batch: Examples, own_D: torch.Tensor) -> LoadedComparison:
    name, limit = f"loss ({path})", limits_of(loss.compute_dtype, loss.model).loss
    count = int((batch.labels_T >= 0).sum())
    own_loss = float(own_D.sum()) / count
    try:
        loss.use(path)
        with evaluating(loss), torch.no_grad():
            arguments = (batch.tokens_T, batch.labels_T, batch.positions_T, batch.lengths)
            loss_D = _by_document(loss(*arguments, by_token=True).loss_sum.cpu(), batch)
    except Exception as error:  # as for the cut model: the forward of any class may fail in its own way
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return LoadedComparison(Comparison(name, float("inf"), limit, reason_of(error)), float("nan"), own_loss)
    difference = relative_difference(loss_D, own_D)
    return LoadedComparison(Comparison(name, difference, limit), float(loss_D.sum()) / count, own_loss)


def _by_document(loss_T: torch.Tensor, batch: Examples) -> torch.Tensor:
    """fp64 [D]: sums over documents, where the rounding of single tokens cancels."""
    return torch.stack([loss_t.double().sum() for loss_t in loss_T.split(batch.lengths)])


def differing(result: LoadedComparison, where: str) -> RunFault:
    """Return the error of a model whose loss differs from that of its own forward, with both losses."""
    comparison = result.comparison
    numbers = f"{result.loss:.6g} nats per token instead of {result.own_loss:.6g}"
    why = comparison.reason or f"relative difference {comparison.difference:.1e}, limit {comparison.limit:.1e}"
    return RunFault(
        f"the loss of the loaded model differs from that of its own forward: {numbers} ({why})",
        where=f"{comparison.name}, {where}",
        remedy="run again with kernels: off; if it still differs, use precision: fp32 or a method without quantization",
        code="model_differs",
    )
