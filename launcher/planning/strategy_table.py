"""Shows a comparison of strategies on the terminal, or as JSON."""

from typing import Any

from rich.table import Table

from tunesmith.configs.recipe import Recipe
from tunesmith.launcher.planning.strategies import Outcome, fastest
from tunesmith.launcher.terminal import TextConsole
from tunesmith.report.wording import duration, size


def show_strategies(recipe: Recipe, outcomes: list[Outcome], console: TextConsole) -> None:
    best = fastest(outcomes)
    console.print(f"{recipe.name}: strategies, planned for the same rows and machines", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("strategy (--set)", "memory", "free", "micro-batch", "ZeRO", "step", "all steps", ""):
        table.add_column(heading, justify="left" if heading in ("strategy (--set)", "") else "right")
    for one in outcomes:
        row = as_object(one, best)
        plan = one.plan
        table.add_row(
            row["strategy"],
            size(row["needed_bytes"]) if row["needed_bytes"] else "",
            size(plan.compute.memory_bytes) if plan else "",
            str(plan.batch.micro_batch_size) if plan else "",
            str(plan.parallelism.zero_stage) if plan else "",
            duration(row["step_s"]) if row["step_s"] else "",
            duration(row["total_s"]) if row["total_s"] else "",
            row["refusal"] or ("fastest" if row["fastest"] else ""),
        )
    console.print(table)
    if best is None:
        console.print("\nTimes are unknown: name the GPUs by their product (--gpus 8xH100), or set precision to bf16.")
    elif best.overrides:
        console.print(f"\nThe fastest that fits: --set {' --set '.join(best.overrides)}")


def as_object(one: Outcome, best: Outcome | None) -> dict[str, Any]:
    """A strategy for `plan --compare --json`."""
    plan = one.plan
    return {
        "strategy": one.name,
        "overrides": list(one.overrides),
        "fits": plan is not None,
        "needed_bytes": one.needed_bytes,
        "micro_batch_size": plan.batch.micro_batch_size if plan else None,
        "zero_stage": plan.parallelism.zero_stage if plan else None,
        "gradient_checkpointing": plan.compute.gradient_checkpointing if plan else None,
        "step_s": one.step_s,
        "total_s": one.step_s * plan.batch.total_steps if plan and one.step_s else None,
        "fastest": one is best,
        "refusal": one.refusal,
    }
