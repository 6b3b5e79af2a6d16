"""The way to Postgres: a bounded pool, every wait bounded, and what an error of the server means.

One statement per round trip, each its own transaction (autocommit): when a function here returns, its change is
committed. A server's error is final and says so; a reply that never came is *in doubt* (design 4). A violated rule is
told by its name: whose it is, and what a statement says, it must not know.
"""

import asyncio
import random
import select
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.rows import namedtuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from app.errors import Busy, DatabaseUnavailable, Overloaded

T = TypeVar("T")
Row = Any  # psycopg's named tuples: the fields are those of the statement above each use

#: The server ends a statement that waits this long for a lock: the answer is "busy", never "taken".
LOCK_TIMEOUT_MS = 1_000
#: … or that runs this long in all.
STATEMENT_TIMEOUT_MS = 2_000
#: No reply after this long: the connection is given up, its statement in doubt. More than the server allows itself.
REPLY_TIMEOUT_SECONDS = 3.0
#: Waiting for a free connection, and how many may wait at once.
POOL_TIMEOUT_SECONDS = 1.0
POOL_MAX_WAITING = 1_000
#: Connections per process. A commit takes about a millisecond: few of them carry thousands a second.
POOL_MAX_SIZE = 8
#: Bookings that may wait for the next commit, or looks for the next statement, and for how long.
MAX_WAITING = 2_000
MAX_WAITING_SECONDS = 1.0
#: A commit that takes longer waits for somebody's lock or for a slow disk: the next begins beside it.
SLOW_COMMIT_SECONDS = 0.1
#: Deadlocks and serialization failures are tried again, a little apart.
MAX_TRIES = 3


class InDoubt(Exception):
    """The statement was sent, its reply never came."""


class NoConnection(Busy):
    """All connections were at work: nothing was sent."""


