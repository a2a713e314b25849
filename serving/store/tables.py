"""The database schema. Lists are ordered by (created_at, sequence); `sequence` numbers rows in order of insertion.

Times are seconds since the epoch: integers if the API returns them, floats otherwise. Rows are returned detached from
their session. A change here needs a migration in `migrations/versions/`; a test compares the two.
"""

from typing import Any, TypedDict

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Count = BigInteger().with_variant(Integer, "sqlite")


class JobError(TypedDict):
    """Why a job failed. param: the parameter of the creation request that caused it, or None."""

    code: str
    message: str
    param: str | None


class Table(DeclarativeBase):
    type_annotation_map = dict.fromkeys(
        (dict[str, Any], dict[str, str], dict[str, float], list[Any], list[str], JobError), JSON(none_as_null=True)
    )


def _sequence() -> Mapped[int]:
    return mapped_column(Count, primary_key=True, autoincrement=True)


def _id(length: int = 64) -> Mapped[str]:
    return mapped_column(String(length), unique=True)


class File(Table):
    """An uploaded file. status: uploaded | processed | error. blob: name of its content under `files_url`."""

    __tablename__ = "files"
    __table_args__ = (Index("files_by_age", "organization", "created_at", "sequence"), {"sqlite_autoincrement": True})

    sequence: Mapped[int] = _sequence()
    id: Mapped[str] = _id()
    organization: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    blob: Mapped[str] = mapped_column(String(128))
    sha256: Mapped[str] = mapped_column(String(64))


class Upload(Table):
    """An upload in parts. status: pending | completed | cancelled | expired."""

    __tablename__ = "uploads"
    __table_args__ = ({"sqlite_autoincrement": True},)

    sequence: Mapped[int] = _sequence()
    id: Mapped[str] = _id()
    organization: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    filename: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    mime_type: Mapped[str] = mapped_column(Text)
    expires_after_s: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    file_id: Mapped[str | None] = mapped_column(String(64))


class Part(Table):
    __tablename__ = "parts"
    __table_args__ = ({"sqlite_autoincrement": True},)

    sequence: Mapped[int] = _sequence()
    id: Mapped[str] = _id()
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    blob: Mapped[str] = mapped_column(String(128))


class Job(Table):
    """A fine-tuning job.

    model: as given in the request. base: a key of `Settings.bases`. stacked_on: the tuned model that it continues from.
    method: as in the API (`{"type", <type>: {"hyperparameters"}}`). labels: the API's `metadata`.
    idempotency: hash of the caller's key, unique per organization. settled: nothing is left to do (no run to start,
    monitor or stop, no webhook to send). claim_owner, claim_until: the supervisor that processes the job, and the end
    of its lease. details: internal state of the supervisor.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("organization", "idempotency", name="jobs_once"),
        Index("jobs_by_age", "organization", "created_at", "sequence"),
        Index("jobs_to_settle", "settled", "status"),
        {"sqlite_autoincrement": True},
    )

    sequence: Mapped[int] = _sequence()
    id: Mapped[str] = _id()
    organization: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    model: Mapped[str] = mapped_column(Text)
    base: Mapped[str] = mapped_column(Text)
    stacked_on: Mapped[str | None] = mapped_column(Text)
    suffix: Mapped[str | None] = mapped_column(Text)
    seed: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[dict[str, Any]]
    hyperparameters: Mapped[dict[str, Any]]
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    labels: Mapped[dict[str, str] | None]
    integrations: Mapped[list[Any] | None]
    status: Mapped[str] = mapped_column(String(32))
    fine_tuned_model: Mapped[str | None] = mapped_column(Text)
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[JobError | None]
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
    estimated_finish: Mapped[int | None] = mapped_column(BigInteger)
    result_files: Mapped[list[str]]
    run_dir: Mapped[str | None] = mapped_column(Text)
    idempotency: Mapped[str | None] = mapped_column(String(64))
    settled: Mapped[bool] = mapped_column(default=False)
    claim_owner: Mapped[str | None] = mapped_column(String(128))
    claim_until: Mapped[float | None] = mapped_column(Float(53))
    details: Mapped[dict[str, Any] | None]


class JobLabel(Table):
    """One key-value pair of a job's metadata, for filtering."""

    __tablename__ = "job_labels"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))


class Event(Table):
    """An event of a job. number: counts from 1 per job. source: what the event reports; one event per source."""

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("job_id", "number", name="events_in_order"),
        UniqueConstraint("job_id", "source", name="events_once"),
        {"sqlite_autoincrement": True},
    )

    sequence: Mapped[int] = _sequence()
    id: Mapped[str] = _id()
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    source: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[int] = mapped_column(BigInteger)
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]


class Checkpoint(Table):
    __tablename__ = "checkpoints"
    __table_args__ = (
        UniqueConstraint("job_id", "step_number", name="checkpoints_once"),
        {"sqlite_autoincrement": True},
    )

    sequence: Mapped[int] = _sequence()
    id: Mapped[str] = _id()
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[int] = mapped_column(BigInteger)
    step_number: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(Text, unique=True)
    metrics: Mapped[dict[str, float]]


class Permission(Table):
    """A project that may use a checkpoint."""

    __tablename__ = "permissions"
    __table_args__ = (
        UniqueConstraint("checkpoint", "project_id", name="permissions_once"),
        {"sqlite_autoincrement": True},
    )

    sequence: Mapped[int] = _sequence()
    id: Mapped[str] = _id()
    organization: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    checkpoint: Mapped[str] = mapped_column(Text)
    project_id: Mapped[str] = mapped_column(Text)


class Model(Table):
    """A tuned model or one of its checkpoints. adapter: its directory. job_id: None for imported models."""

    __tablename__ = "models"
    __table_args__ = ({"sqlite_autoincrement": True},)

    sequence: Mapped[int] = _sequence()
    name: Mapped[str] = mapped_column(Text, unique=True)
    organization: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    base: Mapped[str] = mapped_column(Text)
    adapter: Mapped[str] = mapped_column(Text)
    parent: Mapped[str | None] = mapped_column(Text)
    job_id: Mapped[str | None] = mapped_column(String(64))


class Replay(Table):
    """A response stored under its Idempotency-Key. status: HTTP status; None while the request is in progress."""

    __tablename__ = "replays"
    __table_args__ = (UniqueConstraint("organization", "key_hash", name="replays_once"), {"sqlite_autoincrement": True})

    sequence: Mapped[int] = _sequence()
    organization: Mapped[str] = mapped_column(String(64))
    key_hash: Mapped[str] = mapped_column(String(64))
    request_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float(53), index=True)
    status: Mapped[int | None] = mapped_column(Integer)
    media_type: Mapped[str | None] = mapped_column(Text)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)


class Key(Table):
    """An API key; only its hash is stored. hint: its last characters, to distinguish keys."""

    __tablename__ = "keys"
    __table_args__ = ({"sqlite_autoincrement": True},)

    sequence: Mapped[int] = _sequence()
    id: Mapped[str] = _id()
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(8))
    name: Mapped[str] = mapped_column(Text)
    organization: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]]
    created_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
