"""4-bit weights of bitsandbytes as published: kept bit for bit, not dequantized and quantized again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import InputError
from tunesmith.modeling.quantization.nf4 import Nf4Linear, Params4bit


def published_parameter(
    layer: Nf4Linear,
    name: str,
    parts: Mapping[str, Tensor],
    device: str | torch.device,
    dtype: torch.dtype,
    directory: Path,
) -> nn.Parameter:
    """Return the parameter of a layer from the tensors that bitsandbytes stored, its name first.

    dtype: of the run, to which values are dequantized, whatever the type that the weight had: so do bitsandbytes'
    products. directory: for errors.
    InputError if the shape is not the layer's, a scale is not finite, or the device cannot compute it.
    """
    own = {key.removeprefix(f"{name}."): tensor for key, tensor in parts.items() if key != name}
    parameter_of: Any = Params4bit
    try:
        parameter = parameter_of.from_prequantized(parts[name], own, requires_grad=False, device=device, module=layer)
    except (ValueError, KeyError, AssertionError, TypeError, AttributeError) as error:
        what = f"the 4-bit weight {name} cannot be read: {error}"
        remedy = "download the model again, or upgrade bitsandbytes"
        raise InputError(what, where=str(directory), remedy=remedy) from error
    state: Any = parameter.quant_state
    if tuple(state.shape) != (layer.out_features, layer.in_features):
        shapes = f"{list(state.shape)}, but config.json gives {[layer.out_features, layer.in_features]}"
        raise InputError(f"{name} has the shape {shapes}", where=str(directory), remedy="download the model again")
    scales = state.absmax if state.state2 is None else state.state2.absmax
    if not (scales.is_floating_point() and torch.isfinite(scales).all()):
        what = f"the scales of {name} are missing or not finite"
        raise InputError(what, where=str(directory), remedy="download the model again")
    if torch.device(device).type == "cpu" and layer.in_features % state.blocksize:
        raise InputError(
            f"{name} has rows of {layer.in_features} values, which are not whole blocks of {state.blocksize}: "
            "bitsandbytes reads them wrongly on a CPU",
            where=str(directory),
            remedy="train on a GPU, or set model.base to the unquantized weights",
        )
    state.dtype = dtype
    return parameter
