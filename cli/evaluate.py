"""`tunesmith evaluate`: a model's loss and answers on any rows, alone or against a baseline."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.arguments import LANGUAGE_MODELING, Json, Target, require_language_modeling
from tunesmith.configs.tasks import TASKS

if TYPE_CHECKING:
    from tunesmith.evaluation.standalone_result import StandaloneEvaluation

NAMES = {"model": "model", "baseline": "baseline", "few_shot": "baseline, {} examples"}


def evaluate(
    model: Target,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Rows to score: a file, a pattern, a directory. May be repeated.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN|MODEL", help="Score this as well, and compare.", show_default=False)
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="With commas: language, generation (all of the next), exact_match, token_f1, rouge, bleu, chrf, "
            "length_ratio, distinct, stop_rate; json. All but language let the model answer.",
        ),
    ] = "language",
    few_shot: Annotated[
        int, typer.Option(min=0, metavar="K", help="Also the baseline with K training rows of the run in its prompt.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences of a forward pass at most. Default: by tokens.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write summary.json and a line a row here; called again, it goes on where it was.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of answers; 0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of answers, with a temperature.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of answers, with a temperature.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Ends an answer. May be repeated.", show_default=False),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A JSON schema that answers must keep (metric json).", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(LANGUAGE_MODELING), help="Default: the run's, or by the rows.", show_default=False
        ),
    ] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(min=8, help="Default: the run's, or the model's context.", show_default=False)
    ] = None,
    max_rejects: Annotated[int, typer.Option(min=0, help="Refused rows that are tolerated.")] = 0,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Instead of --data: tasks of lm-evaluation-harness, with commas.",
            show_default=False,
        ),
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Holds your own tasks, as YAML.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of a task at most.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Score a run or a model on rows of yours.

    Loss, perplexity, bits per byte and token accuracy, and metrics of answers where asked for, with their standard
    errors; against a baseline also the differences with their 95% confidence intervals, paired row by row.
    """
    from tunesmith.launcher.runs.find import find_target

    require_language_modeling(task)
    model = find_target(model)
    if tasks is not None:
        _require_no_rows(data, baseline)
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        _run_tasks(model, names, task_path, workers, batch_size, limit, out, as_json)
        return
    found = _score(
        model,
        data,
        None if baseline is None else find_target(baseline),
        measures={
            "metrics": tuple(name.strip() for name in metrics.split(",")),
            "schema": schema,
            "few_shot": few_shot,
        },
        sampling=(max_new_tokens, temperature, top_p, seed, tuple(stop or ())),
        workers=workers,
        batch_size=batch_size,
        task=task,
        max_seq_len=max_seq_len,
        max_rejects=max_rejects,
        out=out,
    )
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        _show(found)


def _require_no_rows(data: list[str] | None, baseline: str | None) -> None:
    from tunesmith.errors import InputError

    if data or baseline is not None:
        raise InputError(
            "tasks bring their own rows and are run on one model",
            where="--tasks",
            remedy="leave --data and --baseline out",
        )


def _score(
    model: str,
    data: list[str] | None,
    baseline: str | None,
    *,
    measures: dict[str, Any],
    sampling: tuple[int, float, float, int, tuple[str, ...]],
    **options: Any,
) -> "StandaloneEvaluation":
    """measures: fields of `Asked`. sampling: of its `Sampling`, in order. options: of `standalone.evaluate`."""
    from tunesmith.errors import InputError
    from tunesmith.launcher.progress import Progress

    if not data:
        raise InputError("nothing to score", where="--data", remedy="name a file with rows: --data FILE, or --tasks")
    progress = Progress(sys.stderr)
    try:
        with redirect_stdout(sys.stderr):  # libraries may print as they are imported
            from tunesmith.evaluation.standalone import evaluate as score
            from tunesmith.evaluation.standalone_result import Asked
            from tunesmith.inference.types import Sampling

            request = Asked(sampling=Sampling(*sampling), **measures)
            return score(model, data, baseline=baseline, asked=request, progress=progress.counting, **options)
    finally:
        progress.close()


