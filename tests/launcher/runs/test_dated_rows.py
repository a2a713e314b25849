"""A run whose chat template prints the date is resumed on another day with the rows and the date of its plan."""

import io
import json
from datetime import date

import pytest

from tests.data.conftest import make_tokenizer_directory  # noqa: F401
from tests.data.tokenization.families import LLAMA_3_2
from tunesmith.configs.plan import Plan
from tunesmith.data.index.prepare import prepare
from tunesmith.data.tokenization.planned import planned_tokenizer
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.launcher.backends.local import Local
from tunesmith.launcher.hardware import Hardware
from tunesmith.launcher.planning.planner import make_plan
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.start import _rows_again

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
ROWS = {
    "chat": {"messages": MESSAGES},
    "completion": {"prompt": "Hi", "completion": "Hello."},
    "preference": {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"},
    "text": {"text": "Hello."},
}


@pytest.mark.parametrize("task", ROWS)
def test_the_date_of_the_plan_is_used_again(a_recipe, a_model, make_tokenizer_directory, tmp_path, task):  # noqa: F811
    directory = make_tokenizer_directory(LLAMA_3_2)
    (tmp_path / "support.jsonl").write_text(json.dumps(ROWS[task]) + "\n")
    recipe, model = a_recipe("data.validation=0", f"task={task}"), a_model(directory=str(directory))
    data = prepare(recipe, Tokenizer.load(directory, today=date(2024, 2, 29)), recipe_dir=tmp_path)
    plan = make_plan(recipe, model, data, Hardware(2, "", 64 << 30, "", frozenset()))
    plan = Plan.model_validate_json(plan.model_dump_json())
    assert _rows_again(plan, model, tmp_path, Progress(io.StringIO()), Local()) == data
    assert "29 Feb 2024" in planned_tokenizer(plan).template.render(MESSAGES)
    undated = plan.model_copy(update={"data": data.model_copy(update={"rendered_on": None})})  # of an earlier version
    assert _rows_again(undated, model, tmp_path, Progress(io.StringIO()), Local()).rendered_on == f"{date.today()}"
