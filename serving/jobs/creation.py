"""Validation of a request to create a job. Files and models are looked up by the route."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.serving.errors import ApiError
from tunesmith.serving.jobs.hyperparameters import Setting, read_method
from tunesmith.serving.jobs.integrations import read_integrations

KNOWN = (
    *("model", "training_file", "validation_file", "hyperparameters", "method", "suffix", "seed", "metadata"),
    "integrations",
)
MAX_SUFFIX, MAX_SEED = 64, 2**31 - 1
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512


@dataclass(frozen=True)
class NewJob:
    """A valid request. hyperparameters: of the method. seed: random if none was given."""

    model: str
    training_file: str
    validation_file: str | None
    method: str
    hyperparameters: dict[str, Setting]
    suffix: str
    seed: int
    metadata: dict[str, str] | None
    integrations: list[dict[str, Any]] | None


def read_new_job(body: Any) -> NewJob:
    """Validate a request body. Raises ApiError (400) with the invalid parameter."""
    if not isinstance(body, Mapping):
        raise ApiError("The request body must be a JSON object.", code="invalid_type")
    for key in body:
        if key not in KNOWN:
            raise ApiError(
                f"Unrecognized request argument supplied: {str(key)[:64]}",
                param=str(key)[:64],
                code="unknown_parameter",
            )
    method, hyperparameters = read_method(body)
    return NewJob(
        model=_text(body, "model"),
        training_file=_text(body, "training_file"),
        validation_file=_text(body, "validation_file") if body.get("validation_file") is not None else None,
        method=method,
        hyperparameters=hyperparameters,
        suffix=_suffix(body.get("suffix")),
        seed=_seed(body.get("seed")),
        metadata=read_metadata(body.get("metadata")),
        integrations=read_integrations(body.get("integrations")),
    )


def read_metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise ApiError("`metadata` must be an object of strings.", param="metadata", code="invalid_type")
    if len(value) > MAX_PAIRS:
        raise ApiError(f"`metadata` has more than {MAX_PAIRS} pairs.", param="metadata", code="object_above_max_size")
    for key, text in value.items():
        if len(key) > MAX_KEY or len(text) > MAX_VALUE:
            raise ApiError(
                f"`metadata` has a key longer than {MAX_KEY} or a value longer than {MAX_VALUE} characters.",
                param="metadata",
                code="string_above_max_length",
            )
        require_storable(key + text, "metadata")
    return dict(value)


def read_labels(query: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The pairs of a filter: `metadata[key]=value`. query: all parameters whose names begin with metadata. Raises
    ApiError: a filter that is misspelled must not select everything."""
    labels: dict[str, str] = {}
    for name, value in query:
        match = re.fullmatch(r"metadata\[(.*)\]", name, re.DOTALL)
        if match is None:
            message = "`metadata` must be either null or pairs: metadata[key]=value."
            raise ApiError(message, param=name[:80], code="invalid_value")
        require_storable(name + value, "metadata")
        if labels.setdefault(match[1], value) != value:
            message = f"`metadata` has two values of the key {match[1][:64]!r}."
            raise ApiError(message, param="metadata", code="invalid_value")
    if len(labels) > MAX_PAIRS:
        raise ApiError(f"`metadata` has more than {MAX_PAIRS} pairs.", param="metadata", code="object_above_max_size")
    return labels


def require_storable(text: str, param: str) -> None:
    """Raises ApiError for text that a database cannot store: null characters and lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ApiError(f"`{param}` is not valid text.", param=param, code="invalid_value") from None
    if "\0" in text:
        raise ApiError(f"`{param}` contains a null character.", param=param, code="invalid_value")


def _text(body: Mapping[str, object], key: str) -> str:
    value = body.get(key)
    if value is None:
        raise ApiError(f"Missing required parameter: '{key}'.", param=key, code="missing_required_parameter")
    if not isinstance(value, str) or not value:
        raise ApiError(f"`{key}` must be a string.", param=key, code="invalid_type")
    require_storable(value, key)
    return value


def _suffix(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ApiError("`suffix` must be a string.", param="suffix", code="invalid_type")
    if len(value) > MAX_SUFFIX:
        raise ApiError(
            f"`suffix` is longer than {MAX_SUFFIX} characters.", param="suffix", code="string_above_max_length"
        )
    require_storable(value, "suffix")
    return value


def _seed(value: Any) -> int:
    if value is None:
        return secrets.randbelow(MAX_SEED + 1)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise ApiError(f"`seed` must be an integer from 0 to {MAX_SEED}.", param="seed", code="invalid_value")
    return value
