"""Hyperparameters of a job, and the rules for `"auto"` (also in docs/serving-jobs.md):

n_epochs                  3; below 34 examples, enough for about 100 trained examples (at most 25 epochs); above 8,333,
                          at most 25,000 trained examples (at least 1 epoch)
batch_size                examples per optimizer step: 1/50 of the examples, rounded to a power of two, 1 to 32
learning_rate_multiplier  1, times the method's base rate: BASE_RATES
beta (dpo)                0.1
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.serving.errors import ApiError

BASE_RATES = {"supervised": 2e-4, "dpo": 2e-5}
"""For LoRA. Hu et al. 2021 and QLoRA (arXiv:2305.14314) train with 2e-4; preference training needs a tenth of it,
because its loss has no minimum that keeps the model close to its start."""
TARGET_EPOCHS, MIN_TRAINED, MAX_TRAINED, MAX_EPOCHS = 3, 100, 25_000, 25
BETA = 0.1
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Bounds:
    low: float
    high: float
    whole: bool


BOUNDS = {
    "n_epochs": Bounds(1, 50, True),
    "batch_size": Bounds(1, 256, True),
    "learning_rate_multiplier": Bounds(0, 100, False),
    "beta": Bounds(0, 2, False),
}
KEYS = {
    "supervised": ("batch_size", "learning_rate_multiplier", "n_epochs"),
    "dpo": ("batch_size", "learning_rate_multiplier", "n_epochs", "beta"),
}
METHODS = (*KEYS, "reinforcement")
Setting = float | Literal["auto"]
"""The value of a hyperparameter in a request."""


def read_method(body: Mapping[str, object]) -> tuple[str, dict[str, Setting]]:
    """(type of the method, its hyperparameters) of a request: from `method`, or from the deprecated top-level
    `hyperparameters`. Raises ApiError (400) with the invalid parameter."""
    method, deprecated = body.get("method"), body.get("hyperparameters")
    if method is None:
        return "supervised", _read(deprecated, "supervised", "hyperparameters")
    if not isinstance(method, Mapping):
        raise ApiError("`method` must be an object.", param="method", code="invalid_type")
    kind = method.get("type")
    if kind == "reinforcement":
        raise ApiError(
            "Reinforcement fine-tuning is not supported; supported methods: supervised and dpo.",
            param="method.type",
            code="unsupported_method",
        )
    if not isinstance(kind, str) or kind not in KEYS:
        raise ApiError(
            f"Unknown method {reprlib.repr(kind)}; supported methods: supervised and dpo.",
            param="method.type",
            code="invalid_value",
        )
    for other in METHODS:
        if other != kind and method.get(other) is not None:
            raise ApiError(
                f"`method.{other}` is not allowed for a method of type {kind}.",
                param=f"method.{other}",
                code="invalid_value",
            )
    section = {} if method.get(kind) is None else method[kind]
    if not isinstance(section, Mapping):
        raise ApiError(f"`method.{kind}` must be an object.", param=f"method.{kind}", code="invalid_type")
    _require_known(method, ("type", *METHODS), "method")
    _require_known(section, ("hyperparameters",), f"method.{kind}")
    hyperparameters = section.get("hyperparameters")
    if hyperparameters is not None and deprecated is not None:
        raise ApiError(
            "Set the hyperparameters once: in `method`, or in the deprecated `hyperparameters`.",
            param="hyperparameters",
            code="invalid_value",
        )
    if hyperparameters is None:
        return kind, _read(deprecated, kind, "hyperparameters")
    return kind, _read(hyperparameters, kind, f"method.{kind}.hyperparameters")


def resolve(method: str, settings: Mapping[str, Setting], num_examples: int) -> dict[str, float]:
    """Replace `"auto"`: every hyperparameter of the method as a number."""
    automatic = {
        "n_epochs": _auto_epochs(num_examples),
        "batch_size": _auto_batch(num_examples),
        "learning_rate_multiplier": 1.0,
        "beta": BETA,
    }
    numbers: dict[str, float] = {}
    for key in KEYS[method]:
        setting = settings.get(key, AUTO)
        numbers[key] = automatic[key] if setting == AUTO else setting
    numbers["batch_size"] = min(int(numbers["batch_size"]), num_examples)
    return numbers


def learning_rate(method: str, numbers: Mapping[str, float]) -> float:
    return BASE_RATES[method] * numbers["learning_rate_multiplier"]


def _auto_epochs(num_examples: int) -> int:
    if num_examples * TARGET_EPOCHS < MIN_TRAINED:
        return min(MAX_EPOCHS, MIN_TRAINED // num_examples)
    if num_examples * TARGET_EPOCHS > MAX_TRAINED:
        return max(1, MAX_TRAINED // num_examples)
    return TARGET_EPOCHS


def _auto_batch(num_examples: int) -> int:
    size = 1
    while size < 32 and size * 1.5 <= num_examples / 50:
        size *= 2
    return size


def _read(values: Any, method: str, where: str) -> dict[str, Setting]:
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ApiError(f"`{where}` must be an object.", param=where, code="invalid_type")
    _require_known(values, KEYS[method], where)
    return {key: _setting(values.get(key), key, f"{where}.{key}") for key in KEYS[method]}


def _require_known(values: Mapping[str, object], known: Sequence[str], where: str) -> None:
    """Raises ApiError for an unknown key: a misspelled one would have no effect."""
    for key in values:
        if key not in known:
            raise ApiError(
                f"Unknown parameter: `{where}.{key[:64]}`. Known parameters: {', '.join(known)}.",
                param=f"{where}.{key[:64]}",
                code="unknown_parameter",
            )


def _setting(value: Any, key: str, where: str) -> Setting:
    if value is None or value == AUTO:
        return AUTO
    bounds = BOUNDS[key]
    noun = "an integer" if bounds.whole else "a number"
    least = f"from {bounds.low:g} to" if bounds.whole else f"above {bounds.low:g}, at most"
    expected = f'`{where}` must be "auto" or {noun} {least} {bounds.high:g}'
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if not number or (bounds.whole and value != int(value)):
        raise ApiError(f"{expected}, not {reprlib.repr(value)}.", param=where, code="invalid_type")
    inside = bounds.low <= value <= bounds.high if bounds.whole else bounds.low < value <= bounds.high
    if not inside:
        raise ApiError(f"{expected}, not {reprlib.repr(value)}.", param=where, code="invalid_value")
    return int(value) if bounds.whole else float(value)
