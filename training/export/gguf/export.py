"""Export of a run as a GGUF file for llama.cpp and Ollama: a Hugging Face export through its gate, written as GGUF,
read back through a gate of its own, and only then published."""

import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith import __version__
from tunesmith.configs.plan import Plan
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.trained import plan_with_base, tokenizer_of
from tunesmith.modeling.precision import dtype_of
from tunesmith.os_errors import remedy_for
from tunesmith.rundir.atomic import fsync_directory, write_json, write_text
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.paths import RunDir, require_possible
from tunesmith.training.export.export import export_from_checkpoint
from tunesmith.training.export.gate import gate_rows
from tunesmith.training.export.gguf.architectures import architecture_of, rejected
from tunesmith.training.export.gguf.gate import GateRows, GgufGate, run_gguf_gate
from tunesmith.training.export.gguf.modelfile import DEFAULT_CONTEXT, modelfile
from tunesmith.training.export.gguf.quantization import QUANTIZATIONS, Quantization, quantization_of
from tunesmith.training.export.gguf.quantizers import KQuantizer, require_quantizer
from tunesmith.training.export.gguf.vocabulary import read_vocabulary
from tunesmith.training.export.gguf.write import Contents, config_of, read_contents, write_file

_HEADER_BYTES = 64 << 20
"""Disk space for what is not a tensor: vocabularies of 260,000 tokens take about 15 MB."""


@dataclass(frozen=True)
class GgufExport:
    """path: the file. modelfile: Ollama's, next to it. gate: result of the comparison. quantizer: llama.cpp's, if it
    was needed."""

    path: Path
    modelfile: Path
    gate: GgufGate
    quantizer: str | None


