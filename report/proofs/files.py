"""Proofs about files: checkpoints and export are intact and belong to this plan."""

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
    """Every checkpoint matches the hashes of its manifest."""
    name = "Every checkpoint is intact"
    paths = checkpoints_of(record.run)
    if not paths:
        finished = record.is_finished
        return Proof(name, False if finished else None, "no checkpoint" + ("" if finished else " yet"))
    # A running process may delete an old checkpoint while it is verified: a deleted one is no fault.
    faults = [(path, fault) for path in paths if (fault := verify(path)) and path.is_dir()]
    corrupt = sorted(path.name for path in record.run.checkpoints.iterdir() if ".corrupt" in path.name)
    discarded = f"; discarded as damaged: {', '.join(corrupt)}" if corrupt else ""
    if faults:
        return Proof(name, False, "; ".join(f"{path.name}: {fault}" for path, fault in faults) + discarded)
    num_bytes = sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())
    names = ("step " if len(paths) == 1 else "steps ") + ", ".join(str(step_of(path)) for path in paths)
    return Proof(name, True, f"SHA-256 of {size(num_bytes)} in {plural(len(paths), 'checkpoint')} ({names}){discarded}")


def prove_belonging(record: Record, plan: Plan) -> Proof:
    """Checkpoints have the model, data, method and seed of the plan, and the ledger's token count at their step."""
    name = "Checkpoints match the plan and the ledger"
    paths = checkpoints_of(record.run)
    if not paths:
        return Proof(name, None, "no checkpoint yet")
    expected = {
        "model": plan.model.fingerprint,
        "data": plan.data.fingerprint,
        "method": plan.recipe.method.model_dump_json(),
        "seed": str(plan.recipe.seed),
        "global_batch_size": str(plan.recipe.optimization.global_batch_size),
    }
    for path in paths:
        content = read_object(path / "state.json")
        fingerprints, state = content.get("fingerprints", {}), content.get("state", {})
        if other := [key for key, value in expected.items() if fingerprints.get(key) != value]:
            return Proof(name, False, f"{path.name} was written for a different {', '.join(other)}")
        if state.get("step") != step_of(path):
            return Proof(name, False, f"{path.name} contains the state of step {state.get('step')}")
        fed = sum(
            e.supervised_tokens for step, entries in record.ledger.items() if step <= state["step"] for e in entries
        )
        if state.get("supervised_tokens") != fed:
            recorded = f"{count(state.get('supervised_tokens'))} supervised tokens up to its step"
            return Proof(name, False, f"{path.name} records {recorded}, the ledger {count(fed)}")
    return Proof(name, True, f"{', '.join(expected)} and token counts agree in {plural(len(paths), 'checkpoint')}")


def prove_movement(record: Record) -> Proof:
    """The weights differ from the initial weights."""
    name = "The weights changed"
    if not record.steps:
        return Proof(name, None, "no training steps yet")
    checks: list[tuple[bool, str]] = []
    paths = [path for path in checkpoints_of(record.run) if step_of(path)]
    hashes = {path.name: digest for path in paths if (digest := _weights_hash(path))}
    if len(hashes) > 1:
        first, *_, last = hashes
        changed = hashes[first] != hashes[last]
        checks.append((changed, f"the weights of {first} and {last} {'differ' if changed else 'are identical'}"))
    if paths and (adapters := _nonzero_adapters(paths[-1] / "model.safetensors")):
        num_nonzero, total = adapters
        text = f"{num_nonzero} of {total} adapter outputs (lora_B, initialized to zero) are nonzero"
        checks.append((num_nonzero == total, text))
    before, after = (finite(record.loss(when)) for when in ("before", "after"))
    if before is not None and after is not None:
        checks.append((before != after, f"the held-out loss changed by {change(after - before)}"))
    if not checks:
        return Proof(name, None, "requires a checkpoint or an evaluation after training")
    return Proof(name, all(changed for changed, _ in checks), "; ".join(text for _, text in checks))


def prove_gate(record: Record) -> Proof:
    """The export, loaded with transformers and peft, reproduced the logits and answers of the trained model."""
    name = "The export reproduces the trained model"
    rejected = record.run.root / f"{record.run.export.name}.refused"
    export = record.exports[-1] if record.exports else None
    if export is None:
        if rejected.is_dir():
            return Proof(name, False, f"{read_object(rejected / 'gate.json').get('fault') or 'rejected'}: {rejected}")
        return Proof(name, False if record.is_finished else None, "no export yet")
    gate: dict[str, Any] = export.gate or {}
    measure = gate_measure(gate)
    if measure.value is None or measure.limit is None:
        return Proof(name, False, "the gate recorded no logit difference")
    ties = f", except {plural(gate['greedy_ties'], 'tie')}" if gate.get("greedy_ties") else ""
    answers = "identical greedy answers" if gate.get("greedy_equal") or ties else "different greedy answers"
    evidence = f"{measure} over {plural(whole(gate.get('rows')), 'row')}; {answers}{ties}"
    return Proof(name, bool(gate.get("passed")) and measure.holds, evidence)


def prove_export(record: Record) -> Proof:
    """The export matches the hashes of its manifest, written when it passed the gate."""
    name = "The export is intact"
    if not record.run.export.is_dir():
        return Proof(name, False if record.is_finished else None, "no export yet")
    if fault := verify(record.run.export):
        return Proof(name, False, fault)
    files = read_manifest(record.run.export)["files"]
    total = size(sum(facts["num_bytes"] for facts in files.values()))
    return Proof(name, True, f"SHA-256 of {plural(len(files), 'file')}, {total}")


def checkpoints_of(run: RunDir) -> list[Path]:
    """Return the directories with the name of a checkpoint, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    paths = [path for path in run.checkpoints.iterdir() if path.is_dir() and step_of(path) is not None]
    return sorted(paths, key=lambda path: step_of(path) or 0)


def _weights_hash(path: Path) -> str | None:
    try:
        return read_manifest(path)["files"]["model.safetensors"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _nonzero_adapters(path: Path) -> tuple[int, int] | None:
    """Numbers of nonzero and of all lora_B tensors in a safetensors file; None if it cannot be read or has none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            ends = [facts["data_offsets"] for name, facts in header.items() if "lora_B" in name]
            num_nonzero = 0
            for start, stop in ends:
                file.seek(8 + length + start)
                num_nonzero += any(file.read(stop - start))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return None
    return (num_nonzero, len(ends)) if ends else None
