"""The model proof: our loss, gradients and packing compared with the model's own forward on each document alone.

T tokens of all documents, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tunesmith.errors import TunesmithError
from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.linear_cross_entropy import IGNORED
from tunesmith.modeling.loading.attention_choice import attention_of, set_attention
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.forward_path import PACKED_AND_FUSED, ForwardPath
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.precision import autocast_to
from tunesmith.modeling.proof.examples import Examples, examples
from tunesmith.modeling.proof.generation import compare_generation
from tunesmith.modeling.proof.limits import limits_of, relative_difference

PATHS = (
    PACKED_AND_FUSED,
    ForwardPath(packed=False),
    ForwardPath(packed=False, padded=False),
    ForwardPath(packed=False, fused=False),
    ForwardPath(packed=False, fused=False, padded=False),
)
"""In the order of preference: the first that holds is used."""


@dataclass(frozen=True)
class Comparison:
    """One comparison with the model's own forward."""

    name: str
    difference: float
    """Relative; infinity if a value is not finite or could not be computed."""
    limit: float
    reason: str | None = None
    """Why it could not be computed."""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the limit. NaN is not."""
        return self.difference <= self.limit


@dataclass(frozen=True)
class Findings:
    """What was found about a model. `loss` is None if no path equals the model's own forward."""

    packing: bool
    padding: bool
    loss: Literal["fused", "model"] | None
    cached_generation: bool
    attention: str
    """The model's own attention implementation, that of the reference."""
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def path(self) -> ForwardPath | None:
        """The path to train on; None if none holds."""
        if self.loss is None:
            return None
        return ForwardPath(packed=self.packing, fused=self.loss == "fused", padded=self.padding)

    def as_json(self) -> dict[str, Any]:
        """Return the findings for JSON; an infinite difference is null."""
        comparisons = [
            {**asdict(c), "difference": c.difference if math.isfinite(c.difference) else None, "holds": c.holds}
            for c in self.comparisons
        ]
        return {**asdict(self), "comparisons": comparisons}


@dataclass(frozen=True)
class Reference:
    """Results of the model's own forward."""

    loss_T: Tensor
    """fp32: loss of each supervised token, zero elsewhere."""
    gradients: dict[str, Tensor]
    """Of the summed loss, by parameter; empty if they are not compared."""


def prove(
    model: nn.Module,
    *,
    compute_dtype: torch.dtype | None = None,
    kernels: Kernels | None = None,
    documents: Examples | None = None,
    paths: Sequence[ForwardPath] = PATHS,
    gradients: bool = True,
    generation: bool = True,
) -> Findings:
    """Compare the paths of the loss, in their order, until one equals the model's own forward.

    model: a causal language model of transformers, with or without adapters, on any device. Its mode, attention
    implementation and `.grad` are the same afterwards. compute_dtype: as for CausalLoss. documents: None: random ones.
    gradients: compare those of the parameters that require one. generation: compare logits with and without a cache.
    A path that raises does not hold; errors of the model's own forward are raised.
    """
    inner = causal_lm(model)
    batch = documents or examples(inner.config, device=next(inner.parameters()).device)
    comparing = _Comparing(model, batch, compute_dtype, kernels or Kernels(), gradients)
    with evaluating(model), attention_of(inner, None):
        attention = str(inner.config._attn_implementation)
        comparing.reference = reference_of(model, batch, compute_dtype=compute_dtype, gradients=gradients)
        comparisons: list[Comparison] = []
        chosen = None
        for path in paths:
            results = comparing.compare(path)
            comparisons += results
            if all(result.holds for result in results):
                chosen = path
                break
        cached = False
        if generation:
            set_attention(inner, None)  # the paths have set theirs
            comparisons.append(_generation(inner, batch, compute_dtype))
            cached = comparisons[-1].holds
    loss: Literal["fused", "model"] | None = None if chosen is None else "fused" if chosen.fused else "model"
    packing, padding = chosen is not None and chosen.packed, chosen is None or chosen.padded
    return Findings(packing, padding, loss, cached, attention, comparisons)


def reference_of(
    model: nn.Module, batch: Examples, *, compute_dtype: torch.dtype | None = None, gradients: bool = True
) -> Reference:
    """Return the losses and gradients of the model's own forward, each document alone.

    The model's attention implementation must be its own, and the model in evaluation mode.
    """
    inner = causal_lm(model)
    with torch.set_grad_enabled(gradients), autocast_to(compute_dtype, batch.tokens_T.device):
        parts = [own_token_losses(inner, tokens_t, labels_t) for tokens_t, labels_t in batch.documents()]
        loss_T = torch.cat(parts)
    return Reference(loss_T.detach().cpu(), gradients_of(loss_T.sum(), model) if gradients else {})


