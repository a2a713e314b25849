"""What a cluster is: where a run is started, by this process or as a job that continues without it.

Each back end is one subclass of Cluster, listed in `launcher/clusters.py`. The command line reads that list when it
starts, so modules with such a class import only what is light; the rest they import inside methods.
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
"""Environment variable with the job's name, in a process that a cluster runs as that job: it is not submitted again."""


class JobState(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    FORGOTTEN = "forgotten"
    """The cluster answers and does not know the job."""
    UNREACHABLE = "unreachable"
    """The cluster does not answer."""


@dataclass(frozen=True)
class ClusterJob:
    """A job of a run. number: its name on the cluster. description: its state in the cluster's terms; empty where they
    are unknown. details: the same by key, for scripts. fault: what the job recorded when it failed. has_result: whether
    it left its result in the run directory."""

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
    """Options of a submission as on the command line, `--cluster` and so on; None and empty: not given."""

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
        """The names of the options that were given, in their order."""
        return [each.name for each in fields(self) if getattr(self, each.name)]


@dataclass(frozen=True)
class Submission:
    """A run to be started elsewhere. command: of `tunesmith`, with absolute paths, without the place. request: None
    where a run is resumed. overrides: of the resumed run's recipe."""

    run: RunDir
    launch: Launch
    command: tuple[str, ...]
    request: "Request | None" = None
    overrides: tuple[str, ...] = ()
    options: SubmitOptions = SubmitOptions()

    @property
    def placed_command(self) -> tuple[str, ...]:
        """The command with the place where it runs."""
        address = ("--address", self.launch.address) if self.launch.address else ()
        return (*self.command, "--on", self.launch.backend, *address)


@dataclass(frozen=True)
class Submitted:
    """launch: as the run directory has it now. lines: what was submitted, for people. hints: what to do next.
    result: the same for scripts."""

    launch: Launch
    lines: tuple[str, ...]
    hints: tuple[str, ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)


class Cluster(ABC):
    """A place where runs are started. Nothing is connected before a method needs it."""

    name: ClassVar[str]
    """Of `--on`, of `backend` in a server's settings and in launch.json."""
    title: ClassVar[str]
    """For people: `Slurm`."""
    addressed: ClassVar[str] = ""
    """What `--address` names: `a Ray cluster`. Empty: it takes no address."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Names of the SubmitOptions that it takes."""
    site_file: ClassVar[str] = ""
    """The file that describes it, beside the settings of a server. Empty: it needs none."""
    is_batch: ClassVar[bool] = False
    """Jobs wait in its queue and outlast its outages: `train` returns once they are submitted, `status` lists them."""
    requeues: ClassVar[bool] = False
    """Whether a job may start again by itself after its run was interrupted."""
    patience_s: ClassVar[float] = inf
    """How long after its submission a job counts as waiting while the cluster does not answer."""

    def open(self, launch: Launch) -> "Backend":
        """The back end that runs the workers, in the process that drives the run."""
        from tunesmith.launcher.backends.local import Local

        return Local()

    def takes_over(self, launch: Launch) -> bool:
        """Whether a run is submitted, and not driven by this process."""
        return not launch.job

    def check(self, submission: Submission) -> None:  # noqa: B027  a default
        """Raises InputError where the options do not go together, or the site's file is missing or wrong."""

    def script(self, submission: Submission) -> str | None:
        """What would be submitted, for `--dry-run`; None: the plan is shown instead."""
        return None

    @abstractmethod
    def submit(self, submission: Submission) -> Submitted:
        """Start the run, or resume it, as a job or a process that continues without this one.

        Writes the run's launch.json. Raises InputError where it is refused.
        """

    def follow(self, run: RunDir, launch: Launch, before: Status | None, progress: "Progress") -> ExitCode:
        """Print what a submitted job prints until it ends; its exit code. before: the run's status at submission.

        Only of clusters that take runs over and are no batch system.
        """
        raise NotImplementedError

    @abstractmethod
    def state(self, run: RunDir) -> list[ClusterJob]:
        """The run's jobs in the order of their stages; empty where the run directory alone tells of the run."""

    @abstractmethod
    def cancel(self, run: RunDir, jobs: Sequence[ClusterJob]) -> None:
        """End jobs that are pending: nothing of them is to be saved. Raises TunesmithError where it is refused."""

    def ask_to_save(self, run: RunDir, job: ClusterJob) -> None:
        """Let a running job save its state and end."""
        run.stop_request.touch()

    def cancel_hint(self, number: str) -> str:
        """How people end a job themselves."""
        return f"in {self.title}, job {number}"

    def logs(self, run: RunDir) -> Path:
        """What the newest process that drove the run printed, where it had no terminal."""
        return run.launcher_log

    @abstractmethod
    def is_reachable(self, address: str) -> bool:
        """Whether it answers. address: of the launch or the settings; may be empty."""

    def arguments(self, address: str, site: str) -> list[str]:
        """Of `tunesmith train`, for a server's jobs. site: the file that describes the cluster; may be empty."""
        return ["--on", self.name, *(["--address", address] if address else [])]

    def check_site(self, path: str) -> None:  # noqa: B027  a default
        """Raises InputError where the file that describes the cluster is missing or wrong."""


def hints(run: RunDir) -> tuple[str, ...]:
    """The commands with which a submitted run is followed and stopped."""
    return (
        f"  how it stands: tunesmith status {run.root} --follow",
        f"  its words:     tunesmith logs {run.root} --follow",
        f"  save and end:  tunesmith stop {run.root}",
    )


@contextmanager
def queued(runs: Sequence[RunDir]) -> Iterator[None]:
    """Runs that have not started are `queued` from now on, before a job of theirs can start; not so where none is
    submitted."""
    waiting = [run for run in runs if not run.exists]
    for run in waiting:
        Status("queued").write(run.status)
    try:
        yield
    except InputError:
        for run in waiting:
            run.status.unlink(missing_ok=True)
        raise
