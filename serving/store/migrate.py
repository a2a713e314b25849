"""Schema migration. When several processes start at once, one migrates and the others wait."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from tunesmith.errors import InputError

MIGRATIONS = Path(__file__).parent / "migrations"
NEWEST = "first_tables"
"""The revision of the newest file in `migrations/versions`."""


def migrate(connection: Connection) -> None:
    """Upgrade the schema within the transaction of `connection`, which must be exclusive (SQLite: BEGIN IMMEDIATE)."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('tunesmith migrate'))"))
    if (revision := _revision(connection)) == NEWEST:
        return
    if revision is not None and not (MIGRATIONS / "versions" / f"{revision}.py").is_file():
        raise InputError(
            f"the database was written by a newer version: its schema is {str(revision)[:40]!r}",
            where=connection.engine.url.render_as_string(hide_password=True),
            remedy="update tunesmith, or restore the backup from before its last update",
        )
    from alembic import command  # a quarter of a second that only the first process of a new database needs
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
