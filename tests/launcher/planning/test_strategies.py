"""`plan --compare`, and what an error of a run that does not fit proposes."""

import io
import json

import pytest
from rich.console import Console

from tests.launcher.planning.test_planner import CPU
from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.batching import DoesNotFit
from tunesmith.launcher.planning.machines import parse_machines
from tunesmith.launcher.planning.strategies import Planner, compare, fastest, with_what_would_fit
from tunesmith.launcher.planning.strategy_table import as_object, show_strategies

FULL = ("method.kind=full", "data.packing=true")


@pytest.fixture
def planner(a_model, some_data):
    """planner(hardware or machines): for a model with the shape of LLaMA-7B."""

    def model(recipe):
        trained = 40_000_000 if isinstance(recipe.method, Lora) else 6_738_415_616
        return a_model(
            num_layers=32, hidden_size=4096, feed_forward_size=11008, vocab_size=32000, num_params=6_738_415_616,
            num_trained_params=trained, tied_embeddings=False,
        )  # fmt: skip

    def make(place: str | Hardware) -> Planner:
        nodes = 1
        if isinstance(place, str):
            machines = parse_machines(place)
            place, nodes = machines.hardware(), machines.nodes
        data = some_data(1000, 512, 500)
        return Planner(model, data, place, nodes, True, None, None, None, lambda package: True)

    return make


def test_every_strategy_is_planned_and_the_fastest_that_fits_is_named(planner, a_recipe):
    recipe = a_recipe(*FULL)
    outcomes = compare(recipe, planner("8xA100"))
    by_name = {one.name: one for one in outcomes}
    stage = "parallelism.zero_stage={}, optimization.gradient_checkpointing={}"
    assert not by_name[stage.format(0, "false")].plan  # 16 bytes per weight: 108 GB
    sizes = [by_name[stage.format(number, "true")].needed_bytes for number in (0, 1, 2, 3)]
    assert sizes == sorted(sizes, reverse=True)
    best = fastest(outcomes)
    assert best is not None
    assert best.plan is not None
    assert all(best.step_s <= one.step_s for one in outcomes if one.plan and not one.changes_method)
    assert by_name["method.kind=qlora"].needed_bytes < 0.3 * by_name[stage.format(0, "false")].needed_bytes


def test_the_automatic_choice_is_about_as_fast_as_the_fastest(planner, a_recipe):
    """The lowest stage that fits, without checkpointing if activations fit. Estimates that differ by less than a
    quarter do not overrule it: they leave out what DeepSpeed itself costs."""
    for machines in ("8xA100", "8xH100", "2x8xH100", "4xH200"):
        outcomes = compare(a_recipe(*FULL, "optimization.global_batch_size=128"), planner(machines))
        best = fastest(outcomes)
        assert best is not None
        assert outcomes[0].step_s is not None
        assert outcomes[0].step_s <= 1.25 * best.step_s, (machines, best.name)


def test_the_table_and_the_json_name_what_does_not_fit(planner, a_recipe):
    recipe = a_recipe(*FULL)
    outcomes = compare(recipe, planner("8xA100"))
    stream = io.StringIO()
    show_strategies(recipe, outcomes, Console(file=stream, width=200))
    text = stream.getvalue()
    (line,) = (line for line in text.splitlines() if "zero_stage=0" in line and "checkpointing=false" in line)
    assert "does not fit" in line
    assert text.count("fastest") >= 1
    objects = json.loads(json.dumps([as_object(one, fastest(outcomes)) for one in outcomes]))
    assert sum(one["fastest"] for one in objects) == 1
    assert {one["fits"] for one in objects} == {True, False}
    assert all(one["needed_bytes"] for one in objects if one["fits"])


def test_without_rates_the_table_says_how_to_get_times(planner, a_recipe):
    recipe = a_recipe(*FULL)
    stream = io.StringIO()
    show_strategies(recipe, compare(recipe, planner("8x80GB")), Console(file=stream, width=200))
    assert "Times are unknown" in stream.getvalue()
    assert "8xH100" in stream.getvalue()


def test_an_error_names_what_would_fit_with_its_memory(planner, a_recipe):
    recipe = a_recipe(*FULL, "parallelism.zero_stage=0")
    eight = planner("8xA100")
    with pytest.raises(DoesNotFit) as caught:
        eight.plan(recipe)
    remedy = with_what_would_fit(caught.value, recipe, eight).remedy
    assert remedy is not None
    assert "--set optimization.gradient_checkpointing=true --set parallelism.zero_stage=3 needs" in remedy
    assert "--set method.kind=lora needs" in remedy
    assert remedy.count("needs") <= 4


def test_an_error_with_nothing_that_fits_is_unchanged(planner, a_recipe):
    recipe, tiny = a_recipe(*FULL), planner("RTX4090")
    with pytest.raises(DoesNotFit) as caught:
        planner("1x1GB").plan(recipe)
    assert with_what_would_fit(caught.value, recipe, planner("1x1GB")) is caught.value
    with pytest.raises(DoesNotFit) as caught:
        tiny.plan(recipe)
    assert "method.kind=qlora" in str(with_what_would_fit(caught.value, recipe, tiny).remedy)


def test_what_a_recipe_cannot_do_is_shown_with_the_reason(planner, a_recipe):
    """A refusal that has nothing to do with memory."""
    outcomes = compare(a_recipe(*FULL, "resources.workers=2"), planner(CPU))
    assert all(one.refusal for one in outcomes if one.plan is None)
    with pytest.raises(InputError):
        planner(CPU).plan(a_recipe("resources.gpus_per_node=4"))
