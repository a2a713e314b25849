"""How a model tells the two texts of a pair apart: BERT embeds their token types, 0 for the first, 1 for the second."""

import json
from pathlib import Path
from typing import Any

_TYPED = ("bert",)
"""Supported model types that embed token types (RoBERTa and DistilBERT have none)."""


def pair_separator(directory: Path, model_type: str) -> int | None:
    """Return the token after the first text of a pair, if the tokenizer gives the second text another type and the
    model embeds types; None otherwise."""
    path = directory / "tokenizer.json"
    if model_type not in _TYPED or not path.is_file():
        return None
    processor = json.loads(path.read_text(encoding="utf-8")).get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        if part.get("type") == "BertProcessing":
            return part["sep"][1]
        if part.get("type") == "TemplateProcessing":
            return _separator(part)
    return None


def _separator(template: dict[str, Any]) -> int | None:
    between: str | None = None
    for piece in template["pair"]:
        if "SpecialToken" in piece:
            between = piece["SpecialToken"]["id"]
        elif piece["Sequence"]["id"] == "A":
            between = None
        else:
            typed = piece["Sequence"]["type_id"] == 1 and between is not None
            return template["special_tokens"][between]["ids"][0] if typed else None
    return None
