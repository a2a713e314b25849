"""The trials of a study, kept in Optuna's journal: proposing values, reporting metrics, pruning.

A journal is a file of JSON lines that is only appended to, each write followed by fsync, and needs no file locks of the
operating system: it survives kill -9 and works on shared file systems, where SQLite may not
(https://optuna.readthedocs.io/en/stable/tutorial/20_recipes/011_journal_storage.html). Optuna is imported in functions.
"""

import importlib.util
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.configs.search_space import Choices, Dimension, grid
from tunesmith.configs.tune import MedianPruner, SuccessiveHalving, TuneFile
from tunesmith.errors import InputError

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

DRAWS = 20
"""Draws of a sampler until its values differ from those of every trial; then as many at random."""
STUDY_NAME = "tunesmith"
"""Name of the study in its journal, which contains no other."""
GRID_LIMIT = 100_000
"""Combinations of a grid that are enumerated."""
RUNNING, DONE, PRUNED, FAILED = "running", "done", "pruned", "failed"


@dataclass(frozen=True)
class StoredTrial:
    """number: from 1. values: by recipe key. outcome: RUNNING, DONE, PRUNED or FAILED. value: of the objective.
    pruned_at: step whose evaluation decided to prune it. reason: of a pruned or failed trial."""

    number: int
    values: Mapping[str, Any]
    outcome: str
    value: float | None = None
    pruned_at: int | None = None
    reason: str | None = None
    reported: frozenset[int] = frozenset()
    """Steps whose metric is in the journal."""


