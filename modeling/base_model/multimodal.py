"""Multimodal checkpoints: which of their tensors are the text model, and under which names. Never imports torch.

The text model is trained as its own causal class. All other tensors (vision and audio towers, projectors, heads for
drafting) are never loaded; exports carry them through unchanged.
"""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.configs.plan import CarriedWeights, ModelFacts
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.causal_classes import causal_class_of, causal_classes
from tunesmith.modeling.base_model.tensor_files import tensor_locations
from tunesmith.modeling.base_model.weight_files import Shapes, read_object, weight_shapes

EMBEDDING = "embed_tokens.weight"
_BACKBONE, _HEAD = "model.", "lm_head."
ADAPTER_PREFIX = "base_model.model."
_OTHERS = r"(?:vision|visual|audio|talker|mtp|speech|image)\w*\."
"""Parts of a checkpoint that may have token embeddings and layers of their own."""
_BESIDES = re.compile(rf"(?:^|\.){_OTHERS}")
_OF_TEXT = rf"^(?!(?:\w+\.)*?{_OTHERS})"
ADAPTER_MAPPING = {
    rf"{_OF_TEXT}(?:\w+\.)*?(?=layers\.\d+\.|embed_tokens\b)": _BACKBONE,
    rf"{_OF_TEXT}(?:\w+\.)*?(?=lm_head\b)": "",
}
"""Patterns and replacements of the path of an adapted module that `own_path` applies; peft's `key_mapping`."""
_ADAPTED_MODULE = re.compile(r"\.(?:lora_|token_adapter\b|base_layer\b).*$")


@dataclass(frozen=True)
class TextNames:
    """The names of a text model's tensors in a multimodal checkpoint or class. backbone, head: their prefixes, such as
    `model.language_model.` and `lm_head.`; in the text model's own class they are `model.` and `lm_head.`"""

    backbone: str
    head: str

    def own_name(self, name: str) -> str | None:
        """Return the name of a tensor in the text model's class; None if it is not part of the text model."""
        for published, own in ((self.backbone, _BACKBONE), (self.head, _HEAD)):
            if name.startswith(published):
                return own + name.removeprefix(published)
        return None

    def published_name(self, name: str) -> str:
        """Return the name in the checkpoint of a tensor or module of the text model's class."""
        for published, own in ((self.backbone, _BACKBONE), (self.head, _HEAD)):
            if f"{name}.".startswith(own):
                return (published + f"{name}.".removeprefix(own)).removesuffix(".")
        return name

    def key_mapping(self) -> dict[str, str]:
        """Return transformers' `key_mapping` for loading the text model's class: patterns to replacements."""
        pairs = ((self.backbone, _BACKBONE), (self.head, _HEAD))
        return {f"^{re.escape(published)}": own for published, own in pairs if published != own}


@dataclass(frozen=True)
class TextModel:
    """The text model of a multimodal checkpoint. class_name: the published class. config: content of a `config.json`
    for the text model alone. names: of its tensors."""

    class_name: str
    config: dict[str, Any]
    names: TextNames

    def own_shapes(self, shapes: Shapes) -> Shapes:
        """Return the shapes of the text model's tensors by their names in its own class."""
        own = {self.names.own_name(name): shape for name, shape in shapes.items()}
        return {name: shape for name, shape in own.items() if name is not None}

    def carried(self, directory: Path) -> CarriedWeights:
        """Return what an export carries through."""
        carried = {name: at for name, at in tensor_locations(directory).items() if self.names.own_name(name) is None}
        return CarriedWeights(
            class_name=self.class_name,
            num_tensors=len(carried),
            num_bytes=sum(at.num_bytes for at in carried.values()),
            modules=list(dict.fromkeys(map(_module_of, sorted(carried)))),
        )


def text_names(names: Iterable[str]) -> TextNames | None:
    """Find the text model among the names of tensors; None if there is not exactly one."""
    known = list(names)
    candidates = [
        prefix
        for prefix in (name.removesuffix(EMBEDDING) for name in known if name.endswith(EMBEDDING))
        if not _BESIDES.search(prefix) and any(name.startswith(f"{prefix}layers.0.") for name in known)
    ]
    if len(candidates) != 1:
        return None
    heads = [n.removesuffix("weight") for n in known if re.fullmatch(r"(?:\w+\.)*lm_head\.weight", n)]
    heads = [head for head in heads if not _BESIDES.search(head)]
    return TextNames(candidates[0], heads[0] if heads else _HEAD)


