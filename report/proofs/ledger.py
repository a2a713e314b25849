"""Proofs of what was fed: every step once, exactly the prescribed samples, no row skipped or repeated in an epoch."""

from collections import Counter
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.index.order import sample_at
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.errors import TunesmithError
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.record import Record
from tunesmith.report.wording import count, plural
from tunesmith.rundir.ledger import LedgerEntry


def prove_steps(record: Record) -> Proof:
    """Events and ledger hold the steps 1 to N, each once."""
    name = "Every step stands in the log and in the ledger, once"
    if not record.steps:
        return Proof(name, None, "no step was made yet")
    steps = [event.step for event in record.steps]
    last = steps[-1]
    faults = _differences(steps, last, "events.jsonl") + _differences(
        [step for step in record.ledger if step <= last], last, "the ledger"
    )
    beyond = sorted(step for step in record.ledger if step > last)
    if beyond and record.is_finished:
        faults.append(f"the ledger holds step {beyond[0]} after the last one, {last}")
    if record.outcome == "done" and record.plan and last != record.plan.batch.total_steps:
        faults.append(f"the run ended as done after {last} of {record.plan.batch.total_steps} steps")
    if faults:
        return Proof(name, False, "; ".join(faults))
    again = sum(attempt.num_lost for attempt in record.attempts)
    redone = f"; {plural(again, 'step')} made again after a crash, the later attempt counts" if again else ""
    return Proof(name, True, f"steps 1 to {count(last)} in both{redone}")


def prove_samples(record: Record, plan: Plan) -> Proof:
    """Each step was fed exactly the samples that seed, epoch and position prescribe, each rank its share."""
    name = "Each step was fed the samples that the seed prescribes"
    fed = _fed(record)
    if not fed:
        return Proof(name, None, "no step was made yet")
    num_samples = plan.data.train.num_samples
    for step, entries in fed.items():
        wanted = prescribed(plan, step)
        for rank, entry in enumerate(entries):
            if list(entry.samples) != wanted[rank :: len(entries)]:
                return Proof(name, False, _first_difference(step, rank, entry, wanted[rank :: len(entries)]))
    total = sum(len(entry.samples) for entries in fed.values() for entry in entries)
    return Proof(
        name,
        True,
        f"{count(total)} samples in {plural(len(fed), 'step')}, in the order of seed {plan.recipe.seed} over "
        f"{plural(num_samples, 'sample')} an epoch",
    )


def prove_epochs(record: Record, plan: Plan) -> Proof:
    """Within an epoch every sample, and by the index every row, is fed once and none is left out."""
    name = "No row was skipped or repeated within an epoch"
    fed = _fed(record)
    if not fed:
        return Proof(name, None, "no step was made yet")
    num_samples, index = plan.data.train.num_samples, open_index(plan)
    in_order = [sample for entries in fed.values() for sample in _interleaved(entries)]
    for epoch, start in enumerate(range(0, len(in_order), num_samples), start=1):
        part = in_order[start : start + num_samples]
        times = Counter(part)
        if repeated := [sample for sample, number in times.items() if number > 1]:
            return Proof(name, False, f"epoch {epoch}: sample {repeated[0]} was fed {times[repeated[0]]} times")
        if len(part) == num_samples and (skipped := set(range(num_samples)) - times.keys()):
            return Proof(name, False, f"epoch {epoch}: {plural(len(skipped), 'sample')} skipped, first {min(skipped)}")
    whole, rest = divmod(len(in_order), num_samples)
    told = f"{plural(whole, 'whole epoch')} of {plural(num_samples, 'sample')}"
    if not whole:
        told = f"{rest} of {plural(num_samples, 'sample')} of the first epoch"
    elif rest:
        told += f" and {plural(rest, 'sample')} of the next"
    if index is None:
        return Proof(name, True, f"{told}; the prepared index is gone, so row ids were not compared with it")
    if fault := _rows_fault(fed, index):
        return Proof(name, False, fault)
    rows = {row for entries in fed.values() for entry in entries for row in entry.rows}
    return Proof(name, True, f"{told}: {plural(len(rows), 'row')}, each as often as its sample")


