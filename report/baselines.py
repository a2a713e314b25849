"""The fine-tuned model compared with its baselines, and with itself on general rows.

Findings depend only on paired 95% confidence intervals (CI) of the loss difference:

    improved          the validation loss fell, and the CI excludes zero
    no clear change   the CI of the change in validation loss includes zero
    regressed         the validation loss rose, and the CI excludes zero
    overfitted        an earlier step had a clearly lower validation loss than the exported one, or the validation loss
                      rose while the training loss fell
    forgetting        the loss on the general rows (evaluation.retain) rose, and the CI excludes zero
"""

from dataclasses import dataclass
from typing import Literal

from tunesmith.report.comparison import Comparison, compare, compare_files
from tunesmith.report.markup import Content, Html, section, table, tag
from tunesmith.report.measures import Measure, measures_of, metric_name, own_measures
from tunesmith.report.record import Record
from tunesmith.report.wording import NONE, change, decimal, finite, plural
from tunesmith.rundir.events import Scores

Finding = Literal["improved", "no clear change", "regressed", "overfitted", "forgetting"]


@dataclass(frozen=True)
class Baselines:
    """Paired comparisons with the final model; each is None if it was not measured.

    base: the untrained model on the validation rows. few_shot: the same with training rows in its prompt. retained: the
    untrained model on the general rows. best: the best earlier step, if its validation loss was lower.
    """

    base: Comparison | None
    few_shot: Comparison | None
    retained: Comparison | None
    best: Comparison | None
    training_loss_fell: bool

    @property
    def findings(self) -> list[Finding]:
        """The verdict; empty if nothing was measured."""
        findings: list[Finding] = []
        if self.base is not None:
            loss = self.base.loss
            findings.append("no clear change" if not loss.is_clear else "improved" if loss.value < 0 else "regressed")
        passed_best = self.best is not None and self.best.loss.is_clear and self.best.loss.value > 0
        if passed_best or (findings == ["regressed"] and self.training_loss_fell):
            findings.append("overfitted")
        if self.retained is not None and self.retained.loss.is_clear and self.retained.loss.value > 0:
            findings.append("forgetting")
        return findings


def compare_baselines(record: Record) -> Baselines:
    """Compare the final evaluation with every baseline in the run directory."""
    run, after = record.run, record.evaluated_last
    few_shot = retained = best = None
    if after is not None and record.few_shot is not None:
        few_shot = compare_files(run.few_shot, run.evaluation(after.step), 0, after.step)
    ends = record.retained.get("before"), record.retained.get("after")
    if ends[0] is not None and ends[1] is not None:
        first, last = ends[0].step, ends[1].step
        retained = compare_files(run.retained(first), run.retained(last), first, last)
    if after is not None:
        earlier = [event for event in record.evaluations if 0 < event.step < after.step]
        losses = [(loss, event.step) for event in earlier if (loss := finite(event.scores.loss)) is not None]
        final_loss = finite(after.scores.loss)
        if losses and final_loss is not None and min(losses)[0] < final_loss:
            step = min(losses)[1]
            best = compare_files(run.evaluation(step), run.evaluation(after.step), step, after.step)
    return Baselines(compare(record), few_shot, retained, best, _training_loss_fell(record))


def baseline_section(record: Record, baselines: Baselines) -> Html | None:
    """The section of the report; None if nothing was measured."""
    if not baselines.findings:
        return None
    parts = [tag("p", tag("b", _summary(baselines)))]
    after = record.evaluated_last
    if after is not None and (rows := _models(record, baselines)) is not None:
        names = [metric_name(measure) for measure in _columns(after.scores)]
        head = ["Validation rows", *names, "Loss difference", "95% CI"]
        parts.append(table("Fine-tuned model and baselines", head, rows, numeric=(1, 2, 3, 4)))
    if baselines.retained is not None:
        head = ["General rows", "Before", "After", "Change", "95% CI"]
        rows = [_retained(record, baselines.retained)]
        parts.append(table("Loss on general rows", head, rows, numeric=(1, 2, 3, 4)))
    over = "" if after is not None and own_measures(after.scores) else ", over supervised tokens"
    lead = f"Differences are fine-tuned minus baseline, paired row by row{over}."
    return section("baselines", "Comparison with baselines", parts, lead=lead)


def _columns(scores: Scores) -> list[Measure]:
    """The loss and the main metric of the task: token accuracy for tokens, macro-F1 for labels."""
    measures = measures_of(scores)
    loss = next(measure for measure in measures if measure.key == "loss")
    return [loss, next((measure for measure in measures if measure.key == "token_accuracy"), measures[0])]


def _summary(baselines: Baselines) -> str:
    if baselines.best is not None and baselines.best.loss.is_clear:
        overfitted = (
            f"step {baselines.best.step_before} has a lower validation loss than step {baselines.best.step_after}"
        )
    else:
        overfitted = "the training loss fell while the validation loss rose"
    texts = {
        "improved": "Improved: the validation loss fell.",
        "no clear change": "No clear change: the difference in validation loss may be due to chance.",
        "regressed": "Regressed: the validation loss rose.",
        "overfitted": f"Overfitted: {overfitted}.",
        "forgetting": "Forgetting: the loss on the general rows rose.",
    }
    sentences = [texts[finding] for finding in baselines.findings]
    if baselines.retained is not None and "forgetting" not in baselines.findings:
        sentences.append("No forgetting: the loss on the general rows did not clearly rise.")
    if baselines.few_shot is not None:
        sentences.append(_few_shot_summary(baselines.few_shot))
    return " ".join(sentences)


def _few_shot_summary(few_shot: Comparison) -> str:
    if not few_shot.loss.is_clear:
        return "Few-shot prompting of the base model performs as well as fine-tuning."
    better, worse = "Fine-tuning", "few-shot prompting"
    if few_shot.loss.value > 0:
        better, worse = "Few-shot prompting", "fine-tuning"
    return f"{better} outperforms {worse}."


def _models(record: Record, baselines: Baselines) -> list[list[Content]] | None:
    before, after = record.evaluation("before"), record.evaluated_last
    if before is None or after is None:
        return None
    rows = [_model("Fine-tuned model", after.scores, None), _model("Base model", before.scores, baselines.base)]
    if record.few_shot is not None:
        shots = plural(record.few_shot.shots or 0, "example")
        rows.append(_model(f"Base model, few-shot ({shots})", record.few_shot.scores, baselines.few_shot))
    return rows


def _model(name: str, scores: Scores, comparison: Comparison | None) -> list[Content]:
    difference = [change(comparison.loss.value), _interval(comparison)] if comparison is not None else [NONE, NONE]
    return [name, *(measure.form(measure.value(scores)) for measure in _columns(scores)), *difference]


def _retained(record: Record, comparison: Comparison) -> list[Content]:
    before, after = (decimal(record.retained[when].scores.loss) for when in ("before", "after"))
    return [
        metric_name(_columns(record.retained["after"].scores)[0]),
        before,
        after,
        change(comparison.loss.value),
        _interval(comparison),
    ]


def _interval(comparison: Comparison) -> str:
    bounds = comparison.loss.interval
    return NONE if bounds is None else f"{change(bounds[0])} to {change(bounds[1])}"


def _training_loss_fell(record: Record) -> bool:
    """Whether the mean training loss of the last tenth of the steps is below that of the first tenth (at least one step
    each)."""
    losses = [loss for event in record.steps if (loss := finite(event.loss)) is not None]
    share = max(1, len(losses) // 10)
    return len(losses) > 1 and sum(losses[-share:]) < sum(losses[:share])