def _run_tasks(
    model: str,
    names: list[str],
    task_path: Path | None,
    workers: int,
    batch_size: int | None,
    limit: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    import tempfile
    from dataclasses import asdict

    from tunesmith.errors import InputError
    from tunesmith.rundir.atomic import write_json

    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="tunesmith-tasks-") as place:
        try:
            from tunesmith.evaluation.harness import run_tasks
        except ModuleNotFoundError as error:
            remedy = "pip install 'tunesmith[lm-eval]'"
            raise InputError("lm-evaluation-harness is not installed", where="--tasks", remedy=remedy) from error
        found = run_tasks(
            model, names, Path(place), task_path=task_path, workers=workers, batch_size=batch_size, limit=limit
        )
    told = json.loads(json.dumps(asdict(found), default=str), parse_constant=lambda name: None)
    if out is not None:
        write_json(out / "tasks.json", told)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(found.model)
    for name, numbers in found.results.items():
        for metric, value in numbers.items():
            if isinstance(value, float):
                typer.echo(f"{name}  {metric.removesuffix(',none')}  {value:.4f}")


def _show(found: "StandaloneEvaluation") -> None:
    from rich.table import Table

    from tunesmith.launcher.planning.plan_table import console_for
    from tunesmith.report.wording import count, duration, plural

    order = [role for role in ("baseline", "few_shot", "model") if role in found.candidates]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(plural(found.num_rows, "row"))
    for role in order:
        table.add_column(NAMES[role].format(found.candidates[role].shots), justify="right")
    task = TASKS[found.task]
    labels = LABELS if task.has_token_loss else LABELS | {"loss": "loss (nats)"}
    for name in found.candidates["model"].metrics:
        cells = [_with_error(name, found.candidates[role].metrics.get(name)) for role in order]
        table.add_row(labels.get(name) or name.replace("_", " "), *cells)
    console = console_for()
    console.print(f"{found.model} on {', '.join(found.data)} ({found.task})", markup=False, soft_wrap=True)
    console.print(table)
    for role in order[:-1]:
        _show_differences(found, role, console)
    for name, signature in found.signatures.items():
        console.print(f"{name}: {signature}", style="dim", markup=False, soft_wrap=True)
    told = f"{count(found.metrics.num_tokens)} {task.counts} of {plural(found.metrics.num_examples, 'row')} scored"
    console.print(f"{told} in {duration(found.seconds)}", style="dim", markup=False)


LABELS = {"loss": "loss (nats per token)", "token_accuracy": "token accuracy"}


def _with_error(name: str, number: dict[str, float | None] | None) -> str:
    from tunesmith.report.wording import NONE, decimal, percent, significant

    if number is None or number["value"] is None:
        return NONE
    if name == "token_accuracy":
        return percent(number["value"])
    if name == "perplexity":
        return significant(number["value"], 4)
    text, error = decimal(number["value"]), decimal(number["error"])
    return f"{text} ± {error}" if error != NONE else text


def _show_differences(found: "StandaloneEvaluation", role: str, console: Any) -> None:
    from tunesmith.report.wording import change, decimal

    moved = found.candidates[role].model_minus_this or {}
    against = "" if role == "baseline" else " against the baseline with examples in its prompt"
    for name, difference in moved.items():
        if name in ("perplexity", "bits_per_byte", "token_accuracy"):  # these move with the loss
            continue
        interval = f" (95% confidence interval {decimal(difference.low)} to {decimal(difference.high)})"
        doubt = "" if difference.is_clear else "; it may be chance, since the interval includes zero"
        what = f"difference of the {name.replace('_', ' ')}{against}"
        console.print(f"{what}: {change(difference.value)}{interval}{doubt}", markup=False)
