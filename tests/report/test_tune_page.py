"""The page of a study: order, outcomes and reasons of trials, and text that is not markup."""

from pathlib import Path

import pytest

from tunesmith.configs.tasks import TASKS, Metric
from tunesmith.report.trials import StudySummary, TrialSummary, ranked
from tunesmith.report.tune_page import render
from tunesmith.rundir.paths import RunDir

LOSS = Metric("loss (nats per token)", ("loss",), higher_is_better=False)
ACCURACY = TASKS["preference"].metrics[1]


def a_trial(number: int, outcome: str, value: float | None = None, reason: str | None = None, **values) -> TrialSummary:
    curve = [(0, 2.0), (10, value)] if value is not None else []
    run = RunDir(Path(f"runs/bot-tune/trial-{number:04d}"))
    values = values or {"optimization.learning_rate": number * 1e-4}
    return TrialSummary(number, run, values, outcome, value, reason, curve, 10, 20, 3.0)


@pytest.mark.parametrize(("metric", "order"), [(LOSS, [3, 1, 2, 4]), (ACCURACY, [1, 3, 2, 4])])
def test_finished_trials_are_ranked_before_others(metric, order):
    trials = [a_trial(1, "done", 0.9), a_trial(2, "pruned"), a_trial(3, "done", 0.5), a_trial(4, "failed")]
    assert [trial.number for trial in ranked(StudySummary("bot-tune", metric, trials, None))] == order


def test_the_page_shows_values_outcomes_and_reasons():
    trials = [a_trial(1, "done", 1.25), a_trial(2, "pruned", reason="pruned at step 4: 6.1")]
    page = render(StudySummary("bot-tune", LOSS, trials, 1))
    assert "<b>Trial 1</b>loss (nats per token) 1.2500 with optimization.learning_rate 0.0001." in page
    assert page.count("pruned at step 4: 6.1") == 1
    assert page.count("<figure") == 1  # only one trial has a curve


def test_keys_with_the_same_last_part_are_shown_in_full():
    study = StudySummary(
        "s", LOSS, [a_trial(1, "done", 1.0, **{"preference.beta": 1, "kto.beta": 2, "method.kind": "lora"})], 1
    )
    assert list(study.short_keys.values()) == ["preference.beta", "kto.beta", "kind"]


def test_reasons_and_values_are_text():
    trial = a_trial(1, "failed", reason="<script>alert(1)</script>", **{"method.target_modules": "<b>"})
    page = render(StudySummary("<i>", LOSS, [trial], None))
    assert "<script>alert" not in page
    assert "<b></td>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "No trial has finished yet" in page
