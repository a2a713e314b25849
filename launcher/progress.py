"""Shows a run's events as they are written: a progress bar on a terminal, plain lines otherwise."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from tunesmith.configs.plan import Plan
from tunesmith.launcher.terminal import TextConsole
from tunesmith.report.gate import gate_measure
from tunesmith.report.measures import in_one_line, own_measures
from tunesmith.report.wording import decimal, duration, finite, percent, significant, size
from tunesmith.rundir.event_log import EventFollower
from tunesmith.rundir.events import (
    CheckpointEvent,
    EvaluationEvent,
    Event,
    ExportEvent,
    PhaseEvent,
    ResumeEvent,
    StepEvent,
    TrackerEvent,
    WarningEvent,
)
from tunesmith.rundir.paths import RunDir

STEPS_AVERAGED = 20
"""Number of recent steps whose mean time gives the estimate of the remaining time."""
LINES_PER_RUN = 20
"""Steps printed without a terminal, evenly spread over the run; in addition, one every LINE_EVERY_S seconds."""
LINE_EVERY_S = 30.0
PHASES = {
    "loading": "loading the model",
    "evaluating": "scoring held-out rows",
    "training": "training",
    "exporting": "exporting and verifying the export",
}
WHEN = {"before": "before training", "after": "after training"}


class _PipeSafeConsole(TextConsole):
    """A console that stops printing on a broken pipe, where rich would end the process: the run must continue."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Progress:
    """stream: output (default: standard output). If its other end is closed, printing stops silently."""

    def __init__(self, stream: TextIO | None = None):
        self.console = _PipeSafeConsole(stream or sys.stdout, soft_wrap=True)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._follower: EventFollower | None = None
        self._step_times: deque[float] = deque(maxlen=STEPS_AVERAGED)
        self._stage = ""
        self._shown: set[str] = set()
        self._last_line = 0.0

    def print(self, text: str, style: str | None = None) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(text, style=style)

    def preparing(self, stage: str, done: int, total: int) -> None:
        """Show the progress of data preparation, in bytes; its stages run one after another."""
        self._count(f"data: {stage}", done, total, f"{size(done)} of {size(total)}")

    def counting(self, what: str, done: int, total: int) -> None:
        """Show the progress of any other countable work."""
        self._count(what, done, total, f"{done}/{total}")

    @contextmanager
    def following(self, run: RunDir, plan: Plan) -> Iterator[None]:
        """Show the events that are written while the block runs."""
        self.close()
        self._follower = EventFollower(run.events, from_end=True)
        self._shown.clear()
        if self.console.is_terminal:
            self._open_bar(plan.batch.total_steps)
            self._update(description="starting")
        try:
            yield
            self.poll()
        finally:
            self._follower = None
            self.close()

    def poll(self) -> None:
        """Show new events; to be called often."""
        for event in self._follower.new() if self._follower else []:
            self.show(event)

    def stop_requested(self) -> None:
        self.print("asked to stop: saving after the current step (further requests have no effect)", "yellow")

    def close(self) -> None:
        """Remove the bar and restore the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, event: Event) -> None:
        """Show one event of any kind; missing fields are omitted."""
        match event:
            case StepEvent():
                self._show_step(event)
            case PhaseEvent():
                self._show_phase(str(event.phase))
            case ResumeEvent():
                for damaged in event.set_aside or []:
                    self.print(f"set aside {Path(str(damaged.get('path'))).name}: {damaged.get('why')}", "yellow")
                self.print(f"resuming after step {event.step}: {event.why}")
            case WarningEvent():
                self.print(f"warning: {event.message}", "yellow")
            case CheckpointEvent():
                if f"checkpoint {event.step}" not in self._shown:  # the last one may be reported twice
                    self.print(
                        f"checkpoint of step {event.step}: {size(event.num_bytes)} in {duration(event.seconds)}", "dim"
                    )
                self._shown.add(f"checkpoint {event.step}")
            case EvaluationEvent():
                self.print(_evaluation(event))
            case TrackerEvent():
                self.print(f"{event.name}: {event.url}")
            case ExportEvent():
                self.print(f"export: {event.form} in {event.path}, read back: {gate_measure(event.gate)}")

    def _show_phase(self, phase: str) -> None:
        description = PHASES.get(phase, phase)
        if self.console.is_terminal:
            self._update(description=description)
        elif phase in ("loading", "exporting") and phase not in self._shown:  # other phases print their own lines
            self.print(description)
        self._shown.add(phase)

    def _show_step(self, event: StepEvent) -> None:
        step, total = event.step, event.total_steps or 0
        self._step_times.append(finite(event.step_s) or 0.0)
        left = (total - step) * sum(self._step_times) / len(self._step_times)
        loss = f"loss {decimal(event.loss)}" + (" (skipped)" if event.skipped else "")
        rate = f"{significant(event.tokens_per_s)} tokens/s"
        eta = f"{duration(left)} left" if step < total else ""
        if self.console.is_terminal:
            self._update(completed=step, total=total, numbers="  ".join([f"{step}/{total}", loss, rate, eta]))
            return
        now = time.monotonic()
        if step in (1, total) or step % max(1, total // LINES_PER_RUN) == 0 or now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            self.print("  ".join(part for part in (f"step {step}/{total}", loss, rate, eta) if part))

    def _count(self, what: str, done: int, total: int, numbers: str) -> None:
        if self.console.is_terminal:
            if self._bar is None:
                self._open_bar(total or None)
            self._update(description=what, completed=done, total=total or None, numbers=numbers)
        elif what != self._stage and done < total:  # instant work needs no line
            self.print(what)
            self._stage = what

    def _open_bar(self, total: int | None) -> None:
        title, numbers = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[numbers]}"))
        self._bar = Bar(SpinnerColumn(), title, BarColumn(bar_width=24), numbers, console=self.console, transient=True)
        self._task = self._bar.add_task("", total=total, numbers="")
        self._bar.start()

    def _update(self, **fields: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, **fields)


def _evaluation(event: EvaluationEvent) -> str:
    scores = event.scores
    when = WHEN.get(str(event.when), f"step {event.step}")
    best = ", the best so far" if event.best and event.when == "during" else ""
    losses = ", ".join(f"{name} {decimal(loss)}" for name, loss in scores.dataset_losses().items())
    by_dataset = f"; loss by data set: {losses}" if losses else ""
    if own_measures(scores):
        return f"{in_one_line(scores)} ({when}{best}){by_dataset}"
    return (
        f"validation loss {decimal(scores.loss)}, perplexity {significant(scores.perplexity, 4)}, "
        f"token accuracy {percent(scores.token_accuracy)} ({when}{best}){by_dataset}"
    )
