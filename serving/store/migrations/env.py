"""Alembic reads this file; the connection and its transaction are given by `store/migrate.py`."""

from alembic import context

from tunesmith.serving.store.tables import Table


def run(connection) -> None:
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
