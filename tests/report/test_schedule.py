"""The learning rate of the proof equals that of training, computed independently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.configs.plan import BatchFacts, Plan
from tunesmith.configs.sections.optimization import Optimization
from tunesmith.report.schedule import planned_rate
from tunesmith.training.optim.schedule import learning_rate


class _Recipe:
    def __init__(self, optimization: Optimization):
        self.optimization = optimization


def plan_of(optimization: Optimization, total_steps: int, warmup_steps: int) -> Plan:
    batch = BatchFacts.model_construct(total_steps=total_steps, warmup_steps=warmup_steps)
    return Plan.model_construct(recipe=_Recipe(optimization), batch=batch)


@given(st.data())
def test_planned_rate_equals_the_learning_rate_of_training(data):
    total = data.draw(st.integers(1, 500))
    warmup = data.draw(st.integers(0, total))
    optimization = Optimization(
        learning_rate=data.draw(st.floats(0, 1)),
        schedule=data.draw(st.sampled_from(["cosine", "linear", "constant"])),
        min_learning_rate_fraction=data.draw(st.floats(0, 1)),
    )
    for step in {1, warmup, warmup + 1, total, data.draw(st.integers(1, total))} - {0}:
        expected = learning_rate(step, total_steps=total, warmup_steps=warmup, optimization=optimization)
        assert planned_rate(plan_of(optimization, total, warmup), step) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_cosine_schedule_has_the_documented_values():
    plan = plan_of(Optimization(learning_rate=1.0, schedule="cosine", min_learning_rate_fraction=0.1), 12, 2)
    rates = [planned_rate(plan, step) for step in range(1, 13)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.55), "halfway between the peak and the minimum"
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert rates[-1] > 0.1, "only the step after the last would be at the minimum"
