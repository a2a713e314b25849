"""The base model of a run, as its method wants it: plain, in 4 bits, or divided over the ranks while it is read."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from tunesmith.configs.recipe import Full, LastLayers, Lora, QLora
from tunesmith.modeling.loading.heads import Labels, load_classifier
from tunesmith.modeling.loading.load import load_model, load_sequence_model
from tunesmith.modeling.loading.packed_attention_hook import PACKED
from tunesmith.modeling.loading.stream import Place, stream_model
from tunesmith.modeling.parts import causal_lm


def load_base(
    directory: Path,
    method: Full | LastLayers | Lora,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    place: Place | None = None,
    task: str = "chat",
    labels: Labels | None = None,
) -> PreTrainedModel:
    """With packed attention where the class has it, in eval mode. dtype: of weights that are not in 4 bits. place: see
    `stream_model`. labels: of a classification's head."""
    if labels is not None:
        return load_classifier(directory, labels, dtype=dtype, device=device)
    if task == "seq2seq":
        return load_sequence_model(directory, dtype=dtype, device=device)
    if isinstance(method, QLora):
        return stream_model(
            directory,
            dtype=dtype,
            attention=PACKED,
            device=device,
            nf4=True,
            double_quantization=method.double_quantization,
            place=place,
        )
    if place is not None:
        return stream_model(directory, dtype=dtype, attention=PACKED, device=device, place=place)
    return causal_lm(load_model(directory, dtype=dtype, attention=PACKED, device=device))
