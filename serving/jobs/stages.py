"""What a job needs next, by its state. A stage may be cut off at any point and is then done again: what it means to do
is told to the store before it is done, or is such that doing it twice is doing it once.

    validating_files  copy the files, check them, choose numbers, write the recipe        -> queued, failed
    queued            take one of the places of jobs that run                             -> running
    running           start the run, relay its log, start it again where it was lost      -> succeeded, failed
    pausing           let it save and end                                                 -> paused
    final             see that nothing works on it any more, tell the receivers of webhooks
"""

import time
from pathlib import Path

from tunesmith.errors import RunFault
from tunesmith.inference.types import Target
from tunesmith.rundir.commit import fault_point
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.jobs.adapter_files import write_served_adapter
from tunesmith.serving.jobs.copies import own_adapter, own_files
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.job_run import JobRun, Place
from tunesmith.serving.jobs.parity import require_parity
from tunesmith.serving.jobs.publication import put_result, require_published_export
from tunesmith.serving.jobs.recipe import KEPT_CHECKPOINTS, write_recipe
from tunesmith.serving.jobs.records import add_events, drop_checkpoints, move, publish, put_checkpoint
from tunesmith.serving.jobs.relay import ApiEvent, CheckpointMade, Relay, result_csv
from tunesmith.serving.jobs.validation import JobRequest, validate
from tunesmith.serving.names import checkpoint_name
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Job
from tunesmith.serving.webhooks import Endpoint, Mailbox, event_of

ETA_EVERY_S = 2.0


