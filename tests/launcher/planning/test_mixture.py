"""The plan of a mixture: an epoch has as many samples as the mixture says, and each data set has its line."""

import pytest

from tunesmith.configs.micro_batch import halved
from tunesmith.configs.plan import DataFacts, DataSetFacts
from tunesmith.data.index.mixing import with_shares
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.training.checkpoint.fingerprints import fingerprints_of

CPU = Hardware(2, "cores of this machine", 16 << 30, "free on this machine", frozenset())
SETS = "data.train=[{path: support.jsonl, weight: 3}, {path: general.jsonl, weight: 1}]"


@pytest.fixture
def plan_of(a_recipe, a_model, some_data):
    """plan_of("data.mixing.epoch_samples=60", ...) -> plan of 30 rows of support and 70 of general."""

    def planned(*overrides: str, sets: str = SETS):
        recipe = a_recipe(sets, *overrides)
        facts: DataFacts = some_data(100)
        datasets = [
            DataSetFacts(name="support", row_ranges=[(0, 30)], num_rows=30, num_samples=30, validation_rows=6),
            DataSetFacts(name="general", row_ranges=[(30, 100)], num_rows=70, first_sample=30, num_samples=70),
        ]
        data = with_shares(facts.model_copy(update={"datasets": datasets}), recipe)
        return make_plan(recipe, a_model(), data, CPU)

    return planned


def reasons(plan) -> dict[str, tuple[object, str]]:
    return {choice.key: (choice.value, choice.reason) for choice in plan.choices}


def test_the_choices_state_samples_shares_and_passes(plan_of):
    choices = reasons(plan_of())
    assert choices["epoch_samples"] == (100, "total; shares hold in rows")
    assert choices["dataset support"] == (75, "75.0% of an epoch, weight 3: 2.5 x its 30 rows")
    assert choices["dataset general"] == (25, "25.0% of an epoch, weight 1: 0.357 x its 70 rows")
    packed = reasons(plan_of("data.packing=true"))
    assert packed["dataset general"][1].endswith("0.357 x its 70 packed sequences of 70 rows")


def test_steps_and_the_fallback_of_the_micro_batch_follow_the_epoch_of_the_mixture(plan_of):
    plan = plan_of("data.mixing={epoch_samples: 60}", "optimization.epochs=2")
    assert (plan.batch.total_steps, plan.batch.steps_per_epoch) == (15, 7.5)
    assert reasons(plan)["epoch_samples"] == (60, "data.mixing; shares hold in rows")
    sizes = "optimization.global_batch_size=64", "optimization.micro_batch_size=8"
    tiny = plan_of("data.mixing={epoch_samples: 4}", *sizes)
    assert tiny.batch.total_steps == 1
    assert tiny.batch.micro_batch_size == 4  # a step has no more samples than the run
    assert halved(tiny, "in the test").batch.grad_accum_steps == 2


def test_a_temperature_is_the_reason_of_its_shares(plan_of):
    unweighted = "data.train=[support.jsonl, {path: general.jsonl}]"
    choices = reasons(plan_of("data.mixing={temperature: 2}", sets=unweighted))
    assert choices["dataset support"] == (40, "40.0% of an epoch, temperature 2: 1.33 x its 30 rows")
    assert "proportional to its size: 1 x its 30 rows" in reasons(plan_of(sets=unweighted))["dataset support"][1]


def test_a_checkpoint_belongs_to_its_shares(plan_of):
    first, other = (fingerprints_of(plan_of(*overrides)) for overrides in ((), ("data.mixing={epoch_samples: 60}",)))
    assert {key for key in first if first[key] != other[key]} == {"mixture"}


def test_a_run_without_a_mixture_has_no_such_fingerprint(a_recipe, a_model, some_data):
    plan = make_plan(a_recipe(), a_model(), some_data(100), CPU)
    assert "mixture" not in fingerprints_of(plan)
    assert not [choice for choice in plan.choices if choice.key.startswith(("dataset", "epoch_samples"))]
