"""Proofs about numbers: finite losses, the learning rate, the validation loss."""

from tunesmith.configs.plan import Plan
from tunesmith.report.comparison import Comparison
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.record import Record
from tunesmith.report.schedule import planned_rate
from tunesmith.report.wording import change, decimal, finite, plural, significant

RATE_TOLERANCE = 1e-9
"""Relative: both values come from the same float64 arithmetic, up to the order of operations."""


def prove_finite(record: Record) -> Proof:
    """Steps with a NaN or infinite loss or gradient were skipped, and every validation loss is finite."""
    name = "No non-finite value reached the weights"
    if not record.steps:
        return Proof(name, None, "no training steps yet")
    kept = [event for event in record.steps if not event.skipped]
    bad = [e.step for e in kept if finite(e.loss) is None or finite(e.grad_norm) is None]
    if bad:
        return Proof(
            name, False, f"{plural(len(bad), 'step')} with a non-finite loss or gradient, first: step {bad[0]}"
        )
    if validation := [e.step for e in record.evaluations if finite(e.scores.loss) is None]:
        return Proof(name, False, f"the validation loss at step {validation[0]} is not finite")
    if not kept:
        return Proof(name, False, f"all of {plural(len(record.steps), 'step')} were skipped")
    losses = [number for e in kept if (number := finite(e.loss)) is not None]
    skipped = len(record.steps) - len(kept)
    evidence = (
        f"{plural(len(losses), 'training loss', 'training losses')}, {decimal(min(losses))} to {decimal(max(losses))}"
    )
    unused = f"; {plural(skipped, 'step')} skipped without an update" if skipped else ""
    return Proof(name, True, evidence + unused)


def prove_rate(record: Record, plan: Plan) -> Proof:
    """The learning rate of every step equals the planned schedule."""
    name = "The learning rate followed the schedule"
    if not record.steps:
        return Proof(name, None, "no training steps yet")
    highest = 0.0
    for event in record.steps:
        rate, planned = event.learning_rate, planned_rate(plan, event.step)
        if rate is None or not abs(rate - planned) <= RATE_TOLERANCE * max(abs(planned), 1e-300):
            return Proof(name, False, f"step {event.step}: {rate} instead of {planned:.6g}")
        highest = max(highest, rate)
    kind = plan.recipe.optimization.schedule
    rates = f"{kind}, {plural(plan.batch.warmup_steps, 'warmup step')}, peak {significant(highest)}"
    if highest == 0.0:
        return Proof(name, False, f"{rates}: a learning rate of zero does not change the weights")
    return Proof(
        name,
        True,
        f"{rates}; {plural(len(record.steps), 'step')} equal within a relative tolerance of {RATE_TOLERANCE:g}",
    )


def prove_loss(record: Record, plan: Plan, comparison: Comparison | None) -> Proof:
    """The validation rows were evaluated before and after training. A loss that rose does not fail the proof."""
    name = "Validation loss was measured before and after training"
    if plan.data.validation is None:
        return Proof(name, None, "the recipe has no validation rows")
    before, after = record.evaluation("before"), record.evaluation("after")
    missing = [when for when, event in (("before", before), ("after", after)) if event is None]
    if missing:
        return Proof(
            name, False if record.is_finished else None, f"not evaluated yet: {' and '.join(missing)} training"
        )
    assert before is not None
    assert after is not None
    first, last = finite(before.scores.loss), finite(after.scores.loss)
    if first is None or last is None:
        return Proof(name, False, f"before {before.scores.loss}, after {after.scores.loss}: not finite")
    rows = plural(after.scores.num_examples or 0, "row")
    evidence = f"{decimal(first)} before, {decimal(last)} after ({change(last - first)}) on {rows}"
    if comparison is not None and comparison.loss.low is not None:
        value, low, high = comparison.loss.value, comparison.loss.low, comparison.loss.high
        evidence += f"; 95% CI of the difference {change(low)} to {change(high)}"
        if abs(value - (last - first)) > 1e-6 * max(1.0, abs(first)):
            return Proof(name, False, f"{evidence}; but the per-row losses differ by {change(value)}")
    return Proof(name, True, evidence)
