"""The parts of a transformers model that losses, adapters and kernels work on."""

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import RunFault


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model itself, without peft's wrapper (adapters are inside the model)."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise RunFault(f"{type(inner).__name__} is not a transformers model")
    return inner


def recompute_activations(model: nn.Module) -> None:
    """Enable gradient checkpointing: save only the input of each block and recompute the rest in the backward pass."""
    inner = causal_lm(model)
    keywords = {"use_reentrant": False}
    if hasattr(
        inner, "activation_checkpointing_enable"
    ):  # the name since transformers 5.2x; the other one is removed in 6
        inner.activation_checkpointing_enable(activation_checkpointing_kwargs=keywords)
    else:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)
    # Only reentrant checkpointing needs gradients of the embeddings; with frozen ones they would be wasted work.
    inner.disable_input_require_grads()


def backbone(model: PreTrainedModel) -> nn.Module:
    """Return the part of a causal language model below its head."""
    inner = getattr(model, model.base_model_prefix, None)
    if not isinstance(inner, nn.Module):  # Llama 4: the prefix is that of its multimodal class
        children = [child for child in model.children() if isinstance(child, PreTrainedModel)]
        inner = children[0] if len(children) == 1 else None
    if inner is None:
        raise RunFault(f"{type(model).__name__} has no separate backbone")
    return inner


def head_of(model: PreTrainedModel) -> nn.Module:
    """Return the module that computes logits from hidden states: a linear layer, or one with an adapter."""
    head = model.get_output_embeddings()
    if head is None:
        raise RunFault(f"{type(model).__name__} has no output head")
    return head
