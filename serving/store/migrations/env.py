"""Alembic runs this file; the connection and its transaction are given by `store/migrate.py`."""

from alembic import context

from tunesmith.serving.store.tables import Table

if __name__ == "env_py":  # Alembic's name for it: whoever else imports this file runs nothing
    context.configure(
        connection=context.config.attributes["connection"], target_metadata=Table.metadata, render_as_batch=True
    )
    with context.begin_transaction():
        context.run_migrations()
