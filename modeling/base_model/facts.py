"""Facts about a model directory: architecture, sizes, fingerprint. Reads only headers and never imports torch."""

import difflib
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from tunesmith.configs.plan import AdapterTarget, ModelFacts
from tunesmith.configs.sections.method import Full, LastLayers, Lora
from tunesmith.configs.tasks import TASKS
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.adapter_targets import adapter_shapes, require_targets, targets_of
from tunesmith.modeling.base_model.causal_classes import causal_classes
from tunesmith.modeling.base_model.consistency import LAYER, require_consistent
from tunesmith.modeling.base_model.expert_classes import experts_are_declared
from tunesmith.modeling.base_model.experts import expert_facts, stacked
from tunesmith.modeling.base_model.fingerprint import file_digest
from tunesmith.modeling.base_model.multimodal import require_text_class, text_class_of, text_model
from tunesmith.modeling.base_model.positions import trained_positions
from tunesmith.modeling.base_model.quantized_weights import (
    dequantized_shapes,
    format_of,
    require_experts_not_in_4_bits,
    require_plain,
    require_trainable,
)
from tunesmith.modeling.base_model.text_pairs import pair_separator
from tunesmith.modeling.base_model.unused_weights import without_unused
from tunesmith.modeling.base_model.weight_files import Shapes, read_object, weight_shapes

CLASSIFIED = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"),
    *("GemmaForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel"),
)
"""Decoders that a classification head can be added to."""
ENCODERS = ("BertModel", "BertForMaskedLM", "BertForPreTraining", "RobertaModel", "RobertaForMaskedLM")
ENCODERS += ("DistilBertModel", "DistilBertForMaskedLM")
"""Encoders that a classification head can be added to."""
SEQUENCE_TO_SEQUENCE = ("T5ForConditionalGeneration", "MT5ForConditionalGeneration", "BartForConditionalGeneration")

HEADS = ("lm_head.weight", "embed_out.weight")
_FINAL_NORM = re.compile(r"(?:^|\.)(?:norm|ln_f|final_layernorm|final_layer_norm)\.(?:weight|bias)$")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
_CLASSIFIED_SUFFIX = "ForSequenceClassification"


def model_facts(
    directory: Path, source: str, method: Full | LastLayers | Lora, *, cache: Path | None = None, task: str = "chat"
) -> ModelFacts:
    """Return the model's facts for the plan.

    directory: from resolve_model. source: model.base of the recipe. cache: directory for file hashes. task: the
    recipe's task, which determines the supported classes. InputError if the class is not supported, weights are
    missing, truncated or not safetensors, or the tokenizer is missing.
    """
    config = _read_config(directory, task)
    quantized = format_of(config, directory / "config.json")
    require_trainable(quantized, method, task, directory / "config.json")
    shapes = weight_shapes(directory)
    text = text_model(config, shapes, directory / "config.json") if TASKS[task].model == "causal" else None
    if text is not None:
        require_plain(quantized, directory / "config.json")
        config, shapes = cast(ModelConfig, text.config), text.own_shapes(shapes)
    shapes = without_unused(config, dequantized_shapes(shapes, quantized, directory))
    require_consistent(config, shapes, directory / "config.json")
    shapes = stacked(shapes)
    if not (directory / "tokenizer.json").is_file():
        raise InputError(
            "the base model has no tokenizer.json", where=str(directory), remedy="download its tokenizer files, too"
        )
    _require_stop_tokens(directory / "generation_config.json")
    require_targets(method, shapes, TASKS[task].model)
    tied = bool(config.get("tie_word_embeddings", not any(head in shapes for head in HEADS)))
    if tied:
        shapes = {name: shape for name, shape in shapes.items() if name not in HEADS}
    num_layers = _num_layers(config, shapes)
    model_type = config.get("model_type", "")
    adapters = []
    if isinstance(method, Lora):
        adapters = targets_of(adapter_shapes(shapes, method, tied, model_type), method)
    num_params = sum(map(math.prod, shapes.values()))
    experts = expert_facts(config, shapes)
    if experts is not None:
        require_experts_not_in_4_bits(quantized, directory / "config.json")
    width = _size(config, "intermediate_size", "n_inner", "d_ff")
    return ModelFacts(
        directory=str(directory.resolve()),
        source=source,
        fingerprint=model_fingerprint(directory, cache),
        model_type=model_type,
        num_layers=num_layers,
        hidden_size=_first(config, "hidden_size", "n_embd", "d_model", "dim"),
        vocab_size=_first(config, "vocab_size"),
        num_params=num_params,
        num_trained_params=num_trained(shapes, method, num_layers, tied, adapters),
        adapters=adapters,
        num_active_params=experts.num_active(num_params) if experts else None,
        num_experts=experts.num_experts if experts else None,
        num_expert_params=experts.num_params if experts else None,
        experts_quantizable=experts_are_declared(model_type) if experts else None,
        router_loss_coefficient=experts.router_loss_coefficient if experts else None,
        num_experts_per_token=experts.num_experts_per_token if experts else None,
        tied_embeddings=tied,
        quantized=quantized,
        head_size=_head_size(config),
        key_value_size=_key_value_size(config),
        feed_forward_size=experts.width * (experts.num_experts_per_token or 1) if experts else width,
        max_positions=_max_positions(config),
        trained_positions=trained_positions(config),
        pair_separator=pair_separator(directory, model_type),
        carried=None if text is None else text.carried(directory),
    )


def supported(task: str) -> tuple[str, ...] | None:
    """Return the model classes that a run of this task can start from; None: not known, so any."""
    return CLASSES[TASKS[task].model]()


