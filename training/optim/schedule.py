"""The learning rate schedule as a pure function of the step: no state that a resumed run could lose."""

import math

from tunesmith.configs.sections.optimization import Optimization


def learning_rate(step: int, *, total_steps: int, warmup_steps: int, optimization: Optimization) -> float:
    """Return the learning rate of step number `step`, counted from 1.

    It rises linearly to its peak at step `warmup_steps`, then decays along the schedule so that the step after the last
    would use `min_learning_rate_fraction` of the peak: no step is wasted on a learning rate of zero.
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
