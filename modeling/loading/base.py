"""Loading the base model of a run: in full precision, in 4 bits, or sharded over the ranks while it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tunesmith.configs.sections.method import Full, LastLayers, Lora, QLora
from tunesmith.configs.tasks import TASKS
from tunesmith.model_files import require_undamaged
from tunesmith.modeling.loading.heads import Labels, load_classifier
from tunesmith.modeling.loading.load import load_model, load_sequence_model
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
    """Load the base model in eval mode, with the attention implementation that transformers chooses.

    dtype: of weights that are not in 4 bits. place: see `stream_model`. labels: of a classification head.
    """
    require_undamaged(directory)
    return LOADERS[TASKS[task].model](_LoadRequest(directory, method, dtype, device, place, labels))


@dataclass(frozen=True)
class _LoadRequest:
    directory: Path
    method: Full | LastLayers | Lora
    dtype: torch.dtype
    device: str | torch.device
    place: Place | None
    labels: Labels | None


def _load_causal(request: _LoadRequest) -> PreTrainedModel:
    directory, dtype, device = request.directory, request.dtype, request.device
    if isinstance(request.method, QLora):
        return stream_model(
            directory,
            dtype=dtype,
            device=device,
            nf4=True,
            double_quantization=request.method.double_quantization,
            place=request.place,
        )
    if request.place is not None or torch.device(device).type != "cpu":  # the CPU never holds the whole model
        return stream_model(directory, dtype=dtype, device=device, place=request.place)
    return causal_lm(load_model(directory, dtype=dtype, device=device))


def _load_classifier(request: _LoadRequest) -> PreTrainedModel:
    assert request.labels is not None
    return load_classifier(request.directory, request.labels, dtype=request.dtype, device=request.device)


def _load_encoder_decoder(request: _LoadRequest) -> PreTrainedModel:
    return load_sequence_model(request.directory, dtype=request.dtype, device=request.device)


LOADERS: dict[str, Callable[[_LoadRequest], PreTrainedModel]] = {
    "causal": _load_causal,
    "classifier": _load_classifier,
    "encoder_decoder": _load_encoder_decoder,
}
"""Loaders by the model kind of a task."""
