"""The data sets of a run: planned and realized shares, and the validation loss of each."""

from tunesmith.configs.plan import DataSetFacts, Plan
from tunesmith.report.markup import Content, Html, section, table, term
from tunesmith.report.proofs.ledger import steps_fed
from tunesmith.report.record import Record
from tunesmith.report.wording import NONE, change, count, decimal, percent, plural
from tunesmith.rundir.events import Scores

SHARE = "Fraction of the training samples. Samples are rows, or packed sequences of rows of one data set."
PASSES = "Uses of the data set's samples divided by their number; each pass has another order."


def datasets(record: Record) -> Html | None:
    """One row per data set; None if none has a name."""
    plan = record.plan
    if plan is None or not plan.data.datasets:
        return None
    before, after = record.evaluation("before"), record.evaluated_last
    old, new = (event.scores if event else Scores.from_json({}) for event in (before, after))
    used = _used(record, plan)
    body = [_row(each, plan, used, old.dataset_losses(), new.dataset_losses()) for each in plan.data.datasets]
    head = ["Data set", "Rows", "Samples", term("Planned share", SHARE), "Used", "Used share", term("Passes", PASSES)]
    head += ["Validation rows", "Loss before", "Loss after", "Change"]
    lead = "Named validation files; the training rows are not a mixture."
    if plan.data.epoch_samples is not None:
        lead = f"An epoch has {plural(plan.data.epoch_samples, 'sample')}. A data set that is used up starts again."
    if not any(each.validation_rows for each in plan.data.datasets):
        lead += " There are no validation rows, so there is no loss by data set."
    return section("datasets", "Data sets", table("Data sets", head, body, numeric=range(1, len(head))), lead=lead)


def _row(
    facts: DataSetFacts, plan: Plan, used: dict[str, int], old: dict[str, float], new: dict[str, float]
) -> list[Content]:
    before, after, number = old.get(facts.name), new.get(facts.name), used.get(facts.name)
    total = sum(used.values())
    trained = facts.samples_per_epoch > 0
    return [
        facts.name,
        count(facts.num_rows),
        count(facts.num_samples),
        percent(facts.samples_per_epoch / plan.data.samples_per_epoch, 2) if trained else NONE,
        NONE if number is None else count(number),
        percent(number / total, 2) if number is not None and total else NONE,
        f"{number / facts.num_samples:.2f}" if number is not None and facts.num_samples else NONE,
        count(facts.validation_rows),
        decimal(before, 4),
        decimal(after, 4),
        NONE if before is None or after is None else change(after - before),
    ]


def _used(record: Record, plan: Plan) -> dict[str, int]:
    """Samples of each data set so far, from the ledger."""
    used = {each.name: 0 for each in plan.data.mixed}
    for entries in steps_fed(record).values():
        for entry in entries:
            counted = plan.data.samples_by_dataset(list(entry.samples)) or {}
            used = {name: number + counted[name] for name, number in used.items()}
    return used