def require_optuna() -> None:
    """Raise InputError, with the command that installs it, if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError(
            "`tunesmith tune` needs a package that is not installed: optuna", remedy="pip install 'tunesmith[tune]'"
        )


class Study:
    """The caller holds the study's lock, so no other process writes the journal.

    every_steps: steps between evaluations during training; None: there are none, and nothing is pruned.
    """

    def __init__(self, journal: Path, tune_file: TuneFile, every_steps: int | None):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        _repair(journal)
        self._file, self._dimensions = tune_file, tune_file.dimensions
        self._pruner = None if every_steps is None else _pruner(tune_file, every_steps)
        try:
            self._storage = JournalStorage(JournalFileBackend(str(journal)))
            self._study = self._open()
        except (ValueError, KeyError) as error:
            raise InputError(
                f"the journal of the study is damaged: {error}",
                where=str(journal),
                remedy="restore it, or start a new study with another --study",
            ) from error

    def _open(self) -> "OptunaStudy":
        """Open or create the study. One without trials may have been created for another objective."""
        import optuna

        direction = "maximize" if self._file.metric.higher_is_better else "minimize"
        options: dict[str, Any] = {"storage": self._storage, "study_name": STUDY_NAME, "direction": direction}
        study = optuna.create_study(**options, load_if_exists=True)
        if study.direction.name.lower() != direction and not study.get_trials(deepcopy=False):
            optuna.delete_study(study_name=STUDY_NAME, storage=self._storage)
            study = optuna.create_study(**options)
        return study

    def trials(self) -> list[StoredTrial]:
        return [_stored(trial) for trial in self._study.get_trials(deepcopy=False)]

    def propose(self) -> StoredTrial | None:
        """Choose the values of the next trial and record it as running; None if every combination was tried.

        They are a pure function of the seed and the trials so far, and recorded in one write.
        """
        from optuna.trial import TrialState, create_trial

        trials = self.trials()
        values = self._next_values([trial.values for trial in trials])
        if values is None:
            return None
        distributions = {each.key: _distribution(each) for each in self._dimensions}
        params = {each.key: _category(values[each.key], each) for each in self._dimensions}
        attributes = {"values": dict(values)}
        self._study.add_trial(
            create_trial(state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes)
        )
        return self.trials()[-1]

    def report(self, number: int, step: int, value: float) -> None:
        """Record the metric of an evaluation during training; once per step."""
        trial = self._trial(number)
        if step not in trial.intermediate_values:
            self._storage.set_trial_intermediate_value(trial._trial_id, step, value)

    def should_prune(self, number: int) -> bool:
        """Whether the last reported metric of a trial is too bad for it to continue; not finite always is."""
        if self._pruner is None:
            return False
        trial = self._trial(number)
        is_finite = trial.last_step is None or math.isfinite(trial.intermediate_values[trial.last_step])
        return not is_finite or bool(self._pruner.prune(self._study, trial))

    def mark_pruned(self, number: int, step: int, reason: str) -> None:
        """Record the decision to prune, before the trial is asked to stop."""
        self._set(number, reason=reason, pruned_at=step)

    def finish(
        self,
        number: int,
        outcome: str,
        *,
        value: float | None = None,
        reason: str | None = None,
        is_verdict: bool = False,
    ) -> None:
        """Record the end of a trial. is_verdict: it failed because of its numbers. Optuna's samplers ignore failed
        trials, so such a one is PRUNED there: its values are bad ones."""
        from optuna.trial import TrialState

        states: dict[str, TrialState] = {DONE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
        state = states[outcome]
        if outcome == FAILED and is_verdict:
            state = TrialState.PRUNED
        self._set(number, outcome=outcome, reason=reason)
        self._study.tell(number - 1, value if state == TrialState.COMPLETE else None, state=state)

    def _set(self, number: int, **attributes: Any) -> None:
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._trial(number)._trial_id, name, value)

    def _trial(self, number: int) -> "FrozenTrial":
        return self._study.get_trials(deepcopy=False)[number - 1]

    def _next_values(self, tried: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        tune = self._file.tune
        combinations = grid(self._dimensions, tune.max_trials if tune.sampler == "auto" else GRID_LIMIT)
        untried = [each for each in combinations or () if not _is_in(each, tried)]
        if combinations is not None and (not untried or tune.sampler in ("auto", "grid")):
            return untried[0] if untried else None
        values: dict[str, Any] = {}
        for draw in range(2 * DRAWS):
            values = self._sampled(len(tried), draw)
            if not _is_in(values, tried):
                return values
        return untried[0] if untried else values

    def _sampled(self, number: int, draw: int) -> dict[str, Any]:
        """Values of a sampler that sees the trials in a copy of the study, so that a draw leaves no trace."""
        import numpy as np
        import optuna

        tune = self._file.tune
        seed = int(np.random.SeedSequence([tune.seed, number, draw]).generate_state(1)[0])
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        if tune.sampler != "random" and draw < DRAWS:
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=tune.parallel_trials > 1)
        copy: OptunaStudy = optuna.create_study(direction=self._study.direction, sampler=sampler)
        copy.add_trials(self._study.get_trials(deepcopy=False))
        params = copy.ask({each.key: _distribution(each) for each in self._dimensions}).params
        return {each.key: _value(params[each.key], each) for each in self._dimensions}


def _stored(trial: "FrozenTrial") -> StoredTrial:
    from optuna.trial import TrialState

    outcomes: dict[TrialState, str] = {TrialState.COMPLETE: DONE, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}
    attributes = trial.user_attrs
    outcome = RUNNING
    if trial.state.is_finished():
        outcome = attributes.get("outcome") or outcomes[trial.state]
    return StoredTrial(
        trial.number + 1,
        attributes.get("values") or trial.params,
        outcome,
        trial.value if outcome == DONE else None,
        attributes.get("pruned_at"),
        attributes.get("reason"),
        frozenset(trial.intermediate_values),
    )


def _pruner(tune_file: TuneFile, every_steps: int) -> "BasePruner | None":
    import optuna

    options = tune_file.tune.pruner
    if isinstance(options, MedianPruner):
        return optuna.pruners.MedianPruner(n_startup_trials=options.min_trials, n_warmup_steps=options.min_steps)
    if isinstance(options, SuccessiveHalving):
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=options.min_steps or every_steps, reduction_factor=options.factor
        )
    return None


def _distribution(dimension: Dimension) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choices):
        return CategoricalDistribution([_category(value, dimension) for value in dimension.values])
    high, values = dimension.high, dimension.all_values() if dimension.step else None
    if values:
        high = values[-1]  # Optuna requires a multiple of the step
    if dimension.is_integer:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(high), log=dimension.log, step=step)
    return FloatDistribution(dimension.low, high, log=dimension.log, step=dimension.step)


def _category(value: Any, dimension: Dimension) -> Any:
    """The value for Optuna, whose categories are scalars: a list or section as JSON."""
    is_scalar = not isinstance(dimension, Choices) or value is None or isinstance(value, (bool, int, float, str))
    return value if is_scalar else json.dumps(value)


def _value(param: Any, dimension: Dimension) -> Any:
    if isinstance(dimension, Choices):
        return next(value for value in dimension.values if _category(value, dimension) == param)
    return dimension.rounded(param)


def _is_in(values: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> bool:
    return any(dict(values) == dict(each) for each in tried)


def _repair(journal: Path) -> None:
    """Remove what a killed process left: a torn last line, which was not recorded, and the lock of the journal."""
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        with suppress(OSError):
            left.unlink()
    try:
        with open(journal, "r+b") as file:
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
    except FileNotFoundError:
        return
