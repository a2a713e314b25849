"""Was it worth it? The tuned model beside the base, beside the base with examples in its prompt, and what was lost.

The verdict is read off paired 95% confidence intervals alone:

    learned           the validation loss fell, and the interval leaves out zero
    nothing changed   the interval of its change includes zero
    got worse         it rose, and the interval leaves out zero
    overfitted        an earlier step was clearly better on the validation rows than the exported one, or training made
                      them worse while the training loss fell
    forgot            the loss on the general rows (evaluation.retain) rose, and the interval leaves out zero
"""

from dataclasses import dataclass
from typing import Literal

from tunesmith.report.comparison import Comparison, compare, compare_files
from tunesmith.report.markup import Content, Html, section, table, tag
from tunesmith.report.measures import Measure, measures_of, own_measures
from tunesmith.report.record import Record
from tunesmith.report.wording import NONE, change, decimal, finite, plural
from tunesmith.rundir.events import Scores

Word = Literal["learned", "nothing changed", "got worse", "overfitted", "forgot"]


@dataclass(frozen=True)
class Worth:
    """learned: validation rows, before to after. beside: base with examples to after. retained: general rows, before
    to after. best: from the best earlier step to after, where one was better. Each None where it was not measured."""

    learned: Comparison | None
    beside: Comparison | None
    retained: Comparison | None
    best: Comparison | None
    training_fell: bool

    @property
    def words(self) -> list[Word]:
        """The plain verdict; empty where nothing was measured."""
        words: list[Word] = []
        if self.learned is not None:
            loss = self.learned.loss
            words.append("nothing changed" if not loss.is_clear else "learned" if loss.value < 0 else "got worse")
        passed_best = self.best is not None and self.best.loss.is_clear and self.best.loss.value > 0
        if passed_best or (words == ["got worse"] and self.training_fell):
            words.append("overfitted")
        if self.retained is not None and self.retained.loss.is_clear and self.retained.loss.value > 0:
            words.append("forgot")
        return words


def worth_of(record: Record) -> Worth:
    """From the events and the files of scores."""
    run, after = record.run, record.evaluated_last
    beside = retained = best = None
    if after is not None and record.few_shot is not None:
        beside = compare_files(run.few_shot, run.evaluation(after.step), 0, after.step)
    ends = record.retained.get("before"), record.retained.get("after")
    if ends[0] is not None and ends[1] is not None:
        first, last = ends[0].step, ends[1].step
        retained = compare_files(run.retained(first), run.retained(last), first, last)
    if after is not None:
        earlier = [event for event in record.evaluations if 0 < event.step < after.step]
        losses = [(loss, event.step) for event in earlier if (loss := finite(event.scores.loss)) is not None]
        own = finite(after.scores.loss)
        if losses and own is not None and min(losses)[0] < own:
            step = min(losses)[1]
            best = compare_files(run.evaluation(step), run.evaluation(after.step), step, after.step)
    return Worth(compare(record), beside, retained, best, _training_fell(record))


def worth(record: Record, found: Worth) -> Html | None:
    """The section of the page; None where nothing was measured."""
    if not found.words:
        return None
    parts = [tag("p", tag("b", _sentence(found)))]
    after = record.evaluated_last
    if after is not None and (rows := _candidates(record, found)) is not None:
        names = [f"{one.name[0].upper()}{one.name[1:]}" for one in _columns(after.scores)]
        head = ["On the validation rows", *names, "Tuned less this (loss)", "95% CI"]
        parts.append(table("Tuned, base, and base with examples", head, rows, numeric=(1, 2, 3, 4)))
    if found.retained is not None:
        head = ["On the general rows", "Before", "After", "Change", "95% CI"]
        parts.append(
            table("What was kept and what was lost", head, [_kept(record, found.retained)], numeric=(1, 2, 3, 4))
        )
    over = "" if after is not None and own_measures(after.scores) else ", over supervised tokens"
    return section("worth", "Was it worth it?", parts, lead=f"By paired differences, row by row{over}.")


def _columns(scores: Scores) -> list[Measure]:
    """The loss, and what else says most of the task: of tokens how many are foreseen, of labels macro-F1."""
    measures = measures_of(scores)
    loss = next(one for one in measures if one.key == "loss")
    return [loss, next((one for one in measures if one.key == "token_accuracy"), measures[0])]


def _sentence(found: Worth) -> str:
    said = {
        "learned": "It learned: the loss on held-out rows fell.",
        "nothing changed": "Nothing changed: the change of the loss on held-out rows may be chance.",
        "got worse": "It got worse: the loss on held-out rows rose.",
        "overfitted": "It overfitted: "
        + (
            f"step {found.best.step_before} was better on held-out rows than step {found.best.step_after}."
            if found.best is not None and found.best.loss.is_clear
            else "the training loss fell while that on held-out rows rose."
        ),
        "forgot": "It forgot: the loss on the general rows rose.",
    }
    told = [said[word] for word in found.words]
    if found.retained is not None and "forgot" not in found.words:
        told.append("It did not forget: the loss on the general rows did not clearly rise.")
    if found.beside is not None and found.beside.loss.is_clear:
        better = found.beside.loss.value < 0
        told.append(
            f"{'Training' if better else 'Prompting'} brought more than {'prompting' if better else 'training'}."
        )
    elif found.beside is not None:
        told.append("Prompting the base with examples would have done as well.")
    return " ".join(told)


def _candidates(record: Record, found: Worth) -> list[list[Content]] | None:
    before, after = record.evaluation("before"), record.evaluated_last
    if before is None or after is None:
        return None
    rows = [_row("Tuned model", after.scores, None), _row("Base model", before.scores, found.learned)]
    if record.few_shot is not None:
        shots = plural(record.few_shot.shots or 0, "training row")
        rows.append(_row(f"Base model with {shots} in its prompt", record.few_shot.scores, found.beside))
    return rows


def _row(name: str, scores: Scores, comparison: Comparison | None) -> list[Content]:
    moved = [change(comparison.loss.value), _interval(comparison)] if comparison is not None else [NONE, NONE]
    return [name, *(one.form(one.value(scores)) for one in _columns(scores)), *moved]


def _kept(record: Record, comparison: Comparison) -> list[Content]:
    before, after = (decimal(record.retained[when].scores.loss) for when in ("before", "after"))
    return [
        _columns(record.retained["after"].scores)[0].name.capitalize(),
        before,
        after,
        change(comparison.loss.value),
        _interval(comparison),
    ]


def _interval(comparison: Comparison) -> str:
    bounds = comparison.loss.interval
    return NONE if bounds is None else f"{change(bounds[0])} to {change(bounds[1])}"


def _training_fell(record: Record) -> bool:
    """Whether the last tenth of the steps had a lower training loss than the first, at least one step each."""
    losses = [loss for event in record.steps if (loss := finite(event.loss)) is not None]
    share = max(1, len(losses) // 10)
    return len(losses) > 1 and sum(losses[-share:]) < sum(losses[:share])
