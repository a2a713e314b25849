"""Proofs about files: checkpoints and export, and that they belong to this plan."""

import json
from pathlib import Path
from typing import Any

from tunesmith.configs.plan import Plan
from tunesmith.report.gate import gate_measure
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.record import Record, read_object
from tunesmith.report.wording import change, count, finite, plural, size, whole
from tunesmith.rundir.commit import read_manifest, verify
from tunesmith.rundir.paths import RunDir, step_of


def prove_checkpoints(record: Record) -> Proof:
    """Every byte of every checkpoint is as it was written."""
    name = "Every checkpoint is whole"
    paths = checkpoints_of(record.run)
    if not paths:
        ended = record.is_finished
        return Proof(name, False if ended else None, "there is none" + ("" if ended else " yet"))
    # A running process may delete an old one while it is read here: what is gone is no fault.
    faults = [(path, fault) for path in paths if (fault := verify(path)) and path.is_dir()]
    aside = sorted(path.name for path in record.run.checkpoints.iterdir() if ".corrupt" in path.name)
    set_aside = f"; set aside as damaged: {', '.join(aside)}" if aside else ""
    if faults:
        return Proof(name, False, "; ".join(f"{path.name}: {fault}" for path, fault in faults) + set_aside)
    num_bytes = sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())
    names = ("step " if len(paths) == 1 else "steps ") + ", ".join(str(step_of(path)) for path in paths)
    return Proof(name, True, f"SHA-256 of {size(num_bytes)} in {plural(len(paths), 'checkpoint')} ({names}){set_aside}")


def prove_belonging(record: Record, plan: Plan) -> Proof:
    """Checkpoints were written for this model, data, method and seed, at the step and token count that they claim."""
    name = "Checkpoints belong to this plan and to this ledger"
    paths = checkpoints_of(record.run)
    if not paths:
        return Proof(name, None, "there is no checkpoint yet")
    expected = {
        "model": plan.model.fingerprint,
        "data": plan.data.fingerprint,
        "method": plan.recipe.method.model_dump_json(),
        "seed": str(plan.recipe.seed),
        "global_batch_size": str(plan.recipe.optimization.global_batch_size),
    }
    for path in paths:
        content = read_object(path / "state.json")
        found, state = content.get("fingerprints", {}), content.get("state", {})
        if other := [key for key, value in expected.items() if found.get(key) != value]:
            return Proof(name, False, f"{path.name} was written for another {', '.join(other)}")
        if state.get("step") != step_of(path):
            return Proof(name, False, f"{path.name} holds the state of step {state.get('step')}")
        fed = sum(
            e.supervised_tokens for step, entries in record.ledger.items() if step <= state["step"] for e in entries
        )
        if state.get("supervised_tokens") != fed:
            told = f"{count(state.get('supervised_tokens'))} supervised tokens, the ledger {count(fed)}"
            return Proof(name, False, f"{path.name} counts {told} up to its step")
    return Proof(name, True, f"{', '.join(expected)} and token counts agree in {plural(len(paths), 'checkpoint')}")


def prove_movement(record: Record) -> Proof:
    """The weights are not those that training began with."""
    name = "The weights moved"
    if not record.steps:
        return Proof(name, None, "no step was made yet")
    told: list[tuple[bool, str]] = []
    paths = [path for path in checkpoints_of(record.run) if step_of(path)]
    hashes = {path.name: digest for path in paths if (digest := _weights_hash(path))}
    if len(hashes) > 1:
        first, *_, last = hashes
        moved = hashes[first] != hashes[last]
        told.append((moved, f"the weights of {first} and {last} are {'different' if moved else 'the same'}"))
    if paths and (adapters := _nonzero_adapters(paths[-1] / "model.safetensors")):
        moved, total = adapters
        told.append((moved == total, f"{moved} of {total} adapter outputs (lora_B, zero at the start) are not zero"))
    before, after = (finite(record.loss(when)) for when in ("before", "after"))
    if before is not None and after is not None:
        told.append((before != after, f"the held-out loss changed by {change(after - before)}"))
    if not told:
        return Proof(name, None, "no checkpoint, and no evaluation after training, to tell by")
    return Proof(name, all(moved for moved, _ in told), "; ".join(words for _, words in told))


def prove_gate(record: Record) -> Proof:
    """The exported files, read back by plain libraries, gave the trained model's logits and answers."""
    name = "The export computes what the trained model computes"
    refused = record.run.root / f"{record.run.export.name}.refused"
    export = record.exports[-1] if record.exports else None
    if export is None:
        if refused.is_dir():
            return Proof(name, False, f"{read_object(refused / 'gate.json').get('fault') or 'refused'}: {refused}")
        return Proof(name, False if record.is_finished else None, "there is no export yet")
    gate: dict[str, Any] = export.gate or {}
    measure = gate_measure(gate)
    if measure.value is None or measure.limit is None:
        return Proof(name, False, "the gate recorded no logit difference")
    ties = f", but for {plural(gate['greedy_ties'], 'tie')}" if gate.get("greedy_ties") else ""
    answers = "the same greedy answers" if gate.get("greedy_equal") or ties else "other greedy answers"
    evidence = f"{measure} over {plural(whole(gate.get('rows')), 'row')}; {answers}{ties}"
    return Proof(name, bool(gate.get("passed")) and measure.holds, evidence)


def prove_export(record: Record) -> Proof:
    """Every byte of the export is as the gate saw it."""
    name = "The export is whole"
    if not record.run.export.is_dir():
        return Proof(name, False if record.is_finished else None, "there is no export yet")
    if fault := verify(record.run.export):
        return Proof(name, False, fault)
    files = read_manifest(record.run.export)["files"]
    total = size(sum(facts["num_bytes"] for facts in files.values()))
    return Proof(name, True, f"SHA-256 of {plural(len(files), 'file')}, {total}")


def checkpoints_of(run: RunDir) -> list[Path]:
    """Directories with a checkpoint's name, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    found = [path for path in run.checkpoints.iterdir() if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)


def _weights_hash(path: Path) -> str | None:
    try:
        return read_manifest(path)["files"]["model.safetensors"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _nonzero_adapters(path: Path) -> tuple[int, int] | None:
    """How many lora_B tensors of a safetensors file hold a byte that is not zero, and how many there are."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            ends = [facts["data_offsets"] for name, facts in header.items() if "lora_B" in name]
            moved = 0
            for start, stop in ends:
                file.seek(8 + length + start)
                moved += any(file.read(stop - start))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return None
    return (moved, len(ends)) if ends else None
