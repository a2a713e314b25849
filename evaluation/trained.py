"""Loading the trained model of a run from a checkpoint: base model, method and trained weights."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.configs.sections.method import Lora
from tunesmith.data.cache import cache_root
from tunesmith.data.tokenization.planned import planned_tokenizer
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.inference.model_cache import generate_as_proved
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.base_model.multimodal import require_planned_as_text
from tunesmith.modeling.base_model.source import cached_hub_model, hub_snapshot
from tunesmith.modeling.loading.base import load_base
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.modeling.precision import dtype_of
from tunesmith.progress import advance
from tunesmith.rundir.commit import verify
from tunesmith.rundir.paths import RunDir, step_of

WEIGHTS = "model.safetensors"
"""File of a checkpoint with the trained weights by parameter name, fp32."""


def newest_checkpoint(run: RunDir) -> Path | None:
    """Return the newest checkpoint that verifies. Read-only: damaged checkpoints are not moved."""
    if not run.checkpoints.is_dir():
        return None
    by_step = {step: path for path in run.checkpoints.iterdir() if (step := step_of(path)) is not None}
    return next((by_step[step] for step in sorted(by_step, reverse=True) if verify(by_step[step]) is None), None)


def checkpoint_of(run: RunDir, step: int | None) -> Path:
    """Return the checkpoint of a step, or the newest. Raises InputError if it is missing, RunFault if it is damaged."""
    if step is None:
        path = newest_checkpoint(run)
        if path is None:
            raise InputError(
                "the run has no valid checkpoint", where=str(run.checkpoints), remedy=f"tunesmith resume {run.root}"
            )
        return path
    path = run.checkpoint(step)
    if not path.is_dir():
        steps = sorted(number for child in run.checkpoints.glob("step-*") if (number := step_of(child)) is not None)
        raise InputError(
            f"the run has no checkpoint of step {step}",
            where=str(run.checkpoints),
            remedy="choose from: " + (", ".join(map(str, steps)) or "none, resume the run first"),
        )
    if fault := verify(path):
        raise RunFault(f"the checkpoint is damaged: {fault}", where=str(path), remedy="choose a different step")
    return path


def exported_checkpoint(run: RunDir, plan: Plan) -> Path:
    """Return the checkpoint that the run exports: the newest valid one, or the best one with early stopping."""
    newest = checkpoint_of(run, None)
    if plan.recipe.evaluation.early_stopping is None:
        return newest
    best = json.loads((newest / "state.json").read_text(encoding="utf-8"))["state"].get("best_step")
    return checkpoint_of(run, best) if best is not None and run.checkpoint(best).is_dir() else newest


def load_trained(plan: Plan, checkpoint: Path, *, device: str | None = None) -> torch.nn.Module:
    """Load the model of a checkpoint, in eval mode, with packed attention.

    device: None: that of the plan, if available. Trained weights are fp32; the frozen base of adapters has the run's
    precision. Raises InputError if the base model has changed, RunFault if the parameters of the checkpoint do not
    match the plan's method.
    """
    _require_same_base(plan)
    is_frozen = isinstance(plan.recipe.method, Lora)
    model = load_base(
        Path(plan.model.directory),
        plan.recipe.method,
        dtype=dtype_of(plan.compute.precision) if is_frozen else torch.float32,
        device=device or (plan.compute.device if torch.cuda.is_available() else "cpu"),
        task=plan.recipe.task,
        labels=labels_of(plan),
    )
    model = apply_method(model, plan.recipe.method, dropout=None, seed=plan.recipe.seed, new_rows=plan.model.new_rows)
    with safe_open(str(checkpoint / WEIGHTS), framework="pt") as stored, torch.no_grad():
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        parameters = trained_parameters(model)
        _require_equal_shapes(shapes, {name: tuple(weight.shape) for name, weight in parameters.items()}, checkpoint)
        for name, parameter in parameters.items():
            parameter.copy_(stored.get_tensor(name))
            advance()
    generate_as_proved(model, plan.model.proof)
    return model.eval()


def plan_with_base(run: RunDir) -> Plan:
    """Return the run's plan, with the directory of the base model on this machine: the one that the run was planned
    with, or the same commit in the hub's cache. Raises InputError if it is gone."""
    plan = read_plan(run.plan)
    directory = Path(plan.model.directory)
    if (directory / "config.json").is_file() and (Path(plan.model.base_directory) / "config.json").is_file():
        return plan
    remedy = "restore it at this path: the run's weights are relative to it"
    if (hub := hub_snapshot(directory)) is not None:
        if (cached := cached_hub_model(*hub)) is not None:
            return plan.model_copy(update={"model": plan.model.model_copy(update={"directory": str(cached)})})
        remedy = f"download it again: hf download {hub[0]} --revision {hub[1]}"
    elif plan.model.added is not None:
        remedy = "create the copy with the added tokens again: `tunesmith plan` with the run's recipe.yaml"
    elif plan.model.adapter_tokenizer is not None and plan.recipe.model.adapter == "continue":
        remedy = "create the copy with the adapter's tokenizer again: `tunesmith plan` with the run's recipe.yaml"
    elif plan.recipe.model.adapter == "merge":
        remedy = f"merge {plan.model.source} again: `tunesmith plan` with the run's recipe.yaml"
    elif plan.model.source.lower().endswith(".gguf"):
        remedy = f"convert {plan.model.source} again: `tunesmith plan` with the run's recipe.yaml"
    raise InputError("the base model of the run is no longer on this machine", where=str(directory), remedy=remedy)


def tokenizer_of(plan: Plan) -> Tokenizer:
    """Load the tokenizer of the run, with the chat template of the recipe if it has one."""
    return planned_tokenizer(plan)


def _require_same_base(plan: Plan) -> None:
    """Verify the base model: adapters on a different base would be a different model, undetected by later checks."""
    directory, method = Path(plan.model.directory), plan.recipe.method
    facts = model_facts(directory, plan.model.source, method, cache=cache_root(), task=plan.recipe.task)
    require_planned_as_text(plan.model, facts, plan.tunesmith_version)
    if facts.fingerprint != plan.model.fingerprint:
        raise InputError(
            "the base model has changed since the run was trained",
            where=f"{directory}: {plan.model.fingerprint[:12]} -> {facts.fingerprint[:12]}",
            remedy="restore the original files",
        )


def _require_equal_shapes(actual: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], path: Path) -> None:
    if different := [
        name for name in sorted(actual.keys() | expected.keys()) if actual.get(name) != expected.get(name)
    ]:
        name = different[0]
        raise RunFault(
            f"the parameters of the checkpoint do not match the plan: {name} has shape "
            f"{actual.get(name, 'none')}, expected {expected.get(name, 'none')}",
            where=str(path),
            remedy="plan.json and the checkpoint belong to different runs: restore the original",
        )
