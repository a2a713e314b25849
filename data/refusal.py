"""The reason why a row is rejected, and its remedy."""

from collections.abc import Mapping
from typing import Literal

MAX_SHOWN = 200

RefusalCode = Literal[
    # files and lines
    "empty_file",
    "cut_off",
    "unreadable_file",
    "invalid_json",
    "invalid_csv",
    "invalid_utf8",
    "too_deep",
    "too_large",
    # keys and values
    "not_an_object",
    "missing_key",
    "unknown_key",
    "unsupported_key",
    "not_text",
    "empty",
    "nul_character",
    "lone_surrogate",
    "other_task",
    "mixed_formats",
    # conversations
    "no_messages",
    "unknown_role",
    "invalid_weight",
    "unsupported_part",
    "invalid_tools",
    "invalid_tool_calls",
    "invalid_history",
    # labels
    "invalid_label",
    "unknown_label",
    # pairs of answers
    "equal_answers",
    "different_prompts",
    "no_chat_template",
    # tokens
    "template_failure",
    "omitted_field",
    "unknown_character",
    "unknown_token",
    "special_token",
    "not_supervised",
    "too_long",
    # against other rows
    "equals_training_row",
]
"""Machine-readable reasons. Not written to receipts, which have reason and remedy."""


class Refusal(Exception):
    """Raised for a row that cannot be used. reason: what is wrong, one clause. remedy: what to do about it. Both are
    written to its receipt. message: index of the affected message, None for the row as a whole; fault: the reason
    without the message's place."""

    def __init__(
        self, code: RefusalCode, reason: str, remedy: str, *, message: int | None = None, fault: str | None = None
    ):
        super().__init__(reason)
        self.code: RefusalCode = code
        self.reason, self.remedy = reason, remedy
        self.message, self.fault = message, reason if fault is None else fault


def name_of(value: object) -> str:
    """Return the name of a JSON value's type, with an article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def keys_of(value: Mapping[str, object]) -> str:
    """List the first keys of a row, for a remedy; for a de-identified row the remedy has only their number."""
    names = [f'"{str(name)[:40]}"' for name in value]
    return "its keys are " + (", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none")


def excerpt(raw: object) -> str:
    """Return the first 200 characters of a row as in its file, for the list of rejected rows."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * MAX_SHOWN].decode("utf-8", "backslashreplace")
    shown = str(raw).strip()[:MAX_SHOWN]
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")
