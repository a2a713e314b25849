"""The server under test, and everything that the checks create on it."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from openai import APIStatusError, OpenAI, OpenAIError
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob

from tunesmith.serving.conformance.outcome import Broken, Skipped
from tunesmith.serving.conformance.rows import Row, as_jsonl, chat_rows

FINAL = ("succeeded", "failed", "cancelled")
REQUEST_S = 180.0
LOG_INTERVAL_S, MAX_DELAY_S = 10.0, 5.0
TRAIN_ROWS, VALIDATION_ROWS, EPOCHS, BATCH = 32, 6, 3, 4
"""24 steps: together with messages, more events than the default page of 20."""


class Bench:
    """client: with the default retries. strict: without retries, so that errors are seen at once.

    base: model that jobs fine-tune. label: metadata of every job created here. log: receives progress messages.
    wait_s: time limit per job. job: id of a finished job to check instead of training one.
    """

    def __init__(
        self,
        url: str,
        key: str,
        base: str,
        *,
        log: Callable[[str], None] = lambda _: None,
        wait_s: float = 1800.0,
        job: str | None = None,
    ):
        self.url, self.key, self.base, self.log, self.wait_s = url, key, base, log, wait_s
        self.client = OpenAI(base_url=url, api_key=key, timeout=REQUEST_S, max_retries=3)
        self.strict = self.client.with_options(max_retries=0)
        self.label = secrets.token_hex(6)
        self.is_own_job = job is None
        self._trained_id = job
        self._files: list[str] = []
        self._jobs: list[str] = []
        self._uploads: list[str] = []

    def file(self, rows: Sequence[Row] | bytes, name: str = "rows.jsonl", **options: Any) -> FileObject:
        content = rows if isinstance(rows, bytes) else as_jsonl(rows)
        file = self.client.files.create(**{"file": (name, content), "purpose": "fine-tune", **options})
        self._files.append(file.id)
        return file

    def upload(self, **fields: Any) -> Any:
        upload = self.client.uploads.create(**fields)
        self._uploads.append(upload.id)
        return upload

    def will_remove_file(self, id: str) -> None:
        self._files.append(id)

    def create(self, client: OpenAI | None = None, **fields: Any) -> FineTuningJob:
        """Create a job for the base model, labelled with the metadata of this run."""
        labels = {"conformance": self.label, **(fields.pop("metadata", None) or {})}
        jobs = (client or self.client).fine_tuning.jobs
        job = jobs.create(**{"model": self.base, "metadata": labels, **fields})
        self._jobs.append(job.id)
        return job

    def create_from_rows(self, rows: Sequence[Row], **fields: Any) -> FineTuningJob:
        return self.create(training_file=self.file(rows).id, **fields)

    def retrieve(self, id: str) -> FineTuningJob:
        return self.client.fine_tuning.jobs.retrieve(id)

    def wait(self, id: str, condition: Callable[[FineTuningJob], object], what: str) -> FineTuningJob:
        """Wait until the condition holds. Returns the job. Raises Broken after `wait_s`."""
        started = logged_at = time.monotonic()
        delay_s = 0.2
        while True:
            job = self.retrieve(id)
            if condition(job):
                return job
            now = time.monotonic()
            if now - started > self.wait_s:
                raise Broken(f"the job {id} is still {job.status} after {self.wait_s:g} s; expected: {what}")
            if now - logged_at > LOG_INTERVAL_S:
                logged_at = now
                self.log(f"waiting for {what}: {id} is {job.status} ({now - started:.0f} s)")
            time.sleep(delay_s)
            delay_s = min(delay_s * 1.3, MAX_DELAY_S)

    def wait_until_finished(self, id: str) -> FineTuningJob:
        return self.wait(id, lambda job: job.status in FINAL, "a finished job")

    def begin_training(self) -> None:
        """Start the job that most checks inspect; other checks run meanwhile."""
        if self._trained_id is None:
            training = self.file(chat_rows(TRAIN_ROWS), "train.jsonl")
            validation = self.file(chat_rows(VALIDATION_ROWS, first=1000), "validation.jsonl")
            hyperparameters = {"n_epochs": EPOCHS, "batch_size": BATCH, "learning_rate_multiplier": 1.0}
            job = self.create(
                training_file=training.id,
                validation_file=validation.id,
                suffix="conformance",
                seed=17,
                method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            )
            self._trained_id = job.id

    @property
    def training_id(self) -> str:
        """Id of the job started by `begin_training`, finished or not."""
        if self._trained_id is None:
            raise Skipped("no job was trained")
        return self._trained_id

    def trained(self) -> FineTuningJob:
        """The training job, once it has succeeded."""
        job = self.wait_until_finished(self.training_id)
        if job.status != "succeeded":
            raise Broken(f"the job {job.id} is {job.status}: {job.error.message if job.error else 'without an error'}")
        return job

    def tuned(self) -> str:
        name = self.trained().fine_tuned_model
        if not name:
            raise Broken("the job succeeded without a fine_tuned_model")
        return name

    def clean_up(self) -> list[str]:
        """Cancel all jobs, and delete models, results, files and uploads. Returns what could not be removed."""
        remaining: list[str] = []
        for id in reversed(self._jobs):
            self._remove_job(id, remaining)
        for id in self._uploads:
            _try(lambda id=id: self.strict.uploads.cancel(id), id, remaining, expected=(400, 404))
        for id in dict.fromkeys(self._files):
            _try(lambda id=id: self.client.files.delete(id), id, remaining, expected=(404,))
        return remaining

    def _remove_job(self, id: str, remaining: list[str]) -> None:
        """Jobs stay in the list: the API has no call to delete one."""
        _try(lambda: self.strict.fine_tuning.jobs.cancel(id), id, remaining, expected=(400, 404))
        try:
            job = self.wait_until_finished(id)
        except (Broken, OpenAIError) as error:
            remaining.append(f"{id}: {error}")
            return
        self._files += job.result_files or []
        if name := job.fine_tuned_model:
            _try(lambda: self.client.models.delete(name), name, remaining, expected=(404,))


def _try(call: Callable[[], object], what: str, remaining: list[str], expected: tuple[int, ...]) -> None:
    try:
        call()
    except APIStatusError as error:
        if error.status_code not in expected:
            remaining.append(f"{what}: {error}")
    except OpenAIError as error:
        remaining.append(f"{what}: {error}")
