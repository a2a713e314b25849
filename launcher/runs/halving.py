"""Halves the micro-batch of a run whose attempt ended because memory ran out, before it is restarted."""

from contextlib import closing

from tunesmith.configs.micro_batch import described, halved
from tunesmith.configs.plan import Plan
from tunesmith.launcher.attempts import stored_plan
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.events import WarningEvent
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.resume_point import resume_point


def halve_micro_batch(run: RunDir, cause: str) -> tuple[Plan, str]:
    """Store the plan with half the micro-batch, and a warning that names it. Only for the holder of the run's lock,
    while no worker runs.

    cause: what the worker reported. Returns the plan, and what was done, in words.
    """
    stored = stored_plan(run)
    plan = halved(stored, cause)
    plan.write(run.plan)
    done = f"{cause}: the run continues from {resume_point(run)} with {described(plan)} instead of {described(stored)}"
    with closing(EventLog(run.events)) as log:
        log.write(
            WarningEvent(message=f"{done}; rows, their order and the loss stay the same", code="micro_batch_halved")
        )
    return plan, done
