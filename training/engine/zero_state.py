"""Masters and moments of a DeepSpeed engine by parameter name: gathered one at a time, set without a throw-away step.

Stages 1 and 2 keep them in one flat tensor a group of parameters, of which a rank holds an equal share; stage 3 keeps
this rank's share of every single parameter, filled up with zeros where it does not divide, in flat tensors as well.
"""

from collections.abc import Mapping
from typing import Any

import torch

from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.optim.eight_bit import is_eight_bit
from tunesmith.training.optim.optimizer import MOMENTS, full_shape, moment_of, set_moments


class ZeroState:
    """zero: DeepSpeed's ZeRO optimizer. client: the AdamW inside of it. parameters: what is trained, by name."""

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
        """The master, fp32, whole, on every rank. A collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        return _whole(safe_get_full_fp32_param(self.parameters[name]), name)

    def moment(self, moment: str, name: str) -> torch.Tensor:
        """One of MOMENTS, fp32, whole; zeros before the first update. A collective, like `weight`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        parameter = self.parameters[name]
        if not self.has_moments:
            return torch.zeros(full_shape(parameter), dtype=torch.float32)
        self._expose(moment)
        return _whole(safe_get_full_optimizer_state(parameter, moment), name)

    @property
    def has_moments(self) -> bool:
        """Whether the moments have been made: by the first update, or by `create`. The same on every rank."""
        return bool(self.client.state.get(self._flats()[0]))

    def create(self) -> None:
        """Moments of zero beside every flat tensor of masters, to be set by `set_moment` and then put to use."""
        for flat in self._flats():
            self.client.state[flat] = {moment: torch.zeros_like(flat) for moment in MOMENTS}
        self._link()

    def activate(self, num_updates: int) -> None:
        """The moments that were set become the optimizer's own, as `num_updates` updates have made them."""
        for flat in self._flats():
            set_moments(self.client, flat, self.client.state[flat], num_updates)
        self._link()

    def repack(self) -> None:
        """Leave to an 8-bit optimizer what is its own; `moment` laid a moment open in fp32."""
        if self._exposed is not None and is_eight_bit(self.client):
            for flat in self._flats():
                self.client.state[flat].pop(self._exposed)
        self._exposed = None

    def set_weight(self, name: str, value: torch.Tensor) -> None:
        """Master and the module's own weight. value: whole, the same on every rank."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        parameter = self.parameters[name]
        if self.stage < 3:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
            return
        share = self._share(parameter, value)
        safe_set_local_fp32_param(parameter, share)
        parameter.ds_tensor.data.copy_(share)  # type: ignore[attr-defined]
        if parameter.numel():  # small ones stay whole on every rank between steps
            parameter.data.copy_(value)

    def set_moment(self, moment: str, name: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        parameter = self.parameters[name]
        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            safe_set_local_optimizer_state(parameter, self._share(parameter, value), moment)

    def _expose(self, moment: str) -> None:
        """Where DeepSpeed's accessors look for a moment, in fp32: this rank's share of it, one moment at a time."""
        if self._exposed != moment:
            self.repack()
            for flat in self._flats():
                self.client.state[flat][moment] = moment_of(self.client, flat, moment)
            self._link()
            self._exposed = moment

    def _link(self) -> None:
        """Stages 1 and 2: lets every parameter find its part of the flat moments.

        DeepSpeed does so after the update of the first group, when those of the second are not made yet.
        """
        if self.stage < 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def _flats(self) -> list[torch.Tensor]:
        """This rank's flat tensors of masters, the keys of the client's state."""
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
            if (flats := getattr(self.zero, name, None)) is not None:
                return flats
        raise AssertionError(f"{type(self.zero).__name__} keeps its masters where this version does not look")

    def _share(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """This rank's part of a parameter in stage 3, filled up with zeros."""
        size = parameter.partition_numel()  # type: ignore[attr-defined]
        share = value.new_zeros(size)
        mine = value.reshape(-1)[size * self.ranks.rank : size * (self.ranks.rank + 1)]
        share[: len(mine)] = mine
        return share


def _whole(tensor: torch.Tensor | None, name: str) -> torch.Tensor:
    if tensor is None:
        raise AssertionError(f"DeepSpeed does not train {name}")
    return tensor.detach()
