"""Tuned models, checkpoints and checkpoint permissions in the store."""

from collections.abc import Sequence

from sqlalchemy import delete, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tunesmith.serving.store.tables import Checkpoint, Model, Permission
from tunesmith.serving.store.transactions import Slice, Transactions, changed, take


class Models:
    def __init__(self, store: Transactions):
        self._store = store

    def add(self, model: Model, session: Session | None = None) -> Model:
        """Add a model. If the name exists, the existing model is returned unchanged."""
        try:
            with self._store.begin(session) as tx, tx.begin_nested():
                tx.add(model)
        except IntegrityError:
            existing = self.get(model.name, session=session)
            if existing is None:
                raise
            return existing
        return model

    def get(self, name: str, organization: str | None = None, session: Session | None = None) -> Model | None:
        """A model or checkpoint by name; None if it does not exist or belongs to another organization."""
        with self._store.read(session) as tx:
            query = select(Model).where(Model.name == name)
            return tx.scalar(query if organization is None else query.where(Model.organization == organization))

    def list(self, organization: str, *, checkpoints: bool = False) -> Sequence[Model]:
        """Models in order of creation. checkpoints: include the checkpoints of models."""
        with self._store.read() as tx:
            query = select(Model).where(Model.organization == organization)
            if not checkpoints:
                query = query.where(Model.name.not_like("%:ckpt-step-%"))
            return tx.scalars(query.order_by(Model.created_at, Model.sequence)).all()

    def delete(self, name: str, session: Session | None = None) -> Sequence[Model]:
        """Delete a model and its checkpoints; returns the rows, so that the caller can delete their files."""
        with self._store.begin(session) as tx:
            named = or_(Model.name == name, Model.name.startswith(f"{name}:ckpt-step-", autoescape=True))
            deleted = tx.scalars(select(Model).where(named)).all()
            for model in deleted:
                tx.delete(model)
        return deleted


class Checkpoints:
    def __init__(self, store: Transactions):
        self._store = store

    def add(self, checkpoint: Checkpoint, session: Session | None = None) -> Checkpoint:
        """Add a checkpoint. If the job has one of this step, the existing one is returned unchanged."""
        with self._store.begin(session) as tx:
            same = Checkpoint.job_id == checkpoint.job_id, Checkpoint.step_number == checkpoint.step_number
            if (existing := tx.scalar(select(Checkpoint).where(*same))) is not None:
                return existing
            tx.add(checkpoint)
        return checkpoint

    def get(self, id: str, session: Session | None = None) -> Checkpoint | None:
        """A checkpoint by id (`ftckpt_...`) or by model name."""
        with self._store.read(session) as tx:
            return tx.scalar(select(Checkpoint).where(or_(Checkpoint.id == id, Checkpoint.name == id)))

    def list(self, job_id: str, after: Checkpoint | None = None, limit: int = 10) -> Slice[Checkpoint]:
        """Checkpoints of a job, newest first."""
        with self._store.read() as tx:
            query = select(Checkpoint).where(Checkpoint.job_id == job_id)
            return take(tx, query, Checkpoint, after, limit, newest_first=True)

    def delete(self, id: str, session: Session | None = None) -> bool:
        with self._store.begin(session) as tx:
            return changed(tx, delete(Checkpoint).where(Checkpoint.id == id)) == 1


class Permissions:
    def __init__(self, store: Transactions):
        self._store = store

    def add(self, permission: Permission, session: Session | None = None) -> Permission:
        """Add a permission. If the checkpoint and project have one, even one added concurrently, it is returned."""
        same = Permission.checkpoint == permission.checkpoint, Permission.project_id == permission.project_id
        try:
            with self._store.begin(session) as tx, tx.begin_nested():
                if (existing := tx.scalar(select(Permission).where(*same))) is not None:
                    return existing
                tx.add(permission)
        except IntegrityError:
            with self._store.read(session) as tx:
                if (existing := tx.scalar(select(Permission).where(*same))) is None:
                    raise
                return existing
        return permission

    def get(self, id: str, checkpoint: str) -> Permission | None:
        with self._store.read() as tx:
            return tx.scalar(select(Permission).where(Permission.id == id, Permission.checkpoint == checkpoint))

    def list(
        self,
        checkpoint: str,
        after: Permission | None = None,
        limit: int = 10,
        *,
        newest_first: bool = True,
        project_id: str | None = None,
    ) -> Slice[Permission]:
        with self._store.read() as tx:
            query = select(Permission).where(Permission.checkpoint == checkpoint)
            if project_id is not None:
                query = query.where(Permission.project_id == project_id)
            return take(tx, query, Permission, after, limit, newest_first=newest_first)

    def delete(self, id: str) -> bool:
        with self._store.begin() as tx:
            return changed(tx, delete(Permission).where(Permission.id == id)) == 1
