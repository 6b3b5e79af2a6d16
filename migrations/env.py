"""Alembic's entry: one connection, one transaction, and one migrator at a time."""

import structlog
from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

log = structlog.get_logger()

#: Any fixed number: two processes that start together take it in turn.
MIGRATION_LOCK = 7_405_318_114


def run() -> None:
    engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=NullPool)
    with engine.connect() as connection, connection.begin():
        turn = {"lock": MIGRATION_LOCK}
        if not connection.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), turn):
            log.warning("waiting_for_another_migration")
            connection.execute(text("SET LOCAL lock_timeout = '10min'"))  # as long as the other may need
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), turn)
        # A migration that cannot get its locks gives up instead of stopping every booking behind it.
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        context.configure(connection=connection)
        context.run_migrations()
    engine.dispose()


run()
