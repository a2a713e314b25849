"""Which families compute their experts in a way that can be replaced, read from transformers' source: importing it
would import torch."""

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

_DECLARATION = re.compile(r"^@use_experts_implementation\b", re.MULTILINE)
"""Decorator of experts that declare the layout of their parameters."""


@lru_cache(maxsize=8)
def experts_are_declared(model_type: str) -> bool | None:
    """Return whether a family's experts declare the layout of their parameters, so that their matrices can be held in
    another form. Others compute with the parameters in a forward of their own. None if transformers is not installed,
    or has no folder of this name: the worker then finds out.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None or not model_type.isidentifier():
        return None
    models = Path(spec.origin).parent / "models"
    for name in (model_type, model_type.removesuffix("_text")):
        files = sorted((models / name).glob("modeling_*.py"))
        if files:
            return any(_DECLARATION.search(path.read_text(encoding="utf-8")) for path in files)
    return None
