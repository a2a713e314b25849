"""Proofs about the training data: every step once, the prescribed samples, no row skipped or repeated in an epoch."""

from collections import Counter
from pathlib import Path

import numpy as np

from tunesmith.configs.plan import Plan
from tunesmith.data.index.order import order_of
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.errors import RunFault, TunesmithError
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.record import Record
from tunesmith.report.wording import count, plural
from tunesmith.rundir.ledger import LedgerEntry


def prove_steps(record: Record) -> Proof:
    """Events and ledger contain the steps 1 to N, each once."""
    name = "Every step is recorded once in the log and the ledger"
    if not record.steps:
        return Proof(name, None, "no training steps yet")
    steps = [event.step for event in record.steps]
    last = steps[-1]
    faults = _differences(steps, last, "events.jsonl") + _differences(
        [step for step in record.ledger if step <= last], last, "the ledger"
    )
    beyond = sorted(step for step in record.ledger if step > last)
    if beyond and record.is_finished:
        faults.append(f"the ledger contains step {beyond[0]}, after the last step {last}")
    if record.outcome == "done" and record.plan and last != record.plan.batch.total_steps:
        faults.append(f"the run is recorded as done after {last} of {record.plan.batch.total_steps} steps")
    if faults:
        return Proof(name, False, "; ".join(faults))
    num_lost = sum(attempt.num_lost for attempt in record.attempts)
    note = f"; {plural(num_lost, 'step')} repeated after a crash, the later attempt counts" if num_lost else ""
    return Proof(name, True, f"steps 1 to {count(last)} in both{note}")


def prove_samples(record: Record, plan: Plan) -> Proof:
    """Each rank trained on exactly the samples that seed, epoch and position prescribe for each step."""
    name = "Every step used the samples prescribed by the seed"
    fed = steps_fed(record)
    if not fed:
        return Proof(name, None, "no training steps yet")
    num_samples, order, batch = plan.data.samples_per_epoch, order_of(plan.recipe.seed, plan.data), _batch(plan)
    for step, entries in fed.items():
        first = (step - 1) * batch
        last = min(first + batch, num_samples * plan.recipe.optimization.epochs)
        samples = order.samples(first, last).tolist()
        for rank, entry in enumerate(entries):
            if list(entry.samples) != samples[rank :: len(entries)]:
                return Proof(name, False, _first_difference(step, rank, entry, samples[rank :: len(entries)]))
            if _passes(entry) != _passes(entries[0]):
                return Proof(name, False, f"step {step}: ranks 0 and {rank} divided it into passes of another size")
    total = sum(len(entry.samples) for entries in fed.values() for entry in entries)
    return Proof(
        name,
        True,
        f"{count(total)} samples in {plural(len(fed), 'step')}, in the order of seed {plan.recipe.seed}, "
        f"{plural(num_samples, 'sample')} per epoch{_halvings(fed)}",
    )


def prove_epochs(record: Record, plan: Plan) -> Proof:
    """Every epoch contains every sample and, according to the index, every row exactly once."""
    name = "No row was skipped or repeated within an epoch"
    fed = steps_fed(record)
    if not fed:
        return Proof(name, None, "no training steps yet")
    index = open_index(plan)
    in_order = [sample for entries in fed.values() for sample in in_positions(entries)]
    evidence, passes = [], "pass" if plan.data.datasets else "epoch"
    for dataset, samples in _sample_ranges(plan):
        used = [sample for sample in in_order if sample in samples]
        label = f"{dataset}: " if dataset else ""
        if fault := _pass_fault(used, samples, passes):
            return Proof(name, False, f"{label}{fault}")
        evidence.append(f"{label}{_completed(len(used), len(samples), passes)}")
    evidence = "; ".join(evidence)
    if index is None:
        return Proof(name, True, f"{evidence}; row ids not checked, since the token index is missing")
    if fault := _rows_fault(fed, index):
        return Proof(name, False, fault)
    rows = {row for entries in fed.values() for entry in entries for row in entry.rows}
    return Proof(name, True, f"{evidence}: {plural(len(rows), 'row')}, each once per use of its sample")


def _sample_ranges(plan: Plan) -> list[tuple[str, range]]:
    """The samples that are used in passes over all of them: of each data set of a mixture, otherwise all together."""
    if plan.data.epoch_samples is None:
        return [("", range(plan.data.train.num_samples))]
    return [(d.name, range(d.first_sample, d.first_sample + d.num_samples)) for d in plan.data.mixed]


def _pass_fault(used: list[int], samples: range, noun: str) -> str | None:
    for number, start in enumerate(range(0, len(used), len(samples)), start=1):
        part = used[start : start + len(samples)]
        times = Counter(part)
        if repeated := [sample for sample, uses in times.items() if uses > 1]:
            return f"{noun} {number}: sample {repeated[0]} was used {times[repeated[0]]} times"
        if len(part) == len(samples) and (skipped := set(samples) - times.keys()):
            return f"{noun} {number}: {plural(len(skipped), 'sample')} skipped, first: {min(skipped)}"
    return None


def _completed(num_used: int, num_samples: int, noun: str) -> str:
    whole, rest = divmod(num_used, num_samples)
    if not whole:
        return f"{rest} of {plural(num_samples, 'sample')} of the first {noun}"
    name = f"{count(whole)} complete {noun}{'' if whole == 1 else 'es' if noun == 'pass' else 's'}"
    return f"{name} of {plural(num_samples, 'sample')}" + (f" and {plural(rest, 'sample')} of the next" if rest else "")


