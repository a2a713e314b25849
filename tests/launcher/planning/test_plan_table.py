"""How a plan is shown on the terminal."""

import io
import json

from rich.console import Console

from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.plan_table import show_plan
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.planning.world import choose_world


def shown(a_recipe, a_model, some_data, *overrides: str, **facts) -> str:
    recipe = a_recipe(*overrides)
    hardware = Hardware(4, "cores of this machine", 64 << 30, "free on this machine", frozenset())
    world, choice = choose_world(recipe, hardware)
    plan = make_plan(
        recipe, a_model(), some_data().model_copy(update=facts), hardware, world=world, world_choice=choice
    )
    stream = io.StringIO()
    show_plan(plan, Console(file=stream, width=140))
    return stream.getvalue()


def test_the_complete_deepspeed_configuration_is_shown_if_used(a_recipe, a_model, some_data):
    text = shown(a_recipe, a_model, some_data, "resources.workers=2", "parallelism.zero_stage=2")
    _, heading, config = text.partition("DeepSpeed configuration:")
    assert heading
    assert json.loads(config)["zero_optimization"]["stage"] == 2
    assert "DeepSpeed" not in shown(a_recipe, a_model, some_data).splitlines()[-1]
    assert "configuration:" not in shown(a_recipe, a_model, some_data)


def test_the_number_of_processes_has_a_reason(a_recipe, a_model, some_data):
    text = shown(a_recipe, a_model, some_data, "resources.workers=[1,8]")
    (line,) = [line for line in text.splitlines() if line.startswith("workers ")]
    assert " 4 " in line
    assert "of 1 to 8, limited by 4 cores on 1 machine" in line


def test_sequences_beyond_the_positions_of_the_model_are_a_warning(a_recipe, a_model, some_data):
    recipe = a_recipe("data.max_seq_len=4096")
    hardware = Hardware(4, "cores of this machine", 64 << 30, "free on this machine", frozenset())
    for positions in (2048, 4096, None):
        model = a_model().model_copy(update={"trained_positions": positions})
        stream = io.StringIO()
        show_plan(make_plan(recipe, model, some_data(), hardware), Console(file=stream, width=240))
        assert ("trained with 2,048 positions" in stream.getvalue()) is (positions == 2048)


def test_rows_of_which_the_template_omits_something_are_a_warning(a_recipe, a_model, some_data):
    text = shown(a_recipe, a_model, some_data, omitted={"system messages": 1, "thinking": 1200})
    assert "warning     the chat template omits system messages in 1 row, thinking in 1,200 rows\n" in text
    assert "warning" not in shown(a_recipe, a_model, some_data, omitted={})
