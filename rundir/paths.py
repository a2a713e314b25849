"""Every path of a run. No other module spells out a file name of the run directory."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import InputError
from tunesmith.os_errors import remedy_for

_LOG = re.compile(r"attempt-(\d{3,})-rank-\d{5,}\.log")
_STEP = re.compile(r"step-(\d{8,})")
_INSIDE_BYTES = 128
"""Room for the paths of the files in a run directory: checkpoints/step-00000100.tmp.1/model.safetensors and others."""


@dataclass(frozen=True)
class RunDir:
    """The directory of one run. Only `create` creates it.

    run_id: the random ID of the run, if known: writers then check that the directory is still that of the run
    (rundir/fence.py)."""

    root: Path
    run_id: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def recipe(self) -> Path:
        """The recipe, as written by the user."""
        return self.root / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """The plan: every choice derived from the recipe, with its reason."""
        return self.root / "plan.json"

    @property
    def receipts(self) -> Path:
        """One line per row: `train.jsonl`, `validation.jsonl`; the counts in `summary.json`."""
        return self.root / "receipts"

    @property
    def rejects(self) -> Path:
        """Rejected rows, with file, line and reason."""
        return self.receipts / "rejects.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def workers_lock(self) -> Path:
        """Held by workers that a cluster started, until they exit."""
        return self.root / "workers.lock"

    @property
    def launch(self) -> Path:
        """Where the run was started, and how to reach it (rundir/launch.py)."""
        return self.root / "launch.json"

    @property
    def stop_request(self) -> Path:
        """Requests that the run save its state and stop."""
        return self.root / "stop.request"

    @property
    def launcher_log(self) -> Path:
        """Output of a launcher that runs without a terminal."""
        return self.logs / "launcher.log"

    @property
    def fence(self) -> Path:
        """Number of the newest attempt that has started, and the ID of the run; earlier ones no longer write."""
        return self.root / "attempt"

    @property
    def beats(self) -> Path:
        """Heartbeats: one file per rank, written every second, with the rank's current activity."""
        return self.root / "beats"

    @property
    def nonce(self) -> Path:
        """A random number that rank 0 writes briefly at startup: ranks that read it share the directory."""
        return self.root / "nonce"

    @property
    def ledger(self) -> Path:
        """Which rows were used in which step, one file per rank."""
        return self.root / "ledger"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """Per-example results, one file per evaluation: `step-00000100.jsonl`."""
        return self.root / "evaluations"

    @property
    def scoring(self) -> Path:
        """Batches of the evaluation in progress, which the ranks share; deleted afterwards."""
        return self.evaluations / f"work-{self.run_id}"

    @property
    def reference(self) -> Path:
        """For preference tasks: log-probabilities of the answers before training."""
        return self.root / "reference.safetensors"

    @property
    def probe(self) -> Path:
        """In the temporary directory of `tunesmith plan --probe`: what it measured."""
        return self.root / "probe.json"

    @property
    def export(self) -> Path:
        """A standard Hugging Face directory: the adapter or the full model."""
        return self.root / "export"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def tracking(self) -> Path:
        """Per experiment tracker, the ID of its run and what was sent to it."""
        return self.root / "tracking"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files, unless the recipe names another directory."""
        return self.root / "tensorboard"

    @property
    def logs(self) -> Path:
        """The output of the processes, one file per attempt and rank."""
        return self.root / "logs"

    @property
    def job(self) -> Path:
        """What was submitted to a batch system, with the job IDs (rundir/job.py)."""
        return self.root / "job.json"

    @property
    def jobs(self) -> Path:
        """Files of the batch jobs: their scripts, starts and results."""
        return self.root / "jobs"

    @property
    def job_starts(self) -> Path:
        """One line per start of a batch job."""
        return self.jobs / "lives.jsonl"

    def result(self, stage: str, job_id: str) -> Path:
        """Written by a stage of a batch job when it has succeeded."""
        return self.jobs / f"{stage}-{job_id}.result"

    def fault(self, stage: str, job_id: str) -> Path:
        """Written by a stage of a batch job that failed: what, where, remedy."""
        return self.jobs / f"{stage}-{job_id}.fault"

    def node_log(self, attempt: int, node_rank: int) -> Path:
        """Output of the process that starts the workers of a node."""
        return self.logs / f"attempt-{attempt:03d}-node-{node_rank:04d}.log"

    def tracker_log(self, kind: str) -> Path:
        """Output of the process that sends the run to an experiment tracker."""
        return self.logs / f"tracker-{kind}.log"

    def log(self, attempt: int, rank: int = 0) -> Path:
        return self.logs / f"attempt-{attempt:03d}-rank-{rank:05d}.log"

    def logged_attempt(self) -> int:
        """Number of the latest attempt whose workers were started; 0 if there is none."""
        logs = (_LOG.fullmatch(path.name) for path in self.logs.glob("attempt-*"))
        return max((int(match[1]) for match in logs if match), default=0)

    def ledger_of(self, rank: int) -> Path:
        return self.ledger / f"rank-{rank:05d}.jsonl"

    def checkpoint(self, step: int) -> Path:
        """The committed checkpoint after `step` completed optimizer steps."""
        return self.checkpoints / step_name(step)

    def evaluation(self, step: int) -> Path:
        return self.evaluations / f"{step_name(step)}.jsonl"

    def retained(self, step: int) -> Path:
        """Scores of the rows of evaluation.retain."""
        return self.evaluations / f"retain-{step_name(step)}.jsonl"

    @property
    def few_shot(self) -> Path:
        """Scores of the validation rows by the untrained model with training rows in its prompt."""
        return self.evaluations / "few-shot.jsonl"

    @property
    def exists(self) -> bool:
        return self.plan.is_file()

    def create(self) -> None:
        """Create the directory and its folders. Raises InputError if the path is a file or not writable."""
        try:
            for folder in (self.root, self.receipts, self.ledger, self.checkpoints, self.evaluations, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the run directory cannot be created: {error.strerror}",
                where=str(error.filename or self.root),
                remedy=remedy_for(error, "choose another directory with --run-dir, or make this one writable"),
            ) from error


def nearest_directory(path: Path) -> Path:
    """Return the path if it is a directory, otherwise the nearest one above it that exists. No error without
    permission."""
    whole = path.absolute()
    # not Path.is_dir, which may raise
    return next(place for place in (whole, *whole.parents) if os.path.isdir(place))


def require_possible(path: Path, remedy: str) -> None:
    """Raise InputError if the file system allows no directory of this name: a part, or the whole path, is too long.

    The limit is in bytes: a letter outside ASCII takes two to four.
    """
    whole = Path(os.path.abspath(path))
    place = nearest_directory(whole.parent)
    max_name, max_path = _limit(place, "PC_NAME_MAX", 255), _limit(place, "PC_PATH_MAX", 4096)
    for part in whole.parts:
        if (length := len(os.fsencode(part))) > max_name:
            raise InputError(
                f"the name is {length} bytes long, the file system allows {max_name}", where=_short(part), remedy=remedy
            )
    if (length := len(os.fsencode(whole))) > max_path - _INSIDE_BYTES:
        what = f"the path is {length} bytes long, the file system allows {max_path - _INSIDE_BYTES} for a directory"
        raise InputError(what, where=_short(str(whole)), remedy=remedy)


def _limit(directory: Path, name: str, default: int) -> int:
    try:
        return os.pathconf(directory, name)
    except (OSError, ValueError):
        return default


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step in the name of a committed checkpoint; None for other names (temporary or set aside)."""
    match = _STEP.fullmatch(path.name)
    return int(match.group(1)) if match else None
