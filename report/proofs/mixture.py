"""The proof that a mixture kept its proportions, from the samples in the ledger."""

from tunesmith.configs.plan import Plan
from tunesmith.report.proofs.ledger import steps_fed
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.record import Record
from tunesmith.report.wording import count, plural


def prove_mixture(record: Record, plan: Plan) -> Proof:
    """After every step, and so at every checkpoint, each data set has its planned share of the samples so far, to
    within one sample."""
    name = "The data sets kept their proportions"
    fed, length = steps_fed(record), plan.data.samples_per_epoch
    if not fed:
        return Proof(name, None, "no training steps yet")
    planned = {each.name: each.samples_per_epoch for each in plan.data.mixed}
    used, total, largest = dict.fromkeys(planned, 0), 0, (0, "", 0)
    for step, entries in fed.items():
        for rank, entry in enumerate(entries):
            counted = plan.data.samples_by_dataset(list(entry.samples)) or {}
            if entry.datasets is not None and dict(entry.datasets) != counted:
                return Proof(name, False, f"step {step}, rank {rank}: the counts do not match the samples of the entry")
            used = {dataset: number + counted[dataset] for dataset, number in used.items()}
            total += len(entry.samples)
        for dataset, number in used.items():
            # In units of 1 / length samples, so that the comparison is exact.
            deviation = abs(number * length - total * planned[dataset])
            if deviation >= length:
                expected = total * planned[dataset] / length
                text = (
                    f"step {step}: {count(number)} of {count(total)} samples are of {dataset}, planned {expected:.1f}"
                )
                return Proof(name, False, text)
            largest = max(largest, (deviation, dataset, step))
    shares = ", ".join(f"{dataset} {count(number)} ({number / total:.2%})" for dataset, number in used.items())
    deviation, dataset, step = largest
    where = f" ({dataset}, step {step})" if deviation else ""
    saved = f", {plural(len(record.checkpoints), 'checkpoint')} among them" if record.checkpoints else ""
    return Proof(
        name,
        True,
        f"{shares} of {plural(total, 'sample')}; largest deviation from the plan after any of "
        f"{plural(len(fed), 'step')}{saved}: {deviation / length:.2f} samples{where}",
    )
