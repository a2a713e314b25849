"""Facts about a model directory: architecture, sizes, fingerprint. Reads only headers and never imports torch."""

import difflib
import hashlib
import math
import re
from pathlib import Path
from typing import TypedDict

from tunesmith.configs.plan import ModelFacts
from tunesmith.configs.recipe import Full, LastLayers, Lora
from tunesmith.configs.tasks import TASKS
from tunesmith.errors import InputError
from tunesmith.modeling.base_model.adapter_targets import require_targets
from tunesmith.modeling.base_model.consistency import LAYER, require_consistent
from tunesmith.modeling.base_model.fingerprint import file_digest
from tunesmith.modeling.base_model.positions import trained_positions
from tunesmith.modeling.base_model.text_pairs import pair_separator
from tunesmith.modeling.base_model.weight_files import Shapes, read_object, weight_shapes

SUPPORTED = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma3ForCausalLM",
    "Olmo2ForCausalLM",
    "Phi3ForCausalLM",
    "GPT2LMHeadModel",
)
"""Classes whose loss on packed documents is tested to equal transformers'. To add one, add an entry: the tests cover
it."""

ENCODERS = ("BertModel", "BertForMaskedLM", "BertForPreTraining", "RobertaModel", "RobertaForMaskedLM")
ENCODERS += ("DistilBertModel", "DistilBertForMaskedLM")
"""Encoders that a classification head can be added to."""
SEQUENCE_TO_SEQUENCE = ("T5ForConditionalGeneration", "MT5ForConditionalGeneration", "BartForConditionalGeneration")

HEADS = ("lm_head.weight",)
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
    shapes = weight_shapes(directory)
    require_consistent(config, shapes, directory / "config.json")
    if not (directory / "tokenizer.json").is_file():
        raise InputError(
            "the base model has no tokenizer.json", where=str(directory), remedy="download its tokenizer files, too"
        )
    _require_stop_tokens(directory / "generation_config.json")
    require_targets(method, shapes, TASKS[task].model)
    tied = bool(config.get("tie_word_embeddings", not any(head in shapes for head in HEADS)))
    if tied:
        shapes = {name: shape for name, shape in shapes.items() if name not in HEADS}
    num_layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return ModelFacts(
        directory=str(directory.resolve()),
        source=source,
        fingerprint=_fingerprint(directory, cache),
        model_type=config.get("model_type", ""),
        num_layers=num_layers,
        hidden_size=_first(config, "hidden_size", "n_embd", "d_model", "dim"),
        vocab_size=_first(config, "vocab_size"),
        num_params=sum(map(math.prod, shapes.values())),
        num_trained_params=_num_trained(shapes, method, num_layers, tied),
        tied_embeddings=tied,
        head_size=_head_size(config),
        key_value_size=_key_value_size(config),
        feed_forward_size=_size(config, "intermediate_size", "n_inner", "d_ff"),
        max_positions=_max_positions(config),
        trained_positions=trained_positions(config),
        pair_separator=pair_separator(directory, config.get("model_type", "")),
    )


def supported(task: str) -> tuple[str, ...]:
    """Return the model classes that a run of this task can start from."""
    return CLASSES[TASKS[task].model]


def _classified() -> tuple[str, ...]:
    """Classes that a classification head can be added to, and classes that have one."""
    decoders = [name.replace("ForCausalLM", "").replace("LMHeadModel", "") for name in SUPPORTED]
    encoders = dict.fromkeys(re.sub("(Model|For.*)$", "", name) for name in ENCODERS)
    return (*ENCODERS, *SUPPORTED, *(name + _CLASSIFIED_SUFFIX for name in (*encoders, *decoders)))


CLASSES = {"causal": SUPPORTED, "classifier": _classified(), "encoder_decoder": SEQUENCE_TO_SEQUENCE}
"""Supported classes by the model kind of a task."""


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
    if named not in known:
        nearest = difflib.get_close_matches(named, known, n=1, cutoff=0.0)[0]
        scope = f" for the task {task}" if any(named in classes for classes in CLASSES.values()) else ""
        raise InputError(
            f"models of class {named} are not supported{scope}",
            where=str(path),
            remedy=f"nearest supported class: {nearest}; all: " + ", ".join(known),
        )
    if "quantization_config" in config:
        raise InputError("the weights are quantized", where=str(path), remedy="use the original, unquantized model")
    return config


def _first(config: ModelConfig, *keys: str) -> int:
    for key in keys:
        if isinstance(value := config.get(key), int):
            return value
    raise InputError(f"the model's config.json has no {keys[0]}")


def _head_size(config: ModelConfig) -> int | None:
    heads = config.get("num_attention_heads") or config.get("n_head") or config.get("num_heads")
    hidden = config.get("hidden_size") or config.get("n_embd") or config.get("d_model") or config.get("dim")
    size = config.get("head_dim") or config.get("d_kv") or (hidden // heads if hidden and heads else None)
    return size if isinstance(size, int) else None


def _key_value_size(config: ModelConfig) -> int | None:
    heads, size = _size(config, "num_key_value_heads"), _head_size(config)
    return heads * size if heads and size else None


def _size(config: ModelConfig, *keys: str) -> int | None:
    """The first of the keys that holds a positive integer; None if there is none."""
    values = (config.get(key) for key in keys)
    return next((value for value in values if type(value) is int and value > 0), None)


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


def _fingerprint(directory: Path, cache: Path | None) -> str:
    """SHA-256 over names, sizes and content of config, weights and tokenizer files."""
    names = {"config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    lines = [
        f"{path.name} {path.stat().st_size} {file_digest(path, cache)}"
        for path in sorted(directory.iterdir())
        if path.name in names or path.name.endswith((".safetensors", ".safetensors.index.json"))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _num_trained(shapes: Shapes, method: Full | LastLayers | Lora, num_layers: int, tied: bool) -> int:
    if isinstance(method, Full):
        return sum(map(math.prod, shapes.values()))
    if isinstance(method, Lora):
        embeddings = [shape for name, shape in shapes.items() if name.endswith(_EMBEDDINGS)]
        heads = dict.fromkeys(HEADS, embeddings[0]) if tied and embeddings else {}
        return sum(
            method.lora_rank * sum(shape)
            for name, shape in (shapes | heads).items()
            if len(shape) == 2 and name.endswith(".weight") and _gets_adapter(name.removesuffix(".weight"), method)
        )
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


def _gets_adapter(module: str, method: Lora) -> bool:
    if isinstance(method.target_modules, str):
        return LAYER.search(module + ".") is not None
    return any(module == target or module.endswith(f".{target}") for target in method.target_modules)
