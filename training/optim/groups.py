"""Parameter groups of AdamW."""

from typing import TypedDict

from torch.nn import Parameter


class ParameterGroup(TypedDict):
    """Parameters with a common weight decay."""

    params: list[Parameter]
    weight_decay: float


class AdamWOptions(TypedDict):
    """Options shared by all groups; lr: the learning rate until the schedule sets another."""

    lr: float
    betas: tuple[float, float]
    eps: float


class AdamWGroup(ParameterGroup, AdamWOptions):
    """A group as stored by a torch optimizer: lr changes with the schedule."""
