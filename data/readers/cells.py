"""Cells of tables that contain JSON."""

import json
from typing import Any

from tunesmith.data.refusal import Refusal

NESTED = ("messages", "conversations", "tools", "history")
"""Columns whose text cells are parsed as JSON."""
EMPTY = Refusal("empty_file", "the file has no rows", "add rows, or leave the file out")


def nested(text: str, key: str) -> Any:
    """Parse a cell; return its value, or a Refusal."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return Refusal("invalid_json", f'the column "{key}" is not valid JSON: {error}', "write each cell as JSON")
