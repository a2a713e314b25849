"""A run handed over to a Ray cluster as one of its jobs: submitted and followed.

The job runs the same command on the cluster; recipe, data and run directory must lie where the cluster sees them. The
token of a cluster that asks for one is taken from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as everywhere in Ray.
"""

import os
import shlex
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from tunesmith.errors import ExitCode, InputError, RunFault
from tunesmith.launcher.backends.cluster import JOB
from tunesmith.launcher.progress import Progress
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, read_status

POLL_S = 1.0
PASSED_ON = ("PYTHONPATH", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def passed_on() -> dict[str, str]:
    """The part of this process's environment that its processes on the cluster get too."""
    ours = ("TUNESMITH_", "RAY_TRAIN_")
    return {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(ours)}


def submit_job(run: RunDir, launch: Launch, command: Sequence[str]) -> Launch:
    """Hand the command (of `tunesmith`, with paths and place) to the cluster; the launch with the job's name.

    Raises InputError where the cluster does not take it.
    """
    job = f"tunesmith-{run.name}-{uuid.uuid4().hex[:8]}"
    words = ["-P", "-m", "tunesmith.cli.main", *command]
    client = _client(launch)
    try:
        # Ray runs the entry point in a shell: every word of it is quoted. The Python of here, where the cluster has it.
        python = f'python={shlex.quote(sys.executable)}; [ -x "$python" ] || python=python3; exec "$python" '
        client.submit_job(
            entrypoint=python + shlex.join(words),
            submission_id=job,
            runtime_env={"env_vars": {**passed_on(), JOB: job}},
        )
    except Exception as error:
        raise _does_not_answer(launch, error) from error
    submitted = Launch(launch.backend, launch.address, job)
    run.root.mkdir(parents=True, exist_ok=True)
    submitted.write(run.launch)
    return submitted


def follow_job(run: RunDir, launch: Launch, before: Status | None, progress: Progress) -> ExitCode:
    """Print what the job says until it ends; its exit code. before: the run's status when the job was handed over.

    Raises RunFault where the job failed without a word.
    """
    client, printed = _client(launch), 0
    while True:
        try:
            state = str(client.get_job_status(launch.job))
            text = client.get_job_logs(launch.job)
        except Exception as error:
            raise _does_not_answer(launch, error) from error
        lines = text[printed:].splitlines()
        printed = len(text)
        for line in lines:
            progress.say(line)
        if state in ENDED:
            break
        time.sleep(POLL_S)
    status = read_status(run.status)
    if state == "SUCCEEDED":
        return ExitCode.DONE
    if status is not None and status != before and status.exit_code not in (None, ExitCode.DONE):
        return ExitCode(status.exit_code)
    raise RunFault(
        f"the job {launch.job} {state.lower()} without training to its end",
        where=launch.address,
        remedy="its last words stand above; the recipe, its data and the run directory must be visible on the cluster",
    )


def job_state(launch: Launch) -> str | None:
    """In Ray's words: PENDING, RUNNING or one of ENDED. None where the cluster does not answer, or has forgotten it."""
    try:
        return str(getattr(_client(launch).get_job_status(launch.job), "value", ""))
    except Exception:
        return None


def end_job(launch: Launch) -> None:
    """End a job whose run has not begun, so that nothing is to be saved. Raises InputError where the cluster does not
    answer, and RunFault where it refuses."""
    client = _client(launch)
    try:
        client.stop_job(launch.job)
    except Exception as error:
        raise RunFault(f"the job {launch.job} could not be ended: {error}", where=launch.address) from error


def _client(launch: Launch) -> Any:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise InputError(
            "--on ray needs a package that is not installed", remedy="pip install 'tunesmith[ray]'"
        ) from None
    try:
        return JobSubmissionClient(launch.address)
    except Exception as error:
        raise _does_not_answer(launch, error) from error


def _does_not_answer(launch: Launch, error: Exception) -> InputError:
    return InputError(
        f"the cluster does not take jobs: {str(error).strip().splitlines()[0][:300]}",
        where=launch.address,
        remedy="see that its dashboard runs and is reachable from here, and that RAY_AUTH_TOKEN_PATH names its token",
    )
