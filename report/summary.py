"""The top of the page: what the run is, how it ended, what it brought; and answers before and after, side by side."""

import math
from collections.abc import Callable
from typing import Any

from tunesmith.configs.plan import Plan
from tunesmith.configs.recipe import LastLayers, Lora
from tunesmith.report.comparison import Comparison, Example
from tunesmith.report.markup import Content, Html, details, prose, section, table, tag
from tunesmith.report.measures import Measure, measures_of, own_measures
from tunesmith.report.outcome import Verdict
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.receipts import Receipts
from tunesmith.report.record import Record
from tunesmith.report.wording import NONE, change, count, decimal, duration, finite, percent, plural, significant
from tunesmith.rundir.events import AnswersEvent, EvaluationEvent, Scores

NUM_EXTREMES = 5


def header(record: Record, verdict: Verdict, proofs: list[Proof], comparison: Comparison | None) -> Html:
    facts = [("Cause", verdict.cause), ("Where", verdict.where), ("What to do", verdict.remedy)]
    told = [(tag("dt", name), tag("dd", prose(text))) for name, text in facts if text]
    banner = tag(
        "div",
        tag("p", tag("b", verdict.word), verdict.sentence),
        tag("dl", told) if told else None,
        class_=f"verdict {verdict.tone}",
    )
    return tag(
        "header",
        tag("p", "Tunesmith run report", class_="eyebrow"),
        tag("h1", record.name),
        tag("p", _about(record), class_="about"),
        banner,
        tag("dl", _tiles(record, proofs, comparison), class_="tiles"),
    )


def method_of(plan: Plan) -> str:
    method = plan.recipe.method
    if isinstance(method, Lora):
        return f"{'QLoRA' if method.kind == 'qlora' else 'LoRA'}, rank {method.lora_rank}"
    if isinstance(method, LastLayers):
        return f"its last {plural(method.num_layers, 'layer')}"
    return "all weights"


def _about(record: Record) -> str:
    plan = record.plan
    if plan is None:
        return f"{record.plan_fault}: what the run was to do is not known"
    rows = plural(plan.data.train.num_rows, "training row")
    held_out = f", {plural(plan.data.validation.num_rows, 'validation row')}" if plan.data.validation else ""
    return f"{plan.model.source} · {method_of(plan)} · task {plan.recipe.task} · {rows}{held_out}"


