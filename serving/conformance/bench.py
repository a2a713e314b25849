"""The server under test as the checks see it, and everything that they made on it."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from openai import APIStatusError, OpenAI, OpenAIError
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob

from tunesmith.serving.conformance.outcome import Broken, LeftOut
from tunesmith.serving.conformance.rows import Row, as_jsonl, chat_rows

FINAL = ("succeeded", "failed", "cancelled")
REQUEST_S = 180.0
TELL_EVERY_S, MAX_PAUSE_S = 10.0, 5.0
TRAIN_ROWS, VALIDATION_ROWS, EPOCHS, BATCH = 32, 6, 3, 4
"""24 steps: with the messages, more events than a page of 20 holds."""


class Bench:
    """client: as users have it. strict: the same without retries, so that a refusal is seen at once.

    base: the model that jobs are made for. label: the metadata of every job made here. say: is told what is waited
    for. wait_s: how long one job may take. job: of a finished job that is looked at in place of training one.
    """

    def __init__(
        self,
        url: str,
        key: str,
        base: str,
        *,
        say: Callable[[str], None] = lambda _: None,
        wait_s: float = 1800.0,
        job: str | None = None,
    ):
        self.url, self.key, self.base, self.say, self.wait_s = url, key, base, say, wait_s
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
        """A job for the base, marked as one of these checks."""
        labels = {"conformance": self.label, **(fields.pop("metadata", None) or {})}
        jobs = (client or self.client).fine_tuning.jobs
        job = jobs.create(**{"model": self.base, "metadata": labels, **fields})
        self._jobs.append(job.id)
        return job

    def create_of(self, rows: Sequence[Row], **fields: Any) -> FineTuningJob:
        return self.create(training_file=self.file(rows).id, **fields)

    def retrieve(self, id: str) -> FineTuningJob:
        return self.client.fine_tuning.jobs.retrieve(id)

    def wait(self, id: str, until: Callable[[FineTuningJob], object], what: str) -> FineTuningJob:
        """The job once it is so. Raises Broken where it takes longer than `wait_s`."""
        started = told = time.monotonic()
        pause_s = 0.2
        while True:
            job = self.retrieve(id)
            if until(job):
                return job
            now = time.monotonic()
            if now - started > self.wait_s:
                raise Broken(f"the job {id} is still {job.status} after {self.wait_s:g} s; waited for: {what}")
            if now - told > TELL_EVERY_S:
                told = now
                self.say(f"waiting for {what}: {id} is {job.status} ({now - started:.0f} s)")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.3, MAX_PAUSE_S)

    def end_of(self, id: str) -> FineTuningJob:
        return self.wait(id, lambda job: job.status in FINAL, "the end of a job")

    def begin_training(self) -> None:
        """Start the job that most checks look at; others run meanwhile."""
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
        """Of the job that `begin_training` began, at its end or not."""
        if self._trained_id is None:
            raise LeftOut("no job was trained")
        return self._trained_id

    def trained(self) -> FineTuningJob:
        """The job at its good end."""
        job = self.end_of(self.training_id)
        if job.status != "succeeded":
            raise Broken(f"the job {job.id} is {job.status}: {job.error.message if job.error else 'without an error'}")
        return job

    def tuned(self) -> str:
        name = self.trained().fine_tuned_model
        if not name:
            raise Broken("the job succeeded without a fine_tuned_model")
        return name

    def clean_up(self) -> list[str]:
        """Cancel, then delete what was made: models, results, files, uploads. Returns what could not be removed."""
        left: list[str] = []
        for id in reversed(self._jobs):
            self._remove_job(id, left)
        for id in self._uploads:
            _try(lambda id=id: self.strict.uploads.cancel(id), id, left, gone=(400, 404))
        for id in dict.fromkeys(self._files):
            _try(lambda id=id: self.client.files.delete(id), id, left, gone=(404,))
        return left

    def _remove_job(self, id: str, left: list[str]) -> None:
        """Jobs themselves stay: the API has no call that deletes one."""
        _try(lambda: self.strict.fine_tuning.jobs.cancel(id), id, left, gone=(400, 404))
        try:
            job = self.end_of(id)
        except (Broken, OpenAIError) as error:
            left.append(f"{id}: {error}")
            return
        self._files += job.result_files or []
        if name := job.fine_tuned_model:
            _try(lambda: self.client.models.delete(name), name, left, gone=(404,))


def _try(call: Callable[[], object], what: str, left: list[str], gone: tuple[int, ...]) -> None:
    try:
        call()
    except APIStatusError as error:
        if error.status_code not in gone:
            left.append(f"{what}: {error}")
    except OpenAIError as error:
        left.append(f"{what}: {error}")
