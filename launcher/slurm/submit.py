"""Submits a recipe to Slurm: as one job, a chain of dependent stages, or an array of runs.

Nothing is prepared here and nothing heavy is imported: a login node needs neither torch nor ray nor the model. The
recipe is validated and stored; later changes to its file do not affect the job.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.recipe import Recipe
from tunesmith.configs.sections.method import Lora
from tunesmith.configs.slurm_site import SlurmSite
from tunesmith.configs.yaml_tree import InvalidYaml, read_tree
from tunesmith.data.readers.storage import is_url
from tunesmith.errors import InputError
from tunesmith.launcher.backends.cluster import queued
from tunesmith.launcher.planning.placement import with_placement
from tunesmith.launcher.planning.prepare_run import Request
from tunesmith.launcher.slurm.client import cancel, states, submit
from tunesmith.launcher.slurm.partitions import require_fits, survey
from tunesmith.launcher.slurm.script import BatchJob, container_file, container_script, script
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.job import JobRecord, read_job
from tunesmith.rundir.paths import RunDir

MAX_ARRAY = 1000


@dataclass(frozen=True)
class SlurmSubmission:
    """Options of a submission. after: jobs that must have succeeded before the first job starts. evaluate_data: rows
    for the stage `evaluate` of a chain. sweep: `KEY=[VALUES]`; every combination is a run."""

    site: SlurmSite
    launcher: str = "ray"
    chain: bool = False
    evaluate_data: Sequence[str] = ()
    sweep: Sequence[str] = ()
    parallel: int = 0
    after: Sequence[str] = ()


def submit_run(request: Request, run: RunDir, options: SlurmSubmission) -> dict[str, str]:
    """Submit the jobs of a run; return the ID of each stage. Raises InputError if the run is active or rejected."""
    require_idle(run)
    require_nodes(request, options.site)
    jobs = prepared_jobs(request, run, options)
    record = _record(request, options)
    run.create()
    run.jobs.mkdir(exist_ok=True)
    if options.site.container:
        _write_container(run, options.site)
    record.write(run.job)  # before a job can start
    stages: dict[str, str] = {}
    after = list(options.after)
    with queued([run]):
        for job, text in jobs:
            write_text(run.jobs / f"{job.stage}.sbatch", text)
            try:
                stages[job.stage] = submit(text, after=after)
            except InputError:
                if stages:  # do not leave a partial chain
                    cancel(list(stages.values()))
                raise
            after = [stages[job.stage]]
    replace(record, stages=stages).write(run.job)
    return stages


def submit_sweep(request: Request, folder: Path, options: SlurmSubmission) -> tuple[str, list[tuple[str, ...]]]:
    """Submit one array job; return its ID and the overrides of each run (folder/000, folder/001, ...)."""
    combinations = combinations_of(options.sweep)
    runs = [RunDir(folder / f"{number:03d}") for number in range(len(combinations))]
    requests = [
        replace(request, overrides=(*request.overrides, *each), recipe=_loaded(request, each)) for each in combinations
    ]
    for run in runs:
        require_idle(run)
    require_nodes(request, options.site)
    text = sweep_script(request, folder, options)
    if options.site.container:
        _write_container(RunDir(folder), options.site)
    for run, each in zip(runs, requests, strict=True):
        run.create()
        run.jobs.mkdir(exist_ok=True)
        _record(each, options).write(run.job)
    write_text(folder / "train.sbatch", text)
    with queued(runs):
        number = submit(text, after=options.after)
    for index, (run, each) in enumerate(zip(runs, requests, strict=True)):
        replace(_record(each, options), stages={"train": f"{number}_{index}"}).write(run.job)
    return number, combinations


def sweep_script(request: Request, folder: Path, options: SlurmSubmission) -> str:
    """The script of a sweep's array job."""
    number = len(combinations_of(options.sweep))
    job = replace(_job(request, RunDir(folder), "train", options), array=number, parallel=options.parallel)
    return script(job, options.site)


def prepared_jobs(request: Request, run: RunDir, options: SlurmSubmission) -> list[tuple[BatchJob, str]]:
    """The jobs in order, each with its script. Raises InputError if they cannot be created."""
    stages = ["train"]
    if options.chain:
        evaluate = ["evaluate"] if evaluate_rows(request, options) else []
        stages = ["prepare", "train", *evaluate, "export"]
    jobs = [_job(request, run, stage, options) for stage in stages]
    return [(job, script(job, options.site)) for job in jobs]


def evaluate_rows(request: Request, options: SlurmSubmission) -> list[str]:
    """The rows that the stage `evaluate` scores: those of --evaluate, or the validation files of the recipe, if they
    have no columns, delimiter or template variables of their own. The run itself scores them in any case."""
    data = request.recipe.data
    own = {each.label for each in data.training_sets if each.has_options}
    plain = all(not (each.has_options or each.label in own) for each in data.validation_sets)
    task = request.recipe.task_facts
    if task.may_need_reference:  # evaluated by the run, which has the reference
        if options.evaluate_data:
            raise InputError(
                f"a run of task {task.name} is evaluated on its own {task.counts}",
                where="--evaluate",
                remedy="omit it",
            )
        return []
    if options.evaluate_data:
        return list(options.evaluate_data)
    return [_resolved(request, name) for name in data.validation_paths] if plain else []