def _tiles(record: Record, proofs: list[Proof], comparison: Comparison | None) -> list[Html]:
    tiles = []
    before, after = record.evaluation("before"), record.evaluated_last
    if before and after:
        where = "" if after.when == "after" else f" (step {after.step})"
        shown = [(m.name.capitalize(), m) for m in measures_of(after.scores)[:2]]
        for name, measure in _TOKEN_TILES if after.scores.perplexity is not None else shown:
            old, new = (measure.form(measure.value(event.scores)) for event in (before, after))
            pair = (tag("span", f"{old} → ", class_="from"), new)
            tiles.append(_tile(name + where, pair, _interval_note(comparison) if measure.key == "loss" else None))
    elif record.steps:
        tiles.append(_tile("Training loss, last step", decimal(record.steps[-1].loss, 3)))
    total = record.plan.batch.total_steps if record.plan else None
    done = record.steps[-1].step if record.steps else 0
    tiles.append(_tile("Optimizer steps", count(done), f"of {count(total)} planned" if total else None))
    rates = sorted(rate for event in record.steps if (rate := finite(event.tokens_per_s)) is not None)
    if rates:
        tiles.append(_tile("Tokens a second", significant(rates[len(rates) // 2]), "median of all steps"))
    if record.attempts:
        seconds = sum(attempt.last_time - attempt.first_time for attempt in record.attempts)
        tiles.append(_tile("Time", duration(seconds), f"in {plural(len(record.attempts), 'attempt')}"))
    passed, failed, open_ = (sum(proof.passed is value for proof in proofs) for value in (True, False, None))
    told = [f"{failed} failed"] * bool(failed) + [f"{open_} cannot be told yet"] * bool(open_)
    tone = "bad" if failed else "good" if passed else None
    tiles.append(_tile("Proofs passed", f"{passed} of {passed + failed}", ", ".join(told) or "nothing left open", tone))
    return tiles


def _tile(name: str, value: Content, note: str | None = None, tone: str | None = None) -> Html:
    told = tag("dd", note, class_="note") if note else None
    return tag("div", tag("dt", name), tag("dd", value, class_=tone), told, class_="tile")


def _interval_note(comparison: Comparison | None) -> str | None:
    if comparison is None:
        return None
    return f"{change(comparison.loss.value, 3)} ({_span(comparison.loss.interval, lambda bound: change(bound, 3))})"


def result(record: Record, receipts: Receipts, comparison: Comparison | None) -> Html:
    """The table before and after, with the interval of the paired difference where the rows' own scores are there."""
    before, after = record.evaluation("before"), record.evaluated_last
    if before is None and after is None:
        told = "no validation rows" if record.plan and record.plan.data.validation is None else "not measured yet"
        return section("result", "Before and after", tag("p", f"Held-out loss: {told}.", class_="none"))
    old, new = (event.scores if event else Scores.from_json({}) for event in (before, after))
    rows = new.num_examples or old.num_examples or 0
    tokens = new.num_tokens or old.num_tokens
    lead = f"Measured on {plural(rows, 'held-out row')} with {count(tokens)} supervised tokens, summed over tokens."
    if own_measures(new):
        lead = f"Measured on {plural(rows, 'held-out row')}."
    head = ["Metric", "Before", _after_name(after), "Change", "95% CI of the change"]
    content = table(
        "Before and after training", head, _metrics(old, new, comparison), numeric=(1, 2, 3, 4), class_="metric"
    )
    return section("result", "Before and after", content, _told_by_rows(receipts, comparison), lead=lead)


def _after_name(after: EvaluationEvent | None) -> str:
    if after is None:
        return "After"
    return f"After (step {after.step})" if after.when == "after" else f"So far (step {after.step})"


def _metrics(before: Scores, after: Scores, comparison: Comparison | None) -> list[list[Content]]:
    """A row a metric. Perplexity is exp(loss): its change is a factor, and the factor's interval that of the loss."""
    if own_measures(after):
        return _task_metrics(before, after, comparison)
    loss = comparison.loss.interval if comparison else None
    factors = tuple(math.exp(min(bound, 700.0)) for bound in loss) if loss else None
    points = comparison.token_accuracy.interval if comparison else None

    def row(name: str, key: str, form: Callable, moved: Callable[[float, float], str], interval: str) -> list[Content]:
        values = getattr(before, key), getattr(after, key)
        old, new = map(finite, values)
        told: Content = NONE
        if old is not None and new is not None:
            told = _coloured(moved(old, new), new - old, good=1 if key == "token_accuracy" else -1)
        return [name, *map(form, values), told, interval]

    return [
        row("Loss (nats per token)", "loss", decimal, lambda old, new: change(new - old), _span(loss, change)),
        row("Perplexity", "perplexity", _perplexity, _ratio, _span(factors, _factor)),
        row("Token accuracy", "token_accuracy", _share, lambda old, new: _points(new - old), _span(points, _points)),
    ]


def _task_metrics(before: Scores, after: Scores, comparison: Comparison | None) -> list[list[Content]]:
    """A row a metric of the task; those of one label by itself stand in events.jsonl."""
    spans = {"loss": comparison.loss, "token_accuracy": comparison.token_accuracy} if comparison else {}
    rows: list[list[Content]] = []
    for measure in measures_of(after):
        old, new = finite(measure.value(before)), finite(measure.value(after))
        in_points = measure.form is percent
        told: Content = NONE
        if old is not None and new is not None:
            told = _coloured(_points(new - old) if in_points else change(new - old), new - old, good=measure.good)
        span = spans.get(measure.key)
        interval = _span(span.interval, _points if in_points else change) if span else NONE
        shown = [measure.form(measure.value(scores)) for scores in (before, after)]
        rows.append([measure.name[:1].upper() + measure.name[1:], *shown, told, interval])
    return rows


def _span(bounds: tuple[float, ...] | None, form: Callable[[float], str]) -> str:
    return NONE if bounds is None else f"{form(bounds[0])} to {form(bounds[1])}"


def _told_by_rows(receipts: Receipts, comparison: Comparison | None) -> list[Html]:
    """How many rows got better, and which moved most: a mean can hide a few that were ruined."""
    if comparison is None:
        return []
    examples, better = comparison.examples, comparison.num_better
    worse = sum(example.loss_after > example.loss_before for example in examples)
    words = (
        f"{plural(better, 'row')} got better, {count(worse)} got worse. "
        "The interval is that of the paired difference, row by row."
    )
    ordered = sorted(examples, key=lambda example: example.loss_after - example.loss_before)
    shown = ordered if len(ordered) <= 2 * NUM_EXTREMES else ordered[:NUM_EXTREMES] + ordered[-NUM_EXTREMES:]
    head = ["Row", "Tokens", "Loss before", "Loss after", "Change"]
    extremes = table("Rows that changed most", head, [_example(e, receipts) for e in shown], numeric=(1, 2, 3, 4))
    return [tag("p", words, class_="note"), details("Rows that changed most", extremes)]


def _example(example: Example, receipts: Receipts) -> list[Content]:
    moved = example.loss_after - example.loss_before
    place = receipts.places.get(example.row, f"row {example.row}")
    numbers = [count(example.num_tokens), decimal(example.loss_before, 3), decimal(example.loss_after, 3)]
    return [tag("span", place, class_="mono"), *numbers, _coloured(change(moved, 3), moved, good=-1)]


def answers(record: Record) -> Html | None:
    """Prompts of held-out rows with what the model said before and after; None where none were asked for."""
    before, after = (_items(record.answers.get(when)) for when in ("before", "after"))
    if not before and not after:
        return None
    cards = []
    for row in list(dict.fromkeys([*before, *after])):
        first, last = before.get(row), after.get(row)
        asked = last or first or {}
        prompt = tag("p", tag("small", f"row {row}"), asked.get("prompt"), class_="prompt")
        reference = tag("div", tag("h3", "In the data"), tag("p", asked.get("reference"), class_="said"))
        side = tag("div", reference, _said("Before", first), _said("After", last), class_="side")
        cards.append(tag("article", prompt, side, class_="answer"))
    return section(
        "answers", "Answers", cards, lead="Greedy answers to held-out prompts; the rows were not trained on."
    )


def _items(event: AnswersEvent | None) -> dict[Any, dict[str, Any]]:
    return {item.get("row"): item for item in (event and event.items) or []}


def _said(name: str, item: dict[str, Any] | None) -> Html:
    look = name.lower()
    if item is None:
        return tag("div", tag("h3", name), tag("p", "not asked yet", class_="none"), class_=look)
    ended = "stopped by itself" if item.get("stopped") else "cut at the limit"
    text = item.get("answer")
    said = tag("p", text, class_="said") if text else tag("p", "nothing", class_="none")
    return tag("div", tag("h3", name, tag("span", ended)), said, class_=look)


def _coloured(text: str, value: float, good: int) -> Html:
    """A change in green where it goes the good way (sign `good`), in red where it goes the other."""
    look = None if value == 0 else ("good-text" if value * good > 0 else "bad-text")
    return tag("span", text, class_=look)


def _points(share: float) -> str:
    return f"{change(100 * share, 2)} points"


def _share(value: Any) -> str:
    return percent(value, 2)


def _ratio(old: float, new: float) -> str:
    return _factor(new / old) if old else NONE


def _factor(value: float) -> str:
    return f"× {significant(value, 3)}"


def _loss(value: Any) -> str:
    return decimal(value, 3)


def _perplexity(value: Any) -> str:
    return significant(value, 4)


_TOKEN_TILES = [
    ("Validation loss", Measure("loss", lambda scores: scores.loss, _loss, -1, "loss")),
    ("Perplexity", Measure("perplexity", lambda scores: scores.perplexity, _perplexity, -1)),
]
