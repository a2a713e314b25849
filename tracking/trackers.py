"""The trackers by kind, and the packages that each needs. To add one, write a class and list it here."""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any, get_args

from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.trackers import MLflow, TensorBoard, Trackio, Wandb
from tunesmith.errors import InputError
from tunesmith.tracking.mlflow import MLflowTracker
from tunesmith.tracking.tensorboard import TensorBoardTracker
from tunesmith.tracking.tracker import Tracked, Tracker
from tunesmith.tracking.trackio import TrackioTracker
from tunesmith.tracking.wandb import WandbTracker

Options = TensorBoard | MLflow | Wandb | Trackio

_TRACKERS: dict[type[Any], Callable[[Any, Tracked], Tracker]] = {
    TensorBoard: TensorBoardTracker,
    MLflow: MLflowTracker,
    Wandb: WandbTracker,
    Trackio: TrackioTracker,
}
_PACKAGES = {
    TensorBoard: ("tensorboard",),
    MLflow: ("mlflow", "sqlalchemy", "alembic"),
    Wandb: ("wandb",),
    Trackio: ("trackio",),
}
"""Modules of each extra, which has the tracker's name. MLflow needs the last two for a database of this machine."""
_PLACES = {
    TensorBoard: ("directory",),
    MLflow: ("tracking_uri", "experiment"),
    Wandb: ("project", "entity"),
    Trackio: ("project", "space_id"),
}
KINDS: tuple[str, ...] = tuple(get_args(options.model_fields["kind"].annotation)[0] for options in _TRACKERS)


def open_tracker(options: Options, tracked: Tracked) -> Tracker:
    """Return the tracker of these options; it connects when it is opened."""
    return _TRACKERS[type(options)](options, tracked)


def place_of(options: Options) -> dict[str, str | None]:
    """The options that say where a run is in the tracker: with others it is a new run there."""
    return {name: getattr(options, name) for name in _PLACES[type(options)]}


def options_of(recipe: Recipe, kind: str) -> Options:
    """The options of a tracker in a recipe; the default options if the recipe does not list it."""
    for options in recipe.tracking:
        if options.kind == kind:
            return options
    for model, name in zip(_TRACKERS, KINDS, strict=True):
        if name == kind:
            return model(kind=kind)
    raise InputError(f"unknown tracker {kind!r}", remedy=f"use one of {', '.join(KINDS)}")


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require_installed(trackers: Iterable[Options], installed: Callable[[str], bool] = _is_installed) -> None:
    """Raise InputError, with the command that installs it, for the first tracker whose package is not installed.
    installed: whether a module is."""
    for options in trackers:
        if missing := [name for name in _needed(options) if not installed(name)]:
            raise InputError(
                f"{options.kind} needs a package that is not installed: {missing[0]}",
                where="key tracking",
                remedy=f"pip install 'tunesmith[{options.kind}]', or remove {options.kind} from the key",
            )


def _needed(options: Options) -> tuple[str, ...]:
    if isinstance(options, MLflow) and (options.tracking_uri or "").startswith("http"):
        return _PACKAGES[MLflow][:1]
    return _PACKAGES[type(options)]
