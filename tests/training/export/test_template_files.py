"""The templates of an export give the prompts of the training, in any tool that renders them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.data.tokenization.families import CHATML, QWEN_3
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.training.export.template_files import write_templates

QUESTION = [{"role": "user", "content": "Hi"}]
VALUES = {"enable_thinking": False}


def plan_of(base: Path, chosen: Path | None, values: dict):
    recipe = SimpleNamespace(model=SimpleNamespace(chat_template_kwargs=values))
    return SimpleNamespace(recipe=recipe, model=SimpleNamespace(directory=str(base), chat_template=chosen))


@pytest.mark.parametrize("form", ["tokenizer_config", "file", "list", "recipe"])
def test_values_are_defaults_of_the_exported_template(tiny_llama, tmp_path, form):
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    path, chosen = base / "tokenizer_config.json", None
    config = {**json.loads(path.read_text()), "chat_template": QWEN_3}
    if form == "list":
        names = {"default": QWEN_3, "tool_use": QWEN_3 + "{{- 'tools' }}"}
        config["chat_template"] = [{"name": name, "template": text} for name, text in names.items()]
    if form in ("file", "recipe"):
        config["chat_template"] = CHATML
        chosen = base / "chat_template.jinja" if form == "file" else tmp_path / "chosen.jinja"
        chosen.write_text(QWEN_3)
    path.write_text(json.dumps(config))
    export = Path(shutil.copytree(base, tmp_path / "export"))
    write_templates(plan_of(base, chosen if form == "recipe" else None, VALUES), export)  # type: ignore[arg-type]
    trained = Tokenizer.load(base, chosen, template_kwargs=VALUES)
    exported = Tokenizer.load(export)
    for tools in (None, [{"type": "function", "function": {"name": "add"}}]):
        prompts = [t.template.render(QUESTION, tools, add_generation_prompt=True) for t in (trained, exported)]  # type: ignore[union-attr]
        assert prompts[0] == prompts[1]
    text = (export / "chat_template.jinja").read_text()
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    assert plain.render(messages=QUESTION, add_generation_prompt=True).endswith("</think>\n\n")
    assert "chat_template" not in json.loads((export / "tokenizer_config.json").read_text())


def test_without_values_the_files_are_those_of_the_model(tiny_llama, tmp_path):
    export = Path(shutil.copytree(tiny_llama, tmp_path / "export"))
    write_templates(plan_of(tiny_llama, None, {}), export)  # type: ignore[arg-type]
    assert {p.name: p.read_bytes() for p in export.iterdir()} == {p.name: p.read_bytes() for p in tiny_llama.iterdir()}
