"""The modules of a base model that can get an adapter: checked from the shapes of its weights, before loading."""

import difflib
import re
from collections.abc import Iterable, Mapping

from tunesmith.configs.plan import AdapterTarget
from tunesmith.configs.sections.method import Full, LastLayers, Lora
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.consistency import LAYER
from tunesmith.modeling.base_model.experts import ROUTER, is_stacked
from tunesmith.modeling.base_model.read_weights import read_layers
from tunesmith.modeling.base_model.weight_files import Shapes

WITHOUT_ADAPTER = ("shared", "embed_positions")
"""Embeddings of encoder-decoder models that peft cannot adapt: a second name for weights that other modules use, and
one that is not called with token ids."""
_GROUPED = {"deepseek_v4": ("o_a_proj", "wo_a")}
"""Linear layers by model type, as loaded and as published, that multiply groups of their input apart: peft's adapters
compute one product."""
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
    """Return the paths of the linear layers, embeddings and stacked experts that can get an adapter."""
    matrices = [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if is_stacked(name, shape) or (len(shape) == 2 and not _is_expert_bias(name, shapes))
    ]
    names = [name for name in matrices if kind != "classifier" or _BODY.search(name)]
    return [name for name in (*names, *_TIED[kind]) if is_adaptable(name)]


def without_adapter(model_type: str) -> tuple[str, ...]:
    """Return the ends of the paths of layers that get no adapter in models of this type: it would have no effect, or
    another one."""
    return read_layers(model_type) + _GROUPED.get(model_type, ())


def adapter_shapes(shapes: Shapes, method: Lora, tied: bool, model_type: str) -> Shapes:
    """Return the shape of every matrix that gets an adapter, and of every stack of experts, by module path.

    shapes: of the model's tensors, experts stacked (experts.stacked). tied: head and embedding share their weights.
    """
    excluded = without_adapter(model_type)
    embeddings = [shape for name, shape in shapes.items() if name.endswith(("embed_tokens.weight", "wte.weight"))]
    heads = {"lm_head.weight": embeddings[0]} if tied and embeddings else {}
    has_experts = any(is_stacked(name, shape) for name, shape in shapes.items())
    adapted: Shapes = {}
    left_out: list[str] = []
    for name, shape in (shapes | heads).items():
        path = name.removesuffix(".weight")
        matrix = len(shape) == 2 and name.endswith(".weight")
        if not (matrix or is_stacked(name, shape)) or not _gets_adapter(path, method, has_experts):
            continue
        if path.rpartition(".")[2] in excluded:
            left_out.append(path)
        else:
            adapted[path] = shape
    _require_effect(method, left_out, list(adapted))
    return adapted


def _require_effect(method: Lora, left_out: list[str], adapted: list[str]) -> None:
    """Raise InputError for a name in `target_modules` whose modules all get no adapter. left_out: their paths."""
    for target in [] if isinstance(method.target_modules, str) else method.target_modules:
        has_effect, would_not = (any(is_target(path, target) for path in paths) for paths in (adapted, left_out))
        if would_not and not has_effect:
            raise InputError(
                f"an adapter on {target} would have no effect: layers of this family read its weights instead of "
                "calling it",
                where="method.target_modules",
                remedy=f"remove {target} from the list, or train all weights (method.kind: full)",
            )


def targets_of(adapted: Shapes, method: Lora) -> list[AdapterTarget]:
    """Return what gets an adapter, for the plan: modules of equal name and shape as one entry."""
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for path, shape in adapted.items():
        name = path.rpartition(".")[2]
        key = f"experts.{name}" if len(shape) == 3 else name, tuple(shape)
        counts[key] = counts.get(key, 0) + 1
    return [
        AdapterTarget(name=name, shape=list(shape), count=count, num_params=count * _adapter_size(shape, method))
        for (name, shape), count in counts.items()
    ]


def _adapter_size(shape: tuple[int, ...], method: Lora) -> int:
    """Trained values of one adapter: two matrices of the rank, for every expert, as peft stores them."""
    experts = shape[0] if len(shape) == 3 else 1
    return method.lora_rank * experts * sum(shape[-2:])


def _gets_adapter(path: str, method: Lora, has_experts: bool) -> bool:
    if isinstance(method.target_modules, str):
        return LAYER.search(path + ".") is not None and not (has_experts and ROUTER.search(path))
    return any(is_target(path, target) for target in method.target_modules)


def is_target(path: str, target: str) -> bool:
    """Whether a name in `target_modules` selects the module or parameter at a path, as in peft."""
    return f".{path}".endswith(f".{target}")


def _is_expert_bias(name: str, shapes: Mapping[str, list[int]]) -> bool:
    """Whether a matrix holds the biases of stacked experts."""
    return name.endswith("_bias") and len(shapes.get(name.removesuffix("_bias"), ())) == 3


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
