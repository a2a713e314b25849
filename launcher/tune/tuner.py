"""Runs a study: starts trials, follows their evaluations, prunes, and records how each ended.

What is decided is recorded before it is done, so a killed tuner is continued by the same command: running trials are
followed again, interrupted ones resumed, and none is started twice.
"""

import time
from collections.abc import Mapping
from typing import Any

from tunesmith.configs.load import read_recipe_text
from tunesmith.configs.search_space import as_text, override
from tunesmith.configs.tune import TuneFile
from tunesmith.errors import ExitCode, InputError
from tunesmith.launcher.backends.cluster import Submission
from tunesmith.launcher.planning.prepare_run import read_request
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.remote import chosen_launch
from tunesmith.launcher.signals import on_signals
from tunesmith.launcher.tune.ready import require_ready
from tunesmith.launcher.tune.refusals import Refusals
from tunesmith.launcher.tune.search import Search
from tunesmith.launcher.tune.study import DONE, FAILED, PRUNED, RUNNING, StoredTrial, Study
from tunesmith.launcher.tune.summary import write_results
from tunesmith.launcher.tune.trial_run import MAX_STARTS, TrialRun, one_line
from tunesmith.report.record import read_record
from tunesmith.report.trials import value_of
from tunesmith.report.wording import decimal
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.paths import RunDir

POLL_S = 0.2
SECOND_STOP_S = 2.0
"""Time after which a further stop signal is a second request: schedulers may send the first one repeatedly."""


