"""A recipe becomes jobs of a Slurm cluster: one, a chain of stages that wait for each other, or an array of runs.

Nothing is prepared here and nothing heavy is imported: a login node needs neither torch nor ray nor the model. The
recipe is checked, and goes along as it is now; what is changed in its file later does not reach the job.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.configs.load import load_recipe_text
from tunesmith.configs.recipe import Lora, Recipe
from tunesmith.configs.slurm_site import SlurmSite
from tunesmith.configs.yaml_tree import NotYaml, read_tree
from tunesmith.data.readers.storage import is_url
from tunesmith.errors import InputError
from tunesmith.launcher.backends.cluster import queued
from tunesmith.launcher.planning.placement import placed_anew
from tunesmith.launcher.planning.prepare_run import Request
from tunesmith.launcher.slurm.client import cancel, states, submit
from tunesmith.launcher.slurm.script import BatchJob, container_file, container_script, script
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.job import JobRecord, read_job
from tunesmith.rundir.paths import RunDir

MAX_ARRAY = 1000


@dataclass(frozen=True)
class SlurmSubmission:
    """What is asked of the cluster. after: jobs that must have ended well before the first of these begins.
    evaluate_data: rows for the stage `evaluate` of a chain. sweep: `KEY=[VALUES]`, of which every combination is a run.
    """

    site: SlurmSite
    launcher: str = "ray"
    chain: bool = False
    evaluate_data: Sequence[str] = ()
    sweep: Sequence[str] = ()
    parallel: int = 0
    after: Sequence[str] = ()


def submit_run(request: Request, run: RunDir, wanted: SlurmSubmission) -> dict[str, str]:
    """Submit the run's jobs: the number of each stage. Raises InputError where the run is at work, or Slurm refuses."""
    require_idle(run)
    made = prepared_jobs(request, run, wanted)
    record = _record(request, wanted)
    run.create()
    run.jobs.mkdir(exist_ok=True)
    if wanted.site.container:
        _write_container(run, wanted.site)
    record.write(run.job)  # before a job can start
    stages: dict[str, str] = {}
    after = list(wanted.after)
    with queued([run]):
        for job, text in made:
            write_text(run.jobs / f"{job.stage}.sbatch", text)
            try:
                stages[job.stage] = submit(text, after=after)
            except InputError:
                if stages:  # half a chain is none
                    cancel(list(stages.values()))
                raise
            after = [stages[job.stage]]
    replace(record, stages=stages).write(run.job)
    return stages


def submit_sweep(request: Request, folder: Path, wanted: SlurmSubmission) -> tuple[str, list[tuple[str, ...]]]:
    """Submit one array job: its number, and the overrides of each run (folder/000, folder/001, ...)."""
    combinations = combinations_of(wanted.sweep)
    runs = [RunDir(folder / f"{number:03d}") for number in range(len(combinations))]
    requests = [
        replace(request, overrides=(*request.overrides, *each), recipe=_loaded(request, each)) for each in combinations
    ]
    for run in runs:
        require_idle(run)
    text = sweep_script(request, folder, wanted)
    if wanted.site.container:
        _write_container(RunDir(folder), wanted.site)
    for run, each in zip(runs, requests, strict=True):
        run.create()
        run.jobs.mkdir(exist_ok=True)
        _record(each, wanted).write(run.job)
    write_text(folder / "train.sbatch", text)
    with queued(runs):
        number = submit(text, after=wanted.after)
    for index, (run, each) in enumerate(zip(runs, requests, strict=True)):
        replace(_record(each, wanted), stages={"train": f"{number}_{index}"}).write(run.job)
    return number, combinations


def sweep_script(request: Request, folder: Path, wanted: SlurmSubmission) -> str:
    """The script of a sweep's array job."""
    number = len(combinations_of(wanted.sweep))
    job = replace(_job(request, RunDir(folder), "train", wanted), array=number, parallel=wanted.parallel)
    return script(job, wanted.site)


def prepared_jobs(request: Request, run: RunDir, wanted: SlurmSubmission) -> list[tuple[BatchJob, str]]:
    """The jobs in their order, each with its script. Raises InputError where they cannot be made."""
    stages = ["train"]
    if wanted.chain:
        evaluate = ["evaluate"] if evaluate_rows(request, wanted) else []
        stages = ["prepare", "train", *evaluate, "export"]
    jobs = [_job(request, run, stage, wanted) for stage in stages]
    return [(job, script(job, wanted.site)) for job in jobs]


