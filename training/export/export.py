"""Export of a trained model as a Hugging Face directory, committed only after it has passed the gate."""

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
from tunesmith.configs.plan import Plan
from tunesmith.data.index.integrity import require_intact
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.trained import checkpoint_of, exported_checkpoint, load_trained, plan_with_base, tokenizer_of
from tunesmith.model_files import ADAPTER_CONFIG, ADAPTER_SETTINGS, BASE_FINGERPRINT, settings_digest
from tunesmith.modeling.base_model.adapter_targets import require_mergeable
from tunesmith.modeling.precision import dtype_of
from tunesmith.os_errors import remedy_for
from tunesmith.rundir.atomic import fsync_directory, write_json, write_text
from tunesmith.rundir.commit import MANIFEST, committed_directory, read_manifest
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.paths import RunDir, require_possible, step_of
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
"""Written to the manifest of every export: only directories with this mark are ever replaced."""


@dataclass(frozen=True)
class Export:
    """path: the directory. form: adapter, or the whole model. gate: result of the gate, for the event."""

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
    """Export the trained model to `to` (default: the run's export directory), through the gate.

    form: None: as set in the recipe. step: of the weights, for the model card. attempt: makes temporary names unique.
    allowed: called right before the commit; an exception prevents it. The model is not modified.

    Raises RunFault if a weight is not finite, the adapter is all zero or the prepared data was damaged (nothing is
    written then), if the export cannot be written, and if it does not pass the gate: it is then kept next to the target
    as `<name>.refused`, and an earlier export is left unchanged.
    """
    form, final = form or default_form(plan, model), to or run.export
    require_form(form, model)
    if form == "model":
        require_mergeable(plan.recipe.method, plan.recipe.task_facts.model)
    require_replaceable(final)
    require_valid_weights(model)
    require_intact(plan)
    rows = gate_rows(plan, tokenizer)
    _prepare_target(run, final)
    facts: dict[str, Any] = {}
    settings: dict[str, str] = {}
    adapter_facts = _adapter_facts(plan, settings) if form == "adapter" else {}
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
            **adapter_facts,
        ) as directory:
            _write(model, plan, tokenizer, form, directory)
            if form == "adapter":
                settings["sha256"] = settings_digest(directory / ADAPTER_CONFIG)
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
        remedy = "free disk space or choose another directory"
        raise RunFault(
            f"the export could not be written: {error}",
            where=str(final),
            remedy=f"{remedy_for(error, remedy) if isinstance(error, OSError) else remedy}, then: "
            f"tunesmith export {run.root}",
        ) from error
    except torch.OutOfMemoryError as error:
        raise RunFault(
            "not enough memory for the export and the second copy of the model that the gate loads",
            where=str(final),
            remedy=f"export from the checkpoint, without optimizer state: tunesmith export {run.root}",
        ) from error
    shutil.rmtree(_refused_path(final), ignore_errors=True)
    return Export(final, form, facts)


def export_from_checkpoint(
    run: RunDir, step: int | None = None, form: Form | None = None, to: Path | None = None
) -> Export:
    """Export a checkpoint of a run. step: None: the checkpoint that the run itself would export.

    That is the newest valid one, or with early stopping the best. InputError if the run or checkpoint does not exist.
    """
    if not run.exists:
        raise InputError(
            "there is no run", where=str(run.root), remedy="pass a run directory; `tunesmith runs` lists them"
        )
    plan = plan_with_base(run)
    require_replaceable(to or run.export)
    checkpoint = exported_checkpoint(run, plan) if step is None else checkpoint_of(run, step)
    model = load_trained(plan, checkpoint)
    return export_run(model, run, plan, tokenizer_of(plan), form=form, to=to, step=step_of(checkpoint))


def _prepare_target(run: RunDir, final: Path) -> None:
    """Create the parent of a target outside the run; in the run, remove what killed exports left."""
    if final.parent != run.root:
        final.parent.mkdir(parents=True, exist_ok=True)
    if final == run.export:  # the caller holds the run, so temporary directories are leftovers of killed exports
        _remove_leftovers(final)


def _adapter_facts(plan: Plan, settings: dict[str, str]) -> dict[str, Any]:
    """What the manifest of an adapter has in addition. settings: filled in once the adapter is written."""
    tokenizer = plan.model.adapter_tokenizer
    fingerprint = (tokenizer and tokenizer.base_fingerprint) or plan.model.fingerprint
    base = {} if plan.model.added is not None else {BASE_FINGERPRINT: fingerprint}
    return {ADAPTER_SETTINGS: settings, **base}


def default_form(plan: Plan, model: torch.nn.Module) -> Form:
    """Return the form of this model's export according to the recipe's export.form."""
    form = plan.recipe.export.form
    if plan.recipe.task_facts.is_classifier:  # head and label names are stored in the whole model
        return "model"
    if form == "auto":  # an adapter with added tokens, or on a merged one, needs a base model that has no one else
        published = plan.model.added is None and plan.recipe.model.adapter != "merge"
        return "adapter" if isinstance(model, PeftModel) and published else "model"
    return "adapter" if form == "adapter" else "model"


def require_form(form: Form, model: torch.nn.Module) -> None:
    """Reject the adapter form if the model has no adapter. Raises InputError."""
    if form == "adapter" and not isinstance(model, PeftModel):
        raise InputError(
            "there is no adapter to export: the run trained the weights of the model itself",
            where="export.form: adapter",
            remedy="set export.form to auto or merged",
        )


def require_replaceable(final: Path) -> None:
    """Reject a target directory that contains anything except an earlier export, which would be replaced."""
    require_possible(final, "choose a shorter --to")
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    try:
        if read_manifest(final).get("made_by") == MADE_BY:
            return
    except (OSError, ValueError, KeyError):
        pass
    raise InputError(
        "the target directory is not empty and is not a Tunesmith export",
        where=str(final),
        remedy="choose an empty or new directory with --to",
    )


def _write(model: torch.nn.Module, plan: Plan, tokenizer: Tokenizer, form: Form, directory: Path) -> None:
    if form == "adapter":
        assert isinstance(model, PeftModel)
        write_adapter(model, plan, directory)
    else:
        write_model(model, plan, directory, dtype_of(plan.compute.precision))
    write_companion_files(plan, tokenizer, directory)


def _remove_leftovers(final: Path) -> None:
    for suffix in ("tmp", "old"):
        for path in final.parent.glob(f"{final.name}.{suffix}.*"):
            shutil.rmtree(path, ignore_errors=True)


def _refused_path(final: Path) -> Path:
    return final.with_name(f"{final.name}.refused")


def _refusal(gate: Gate, directory: Path, final: Path) -> RunFault:
    """Keep the refused export next to its target, under a name that never counts as an export."""
    refused = _refused_path(final)
    shutil.rmtree(refused, ignore_errors=True)
    write_json(directory / "gate.json", gate.facts())
    (directory / MANIFEST).unlink(missing_ok=True)
    directory.rename(refused)
    fsync_directory(refused.parent)
    return RunFault(
        f"the export is refused: {gate.fault}",
        where=str(refused),
        remedy="inspect gate.json there; the checkpoints are intact: try `tunesmith export` in the other form",
    )
