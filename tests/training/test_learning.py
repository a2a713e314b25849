"""Verdicts of runs that learn nothing, and none for the recorded runs that learn."""

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import ExitCode, RunFault
from tunesmith.training.checkpoint.state import RunState, StepSums
from tunesmith.training.learning import SOLVED_LOSS, VERDICTS, require_gradient, require_learning

GOOD = json.loads((Path(__file__).parent / "recorded" / "learning.json").read_text(encoding="utf-8"))
"""Runs of tests/integration/test_good_runs.py, which TUNESMITH_RECORD=1 records: scores before and after training, and
of each step loss, correct predictions, targets, gradient norm and learning rate."""


def run_of(
    steps: Sequence[Sequence[float]], before: dict | None = None, after: dict | None = None
) -> tuple[str, RunFault] | None:
    """Code and error of the verdict about a run with these numbers; None if it is a success."""
    state = RunState(untrained=before)
    try:
        for loss, num_correct, num_targets, grad_norm, rate in steps:
            state.step += 1
            if not math.isfinite(float(loss)) or not math.isfinite(float(grad_norm)):
                continue
            state.num_updates += 1
            sums: StepSums = (float(loss), int(num_correct), int(num_targets))
            state.note_update(sums, float(grad_norm), rate, solved=abs(float(loss)) <= SOLVED_LOSS)
            require_gradient(state)
            state = RunState.from_json(json.loads(json.dumps(state.to_json())))  # as after a checkpoint
        require_learning(state, after)
    except RunFault as error:
        return str(error.code), error
    return None


def series(losses: Sequence[float], *, correct: int = 40, grad_norm: float = 1.0, rate: float = 2e-4) -> list[tuple]:
    return [(loss, correct, 100, grad_norm, rate) for loss in losses]


def scores(loss: float, accuracy: float = 0.4) -> dict:
    return {"loss": loss, "loss_error": 0.05, "token_accuracy": accuracy, "num_tokens": 500}


@pytest.mark.parametrize("kind", GOOD)
def test_a_recorded_run_that_learns_has_no_verdict(kind):
    run = GOOD[kind]
    assert run_of(run["steps"], run["before"], run["after"]) is None


def test_there_are_recordings_of_every_kind_of_run():
    assert len(GOOD) >= 30
    assert {"full", "lora", "qlora", "dora", "dpo", "kto", "classification", "translation", "one step"} <= GOOD.keys()


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 2**32), st.floats(0.0, 0.03), st.booleans())
def test_other_runs_like_the_recorded_ones_have_no_verdict(kind, seed, noise, evaluates):
    """Other batches, noise, an earlier end, no validation rows."""
    draw, run = random.Random(seed), GOOD[kind]
    steps = run["steps"][: draw.randint(1, len(run["steps"]))]
    for start in range(0, len(steps), 5):
        part = steps[start : start + 5]
        steps[start : start + 5] = draw.sample(part, len(part))
    steps = [(float(loss) * (1 + draw.uniform(-noise, noise)), *others) for loss, *others in steps]
    before, after = (run["before"], run["after"]) if evaluates else (None, None)
    assert run_of(steps, before, after) is None


