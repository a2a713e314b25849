"""`tunesmith evaluate`: score a model's loss and answers on any rows, optionally against a baseline."""

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
            help="Rows to score: a file, a glob pattern or a directory. May be repeated.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="RUN|MODEL", help="Also score this model, and compare.", show_default=False)
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated: language, generation (short for the following), exact_match, token_f1, rouge, bleu, "
            "chrf, length_ratio, distinct, stop_rate; json. All but language generate answers.",
        ),
    ] = "language",
    few_shot: Annotated[
        int,
        typer.Option(min=0, metavar="K", help="Also score the baseline with K training rows of the run as examples."),
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum sequences per forward pass. Default: by token count.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write summary.json and one line per row to this directory; the same command again resumes.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens per answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0: greedy decoding.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Nucleus sampling: probability mass to sample from.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Stop sequence of answers. May be repeated.", show_default=False),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON schema that answers must follow (metric json).", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(LANGUAGE_MODELING),
            help="Task of the rows. Default: the task of the run, or inferred from the rows.",
            show_default=False,
        ),
    ] = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Maximum tokens per sequence. Default: that of the run, or the context length of the model.",
            show_default=False,
        ),
    ] = None,
    max_rejects: Annotated[int, typer.Option(min=0, help="Number of rejected rows to tolerate.")] = 0,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Instead of --data: tasks of lm-evaluation-harness, comma-separated.",
            show_default=False,
        ),
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory with your own tasks (YAML).", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum examples per task of --tasks.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a run or a model on your own rows.

    Reports loss, perplexity, bits per byte and token accuracy, and on request metrics of generated answers, with
    standard errors. With --baseline also the differences with 95% confidence intervals, paired by row.
    """
    from tunesmith.launcher.runs.find import find_target

    require_language_modeling(task)
    model = find_target(model)
    if tasks is not None:
        _require_no_rows(data, baseline)
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        _run_tasks(model, names, task_path, workers, batch_size, limit, out, as_json)
        return
    evaluation = _score(
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
        typer.echo(json.dumps(evaluation.as_json(), indent=2))
    else:
        _show(evaluation)


def _require_no_rows(data: list[str] | None, baseline: str | None) -> None:
    from tunesmith.errors import InputError

    if data or baseline is not None:
        raise InputError(
            "--tasks cannot be combined with --data or --baseline: tasks have their own rows and score one model",
            where="--tasks",
            remedy="omit --data and --baseline",
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
    """measures: fields of `EvaluationOptions`. sampling: fields of its `Sampling`, in order. options: those of
    `standalone.evaluate`."""
    from tunesmith.errors import InputError
    from tunesmith.launcher.progress import Progress

    if not data:
        raise InputError("nothing to score", where="--data", remedy="pass --data FILE or --tasks NAMES")
    progress = Progress(sys.stderr)
    try:
        with redirect_stdout(sys.stderr):  # libraries may print on import
            from tunesmith.evaluation.standalone import evaluate as score
            from tunesmith.evaluation.standalone_result import EvaluationOptions
            from tunesmith.inference.types import Sampling

            evaluation = EvaluationOptions(sampling=Sampling(*sampling), **measures)
            return score(model, data, baseline=baseline, evaluation=evaluation, progress=progress.counting, **options)
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

    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="tunesmith-tasks-") as folder:
        try:
            from tunesmith.evaluation.harness import run_tasks
        except ModuleNotFoundError as error:
            remedy = "pip install 'tunesmith[lm-eval]'"
            raise InputError("lm-evaluation-harness is not installed", where="--tasks", remedy=remedy) from error
        scores = run_tasks(
            model, names, Path(folder), task_path=task_path, workers=workers, batch_size=batch_size, limit=limit
        )
    record = json.loads(json.dumps(asdict(scores), default=str), parse_constant=lambda name: None)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "tasks.json", record)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    typer.echo(scores.model)
    for name, numbers in scores.results.items():
        for metric, value in numbers.items():
            if isinstance(value, float):
                typer.echo(f"{name}  {metric.removesuffix(',none')}  {value:.4f}")


def _show(evaluation: "StandaloneEvaluation") -> None:
    from rich.table import Table

    from tunesmith.launcher.terminal import console_for
    from tunesmith.report.wording import count, duration, plural

    order = [role for role in ("baseline", "few_shot", "model") if role in evaluation.candidates]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(plural(evaluation.num_rows, "row"))
    for role in order:
        table.add_column(NAMES[role].format(evaluation.candidates[role].shots), justify="right")
    task = TASKS[evaluation.task]
    labels = LABELS if task.has_token_loss else LABELS | {"loss": "loss (nats)"}
    for name in evaluation.candidates["model"].metrics:
        cells = [_with_error(name, evaluation.candidates[role].metrics.get(name)) for role in order]
        table.add_row(labels.get(name) or name.replace("_", " "), *cells)
    console = console_for()
    console.print(f"{evaluation.model} on {', '.join(evaluation.data)} ({evaluation.task})", soft_wrap=True)
    console.print(table)
    for role in order[:-1]:
        _show_differences(evaluation, role, console)
    for name, signature in evaluation.signatures.items():
        console.print(f"{name}: {signature}", style="dim", soft_wrap=True)
    totals = evaluation.metrics
    scored = f"{count(totals.num_tokens)} {task.counts} of {plural(totals.num_examples, 'row')} scored"
    console.print(f"{scored} in {duration(evaluation.seconds)}", style="dim")


LABELS = {"loss": "loss (nats per token)"}


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


def _show_differences(evaluation: "StandaloneEvaluation", role: str, console: Any) -> None:
    from tunesmith.report.wording import change, decimal

    differences = evaluation.candidates[role].model_minus_this or {}
    against = "" if role == "baseline" else " from the few-shot baseline"
    for name, difference in differences.items():
        if name in ("perplexity", "bits_per_byte", "token_accuracy"):  # these follow the loss
            continue
        interval = f" (95% confidence interval {decimal(difference.low)} to {decimal(difference.high)})"
        caveat = "" if difference.is_clear else "; not significant: the interval includes zero"
        label = f"difference in {name.replace('_', ' ')}{against}"
        console.print(f"{label}: {change(difference.value)}{interval}{caveat}")
