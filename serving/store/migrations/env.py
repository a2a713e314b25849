"""Alembic environment; `store/migrate.py` passes the connection with an open transaction."""

from alembic import context

from tunesmith.serving.store.tables import Table

if __name__ == "env_py":  # the name under which Alembic loads this file; other imports have no effect
    context.configure(
        connection=context.config.attributes["connection"], target_metadata=Table.metadata, render_as_batch=True
    )
    with context.begin_transaction():
        context.run_migrations()
