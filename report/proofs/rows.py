"""Proofs about rows: every one has a receipt, and they add up to what was prepared."""

from tunesmith.configs.plan import Plan, SplitFacts
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.receipts import TRAINED, Receipts
from tunesmith.report.record import Record
from tunesmith.report.wording import count, plural


def prove_receipts(receipts: Receipts, plan: Plan) -> Proof:
    """Every row has exactly one receipt, and what they count is what the plan was made from."""
    name = "Every row has one receipt, and they add up"
    if not receipts.num_rows:
        return Proof(name, None, "there are no receipts")
    faults = []
    if receipts.twice:
        faults.append(f"row {receipts.twice[0]} has more than one")
    if receipts.last_row + 1 != receipts.num_rows - len(receipts.twice):
        faults.append(f"{plural(receipts.num_rows, 'receipt')} for {plural(receipts.last_row + 1, 'row')}")
    for what, counted, planned in _counts(receipts, plan):
        if counted != planned:
            faults.append(f"{what}: {count(counted)} by the receipts, {count(planned)} by the plan")
    if receipts.num_rejects != receipts.sums("rejected").rows:
        faults.append(f"rejects.jsonl holds {plural(receipts.num_rejects, 'row')}")
    if receipts.summary.get("rows", receipts.num_rows) != receipts.num_rows:
        faults.append(f"summary.json counts {plural(receipts.summary['rows'], 'row')}")
    if faults:
        return Proof(name, False, "; ".join(faults))
    outcomes = dict.fromkeys(name for by_outcome in receipts.by_outcome.values() for name in by_outcome)
    told = " + ".join(f"{count(receipts.sums(outcome).rows)} {outcome}" for outcome in outcomes)
    return Proof(name, True, f"{told} = {plural(receipts.num_rows, 'row')} read; their tokens are those of the index")


def prove_supervision(record: Record, plan: Plan) -> Proof:
    """There was something to learn from."""
    name = "There are supervised tokens"
    planned, total = plan.data.train.supervised_tokens, plan.data.train.num_tokens
    share = f", {100 * planned / total:.1f}% of {count(total)}" if total else ""
    empty = [event.step for event in record.steps if not event.supervised_tokens]
    if planned <= 0:
        return Proof(name, False, "no token of the training rows is supervised")
    if empty:
        return Proof(name, False, f"{plural(len(empty), 'step')} had none, first step {empty[0]}")
    steps = "; every step had some" if record.steps else ""
    return Proof(name, True, f"{count(planned)} supervised tokens an epoch{share}{steps}")


def _counts(receipts: Receipts, plan: Plan) -> list[tuple[str, int, int]]:
    """What receipts and plan both count: (what, by the receipts, by the plan)."""
    data = plan.data
    counts = [
        ("rejected", receipts.sums("rejected").rows, data.num_rejected),
        ("dropped", receipts.sums("dropped").rows, data.num_dropped),
        ("truncated", receipts.sums("truncated").rows, data.num_truncated),
        ("duplicates", receipts.num_duplicates, data.num_duplicates),
    ]
    splits: list[tuple[str, SplitFacts | None]] = [("train", data.train), ("validation", data.validation)]
    for split, facts in splits:
        sums = receipts.sums(*TRAINED, split=split)
        planned = (facts.num_rows, facts.num_tokens, facts.supervised_tokens) if facts else (0, 0, 0)
        what = (f"{split} rows", f"{split} tokens", f"supervised {split} tokens")
        counts += list(zip(what, (sums.rows, sums.tokens, sums.supervised_tokens), planned, strict=True))
    return counts