DISTRIBUTIONS: dict[str, Callable[[random.Random], float]] = {
    "normal": lambda draw: abs(draw.gauss(3.0, 0.5)),
    "lognormal": lambda draw: draw.lognormvariate(0.0, 1.0),
    "rows of two kinds": lambda draw: draw.uniform(0.01, 0.02) if draw.random() < 0.1 else draw.uniform(2.9, 3.1),
    "one token per row": lambda draw: draw.expovariate(1.0),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_batches_that_differ_are_not_taken_for_a_rising_loss(distribution):
    """The loss of a run that does not learn moves by chance, and so does the loss of its few held-out rows."""
    verdicts = []
    for seed in range(500):
        draw = random.Random(seed)
        of = DISTRIBUTIONS[distribution]
        steps = series([of(draw) for _ in range(draw.choice((3, 8, 20, 60)))])
        before = sum(of(draw) for _ in range(10)) / 10
        after = scores(before * draw.uniform(0.95, 1.09))
        for has_rows in (True, False):
            verdict = run_of(steps, scores(before) if has_rows else None, after if has_rows else None)
            verdicts += [verdict] if verdict is not None else []
    assert not verdicts


def noisy(base: float, number: int, spread: float = 0.1) -> list[float]:
    draw = random.Random(number)
    return [base + draw.uniform(-spread, spread) for _ in range(number)]


RISING = [3 + step / 20 for step in range(100)]
BAD = {
    "gradient zero from the second step on": (
        [*series([3.6]), *series([3.57] * 30, grad_norm=0.0)],
        (scores(3.6), scores(3.57)),
        "gradient_zero",
    ),
    "gradient zero in three steps in the middle": (
        [*series(noisy(3, 9)), *series(noisy(3, 3), grad_norm=0.0), *series(noisy(3, 9))],
        (None, None),
        "gradient_zero",
    ),
    "no step with a finite gradient": (series([math.nan] * 3), (None, None), "no_update"),
    "held-out loss not finite": (series(noisy(3, 9)), (scores(3.0), scores(math.nan)), "loss_not_finite"),
    "held-out loss infinite": (series(noisy(3, 9)), (scores(3.0), scores(math.inf)), "loss_not_finite"),
    "no held-out token right any more": (series(noisy(3, 9)), (scores(3.0), scores(5.0, 0.0)), "accuracy_zero"),
    "no token right any more, without validation rows": (
        [*series(noisy(3, 5)), *series(noisy(9, 15), correct=0)],
        (None, None),
        "accuracy_zero",
    ),
    "slowly rising": (series(RISING), (None, None), "loss_rose"),
    "slowly rising, with the held-out loss": (series(RISING), (scores(3.0), scores(8.0)), "loss_rose"),
    "risen at the second step": (series([3.0, *noisy(30, 40, 5.0)]), (scores(3.0), scores(29.0)), "loss_rose"),
    "risen at the second of three steps": (series([3.0, 30.0, 25.0]), (scores(3.0), scores(29.0)), "loss_rose"),
    "constant": (series([3.0] * 12), (None, None), "loss_constant"),
    "constant after the first steps": (series([6.09, 6.0, *[5.95] * 12]), (scores(6.1), scores(5.9)), "loss_constant"),
    "learning rate 0": (series(noisy(3, 20), rate=0.0), (None, None), "learning_rate_too_low"),
    "learning rate 1e-12": (series(noisy(3, 20), rate=1e-12), (scores(3.0), scores(3.0)), "learning_rate_too_low"),
    "learning rate 1e-8": (
        series(noisy(3, 20), rate=1e-8),
        (scores(3.0), scores(3.0 + 1e-6)),
        "learning_rate_too_low",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_run_that_cannot_learn_has_a_verdict(kind):
    steps, (before, after), code = BAD[kind]
    verdict = run_of(steps, before, after)
    assert verdict is not None
    assert verdict[0] == code
    assert verdict[1].exit_code == ExitCode.FAULT
    assert verdict[1].where
    assert str(verdict[1].remedy) == VERDICTS[code].remedy


@pytest.mark.parametrize(
    "losses",
    [
        [3.0, 1.0, 0.1, *[0.0] * 20],  # a satisfied hinge loss, memorized rows
        [3.0, 2.0, 1.0, *[1e-7] * 40],
        [3.0, 2.0, *[0.4] * 9, 0.41],  # converged on a single row, which is every batch
    ],
)
def test_a_solved_task_has_no_verdict(losses):
    solved = series(losses)
    zero_at_the_end = [(*step[:3], 0.0 if step[0] <= SOLVED_LOSS else 1.0, step[4]) for step in solved]
    assert run_of(solved, scores(3.0), scores(0.0, 1.0)) is None
    assert run_of(zero_at_the_end, scores(3.0), scores(0.0, 1.0)) is None


def test_two_zero_gradients_or_skipped_steps_between_them_end_nothing():
    steps = [*series([3.0, 2.9]), *series([2.8, 2.7], grad_norm=0.0), *series([2.6, 2.5])] * 3
    assert run_of(steps, scores(3.0), scores(2.5)) is None


def test_overfitting_is_no_failure():
    """The held-out loss rises far, while the training loss falls: the report warns, the run is a success."""
    assert run_of(series([3 * 0.9**step for step in range(60)]), scores(3.0), scores(9.0)) is None


def test_a_state_of_an_earlier_version_is_read_and_judged_by_what_it_has():
    raw = {"step": 30, "num_updates": 30, "first_loss": 3.0, "lowest_loss": 2.0, "highest_loss": 3.0}
    state = RunState.from_json(raw)
    assert state.learning_rates is None
    for loss in (9.0, 9.1, 9.2, 9.3):
        state.num_updates += 1
        state.note_update((loss, 0, 100), 1.0, 0.0, solved=False)
    assert state.first_steps == []
    require_learning(state, None)


def test_every_verdict_is_in_the_documentation_with_its_limit():
    page = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text(encoding="utf-8")
    for verdict in VERDICTS.values():
        assert f"| `{verdict.code}` | {verdict.when} | {verdict.rule} |" in page
