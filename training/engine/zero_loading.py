"""Loading for ZeRO-3: each weight is sharded as soon as it is read, so that no rank ever holds the whole model."""

from typing import Any

from torch import nn

from tunesmith.modeling.loading.stream import Place
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.deepspeed_start import start_deepspeed


def sharder(config: dict[str, Any], device: str, ranks: Ranks) -> Place:
    """Return the `place` callback for `stream_model`: a collective that keeps this rank's shard of a parameter, with
    rank 0's values."""
    deepspeed = start_deepspeed(device, ranks)
    first: list[Any] = []

    def shard(parameter: nn.Parameter) -> None:
        if first:
            first[0].convert_to_zero_parameters(param_list=[parameter])
        else:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=config)
            first.append(parameter)

    return shard
