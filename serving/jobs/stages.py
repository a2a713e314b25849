"""The processing of a job, by state. A stage may be interrupted at any point and is then repeated: every action is
recorded in the store before it is taken, or is idempotent.

    validating_files  copy and validate the files, resolve "auto", write the recipe       -> queued, failed
    queued            occupy a slot                                                       -> running
    running           start the run, relay its log, restart it if it is lost              -> succeeded, failed
    pausing           stop the run after it has saved                                     -> paused
    final             stop the run if still working, deliver the webhooks
"""

import time
from pathlib import Path

from tunesmith.errors import RunFault
from tunesmith.inference.types import Target
from tunesmith.rundir.faults import fault_point
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.jobs.adapter_files import write_served_adapter
from tunesmith.serving.jobs.copies import copy_adapter, copy_files
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.job_run import ClusterSpec, JobRun
from tunesmith.serving.jobs.parity import require_parity
from tunesmith.serving.jobs.publication import put_result, require_published_export
from tunesmith.serving.jobs.recipe import KEPT_CHECKPOINTS, write_recipe
from tunesmith.serving.jobs.records import (
    add_events,
    checkpoint_event,
    drop_checkpoints,
    move,
    publish,
    put_checkpoint,
)
from tunesmith.serving.jobs.relay import ApiEvent, Relay, SavedCheckpoint, result_csv
from tunesmith.serving.jobs.validation import JobRequest, validate
from tunesmith.serving.names import checkpoint_name
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Job
from tunesmith.serving.webhooks import Endpoint, WebhookDeliveries, event_of

ETA_EVERY_S = 2.0


