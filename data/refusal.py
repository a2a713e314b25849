"""A row that cannot be used: why, and what mends it."""

from typing import Any

MAX_SHOWN = 200


class Refusal(Exception):
    """reason: what is wrong with the row, one clause. remedy: what to do about it. Both stand in its receipt."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def name_of(value: object) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def keys_of(value: dict[str, Any]) -> str:
    """The first keys of a row, for a remedy; a row that is de-identified tells their number in this place."""
    names = [f'"{str(name)[:40]}"' for name in value]
    return "its keys are " + (", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none")


def excerpt(raw: object) -> str:
    """The first 200 characters of a row as it stood in its file, for the list of refused rows."""
    if isinstance(raw, bytes):
        raw = raw[: 4 * MAX_SHOWN].decode("utf-8", "backslashreplace")
    shown = str(raw).strip()[:MAX_SHOWN]
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")
