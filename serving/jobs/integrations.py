"""The integrations of a job: Weights & Biases, as the tracker of its run, with the account of the server."""

import importlib.util
import netrc
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from tunesmith.serving.errors import ApiError

MAX_TEXT, MAX_TAGS = 128, 50
TEXTS = ("project", "name", "entity")
WANDB_URL = "https://api.wandb.ai"


def read_integrations(value: Any) -> list[dict[str, Any]] | None:
    """Validate `integrations` of a request; None if there are none. Raises ApiError (400) with the parameter."""
    if value is None or value == []:
        return None
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(item, Mapping) for item in value)
    ):
        raise _invalid("`integrations` must be a list of objects.", "integrations")
    for number, item in enumerate(value):
        param = f"integrations[{number}]"
        if item.get("type") != "wandb":
            raise _invalid("The only supported type of integration is `wandb`.", f"{param}.type")
        if unknown := item.keys() - {"type", "wandb"}:
            raise _invalid(f"Unknown key of an integration: {min(map(str, unknown))[:64]}", param)
        _require_wandb(item.get("wandb"), f"{param}.wandb")
    if len(value) > 1:
        raise _invalid("A job can have one `wandb` integration.", "integrations")
    return [{"type": "wandb", "wandb": dict(item["wandb"])} for item in value]


def require_available(integrations: Sequence[Mapping[str, Any]] | None, environment: Mapping[str, str]) -> None:
    """Raise ApiError (400) if this server cannot use Weights & Biases: the package or an API key is missing."""
    if not integrations:
        return
    if importlib.util.find_spec("wandb") is None:
        raise _invalid("This server has no wandb package: pip install 'tunesmith[wandb]'.", "integrations")
    offline = environment.get("WANDB_MODE", "") in ("offline", "dryrun")
    if not offline and not environment.get("WANDB_API_KEY") and not _has_login(environment):
        raise _invalid(
            "This server has no Weights & Biases account: its operator sets WANDB_API_KEY, or runs `wandb login`.",
            "integrations",
        )


def trackers_of(integrations: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The key `tracking` of the recipe of such a job. As with the hosted API, only metrics and configuration are sent:
    report and export belong to the caller, not to everyone who can read the project."""
    return [
        {
            "kind": "wandb",
            **{key: text for key in TEXTS if (text := item["wandb"].get(key)) is not None},
            "tags": list(item["wandb"].get("tags") or []),
            "log_report": False,
            "log_model": False,
        }
        for item in integrations or ()
    ]


def _require_wandb(options: Any, param: str) -> None:
    if not isinstance(options, Mapping):
        raise _invalid(f"`{param}` must be an object.", param)
    if not options.get("project"):
        raise ApiError(
            f"Missing required parameter: '{param}.project'.",
            param=f"{param}.project",
            code="missing_required_parameter",
        )
    if unknown := options.keys() - {*TEXTS, "tags"}:
        name = min(map(str, unknown))[:64]
        raise ApiError(f"Unknown parameter: '{param}.{name}'.", param=f"{param}.{name}", code="unknown_parameter")
    for key in TEXTS:
        text = options.get(key)
        if text is not None and not _is_text(text):
            raise _invalid(f"`{param}.{key}` must be a string of 1 to {MAX_TEXT} characters.", f"{param}.{key}")
    tags = options.get("tags")
    if tags is not None and not (isinstance(tags, list) and len(tags) <= MAX_TAGS and all(map(_is_text, tags))):
        raise _invalid(f"`{param}.tags` must be a list of at most {MAX_TAGS} strings.", f"{param}.tags")


def _is_text(value: Any) -> bool:
    """Whether a value is a printable text of permitted length, without surrogates and null characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


def _has_login(environment: Mapping[str, str]) -> bool:
    host = urlsplit(environment.get("WANDB_BASE_URL") or WANDB_URL).hostname or ""
    try:
        return netrc.netrc(os.path.expanduser(environment.get("NETRC") or "~/.netrc")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _invalid(message: str, param: str) -> ApiError:
    return ApiError(message, param=param, code="invalid_value")
