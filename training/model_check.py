"""Compares the loaded model with its own forward before the first step: an event, and the end of the run if they
differ."""

import math

from tunesmith.configs.plan import Plan
from tunesmith.modeling.losses.causal import CausalLoss
from tunesmith.modeling.losses.task_loss import planned_path
from tunesmith.modeling.proof.loaded import LoadedComparison, differing, prove_loaded
from tunesmith.modeling.proof.method import (
    EFFECT,
    compare_adapters,
    compare_effects,
    compare_router_loss,
    method_differs,
)
from tunesmith.rundir.events import ModelProofEvent
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.router_loss import router_coefficient
from tunesmith.training.journal import Journal


def check_model(loss: CausalLoss, plan: Plan, ranks: Ranks, journal: Journal) -> None:
    """Compare losses in the run's precision on the loaded (quantized, sharded) weights; all ranks together.

    With a proof in the plan its path is compared, otherwise the first path that holds is used. RunFault with both
    losses if none does, or if the planned adapters or the router loss are not applied.
    """
    if plan.recipe.task_facts.model != "causal":
        return
    planned = planned_path(plan)
    path, results = prove_loaded(
        loss, agree=ranks.any, path=planned if plan.model.proof else None, one_batch=planned.one_batch
    )
    added = [] if path is None else _compare_method(loss, plan)
    journal.write(
        ModelProofEvent(
            packing=None if path is None else path.packed,
            loss=None if path is None else "fused" if path.fused else "model",
            items=[_item(result) for result in (*results, *added)],
        )
    )
    if path is None:
        raise differing(results[-1], plan.compute.precision)
    for result in added:
        if not ranks.any(not result.comparison.holds):
            if result.comparison.reason is not None:
                journal.warning(result.comparison.reason, code="adapters_missing")
            continue
        if result.comparison.name != EFFECT or isinstance(getattr(plan.recipe.method, "target_modules", None), list):
            raise method_differs(result)
        # The user asked for every linear layer. Some take no part in the loss: the choice of keys of sparse attention.
        journal.warning(f"{result.comparison.reason}, which stay without effect", code="adapter_without_effect")
    if path != planned:
        comparison = results[0].comparison
        why = comparison.reason or f"relative difference {comparison.difference:.1e}, limit {comparison.limit:.1e}"
        journal.warning(f"the model is trained {path}, because of {comparison.name}: {why}", code="model_path")


def _compare_method(loss: CausalLoss, plan: Plan) -> list[LoadedComparison]:
    """Compare what the method adds to the model. The plan decides what is compared, so that all ranks do the same."""
    results = []
    if plan.model.adapters:
        results.append(compare_adapters(loss.model, plan.model.adapters))
        if plan.parallelism.zero_stage != 3:  # there, a rank has a part of each weight
            results.append(compare_effects(loss))
    if router_coefficient(loss.model, plan.recipe.optimization.router_loss) and plan.model.num_experts is not None:
        result = compare_router_loss(loss)
        results += [] if result is None else [result]
    return results


def _item(result: LoadedComparison) -> dict[str, str | float | bool | None]:
    comparison = result.comparison
    return {
        "name": comparison.name,
        "difference": comparison.difference if math.isfinite(comparison.difference) else None,
        "limit": comparison.limit,
        "holds": comparison.holds,
        "reason": comparison.reason,
        "loss": result.loss if math.isfinite(result.loss) else None,
        "own_loss": result.own_loss if math.isfinite(result.own_loss) else None,
    }
