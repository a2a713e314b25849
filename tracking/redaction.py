"""Removes credentials from texts that leave the run: a tracker's configuration, its log, warnings."""

import os
import re
from typing import Any

_USER = re.compile(r"(?<=://)[^/\s?#@]+@")
_QUERY = re.compile(r"(?<=[A-Za-z0-9/_.~%-])\?[^\s'\"]*")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)$")
_MIN_SECRET = 6


def without_secrets(text: str) -> str:
    """Remove user names, passwords and query strings of URLs, and the values of variables such as WANDB_API_KEY."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET:
            text = text.replace(value, "***")
    return _URL.sub(lambda match: _QUERY.sub("", _USER.sub("", match[0])), text)


def values_without_secrets(value: Any) -> Any:
    """The same for every text in a JSON value."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: values_without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [values_without_secrets(item) for item in value]
    return value