class JobStages:
    """Processes one job. Keeps its position in the event log between calls; a new object reads the log from the start,
    with the same result."""

    def __init__(self, store: Store, blobs: Blobs, settings: Settings, job_id: str):
        self.store, self.blobs, self.settings = store, blobs, settings
        self.directory = settings.home / "jobs" / job_id
        cluster = ClusterSpec(settings.backend, settings.address or "", str(settings.cluster or ""))
        self.run = JobRun(self.directory, settings.runs / job_id, cluster)
        self.relay = Relay(self.run.run)
        self._saved: dict[int, SavedCheckpoint] = {}
        self._eta_updated_at = 0.0
        self._reported_cluster_job = ""
        self.is_delivering = False
        """Whether nothing is left to do but to send the webhooks."""

    def advance(self, job: Job) -> None:
        """Take the next action for the job's state. A JobFault fails the job."""
        try:
            if job.status == "validating_files":
                self._validate(job)
            elif job.status == "queued":
                self._start(job)
            elif job.status == "running":
                self._follow(job)
            elif job.status == "pausing":
                self._pause(job)
            elif job.status in FINAL:
                self._settle(job)
        except JobFault as fault:
            self.fail(job, fault)

    def fail(self, job: Job, fault: JobFault) -> None:
        event = ApiEvent("failed", time.time(), fault.as_event(), "error")
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

    def warn_once_an_hour(self, job: Job, message: str) -> None:
        """Add a warning event about what the job waits for, at most once an hour."""
        event = ApiEvent(f"waits:{int(time.time()) // 3600}:{message}", time.time(), message, "warn")
        add_events(self.store, job.id, [event])

    def _validate(self, job: Job) -> None:
        event = ApiEvent("validating", time.time(), f"Validating training file: {job.training_file}")
        add_events(self.store, job.id, [event])
        files = copy_files(self.store, self.blobs, job, self.directory)
        fault_point("job.copied")
        request = self._request(job)
        validated = validate(request, files)
        require_parity(validated.recipe, Target(validated.base, request.start_from))
        write_recipe(validated.recipe, self.run.recipe)
        fault_point("job.validated")
        now = time.time()
        events = [ApiEvent(note.key, now, note.message, note.level) for note in validated.notes]
        events.append(ApiEvent("validated", now, "Files validated, moving job to queued state"))
        method = {"type": request.method, request.method: {"hyperparameters": validated.numbers}}
        fields = {"hyperparameters": validated.numbers, "method": method, "run_dir": str(self.run.run.root)}
        move(self.store, job.id, ["validating_files"], "queued", events, **fields)
        fault_point("job.queued")

    def _request(self, job: Job) -> JobRequest:
        """The job as requested. Raises JobFault if its base or the model to continue from was removed."""
        base, earlier = self.settings.bases.get(job.base), None
        if base is None:
            raise JobFault("model_not_found", f"The base model {job.base} is no longer served.", "model")
        if job.stacked_on is not None:
            earlier = self.store.models.get(job.stacked_on, job.organization)
            if earlier is None:
                raise JobFault(
                    "model_not_found", f"The model {job.stacked_on} was deleted before the job started.", "model"
                )
        method = job.method["type"]
        start_from = copy_adapter(Path(earlier.adapter), self.directory) if earlier else None
        hyperparameters = job.method[method]["hyperparameters"]
        return JobRequest(
            job.id,
            base,
            start_from,
            method,
            hyperparameters,
            job.seed,
            self.settings.deidentify,
            self.settings.split_special_tokens,
            job.integrations or (),
        )

    def _start(self, job: Job) -> None:
        """Move a queued job, whose claim occupies a slot, to running."""
        moved = move(
            self.store, job.id, ["queued"], "running", [ApiEvent("started", time.time(), "Fine-tuning job started")]
        )
        fault_point("job.placed")
        if moved is not None:
            self._follow(moved)

    def _follow(self, job: Job) -> None:
        if (message := self.run.launch_error()) is not None:
            raise JobFault("run_failed", message)
        state = self.run.state()
        self._relay(job, at_end=state in ("finished", "failed"))
        if state in ("absent", "preempted", "lost"):
            if self.run.cluster_is_unreachable():
                self.warn_once_an_hour(job, "The cluster is not responding: the job waits for it")
            elif state == "lost" and self._is_deleted(job):
                raise JobFault("run_lost", f"The run directory of the job was deleted: {self.run.run.root}")
            elif not self.run.start():
                raise JobFault("run_lost", f"The run was lost repeatedly: {self.run.failure().message}")
        elif state == "failed":
            raise self.run.failure()
        elif state == "finished":
            self._finish(job)
        else:
            self._report_cluster_job(job)
            self._update_eta(job)

    def _is_deleted(self, job: Job) -> bool:
        """Whether the run directory was deleted: the job has metrics, but the directory has no plan."""
        return not self.run.run.exists and self.store.events.any_metrics(job.id)

    def _relay(self, job: Job, *, at_end: bool = False) -> None:
        """Write what is new in the log to the store: events and checkpoints, of which the last three are kept. Every
        checkpoint has its event, also one that was deleted while no supervisor was running."""
        items = self.relay.new(at_end=at_end)
        if not items:
            return
        fault_point("job.relay")
        self._saved |= {item.step: item for item in items if isinstance(item, SavedCheckpoint)}
        kept, events = sorted(self._saved)[-KEPT_CHECKPOINTS:], []
        for item in items:
            if isinstance(item, ApiEvent):
                events.append(item)
            elif item.step in kept:
                add_events(self.store, job.id, events)
                events = []
                self._put_checkpoint(job, item)
            else:
                events.append(checkpoint_event(self._name(job), item))
        add_events(self.store, job.id, events)
        drop_checkpoints(self.store, job.id, kept, self.run.adapters)

    def _put_checkpoint(self, job: Job, saved: SavedCheckpoint) -> None:
        target = self.run.adapters / f"step-{saved.step}"
        if self.store.checkpoints.get(checkpoint_name(self._name(job), saved.step)) is not None:
            return  # added before; the user may have deleted its model since
        if not saved.path.is_dir() and not target.is_dir():
            add_events(self.store, job.id, [checkpoint_event(self._name(job), saved)])
            return  # written by an earlier attempt, and deleted since
        try:
            write_served_adapter(self.run.run, saved.path, target)
        except (OSError, RunFault, ValueError) as error:
            message = f"The checkpoint of step {saved.step} cannot be served: {error}"
            add_events(self.store, job.id, [ApiEvent(f"checkpoint:{saved.step}:lost", time.time(), message, "warn")])
            return
        fault_point("job.checkpoint")
        put_checkpoint(self.store, job, self._name(job), saved, target)

    @staticmethod
    def _name(job: Job) -> str:
        """The name of the model, chosen when the job was created, so that it does not change between attempts."""
        return (job.details or {})["name"]

    def _report_cluster_job(self, job: Job) -> None:
        """Add an event with the cluster's job id; the job is `running` even while it is pending there."""
        cluster, id = self.run.cluster_job()
        if id and id != self._reported_cluster_job:
            event = ApiEvent(f"place:{id}", time.time(), f"Submitted to {cluster} as job {id}")
            add_events(self.store, job.id, [event])
            self._reported_cluster_job = id

    def _update_eta(self, job: Job) -> None:
        status = self.run.status
        if status is None or status.eta_s is None or time.monotonic() - self._eta_updated_at < ETA_EVERY_S:
            return
        self._eta_updated_at = time.monotonic()
        self.store.jobs.update(job.id, estimated_finish=int(time.time() + status.eta_s))

    def _finish(self, job: Job) -> None:
        """Publish the model, after the checks of its export and tokens."""
        last = self.run.adapters / f"step-{max(self._saved)}" if self._saved else None
        require_published_export(self.run, last)
        fault_point("job.result")
        result = put_result(self.store, self.blobs, job, result_csv(self.relay.metrics))
        fault_point("job.publish")
        publish(self.store, job, self._name(job), self.run.run.export, result, self.relay.trained_tokens)
        fault_point("job.published")

    def _pause(self, job: Job) -> None:
        stopped = self.run.request_stop()
        state = self.run.state()
        self._relay(job, at_end=state in ("finished", "failed"))
        if not stopped:
            return
        if state == "finished":
            self._finish(job)
        elif state == "failed":
            raise self.run.failure()
        else:
            event = ApiEvent(f"paused:{time.time_ns()}", time.time(), "Fine-tuning job paused")
            move(self.store, job.id, ["pausing"], "paused", [event], estimated_finish=None)

    def _settle(self, job: Job) -> None:
        if self.run.state() == "working" and not self.run.request_stop():
            return
        fault_point("job.settle")
        event = event_of(job.id, job.status, job.finished_at or int(time.time()))
        self.directory.mkdir(parents=True, exist_ok=True)
        receivers = [Endpoint(hook.url, hook.secret) for hook in self.settings.webhooks]
        if receivers and not self.is_delivering:
            self.is_delivering = True  # the next call, in a thread for deliveries, sends them
            return
        if WebhookDeliveries(self.directory / "webhooks.json", receivers).deliver(event):
            self.store.jobs.update(job.id, settled=True)