def export_gguf(
    run: RunDir, quantization: str, out: Path, *, step: int | None = None, force: bool = False
) -> GgufExport:
    """Export a checkpoint of a run as a GGUF file. step: None: the one that the run exports. force: replace `out`.

    Raises InputError if there is no run, the file exists, the model has no equivalent in llama.cpp or llama.cpp's
    quantizer is needed and not installed; RunFault if there is not enough disk space, the file cannot be written or it
    does not pass the gate: it is then kept as `<out>.refused`.
    """
    chosen = quantization_of(quantization)
    modelfile_path = out.with_name(f"{out.name}.Modelfile")
    _require_free(out, modelfile_path, force=force)
    if not run.exists:
        raise InputError(
            "there is no run", where=str(run.root), remedy="pass a run directory; `tunesmith runs` lists them"
        )
    plan = plan_with_base(run)
    _require_equivalent(plan)
    quantizer = require_quantizer(chosen, torch.get_num_threads())
    _require_space(plan, chosen, quantizer, out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            directory = Path(temporary) / "model"
            export_from_checkpoint(run, step=step, form="model", to=directory)
            file = Path(temporary) / out.name
            contents = write_quantized(directory, file, chosen, quantizer, plan.recipe.name)
            fault_point("export.gguf")
            gate = run_gguf_gate(file, directory, contents, chosen, _rows(plan, tokenizer_of(plan)))
            if not gate.passed:
                raise _refusal(gate, file, out)
            text = _modelfile(directory, contents, plan, out, gate)
            _publish(file, out, force=force)
            write_text(modelfile_path, text)
    except OSError as error:
        remedy = remedy_for(error, "free disk space or choose another --out")
        raise RunFault(f"the file could not be written: {error}", where=str(out), remedy=remedy) from error
    return GgufExport(out, modelfile_path, gate, quantizer.name if quantizer else None)


def write_quantized(
    directory: Path, file: Path, quantization: Quantization, quantizer: KQuantizer | None, name: str
) -> Contents:
    """Write a Hugging Face directory as a GGUF file and return what it contains. quantizer: for the K-quants."""
    with ExitStack() as weights:
        if quantizer is None or quantizer.rows is not None:
            contents = read_contents(directory, quantization, weights)
            write_file(file, contents, quantization, name, quantizer.rows if quantizer else None)
            return contents
        whole = QUANTIZATIONS["f32"]
        contents = read_contents(directory, whole, weights)
        source = file.with_name(f"{file.name}.f32")
        write_file(source, contents, whole, name, None)
        quantizer.quantize_file(source, file, quantization, torch.get_num_threads())
        source.unlink()
        return contents


def _require_free(*paths: Path, force: bool) -> None:
    for path in paths:
        require_possible(path, "choose a shorter --out")
        if path.is_dir():
            raise InputError(
                "this is a directory", where=str(path), remedy="name a file with --out, such as model.gguf"
            )
        if path.exists() and not force:
            raise InputError("the file exists already", where=str(path), remedy="choose another --out, or add --force")


def _require_equivalent(plan: Plan) -> None:
    """Reject what llama.cpp does not compute, before the weights are loaded."""
    if not plan.recipe.task_facts.is_causal or plan.recipe.task_facts.is_classifier:
        raise rejected(f"the task {plan.recipe.task} does not generate text")
    if plan.model.carried is not None:
        raise rejected("multimodal checkpoints were not compared with llama.cpp")
    directory = Path(plan.model.directory)
    config = config_of(directory)
    architecture_of(config.architectures[0], config)
    read_vocabulary(directory, config.vocab_size)


def _require_space(plan: Plan, quantization: Quantization, quantizer: KQuantizer | None, out: Path) -> None:
    """Raise RunFault if the disk has too little room for the Hugging Face export, the file and what precedes it."""
    params = plan.model.num_params
    need = params * dtype_of(plan.compute.precision).itemsize + _file_bytes(params, quantization) + _HEADER_BYTES
    if quantizer is not None and quantizer.rows is None:
        need += 4 * params
    parent = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(parent).free
    if free < need:
        raise RunFault(
            f"the export needs {need / 1e9:.1f} GB of disk space for a while, {free / 1e9:.1f} GB are free",
            where=str(parent),
            remedy="free disk space or choose another --out",
        )


def _file_bytes(params: int, quantization: Quantization) -> int:
    """At most so many bytes have the weights: llama.cpp's fallbacks for odd row lengths have up to 8.5 bits."""
    bits = {"f32": 32, "f16": 16, "bf16": 16}.get(quantization.name, 8.5)
    return int(params * bits / 8)


def _rows(plan: Plan, tokenizer: Tokenizer) -> GateRows:
    chosen = gate_rows(plan, tokenizer)
    texts = [tokenizer.backend.decode(list(row), skip_special_tokens=False) for row in chosen.rows]
    beginnings = [list(row)[:32] for row in chosen.rows if len(row) > 32]
    return GateRows(chosen.rows, [*chosen.prompts, *beginnings], texts)


def _modelfile(directory: Path, contents: Contents, plan: Plan, out: Path, gate: GgufGate) -> str:
    vocabulary = contents.vocabulary
    ends = [vocabulary.ids["eos"]] if "eos" in vocabulary.ids else []
    context = contents.context_length
    return modelfile(
        directory,
        out.name,
        context=min(context, max(DEFAULT_CONTEXT, plan.recipe.data.max_seq_len)),
        add_bos=vocabulary.flags["bos"],
        stops=[vocabulary.tokens[token] for token in (*ends, *vocabulary.stops)],
        note=f"tunesmith {__version__}, run {plan.recipe.name}: verified with {gate.judge}",
    )


def _publish(file: Path, out: Path, *, force: bool) -> None:
    """Give the finished file its name, which must still be free unless `force`."""
    with open(file, "rb") as written:
        os.fsync(written.fileno())
    if force:
        os.replace(file, out)
    else:
        try:
            os.link(file, out)  # fails if the name was taken meanwhile
        except FileExistsError:
            _require_free(out, force=False)
        except OSError:  # a file system without hard links
            _require_free(out, force=False)
            os.replace(file, out)
    fsync_directory(out.parent)


def _refusal(gate: GgufGate, file: Path, out: Path) -> RunFault:
    """Keep the refused file next to its target, under a name that no tool takes for a GGUF file."""
    refused = out.with_name(f"{out.name}.refused")
    with suppress(FileNotFoundError):
        refused.unlink()
    os.replace(file, refused)
    write_json(out.with_name(f"{refused.name}.json"), gate.facts())
    return RunFault(
        f"the GGUF file is refused: {gate.fault}",
        where=str(refused),
        remedy="inspect the .json next to it; another --quantization may pass, or export without --format",
    )