def prove_tokens(record: Record, plan: Plan) -> Proof:
    """The supervised tokens of each step equal those of the index; without the index, those of each epoch."""
    name = "The trained supervised tokens match the prepared data"
    fed = steps_fed(record)
    if not fed:
        return Proof(name, None, "no training steps yet")
    ledger = {step: sum(entry.supervised_tokens for entry in entries) for step, entries in fed.items()}
    for event in record.steps:
        if event.step in ledger and event.supervised_tokens != ledger[event.step]:
            counts = f"{event.supervised_tokens} in events.jsonl, {ledger[event.step]} in the ledger"
            return Proof(name, False, f"step {event.step}: {counts}")
    total, index = sum(ledger.values()), open_index(plan)
    if index is not None:
        if fault := _tokens_fault(fed, index):
            return Proof(name, False, fault)
        return Proof(
            name,
            True,
            f"{count(total)} supervised tokens, equal to the index in every one of {plural(len(fed), 'step')}",
        )
    epochs = sum(len(entry.samples) for entries in fed.values() for entry in entries) / plan.data.train.num_samples
    planned = plan.data.train.supervised_tokens
    if epochs == int(epochs) and plan.data.epoch_samples is None:
        equal = total == planned * int(epochs)
        return Proof(
            name, equal, f"{count(total)} in {plural(int(epochs), 'epoch')}, planned {count(planned)} per epoch"
        )
    return Proof(
        name,
        None,
        "the token index is missing, and without it no total is known"
        if plan.data.epoch_samples is not None
        else "the token index is missing and the run ended within an epoch, so there is no total to compare with",
    )


def _batch(plan: Plan) -> int:
    return plan.recipe.optimization.global_batch_size


def open_index(plan: Plan) -> TokenIndex | None:
    """Open the token index of the training rows; None if it is missing from the cache or has been replaced."""
    try:
        index = TokenIndex.open(Path(plan.data.train.index))
    except TunesmithError:
        return None
    return index if index.num_samples == plan.data.train.num_samples else None


def steps_fed(record: Record) -> dict[int, list[LedgerEntry]]:
    """The ledger up to the last completed step: an interrupted step did not update the weights."""
    last = record.steps[-1].step if record.steps else 0
    return {step: entries for step, entries in record.ledger.items() if step <= last}


def _passes(entry: LedgerEntry) -> tuple[int | None, int]:
    return entry.micro_batch_size, entry.passes_per_sequence


def _halvings(fed: dict[int, list[LedgerEntry]]) -> str:
    """Where the size of the passes changed, which is after memory ran out; empty if nowhere."""
    changes, before = "", None
    for step, entries in fed.items():
        size, passes = now = _passes(entries[0])
        if size is not None and before not in (None, now):
            of = f"1/{passes} of a sample" if passes > 1 else plural(size, "sample")
            changes += f"; from step {step} on in passes of {of}"
        before = now if size is not None else before
    return changes


def in_positions(entries: list[LedgerEntry]) -> list[int]:
    """Samples of a step in the order of their positions: rank r has every world_size-th, starting at r."""
    samples = [0] * sum(len(entry.samples) for entry in entries)
    if [len(e.samples) for e in entries] != [len(samples[rank :: len(entries)]) for rank in range(len(entries))]:
        return [sample for entry in entries for sample in entry.samples]
    for rank, entry in enumerate(entries):
        samples[rank :: len(entries)] = entry.samples
    return samples


def _tokens_fault(fed: dict[int, list[LedgerEntry]], index: TokenIndex) -> str | None:
    for step, entries in fed.items():
        samples = np.array([s for e in entries for s in e.samples if 0 <= s < index.num_samples], np.int64)
        try:
            expected = int(index.sample_supervised[samples].sum())
        except RunFault as error:
            return error.what
        if expected != (in_ledger := sum(entry.supervised_tokens for entry in entries)):
            return f"step {step}: {in_ledger} in the ledger, {expected} in the index"
    return None


def _rows_fault(fed: dict[int, list[LedgerEntry]], index: TokenIndex) -> str | None:
    for step, entries in fed.items():
        for rank, entry in enumerate(entries):
            if any(not 0 <= sample < index.num_samples for sample in entry.samples):
                return f"step {step}, rank {rank}: a sample that is not in the index"
            try:
                rows = [row for sample in entry.samples for row in index.sample(sample).rows]
            except RunFault as error:
                return error.what
            if rows != list(entry.rows):
                return f"step {step}, rank {rank}: the rows in the ledger do not match its samples"
    return None


def _differences(steps: list[int], last: int, where: str) -> list[str]:
    times = Counter(steps)
    missing = [step for step in range(1, last + 1) if step not in times]
    repeated = [step for step, number in times.items() if number > 1]
    faults = [f"{plural(len(missing), 'step')} missing from {where}, first: {missing[0]}"] if missing else []
    return faults + ([f"{where} contains step {repeated[0]} {times[repeated[0]]} times"] if repeated else [])


def _first_difference(step: int, rank: int, entry: LedgerEntry, expected: list[int]) -> str:
    index = next((i for i, (a, b) in enumerate(zip(entry.samples, expected, strict=False)) if a != b), None)
    if index is None:
        return f"step {step}, rank {rank}: {len(entry.samples)} samples used, {len(expected)} prescribed"
    return f"step {step}, rank {rank}: sample {entry.samples[index]} used, {expected[index]} prescribed"