def prove_tokens(record: Record, plan: Plan) -> Proof:
    """The supervised tokens that were fed are those of the index, sample by sample or at least epoch by epoch."""
    name = "The supervised tokens fed are those that were prepared"
    fed = _fed(record)
    if not fed:
        return Proof(name, None, "no step was made yet")
    ledger = {step: sum(entry.supervised_tokens for entry in entries) for step, entries in fed.items()}
    for event in record.steps:
        if event.step in ledger and event.supervised_tokens != ledger[event.step]:
            told = f"{event.supervised_tokens} in events.jsonl, {ledger[event.step]} in the ledger"
            return Proof(name, False, f"step {event.step}: {told}")
    total, index = sum(ledger.values()), open_index(plan)
    if index is not None:
        for step, entries in fed.items():
            wanted = sum(int(index.sample_supervised[s]) for e in entries for s in e.samples if s < index.num_samples)
            if wanted != ledger[step]:
                return Proof(name, False, f"step {step}: the ledger says {ledger[step]}, the index {wanted}")
        return Proof(
            name, True, f"{count(total)} supervised tokens, equal to the index in each of {plural(len(fed), 'step')}"
        )
    epochs = sum(len(entry.samples) for entries in fed.values() for entry in entries) / plan.data.train.num_samples
    planned = plan.data.train.supervised_tokens
    if epochs == int(epochs):
        equal = total == planned * int(epochs)
        return Proof(
            name, equal, f"{count(total)} fed in {int(epochs)} epochs, the plan says {count(planned)} an epoch"
        )
    return Proof(
        name, None, "the prepared index is gone, and the run ended inside an epoch: there is no total to compare"
    )


def prescribed(plan: Plan, step: int) -> list[int]:
    """The samples of a step over all ranks, in the order of their positions (see data/index/loader.py)."""
    number, batch = plan.data.train.num_samples, plan.recipe.optimization.global_batch_size
    first, end = (step - 1) * batch, number * plan.recipe.optimization.epochs
    positions = range(first, min(first + batch, end))
    return [sample_at(plan.recipe.seed, p // number, p % number, number) for p in positions]


def open_index(plan: Plan) -> TokenIndex | None:
    """The prepared index of the training rows; None where it is gone (it lies in the cache) or is another one now."""
    try:
        index = TokenIndex.open(Path(plan.data.train.index))
    except TunesmithError:
        return None
    return index if index.num_samples == plan.data.train.num_samples else None


def _fed(record: Record) -> dict[int, list[LedgerEntry]]:
    """The ledger up to the last step that was made: a step that was fed but killed is not part of the weights."""
    last = record.steps[-1].step if record.steps else 0
    return {step: entries for step, entries in record.ledger.items() if step <= last}


def _interleaved(entries: list[LedgerEntry]) -> list[int]:
    """The samples of a step in the order of their positions: rank r holds every world_size-th from r on."""
    samples = [0] * sum(len(entry.samples) for entry in entries)
    if [len(e.samples) for e in entries] != [len(samples[rank :: len(entries)]) for rank in range(len(entries))]:
        return [sample for entry in entries for sample in entry.samples]
    for rank, entry in enumerate(entries):
        samples[rank :: len(entries)] = entry.samples
    return samples


def _rows_fault(fed: dict[int, list[LedgerEntry]], index: TokenIndex) -> str | None:
    for step, entries in fed.items():
        for rank, entry in enumerate(entries):
            if any(not 0 <= sample < index.num_samples for sample in entry.samples):
                return f"step {step}, rank {rank}: a sample that the index does not have"
            rows = [row for sample in entry.samples for row in index.sample(sample).rows]
            if rows != list(entry.rows):
                return f"step {step}, rank {rank}: the ledger's rows are not those of its samples"
    return None


def _differences(steps: list[int], last: int, where: str) -> list[str]:
    times = Counter(steps)
    missing = [step for step in range(1, last + 1) if step not in times]
    twice = [step for step, number in times.items() if number > 1]
    faults = [f"{where} lacks {plural(len(missing), 'step')}, first {missing[0]}"] if missing else []
    return faults + ([f"{where} holds step {twice[0]} {times[twice[0]]} times"] if twice else [])


def _first_difference(step: int, rank: int, entry: LedgerEntry, wanted: list[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(entry.samples, wanted, strict=False)) if a != b), None)
    if place is None:
        return f"step {step}, rank {rank}: {len(entry.samples)} samples were fed, {len(wanted)} are prescribed"
    return f"step {step}, rank {rank}: sample {entry.samples[place]} was fed where {wanted[place]} is prescribed"
