"""The stores as commands use them: the engine without its loops, and short looks before a start."""

import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from app.database import Database
    from app.domain import Caller
    from app.engine import Engine

T = TypeVar("T")


def with_engine(use: Callable[["Engine"], Coroutine[Any, Any, T]]) -> T:
    """Open the stores, run one use of them, and close them."""
    import asyncio

    async def run() -> T:
        async with opened() as engine:
            return await use(engine)

    return asyncio.run(run())


def with_database(use: Callable[["Engine", "Database"], Coroutine[Any, Any, T]]) -> T:
    """Like `with_engine`, with the lists of operators beside it. Imports SQLAlchemy."""
    from app.database import Database

    async def run(engine: "Engine") -> T:
        database = Database(engine.settings.database_url)
        try:
            return await use(engine, database)
        finally:
            await database.close()

    return with_engine(run)


@asynccontextmanager
async def opened() -> AsyncIterator["Engine"]:
    """The engine without its loops: a command looks, does one thing, and leaves sweeping to the service."""
    from app.cli.home import store_settings
    from app.engine import Engine

    be_quiet()
    engine = Engine(store_settings())
    await engine.ledger.pool.open()
    try:
        yield engine
        await engine.drain()
    finally:
        await engine.ledger.pool.close()
        with suppress(Exception):
            await engine.holds.client.aclose()


def be_quiet() -> None:
    """What concerns the user of a command is an exception; log lines would only run into its output."""
    from app.telemetry import configure_logging

    configure_logging(logging.CRITICAL)
    logging.disable(logging.CRITICAL)


def require_redis(engine: "Engine", consequence: str) -> None:
    """Go on only if Redis answered; `consequence` is what an answer without it lacks.

    Raises:
        RedisAway
    """
    from app.breaker import RedisAway

    if engine.holds.breaker.failures:
        raise RedisAway(consequence)


def operator() -> "Caller":
    """Who acts, for the audit log."""
    from app.domain import Caller

    return Caller("operator", None)


def schema_problem(database_url: str) -> str | None:
    """Tell what is wrong with the schema, or None.

    A revision that this program does not know is newer: old code runs on the next schema (style 5.4).

    Raises:
        ConnectionError: Postgres cannot be reached.
    """
    import psycopg

    known, head = revisions()
    try:
        with psycopg.connect(database_url, autocommit=True, connect_timeout=3) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except psycopg.errors.UndefinedTable:
        row = None
    except psycopg.OperationalError as error:
        raise ConnectionError(str(error).strip().splitlines()[0]) from error
    if row is None:
        return "The database has no schema yet"
    if row[0] in known and row[0] != head:
        return f"The schema is at {row[0]}, this program needs {head}"
    return None


def revisions() -> tuple[set[str], str]:
    """Tell all revisions and the newest. Read from the files, because importing Alembic takes seconds."""
    from app.paths import migrations_dir

    text = "\n".join(path.read_text() for path in (migrations_dir() / "versions").glob("*.py"))
    known = set(re.findall(r'^revision(?:: str)? = "(\w+)"', text, re.MULTILINE))
    [head] = known - set(re.findall(r'^down_revision(?:: [^=]+)? = "(\w+)"', text, re.MULTILINE))
    return known, head


def evicts(redis_url: str) -> bool:
    import asyncio

    from app.holds import Holds
    from app.pipelines import connect

    async def ask() -> bool:
        holds = Holds(connect(redis_url))
        try:
            return await holds.pipelines.evicts()
        finally:
            with suppress(Exception):
                await holds.client.aclose()

    return asyncio.run(ask())
