"""Every path of a run. No other module spells a file name of the run directory."""

import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import InputError

_LOG = re.compile(r"attempt-(\d{3,})-rank-\d{5,}\.log")
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class RunDir:
    """The directory of one run. Nothing is created by naming it; `create` does that."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def recipe(self) -> Path:
        """The recipe as the user wrote it."""
        return self.root / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """Every choice that was made from the recipe, with its reason."""
        return self.root / "plan.json"

    @property
    def receipts(self) -> Path:
        """One line a row: `train.jsonl`, `validation.jsonl`; the counts in `summary.json`."""
        return self.root / "receipts"

    @property
    def rejects(self) -> Path:
        """Rows that were refused, with file, line and reason."""
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
        """Held by workers that a cluster started, for as long as they live."""
        return self.root / "workers.lock"

    @property
    def launch(self) -> Path:
        """Where the run was started, and how to reach it (rundir/launch.py)."""
        return self.root / "launch.json"

    @property
    def stop_request(self) -> Path:
        """Its presence asks whoever runs the workers to let them save and end."""
        return self.root / "stop.request"

    @property
    def launcher_log(self) -> Path:
        """What a launcher without a terminal said."""
        return self.logs / "launcher.log"

    @property
    def fence(self) -> Path:
        """The number of the newest attempt that has begun; earlier ones write nothing any more."""
        return self.root / "attempt"

    @property
    def beats(self) -> Path:
        """Where every rank writes once a second what it does, a file a rank."""
        return self.root / "beats"

    @property
    def nonce(self) -> Path:
        """A random number that rank 0 leaves for a moment when a run starts: who reads it sees the same directory."""
        return self.root / "nonce"

    @property
    def ledger(self) -> Path:
        """Which rows fed which step, a file a rank."""
        return self.root / "ledger"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """Per-example results, a file an evaluation: `step-00000100.jsonl`."""
        return self.root / "evaluations"

    @property
    def reference(self) -> Path:
        """Of a preference: log-probabilities of the answers before training."""
        return self.root / "reference.safetensors"

    @property
    def export(self) -> Path:
        """A plain Hugging Face directory: the adapter, or the whole model."""
        return self.root / "export"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

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
        """Written by a batch job's stage that failed: what, where, remedy."""
        return self.jobs / f"{stage}-{job_id}.fault"

    def node_log(self, attempt: int, node_rank: int) -> Path:
        """What the process that starts a node's workers printed."""
        return self.logs / f"attempt-{attempt:03d}-node-{node_rank:04d}.log"

    def log(self, attempt: int, rank: int = 0) -> Path:
        return self.logs / f"attempt-{attempt:03d}-rank-{rank:05d}.log"

    def logged_attempt(self) -> int:
        """The highest number of an attempt whose workers were started; 0 where there is none."""
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
        """Make the directory and its folders. Raises InputError where the path is a file or cannot be written."""
        try:
            for folder in (self.root, self.receipts, self.ledger, self.checkpoints, self.evaluations, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the run directory cannot be made: {error.strerror}",
                where=str(error.filename or self.root),
                remedy="choose another place with --run-dir, or free this one",
            ) from error


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step of a committed checkpoint's name; None for any other name (a temporary or set-aside directory)."""
    match = _STEP.fullmatch(path.name)
    return int(match.group(1)) if match else None
