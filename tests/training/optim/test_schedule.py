import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.configs.sections.optimization import Optimization
from tunesmith.training.optim.schedule import learning_rate


def rates(total_steps: int, warmup_steps: int, **options) -> list[float]:
    optimization = Optimization(**options)
    return [
        learning_rate(step, total_steps=total_steps, warmup_steps=warmup_steps, optimization=optimization)
        for step in range(1, total_steps + 1)
    ]


def test_warmup_rises_linearly_to_the_peak():
    assert rates(10, 4, learning_rate=1.0, schedule="constant")[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_follows_the_formula_and_never_reaches_zero():
    values = rates(8, 0, learning_rate=2.0, schedule="cosine")
    assert values == pytest.approx([1.0 + math.cos(math.pi * i / 8) for i in range(8)])
    assert values[0] == 2.0
    assert values[-1] > 0.0


def test_linear_ends_above_its_floor():
    assert rates(4, 0, learning_rate=1.0, schedule="linear", min_learning_rate_fraction=0.2) == pytest.approx(
        [1.0, 0.8, 0.6, 0.4]
    )


@given(
    total=st.integers(1, 500),
    warmup_share=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    floor=st.floats(0, 1),
)
def test_rates_are_positive_and_do_not_rise_after_the_warmup(total, warmup_share, schedule, floor):
    warmup = int(total * warmup_share)
    values = rates(total, warmup, learning_rate=3e-4, schedule=schedule, min_learning_rate_fraction=floor)
    assert all(0.0 < value <= 3e-4 * (1 + 1e-12) for value in values)
    after = values[warmup:]
    assert all(later <= earlier for earlier, later in pairwise(after))
    assert values[:warmup] == sorted(values[:warmup])
