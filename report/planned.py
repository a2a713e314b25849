"""Planned and measured values, and every decision of the plan with its reason."""

from tunesmith.configs.plan import Plan
from tunesmith.report.markup import Content, Html, section, table, tag
from tunesmith.report.model_proof import model_proof
from tunesmith.report.record import Record
from tunesmith.report.wording import NONE, change, count, duration, finite, percent, plural, significant, size


def plan_against_measured(record: Record) -> Html:
    title = "Planned and measured"
    plan = record.plan
    if plan is None:
        return section("plan", title, tag("p", f"Not available: {record.plan_fault}.", class_="none"))
    body = [*_amounts(record, plan), *_memory(record, plan), *_speed(record)]
    compared = table(title, ["Quantity", "Planned", "Measured", "Difference", "Note"], body, numeric=(1, 2, 3))
    return section("plan", title, compared, _time(record))


def choices(record: Record) -> Html | None:
    plan = record.plan
    if plan is None or not plan.choices:
        return None
    body = [
        [
            tag("code", choice.key),
            tag("span", choice.value if choice.value != "" else NONE, class_="wrap"),
            size(choice.num_bytes) if choice.num_bytes is not None else "",
            tag("span", choice.reason, class_="wrap"),
        ]
        for choice in plan.choices
    ]
    shown = table("Plan decisions", ["Setting", "Value", "Memory or disk", "Reason"], body, numeric=(2,))
    return section("choices", "Plan decisions", shown, model_proof(record), _kernels(record))


def _kernels(record: Record) -> Html | None:
    """Kernels of the last attempt, each with its difference from the torch reference before the first step."""
    body: list[list[Content]] = []
    for item in (record.kernels and record.kernels.items) or []:
        difference, tolerance = finite(item.get("difference")), finite(item.get("tolerance"))
        body.append(
            [
                tag("code", str(item.get("operation"))),
                str(item.get("implementation")),
                NONE if difference is None else f"{difference:.1e}",
                NONE if tolerance is None else f"{tolerance:.0e}",
                "passed" if item.get("holds") is True else tag("b", "disabled", class_="warn-text"),
            ]
        )
    if not body:
        return None
    head = ["Operation", "Implementation", "Difference from torch", "Tolerance", "Check"]
    return tag("div", tag("h3", "Kernels"), table("Kernels", head, body, numeric=(2, 3)))


def _amounts(record: Record, plan: Plan) -> list[list[Content]]:
    steps, total = len(record.steps), plan.batch.total_steps
    remark = "early stopping: the validation loss stopped improving" if record.outcome == "early_stopped" else ""
    rows: list[list[Content]] = [["Optimizer steps", count(total), count(steps), _gap(steps, total), remark]]
    optimization = plan.recipe.optimization
    planned_steps = plan.batch.steps_per_epoch * optimization.epochs
    is_whole = optimization.max_steps is None or total >= planned_steps
    tokens, supervised = _epoch_tokens(plan)
    for name, fed, an_epoch in (
        ("Tokens", sum(event.num_tokens or 0 for event in record.steps), tokens),
        ("Supervised tokens", sum(event.supervised_tokens or 0 for event in record.steps), supervised),
    ):
        planned = an_epoch * optimization.epochs if is_whole else None
        remark = f"{plural(optimization.epochs, 'epoch')}" if is_whole else "max_steps ends the run within an epoch"
        if is_whole and plan.data.epoch_samples is not None:
            remark += "; planned: mean of each data set's samples, times their number"
        rows.append([name, count(planned), count(fed), _gap(fed, planned), remark])
    return rows


def _epoch_tokens(plan: Plan) -> tuple[int, int]:
    """Tokens and supervised tokens of an epoch. Of a mixture they are expected values: which samples of a data set are
    in an epoch differs."""
    data = plan.data
    if data.epoch_samples is None:
        return data.train.num_tokens, data.train.supervised_tokens
    uses = [(each, each.samples_per_epoch / each.num_samples) for each in data.mixed]
    tokens, supervised = (sum(getattr(d, key) * n for d, n in uses) for key in ("num_tokens", "supervised_tokens"))
    return round(tokens), round(supervised)


def _memory(record: Record, plan: Plan) -> list[list[Content]]:
    peak = max((value for event in record.steps if (value := event.peak_memory_bytes)), default=None)
    expected, allowed = plan.compute.estimated_peak_bytes, plan.compute.memory_bytes
    share = f"{percent(peak / allowed)} of the " if peak and allowed else ""
    remark = f"{share}{size(allowed)} available"
    rows: list[list[Content]] = [["Peak memory per rank", size(expected), size(peak), _gap(peak, expected), remark]]
    written = [value for event in record.checkpoints if (value := event.num_bytes)]
    largest = max(written, default=None)
    remark = plural(len(written), "checkpoint") + " written"
    expected = plan.compute.checkpoint_bytes
    rows.append(["Checkpoint size", size(expected), size(largest), _gap(largest, expected), remark])
    return rows


def _speed(record: Record) -> list[list[Content]]:
    seconds = sum(finite(event.step_s) or 0.0 for event in record.steps)
    if not seconds:
        return []
    tokens = sum(event.num_tokens or 0 for event in record.steps)
    supervised = sum(event.supervised_tokens or 0 for event in record.steps)
    remark = f"{significant(supervised / seconds)} supervised tokens/s"
    mean = seconds / len(record.steps)
    planned = record.plan.compute.estimated_step_s if record.plan else None
    step = [duration(planned) if planned else NONE, duration(mean), _gap(mean, planned)]
    return [
        ["Tokens/s (training steps)", NONE, significant(tokens / seconds), NONE, remark],
        ["Duration of a step", *step, f"mean over {plural(len(record.steps), 'step')}"],
    ]


def _time(record: Record) -> list[Html]:
    """Time by activity, as a bar with a legend."""
    total = sum(attempt.last_time - attempt.first_time for attempt in record.attempts)
    if total <= 0:
        return []
    # The evaluation of the last step is recorded twice but ran once.
    evaluations = {event.step: finite(event.seconds) or 0.0 for event in record.evaluations}
    parts = {
        "training steps": sum(finite(event.step_s) or 0.0 for event in record.steps),
        "evaluation": sum(evaluations.values()),
        "checkpoints": sum(finite(event.seconds) or 0.0 for event in record.checkpoints),
    }
    if repeated := sum(attempt.seconds_lost for attempt in record.attempts):
        parts["repeated steps"] = repeated
    parts["loading, sample outputs, export"] = max(0.0, total - sum(parts.values()))
    parts_total = sum(parts.values())
    bar, keys = [], []
    for (name, value), look in zip(parts.items(), "abced" if repeated else "abcd", strict=True):
        bar.append(tag("i", class_=look, style=f"width:{100 * value / parts_total:.3f}%"))
        label = f"{name} {duration(value)} ({percent(value / parts_total, 0)})"
        keys.append(tag("span", tag("i", class_=f"block {look}"), label, class_="key"))
    title = tag("h3", f"Time by activity (total {duration(total)})")
    return [title, tag("div", bar, class_="bar", aria_hidden="true"), tag("div", keys, class_="legend under")]


def _gap(measured: float | None, planned: float | None) -> str:
    if measured is None or not planned:
        return NONE
    return "none" if measured == planned else f"{change(100 * (measured - planned) / planned, 1)}%"
