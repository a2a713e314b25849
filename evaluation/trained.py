"""The trained model of a run, from one of its checkpoints: the base model, the method, the trained weights."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from tunesmith.configs.plan import Plan
from tunesmith.configs.recipe import Lora
from tunesmith.data.cache import cache_root
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.modeling.adapters.method import apply_method, trained_parameters
from tunesmith.modeling.base_model.facts import model_facts
from tunesmith.modeling.loading.base import load_base
from tunesmith.modeling.loading.heads import labels_of
from tunesmith.rundir.commit import verify
from tunesmith.rundir.paths import RunDir, step_of

WEIGHTS = "model.safetensors"
"""Of a checkpoint: the trained weights by parameter name, fp32."""


def newest_checkpoint(run: RunDir) -> Path | None:
    """The newest checkpoint whose every byte verifies. Damaged ones stay where they are: this only reads."""
    if not run.checkpoints.is_dir():
        return None
    by_step = {step: path for path in run.checkpoints.iterdir() if (step := step_of(path)) is not None}
    return next((by_step[step] for step in sorted(by_step, reverse=True) if verify(by_step[step]) is None), None)


def checkpoint_of(run: RunDir, step: int | None) -> Path:
    """The checkpoint of a step, or the newest. InputError where it is not there, RunFault where it is damaged."""
    if step is None:
        path = newest_checkpoint(run)
        if path is None:
            raise InputError(
                "the run has no whole checkpoint", where=str(run.checkpoints), remedy=f"tunesmith resume {run.root}"
            )
        return path
    path = run.checkpoint(step)
    if not path.is_dir():
        steps = sorted(there for child in run.checkpoints.glob("step-*") if (there := step_of(child)) is not None)
        raise InputError(
            f"the run has no checkpoint of step {step}",
            where=str(run.checkpoints),
            remedy="choose from: " + (", ".join(map(str, steps)) or "none, resume the run first"),
        )
    if fault := verify(path):
        raise RunFault(f"the checkpoint is damaged: {fault}", where=str(path), remedy="choose another step")
    return path


def exported_checkpoint(run: RunDir, plan: Plan) -> Path:
    """The checkpoint that the run itself exports: the newest whole one, or with early stopping the best."""
    newest = checkpoint_of(run, None)
    if plan.recipe.evaluation.early_stopping is None:
        return newest
    best = json.loads((newest / "state.json").read_text(encoding="utf-8"))["state"].get("best_step")
    return checkpoint_of(run, best) if best is not None and run.checkpoint(best).is_dir() else newest


def load_trained(plan: Plan, checkpoint: Path, *, device: str | None = None) -> torch.nn.Module:
    """The model as the run had it in memory at that step, in eval mode, with packed attention.

    device: None for the plan's, where it is here.
    Weights that are trained are fp32; in a bf16 run a frozen base under adapters is bf16.
    Raises InputError where the base model is another one by now, RunFault where the checkpoint's parameters are not
    those of the plan's method.
    """
    _require_same_base(plan)
    bf16_base = plan.compute.precision == "bf16" and isinstance(plan.recipe.method, Lora)
    model = load_base(
        Path(plan.model.directory),
        plan.recipe.method,
        dtype=torch.bfloat16 if bf16_base else torch.float32,
        device=device or (plan.compute.device if torch.cuda.is_available() else "cpu"),
        task=plan.recipe.task,
        labels=labels_of(plan),
    )
    model = apply_method(model, plan.recipe.method, dropout=None, seed=plan.recipe.seed)
    with safe_open(str(checkpoint / WEIGHTS), framework="pt") as stored, torch.no_grad():
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        parameters = trained_parameters(model)
        _require_equal_shapes(shapes, {name: tuple(weight.shape) for name, weight in parameters.items()}, checkpoint)
        for name, parameter in parameters.items():
            parameter.copy_(stored.get_tensor(name))
    return model.eval()


def tokenizer_of(plan: Plan) -> Tokenizer:
    """The tokenizer that the run was trained with, with the recipe's chat template where it names one."""
    template = Path(plan.model.chat_template) if plan.model.chat_template else None
    return Tokenizer.load(Path(plan.model.directory), template)


def _require_same_base(plan: Plan) -> None:
    """Adapters on another base would be another model, and nothing later could tell."""
    directory, method = Path(plan.model.directory), plan.recipe.method
    found = model_facts(directory, plan.model.source, method, cache=cache_root(), task=plan.recipe.task)
    if found.fingerprint != plan.model.fingerprint:
        raise InputError(
            "the base model is not the one that the run was trained on: its files have changed",
            where=f"{directory}: {plan.model.fingerprint[:12]} -> {found.fingerprint[:12]}",
            remedy="bring the former files back",
        )


def _require_equal_shapes(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], path: Path) -> None:
    if different := [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]:
        name = different[0]
        raise RunFault(
            f"the checkpoint's parameters are not those of the plan: {name} has shape "
            f"{found.get(name, 'none')}, by the plan {expected.get(name, 'none')}",
            where=str(path),
            remedy="plan.json and the checkpoint belong to different runs: restore the one that was changed",
        )
