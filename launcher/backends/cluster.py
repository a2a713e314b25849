"""The cluster interface: where a run is started, by this process or as a job that continues without it.

Each back end is one subclass of Cluster, listed in `launcher/clusters.py`. The command line reads that list at startup,
so modules with such a class import only lightweight modules at the top and the rest inside methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.errors import ExitCode, InputError
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status

if TYPE_CHECKING:
    from tunesmith.launcher.backends.base import Backend
    from tunesmith.launcher.planning.prepare_run import Request
    from tunesmith.launcher.progress import Progress

JOB = "TUNESMITH_JOB"
"""Environment variable with the job ID, set in a process that a cluster runs as a job: it must not submit again."""


class JobState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    FORGOTTEN = "forgotten"
    """The cluster responds but no longer knows the job."""
    UNREACHABLE = "unreachable"
    """The cluster does not respond."""


@dataclass(frozen=True)
class ClusterJob:
    """A job of a run. number: its ID on the cluster. description: its state in the cluster's terms; empty if unknown.
    details: the same by key, for scripts. fault: the error that the job recorded. has_result: whether its result file
    exists in the run directory."""

    stage: str
    number: str
    state: JobState
    description: str = ""
    succeeded: bool = False
    fault: str | None = None
    has_result: bool = False
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        return self.state in (JobState.PENDING, JobState.RUNNING)

    def as_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "job": self.number, **self.details, "fault": self.fault}


@dataclass(frozen=True)
class SubmitOptions:
    """Command-line options of a submission, such as `--cluster`; None or empty: not given."""

    cluster: str | None = None
    launcher: str | None = None
    after: tuple[str, ...] = ()
    chain: bool = False
    evaluate: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    parallel: int = 0

    @classmethod
    def names(cls) -> frozenset[str]:
        return frozenset(each.name for each in fields(cls))

    def given(self) -> list[str]:
        """Names of the options that were given, in order."""
        return [each.name for each in fields(self) if getattr(self, each.name)]


@dataclass(frozen=True)
class Submission:
    """A run to be started elsewhere. command: arguments of `tunesmith` with absolute paths, without --on and --address.
    request: None if a run is resumed. overrides: overrides of the resumed run's recipe."""

    run: RunDir
    launch: Launch
    command: tuple[str, ...]
    request: "Request | None" = None
    overrides: tuple[str, ...] = ()
    options: SubmitOptions = SubmitOptions()

    @property
    def placed_command(self) -> tuple[str, ...]:
        """The command with --on and --address."""
        address = ("--address", self.launch.address) if self.launch.address else ()
        return (*self.command, "--on", self.launch.backend, *address)


@dataclass(frozen=True)
class Submitted:
    """launch: the new content of launch.json. lines: what was submitted, for people. hints: what to do next.
    result: the same for scripts."""

    launch: Launch
    lines: tuple[str, ...]
    hints: tuple[str, ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)


class Cluster(ABC):
    """A place where runs are started. Connects only when a method needs it."""

    name: ClassVar[str]
    """Value of `--on`, and of `backend` in the server settings and in launch.json."""
    title: ClassVar[str]
    """Display name, such as `Slurm`."""
    addressed: ClassVar[str] = ""
    """What `--address` refers to, such as `a Ray cluster`. Empty: no address is accepted."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Names of the accepted SubmitOptions."""
    site_file: ClassVar[str] = ""
    """Name of the file that describes it, in the directory of a server's settings. Empty: not needed."""
    is_batch: ClassVar[bool] = False
    """Jobs wait in its queue and survive its outages: `train` returns once they are submitted, `status` lists them."""
    requeues: ClassVar[bool] = False
    """Whether an interrupted job may be restarted automatically."""
    patience_s: ClassVar[float] = inf
    """Seconds after its submission for which a job counts as pending while the cluster does not respond."""

    def open(self, launch: Launch) -> "Backend":
        """Open the back end that runs the workers, in the process that drives the run."""
        from tunesmith.launcher.backends.local import Local

        return Local()

    def takes_over(self, launch: Launch) -> bool:
        """Whether a run is submitted instead of driven by this process."""
        return not launch.job

    def check(self, submission: Submission) -> None:  # noqa: B027  a default
        """Raise InputError if options conflict, or the cluster file is missing or invalid."""

    def script(self, submission: Submission) -> str | None:
        """The script that would be submitted, for `--dry-run`; None: the plan is shown instead."""
        return None

    @abstractmethod
    def submit(self, submission: Submission) -> Submitted:
        """Start or resume the run as a job or process that continues without this one.

        Writes the run's launch.json. Raises InputError if the submission is rejected.
        """

    def follow(self, run: RunDir, launch: Launch, before: Status | None, progress: "Progress") -> ExitCode:
        """Print the output of a submitted job until it ends; return its exit code. before: the run's status at
        submission.

        Only for clusters that take over runs and are not batch systems.
        """
        raise NotImplementedError

    @abstractmethod
    def state(self, run: RunDir) -> list[ClusterJob]:
        """The run's jobs in stage order; empty if the state of the run is only in the run directory."""

    @abstractmethod
    def cancel(self, run: RunDir, jobs: Sequence[ClusterJob]) -> None:
        """Cancel pending jobs, which have no state to save. Raises TunesmithError if the cluster refuses."""

    def request_stop(self, run: RunDir, job: ClusterJob) -> None:
        """Request that a running job save its state and exit."""
        run.stop_request.touch()

    def cancel_hint(self, number: str) -> str:
        """How a user can cancel the job manually."""
        return f"in {self.title}, job {number}"

    def logs(self, run: RunDir) -> Path:
        """Log of the latest process that drove the run without a terminal."""
        return run.launcher_log

    @abstractmethod
    def is_reachable(self, address: str) -> bool:
        """Whether the cluster responds. address: from the launch or the settings; may be empty."""

    def arguments(self, address: str, site: str) -> list[str]:
        """Arguments of `tunesmith train` for the jobs of a server. site: path of the cluster file; may be empty."""
        return ["--on", self.name, *(["--address", address] if address else [])]

    def check_site(self, path: str) -> None:  # noqa: B027  a default
        """Raise InputError if the cluster file is missing or invalid."""


def hints(run: RunDir) -> tuple[str, ...]:
    """The commands that follow and stop a submitted run."""
    return (
        f"  status: tunesmith status {run.root} --follow",
        f"  logs:   tunesmith logs {run.root} --follow",
        f"  stop:   tunesmith stop {run.root}",
    )


@contextmanager
def queued(runs: Sequence[RunDir]) -> Iterator[None]:
    """Set the status of runs that have not started to `queued`, before their job can start; undone if the submission
    in the block fails."""
    waiting = [run for run in runs if not run.exists]
    for run in waiting:
        Status("queued").write(run.status)
    try:
        yield
    except InputError:
        for run in waiting:
            run.status.unlink(missing_ok=True)
        raise
