"""Export of a trained model: a plain Hugging Face directory that stands only after it was read back and compared."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft import PeftModel
from safetensors import SafetensorError

from tunesmith import __version__
from tunesmith.configs.plan import Plan, read_plan
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.trained import checkpoint_of, exported_checkpoint, load_trained, tokenizer_of
from tunesmith.rundir.atomic import fsync_directory, write_json, write_text
from tunesmith.rundir.commit import MANIFEST, committed_directory, fault_point, read_manifest
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.training.export.files import (
    Form,
    require_valid_weights,
    write_adapter,
    write_companion_files,
    write_model,
)
from tunesmith.training.export.gate import Gate, gate_rows, run_gate
from tunesmith.training.export.model_card import model_card
from tunesmith.training.export.task_gate import run_task_gate

MADE_BY = "tunesmith export"
"""Stands in the manifest of every export: only such a directory is ever replaced."""


@dataclass(frozen=True)
class Export:
    """path: the directory. form: adapter, or the whole model. gate: the facts of the comparison, for the event."""

    path: Path
    form: Form
    gate: dict[str, Any]


def export_run(
    model: torch.nn.Module,
    run: RunDir,
    plan: Plan,
    tokenizer: Tokenizer,
    *,
    form: Form | None = None,
    to: Path | None = None,
    step: int | None = None,
    attempt: int = 0,
    allowed: Callable[[], None] = lambda: None,
) -> Export:
    """Write the trained model to `to` (default: the run's export directory), through the gate.

    form: None as the recipe says. step: of the weights, for the model card. attempt: tells writers of one directory
    apart. allowed: called last before the export stands; what it raises keeps that from happening.
    The model is not changed, not by a bit.
    Raises RunFault where a weight is not finite or the adapter is all zero (nothing is written then), where the disk
    refuses, and where the gate stays closed: the directory is kept beside its place as `<name>.refused`; what stood
    in its place stays.
    """
    form, final = form or default_form(plan, model), to or run.export
    require_form(form, model)
    require_replaceable(final)
    require_valid_weights(model)
    rows = gate_rows(plan, tokenizer)
    if final == run.export:  # whoever exports here holds the run: what lies about was left by a killed one
        _remove_leftovers(final)
    facts: dict[str, Any] = {}
    try:
        with committed_directory(
            final,
            attempt,
            allowed=allowed,
            made_by=MADE_BY,
            tunesmith_version=__version__,
            form=form,
            step=step,
            gate=facts,
        ) as directory:
            _write(model, plan, tokenizer, form, directory)
            fault_point("export.files")
            if plan.recipe.task_facts.is_causal:
                gate = run_gate(model, directory, plan, tokenizer, rows)
            else:
                gate = run_task_gate(model, directory, plan, tokenizer)
            facts.update(gate.facts())
            fault_point("export.gate")
            if not gate.passed:
                raise _refusal(gate, directory, final)
            write_text(directory / "README.md", model_card(plan, run, form=form, step=step, gate=facts))
    except (OSError, SafetensorError) as error:
        raise RunFault(
            f"the export could not be written: {error}",
            where=str(final),
            remedy=f"free the disk or choose another place, then: tunesmith export {run.root}",
        ) from error
    except torch.OutOfMemoryError as error:
        raise RunFault(
            "there is no memory for the export and the second copy of the model that checks it",
            where=str(final),
            remedy=f"the checkpoints are whole: tunesmith export {run.root}, which holds no optimizer state",
        ) from error
    shutil.rmtree(_refused_place(final), ignore_errors=True)
    return Export(final, form, facts)


def export_from_checkpoint(
    run: RunDir, step: int | None = None, form: Form | None = None, to: Path | None = None
) -> Export:
    """Export a run's checkpoint; step None: the one that the run itself would export.

    That is the newest whole one, or with early stopping the best. InputError where there is no run or checkpoint.
    """
    if not run.exists:
        raise InputError(
            "there is no run", where=str(run.root), remedy="name a run directory; `tunesmith runs` lists them"
        )
    plan = read_plan(run.plan)
    require_replaceable(to or run.export)
    checkpoint = exported_checkpoint(run, plan) if step is None else checkpoint_of(run, step)
    model = load_trained(plan, checkpoint)
    return export_run(model, run, plan, tokenizer_of(plan), form=form, to=to, step=step_of(checkpoint))


def default_form(plan: Plan, model: torch.nn.Module) -> Form:
    """What the recipe's export.form means for this model."""
    wanted = plan.recipe.export.form
    if plan.recipe.task_facts.is_classifier:  # the head and the label names travel in the whole model
        return "model"
    if wanted == "auto":
        return "adapter" if isinstance(model, PeftModel) else "model"
    return "adapter" if wanted == "adapter" else "model"


def require_form(form: Form, model: torch.nn.Module) -> None:
    if form == "adapter" and not isinstance(model, PeftModel):
        raise InputError(
            "there is no adapter to export: the run trained weights of the model itself",
            where="export.form: adapter",
            remedy="set export.form to auto or merged",
        )


def require_replaceable(final: Path) -> None:
    """Refuse a place that holds anything but an earlier export: the new one takes its place as a whole."""
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    try:
        if read_manifest(final).get("made_by") == MADE_BY:
            return
    except (OSError, ValueError, KeyError):
        pass
    raise InputError(
        "there is something here already that is no export of ours",
        where=str(final),
        remedy="choose an empty or a new directory with --to",
    )


def _write(model: torch.nn.Module, plan: Plan, tokenizer: Tokenizer, form: Form, directory: Path) -> None:
    if form == "adapter":
        assert isinstance(model, PeftModel)
        write_adapter(model, plan, directory)
    else:
        dtype = torch.bfloat16 if plan.compute.precision == "bf16" else torch.float32
        write_model(model, plan, directory, dtype)
    write_companion_files(plan, tokenizer, directory)


def _remove_leftovers(final: Path) -> None:
    for suffix in ("tmp", "old"):
        for path in final.parent.glob(f"{final.name}.{suffix}.*"):
            shutil.rmtree(path, ignore_errors=True)


def _refused_place(final: Path) -> Path:
    return final.with_name(f"{final.name}.refused")


def _refusal(gate: Gate, directory: Path, final: Path) -> RunFault:
    """Keep what was refused beside its place, under a name that nothing takes for an export."""
    refused = _refused_place(final)
    shutil.rmtree(refused, ignore_errors=True)
    write_json(directory / "gate.json", gate.facts())
    (directory / MANIFEST).unlink(missing_ok=True)
    directory.rename(refused)
    fsync_directory(refused.parent)
    return RunFault(
        f"the export is refused: {gate.fault}",
        where=str(refused),
        remedy="look at gate.json there; the checkpoints are whole: try `tunesmith export` in the other form",
    )
