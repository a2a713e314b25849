"""Proofs of a run, from its run directory alone: no model is loaded."""

from tunesmith.report.comparison import compare
from tunesmith.report.proofs.files import (
    prove_belonging,
    prove_checkpoints,
    prove_export,
    prove_gate,
    prove_movement,
)
from tunesmith.report.proofs.ledger import prove_epochs, prove_samples, prove_steps, prove_tokens
from tunesmith.report.proofs.mixture import prove_mixture
from tunesmith.report.proofs.numbers import prove_finite, prove_loss, prove_rate
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.proofs.rows import prove_integrity, prove_receipts, prove_supervision
from tunesmith.report.receipts import Receipts, read_receipts
from tunesmith.report.record import Record, read_record
from tunesmith.rundir.paths import RunDir

__all__ = ["Proof", "prove", "prove_record"]


def prove(run: RunDir) -> list[Proof]:
    """Return all proofs, in the order of a run's stages. Hashes every byte of the prepared data, the
    receipts, the checkpoints and the export."""
    return prove_record(read_record(run), read_receipts(run))


def prove_record(record: Record, receipts: Receipts) -> list[Proof]:
    plan = record.plan
    if plan is None:
        return [
            Proof("The plan is readable", False, str(record.plan_fault)),
            prove_checkpoints(record),
            prove_export(record),
        ]
    return [
        prove_integrity(record, plan),
        prove_receipts(receipts, plan),
        prove_supervision(record, plan),
        prove_steps(record),
        prove_samples(record, plan),
        prove_epochs(record, plan),
        *([] if plan.data.epoch_samples is None else [prove_mixture(record, plan)]),
        prove_tokens(record, plan),
        prove_finite(record),
        prove_rate(record, plan),
        prove_movement(record),
        prove_loss(record, plan, compare(record)),
        prove_checkpoints(record),
        prove_belonging(record, plan),
        prove_gate(record),
        prove_export(record),
    ]
