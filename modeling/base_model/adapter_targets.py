"""The modules of a base model that can get an adapter: checked from the shapes of its weights, before loading."""

import difflib
import re
from collections.abc import Iterable, Mapping

from tunesmith.configs.recipe import Full, LastLayers, Lora
from tunesmith.errors import InputError

WITHOUT_ADAPTER = ("shared", "embed_positions")
"""Embeddings of encoder-decoder models that peft cannot adapt: a second name for weights that other modules use, and
one that is not called with token ids."""
_BODY = re.compile(r"(?:^|\.)(?:layers?|block|h)\.\d+\.|embed|(?:^|\.)wte$|(?:^|\.)wpe$")
"""Weights of a classifier's base model that are not those of its heads."""
_TIED = {
    "causal": ("lm_head",),
    "classifier": (),
    "encoder_decoder": ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"),
}
"""Modules by model kind that a file may lack because they share the weights of an embedding."""


def require_targets(method: Full | LastLayers | Lora, shapes: Mapping[str, list[int]], kind: str) -> None:
    """Raise InputError if a name in `target_modules` is not that of a module that can get an adapter.

    shapes: of each tensor in the files. kind: the model kind of a task.
    """
    if isinstance(method, Lora) and not isinstance(method.target_modules, str):
        require_known(method.target_modules, adaptable_modules(shapes, kind))


def require_mergeable(method: Full | LastLayers | Lora, kind: str) -> None:
    """Raise InputError if adapters of this method cannot be merged into the model: in encoder-decoder models,
    embeddings and head always share one weight, which cannot contain different adapters."""
    if kind != "encoder_decoder" or not isinstance(method, Lora) or isinstance(method.target_modules, str):
        return
    for target in method.target_modules:
        if target.rpartition(".")[2] in ("embed_tokens", "lm_head"):
            raise InputError(
                f"an adapter on {target} cannot be merged: embeddings and head of the model share their weights",
                where="method.target_modules",
                remedy="export the adapter instead (export.form: adapter), or train without an adapter on this module",
            )


def adaptable_modules(shapes: Mapping[str, list[int]], kind: str) -> list[str]:
    """Return the paths of the linear layers and embeddings that can get an adapter."""
    matrices = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2]
    names = [name for name in matrices if kind != "classifier" or _BODY.search(name)]
    return [name for name in (*names, *_TIED[kind]) if is_adaptable(name)]


def is_adaptable(path: str) -> bool:
    """Whether a linear layer or embedding of this path can get an adapter."""
    return path.rpartition(".")[2] not in WITHOUT_ADAPTER


def require_known(targets: Iterable[str], modules: Iterable[str]) -> None:
    """Raise InputError for the first target that is neither the path of one of the modules nor the end of one."""
    modules = list(modules)
    names = sorted({path.rpartition(".")[2] for path in modules})
    if not (targets := list(targets)):
        raise InputError("no module gets an adapter", where="method.target_modules", remedy=_choice(names))
    for target in targets:
        # The files of some models lack the name of the backbone, with which a path may start.
        if any(f".{path}".endswith(f".{target}") or target.endswith(f".{path}") for path in modules):
            continue
        nearest = difflib.get_close_matches(target, names, n=1)
        raise InputError(
            f"the model has no module {target!r} that can get an adapter"
            + (f"; did you mean {nearest[0]!r}?" if nearest else ""),
            where="method.target_modules",
            remedy=_choice(names),
        )


def _choice(names: list[str]) -> str:
    return f"choose from: {', '.join(names)}; or write all-linear, without a list, for every linear layer but the head"