def is_outside_text_model(path: str) -> bool:
    """Whether a module or tensor of a multimodal class belongs to another part than the text model."""
    return _BESIDES.search(path) is not None


def own_path(path: str) -> str:
    """Return the path in the text model's class of a module of a multimodal class, or of a tensor. Paths in the former,
    and those of other parts, are returned as they are."""
    for pattern, replacement in ADAPTER_MAPPING.items():
        path = re.sub(pattern, replacement, path)
    return path


def own_adapter_name(name: str) -> str:
    """Return the name that a tensor of an adapter on a multimodal class has in one on the text model's class, as of
    `own_path`."""
    return ADAPTER_PREFIX + own_path(name.removeprefix(ADAPTER_PREFIX))


def own_adapter_names(names: Iterable[str], modules: Container[str]) -> dict[str, str]:
    """Return for each tensor of an adapter its name in an adapter on the loaded model, which may be the text model of
    the multimodal class that the adapter names. modules: paths of the loaded model's modules."""
    return {
        name: name if _ADAPTED_MODULE.sub("", name.removeprefix(ADAPTER_PREFIX)) in modules else own_adapter_name(name)
        for name in names
    }


def text_class_of(config: Mapping[str, Any]) -> str | None:
    """Return the causal class of the text model of a multimodal configuration; None for any other configuration."""
    text = config.get("text_config")
    if not isinstance(text, dict) or config.get("is_encoder_decoder"):
        return None
    return causal_class_of(str(text.get("model_type", "")))


def text_model(config: Mapping[str, Any], shapes: Shapes, path: Path) -> TextModel | None:
    """Return the text model of a checkpoint; None if it is not multimodal.

    config: content of the `config.json` at `path`. shapes: of all tensors in the files. InputError if the tensors of
    the text model cannot be distinguished from the others.
    """
    text_class = text_class_of(config)
    if text_class is None:
        return None
    names = text_names(shapes)
    if names is None:
        raise InputError(
            f"the text model of {config['architectures'][0]} was not found: its weights have no embed_tokens.weight "
            "with layers next to it, or several",
            where=str(path.parent),
            remedy="use a checkpoint of the text model alone",
        )
    text = dict(config["text_config"])
    # Published configurations leave out what equals the default of the class.
    text.setdefault("vocab_size", shapes[names.backbone + EMBEDDING][0])
    text.setdefault("hidden_size", shapes[names.backbone + EMBEDDING][1])
    text["architectures"] = [text_class]
    text["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", f"{names.head}weight" not in shapes))
    return TextModel(config["architectures"][0], text, names)


def text_model_in(directory: Path) -> TextModel | None:
    """Return the text model of a model directory; None if it is not multimodal. Errors as of `text_model`, and of the
    weight files' headers."""
    path = directory / "config.json"
    config = read_object(path) if path.is_file() else {}
    if text_class_of(config) is None:
        return None
    return text_model(config, weight_shapes(directory), path)


def require_planned_as_text(planned: ModelFacts, current: ModelFacts, version: str) -> None:
    """Raise InputError if an earlier version planned to train the whole class, of which the text model is trained now.

    planned: in the plan of a run. current: of the same model now. version: that made the plan.
    """
    if planned.carried is None and current.carried is not None:
        raise InputError(
            f"the run trains {current.carried.class_name} as a whole, as Tunesmith {version} planned it; this version "
            "trains only the text model, whose weights have other names",
            where=f"{planned.directory}: config.json",
            remedy=f"use Tunesmith {version} for this run (resume, evaluate, export), or start a new run with another "
            "--run-dir",
        )


def require_text_class(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for a multimodal model whose text model transformers has no causal class for."""
    text = config.get("text_config")
    if not isinstance(text, dict) or text_class_of(config) is not None or causal_classes() is None:
        return
    named = config["architectures"][0]
    raise InputError(
        f"{named} cannot be trained: it is multimodal, only text models are trained, and the installed transformers "
        f"has no causal class for its text model {text.get('model_type') or '(without a model_type)'!r} alone",
        where=f"{path}: text_config.model_type",
        remedy="use a text model, or a multimodal one whose text model has a class, such as Gemma 3, Qwen 3.5, Llama 4 "
        "or Mistral 3",
    )


def _module_of(name: str) -> str:
    """The module that a carried tensor belongs to, such as vision_tower."""
    parts = name.split(".")
    return parts[1] if parts[0] == "model" and len(parts) > 2 else parts[0]
