"""A study in Optuna's journal: which values are proposed, what survives a killed process, when a trial is pruned."""

import json
import math
import sys
from collections.abc import Callable

import pytest

pytest.importorskip("optuna", reason="the tune extra is not installed")

from tunesmith.configs.tune import TuneFile, load_tune
from tunesmith.errors import InputError
from tunesmith.launcher.tune.study import DONE, FAILED, PRUNED, RUNNING, Study, require_optuna

RECIPE = """\
name: bot
model: {base: models/some}
method: {kind: lora}
data: {train: [rows.jsonl], validation: 0.1}
evaluation: {every_steps: 5}
"""
RATES = "search:\n  optimization.learning_rate: {low: 1e-5, high: 1e-1, log: true}\n"

Open = Callable[..., Study]


@pytest.fixture
def open_study(tmp_path) -> Open:
    """open_study(tune file) -> Study; again for the same journal, as another process would."""

    def load(text: str) -> TuneFile:
        path = tmp_path / "tune.yaml"
        path.write_text(text)
        return load_tune(path, RECIPE, "recipe.yaml")

    return lambda text: Study(tmp_path / "study.journal", load(text), 5)


def rates(study: Study) -> list[float]:
    return [trial.values["optimization.learning_rate"] for trial in study.trials()]


def propose(study: Study) -> int:
    trial = study.propose()
    assert trial is not None
    return trial.number


def test_the_sampler_approaches_the_best_value(open_study):
    """The loss is lowest at 1e-3."""
    study = open_study(RATES + "max_trials: 40\n")
    for _ in range(40):
        trial = study.propose()
        study.finish(trial.number, DONE, value=abs(math.log10(trial.values["optimization.learning_rate"]) + 3))
    distances = [abs(math.log10(rate) + 3) for rate in rates(study)]
    # The first ten values are random. 30 uniform ones would be 1.0 +- 0.1 away on average.
    assert sum(distances[10:]) / 30 < 0.75
    assert all(rate == float(f"{rate:.4g}") and 1e-5 <= rate <= 1e-1 for rate in rates(study))


def test_a_continued_study_proposes_what_an_uninterrupted_one_does(open_study, tmp_path):
    values = []
    for restarts in (False, True):
        study = open_study(RATES)
        for _ in range(14):  # beyond the random trials of the sampler
            study = open_study(RATES) if restarts else study
            study.finish(propose(study), DONE, value=rates(study)[-1])
        values.append(rates(study))
        (tmp_path / "study.journal").unlink()
    assert values[0] == values[1]
    assert len(set(values[0])) == 14


def test_another_seed_proposes_other_values(open_study, tmp_path):
    propose(first := open_study(RATES))
    (tmp_path / "study.journal").unlink()
    propose(other := open_study(RATES + "seed: 1\n"))
    assert rates(other) != rates(first)


def test_a_small_space_is_searched_completely_and_in_order(open_study):
    study = open_study(
        "search:\n  optimization.schedule: [linear, constant]\n  method.target_modules: [[q_proj], all-linear]\n"
    )
    proposed = []
    while (trial := study.propose()) is not None:
        proposed.append(tuple(trial.values.values()))
    assert proposed == [
        *(("linear", ["q_proj"]), ("linear", "all-linear")),
        *(("constant", ["q_proj"]), ("constant", "all-linear")),
    ]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_values_are_tried_twice(open_study, sampler):
    study = open_study(f"search:\n  method.lora_rank: {{low: 1, high: 12}}\nsampler: {sampler}\nmax_trials: 30\n")
    while (trial := study.propose()) is not None:
        study.finish(trial.number, DONE, value=float(trial.values["method.lora_rank"]))
    assert sorted(trial.values["method.lora_rank"] for trial in study.trials()) == list(range(1, 13))


def test_a_trial_is_recorded_in_one_write(open_study, tmp_path):
    """So that a killed process leaves no trial without values."""
    study = open_study(RATES)
    before = len((tmp_path / "study.journal").read_text().splitlines())
    propose(study)
    (line,) = (tmp_path / "study.journal").read_text().splitlines()[before:]
    assert json.loads(line)["user_attrs"]["values"] == study.trials()[0].values


