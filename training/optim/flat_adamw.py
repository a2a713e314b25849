"""AdamW through the run's kernels: parameters are concatenated in a few flat tensors, each updated by one call.

N values of a flat tensor. A large parameter has a flat tensor to itself; small ones are joined, each aligned to 256
values: a block of 8-bit moments never spans two parameters, and blocks do not depend on how parameters are joined.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from tunesmith.kernels.adamw import MOMENTS_BLOCK, unpacked
from tunesmith.kernels.dispatch import Kernels
from tunesmith.training.optim.eight_bit import quantised
from tunesmith.training.optim.groups import AdamWGroup, AdamWOptions, ParameterGroup

JOINED_VALUES = 1 << 20
"""Parameters of fewer values are joined: their gradients are copied together at each update."""
FLAT_VALUES = 8 << 20
"""Maximum size of a flat tensor of joined parameters: at most 32 MiB of gradients are copied at a time."""
SMALLEST_8BIT = 4096
"""Parameters with at least this many values have 8-bit moments, as in bitsandbytes."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatAdamW(torch.optim.Optimizer):
    """AdamW over flat tensors.

    groups, options: as for torch.optim.AdamW; parameters in fp32. tables_2x256: code tables of first and second
    moments, ascending: moments of parameters with at least SMALLEST_8BIT values are stored in 8 bits. None: all in
    fp32.
    """

    def __init__(
        self, groups: Iterable[ParameterGroup], options: AdamWOptions, kernels: Kernels, tables_2x256: Tensor | None
    ):
        super().__init__([dict(group) for group in groups], dict(options))
        self._flats = [
            Flat(parameters, cast(AdamWGroup, group), kernels, tables)
            for group in self.param_groups
            for parameters, tables in _grouped(group["params"], tables_2x256)
        ]
        self._gradient_N: Tensor | None = None
        self._flat_of = {parameter: flat for flat in self._flats for parameter in flat.parameters}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        self.allocate()
        gradient_N, self._gradient_N = self._gradient_N, None
        assert gradient_N is not None
        for flat in self._flats:
            flat.update(gradient_N)

    @torch.no_grad()
    def allocate(self) -> None:
        """Allocate the moments, and the tensor in which the next update joins the gradients of a flat tensor."""
        for flat in self._flats:
            flat.allocate_moments()
        if self._gradient_N is None:
            size = max((flat.num_values for flat in self._flats if len(flat.parameters) > 1), default=0)
            self._gradient_N = self._flats[0].parameters[0].new_empty(size)

    def moment(self, parameter: Tensor, moment: str) -> Tensor:
        """Return one of MOMENTS, fp32 in the parameter's shape; zeros before the first update."""
        return self._flat_of[parameter].moment(parameter, MOMENTS.index(moment))  # type: ignore[index]

    def set_moments(self, parameter: Tensor, moments: Mapping[str, Tensor], num_updates: int) -> None:
        """Set the moments of a parameter (any shape and dtype) as they are after `num_updates` updates."""
        values = [moments[moment].to(parameter.device, torch.float32).reshape(-1) for moment in MOMENTS]
        self._flat_of[parameter].set_moments(parameter, values, num_updates)  # type: ignore[index]


