"""Proofs about rows: nothing was modified, every row has a receipt, and the receipts add up to the prepared data."""

from tunesmith.configs.plan import Plan, SplitFacts
from tunesmith.data.index.integrity import check_data, check_receipts, most_ranks
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.receipts import TRAINED, Receipts
from tunesmith.report.record import Record
from tunesmith.report.wording import count, plural
from tunesmith.rundir.ledger import check_ledger

MAX_SHOWN = 5


def prove_receipts(receipts: Receipts, plan: Plan) -> Proof:
    """Every row has exactly one receipt, and their totals equal those of the plan."""
    name = "Every row has exactly one receipt, and the totals agree"
    if not receipts.num_rows:
        return Proof(name, None, "no receipts")
    faults = []
    if receipts.duplicated:
        faults.append(f"row {receipts.duplicated[0]} has more than one receipt")
    if receipts.last_row + 1 != receipts.num_rows - len(receipts.duplicated):
        faults.append(f"{plural(receipts.num_rows, 'receipt')} for {plural(receipts.last_row + 1, 'row')}")
    for what, counted, planned in _counts(receipts, plan):
        if counted != planned:
            faults.append(f"{what}: {count(counted)} in the receipts, {count(planned)} in the plan")
    if receipts.num_rejects != receipts.sums("rejected").rows:
        faults.append(f"rejects.jsonl contains {plural(receipts.num_rejects, 'row')}")
    if receipts.summary.get("rows", receipts.num_rows) != receipts.num_rows:
        faults.append(f"summary.json counts {plural(receipts.summary['rows'], 'row')}")
    if faults:
        return Proof(name, False, "; ".join(faults))
    outcomes = dict.fromkeys(name for by_outcome in receipts.by_outcome.values() for name in by_outcome)
    terms = " + ".join(f"{count(receipts.sums(outcome).rows)} {outcome}" for outcome in outcomes)
    return Proof(name, True, f"{terms} = {plural(receipts.num_rows, 'row')} read; token counts equal the plan's")


def prove_integrity(record: Record, plan: Plan) -> Proof:
    """Prepared rows, receipts and ledger match the hashes that were written with them."""
    name = "The prepared data, receipts and ledger are intact"
    data, receipts = check_data(plan), check_receipts(record.run, plan)
    ledger = check_ledger(record.run, most_ranks(record.run))
    unverified = data.unverified + receipts.unverified
    if ledger.num_unhashed:
        unverified.append(f"{plural(ledger.num_unhashed, 'ledger line')} of an earlier version without checksums")
    note = f"; not verified: {'; '.join(unverified)}" if unverified else ""
    if faults := data.faults + receipts.faults + ledger.faults:
        shown = faults[:MAX_SHOWN] + ([f"{len(faults) - MAX_SHOWN} more"] if len(faults) > MAX_SHOWN else [])
        remedy = "restore the files from a backup, or train again: `tunesmith train` prepares damaged data again"
        return Proof(name, False, f"{'; '.join(shown)}{note}. {remedy}")
    if num_files := data.num_files + receipts.num_files:
        counts = f"SHA-256 of {plural(num_files, 'file')}, {plural(ledger.num_lines, 'ledger line')}"
        return Proof(name, True, f"{counts}{note}")
    if num_lines := ledger.num_lines + ledger.num_unhashed:  # of an earlier version, and the cache was deleted
        return Proof(name, True, f"{plural(num_lines, 'ledger line')} can be read{note}")
    return Proof(name, None, note.removeprefix("; ") or "nothing is prepared yet")


def prove_supervision(record: Record, plan: Plan) -> Proof:
    """The training rows and every step have supervised tokens."""
    name = "Every step has supervised tokens"
    planned, total = plan.data.train.supervised_tokens, plan.data.train.num_tokens
    share = f", {100 * planned / total:.1f}% of {count(total)}" if total else ""
    empty = [event.step for event in record.steps if not event.supervised_tokens]
    if planned <= 0:
        return Proof(name, False, "the training rows have no supervised tokens")
    if empty:
        return Proof(name, False, f"{plural(len(empty), 'step')} without supervised tokens, first: step {empty[0]}")
    steps = f"; at least one in each of {plural(len(record.steps), 'step')}" if record.steps else ""
    return Proof(name, True, f"{count(planned)} supervised tokens per epoch{share}{steps}")


def _counts(receipts: Receipts, plan: Plan) -> list[tuple[str, int, int]]:
    """Totals that receipts and plan both have: (name, in the receipts, in the plan)."""
    data = plan.data
    counts = [
        ("rejected", receipts.sums("rejected").rows, data.num_rejected),
        ("dropped", receipts.sums("dropped").rows, data.num_dropped),
        ("truncated", receipts.sums("truncated").rows, data.num_truncated),
        ("unselected", receipts.sums("unselected").rows, data.num_unselected),
        ("duplicates", receipts.num_duplicates, data.num_duplicates),
    ]
    splits: list[tuple[str, SplitFacts | None]] = [("train", data.train), ("validation", data.validation)]
    for split, facts in splits:
        sums = receipts.sums(*TRAINED, split=split)
        planned = (facts.num_rows, facts.num_tokens, facts.supervised_tokens) if facts else (0, 0, 0)
        what = (f"{split} rows", f"{split} tokens", f"supervised {split} tokens")
        counts += list(zip(what, (sums.rows, sums.tokens, sums.supervised_tokens), planned, strict=True))
    return counts