class Tuner:
    def __init__(self, search: Search, study: Study, progress: Progress):
        self._search, self._study, self._progress = search, study, progress
        self._runs: dict[int, TrialRun] = {}
        self._stopping, self._stopped_at = False, 0.0
        self._started = time.monotonic()
        self._exhausted = self._is_ready = False
        self._refusals = Refusals()

    def run(self) -> ExitCode:
        """Run trials until the study is complete. Returns DONE, FAULT if no trial has finished, or PREEMPTED after a
        stop request; the running trials have then saved their state.

        Raises InputError if the recipe itself cannot be trained, RunFault if trials fail alike one after another.
        """
        with on_signals(self._stop):
            for trial in self._study.trials():
                if trial.outcome == RUNNING:
                    self._continue(trial)
            while True:
                self._start_trials()
                for number in list(self._runs):
                    self._advance(self._runs[number])
                if not self._runs and (self._stopping or self._is_complete()):
                    break
                time.sleep(POLL_S)
        write_results(self._search, self._study)
        if self._refusals.fault is not None:
            raise self._refusals.fault
        if self._stopping:
            return ExitCode.PREEMPTED
        return ExitCode.DONE if any(trial.outcome == DONE for trial in self._study.trials()) else ExitCode.FAULT

    def _stop(self) -> None:
        """Stop the running trials; on a second request, exit without waiting for them."""
        if not self._stopping:
            self._stopping, self._stopped_at = True, time.monotonic()
            if self._runs:
                self._progress.print("asked to stop: running trials save; ask again to exit without waiting", "yellow")
        elif time.monotonic() - self._stopped_at > SECOND_STOP_S:
            raise KeyboardInterrupt

    def _is_complete(self) -> bool:
        tune = self._search.tune_file.tune
        limit_s = 60 * tune.time_limit_minutes if tune.time_limit_minutes else None
        is_late = limit_s is not None and time.monotonic() - self._started >= limit_s
        is_over = self._exhausted or is_late or self._refusals.fault is not None
        return is_over or len(self._study.trials()) >= tune.max_trials

    def _start_trials(self) -> None:
        while len(self._runs) < self._search.tune_file.tune.parallel_trials:
            if self._stopping or self._is_complete():
                return
            self._require_same_recipe()
            if not self._is_ready:
                require_ready(self._search, self._progress)
                self._is_ready = True
            trial = self._study.propose()
            if trial is None:
                self._exhausted = True
                return
            fault_point("tune.proposed")
            self._print(trial.number, values_in_one_line(trial.values))
            self._start(trial)

    def _continue(self, trial: StoredTrial) -> None:
        """Follow a trial that an earlier command has started; one that no process works on is started by `_advance`."""
        self._runs[trial.number] = TrialRun(trial.number, self._search.directory.trial(trial.number))
        self._print(trial.number, f"continued: {values_in_one_line(trial.values)}")

    def _start(self, trial: StoredTrial) -> None:
        """Start or resume the run of a trial; values that the recipe rejects together fail it."""
        run = self._search.directory.trial(trial.number)
        trial_run = self._runs.setdefault(trial.number, TrialRun(trial.number, run))
        try:
            submission = self._submission(trial.values, run)
        except InputError as error:
            self._finish(trial_run, FAILED, reason=one_line(error.what, error.where))
            return
        if not trial_run.start(self._search.cluster, submission):
            reason = f"its processes were lost {MAX_STARTS} times without a step in between"
            self._finish(trial_run, FAILED, reason=reason)

    def _submission(self, values: Mapping[str, Any], run: RunDir) -> Submission:
        search = self._search
        overrides = (*search.request.overrides, *trial_overrides(search.tune_file, values))
        request = read_request(search.request.file, overrides)
        settings = [part for each in overrides for part in ("--set", each)]
        command = ("train", str(request.file.resolve()), "--run-dir", str(run.root.resolve()), *settings)
        launch = chosen_launch(run, search.launch.backend, search.launch.address or None)
        return Submission(run, launch, command, request, options=search.options)

    def _advance(self, trial_run: TrialRun) -> None:
        state = trial_run.state()
        trial = self._trial(trial_run.number)
        trial = self._follow(trial_run, trial)
        if state == "working":
            if self._stopping or trial.pruned_at is not None:
                trial_run.request_stop()
        elif state == "finished":
            self._finish_with_value(trial_run)
        elif state == "failed":
            self._finish(trial_run, FAILED, reason=trial_run.failure(), is_verdict=trial_run.is_verdict())
        elif trial.pruned_at is not None:
            self._finish(trial_run, PRUNED, reason=trial.reason)
        elif self._stopping:
            del self._runs[trial_run.number]  # it stays running in the journal: the next command resumes it
        else:
            self._start(trial)

    def _follow(self, trial_run: TrialRun, trial: StoredTrial) -> StoredTrial:
        """Report new evaluations; decide whether the trial is pruned."""
        for event in trial_run.evaluations():
            if event.when != "during" or event.step in trial.reported:
                continue
            value = value_of(event, self._search.metric)
            self._study.report(trial.number, event.step, float("nan") if value is None else value)
            shown = f"step {event.step}: {self._search.metric.name} {decimal(value)}"
            self._print(trial.number, shown)
            is_last = event.step >= trial_run.total_steps
            if trial.pruned_at is None and not is_last and self._study.should_prune(trial.number):
                self._study.mark_pruned(trial.number, event.step, f"pruned at step {event.step}: {decimal(value)}")
                fault_point("tune.pruned")
            trial = self._trial(trial.number)
        return trial

    def _finish_with_value(self, trial_run: TrialRun) -> None:
        event = read_record(trial_run.run).evaluation("after")
        value = value_of(event, self._search.metric) if event else None
        if value is None:
            reason = f"{self._search.metric.name} after training is not a number"
            self._finish(trial_run, FAILED, reason=reason, is_verdict=event is not None)
        else:
            self._finish(trial_run, DONE, value=value)

    def _finish(self, trial_run: TrialRun, outcome: str, **facts: Any) -> None:
        self._study.finish(trial_run.number, outcome, **facts)
        del self._runs[trial_run.number]
        fault_point("tune.finished")
        self._refusals.note(reason=facts.get("reason") if outcome == FAILED else None, steps=trial_run.step)
        texts = {
            DONE: f"done: {self._search.metric.name} {decimal(facts.get('value'))}",
            PRUNED: facts.get("reason") or "pruned",
            FAILED: f"failed: {facts.get('reason')}",
        }
        self._print(trial_run.number, texts[outcome], None if outcome == DONE else "yellow")
        write_results(self._search, self._study)

    def _trial(self, number: int) -> StoredTrial:
        return self._study.trials()[number - 1]

    def _require_same_recipe(self) -> None:
        """Raise InputError if the recipe file was changed meanwhile: later trials would train another recipe."""
        request = self._search.request
        if read_recipe_text(request.file) != request.text:
            raise InputError(
                "the recipe was changed while the study runs",
                where=str(request.file),
                remedy="undo the change and run the same command again; running trials continue meanwhile",
            )

    def _print(self, number: int, text: str, style: str | None = None) -> None:
        self._progress.print(f"trial {number}: {text}", style)


def trial_overrides(tune_file: TuneFile, values: Mapping[str, Any]) -> list[str]:
    """The arguments of `--set` that turn the recipe into that of a trial."""
    steps = tune_file.tune.steps_per_trial
    limit = [] if steps is None else [override("optimization.max_steps", steps)]
    return [*limit, *(override(key, value) for key, value in values.items())]


def values_in_one_line(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {as_text(value)}" for key, value in values.items())
