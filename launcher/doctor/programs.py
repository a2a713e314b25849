"""Bounded calls of programs whose output the checks read."""

import shutil
import subprocess
from collections.abc import Sequence

ANSWER_S = 20.0


def output_of(command: Sequence[str], timeout_s: float = ANSWER_S) -> tuple[str, str]:
    """Run a program. Returns its output and, if it failed, the reason in one line; the reason is empty on success."""
    program = shutil.which(command[0])
    if program is None:
        return "", f"{command[0]} is not installed"
    try:
        ended = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} did not respond within {timeout_s:g} s"
    except OSError as error:
        return "", f"{command[0]} cannot be run: {error.strerror}"
    if ended.returncode:
        lines = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
        return ended.stdout, lines[-1] if lines else f"{command[0]} exited with {ended.returncode}"
    return ended.stdout, ""
