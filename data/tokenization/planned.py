"""The tokenizer of a plan: the same in every process and on every day."""

from datetime import date
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.tokenization.tokenizer import Tokenizer


def planned_tokenizer(plan: Plan, directory: Path | None = None) -> Tokenizer:
    """Load the tokenizer of a run, with the recipe's chat template and values of its variables, and the date that the
    plan keeps for it.

    directory: one that was saved with its chat template; None: the base model's. Raises InputError.
    """
    today = rendering_date(plan.data.rendered_on)
    values = plan.recipe.model.chat_template_kwargs
    if directory is not None:
        return Tokenizer.load(directory, today=today, template_kwargs=values)
    template = Path(plan.model.chat_template) if plan.model.chat_template else None
    return Tokenizer.load(Path(plan.model.directory), template, today, values)


def rendering_date(rendered_on: str | None) -> date | None:
    """The date of a plan; None: the template prints none, or the plan of an earlier version does not have it."""
    return None if rendered_on is None else date.fromisoformat(rendered_on)
