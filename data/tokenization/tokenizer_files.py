"""The JSON files of a tokenizer's directory, and its chat templates."""

import json
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; empty if there is no such file. Raises InputError."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        problem = "not a JSON object"
    except (OSError, ValueError) as error:
        problem = str(error)
    raise InputError(f"{path.name} cannot be read: {problem}", where=str(path), remedy="download the model again")


def template_sources(directory: Path, config: dict[str, Any], chosen: Path | None) -> tuple[dict[str, str], str]:
    """Return the chat templates by name ("default", "tool_use"), and their location. config: tokenizer_config.json.
    chosen: a file that overrides them. Raises InputError."""
    try:
        if chosen is not None:
            return {"default": chosen.read_text(encoding="utf-8")}, str(chosen)
        file = directory / "chat_template.jinja"
        if file.is_file():
            more = sorted((directory / "additional_chat_templates").glob("*.jinja"))
            return {
                "default": file.read_text(encoding="utf-8"),
                **{p.stem: p.read_text(encoding="utf-8") for p in more},
            }, str(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the chat template cannot be read: {error}",
            where=str(chosen or directory),
            remedy="check model.chat_template",
        ) from error
    where = str(directory / "tokenizer_config.json")
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}, where
    return ({"default": template} if isinstance(template, str) else {}), where
