"""The files of an export: weights in the format of transformers or peft, tokenizer, template, stop tokens, license.

The live model is not modified: peft merges an adapter in place, so each layer is merged on a copy.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import TrainableTokensWrapper
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tunesmith.configs.plan import Plan
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.modeling.adapters.experts import merged_parameter
from tunesmith.modeling.adapters.method import trained_parameters
from tunesmith.modeling.adapters.new_rows import is_tied_wrapper, merged_weight, wrappers_of
from tunesmith.modeling.base_model.companion_files import MORE_TEMPLATES, TEMPLATE, TOKENIZER_FILES
from tunesmith.modeling.base_model.multimodal import TextModel, text_model_in
from tunesmith.modeling.base_model.source import hub_snapshot
from tunesmith.modeling.loading.heads import classifier_config, labels_of
from tunesmith.modeling.loading.load import quiet
from tunesmith.modeling.loading.text_model import causal_config
from tunesmith.modeling.parts import causal_lm
from tunesmith.modeling.quantization.nf4_stack import parameter_names, stacks_of
from tunesmith.progress import advance
from tunesmith.rundir.atomic import write_json
from tunesmith.training.export.published_class import published_adapter_name, published_names, set_published_targets
from tunesmith.training.export.template_files import write_templates
from tunesmith.training.export.whole_checkpoint import write_whole_checkpoint
from tunesmith.training.learning import VERDICTS

Form = Literal["adapter", "model"]

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PROCESSOR_PATTERNS = ("*processor_config.json",)
"""How a multimodal checkpoint prepares images and sound."""
_LICENCE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def require_valid_weights(model: torch.nn.Module) -> None:
    """Raise RunFault if a trained weight is not finite, or if the adapter is zero and therefore has no effect."""
    for name, weight in trained_parameters(model).items():
        num_bad = int((~torch.isfinite(weight.detach())).sum())
        if num_bad:
            what = f"{num_bad} of {weight.numel()} trained weights are not finite: the model is not exported"
            raise VERDICTS["weights_not_finite"].fault(what, name)
    factors = [pair for module in model.modules() if isinstance(module, LoraLayer) for pair in _factors(module)]
    if factors and not any(bool(left.any()) and bool(right.any()) for left, right in factors):
        what = f"the adapter is all zero in each of its {len(factors)} layers: it has no effect and is not exported"
        raise VERDICTS["adapter_zero"].fault(what, "adapter")


def write_adapter(model: PeftModel, plan: Plan, directory: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json in peft's format. The adapter stays fp32."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    names = None if plan.model.carried is None else published_names(Path(plan.model.base_directory))
    if names is not None:
        weights = {published_adapter_name(name, names): weight for name, weight in weights.items()}
    contiguous = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(contiguous, directory / _ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = copy.deepcopy(model.peft_config["default"])
    assert isinstance(config, LoraConfig)  # the only kind that a recipe supports
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # the order of a set differs between processes
    if names is not None:
        set_published_targets(config, model, names)
    if config.target_parameters is not None:
        config.target_parameters = sorted(config.target_parameters)
    config.base_model_name_or_path, config.revision = base_reference(plan)
    config.save_pretrained(str(directory))


def write_model(model: torch.nn.Module, plan: Plan, directory: Path, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors (in shards if large) of the whole model, with adapters merged.

    The configuration is the base model's from disk: settings of the training run (attention, dropout, cache) do not
    leak into the export.
    """
    base = causal_lm(model)
    source = Path(plan.model.directory)
    text = text_model_in(source) if plan.recipe.task_facts.is_causal else None
    config: Any = causal_config(source)
    if (labels := labels_of(plan)) is not None:
        config = classifier_config(source, labels)
    else:
        config.tie_word_embeddings = heads_are_tied(base)
    write_weights(base, config, source, directory, dtype, text)


def write_weights(
    base: PreTrainedModel, config: Any, source: Path, directory: Path, dtype: torch.dtype, text: TextModel | None
) -> None:
    """Write a model with its adapters merged. config: of the result. source: directory of the base model. text: its
    text model, if it is multimodal."""
    with torch.device("meta"):
        shell = type(base)(config)
    weights = {}
    for name, weight in plain_weights(base, dtype).items():
        weights[name] = weight()
        advance()
    shell.load_state_dict(weights, strict=True, assign=True)
    shell.tie_weights()
    # If DeepSpeed is installed, transformers imports it to save; it would detect a device and log it.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if text is not None:
        write_whole_checkpoint(shell, text, source, directory)
        return
    with quiet():
        _with_progress(lambda: shell.save_pretrained(directory), directory)


def _with_progress(save: Callable[[], object], directory: Path) -> None:
    """Run a call that writes into a directory; progress is reported as long as its files grow."""
    with ThreadPoolExecutor(1) as thread:
        saving, size = thread.submit(save), 0
        while not saving.done():
            wait([saving], timeout=1.0)
            before, size = size, _size_of(directory)
            if size > before:
                advance()
        saving.result()


def _size_of(directory: Path) -> int:
    """The bytes of the files in a directory. Other threads may write, rename and delete them meanwhile."""
    size = 0
    for entry in os.scandir(directory):
        with suppress(FileNotFoundError):
            size += entry.stat().st_size
    return size


