"""A run submitted to a Ray cluster as a job.

The job runs the same command on the cluster, which must be able to access recipe, data and run directory. The token of
a cluster that requires one is taken from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as usual in Ray.
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
PASSED_ON = ("PYTHONPATH", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN")
PREFIXES = ("TUNESMITH_", "RAY_TRAIN_", "NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_FR_")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def passed_on() -> dict[str, str]:
    """The variables of this process's environment that its processes on the cluster get as well."""
    return {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(PREFIXES)}


def submit_job(run: RunDir, launch: Launch, command: Sequence[str]) -> Launch:
    """Submit a `tunesmith` command (with absolute paths and --on); return the launch with the job's ID.

    Raises InputError if the cluster does not accept it.
    """
    job = f"tunesmith-{run.name}-{uuid.uuid4().hex[:8]}"
    arguments = ["-P", "-m", "tunesmith.cli.main", *command]
    client = _client(launch)
    try:
        # Ray runs the entry point in a shell, so all arguments are quoted. Use this interpreter if the cluster has it.
        python = f'python={shlex.quote(sys.executable)}; [ -x "$python" ] || python=python3; exec "$python" '
        client.submit_job(
            entrypoint=python + shlex.join(arguments),
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
    """Print the output of the job until it ends; return its exit code. before: the run's status at submission.

    Raises RunFault if the job failed without reporting an error.
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
            progress.print(line)
        if state in ENDED:
            break
        time.sleep(POLL_S)
    status = read_status(run.status)
    if state == "SUCCEEDED":
        return ExitCode.DONE
    if status is not None and status != before and status.exit_code not in (None, ExitCode.DONE):
        return ExitCode(status.exit_code)
    raise RunFault(
        f"job {launch.job} ended before the run was finished: {state.lower()}",
        where=launch.address,
        remedy="see its output above; recipe, data and run directory must be accessible on the cluster",
    )


def job_state(launch: Launch) -> str | None:
    """Ray's state: PENDING, RUNNING or one of ENDED. None if the cluster does not respond or does not know the job."""
    try:
        return str(getattr(_client(launch).get_job_status(launch.job), "value", ""))
    except Exception:
        return None


def end_job(launch: Launch) -> None:
    """Stop a job whose run has not started, so that there is nothing to save. Raises InputError if the cluster does not
    respond, and RunFault if it refuses."""
    client = _client(launch)
    try:
        client.stop_job(launch.job)
    except Exception as error:
        raise RunFault(f"job {launch.job} could not be stopped: {error}", where=launch.address) from error


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
        f"the cluster does not accept jobs: {str(error).strip().splitlines()[0][:300]}",
        where=launch.address,
        remedy="check that its dashboard is running and reachable, and that RAY_AUTH_TOKEN_PATH points to its token",
    )