def evaluate_rows(request: Request, wanted: SlurmSubmission) -> list[str]:
    """What the stage `evaluate` scores: the rows that were named, or the recipe's own validation files."""
    held_out = request.recipe.data.validation
    task = request.recipe.task_facts
    if task.may_need_reference:  # measured by the run itself, which has the reference
        if wanted.evaluate_data:
            raise InputError(
                f"a run of the task {task.name} is measured on its own {task.counts}",
                where="--evaluate",
                remedy="leave it out",
            )
        return []
    if wanted.evaluate_data or not isinstance(held_out, list):
        return list(wanted.evaluate_data)
    return [_beside(request, name) for name in held_out]


def _beside(request: Request, name: str) -> str:
    """A file of the recipe as the job finds it from another directory: beside the recipe first."""
    if Path(name).is_absolute() or is_url(name) or not any(request.directory.glob(name)):
        return name
    return str(request.directory / name)


def combinations_of(sweep: Sequence[str]) -> list[tuple[str, ...]]:
    """`a=[1, 2]`, `b=[x]` -> (a=1, b=x), (a=2, b=x). Raises InputError where one is no list."""
    axes = []
    for argument in sweep:
        key, equals, text = argument.partition("=")
        if key.strip().startswith("resources."):
            raise InputError("the runs of a sweep are all of one size", where=f"--sweep {argument}", remedy="--nodes N")
        try:
            values = read_tree(text, "--sweep", line_of_source=False) if equals else None
        except NotYaml:
            values = None
        if values is None or not isinstance(values.values, list) or not values.values:
            raise InputError(
                f"--sweep takes KEY=[VALUE, ...]; given: {argument}",
                where="--sweep",
                remedy="such as --sweep 'optimization.learning_rate=[1e-4, 2e-4]'",
            )
        places = [((number,), value) for number, value in enumerate(values.values)]
        axes.append([f"{key}={values.plain.get(place, value)}" for place, value in places])
    found = list(itertools.product(*axes))
    if len(found) > MAX_ARRAY:
        raise InputError(f"--sweep makes {len(found)} runs, more than {MAX_ARRAY}", where="--sweep")
    return found


def require_idle(run: RunDir) -> None:
    """Raises InputError while jobs of this run wait or run."""
    record = read_job(run)
    numbers = list(record.stages.values()) if record else []
    if active := {number: state for number, state in states(numbers).items() if state.is_active}:
        number, state = next(iter(active.items()))
        raise InputError(
            f"job {number} of this run is {state}",
            where=str(run.root),
            remedy=f"wait for it (`tunesmith status {run.root} --follow`) or end it: tunesmith stop {run.root}",
        )


def resubmit(run: RunDir, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Submit a run's training again, as it was submitted before; overrides: of where and how divided it is trained.

    Raises InputError where it was not, or an override is of another key.
    """
    record = read_job(run)
    if record is None or "cluster" not in record.settings:
        raise InputError(
            "the run was not submitted to Slurm before", where=str(run.job), remedy="tunesmith train RECIPE --on slurm"
        )
    recipe = placed_anew(load_recipe_text(record.recipe_text, record.recipe_file, record.overrides), overrides)
    request = Request(Path(record.recipe_file), record.recipe_text, (*record.overrides, *overrides), recipe)
    site = SlurmSite.model_validate(record.settings["cluster"])
    launcher = record.settings.get("launcher", "ray")
    return submit_run(request, run, SlurmSubmission(site, launcher, evaluate_data=record.evaluate_data))


def _job(request: Request, run: RunDir, stage: str, wanted: SlurmSubmission) -> BatchJob:
    recipe, site = request.recipe, wanted.site
    gpus = recipe.resources.gpus_per_node
    gpus = site.gpus_per_node if gpus is None else gpus
    return BatchJob(
        name=recipe.name,
        stage=stage,
        run_dir=run.root.resolve(),
        working_dir=Path.cwd(),
        nodes=(recipe.resources.nodes or 1) if stage == "train" else 1,
        gpus_per_node=gpus if stage == "train" else 0 if stage == "prepare" else min(gpus, 1),
        launcher=wanted.launcher,
    )


def _record(request: Request, wanted: SlurmSubmission) -> JobRecord:
    return JobRecord(
        recipe_file=str(request.file.resolve()),
        recipe_text=request.text,
        overrides=list(request.overrides),
        evaluate_data=evaluate_rows(request, wanted),
        settings={"launcher": wanted.launcher, "cluster": wanted.site.model_dump(mode="json")},
    )


def _loaded(request: Request, overrides: Sequence[str]) -> Recipe:
    return load_recipe_text(request.text, str(request.file), (*request.overrides, *overrides))


def _write_container(run: RunDir, site: SlurmSite) -> None:
    path = container_file(run.root)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, container_script(site))
    path.chmod(0o755)


def merges(recipe: Recipe) -> bool:
    """Whether the stage `export` makes a whole model of an adapter, beside what training has exported."""
    return isinstance(recipe.method, Lora)
