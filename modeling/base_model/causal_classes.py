"""The classes of transformers' causal mapping, read from its source: importing it would import torch."""

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path

_MAPPING = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


def causal_classes() -> tuple[str, ...] | None:
    """Return the names of all classes that AutoModelForCausalLM loads; None if transformers is not installed, or its
    source has another form: the worker then finds out."""
    pairs = _pairs()
    if pairs is None:
        return None
    return tuple(dict.fromkeys(name for value in pairs.values() for name in _names(value)))


def causal_class_of(model_type: str) -> str | None:
    """Return the class that AutoModelForCausalLM loads for a model type; None if there is none or it is unknown."""
    return next(iter(_names((_pairs() or {}).get(model_type, ()))), None)


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@lru_cache(maxsize=1)
def _pairs() -> dict[str, str | tuple[str, ...]] | None:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    try:
        tree = ast.parse((Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py").read_text("utf-8"))
        return _mapping(tree)
    except (OSError, ValueError, SyntaxError):
        return None


def _mapping(tree: ast.Module) -> dict[str, str | tuple[str, ...]] | None:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and any(getattr(t, "id", "") == _MAPPING for t in statement.targets):
            call = statement.value
            return dict(ast.literal_eval(call.args[0]) if isinstance(call, ast.Call) else ast.literal_eval(call))
    return None
