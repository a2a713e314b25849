"""ZeRO-3 from the first byte: a weight is divided over the ranks as soon as it is read, and no rank has them all."""

from typing import Any

from torch import nn

from tunesmith.modeling.loading.stream import Place
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.deepspeed_start import start_deepspeed


def sharder(config: dict[str, Any], device: str, ranks: Ranks) -> Place:
    """What `stream_model` does with a parameter: keep this rank's share of it, rank 0's values. A collective."""
    deepspeed = start_deepspeed(device, ranks)
    first: list[Any] = []

    def divide(parameter: nn.Parameter) -> None:
        if first:
            first[0].convert_to_zero_parameters(param_list=[parameter])
        else:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=config)
            first.append(parameter)

    return divide
