"""Parameters that AdamW updates alike."""

from typing import TypedDict

from torch.nn import Parameter


class ParameterGroup(TypedDict):
    params: list[Parameter]
    weight_decay: float


class AdamWOptions(TypedDict):
    """What all groups share; lr: the learning rate until the schedule sets another."""

    lr: float
    betas: tuple[float, float]
    eps: float


class AdamWGroup(ParameterGroup, AdamWOptions):
    """A group as a torch optimizer keeps it: lr changes with the schedule."""
