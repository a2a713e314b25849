"""`tunesmith migrate`: turn the configuration of another tool into a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.arguments import Json
from tunesmith.errors import InputError

if TYPE_CHECKING:
    from tunesmith.configs.migration.migrate import Migration

_TOOLS = ("llama-factory", "axolotl", "trl")
_TRAINERS = ("sft", "dpo", "kto")


def migrate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration (YAML or JSON).", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="Where to write the recipe. Default: standard output.", show_default=False),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="|".join(_TOOLS), help="The tool. Default: as the keys show.", show_default=False
        ),
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(_TRAINERS), help="trl: the command. Default: as the keys show.", show_default=False
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="GPUs that the configuration was used on: batch sizes of other tools are per GPU. Default: 1.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a LLaMA-Factory, Axolotl or trl configuration into a recipe.

    Every key is converted, listed as not carried over with the reason, or an error. Nothing is downloaded or trained.
    """
    from tunesmith.configs.migration.migrate import migrate as convert

    _require_choice("--from", tool, _TOOLS)
    _require_choice("--trainer", trainer, _TRAINERS)
    if out is not None and out.exists() and not force:
        raise InputError("the recipe exists already", where=str(out), remedy="choose another --out, or add --force")
    directory = out.parent if out is not None else None
    result = convert(file, tool=tool, trainer=trainer, gpus=gpus, recipe_dir=directory)
    if out is not None:
        _write(out, result.text)
    if as_json:
        typer.echo(_as_json(result, out))
        return
    if out is None:
        typer.echo(result.text, nl=False)
    _show(result, out)


def _require_choice(option: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InputError(f"unknown value {value!r}", where=option, remedy=f"use {', '.join(choices)}")


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        remedy = "check the directory and its permissions"
        raise InputError(f"the recipe cannot be written: {error.strerror}", where=str(out), remedy=remedy) from None


def _as_json(result: "Migration", out: Path | None) -> str:
    import json

    settings = {
        key: {"value": setting.value, "from": list(setting.keys), "note": setting.note}
        for key, setting in result.settings.items()
    }
    not_carried = [{"key": entry.key, "line": entry.line, "reason": entry.reason} for entry in result.not_carried]
    values = {
        "tool": result.tool,
        "out": None if out is None else str(out),
        "recipe": result.recipe.model_dump(mode="json", exclude_unset=True),
        "settings": settings,
        "not_carried": not_carried,
        "empty": list(result.empty),
    }
    return json.dumps(values, indent=2, ensure_ascii=False)


def _show(result: "Migration", out: Path | None) -> None:
    """Print what is not carried over, and the next command. Next to a recipe on standard output: to standard error."""
    import sys

    from tunesmith.configs.migration.write import grouped
    from tunesmith.launcher.terminal import console_for

    console = console_for(sys.stderr if out is None else None)
    groups = grouped(result.not_carried)
    if groups or result.empty:
        console.print("Not carried over:", style="bold")
    for keys, reason in groups:
        console.print(f"  {keys}", style="yellow", soft_wrap=True)
        console.print(f"      {reason}", soft_wrap=True)
    if result.empty:
        console.print(f"  {', '.join(result.empty)}", style="yellow", soft_wrap=True)
        console.print("      without a value, or switched off", soft_wrap=True)
    if out is not None:
        console.print(f"{result.tool} configuration converted to {out}; next: tunesmith plan {out}", soft_wrap=True)
