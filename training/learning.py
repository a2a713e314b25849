"""Whether a run has learned anything: the verdicts, their limits, and the decision from losses and scores.

Pure functions of values that are equal on all ranks. A verdict "step" ends the run at once; "end" is given after the
last step and the last evaluation, "export" right before the export. Each ends the run with exit code 1 and without an
export; the checkpoints remain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from tunesmith.errors import RunFault
from tunesmith.training.checkpoint.state import RunState, StepSums

SOLVED_LOSS = 1e-6
"""A loss up to this is a solved task (a satisfied hinge loss, memorized rows): its gradient may be zero."""
LEAST_STEPS = 3
"""Runs with fewer updates are judged by gradients, scores and the adapter only."""
LEAST_RISE = 0.1
"""A loss that rises by a smaller fraction has not risen."""


@dataclass(frozen=True)
class Verdict:
    """code: in the `error` event. limit: its threshold. rule: when it applies, with the limit filled in."""

    code: str
    when: Literal["start", "step", "end", "export"]
    limit: float
    text: str
    remedy: str

    @property
    def rule(self) -> str:
        return self.text.format(limit=f"{self.limit:g}")

    def fault(self, what: str, where: str) -> RunFault:
        """The error that ends the run."""
        return RunFault(what, where=where, remedy=self.remedy, code=self.code)


_LOWER = "lower optimization.learning_rate and start a new run with another --run-dir"
_HIGHER = "raise optimization.learning_rate and start a new run with another --run-dir"

VERDICTS = {
    verdict.code: verdict
    for verdict in (
        Verdict(
            "gradient_zero",
            "step",
            3,
            "gradient norm exactly 0 in {limit} steps in a row, while the loss is above 1e-6",
            f"the weights are probably saturated: {_LOWER}",
        ),
        Verdict(
            "loss_not_finite",
            "step",
            3,
            "loss or gradient not finite in more than optimization.max_skipped_steps ({limit}) steps in a row, or the "
            "held-out loss not finite after the last step",
            "lower optimization.learning_rate, set max_grad_norm, or inspect the rows named in the warnings",
        ),
        Verdict(
            "no_update",
            "end",
            1,
            "fewer than {limit} steps changed the weights",
            "inspect the warnings in events.jsonl; check that the data set is not empty and the loss is finite",
        ),
        Verdict(
            "accuracy_zero",
            "end",
            10,
            "no prediction is correct after training where at least {limit} were before, and the loss has not fallen",
            _LOWER,
        ),
        Verdict(
            "loss_rose",
            "end",
            10,
            "the median loss of the last {limit} steps is above that of the first {limit} by more than the range of "
            "either, or every one of the last steps is above the first step by more than their range; at least 10%, "
            "and the held-out loss has not fallen",
            _LOWER,
        ),
        Verdict(
            "loss_constant",
            "end",
            5,
            "exactly the same loss in at least {limit} steps in a row and in half of all steps, above half of the "
            "first loss",
            "the weights no longer influence the loss: check optimization.learning_rate, and that the rows differ",
        ),
        Verdict(
            "learning_rate_too_low",
            "end",
            1e-6,
            "no held-out score changed by more than a fraction of {limit}, or the learning rates of all steps add up "
            "to at most 1e-7",
            f"check that optimization.learning_rate is above zero; {_HIGHER}",
        ),
        Verdict(
            "adapter_saturated",
            "export",
            1000,
            "the median layer's adapter output on real rows is above {limit} times the output of the layer itself, or "
            "not finite",
            _LOWER,
        ),
        Verdict(
            "adapter_zero",
            "export",
            0,
            "every adapter is zero",
            "check that optimization.learning_rate is above zero and that no steps were skipped (events.jsonl)",
        ),
        Verdict(
            "weights_not_finite",
            "export",
            0,
            "a trained weight is NaN or infinite",
            "lower optimization.learning_rate and train again, or export an earlier checkpoint with --step",
        ),
        Verdict(
            "nothing_trainable",
            "start",
            0,
            "the method leaves no weight to train",
            "choose other target_modules, more layers, or method full",
        ),
    )
}
"""By code. Readers accept codes that are not here: earlier and later versions may write others."""

_LEAST_LEARNING_RATES = 1e-7
"""AdamW moves a weight by about the learning rate per step: relative to weights of 0.01 to 1 this sum is rounding."""
_MOVED = 1e-3
"""With larger sums of learning rates, equal scores are a coincidence."""


def require_gradient(state: RunState) -> None:
    """After a step: raise RunFault if the gradient has been exactly zero for too long. The same result on all ranks."""
    verdict = VERDICTS["gradient_zero"]
    if state.zero_gradients_in_row >= verdict.limit:
        first = state.step - state.zero_gradients_in_row + 1
        raise verdict.fault(
            f"the gradient was exactly zero in {state.zero_gradients_in_row} steps in a row while the loss was "
            f"{_last_loss(state)}: nothing more can be learned",
            f"steps {first} to {state.step}",
        )


def require_learning(state: RunState, after: dict[str, Any] | None) -> None:
    """After the last evaluation: raise RunFault if the run has learned nothing, or made the model useless.

    after: fields of the `evaluation` event of the trained model; None without validation rows.
    """
    for judge in (_updates, _finite, _accuracy, _rise, _constant, _movement):
        reason = judge(state, after)
        if reason is not None:
            code, what = reason
            raise VERDICTS[code].fault(what, f"{state.step} steps")


Reason = tuple[str, str] | None
"""Code and sentence of a verdict."""


def _updates(state: RunState, after: dict[str, Any] | None) -> Reason:
    if state.num_updates >= VERDICTS["no_update"].limit:
        return None
    return "no_update", "no step changed the weights: nothing was trained"


def _finite(state: RunState, after: dict[str, Any] | None) -> Reason:
    if after is None or math.isfinite(after["loss"]):
        return None
    return "loss_not_finite", f"the held-out loss after training is {after['loss']}"


def _accuracy(state: RunState, after: dict[str, Any] | None) -> Reason:
    least, before = VERDICTS["accuracy_zero"].limit, state.untrained
    if before is not None and after is not None:
        correct = before["token_accuracy"] * before["num_tokens"]
        if after["token_accuracy"] == 0 and correct >= least and after["loss"] >= before["loss"]:
            return "accuracy_zero", f"the accuracy on the held-out rows fell from {before['token_accuracy']:.1%} to 0"
        return None
    first, last = state.first_steps, state.last_steps
    expected = sum(s[1] for s in first) / max(1, sum(s[2] for s in first)) * sum(s[2] for s in last)
    if last and expected >= least and not any(s[1] for s in last) and _losses(last)[-1] >= first[0][0]:
        return "accuracy_zero", f"none of the predictions in the last {len(last)} steps was correct"
    return None


def _rise(state: RunState, after: dict[str, Any] | None) -> Reason:
    """The training loss rose, and held-out rows, if any, do not say otherwise.

    A loss that jumps at the second step and stays there is compared with the first step, the only one of the
    untrained model; one step is little evidence, so this needs held-out rows.
    """
    first, last = _losses(state.first_steps), _losses(state.last_steps)
    before = state.untrained
    if before is not None and after is not None:
        error = before.get("loss_error") or 0.0
        if after["loss"] <= before["loss"] + max(error, LEAST_RISE * abs(before["loss"])):
            return None
        jumped = last[-(state.num_updates - 1) :] if state.num_updates >= LEAST_STEPS else []
        if jumped and min(jumped) > first[0] + _spread(jumped, first[0]):
            what = f"the held-out loss rose from {before['loss']:.4g} to {after['loss']:.4g}, and the training loss too"
            return "loss_rose", what
    size = VERDICTS["loss_rose"].limit
    if state.num_updates < 2 * size or len(first) < size or len(last) < size:
        return None
    start, end = median(first), median(last)
    if end > start + max(_spread(first, start), _spread(last, start)):
        return "loss_rose", f"the training loss rose from {start:.4g} to {end:.4g} (medians of {size:g} steps)"
    return None


def _constant(state: RunState, after: dict[str, Any] | None) -> Reason:
    same, first = state.equal_losses_in_row, state.first_loss
    if first is None or same < max(VERDICTS["loss_constant"].limit, state.num_updates / 2):
        return None
    loss = state.last_steps[-1][0]
    if loss <= SOLVED_LOSS or loss < first / 2:
        return None
    return "loss_constant", f"the training loss was exactly {loss:.6g} in the last {same} steps: nothing was learned"


def _movement(state: RunState, after: dict[str, Any] | None) -> Reason:
    rates, before = state.learning_rates, state.untrained
    if rates is None:
        return None
    code = "learning_rate_too_low"
    if rates <= _LEAST_LEARNING_RATES:
        what = f"the learning rates of all steps add up to {rates:.3g}, too little to change a weight"
        return code, f"{what}: nothing was learned"
    if before is None or after is None or rates > _MOVED or abs(before["loss"]) <= SOLVED_LOSS:
        return None
    change = abs(after["loss"] - before["loss"]) / abs(before["loss"])
    if change > VERDICTS[code].limit or before["token_accuracy"] != after["token_accuracy"]:
        return None
    return code, f"training did not change the held-out loss of {before['loss']:.6g}: nothing was learned"


def _spread(losses: Sequence[float], base: float) -> float:
    return max(max(losses) - min(losses), LEAST_RISE * abs(base))


def _losses(steps: Sequence[StepSums]) -> list[float]:
    return [step[0] for step in steps]


def _last_loss(state: RunState) -> str:
    return f"{state.last_steps[-1][0]:.4g}" if state.last_steps else "unknown"
