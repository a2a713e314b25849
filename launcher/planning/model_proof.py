"""The model proof of a plan: cached findings, or those of a child process that loads torch."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith import __version__
from tunesmith.configs.plan import Choice, ModelProof, Plan
from tunesmith.errors import InputError

MODULE = "tunesmith.modeling.proof"
TIMEOUT_S = 1800.0
_SCHEMA = 2


def with_proof(plan: Plan, cache: Path) -> Plan:
    """Return the plan with the model proof. Errors as of `prove_model`."""
    proven = plan.model_copy(update={"model": plan.model.model_copy(update={"proof": prove_model(plan, cache)})})
    choice = proof_choice(proven)
    return proven if choice is None else proven.model_copy(update={"choices": [*proven.choices, choice]})


def prove_model(plan: Plan, cache: Path) -> ModelProof | None:
    """Return what the proof found about the plan's model; None for tasks without one, and if torch is not installed
    here: the worker then compares before the first step. Findings are cached.

    InputError with the numbers if no path equals the model's own forward, or the model cannot be run.
    """
    if plan.recipe.task_facts.model != "causal":
        return None
    path = cache / "proofs" / f"{proof_key(plan)}.json"
    findings = _read(path)
    if findings is None:
        if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
            return None
        # Computed in fp32 on the CPU whatever the run's precision, device and method: one computation for all of them.
        shared = cache / "proofs" / f"{shared_key(plan)}.json"
        findings = _read(shared) or _compute(Path(plan.model.directory))
        _write(shared, findings)
        _write(path, findings)
    return _accepted(findings, plan)


def proof_key(plan: Plan) -> str:
    """Return the cache key of the plan's findings, SHA-256: everything in `shared_key`, and the run's precision,
    device and method."""
    compute = plan.compute
    return _hash([shared_key(plan), compute.device, compute.precision, plan.recipe.method.kind])


def shared_key(plan: Plan) -> str:
    """Return the cache key of the computation, SHA-256: the configuration and the versions, which include those of
    packed attention here and of transformers' attention interface."""
    versions = [__version__, *map(_version, ("torch", "transformers", "peft"))]
    config = (Path(plan.model.directory) / "config.json").read_bytes()
    return _hash([str(_SCHEMA), hashlib.sha256(config).hexdigest(), *versions])


def _hash(facts: list[str]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def proof_choice(plan: Plan) -> Choice | None:
    """Return the `model proof` line of the plan; None for tasks without one."""
    if plan.recipe.task_facts.model != "causal":
        return None
    proof = plan.model.proof
    if proof is None:
        reason = "torch is not installed here: the worker compares with transformers before the first step"
        return Choice(key="model proof", value="pending", reason=reason)
    reasons = [f"equal to transformers' own forward: {_largest(proof)}"]
    reasons += [f"{c.name}: {_numbers(c.difference, c.limit, c.reason)}" for c in proof.comparisons if not c.holds]
    if not proof.packing:
        lengths = "similar lengths, padded" if proof.padding else "the same length: padding changes the results"
        reasons.append(f"rows go through the model unpacked, with its own attention, in batches of {lengths}")
    if proof.cut:
        reasons.append(f"compared in fp32 on a part of the model: {', '.join(proof.cut)}")
    value = f"{'packed' if proof.packing else 'unpacked'}, {'fused loss' if proof.loss == 'fused' else 'own logits'}"
    return Choice(key="model proof", value=value, reason="; ".join(reasons))


def _largest(proof: ModelProof) -> str:
    """The comparison that is closest to its limit among those that hold."""
    held = [c for c in proof.comparisons if c.holds and c.difference is not None]
    worst = max(held, key=lambda c: (c.difference or 0.0) / c.limit, default=None)
    return "no comparison" if worst is None else f"{worst.name}: {_numbers(worst.difference, worst.limit, None)}"


def _numbers(difference: float | None, limit: float, reason: str | None) -> str:
    if difference is None:
        return reason or "not finite"
    return f"relative difference {difference:.1e}, limit {limit:.1e}"


def _accepted(findings: dict[str, Any], plan: Plan) -> ModelProof:
    """The findings as a section of the plan. InputError if there is no path to train on."""
    where = str(Path(plan.model.directory) / "config.json")
    if error := findings.get("error"):
        raise InputError(error["what"], where=error["where"], remedy=error["remedy"])
    if fault := findings.get("fault"):
        raise InputError(
            f"the model cannot be compared with transformers' own forward: {fault}",
            where=where,
            remedy="check that plain transformers loads and runs it; a newer version may support its class",
        )
    if findings.get("loss") is None:
        failed = [c for c in findings["comparisons"] if not c["holds"]]
        numbers = "; ".join(f"{c['name']}: {_numbers(c['difference'], c['limit'], c['reason'])}" for c in failed)
        raise InputError(
            "neither the losses here nor the model's own logits agree with its forward on each row alone",
            where=where,
            remedy=f"{numbers}. Use another model of this size: this class cannot be trained correctly",
        )
    return ModelProof.model_validate(findings)


def _compute(directory: Path) -> dict[str, Any]:
    """Compute the findings: in this process if it has torch loaded anyway, otherwise in a child. A process in which
    Triton interprets kernels would take minutes."""
    if "torch" in sys.modules and "TRITON_INTERPRET" not in os.environ:
        return json.loads(importlib.import_module(f"{MODULE}.__main__").findings_json(directory))
    # On the CPU, with its kernels: the worker compares those of a GPU, or of Triton's interpreter.
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", MODULE, str(directory)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=variables,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"fault": f"the comparison took longer than {TIMEOUT_S:g} s"}
    lines = child.stdout.strip().splitlines()
    if child.returncode or not lines:
        errors = child.stderr.strip().splitlines()
        return {"fault": errors[-1] if errors else f"exit status {child.returncode}"}
    return json.loads(lines[-1])


def _read(path: Path) -> dict[str, Any] | None:
    """Cached findings; None if they are missing or damaged."""
    try:
        findings = json.loads(path.read_text(encoding="utf-8"))
        ModelProof.model_validate(findings)
    except (OSError, ValueError, ValidationError):
        return None
    return findings


def _write(path: Path, findings: dict[str, Any]) -> None:
    """Cache findings of a model that can be trained. The cache only saves time: an unwritable one is left out."""
    if findings.get("loss") is None:
        return
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(findings), encoding="utf-8")
        os.replace(temporary, path)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