def own_token_losses(model: PreTrainedModel, tokens_t: Tensor, labels_t: Tensor) -> Tensor:
    """Return the loss of each token of one document from the model's own logits, fp32 [t]."""
    output = model(input_ids=tokens_t[None], use_cache=False)
    logits_tV = (output.logits if hasattr(output, "logits") else output[0])[0].float()
    return cross_entropy(logits_tV, labels_t, ignore_index=IGNORED, reduction="none")


def gradients_of(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of the parameters that require one, on the CPU; zero where the loss does not depend on
    one."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros((), dtype=p.dtype) if gradient is None else gradient.detach().cpu()
        for (name, p), gradient in zip(trained.items(), values, strict=True)
    }


def reason_of(error: Exception) -> str:
    """Return an error as one line: its class, unless it is one of this package, and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, TunesmithError) else f"{type(error).__name__}: {lines[0]}"


@dataclass
class _Comparing:
    """The paths of one model against its reference."""

    model: nn.Module
    batch: Examples
    compute_dtype: torch.dtype | None
    kernels: Kernels
    gradients: bool
    reference: Reference | None = None

    def compare(self, path: ForwardPath) -> list[Comparison]:
        """Return the comparisons of a path: token losses, the training loss and its gradients."""
        limits = limits_of(self.compute_dtype, self.model)
        assert self.reference is not None
        try:
            loss_T, loss_sum, gradients = self._compute(path)
        except Exception as error:  # the forward of any class may fail in its own way: the reason is a finding
            return [Comparison(f"loss ({path})", math.inf, limits.loss, reason_of(error))]
        expected_T = self.reference.loss_T
        expected_sum = expected_T.double().sum()
        results = [
            Comparison(f"token losses ({path})", relative_difference(loss_T, expected_T), limits.loss),
            Comparison(f"loss ({path})", relative_difference(loss_sum, expected_sum), limits.loss),
        ]
        if self.reference.gradients:
            name, difference = worst_gradient(gradients, self.reference.gradients)
            results.append(Comparison(f"gradient of {name} ({path})", difference, limits.gradient))
        return results

    def _compute(self, path: ForwardPath) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        batch = self.batch
        loss = CausalLoss(self.model, compute_dtype=self.compute_dtype, kernels=self.kernels, path=path).eval()
        arguments = (batch.tokens_T, batch.labels_T, batch.positions_T, batch.lengths)
        with torch.no_grad():
            loss_T = loss(*arguments, by_token=True).loss_sum
        with torch.set_grad_enabled(bool(self.gradients)):
            loss_sum = loss(*arguments).loss_sum
        gradients = gradients_of(loss_sum, self.model) if self.gradients else {}
        return loss_T.cpu(), loss_sum.detach().cpu(), gradients


def worst_gradient(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[str, float]:
    """Return the parameter whose gradient differs most, and its relative difference.

    Relative to the norm of the expected gradient, at least a thousandth of the largest norm of any parameter: where
    terms cancel (a bias of keys has no effect on attention), only their rounding is left.
    """
    norms = {name: float(torch.linalg.vector_norm(g.double())) for name, g in expected.items()}
    floor = 1e-3 * max(norms.values(), default=0.0)
    differences = {}
    for name, gradient in expected.items():
        error = float(torch.linalg.vector_norm(gradients[name].double() - gradient.double()))
        differences[name] = error / max(norms[name], floor) if math.isfinite(error) and error else error
    worst = max(differences, key=lambda name: math.inf if math.isnan(differences[name]) else differences[name])
    return worst, math.inf if math.isnan(differences[worst]) else differences[worst]


def _generation(model: PreTrainedModel, batch: Examples, compute_dtype: torch.dtype | None) -> Comparison:
    limits = limits_of(compute_dtype, model)
    name = "generation with the cache"
    try:
        with autocast_to(compute_dtype, batch.tokens_T.device):
            difference = compare_generation(model, batch.tokens_T[: batch.lengths[0]])
    except Exception as error:  # as in `_Comparing.compare`
        return Comparison(name, math.inf, limits.gradient, reason_of(error))
    return Comparison(name, difference, limits.gradient)