class Flat:
    """Parameters of one group in one flat tensor, with their moments: fp32 [2, N], or codes [2, N] and scales."""

    def __init__(
        self, parameters: list[torch.nn.Parameter], group: AdamWGroup, kernels: Kernels, tables: Tensor | None
    ):
        self.parameters, self.group, self.kernels = parameters, group, kernels
        self.tables_2x256 = tables.to(parameters[0].device) if tables is not None else None
        self.num_updates = dict.fromkeys(parameters, 0)
        ends, self.at = 0, {}
        for parameter in parameters:
            self.at[parameter] = slice(ends, ends + parameter.numel())
            ends += -(-parameter.numel() // MOMENTS_BLOCK) * MOMENTS_BLOCK
        self.num_values = ends if len(parameters) > 1 else parameters[0].numel()
        if len(parameters) == 1:
            parameters[0].data = parameters[0].data.contiguous()
        else:
            joined_N = parameters[0].data.new_zeros(self.num_values)
            for parameter, at in self.at.items():
                joined_N[at] = parameter.data.reshape(-1)
                parameter.data = joined_N[at].view(parameter.shape)
            self._joined_N = joined_N
        self._moments_2N: Tensor | None = None
        self._scales_2B: Tensor | None = None

    def update(self, buffer_N: Tensor) -> None:
        """Update in one call, or parameter by parameter if gradients are missing or update counts differ.

        buffer_N: fp32, for the joined gradients, overwritten.
        """
        present = [parameter for parameter in self.parameters if parameter.grad is not None]
        if not present:
            return
        alike = len({self.num_updates[parameter] for parameter in present}) == 1
        if alike and len(present) == len(self.parameters):
            self._call(slice(0, self.num_values), self._values(), self._gradients(buffer_N), present)
            return
        for parameter in present:
            assert parameter.grad is not None
            self._call(self.at[parameter], parameter.data.view(-1), parameter.grad.reshape(-1), [parameter])

    def _values(self) -> Tensor:
        return self._joined_N if len(self.parameters) > 1 else self.parameters[0].data.view(-1)

    def _gradients(self, buffer_N: Tensor) -> Tensor:
        if len(self.parameters) == 1:
            assert self.parameters[0].grad is not None
            return self.parameters[0].grad.reshape(-1)
        gradient_N = buffer_N[: self.num_values].zero_()
        for parameter, at in self.at.items():
            assert parameter.grad is not None
            gradient_N[at] = parameter.grad.reshape(-1)
        return gradient_N

    def _call(self, at: slice, parameter_n: Tensor, gradient_n: Tensor, updated: list[torch.nn.Parameter]) -> None:
        for parameter in updated:
            self.num_updates[parameter] += 1
        moments_2N, scales_2B = self._moments()
        options = {
            "learning_rate": self.group["lr"],
            "betas": self.group["betas"],
            "eps": self.group["eps"],
            "weight_decay": self.group["weight_decay"],
            "step": self.num_updates[updated[0]],
        }
        if self.tables_2x256 is None:
            kernel = self.kernels.choose("adamw", parameter_n)
            kernel(parameter_n, gradient_n, moments_2N[0, at], moments_2N[1, at], **options)
        else:
            assert scales_2B is not None
            kernel = self.kernels.choose("adamw_8bit", parameter_n)
            scales_2b = scales_2B[:, _blocks(at)]
            kernel(parameter_n, gradient_n, moments_2N[:, at], scales_2b, self.tables_2x256, **options)

    def allocate_moments(self) -> None:
        """Create the moments as zeros, if they do not exist."""
        if self._moments_2N is not None:
            return
        like = self.parameters[0].data
        if self.tables_2x256 is None:
            self._moments_2N = like.new_zeros(2, self.num_values)
        else:
            zero = [int((table_256 == 0).nonzero()[0]) for table_256 in self.tables_2x256]
            codes_21 = torch.tensor(zero, dtype=torch.uint8, device=like.device)[:, None]
            self._scales_2B = like.new_zeros(2, -(-self.num_values // MOMENTS_BLOCK))
            self._moments_2N = codes_21.repeat(1, self.num_values)

    def _moments(self) -> tuple[Tensor, Tensor | None]:
        """Moments and scales (None in fp32), created on first use."""
        self.allocate_moments()
        assert self._moments_2N is not None
        return self._moments_2N, self._scales_2B

    def moment(self, parameter: torch.nn.Parameter, number: int) -> Tensor:
        """Return moment number 0 or 1 of a parameter, fp32 in its shape."""
        if self._moments_2N is None or not self.num_updates[parameter]:
            return torch.zeros_like(parameter, dtype=torch.float32)
        at = self.at[parameter]
        values_n = self._moments_2N[number, at]
        if self.tables_2x256 is not None:
            assert self._scales_2B is not None
            values_n = unpacked(values_n, self._scales_2B[number, _blocks(at)], self.tables_2x256[number])
        return values_n.view(parameter.shape)

    def set_moments(self, parameter: torch.nn.Parameter, moments: list[Tensor], num_updates: int) -> None:
        """Set both moments, fp32 [n] each, of a parameter."""
        moments_2N, scales_2B = self._moments()
        at = self.at[parameter]
        self.num_updates[parameter] = num_updates
        for number, values_n in enumerate(moments):
            if self.tables_2x256 is None:
                moments_2N[number, at] = values_n
            else:
                assert scales_2B is not None
                codes_n, scales_b = quantised(values_n, self.tables_2x256[number])
                moments_2N[number, at], scales_2B[number, _blocks(at)] = codes_n, scales_b


def _blocks(at: slice) -> slice:
    return slice(at.start // MOMENTS_BLOCK, -(-at.stop // MOMENTS_BLOCK))


def _grouped(
    parameters: list[torch.nn.Parameter], tables_2x256: Tensor | None
) -> list[tuple[list[torch.nn.Parameter], Tensor | None]]:
    """The parameters of each flat tensor, in order, and the code tables of its moments."""
    groups: list[tuple[list[torch.nn.Parameter], Tensor | None]] = []
    for in_8_bits in (False, True):
        tables = tables_2x256 if in_8_bits else None
        selected = [p for p in parameters if in_8_bits == (tables_2x256 is not None and p.numel() >= SMALLEST_8BIT)]
        joined: list[torch.nn.Parameter] = []
        num_values = 0
        for parameter in selected:
            if parameter.numel() >= JOINED_VALUES:
                groups.append(([parameter], tables))
                continue
            if joined and num_values + parameter.numel() > FLAT_VALUES:
                groups.append((joined, tables))
                joined, num_values = [], 0
            joined.append(parameter)
            num_values += parameter.numel()
        if joined:
            groups.append((joined, tables))
    return groups
