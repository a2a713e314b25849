"""The planned learning rate, computed independently of training, to verify the log."""

import math

from tunesmith.configs.plan import Plan


def planned_rate(plan: Plan, step: int) -> float:
    """Return the learning rate of step `step`, counted from 1.

    Linear warmup to the peak at `warmup_steps`, then the schedule. It reaches `min_learning_rate_fraction` of the peak
    one step after the last.
    """
    optimization, warmup, total = plan.recipe.optimization, plan.batch.warmup_steps, plan.batch.total_steps
    peak, floor = optimization.learning_rate, optimization.min_learning_rate_fraction
    if step <= warmup:
        return peak * step / warmup
    done = (step - 1 - warmup) / max(1, total - warmup)
    if optimization.schedule == "constant":
        return peak
    falling = 1.0 - done if optimization.schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
    return peak * (floor + (1.0 - floor) * falling)
