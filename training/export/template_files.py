"""The chat templates of an export: the recipe's, or the model's, with the recipe's values of their variables as
defaults, so that every tool that renders them gives the prompts of the training."""

import shutil
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.tokenization.template_variables import with_defaults
from tunesmith.data.tokenization.tokenizer_files import read_json, template_sources
from tunesmith.modeling.base_model.companion_files import MORE_TEMPLATES, TEMPLATE
from tunesmith.rundir.atomic import write_json, write_text


def write_templates(plan: Plan, directory: Path) -> None:
    """Replace the chat templates among the files of an export, unless they are those of the training already."""
    values = plan.recipe.model.chat_template_kwargs
    chosen = Path(plan.model.chat_template) if plan.model.chat_template is not None else None
    if chosen is None and not values:
        return
    config = read_json(directory / "tokenizer_config.json")
    sources, _ = template_sources(Path(plan.model.directory), config, chosen)
    shutil.rmtree(directory / MORE_TEMPLATES, ignore_errors=True)
    if config.pop("chat_template", None) is not None:
        write_json(directory / "tokenizer_config.json", config)
    for name, source in sources.items():
        path = directory / TEMPLATE if name == "default" else directory / MORE_TEMPLATES / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        write_text(path, with_defaults(source, values))
