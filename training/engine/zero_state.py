"""Master weights and moments of a DeepSpeed engine by parameter name: gathered one at a time, set without a dummy step.

Stages 1 and 2 keep them in one flat tensor per parameter group, sharded equally over the ranks. Stage 3 keeps this
rank's shard of every single parameter, padded with zeros if it does not divide evenly, in flat tensors as well.
"""

from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.optim.eight_bit import is_eight_bit
from tunesmith.training.optim.optimizer import MOMENTS, full_shape, moment_of, set_moments


class ZeroState:
    """zero: DeepSpeed's ZeRO optimizer. client: the AdamW inside it. parameters: trained parameters by name."""

    def __init__(
        self,
        zero: Any,
        client: torch.optim.Optimizer,
        parameters: Mapping[str, torch.nn.Parameter],
        ranks: Ranks,
        stage: int,
    ):
        self.zero, self.client, self.parameters, self.ranks, self.stage = zero, client, parameters, ranks, stage
        self._exposed: str | None = None

    def weight(self, name: str) -> torch.Tensor:
        """Return the whole master weight, fp32, on every rank. A collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        return _whole(safe_get_full_fp32_param(self.parameters[name]), name)

    def moment(self, moment: str, name: str) -> torch.Tensor:
        """Return one of MOMENTS, whole, fp32; zeros before the first update. A collective, like `weight`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        parameter = self.parameters[name]
        if not self.has_moments:
            return torch.zeros(full_shape(parameter), dtype=torch.float32)
        self._expose(moment)
        return _whole(safe_get_full_optimizer_state(parameter, moment), name)

    @property
    def has_moments(self) -> bool:
        """Whether the moments exist: created by the first update, or by `create`. The same on every rank."""
        return bool(self.client.state.get(self.flats()[0]))

    def create(self) -> None:
        """Create zero moments for every flat tensor of master weights, for `set_moment` and then `activate`."""
        for flat in self.flats():
            self.client.state[flat] = {moment: torch.zeros_like(flat) for moment in MOMENTS}
        self._link()

    def activate(self, num_updates: int) -> None:
        """Hand the moments to the optimizer, as they are after `num_updates` updates."""
        for flat in self.flats():
            set_moments(self.client, flat, self.client.state[flat], num_updates)
        self._link()

    def repack(self) -> None:
        """Remove the fp32 copy of a moment that `moment` exposed, if the optimizer has 8-bit moments."""
        if self._exposed is not None and is_eight_bit(self.client):
            for flat in self.flats():
                self.client.state[flat].pop(self._exposed)
        self._exposed = None

    def set_weight(self, name: str, value: torch.Tensor) -> None:
        """Set the master weight and the module's weight. value: whole, the same on every rank."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        parameter = self.parameters[name]
        if self.stage < 3:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
            return
        shard = self._shard(parameter, value)
        safe_set_local_fp32_param(parameter, shard)
        parameter.ds_tensor.data.copy_(shard)  # type: ignore[attr-defined]
        if parameter.numel():  # small parameters stay whole on every rank between steps
            parameter.data.copy_(value)

    def set_moment(self, moment: str, name: str, value: torch.Tensor) -> None:
        """Set one of MOMENTS. value: whole, the same on every rank."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        parameter = self.parameters[name]
        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            safe_set_local_optimizer_state(parameter, self._shard(parameter, value), moment)

    def _expose(self, moment: str) -> None:
        """Store this rank's shard of a moment in fp32 where DeepSpeed's accessors read it, one moment at a time."""
        if self._exposed != moment:
            self.repack()
            for flat in self.flats():
                self.client.state[flat][moment] = moment_of(self.client, flat, moment)
            self._link()
            self._exposed = moment

    def _link(self) -> None:
        """Stages 1 and 2: link every parameter to its slice of the flat moments.

        DeepSpeed does so after the update of the first group, when the moments of the second do not exist yet.
        """
        if self.stage < 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def flats(self) -> list[torch.Tensor]:
        """This rank's flat tensors of master weights, the keys of the client's state."""
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
            if (flats := getattr(self.zero, name, None)) is not None:
                return flats
        raise AssertionError(f"{type(self.zero).__name__} keeps its master weights in an unknown attribute")

    def _shard(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """This rank's shard of a parameter in stage 3, padded with zeros."""
        size = parameter.partition_numel()  # type: ignore[attr-defined]
        shard = value.new_zeros(size)
        values = value.reshape(-1)[size * self.ranks.rank : size * (self.ranks.rank + 1)]
        shard[: len(values)] = values
        return shard


def _whole(tensor: torch.Tensor | None, name: str) -> torch.Tensor:
    if tensor is None:
        raise AssertionError(f"DeepSpeed does not train {name}")
    return tensor.detach()
