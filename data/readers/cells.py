"""Texts inside rows that contain JSON: cells of tables, tools, arguments of calls."""

import json
from typing import Any

from tunesmith.data.readers.lines import MAX_DEPTH, is_too_deep
from tunesmith.data.refusal import Refusal

NESTED = ("messages", "conversations", "tools", "history")
"""Columns whose text cells are parsed as JSON."""
EMPTY = Refusal("empty_file", "the file has no rows", "add rows, or leave the file out")


def nested(text: str, key: str) -> Any:
    """Parse a cell; return its value, or a Refusal."""
    try:
        return parse_json(text)
    except ValueError as error:
        return Refusal("invalid_json", f'the column "{key}" is not valid JSON: {error}', "write each cell as JSON")


def parse_json(text: str) -> Any:
    """Parse JSON; return its value. Raises ValueError, also if it is nested more than MAX_DEPTH deep: templates and
    checks recurse into it."""
    if is_too_deep(text):
        raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")
    return json.loads(text)
