"""Training methods: all weights, the last layers, or adapters on frozen weights."""

import hashlib
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.configs.sections.method import Full, LastLayers, Lora
from tunesmith.errors import InputError, RunFault
from tunesmith.modeling.adapters.earlier_adapter import copy_adapter
from tunesmith.modeling.adapters.experts import use_token_wise_adapters
from tunesmith.modeling.adapters.new_rows import replace_forwards, row_targets, whole_rows
from tunesmith.modeling.adapters.packed_shapes import shapes_of_stacks
from tunesmith.modeling.adapters.targets import Targets, has_experts, targets_of
from tunesmith.modeling.base_model.adapter_targets import is_adaptable, require_known, without_adapter
from tunesmith.modeling.loading.heads import FRESH, is_classifier, unfreeze_heads
from tunesmith.modeling.parts import backbone, head_of

_HEADS = rf".*\b({'|'.join(FRESH).replace('.', chr(92) + '.')})\b.*"
"""Modules of a classifier that get no adapter: its head is trained directly."""


def apply_method(
    model: PreTrainedModel,
    method: Full | LastLayers | Lora,
    *,
    dropout: float | None = None,
    seed: int = 0,
    in_fp32: bool = True,
    start_from: Path | None = None,
    new_rows: Sequence[int] = (),
) -> nn.Module:
    """Modify the model in place: make the weights that the method trains trainable and freeze all others.

    dropout: probability for the model's own dropout; None leaves it unchanged. seed: of the adapters' initial values,
    which depend on nothing else: not on torch's global generator (left unchanged), nor on the order of modules.
    in_fp32: cast trained weights to fp32; false if the engine keeps its own master weights. start_from: directory of an
    exported adapter with the initial values. new_rows: rows of embedding and head, ascending, that are trained in
    addition to adapters. RunFault if nothing would be trained, InputError if the recipe names
    layers or modules that the model does not have, or the exported adapter is of another form.
    """
    if isinstance(model, PeftModel):
        raise InputError("the base model is an adapter", remedy="merge it first: tunesmith export RUN --merge")
    if dropout is not None:
        set_dropout(model, dropout)
    model.requires_grad_(False)
    if isinstance(method, Full):
        model.requires_grad_(True)
    elif isinstance(method, LastLayers):
        _unfreeze_last_layers(model, method)
    else:
        adapted = _with_adapters(model, method, seed, new_rows)
        if start_from is not None:
            copy_adapter(adapted, start_from)
        model = adapted  # type: ignore[assignment]
    trained = trained_parameters(model)
    if not trained:
        raise RunFault(
            "the method leaves no weight to train",
            where=f"method.kind: {method.kind}",
            remedy="choose other target_modules, more layers, or method full",
            code="nothing_trainable",
        )
    for parameter in trained.values():
        if in_fp32 and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, in the model's order, shared ones once. Names are the same with and
    without wrappers such as DDP."""
    return {
        name.removeprefix("module."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def set_dropout(model: PreTrainedModel, probability: float) -> None:
    """Set the probability of every dropout in the model. RunFault if it has none: the setting would have no effect."""
    count = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p, count = probability, count + 1
        elif isinstance(getattr(module, "attention_dropout", None), float):
            # LLaMA and similar models store the probability as an attribute of the attention layer.
            module.attention_dropout, count = probability, count + 1  # type: ignore[assignment]
    if not count and probability > 0:
        raise RunFault(f"{type(model).__name__} has no dropout", remedy="remove optimization.dropout")


def is_tied(model: PreTrainedModel) -> bool:
    """Whether head and input embedding share one parameter."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", 0)


def _unfreeze_last_layers(model: PreTrainedModel, method: LastLayers) -> None:
    parent, blocks = _blocks_of(model)
    children = list(parent.children())
    if method.num_layers > len(blocks):
        raise InputError(
            f"the model has {len(blocks)} blocks, not {method.num_layers}",
            where="method.num_layers",
            remedy="choose fewer, or method full",
        )
    # The blocks, and the modules after them: the final norm, or nothing.
    for module in [*blocks[-method.num_layers :], *children[children.index(blocks) + 1 :]]:
        module.requires_grad_(True)
    if is_classifier(model):
        unfreeze_heads(model)
        return
    train_head = not is_tied(model) if method.train_head is None else method.train_head
    if train_head:
        head_of(model).requires_grad_(True)