class JobStages:
    """One job's stages. Kept between calls, so that a log is read on from where it was; a new one reads it from its
    start, to the same end."""

    def __init__(self, store: Store, blobs: Blobs, settings: Settings, job_id: str):
        self.store, self.blobs, self.settings = store, blobs, settings
        self.directory = settings.home / "jobs" / job_id
        place = Place(settings.backend, settings.address or "", str(settings.cluster or ""))
        self.run = JobRun(self.directory, settings.runs / job_id, place)
        self.relay = Relay(self.run.run)
        self._made: dict[int, CheckpointMade] = {}
        self._eta_told = 0.0
        self._place_told = ""

    def advance(self, job: Job) -> None:
        """Do what the job's state asks for. A JobFault on the way ends it as failed."""
        try:
            if job.status == "validating_files":
                self._validate(job)
            elif job.status == "queued":
                self._begin(job)
            elif job.status == "running":
                self._follow(job)
            elif job.status == "pausing":
                self._pause(job)
            elif job.status in FINAL:
                self._settle(job)
        except JobFault as fault:
            self.fail(job, fault)

    def fail(self, job: Job, fault: JobFault) -> None:
        event = ApiEvent("failed", time.time(), f"The job failed: {fault.message}", "error")
        move(
            self.store,
            job.id,
            [job.status],
            "failed",
            [event],
            error=fault.as_json(),
            finished_at=int(time.time()),
            estimated_finish=None,
        )

    def tell_once_an_hour(self, job: Job, message: str) -> None:
        """What the job waits for, as a warning among its events."""
        told = ApiEvent(f"waits:{int(time.time()) // 3600}:{message}", time.time(), message, "warn")
        add_events(self.store, job.id, [told])

    def _validate(self, job: Job) -> None:
        told = ApiEvent("validating", time.time(), f"Validating training file: {job.training_file}")
        add_events(self.store, job.id, [told])
        files = own_files(self.store, self.blobs, job, self.directory)
        fault_point("job.copied")
        request = self._request(job)
        found = validate(request, files)
        require_parity(found.recipe, Target(found.base, request.start_from))
        write_recipe(found.recipe, self.run.recipe)
        fault_point("job.validated")
        now = time.time()
        notes = [ApiEvent(note.key, now, note.message, note.level) for note in found.notes]
        told = ApiEvent("validated", now, "Files validated, moving job to queued state")
        method = {"type": request.method, request.method: {"hyperparameters": found.numbers}}
        fields = {"hyperparameters": found.numbers, "method": method, "run_dir": str(self.run.run.root)}
        move(self.store, job.id, ["validating_files"], "queued", [*notes, told], **fields)
        fault_point("job.queued")

    def _request(self, job: Job) -> JobRequest:
        """Raises JobFault where base or earlier model were taken away meanwhile."""
        base, earlier = self.settings.bases.get(job.base), None
        if base is None:
            raise JobFault("model_not_found", f"The base model {job.base} is not served any more.", "model")
        if job.stacked_on is not None:
            earlier = self.store.models.get(job.stacked_on, job.organization)
            if earlier is None:
                raise JobFault(
                    "model_not_found", f"The model {job.stacked_on} was deleted before the job began.", "model"
                )
        method = job.method["type"]
        start_from = own_adapter(Path(earlier.adapter), self.directory) if earlier else None
        hyperparameters = job.method[method]["hyperparameters"]
        return JobRequest(job.id, base, start_from, method, hyperparameters, job.seed, self.settings.deidentify)

    def _begin(self, job: Job) -> None:
        """The job was claimed for one of the places of jobs that run."""
        moved = move(
            self.store, job.id, ["queued"], "running", [ApiEvent("started", time.time(), "Fine-tuning job started")]
        )
        fault_point("job.placed")
        if moved is not None:
            self._follow(moved)

    def _follow(self, job: Job) -> None:
        if (said := self.run.refused()) is not None:
            raise JobFault("run_failed", said)
        standing = self.run.standing()
        self._relay(job, at_end=standing in ("finished", "failed"))
        if standing in ("absent", "preempted", "lost"):
            if self.run.cluster_is_away():
                self.tell_once_an_hour(job, "The cluster does not answer: the job waits for it")
            elif standing == "lost" and self._has_vanished(job):
                raise JobFault("run_lost", f"The run directory of the job is gone: {self.run.run.root}")
            elif not self.run.start():
                raise JobFault("run_lost", f"The run was lost again and again: {self.run.why_failed()}")
        elif standing == "failed":
            raise JobFault("run_failed", self.run.why_failed())
        elif standing == "finished":
            self._finish(job)
        else:
            self._tell_place(job)
            self._tell_eta(job)

    def _has_vanished(self, job: Job) -> bool:
        """Whether the run was taken away: its steps were told of, and its plan is not there any more."""
        return not self.run.run.exists and self.store.events.any_metrics(job.id)

    def _relay(self, job: Job, *, at_end: bool = False) -> None:
        """The log's news to the store: events, then checkpoints, of which the last three stay."""
        found = self.relay.new(at_end=at_end)
        if not found:
            return
        fault_point("job.relay")
        self._made |= {item.step: item for item in found if isinstance(item, CheckpointMade)}
        kept, events = sorted(self._made)[-KEPT_CHECKPOINTS:], []
        for item in found:
            if isinstance(item, ApiEvent):
                events.append(item)
            elif item.step in kept:
                add_events(self.store, job.id, events)
                events = []
                self._keep(job, item)
        add_events(self.store, job.id, events)
        drop_checkpoints(self.store, job.id, kept, self.run.adapters)

    def _keep(self, job: Job, made: CheckpointMade) -> None:
        target = self.run.adapters / f"step-{made.step}"
        if self.store.checkpoints.get(checkpoint_name(self._name(job), made.step)) is not None:
            return  # told before; the user may have deleted its model since
        if not made.path.is_dir() and not target.is_dir():
            return  # of an earlier life, and gone since
        try:
            write_served_adapter(self.run.run, made.path, target)
        except (OSError, RunFault, ValueError) as error:
            told = f"The checkpoint of step {made.step} cannot be served: {error}"
            add_events(self.store, job.id, [ApiEvent(f"checkpoint:{made.step}:lost", time.time(), told, "warn")])
            return
        fault_point("job.checkpoint")
        put_checkpoint(self.store, job, self._name(job), made, target)

    @staticmethod
    def _name(job: Job) -> str:
        """Of the model to come; it was chosen when the job was made, so that it is the same at every try."""
        return (job.details or {})["name"]

    def _tell_place(self, job: Job) -> None:
        """Where a cluster took the run, an event says under which name: it may wait there, in the state `running`."""
        taker, name = self.run.handed_over()
        if name and name != self._place_told:
            told = ApiEvent(f"place:{name}", time.time(), f"Handed over to {taker} as job {name}")
            add_events(self.store, job.id, [told])
            self._place_told = name

    def _tell_eta(self, job: Job) -> None:
        status = self.run.status
        if status is None or status.eta_s is None or time.monotonic() - self._eta_told < ETA_EVERY_S:
            return
        self._eta_told = time.monotonic()
        self.store.jobs.update(job.id, estimated_finish=int(time.time() + status.eta_s))

    def _finish(self, job: Job) -> None:
        """Publish: the export and its tokens are held against what was trained before the name exists."""
        last = self.run.adapters / f"step-{max(self._made)}" if self._made else None
        require_published_export(self.run, last)
        fault_point("job.result")
        result = put_result(self.store, self.blobs, job, result_csv(self.relay.metrics))
        fault_point("job.publish")
        publish(self.store, job, self._name(job), self.run.run.export, result, self.relay.trained_tokens)
        fault_point("job.published")

    def _pause(self, job: Job) -> None:
        stopped = self.run.ask_to_stop()
        standing = self.run.standing()
        self._relay(job, at_end=standing in ("finished", "failed"))
        if not stopped:
            return
        if standing == "finished":
            self._finish(job)
        elif standing == "failed":
            raise JobFault("run_failed", self.run.why_failed())
        else:
            told = ApiEvent(f"paused:{time.time_ns()}", time.time(), "Fine-tuning job paused")
            move(self.store, job.id, ["pausing"], "paused", [told], estimated_finish=None)

    def _settle(self, job: Job) -> None:
        if self.run.standing() == "working" and not self.run.ask_to_stop():
            return
        fault_point("job.settle")
        event = event_of(job.id, job.status, job.finished_at or int(time.time()))
        self.directory.mkdir(parents=True, exist_ok=True)
        receivers = [Endpoint(hook.url, hook.secret) for hook in self.settings.webhooks]
        if Mailbox(self.directory / "webhooks.json", receivers).deliver(event):
            self.store.jobs.update(job.id, settled=True)
