"""Postgres by SQLAlchemy Core: what operators keep and read, and the first answers to repeated requests.

A small pool of its own, so that a slow list cannot take a connection from the booking path. Everything is bounded:
waiting for a connection, for a lock, for a statement, for a reply. Knows what the rules of the database are called, and
no statement of those that run here: they are `catalogue`'s, `timetable`'s and `records`'.
"""

import asyncio
import select as os_select
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import psycopg
import sqlalchemy as sa
import structlog
from psycopg import errors as pg
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.errors import (
    Busy,
    Conflict,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    Overloaded,
    Problem,
    ResourceNotFound,
    Unavailable,
)
from app.postgres import LOCK_TIMEOUT_MS, REPLY_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_MS, within
from app.schema import answers, events

log = structlog.get_logger()
T = TypeVar("T")

#: Connections per process: lists and operators' changes are rare beside bookings.
READERS, WRITERS = 4, 2
POOL_TIMEOUT_SECONDS = 1.0
#: A read does no harm when it begins late, and a hundred pages that come at once on a machine with much else to do need
#: longer than that. Only then its reply is waited for; and no more than so many wait.
TURN_SECONDS, MOST_WAITING = 2.5, 1_000

#: A violated rule that the caller can do something about. Any other is a bug, and a 500.
_PROBLEM_BY_RULE: Mapping[str, Callable[[], Problem]] = {
    "venues_slug_unique": lambda: Conflict("There is a venue with this slug"),
    "slots_available_count_range": lambda: Conflict("More places are booked than that capacity has"),
    "bookings_one_live_on_exclusive_slot": lambda: Conflict("More places are booked than that capacity has"),
    "slots_blocks_are_never_sold": lambda: Conflict("This is blocked time: remove the block"),
    "slots_end_after_start": lambda: InvalidRequest("ends_at", "must be after starts_at, by at most 31 days"),
    "slots_of_a_service": lambda: NotFound("Service not found"),
    "service_resources_of_a_service": lambda: NotFound("Service not found"),
    "service_resources_of_a_resource": ResourceNotFound,
    "schedules_dates_in_order": lambda: InvalidRequest("to_date", "must not be before from_date"),
    "schedule_hours_pkey": lambda: InvalidRequest("weekly", "The same hours begin twice"),
}


class Keyed(msgspec.Struct, frozen=True):
    """An Idempotency-Key, what it is used for, and the hash of what was asked."""

    scope: str
    key: str
    fingerprint: bytes


class Answer(msgspec.Struct, frozen=True):
    """The body of an answer, and whether it was given before."""

    body: bytes
    replayed: bool


class Database:
    """Connections, one way to read and one to write. Opens them when first asked, so it starts without Postgres."""

    def __init__(self, database_url: str) -> None:
        # Apart, so that operators' changes, which may wait for locks, never keep a reader waiting. Reads need no
        # transaction: one statement each, one round trip.
        self._reading = _engine(
            database_url,
            READERS,
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
            skip_autocommit_rollback=True,
        )
        #: Whoever has a turn to read finds a connection.
        self._turns, self._waiting = asyncio.Semaphore(READERS), 0
        self._writing = _engine(database_url, WRITERS)

    async def close(self) -> None:
        await self._reading.dispose()
        await self._writing.dispose()

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run one statement.

        Raises:
            Busy, Overloaded: others are reading, or too many wait for it. DatabaseUnavailable
        """

        async def run() -> T:
            async with self._reading.connect() as connection:
                return await work(connection)

        await self._wait_for_turn()
        reply = asyncio.ensure_future(run())
        reply.add_done_callback(lambda _: self._turns.release())  # also of one that nobody waits for any more
        try:
            return await within(reply, REPLY_TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise DatabaseUnavailable(effect_none=True) from error
        except sa_exc.SQLAlchemyError as error:
            raise _translated(error, committing=False) from error

    async def _wait_for_turn(self) -> None:
        if self._waiting >= MOST_WAITING:
            raise Overloaded
        self._waiting += 1
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise Busy from None
        finally:
            self._waiting -= 1

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run one transaction. When this returns, it is committed."""
        committing = False

        async def run() -> T:
            nonlocal committing
            async with self._writing.connect() as connection:
                result = await work(connection)
                committing = True
                await connection.commit()
                return result

        try:
            return await within(asyncio.ensure_future(run()), REPLY_TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise DatabaseUnavailable(effect_none=False) from error  # it goes on, and may commit
        except sa_exc.SQLAlchemyError as error:
            raise _translated(error, committing=committing) from error

    # -- first answers ----------------------------------------------------------------------------------------------

    async def first_answer(self, keyed: Keyed) -> bytes | None:
        """Find the first answer to this request.

        Raises:
            IdempotencyKeyReused: the key was used for another one.
        """
        return await self.read(lambda connection: _first_answer(connection, keyed))

    async def keep_answer(self, keyed: Keyed, body: bytes) -> bytes:
        """Store the answer to a request whose effect is elsewhere; returns the first one, when two come at once.

        The effect is there and does no harm when it is repeated: an answer that cannot be kept is given all the same.
        """

        async def keep(connection: AsyncConnection) -> bytes:
            await _keep_answer(connection, keyed, body, 200)
            return await _first_answer(connection, keyed) or body

        try:
            return await self.write(keep)
        except Unavailable as error:
            log.warning("answer_not_kept", scope=keyed.scope, reason=error.code)
            return body

    async def once(self, keyed: Keyed | None, create: Callable[[AsyncConnection], Awaitable[bytes]]) -> Answer:
        """Create something and keep the answer in the same transaction; or give the first answer again."""

        async def work(connection: AsyncConnection) -> Answer:
            if keyed is None:
                return Answer(await create(connection), replayed=False)
            # Two at once take turns, so that the second finds an answer instead of a duplicate.
            name = f"{keyed.scope}\0{keyed.key}".encode()
            await connection.execute(
                sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(sa.literal(name.hex()), 0)))
            )
            first = await _first_answer(connection, keyed)
            if first is not None:
                return Answer(first, replayed=True)
            body = await create(connection)
            await _keep_answer(connection, keyed, body, 201)
            return Answer(body, replayed=False)

        return await self.write(work)


