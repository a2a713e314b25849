"""First sections of the report: run, outcome and key numbers; evaluation; sample outputs before and after."""

import math
from collections.abc import Callable
from typing import Any

from tunesmith.configs.plan import Plan
from tunesmith.configs.sections.method import LastLayers, Lora
from tunesmith.report.comparison import Comparison, Example
from tunesmith.report.markup import Content, Html, details, prose, section, table, tag, term
from tunesmith.report.measures import DEFINITIONS, Measure, measures_of, metric_name, own_measures
from tunesmith.report.outcome import Verdict
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.receipts import Receipts
from tunesmith.report.record import Record
from tunesmith.report.wording import NONE, change, count, decimal, duration, finite, percent, plural, significant
from tunesmith.rundir.events import AnswersEvent, EvaluationEvent, Scores

NUM_EXTREMES = 5
INTERVAL = (
    "95% confidence interval of the difference, paired row by row. If it includes zero, the change may be chance."
)


def header(record: Record, verdict: Verdict, proofs: list[Proof], comparison: Comparison | None) -> Html:
    facts = [("Cause", verdict.cause), ("Location", verdict.where), ("Remedy", verdict.remedy)]
    items = [(tag("dt", name), tag("dd", prose(text))) for name, text in facts if text]
    banner = tag(
        "div",
        tag("p", tag("b", verdict.word), verdict.sentence),
        tag("dl", items) if items else None,
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
        return f"last {plural(method.num_layers, 'layer')}"
    return "full fine-tuning"


def _about(record: Record) -> str:
    plan = record.plan
    if plan is None:
        return f"{record.plan_fault}: model, method and data are unknown"
    rows = plural(plan.data.train.num_rows, "training row")
    held_out = f", {plural(plan.data.validation.num_rows, 'validation row')}" if plan.data.validation else ""
    return f"{plan.model.source} · {method_of(plan)} · task {plan.recipe.task} · {rows}{held_out}"


def _tiles(record: Record, proofs: list[Proof], comparison: Comparison | None) -> list[Html]:
    tiles = []
    before, after = record.evaluation("before"), record.evaluated_last
    if before and after:
        suffix = "" if after.when == "after" else f" (step {after.step})"
        shown = [(metric_name(measure), measure) for measure in measures_of(after.scores)[:2]]
        for name, measure in _token_tiles() if after.scores.perplexity is not None else shown:
            old, new = (measure.form(measure.value(event.scores)) for event in (before, after))
            pair = (tag("span", f"{old} → ", class_="from"), new)
            tiles.append(_tile((name, suffix), pair, _interval_note(comparison) if measure.key == "loss" else None))
    elif record.steps:
        tiles.append(_tile("Training loss, last step", decimal(record.steps[-1].loss, 3)))
    total = record.plan.batch.total_steps if record.plan else None
    done = record.steps[-1].step if record.steps else 0
    tiles.append(_tile("Optimizer steps", count(done), f"of {count(total)} planned" if total else None))
    rates = sorted(rate for event in record.steps if (rate := finite(event.tokens_per_s)) is not None)
    if rates:
        tiles.append(_tile("Tokens/s", significant(rates[len(rates) // 2]), "median over steps"))
    if record.attempts:
        seconds = sum(attempt.last_time - attempt.first_time for attempt in record.attempts)
        tiles.append(_tile("Duration", duration(seconds), f"in {plural(len(record.attempts), 'attempt')}"))
    passed, failed, open_ = (sum(proof.passed is value for proof in proofs) for value in (True, False, None))
    rest = [f"{failed} failed"] * bool(failed) + [f"{open_} open"] * bool(open_)
    tone = "bad" if failed else "good" if passed else None
    tiles.append(_tile("Proofs passed", f"{passed} of {passed + failed}", ", ".join(rest) or "none open", tone))
    return tiles


def _tile(name: Content, value: Content, note: str | None = None, tone: str | None = None) -> Html:
    note_tag = tag("dd", note, class_="note") if note else None
    return tag("div", tag("dt", name), tag("dd", value, class_=tone), note_tag, class_="tile")


def _interval_note(comparison: Comparison | None) -> str | None:
    if comparison is None:
        return None
    interval = _span(comparison.loss.interval, lambda bound: change(bound, 3))
    return f"{change(comparison.loss.value, 3)} (95% CI {interval})"


def result(record: Record, receipts: Receipts, comparison: Comparison | None) -> Html:
    """Metrics before and after training, with the CI of the paired difference if per-row scores exist."""
    before, after = record.evaluation("before"), record.evaluated_last
    if before is None and after is None:
        without = record.plan is not None and record.plan.data.validation is None
        reason = "The run has no validation rows." if without else "Not evaluated yet."
        return section("result", "Evaluation", tag("p", reason, class_="none"))
    old, new = (event.scores if event else Scores.from_json({}) for event in (before, after))
    rows = new.num_examples or old.num_examples or 0
    tokens = new.num_tokens or old.num_tokens
    lead = f"{plural(rows, 'validation row')}, {count(tokens)} supervised tokens; averages are over tokens."
    if own_measures(new):
        lead = f"{plural(rows, 'validation row')}."
    head = ["Metric", "Before", _after_name(after), "Change", term("95% CI of the change", INTERVAL)]
    body = _metrics(old, new, comparison)
    content = table("Metrics before and after training", head, body, numeric=(1, 2, 3, 4), class_="metric")
    return section("result", "Evaluation", content, _changes_by_row(receipts, comparison), _definitions(new), lead=lead)


def _after_name(after: EvaluationEvent | None) -> str:
    if after is None:
        return "After"
    return f"After (step {after.step})" if after.when == "after" else f"During (step {after.step})"


def _metrics(before: Scores, after: Scores, comparison: Comparison | None) -> list[list[Content]]:
    """One row per metric. Perplexity is exp(loss): its change is a factor, with the exponentiated CI of the loss."""
    if own_measures(after):
        return _task_metrics(before, after, comparison)
    loss = comparison.loss.interval if comparison else None
    factors = tuple(math.exp(min(bound, 700.0)) for bound in loss) if loss else None
    points = comparison.token_accuracy.interval if comparison else None

    def row(
        name: str, key: str, form: Callable, difference: Callable[[float, float], str], interval: str
    ) -> list[Content]:
        values = getattr(before, key), getattr(after, key)
        old, new = map(finite, values)
        delta: Content = NONE
        if old is not None and new is not None:
            delta = _colored(difference(old, new), new - old, good=1 if key == "token_accuracy" else -1)
        title = term(name[:1].upper() + name[1:], DEFINITIONS.get(name))
        return [title, *map(form, values), delta, interval]

    return [
        row("loss (nats per token)", "loss", decimal, lambda old, new: change(new - old), _span(loss, change)),
        row("perplexity", "perplexity", _perplexity, _ratio, _span(factors, _factor)),
        row("token accuracy", "token_accuracy", _share, lambda old, new: _points(new - old), _span(points, _points)),
    ]


def _task_metrics(before: Scores, after: Scores, comparison: Comparison | None) -> list[list[Content]]:
    """One row per metric of the task; per-label metrics are in events.jsonl."""
    spans = {"loss": comparison.loss, "token_accuracy": comparison.token_accuracy} if comparison else {}
    rows: list[list[Content]] = []
    for measure in measures_of(after):
        old, new = finite(measure.value(before)), finite(measure.value(after))
        in_points = measure.form is percent
        delta: Content = NONE
        if old is not None and new is not None:
            delta = _colored(_points(new - old) if in_points else change(new - old), new - old, good=measure.good)
        span = spans.get(measure.key)
        interval = _span(span.interval, _points if in_points else change) if span else NONE
        shown = [measure.form(measure.value(scores)) for scores in (before, after)]
        rows.append([metric_name(measure), *shown, delta, interval])
    return rows


def _span(bounds: tuple[float, ...] | None, form: Callable[[float], str]) -> str:
    return NONE if bounds is None else f"{form(bounds[0])} to {form(bounds[1])}"


def _definitions(scores: Scores) -> Html:
    """Definitions of the metrics, for readers without a pointer: tooltips appear on hover only."""
    items = [(measure.name, measure.definition) for measure in measures_of(scores) if measure.definition]
    terms = [(tag("dt", name[:1].upper() + name[1:]), tag("dd", text)) for name, text in [*items, ("95% CI", INTERVAL)]]
    return details("Metric definitions", tag("dl", terms, class_="definitions"))


def _changes_by_row(receipts: Receipts, comparison: Comparison | None) -> list[Html]:
    """Numbers of rows that improved and got worse, and the largest changes: a mean can hide a few bad regressions."""
    if comparison is None:
        return []
    examples, better = comparison.examples, comparison.num_better
    worse = sum(example.loss_after > example.loss_before for example in examples)
    note = f"The loss fell on {plural(better, 'row')} and rose on {count(worse)}."
    ordered = sorted(examples, key=lambda example: example.loss_after - example.loss_before)
    shown = ordered if len(ordered) <= 2 * NUM_EXTREMES else ordered[:NUM_EXTREMES] + ordered[-NUM_EXTREMES:]
    head = ["Row", "Tokens", "Loss before", "Loss after", "Change"]
    extremes = table("Largest changes by row", head, [_example(e, receipts) for e in shown], numeric=(1, 2, 3, 4))
    return [tag("p", note, class_="note"), details("Largest changes by row", extremes)]


def _example(example: Example, receipts: Receipts) -> list[Content]:
    delta = example.loss_after - example.loss_before
    location = receipts.locations.get(example.row, f"row {example.row}")
    numbers = [count(example.num_tokens), decimal(example.loss_before, 3), decimal(example.loss_after, 3)]
    return [tag("span", location, class_="mono"), *numbers, _colored(change(delta, 3), delta, good=-1)]


def answers(record: Record) -> Html | None:
    """Validation prompts with the outputs before and after training; None if there are none."""
    before, after = (_items(record.answers.get(when)) for when in ("before", "after"))
    if not before and not after:
        return None
    cards = []
    for row in list(dict.fromkeys([*before, *after])):
        first, last = before.get(row), after.get(row)
        item = last or first or {}
        prompt = tag("p", tag("small", f"row {row}"), item.get("prompt"), class_="prompt")
        reference = tag("div", tag("h3", "Reference"), tag("p", item.get("reference"), class_="output"))
        side = tag("div", reference, _output("Before", first), _output("After", last), class_="side")
        cards.append(tag("article", prompt, side, class_="answer"))
    lead = "Greedy decoding on validation prompts, which are not used for training."
    return section("answers", "Sample outputs", cards, lead=lead)


def _items(event: AnswersEvent | None) -> dict[Any, dict[str, Any]]:
    return {item.get("row"): item for item in (event and event.items) or []}


def _output(name: str, item: dict[str, Any] | None) -> Html:
    look = name.lower()
    if item is None:
        return tag("div", tag("h3", name), tag("p", "not generated yet", class_="none"), class_=look)
    finish_reason = "stop token" if item.get("stopped") else "length limit"
    text = item.get("answer")
    output = tag("p", text, class_="output") if text else tag("p", "empty", class_="none")
    return tag("div", tag("h3", name, tag("span", finish_reason)), output, class_=look)


def _colored(text: str, value: float, good: int) -> Html:
    """A change in green if it is an improvement (has the sign `good`), in red if it is the opposite."""
    look = None if value == 0 else ("good-text" if value * good > 0 else "bad-text")
    return tag("span", text, class_=look)


def _points(share: float) -> str:
    """A difference of two fractions in percentage points (pp)."""
    return f"{change(100 * share, 2)} pp"


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


def _token_tiles() -> list[tuple[Html, Measure]]:
    loss = Measure("loss (nats per token)", lambda scores: scores.loss, _loss, -1, "loss")
    perplexity = Measure("perplexity", lambda scores: scores.perplexity, _perplexity, -1)
    return [(term("Validation loss", loss.definition), loss), (metric_name(perplexity), perplexity)]
