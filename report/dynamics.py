"""Training curves: loss, accuracy, learning rate, gradient norm, throughput and memory by step."""

from collections.abc import Callable, Iterable

from tunesmith.report.curves import Chart, Line, Point, figure, smoothed
from tunesmith.report.markup import Html, section, tag
from tunesmith.report.measures import DEFINITIONS
from tunesmith.report.record import Record
from tunesmith.report.schedule import planned_rate
from tunesmith.report.wording import decimal, plural, significant, size

CHART_DEFINITIONS = {
    "Loss": "Mean training loss of the step's batch, and the validation loss at each evaluation. Lower is better.",
    "Token accuracy": DEFINITIONS["token accuracy"],
    "Learning rate": "Learning rate of each optimizer step: planned by the schedule, and as used.",
    "Gradient norm": "L2 norm of the gradient of all trained parameters, before clipping to max_grad_norm.",
    "Router loss": "Load-balancing loss of the experts before its coefficient; it is not part of the loss above.",
    "Expert load": "Tokens of an expert divided by the mean of its layer: the most loaded expert. 1 is balanced.",
    "Router entropy": "Mean entropy of the probabilities by which a token is routed. 0: always the same expert.",
    "Throughput": "Tokens of the step's batch, including unsupervised ones, divided by the duration of the step.",
    "Peak memory": "Highest memory use of rank 0 so far, compared with the plan's estimate.",
}
"""Tooltips of the charts, by title."""


def curves(record: Record) -> Html:
    if not record.steps:
        return section("training", "Training curves", tag("p", "No training steps yet.", class_="none"))
    charts = [_loss(record), _accuracy(record), _rate(record), _norm(record), *_experts(record)]
    charts += [_speed(record), _memory(record)]
    figures = [drawn for chart in charts if chart is not None and (drawn := figure(chart)) is not None]
    lead = "One point per optimizer step. Hover over a chart to read its values."
    if restarts := [attempt for attempt in record.attempts[1:] if attempt.start]:
        lead += f" Dotted vertical lines: {plural(len(restarts), 'restart')} from a checkpoint."
    return section("training", "Training curves", tag("div", figures, class_="charts"), lead=lead)


def _loss(record: Record) -> Chart:
    lines = [*_with_average("train", _points(record, "loss"), "smooth"), *_held_out(record, "loss", 1)]
    return _chart(record, "Loss", "nats per token", lines, decimal, wide=True)


def _rate(record: Record) -> Chart:
    lines = []
    if record.plan is not None:
        total = record.plan.batch.total_steps
        every = max(1, total // 400)
        steps = sorted({*range(1, total + 1, every), record.plan.batch.warmup_steps or 1, total})
        lines.append(Line("planned", [(step, planned_rate(record.plan, step)) for step in steps], "band"))
    lines.append(Line("actual", _points(record, "learning_rate"), "rate"))
    return _chart(record, "Learning rate", "", lines, lambda value: significant(value, 4), from_zero=True)


def _norm(record: Record) -> Chart:
    points = _points(record, "grad_norm")
    lines = [Line("norm", points, "norm")]
    limit = record.plan.recipe.optimization.max_grad_norm if record.plan else None
    # A clipping threshold far above the curve would only flatten the curve.
    if limit is not None and points and max(value for _, value in points) > 0.4 * limit:
        lines.append(Line("clipping threshold", [(1, limit), (_num_steps(record), limit)], "plan"))
    return _chart(
        record, "Gradient norm", "before clipping", lines, lambda value: significant(value, 3), from_zero=True
    )


def _experts(record: Record) -> list[Chart]:
    """Charts of a mixture of experts; empty for other models."""
    shown = (
        ("Router loss", "router_loss", "before its coefficient"),
        ("Expert load", "expert_load", "largest / mean"),
        ("Router entropy", "router_entropy", "nats per token"),
    )
    return [
        _chart(record, title, unit, [Line(title.lower(), points, "norm")], decimal, from_zero=True)
        for title, key, unit in shown
        if (points := _points(record, key))
    ]


def _speed(record: Record) -> Chart:
    lines = _with_average("tokens/s", _points(record, "tokens_per_s"), "speed")
    return _chart(record, "Throughput", "tokens/s", lines, lambda value: significant(value, 3), from_zero=True)


def _memory(record: Record) -> Chart:
    raw = _points(record, "peak_memory_bytes")
    expected = record.plan.compute.estimated_peak_bytes if record.plan else 0
    highest = max((value for _, value in raw), default=0.0)
    power, unit = (30, "GiB") if max(highest, expected) >= 1 << 30 else (20, "MiB")
    lines = [Line("peak", [(step, value / 2.0**power) for step, value in raw], "memory")]
    if raw and expected:
        level = expected / 2.0**power
        lines.append(Line("estimated", [(1, level), (_num_steps(record), level)], "plan"))
    return _chart(
        record, "Peak memory", f"rank 0, {unit}", lines, lambda value: size(value * 2.0**power), from_zero=True
    )


def _accuracy(record: Record) -> Chart:
    raw = [(step, 100 * value) for step, value in _points(record, "token_accuracy")]
    lines = [*_with_average("train", raw, "smooth"), *_held_out(record, "token_accuracy", 100)]
    unit = "%"
    return _chart(record, "Token accuracy", unit, lines, lambda value: f"{value:.1f}%")


def _with_average(name: str, raw: list[Point], look: str) -> list[Line]:
    """The values and, if there are at least 12, their moving average."""
    if len(raw) < 12:
        return [Line(name, raw, look, dots=True)]
    span = max(2, min(25, len(raw) // 20)) * 2 + 1
    return [Line(name, raw, "raw"), Line(f"mean over {span} steps", smoothed(raw, span), look)]


def _held_out(record: Record, key: str, scale: float) -> list[Line]:
    """Validation scores, one per step; the last one if a step was evaluated twice."""
    points = dict(_numbers((event.step, getattr(event.scores, key)) for event in record.evaluations))
    return [Line("validation", [(step, scale * value) for step, value in points.items()], "validation", dots=True)]


def _chart(
    record: Record,
    title: str,
    unit: str,
    lines: list[Line],
    form: Callable[[float], str],
    from_zero: bool = False,
    wide: bool = False,
) -> Chart:
    marks = [
        (attempt.start.step, f"attempt {attempt.number} resumed from step {attempt.start.step}")
        for attempt in record.attempts[1:]
        if attempt.start and attempt.start.step is not None
    ]
    return Chart(title, unit, lines, form, _num_steps(record), from_zero, wide, marks, CHART_DEFINITIONS[title])


def _num_steps(record: Record) -> int:
    done = record.steps[-1].step if record.steps else 1
    if record.plan is None or record.is_finished:
        return done
    return max(done, record.plan.batch.total_steps)


def _points(record: Record, key: str) -> list[Point]:
    """Points of one field of the step events."""
    return _numbers((event.step, getattr(event, key)) for event in record.steps)


def _numbers(values: Iterable[tuple[int, float | None]]) -> list[Point]:
    """Points without the steps that have no value; non-finite values are kept."""
    return [(step, float(value)) for step, value in values if value is not None]
