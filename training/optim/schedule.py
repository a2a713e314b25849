"""The learning rate of every step, as plain arithmetic: no state, so a resumed run cannot drift from it."""

import math

from tunesmith.configs.recipe import Optimization


def learning_rate(step: int, *, total_steps: int, warmup_steps: int, optimization: Optimization) -> float:
    """The learning rate with which step number `step` (1 is the first) is made.

    It rises linearly and reaches its peak at step `warmup_steps`, then falls along the schedule so that the step after
    the last would be made with `min_learning_rate_fraction` of the peak: no step is wasted on a rate of zero.
    """
    peak = optimization.learning_rate
    if step <= warmup_steps:
        return peak * step / warmup_steps
    progress = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    floor = optimization.min_learning_rate_fraction
    if optimization.schedule == "constant":
        share = 1.0
    elif optimization.schedule == "linear":
        share = floor + (1.0 - floor) * (1.0 - progress)
    else:
        share = floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * share