def _engine(database_url: str, connections: int, **options: Any) -> AsyncEngine:
    engine = create_async_engine(
        database_url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        hide_parameters=True,  # they are personal data, and errors are logged
        connect_args={
            "connect_timeout": 2,
            "application_name": "holdfast-catalogue",
            "options": f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS} -c TimeZone=UTC",
            "keepalives_idle": 10,
            "tcp_user_timeout": 5_000,
        },
        **options,
    )
    sa.event.listen(engine.sync_engine, "checkout", _refuse_dead_connection)
    return engine


def _refuse_dead_connection(connection: DBAPIConnection, _record: Any, _proxy: Any) -> None:
    """Look whether an idle connection has something to say: it can only be goodbye. Costs no round trip."""
    poller = os_select.poll()
    poller.register(connection.driver_connection.fileno(), os_select.POLLIN | os_select.POLLHUP | os_select.POLLERR)
    if poller.poll(0):
        raise sa_exc.DisconnectionError("the server closed this connection while it was idle")


def _translated(error: sa_exc.SQLAlchemyError, *, committing: bool) -> Exception:
    """Tell busy, refused by a rule and unreachable apart; anything else is a bug and stays what it is."""
    if isinstance(error, sa_exc.TimeoutError):
        return Busy()  # all connections are at work
    cause = getattr(error, "orig", None)
    if isinstance(cause, pg.LockNotAvailable | pg.QueryCanceled | pg.DeadlockDetected | pg.SerializationFailure):
        return Busy()
    if isinstance(cause, psycopg.IntegrityError):
        problem = _PROBLEM_BY_RULE.get(cause.diag.constraint_name or "")
        return problem() if problem else error
    if isinstance(cause, pg.InvalidParameterValue):  # its list of zones may be older than ours
        return InvalidRequest("timezone", "This database does not know that time zone")
    if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
        return DatabaseUnavailable(effect_none=not committing)
    return error


async def audit(
    connection: AsyncConnection, event_type: str, request_id: str | None, logged: Sequence[Mapping[str, Any]]
) -> None:
    """Write to the audit log, in the transaction of what is told. Only operators change the catalogue."""
    common = {"type": event_type, "actor": "operator", "request_id": request_id}
    await connection.execute(sa.insert(events), [{**common, **event} for event in logged])


async def _first_answer(connection: AsyncConnection, keyed: Keyed) -> bytes | None:
    this = sa.and_(answers.c.scope == keyed.scope, answers.c.idempotency_key == keyed.key)
    row = (await connection.execute(sa.select(answers.c.fingerprint, answers.c.body).where(this))).one_or_none()
    if row is None:
        return None
    if bytes(row.fingerprint) != keyed.fingerprint:
        raise IdempotencyKeyReused
    return bytes(row.body)


async def _keep_answer(connection: AsyncConnection, keyed: Keyed, body: bytes, status: int) -> None:
    insert = sa.dialects.postgresql.insert(answers).values(
        scope=keyed.scope, idempotency_key=keyed.key, fingerprint=keyed.fingerprint, status=status, body=body
    )
    await connection.execute(insert.on_conflict_do_nothing())