def _blocks_of(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The list of a model's blocks, the largest that is not inside another, and its parent module; for an
    encoder-decoder, those of the decoder."""
    inner = model.get_decoder() if model.config.is_encoder_decoder else backbone(model)
    largest: tuple[nn.Module, nn.ModuleList] | None = None
    for parent, blocks in _outer_lists(inner):
        if largest is None or _size(blocks) > _size(largest[1]):
            largest = parent, blocks
    if largest is None:
        raise RunFault(f"{type(model).__name__} has no list of blocks", remedy="choose method lora or full")
    return largest


def _outer_lists(module: nn.Module) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    """The lists of modules that are not inside another one, each with its parent."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield module, child
        else:
            yield from _outer_lists(child)


def _size(module: nn.Module) -> int:
    """Number of weights. Sharded ones (ZeRO-3) have their whole size as an attribute."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def _task_type(model: PreTrainedModel) -> TaskType | None:
    """peft's task type. None for a classifier: peft would keep a second copy of its head."""
    if is_classifier(model):
        return None
    return TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM


def _with_adapters(model: PreTrainedModel, method: Lora, seed: int, new_rows: Sequence[int]) -> PeftModel:
    if has_experts(model):
        targets = targets_of(model, method)
    else:
        _check_targets(model, method)
        targets = Targets(method.target_modules, [])
    config = LoraConfig(
        task_type=_task_type(model),
        exclude_modules=_HEADS if is_classifier(model) else _excluded(model),
        r=method.lora_rank,
        lora_alpha=method.lora_alpha,  # type: ignore[arg-type]  # peft divides it by r, a float is as good
        lora_dropout=method.lora_dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        trainable_token_indices=row_targets(model, new_rows),
        # GPT-2 stores its matrices transposed (Conv1D). peft sets this again for each module, with a warning.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    shapes = shapes_of_stacks(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), whole_rows(model), shapes:
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers has deprecated
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    assert isinstance(adapted, PeftModel)
    use_token_wise_adapters(adapted)
    replace_forwards(adapted)
    for name, parameter in trained_parameters(adapted).items():
        _initialise(name, parameter, seed)
    if is_classifier(model):
        unfreeze_heads(model)
    return adapted


def _excluded(model: PreTrainedModel) -> list[str] | None:
    """Names of modules that get no adapter; None if there are none: peft warns of names that it does not find."""
    names = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    return [name for name in without_adapter(model.config.model_type) if name in names] or None


def _initialise(name: str, parameter: nn.Parameter, seed: int) -> None:
    """Initialize with peft's distributions (B stays zero), from a generator seeded for this parameter only."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.empty(parameter.shape, dtype=torch.float32)
    if ".lora_A." in name:
        # kaiming_uniform_(a=sqrt(5)) over the input size, as for torch.nn.Linear.
        bound = 1.0 / math.sqrt(parameter.shape[1])
        values.uniform_(-bound, bound, generator=generator)
    elif ".lora_embedding_B" in name:
        values.normal_(generator=generator)
    else:
        return
    parameter.data.copy_(values)


def _check_targets(model: PreTrainedModel, method: Lora) -> None:
    """As `require_targets`, on the model itself. peft also matches containers of modules, which it cannot adapt."""
    if isinstance(method.target_modules, str):
        return
    modules = dict(model.named_modules())
    if is_classifier(model):
        modules = {name: module for name, module in modules.items() if not re.fullmatch(_HEADS, name)}
    linear_or_embedding = (nn.Linear, nn.Embedding, Conv1D)
    known = {name for name, module in modules.items() if isinstance(module, linear_or_embedding) and is_adaptable(name)}
    require_known(method.target_modules, known)
    for name in modules.keys() - known:
        if any(f".{name}".endswith(f".{target}") for target in method.target_modules):
            raise InputError(
                f"{name} is a {type(modules[name]).__name__}, which cannot get an adapter",
                where="method.target_modules",
                remedy="write a longer end of the path of the module that you mean",
            )
