"""Which layers of a family are not called: its forward reads their weights, read from transformers' source. Importing
it would import torch.

An adapter is a change of a layer's output: where the weight is read instead, it has no effect. State-space layers do so
for their fused kernels, in training only, if the kernels are installed: no comparison without them can find it.
"""

import ast
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_LAYERS = ("Linear", "Conv1d", "Conv1D")
_NOT_READ = ("dtype", "device", "shape", "ndim", "size", "dim", "data")
"""Attributes of a weight whose value does not depend on its numbers; `data` is for changes in place."""


@lru_cache(maxsize=32)
def read_layers(model_type: str) -> tuple[str, ...]:
    """Return the names of the linear and convolution layers of a model type whose weights are read in training, or that
    are never called; empty if transformers is not installed, or has no folder for the type.

    Layers that are read and called count as called: the choice depends on a configuration (Bloom) or a cache
    (Reformer), and the comparison before the first step finds adapters without effect.
    """
    return tuple(sorted({name for path in _sources(model_type) for name in _read_in(path)}))


def _sources(model_type: str) -> list[Path]:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None or not model_type.isidentifier():
        return []
    models = Path(spec.origin).parent / "models"
    for name in (model_type, model_type.removesuffix("_text")):
        if files := sorted((models / name).glob("modeling_*.py")):
            return files
    return []


def _read_in(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    layers = {name for node in ast.walk(tree) if isinstance(node, ast.Assign) for name in _assigned_layers(node)}
    methods = [
        method
        for kind in tree.body
        if isinstance(kind, ast.ClassDef)
        for method in kind.body
        if isinstance(method, ast.FunctionDef) and "init" not in method.name
    ]
    called = {name for method in methods for name in _calls(method)}
    for method in methods:
        read = layers & set(_reads(method))
        yield from read - called
        for node in ast.walk(method):
            if isinstance(node, ast.If) and "self.training" in ast.unparse(node.test):
                yield from read & {name for statement in node.body for name in _reads(statement)}


def _reads(tree: ast.AST) -> Iterator[str]:
    """Attributes of self whose `weight` is read."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.Attribute) or child.attr != "weight":
                continue
            if not (isinstance(node, ast.Attribute) and node.attr in _NOT_READ):
                yield from filter(None, [_of_self(child.value)])


def _calls(tree: ast.AST) -> Iterator[str]:
    """Attributes of self that are called, except for weights that transformers has quantized (Jamba)."""
    if isinstance(tree, ast.If) and "_is_quantized" in ast.unparse(tree.test):
        parts: list[ast.AST] = [*tree.orelse]
    else:
        parts = list(ast.iter_child_nodes(tree))
    if isinstance(tree, ast.Call):
        yield from filter(None, [_of_self(tree.func)])
    for part in parts:
        yield from _calls(part)


def _of_self(node: ast.AST) -> str | None:
    """The name of an attribute of self; None for any other expression."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def _assigned_layers(node: ast.Assign) -> Iterator[str]:
    """Attributes of self that are assigned a layer."""
    call = node.value
    if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith(_LAYERS):
        return
    yield from filter(None, map(_of_self, node.targets))
