"""The errors a user meets: what was wrong, where, and what to do next. Standard library only: every room imports it."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends; scripts and schedulers rely on these numbers."""

    DONE = 0
    FAULT = 1
    BAD_INPUT = 2
    PREEMPTED = 75


class TunesmithError(Exception):
    """An error that is shown to the user without a traceback.

    what: one sentence, what was wrong. where: file, line, key, row or rank. remedy: what to do next. code: for scripts,
    where the kind of the error has one (docs/run-directory.md).
    """

    exit_code = ExitCode.FAULT

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None, code: str | None = None):
        super().__init__(what)
        self.what, self.where, self.remedy, self.code = what, where, remedy, code

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:      {self.where}")
        if self.remedy:
            lines.append(f"  what to do: {self.remedy}")
        return "\n".join(lines)


class InputError(TunesmithError):
    """The recipe, the data or the arguments are wrong: the user can mend it. Exit code 2."""

    exit_code = ExitCode.BAD_INPUT


class RunFault(TunesmithError):
    """The run itself failed: numbers, disk, a process, a damaged file. Exit code 1."""

    exit_code = ExitCode.FAULT


class OutOfMemory(RunFault):
    """Memory ran out in a step that cannot be repeated in place, and its micro-batch can be halved: the launcher
    restarts the run from its newest checkpoint with half of it."""

    CODE = "out_of_memory"
