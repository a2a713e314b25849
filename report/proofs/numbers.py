"""Proofs about numbers: losses, learning rate, what was learned."""

from tunesmith.configs.plan import Plan
from tunesmith.report.comparison import Comparison
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.record import Record
from tunesmith.report.schedule import planned_rate
from tunesmith.report.wording import change, decimal, finite, plural, significant

RATE_TOLERANCE = 1e-9
"""Relative: both sides are the same arithmetic in float64, up to the order of its operations."""


def prove_finite(record: Record) -> Proof:
    """Steps whose loss or gradient was NaN or infinite were skipped, and no validation loss was."""
    name = "Nothing that is not finite reached the weights"
    if not record.steps:
        return Proof(name, None, "no step was made yet")
    kept = [event for event in record.steps if not event.skipped]
    bad = [e.step for e in kept if finite(e.loss) is None or finite(e.grad_norm) is None]
    if bad:
        told = f"{plural(len(bad), 'step')} with a loss or gradient that is not, first step {bad[0]}"
        return Proof(name, False, told)
    if validation := [e.step for e in record.evaluations if finite(e.scores.loss) is None]:
        return Proof(name, False, f"the validation loss at step {validation[0]} is not finite")
    if not kept:
        return Proof(name, False, f"all of {plural(len(record.steps), 'step')} were skipped")
    losses = [number for e in kept if (number := finite(e.loss)) is not None]
    skipped = len(record.steps) - len(kept)
    told = (
        f"{plural(len(losses), 'training loss', 'training losses')}, {decimal(min(losses))} to {decimal(max(losses))}"
    )
    unused = f"; {plural(skipped, 'step')} skipped, nothing of them was used" if skipped else ""
    return Proof(name, True, told + unused)


def prove_rate(record: Record, plan: Plan) -> Proof:
    """The learning rate of every step is the one that the plan's schedule gives."""
    name = "The learning rate followed the schedule"
    if not record.steps:
        return Proof(name, None, "no step was made yet")
    highest = 0.0
    for event in record.steps:
        told, wanted = event.learning_rate, planned_rate(plan, event.step)
        if told is None or not abs(told - wanted) <= RATE_TOLERANCE * max(abs(wanted), 1e-300):
            return Proof(name, False, f"step {event.step}: {told} instead of {wanted:.6g}")
        highest = max(highest, told)
    kind = plan.recipe.optimization.schedule
    rates = f"{kind}, {plural(plan.batch.warmup_steps, 'warm-up step')}, highest {significant(highest)}"
    if highest == 0.0:
        return Proof(name, False, f"{rates}: at a learning rate of zero nothing is learned")
    return Proof(name, True, f"{rates}; {plural(len(record.steps), 'step')} equal within {RATE_TOLERANCE:g}")


def prove_loss(record: Record, plan: Plan, comparison: Comparison | None) -> Proof:
    """The held-out rows were scored before and after training. Whether the loss fell is told, not judged here."""
    name = "Held-out loss was measured before and after"
    if plan.data.validation is None:
        return Proof(name, None, "the recipe has no validation rows")
    before, after = record.evaluation("before"), record.evaluation("after")
    missing = [when for when, event in (("before", before), ("after", after)) if event is None]
    if missing:
        return Proof(name, False if record.is_finished else None, f"not measured yet: {' and '.join(missing)}")
    assert before is not None
    assert after is not None
    first, last = finite(before.scores.loss), finite(after.scores.loss)
    if first is None or last is None:
        return Proof(name, False, f"before {before.scores.loss}, after {after.scores.loss}: not finite")
    rows = plural(after.scores.num_examples or 0, "row")
    told = f"{decimal(first)} before, {decimal(last)} after ({change(last - first)}) on {rows}"
    if comparison is not None and comparison.loss.low is not None:
        value, low, high = comparison.loss.value, comparison.loss.low, comparison.loss.high
        told += f"; 95% confidence interval of the difference {change(low)} to {change(high)}"
        if abs(value - (last - first)) > 1e-6 * max(1.0, abs(first)):
            return Proof(name, False, f"{told}; but the rows' own losses differ by {change(value)}")
    return Proof(name, True, told)