class RuleViolated(Exception):
    """Layer 3 refused: a constraint that layers 1 and 2 should have kept."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class Postgres:
    """A bounded pool of connections, and how a statement runs on one of them."""

    def __init__(self, database_url: str) -> None:
        self.pool: AsyncConnectionPool[psycopg.AsyncConnection[Row]] = AsyncConnectionPool(
            database_url,
            kwargs={
                "autocommit": True,
                "connect_timeout": 2,
                "row_factory": namedtuple_row,
                "application_name": "holdfast",
                "options": f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS}"
                " -c TimeZone=UTC",
                # A dead network is noticed by TCP itself within seconds, also while nobody waits.
                "keepalives_idle": 10,
                "tcp_user_timeout": 5_000,
            },
            min_size=1,
            max_size=POOL_MAX_SIZE,
            timeout=POOL_TIMEOUT_SECONDS,
            max_waiting=POOL_MAX_WAITING,
            reconnect_timeout=0.5,  # give up early and try anew with the next request: Postgres may be back by then
            open=False,
        )

    async def rows(self, statement: str, values: Any) -> list[Row]:
        """Run one statement in its own transaction, bounded in every wait.

        Raises:
            InDoubt: sent, but no reply came.
            RuleViolated, Busy, Overloaded, DatabaseUnavailable(effect_none=True): certainly without effect.
        """
        for attempt in range(1, MAX_TRIES + 1):
            try:
                return await self._rows_once(statement, values)
            except (pg.DeadlockDetected, pg.SerializationFailure) as error:
                if attempt == MAX_TRIES:
                    raise Busy from error
                await asyncio.sleep(random.uniform(0.005, 0.02) * attempt)  # noqa: S311 jitter is no secret
        raise AssertionError("unreachable")

    async def settled_rows(self, statement: str, values: Any) -> list[Row]:
        """Run a statement that may be lost without harm: reads, and changes that find themselves done."""
        try:
            return await self.rows(statement, values)
        except InDoubt as error:
            raise DatabaseUnavailable(effect_none=True) from error

    async def settled_row(self, statement: str, values: Any) -> Row | None:
        rows = await self.settled_rows(statement, values)
        return rows[0] if rows else None

    async def repeatable(self, statement: str, values: Any) -> list[Row]:
        """Run a statement that finds itself done when it is repeated: a lost reply is asked for once more.

        Raises:
            Busy, Overloaded: nothing was written. DatabaseUnavailable: `effect_none` says whether that is certain.
        """
        try:
            return await self.rows(statement, values)
        except InDoubt:
            try:
                return await self.rows(statement, values)
            except (InDoubt, Busy, Overloaded, DatabaseUnavailable) as error:
                raise DatabaseUnavailable(effect_none=False) from error

    async def _rows_once(self, statement: str, values: Any) -> list[Row]:
        failures = self._connection_failures()
        try:
            connection = await self._connection()
        except TooManyRequests as error:
            raise Overloaded from error
        except PoolTimeout as error:
            if self._connection_failures() == failures:
                raise NoConnection from error  # all are at work, none is broken
            raise DatabaseUnavailable(effect_none=True) from error
        reply = asyncio.ensure_future(self._reply(connection, statement, values))
        try:
            return await within(reply, REPLY_TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise InDoubt from error

    async def _connection(self) -> psycopg.AsyncConnection[Row]:
        """Take a connection from the pool that the server has not ended while it was idle.

        Without the look the first requests after a restart of Postgres would be sent into dead sockets, and be in
        doubt. Not the pool's own `check`: after a failed one it waits a second before it takes the next.
        """
        while True:
            connection = await self.pool.getconn()
            if not _has_ended(connection):
                return connection
            await connection.close()
            await self.pool.putconn(connection)

    def _connection_failures(self) -> int:
        stats = self.pool.get_stats()
        return stats.get("connections_errors", 0) + stats.get("connections_lost", 0)

    async def _reply(self, connection: psycopg.AsyncConnection[Row], statement: str, values: Any) -> list[Row]:
        """Execute and fetch, and give the connection back: also when nobody waits for the reply any more."""
        try:
            cursor = await connection.execute(statement, values)
            return await cursor.fetchall()
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
            raise _translated(error) from error
        except psycopg.IntegrityError as error:
            raise RuleViolated(error.diag.constraint_name or "") from error
        finally:
            await self.pool.putconn(connection)


async def within(reply: asyncio.Future[T], seconds: float) -> T:
    """Wait for a reply without cancelling it: psycopg takes seconds to cancel (reliability.md 4.2, row 44).

    A reply that comes too late, or whose caller went away, is finished in the background.
    """
    # Whether or not somebody is still there to be told of it: else asyncio would report an error that nobody asked for.
    reply.add_done_callback(lambda future: future.cancelled() or future.exception())
    done, _ = await asyncio.wait({reply}, timeout=seconds)
    if not done:
        raise TimeoutError("no answer from Postgres")
    return reply.result()


def _has_ended(connection: psycopg.AsyncConnection[Row]) -> bool:
    """Look whether an idle connection has something to say: it can only be goodbye. Costs no round trip."""
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poller.poll(0))


def _translated(error: psycopg.Error) -> Exception:
    """Tell the server's words apart: busy, unable, or no word at all (in doubt)."""
    if isinstance(error, pg.DeadlockDetected | pg.SerializationFailure):
        return error
    if isinstance(error, pg.LockNotAvailable | pg.QueryCanceled):
        return Busy()
    state = error.sqlstate or ""
    # Insufficient resources, a read-only server, not accepting connections: it said no, so nothing was done.
    if state.startswith("53") or state in {"25006", "57P03"}:
        return DatabaseUnavailable(effect_none=True)
    # No state: the connection broke. 57P01/57P02: the server was told to end it, perhaps after the commit.
    if not state or state.startswith(("08", "57P")):
        return InDoubt()
    return error


def told_again(error: Exception) -> Exception:
    """Make one's own copy of an error that several callers are told."""
    if isinstance(error, DatabaseUnavailable):
        return DatabaseUnavailable(effect_none=error.effect_none)
    return type(error)() if isinstance(error, Busy | Overloaded) else error