def _classified() -> tuple[str, ...]:
    """Classes that a classification head can be added to, and classes that have one."""
    decoders = [name.replace("ForCausalLM", "").replace("LMHeadModel", "") for name in CLASSIFIED]
    encoders = dict.fromkeys(re.sub("(Model|For.*)$", "", name) for name in ENCODERS)
    return (*ENCODERS, *CLASSIFIED, *(name + _CLASSIFIED_SUFFIX for name in (*encoders, *decoders)))


CLASSES: dict[str, Callable[[], tuple[str, ...] | None]] = {
    "causal": causal_classes,
    "classifier": _classified,
    "encoder_decoder": lambda: SEQUENCE_TO_SEQUENCE,
}
"""Supported classes by the model kind of a task. Causal models: any class that the model proof holds for."""


class ModelConfig(TypedDict, total=False):
    """The keys that are read from a model's `config.json`, under the names that its family uses."""

    architectures: list[str] | None
    model_type: str
    tie_word_embeddings: bool
    max_position_embeddings: int
    n_positions: int
    pad_token_id: int


def _read_config(directory: Path, task: str) -> ModelConfig:
    path = directory / "config.json"
    config = read_object(path)
    classes = config.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise InputError(
            "config.json does not name the model's class",
            where=f"{path}: architectures",
            remedy='add it, such as "architectures": ["LlamaForCausalLM"], or download the model again',
        )
    named = classes[0]
    known = supported(task)
    trains_text = TASKS[task].model == "causal" and text_class_of(config) is not None
    if known is not None and named not in known and not trains_text:
        if TASKS[task].model == "causal":
            require_text_class(config, path)
        nearest = difflib.get_close_matches(named, known, n=3, cutoff=0.0)
        elsewhere = any(named in (supported(other) or ()) for other in TASKS)
        scope = f" for the task {task}" if elsewhere else ""
        raise InputError(
            f"models of class {named} are not supported{scope}",
            where=str(path),
            remedy=f"nearest supported {'class' if len(nearest) == 1 else 'classes'}: {', '.join(nearest)}",
        )
    return config


def _first(config: ModelConfig, *keys: str) -> int:
    """The first of the keys that the configuration has, or else one of its parts (a model of several transformers)."""
    parts: list[Any] = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part, key in itertools.product(parts, keys):
        if isinstance(value := part.get(key), int):
            return value
    raise InputError(f"the model's config.json has no {keys[0]}")


def _num_layers(config: ModelConfig, shapes: Shapes) -> int:
    """Of the configuration, or else the layers that the weights have: some families list the kinds of layers only."""
    number = _size(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return number or len({name[: match.end()] for name in shapes if (match := LAYER.search(name)) is not None})


def _head_size(config: ModelConfig) -> int | None:
    heads = config.get("num_attention_heads") or config.get("n_head") or config.get("num_heads")
    hidden = config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or config.get("dim")
    size = config.get("head_dim") or config.get("d_kv") or (hidden // heads if hidden and heads else None)
    return size if isinstance(size, int) else None


def _key_value_size(config: ModelConfig) -> int | None:
    heads, size = _size(config, "num_key_value_heads"), _head_size(config)
    return heads * size if heads and size else None


def _size(config: ModelConfig, *keys: str) -> int | None:
    """The first of the keys that holds a positive integer, or a list of them (by layer), of which the largest counts;
    None if there is none."""
    for key in keys:
        value = config.get(key)
        sizes = [size for size in (value if isinstance(value, list) else [value]) if type(size) is int and size > 0]
        if sizes:
            return max(sizes)
    return None


def _require_stop_tokens(path: Path) -> None:
    stops = read_object(path).get("eos_token_id") if path.is_file() else None
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if any(not isinstance(stop, int) or isinstance(stop, bool) for stop in stops):
        raise InputError(
            "the stop tokens in generation_config.json are not numbers",
            where=f"{path}: eos_token_id",
            remedy="write the id of a token or a list of ids, or delete the file",
        )


def _max_positions(config: ModelConfig) -> int | None:
    """Maximum number of positions of models with a position table. RoBERTa's start after the padding index."""
    kind = config.get("model_type", "")
    if kind in ("bert", "distilbert", "bart"):
        return config.get("max_position_embeddings")
    if kind == "roberta":
        return config.get("max_position_embeddings", 514) - config.get("pad_token_id", 1) - 1
    return config.get("n_positions") if kind == "gpt2" else None


def model_fingerprint(directory: Path, cache: Path | None = None) -> str:
    """SHA-256 over names, sizes and content of config, weights and tokenizer files."""
    names = {"config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    lines = [
        f"{path.name} {path.stat().st_size} {file_digest(path, cache)}"
        for path in sorted(directory.iterdir())
        if path.name in names or path.name.endswith((".safetensors", ".safetensors.index.json"))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def num_trained(
    shapes: Shapes, method: Full | LastLayers | Lora, num_layers: int, tied: bool, adapters: Sequence[AdapterTarget]
) -> int:
    """Return the number of weights that a method trains. shapes: experts stacked, without a tied head. adapters: those
    of the method."""
    if isinstance(method, Full):
        return sum(map(math.prod, shapes.values()))
    if isinstance(method, Lora):
        return sum(target.num_params for target in adapters)
    head = not tied if method.train_head is None else method.train_head
    return sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if (
            (layer := LAYER.search(name))
            and "encoder.block" not in name
            and int(layer[1]) >= num_layers - method.num_layers
        )
        or (not layer and _FINAL_NORM.search(name))
        or name.startswith(("classifier.", "score.", "pre_classifier."))
        or (head and (name in HEADS or (tied and name.endswith(_EMBEDDINGS))))
    )
