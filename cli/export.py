"""`tunesmith export`: export a run's trained weights as a Hugging Face directory, or as a GGUF file."""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.arguments import Json, Run

_FORMATS = ("huggingface", "gguf")


def export(
    run: Run,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter and export the full model.")] = False,
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output directory. Default: export/ of the run.", show_default=False),
    ] = None,
    step: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Step of the checkpoint. Default: the one that the run exports.", show_default=False
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option("--format", metavar="|".join(_FORMATS), help="A directory, or a file for llama.cpp and Ollama."),
    ] = _FORMATS[0],
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="f32|f16|bf16|q8_0|q6_k|q4_k_m",
            help="GGUF: type of the weights. Default: q8_0.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="GGUF: the file to write, such as model.gguf.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="GGUF: replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Export a run's trained model and verify the export.

    Writes a standard Hugging Face directory, which is loaded with plain transformers, or a GGUF file with an Ollama
    Modelfile next to it, which is loaded with llama.cpp. Either is compared with the trained model before it is kept.
    """
    _require_consistent(form, merge=merge, to=to, quantization=quantization, out=out, force=force)
    if form == "gguf":
        assert out is not None
        _export_gguf(run, quantization or "q8_0", out, step=step, force=force, as_json=as_json)
    else:
        _export_directory(run, merge=merge, to=to, step=step, as_json=as_json)


def _require_consistent(
    form: str, *, merge: bool, to: Path | None, quantization: str | None, out: Path | None, force: bool
) -> None:
    from tunesmith.errors import InputError

    if form not in _FORMATS:
        raise InputError(f"unknown value {form!r}", where="--format", remedy=f"use {' or '.join(_FORMATS)}")
    if form == "gguf":
        if out is None:
            raise InputError("a GGUF export needs a file", where="--out", remedy="add --out FILE, such as model.gguf")
        if to is not None:
            raise InputError("a GGUF export is a file, not a directory", where="--to", remedy="use --out FILE")
        return
    given = {"--quantization": quantization is not None, "--out": out is not None, "--force": force}
    if odd := [name for name, is_given in given.items() if is_given]:
        raise InputError(f"{odd[0]} is for GGUF files", where=odd[0], remedy="add --format gguf, or remove it")


def _export_directory(run: str, *, merge: bool, to: Path | None, step: int | None, as_json: bool) -> None:
    from tunesmith.configs.plan import read_plan
    from tunesmith.launcher.runs.find import find_run
    from tunesmith.report.gate import gate_measure
    from tunesmith.rundir.event_log import EventLog
    from tunesmith.rundir.events import ExportEvent
    from tunesmith.rundir.lock import run_lock

    run_dir = find_run(run)
    # export/ of the run is protected by the run's lock; another directory needs none.
    # Libraries may print on import; standard output is for the result only.
    with run_lock(run_dir) if to is None else nullcontext(), redirect_stdout(sys.stderr):
        from tunesmith.training.export.export import export_from_checkpoint

        result = export_from_checkpoint(run_dir, step=step, form="model" if merge else None, to=to)
        if to is None:
            log = EventLog(run_dir.events)
            log.write(ExportEvent(path=str(result.path), form=result.form, gate=result.gate))
            log.close()
    if as_json:
        typer.echo(json.dumps({"path": str(result.path), "form": result.form, "gate": result.gate}))
        return
    typer.echo(f"{result.path} ({result.form})")
    typer.echo(f"read back and compared with the trained model: {gate_measure(result.gate)}")
    from tunesmith.cli.next_commands import commands_for_directory

    for line in commands_for_directory(result.path, result.form, read_plan(run_dir.plan), run_dir.root):
        typer.echo(line)


def _export_gguf(run: str, quantization: str, out: Path, *, step: int | None, force: bool, as_json: bool) -> None:
    from importlib.util import find_spec

    from tunesmith.cli.next_commands import commands_for_gguf
    from tunesmith.errors import InputError
    from tunesmith.launcher.runs.find import find_run

    run_dir = find_run(run)
    if find_spec("gguf") is None:
        raise InputError(
            "GGUF files need the package gguf", where="--format gguf", remedy="pip install 'tunesmith[gguf]'"
        )
    with redirect_stdout(sys.stderr):
        from tunesmith.training.export.gguf.export import export_gguf

        result = export_gguf(run_dir, quantization, out, step=step, force=force)
    gate = result.gate
    if as_json:
        paths = {"path": str(result.path), "modelfile": str(result.modelfile), "quantizer": result.quantizer}
        typer.echo(json.dumps({**paths, "form": "gguf", "gate": gate.facts()}))
        return
    typer.echo(f"{result.path} (gguf, {gate.quantization}, {result.path.stat().st_size / 1e6:,.1f} MB)")
    typer.echo(f"{result.modelfile} (Ollama)")
    if result.quantizer is not None:
        typer.echo(f"quantized by {result.quantizer}")
    typer.echo(f"read back by {gate.judge} and compared with the trained model:")
    typer.echo(
        f"  mean divergence {gate.mean_kl:.3g} nats per token, perplexity {gate.perplexity:.4g} instead of "
        f"{gate.perplexity_of_export:.4g} (ratio {gate.perplexity_ratio:.4f}), {gate.positions:,} positions"
    )
    typer.echo(
        f"  greedy answers: {gate.greedy_equal} of {gate.answers} equal, {gate.greedy_ties} differ first at a near tie"
    )
    if gate.strings:
        typer.echo(f"  {gate.strings:,} strings and {gate.prompts} chat prompts give the same tokens")
    for note in gate.notes:
        typer.echo(f"  {note}")
    for line in commands_for_gguf(result.path, result.modelfile):
        typer.echo(line)
