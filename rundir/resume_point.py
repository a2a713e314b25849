"""Where a run would continue, in words for remedies: a checkpoint is only promised if there is one."""

from tunesmith.rundir.paths import RunDir, step_of


def resume_point(run: RunDir) -> str:
    """Return the newest checkpoint on disk, or that there is none. Its files are not verified."""
    steps = [step for path in run.checkpoints.glob("step-*") if (step := step_of(path)) is not None]
    return f"the checkpoint of step {max(steps)}" if steps else "the start, since there is no checkpoint yet"