def plain_weights(base: PreTrainedModel, dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
    """Return a function per weight, by its name in plain transformers. Adapters are merged in fp32 and the sum is
    rounded once, to `dtype`.

    A weight that needs neither merging nor rounding is not copied. Weights are created lazily, to bound memory.
    """
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    # Adapted parameters of one module have a wrapper each, one inside the other.
    layers = {name: layer for name, layer in layers.items() if not name.endswith(".base_layer")}
    # In 4 bits: the weight is dequantized.
    packed = {name: module for name, module in base.named_modules() if _is_packed(module)}
    stacks = stacks_of(base)
    with_rows = dict(wrappers_of(base))
    inside = tuple(f"{name}." for name in (*layers, *packed, *stacks, *with_rows))
    weights: dict[str, Callable[[], torch.Tensor]] = {
        name: partial(_cast, weight, dtype)
        for name, weight in base.state_dict().items()
        if not (inside and name.startswith(inside))
    }
    for name, module in packed.items():
        if not name.endswith(".base_layer"):
            weights |= {f"{name}.{key}": partial(_unpacked, module, key, dtype) for key, _ in module.named_parameters()}
    adapted = tuple(f"{name}." for name in layers)
    for name, stack in stacks.items():
        if not name.startswith(adapted):
            weights[name] = partial(stack.whole, dtype)
    for name, layer in layers.items():
        for key in parameter_names(layer.get_base_layer()):
            weights[f"{name}.{key}"] = partial(_merged, layer, key, dtype)
    for name, module in with_rows.items():
        for key, value in module.token_adapter.get_base_layer().named_parameters():
            weights[f"{name}.{key}"] = partial(_cast, value, dtype)
        weights[f"{name}.weight"] = partial(merged_weight, module, dtype)
    return weights


def _is_packed(module: torch.nn.Module) -> bool:
    """Whether the module's weight is stored in 4 bits."""
    return not isinstance(module, LoraLayer | TrainableTokensWrapper) and hasattr(
        getattr(module, "weight", None), "quant_state"
    )


def _unpacked(module: torch.nn.Module, key: str, dtype: torch.dtype) -> torch.Tensor:
    from tunesmith.modeling.quantization.nf4 import dequantised

    weight = module.get_parameter(key)
    return dequantised(weight, dtype) if key == "weight" else _cast(weight, dtype)


def _merged(layer: LoraLayer, key: str, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(layer, ParamWrapper):
        return _cast(merged_parameter(layer, key), dtype)
    if _is_packed(layer.get_base_layer()) and key == "weight":
        return _merged_unpacked(layer).to(dtype)
    merged = copy.deepcopy(layer)
    assert isinstance(merged, torch.nn.Module)  # peft's layers are modules and LoraLayer both
    merged.float()
    merged.merge()
    return _cast(merged.get_base_layer().state_dict()[key], dtype)


def _merged_unpacked(layer: Any) -> torch.Tensor:
    """Merge into the dequantized weight: peft would quantize the sum to 4 bits again and lose most of the adapter."""
    weight = _unpacked(layer.get_base_layer(), "weight", torch.float32)
    (adapter,) = layer.active_adapters
    if adapter in layer.lora_variant:  # DoRA
        return layer.lora_variant[adapter].merge_safe(layer, adapter, weight)
    return weight + layer.get_delta_weight(adapter).float()


def heads_are_tied(base: PreTrainedModel) -> bool:
    """Whether head and input embedding still share one weight after adapters are merged."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if head is None or isinstance(head, LoraLayer) or isinstance(embedding, LoraLayer):
        return False
    if is_tied_wrapper(head):
        return True
    return head.weight is embedding.weight


def base_reference(plan: Plan) -> tuple[str, str | None]:
    """Return the base model and revision for adapter_config.json: hub id and commit, or the local directory and
    None."""
    return hub_snapshot(Path(plan.model.base_directory)) or (plan.model.base_directory, None)


def write_companion_files(plan: Plan, tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer files, chat template, generation_config.json with all stop tokens, and the base model's license
    files."""
    source = Path(plan.model.directory)
    for name in (*TOKENIZER_FILES, TEMPLATE):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if (source / MORE_TEMPLATES).is_dir():
        shutil.copytree(source / MORE_TEMPLATES, directory / MORE_TEMPLATES)
    patterns = _LICENCE_PATTERNS if plan.model.carried is None else (*_PROCESSOR_PATTERNS, *_LICENCE_PATTERNS)
    for path in sorted({path for pattern in patterns for path in source.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, directory / path.name)
    if tokenizer.template is not None:
        write_templates(plan, directory)
    if not plan.recipe.task_facts.is_classifier:
        _write_generation_config(source, tokenizer, directory)


def _write_generation_config(source: Path, tokenizer: Tokenizer, directory: Path) -> None:
    config = _read_json(source / "generation_config.json")
    config.pop("_from_model_config", None)  # otherwise transformers regenerates the file and the stop tokens are lost
    stops = list(tokenizer.stop_token_ids)
    if stops:
        config["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    for key in ("bos_token_id", "pad_token_id"):
        if config.get(key) is None and getattr(tokenizer, key) is not None:
            config[key] = getattr(tokenizer, key)
    begins = _read_json(source / "config.json").get("decoder_start_token_id")
    if begins is not None:
        config.setdefault("decoder_start_token_id", begins)
    write_json(directory / "generation_config.json", config)


def _factors(layer: LoraLayer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The two matrices of each adapter of a layer; their product is the weight update."""
    linear = [
        (layer.lora_A.get_parameter(f"{n}.weight"), layer.lora_B.get_parameter(f"{n}.weight")) for n in layer.lora_A
    ]
    embedding = [(layer.lora_embedding_A[n], layer.lora_embedding_B[n]) for n in layer.lora_embedding_A]
    return [*linear, *embedding]


def _cast(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight.detach().to(dtype) if weight.is_floating_point() else weight.detach()


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