def _resolved(request: Request, name: str) -> str:
    """Path of a file named in the recipe for a job in another directory: in the directory of the recipe first."""
    if Path(name).is_absolute() or is_url(name) or not any(request.directory.glob(name)):
        return name
    return str(request.directory / name)


def combinations_of(sweep: Sequence[str]) -> list[tuple[str, ...]]:
    """`a=[1, 2]`, `b=[x]` -> (a=1, b=x), (a=2, b=x). Raises InputError if one is not a list."""
    axes = []
    for argument in sweep:
        key, equals, text = argument.partition("=")
        if key.strip().startswith("resources."):
            raise InputError(
                "all runs of a sweep have the same resources", where=f"--sweep {argument}", remedy="use --nodes N"
            )
        try:
            values = read_tree(text, "--sweep", line_of_source=False) if equals else None
        except InvalidYaml:
            values = None
        if values is None or not isinstance(values.values, list) or not values.values:
            raise InputError(
                f"--sweep takes KEY=[VALUE, ...]; got {argument}",
                where="--sweep",
                remedy="for example --sweep 'optimization.learning_rate=[1e-4, 2e-4]'",
            )
        places = [((number,), value) for number, value in enumerate(values.values)]
        axes.append([f"{key}={values.plain.get(place, value)}" for place, value in places])
    combinations = list(itertools.product(*axes))
    if len(combinations) > MAX_ARRAY:
        raise InputError(f"--sweep gives {len(combinations)} runs, more than {MAX_ARRAY}", where="--sweep")
    return combinations


def require_idle(run: RunDir) -> None:
    """Raise InputError if a job of this run is pending or running."""
    record = read_job(run)
    numbers = list(record.stages.values()) if record else []
    if active := {number: state for number, state in states(numbers).items() if state.is_active}:
        number, state = next(iter(active.items()))
        raise InputError(
            f"job {number} of this run is {state}",
            where=str(run.root),
            remedy=f"wait for it (`tunesmith status {run.root} --follow`) or stop it: tunesmith stop {run.root}",
        )


def require_nodes(request: Request, site: SlurmSite) -> None:
    """Raise InputError if the partition has fewer nodes, or allows less time, than the training job requests."""
    try:
        partitions = survey()
    except InputError:  # sbatch says what is wrong with the cluster
        return
    nodes = request.recipe.resources.nodes or 1
    minutes, has_qos = site.time_limit_minutes, site.qos is not None
    require_fits(partitions, site.partition, nodes=nodes, minutes=minutes, has_qos=has_qos)


def resubmit(run: RunDir, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Submit a run's training again with the previous settings. overrides: keys of placement and sharding.

    Raises InputError if the run was not submitted before, or for an override of another key.
    """
    record = read_job(run)
    if record is None or "cluster" not in record.settings:
        raise InputError(
            "the run was never submitted to Slurm", where=str(run.job), remedy="tunesmith train RECIPE --on slurm"
        )
    recipe = with_placement(load_recipe_text(record.recipe_text, record.recipe_file, record.overrides), overrides)
    request = Request(Path(record.recipe_file), record.recipe_text, (*record.overrides, *overrides), recipe)
    site = SlurmSite.model_validate(record.settings["cluster"])
    launcher = record.settings.get("launcher", "ray")
    return submit_run(request, run, SlurmSubmission(site, launcher, evaluate_data=record.evaluate_data))


def _job(request: Request, run: RunDir, stage: str, options: SlurmSubmission) -> BatchJob:
    recipe, site = request.recipe, options.site
    gpus = recipe.resources.gpus_per_node
    gpus = site.gpus_per_node if gpus is None else gpus
    return BatchJob(
        name=recipe.name,
        stage=stage,
        run_dir=run.root.resolve(),
        working_dir=Path.cwd(),
        nodes=(recipe.resources.nodes or 1) if stage == "train" else 1,
        gpus_per_node=gpus if stage == "train" else 0 if stage == "prepare" else min(gpus, 1),
        launcher=options.launcher,
    )


def _record(request: Request, options: SlurmSubmission) -> JobRecord:
    return JobRecord(
        recipe_file=str(request.file.resolve()),
        recipe_text=request.text,
        overrides=list(request.overrides),
        evaluate_data=evaluate_rows(request, options),
        settings={"launcher": options.launcher, "cluster": options.site.model_dump(mode="json")},
    )


def _loaded(request: Request, overrides: Sequence[str]) -> Recipe:
    return load_recipe_text(request.text, str(request.file), (*request.overrides, *overrides))


def _write_container(run: RunDir, site: SlurmSite) -> None:
    path = container_file(run.root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, container_script(site))
    path.chmod(0o755)


def merges(recipe: Recipe) -> bool:
    """Whether the stage `export` also exports the full model with the adapter merged."""
    return isinstance(recipe.method, Lora)
