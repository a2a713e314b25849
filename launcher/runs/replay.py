"""Replay proof: trains steps again from a checkpoint, which must reproduce the recorded losses.

A separate worker trains in a temporary run directory with the same plan and a copy of the checkpoint. The run itself is
only read.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.launcher.attempts import stored_plan
from tunesmith.launcher.backends.local import run_local
from tunesmith.launcher.hardware import find_gpus
from tunesmith.report.proofs.proof import Proof
from tunesmith.report.record import read_record
from tunesmith.report.wording import finite, plural, significant
from tunesmith.rundir.commit import verify
from tunesmith.rundir.event_log import EventFollower
from tunesmith.rundir.events import StepEvent
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir, step_of

NAME = "Replaying steps from a checkpoint reproduces the recorded losses"
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1.25e-3}
"""Relative difference of a loss due to another machine or number of threads. On the same machine: none."""
Losses = dict[int, float | None]


class _Enough(Exception):
    """The requested steps are done."""


def replay(run: RunDir, num_steps: int, print_line: Callable[[str], None] = lambda text: None) -> Proof:
    """Replay up to `num_steps` steps. The proof is open if no checkpoint is followed by recorded steps."""
    plan = stored_plan(run)
    recorded: Losses = {event.step: finite(event.loss) for event in read_record(run).steps}
    start = _newest_before_steps(run, recorded)
    if start is None:
        return Proof(NAME, None, "there is no valid checkpoint that is followed by a recorded step")
    if missing := _missing(plan):
        return Proof(NAME, None, f"not possible: {missing} is missing")
    steps = [step for step in sorted(recorded) if step > start][:num_steps]
    print_line(f"replaying {plural(len(steps), 'step')} from the checkpoint of step {start}")
    with tempfile.TemporaryDirectory(prefix="tunesmith-replay-") as directory:
        copy = RunDir(Path(directory) / run.root.resolve().name)
        copy.create()
        _without_mirror(plan).write(copy.plan)
        shutil.copytree(run.checkpoint(start), copy.checkpoint(start), copy_function=_link_or_copy)
        trained, fault = _train(copy, plan, steps[-1])
    if fault is not None:
        return Proof(NAME, False, f"from the checkpoint of step {start}: {fault}")
    if trained is None:
        return Proof(NAME, None, "it was interrupted")
    return _judge(plan, start, {step: recorded[step] for step in steps}, trained)


def _without_mirror(plan: Plan) -> Plan:
    """A replay must not write to the run's mirror or load newer checkpoints from it."""
    checkpoint = plan.recipe.checkpoint.model_copy(update={"mirror": None})
    return plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"checkpoint": checkpoint})})


def _train(copy: RunDir, plan: Plan, last_step: int) -> tuple[Losses | None, str | None]:
    """Return the losses of the steps up to `last_step`, or the error; neither if it was interrupted."""
    losses: Losses = {}
    follower = EventFollower(copy.events)

    def watch() -> None:
        losses.update({e.step: finite(e.loss) for e in follower.new() if isinstance(e, StepEvent)})
        if last_step in losses:
            raise _Enough

    try:
        with run_lock(copy) as lock_fd:
            ending = run_local(copy, plan, 1, lock_fd, watch)
    except _Enough:
        return losses, None
    return None, ending.error.what if ending.error else None


def _judge(plan: Plan, start: int, recorded: Losses, trained: Losses) -> Proof:
    first, last = min(recorded), max(recorded)
    steps = f"steps {first} to {last}" if last > first else f"step {first}"
    steps += f", from the checkpoint of step {start}"
    if all(recorded[step] == trained.get(step) for step in recorded):
        return Proof(NAME, True, f"{steps}: all losses are bit-identical")
    worst = 0.0
    for step, loss in recorded.items():
        again = trained.get(step)
        if loss is None or again is None:
            return Proof(NAME, False, f"{steps}: the loss of step {step} was {loss} and is now {again}")
        worst = max(worst, abs(again - loss) / max(abs(loss), 1e-12))
    allowed = TOLERANCE[plan.compute.precision]
    evidence = f"{steps}: maximum relative difference of the losses {significant(worst, 2)}, allowed {allowed:g}"
    return Proof(NAME, worst <= allowed, evidence)


def _newest_before_steps(run: RunDir, recorded: Losses) -> int | None:
    """The step of the newest valid checkpoint that is followed by a recorded step."""
    steps = [step for path in run.checkpoints.glob("step-*") if (step := step_of(path)) is not None]
    fitting = [step for step in sorted(steps, reverse=True) if step + 1 in recorded]
    return next((step for step in fitting if verify(run.checkpoint(step)) is None), None)


def _missing(plan: Plan) -> str | None:
    if plan.compute.nodes > 1:
        return f"a cluster of {plan.compute.nodes} machines"
    if plan.compute.device == "cuda" and len(find_gpus()) < plan.compute.world_size:
        return f"a machine with {plan.compute.world_size} GPUs"
    needed = [plan.model.directory, plan.data.train.index]
    needed += [split.index for split in (plan.data.validation, plan.data.retain) if split is not None]
    return next((place for place in needed if not Path(place).is_dir()), None)


def _link_or_copy(source: str, target: str) -> None:
    """Use a hard link on the same disk: checkpoints may be large and are not modified."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
