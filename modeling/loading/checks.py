"""Checks of weights that have been read, and of transformers' report on them."""

from collections.abc import Iterable
from pathlib import Path

import torch

from tunesmith.errors import InputError
from tunesmith.progress import advance


def require_whole(odd: Iterable[str], directory: Path, how: str = "missing") -> None:
    """Raise InputError if there are odd weights: transformers would silently initialize them at random."""
    if names := sorted(odd):
        raise InputError(
            f"{len(names)} weights are {how}, the first is {names[0]}",
            where=str(directory),
            remedy="download the model again: its files are incomplete, or of another architecture",
        )


def require_same_shapes(odd: Iterable[tuple[str, Iterable[int], Iterable[int]]], directory: Path) -> None:
    """Raise InputError if there are weights of another shape than the configuration gives. odd: name, shape in the
    files, and shape of the model's parameter."""
    for name, stored, expected in sorted(odd):
        raise InputError(
            f"{name} has the shape {list(stored)}, but config.json gives {list(expected)}",
            where=str(directory),
            remedy="download the model again: config.json and the weights are of different models",
        )


def require_finite(weights: Iterable[tuple[str, torch.Tensor]], directory: Path) -> None:
    """Raise InputError if a weight is NaN or infinite: every loss would be NaN, and the learning rate be suspected."""
    for name, weight in weights:
        advance()
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise InputError(
                f"the weight {name} contains values that are not finite (NaN or infinity)",
                where=str(directory),
                remedy="download the model again, or load it in the precision that it was trained in",
            )
