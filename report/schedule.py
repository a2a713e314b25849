"""The learning rate that the plan prescribes for a step, computed a second time so that the log can be held to it."""

import math

from tunesmith.configs.plan import Plan


def planned_rate(plan: Plan, step: int) -> float:
    """Learning rate of step number `step` (1 is the first): linear to the peak at `warmup_steps`, then along the
    schedule, so that the step after the last would have `min_learning_rate_fraction` of the peak."""
    optimization, warmup, total = plan.recipe.optimization, plan.batch.warmup_steps, plan.batch.total_steps
    peak, floor = optimization.learning_rate, optimization.min_learning_rate_fraction
    if step <= warmup:
        return peak * step / warmup
    done = (step - 1 - warmup) / max(1, total - warmup)
    if optimization.schedule == "constant":
        return peak
    falling = 1.0 - done if optimization.schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
    return peak * (floor + (1.0 - floor) * falling)