def test_what_a_killed_process_leaves_is_repaired(open_study, tmp_path):
    """Half a line, and the lock of the journal, for which Optuna would wait 30 s."""
    journal = tmp_path / "study.journal"
    study = open_study(RATES)
    study.report(propose(study), 5, 2.5)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":6,"worker')
    (tmp_path / "study.journal.lock").symlink_to(journal)
    study = open_study(RATES)
    assert [(trial.outcome, trial.reported) for trial in study.trials()] == [(RUNNING, {5})]
    study.finish(1, DONE, value=1.5)
    assert [(trial.outcome, trial.value) for trial in open_study(RATES).trials()] == [(DONE, 1.5)]


def test_a_damaged_journal_is_named(open_study, tmp_path):
    propose(open_study(RATES))
    journal = tmp_path / "study.journal"
    journal.write_bytes(b"{damaged\n" + journal.read_bytes())
    with pytest.raises(InputError, match="the journal of the study is damaged"):
        open_study(RATES)


def test_pruning_below_the_median(open_study):
    study = open_study(RATES + "pruner: {kind: median, min_trials: 2, min_steps: 10}\n")
    for loss in (1.0, 3.0):
        number = propose(study)
        for step in (5, 10):
            study.report(number, step, loss)
            assert not study.should_prune(number)
        study.finish(number, DONE, value=loss)
    better, worse = propose(study), propose(study)
    for number, loss in ((better, 1.9), (worse, 2.1)):
        study.report(number, 5, loss)
        assert not study.should_prune(number)  # before min_steps
        study.report(number, 10, loss)
    assert not study.should_prune(better)
    assert study.should_prune(worse)


def test_a_loss_that_is_not_finite_is_pruned(open_study):
    """Also of the first trial; not if nothing is pruned."""
    for pruner, is_pruned in (("median", True), ("none", False)):
        study = open_study(RATES + f"pruner: {pruner}\n")
        study.report(number := propose(study), 5, math.nan)
        assert study.should_prune(number) is is_pruned
        study.finish(number, PRUNED, reason="not finite")
    assert [trial.outcome for trial in study.trials()] == [PRUNED, PRUNED]
    assert study.propose() is not None  # the sampler accepts such trials


def test_a_higher_metric_may_be_better(open_study):
    study = open_study(RATES + "objective: token_accuracy\npruner: {kind: median, min_trials: 1}\n")
    study.report(propose(study), 5, 0.5)
    study.finish(1, DONE, value=0.5)
    for accuracy, is_pruned in ((0.6, False), (0.4, True)):
        study.report(number := propose(study), 5, accuracy)
        assert study.should_prune(number) is is_pruned


def test_a_study_without_trials_takes_another_objective(open_study):
    open_study(RATES)
    study = open_study(RATES + "objective: token_accuracy\npruner: {kind: median, min_trials: 1}\n")
    study.report(propose(study), 5, 0.5)
    study.finish(1, DONE, value=0.5)
    study.report(propose(study), 5, 0.4)
    assert study.should_prune(2)


def test_successive_halving_keeps_the_best(open_study):
    """At the first evaluation, with a factor of 2: of four trials, each must be in the better half so far."""
    study = open_study(RATES + "pruner: {kind: successive_halving, factor: 2}\n")
    pruned = []
    for loss in (2.0, 3.0, 1.0, 1.5):
        study.report(number := propose(study), 5, loss)
        pruned.append(study.should_prune(number))
    assert pruned == [False, True, False, False]


def test_outcomes_are_stored(open_study):
    study = open_study(RATES)
    for _ in range(3):
        propose(study)
    study.report(1, 5, 2.0)
    study.mark_pruned(1, 5, "worse")
    assert open_study(RATES).trials()[0].pruned_at == 5
    study.finish(1, PRUNED, reason="worse")
    study.finish(2, FAILED, reason="diverged", is_verdict=True)
    study.finish(3, FAILED, reason="disk full")
    stored = open_study(RATES).trials()
    assert [(trial.outcome, trial.reason) for trial in stored] == [
        *((PRUNED, "worse"), (FAILED, "diverged"), (FAILED, "disk full")),
    ]
    states = [trial.state.name for trial in study._study.get_trials()]
    assert states == ["PRUNED", "PRUNED", "FAIL"]  # the sampler learns from the first two


def test_a_missing_package_is_named(monkeypatch):
    require_optuna()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="optuna") as caught:
        require_optuna()
    assert caught.value.remedy == "pip install 'tunesmith[tune]'"
