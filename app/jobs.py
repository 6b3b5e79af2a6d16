"""What follows from what happened: jobs, made from the log of events and done after the answer, as often as it takes.

    events, inbox, payments ─→ Relay.turn    one transaction: queue what follows, note how far we have read
    jobs.procrastinate_jobs ─→ the tasks below    each harmless when repeated: a killed worker loses nothing

Nobody else queues anything: who changes a booking writes an event in the same transaction, and need do no more. The
queue itself, its retries and its locks are procrastinate's.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import procrastinate
import psycopg
import structlog
from procrastinate import exceptions, jobs
from psycopg.rows import namedtuple_row

from app import notices, queued, schedules, settlement
from app.engine import Engine
from app.errors import Unavailable
from app.gateway import Unclear
from app.mail.notice import MailServerAway
from app.postgres import LOCK_TIMEOUT_MS
from app.telemetry import JOBS
from app.waiting import look_after, tell_mirror
from app.webhooks import deliveries

log = structlog.get_logger()
Row = Any

#: The queue has its own schema; our tables are found as well.
OPTIONS = f"-c search_path=jobs,public -c TimeZone=UTC -c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout=10000"
#: How often the log is read: what a customer waits for an e-mail or a confirmation at the longest, when nothing fails.
TURN_SECONDS = 0.5
#: Events and Stripe's news taken on in one turn.
EVENTS_PER_TURN = 500
#: Deliveries to venues' own systems handed out in one turn.
DELIVERIES_PER_TURN = 50
#: A worker that has not been heard of for so long is dead, and its jobs are done again.
STALLED_SECONDS = 15.0
HEARTBEAT_SECONDS = 3.0
#: Waits between tries: quick at first, for a store that restarts; then hours, for a service that is down. What Stripe
#: must be asked has no tries of its own: it is queued anew until it is done (`Payments.unfinished`).
WAITS_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
#: … of which the last is repeated until a job is this many tries old: about three days.
MAX_TRIES = 80
#: How often the mirror is compared with Postgres.
RECONCILE_SECONDS = 300.0
#: How often the slots of those schedules are made whose time has come.
KEEP_AHEAD_SECONDS = 5.0
#: How often refunds are found that were not looked at for a day.
REFUNDS_SECONDS = 3600.0
#: How often is forgotten what nobody needs any more (each says where it is kept for how long), …
FORGET_SECONDS = 3600.0
#: … and how long jobs that failed for good are kept.
FAILED_HOURS = 7 * 24
#: How often the waiting list is looked after: how long those wait whom no commit could offer anything.
WAITING_SECONDS = 3.0
#: What may be worth another try. Anything else fails the job at once, and a person must look.
PASSING = (Unavailable, Unclear, MailServerAway, OSError, psycopg.OperationalError)
#: How a job ends that was still at it when its worker had to stop.
STOPPED = (asyncio.CancelledError, exceptions.JobAborted)


class Patience(procrastinate.BaseRetryStrategy):
    """Try again what may have failed for a passing reason, ever more slowly."""

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> procrastinate.RetryDecision | None:
        if isinstance(exception, STOPPED):
            return procrastinate.RetryDecision(retry_at=datetime.now(UTC))  # by the next worker
        if not isinstance(exception, PASSING) or job.attempts >= MAX_TRIES:
            return None
        wait = WAITS_SECONDS[min(job.attempts, len(WAITS_SECONDS) - 1)] * random.uniform(0.8, 1.2)  # noqa: S311
        return procrastinate.RetryDecision(retry_at=datetime.now(UTC) + timedelta(seconds=wait))


class Relay:
    """Turns what was committed into jobs, each thing once."""

    def __init__(self, engine: Engine, queue: procrastinate.App) -> None:
        self._engine, self._queue = engine, queue

    async def turn(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Queue what follows from the next events and from Stripe's news; returns how many jobs that are.

        One transaction: either all of it is queued and noted as read, or none. Another worker's turn at the same time
        finds the place taken, and does nothing.
        """
        async with connection.transaction():
            return await self._follow_events(connection) + await self._follow_stripe(connection)

    async def _follow_events(self, connection: psycopg.AsyncConnection[Any]) -> int:
        cursor = connection.cursor(row_factory=namedtuple_row)
        # Not `seq > last`: a smaller number may be committed later. Below the oldest running transaction nothing can
        # appear any more (reliability.md T-47).
        await cursor.execute(
            "WITH reader AS (SELECT xid, seq FROM event_readers WHERE name = 'jobs' FOR UPDATE SKIP LOCKED)"
            " SELECT e.xid::text AS xid, e.seq, e.type, e.booking_id, e.data FROM events AS e, reader"
            " WHERE (e.xid, e.seq) > (reader.xid, reader.seq) AND e.xid < pg_snapshot_xmin(pg_current_snapshot())"
            " ORDER BY e.xid, e.seq LIMIT %s",
            (EVENTS_PER_TURN,),
        )
        events: list[Row] = list(await cursor.fetchall())
        if not events:
            return 0
        wanted = [job for event in events for job in _following(event, self._engine)]
        for task, lock, arguments in wanted:
            await self._defer(connection, task, lock, arguments)
        await deliveries.enqueue(connection, [event.seq for event in events])
        await cursor.execute(
            "UPDATE event_readers SET xid = %s::xid8, seq = %s WHERE name = 'jobs'", (events[-1].xid, events[-1].seq)
        )
        return len(wanted)

    async def _follow_stripe(self, connection: psycopg.AsyncConnection[Any]) -> int:
        cursor = await connection.execute(
            "UPDATE webhook_inbox AS i SET queued_at = clock_timestamp() FROM ("
            "  SELECT event_id FROM webhook_inbox WHERE queued_at IS NULL ORDER BY received_at LIMIT %s"
            "  FOR UPDATE SKIP LOCKED) AS next WHERE i.event_id = next.event_id"
            " RETURNING i.event_id, i.object ->> 'id'",
            (EVENTS_PER_TURN,),
        )
        news = await cursor.fetchall()
        for event_id, about in news:
            await self._defer(connection, "apply_stripe_event", f"stripe:{about}", {"event_id": event_id})
        return len(news)

    async def _defer(
        self, connection: psycopg.AsyncConnection[Any], task: str, lock: str | None, arguments: dict[str, Any]
    ) -> None:
        await self._queue.configure_task(task, lock=lock, connection=connection).defer_async(**arguments)

    async def look_after_payments(self) -> None:
        """Queue what Stripe must be asked because time passed, or because nobody told us: see `Payments.unfinished`."""
        for payment_id, what in await self._engine.payments.unfinished():
            await self._once(f"{what}_payment", payment_id=str(payment_id))
        for payment_id in await self._engine.payments.overdue_refunds():
            await self._once("refund_payment", payment_id=str(payment_id))

    async def look_after_refunds(self) -> None:
        """Queue the refunds that Stripe must be asked about again, because they may have failed since."""
        for payment_id in await self._engine.payments.recent_refunds():
            await self._once("look_at_refunds", payment_id=str(payment_id))

    async def send_webhooks(self) -> None:
        """Queue the deliveries to venues' own systems whose time has come; each is handed out to one worker."""
        for delivery_id in await deliveries.due(self._engine.ledger, DELIVERIES_PER_TURN):
            await self._queue.configure_task("deliver_webhook").defer_async(delivery_id=str(delivery_id))

    async def _once(self, task: str, payment_id: str) -> None:
        lock = f"{task}:{payment_id}"
        try:
            await self._queue.configure_task(task, queueing_lock=lock, lock=lock).defer_async(payment_id=payment_id)
        except exceptions.AlreadyEnqueued:
            return


def _following(event: Row, engine: Engine) -> Sequence[tuple[str, str | None, dict[str, Any]]]:
    """Tell which jobs follow from an event: task, what it must not run beside, and its arguments."""
    followers: list[tuple[str, str | None, dict[str, Any]]] = []
    if event.type == "refund.due":
        payment_id = event.data["payment_id"]
        followers.append(("refund_payment", f"refund_payment:{payment_id}", {"payment_id": payment_id}))
    if event.type == "waiting.offered":
        followers.append(("tell_mirror", None, {"slot_id": event.data["slot_id"]}))
    kind = notices.kind_of(event.type, event.data)
    if kind is not None and event.booking_id is not None and engine.settings.smtp_url is not None:
        booking_id = str(event.booking_id)
        followers.append(
            (
                "send_mail",
                f"mail:{booking_id}",
                {"kind": kind, "booking_id": booking_id, "version": event.data.get("version")},
            )
        )
    return followers


def queue(engine: Engine) -> procrastinate.App:
    """Name the tasks and where they wait. `open_async` opens its connections."""
    connector = procrastinate.PsycopgConnector(
        conninfo=engine.settings.database_url,
        kwargs={"options": OPTIONS, "connect_timeout": 2, "application_name": "holdfast worker"},
        min_size=1,
        max_size=6,
        timeout=5.0,
    )
    found = procrastinate.App(connector=connector)

    def task(name: str, do: Callable[..., Awaitable[str]]) -> None:
        async def run(context: procrastinate.JobContext, /, **arguments: Any) -> None:
            outcome = "failed"
            arguments.pop(queued.FAILED_WITH, None)
            try:
                outcome = await do(**arguments)
            except Exception as error:
                await _note_failure(engine, context, error)
                raise
            finally:
                JOBS.labels(name, outcome).inc()

        found.task(name=name, retry=Patience(), pass_context=True)(run)

    task("apply_stripe_event", lambda event_id: settlement.apply_event(engine, event_id))
    task("look_payment", lambda payment_id: _or_later(settlement.look(engine, payment_id)))
    task("close_payment", lambda payment_id: _or_later(settlement.close(engine, payment_id)))
    task("refund_payment", lambda payment_id: _or_later(settlement.refund(engine, payment_id)))
    task("look_at_refunds", lambda payment_id: _or_later(settlement.look_at_refunds(engine, payment_id)))
    task("deliver_webhook", lambda delivery_id: _deliver(engine, UUID(delivery_id)))
    task("tell_mirror", lambda slot_id: tell_mirror(engine, UUID(slot_id)))
    task("send_mail", lambda kind, booking_id, version=None: notices.send(engine, kind, booking_id, version))
    return found


async def _note_failure(engine: Engine, context: procrastinate.JobContext, error: Exception) -> None:
    if isinstance(error, STOPPED) or context.job.id is None:
        return
    with suppress(Unavailable):  # then the queue itself cannot be told either
        await queued.note_failure(engine.ledger, context.job.id, error)


async def _deliver(engine: Engine, delivery_id: UUID) -> str:
    """Attempt a delivery. Its next attempt, if there is one, comes round by its own time and not by that of the job."""
    allow_private = not engine.settings.production
    return (await deliveries.deliver(engine.ledger, delivery_id, allow_private=allow_private)).word


async def _or_later(work: Awaitable[str]) -> str:
    """Leave what fails for a passing reason to the next time that it is queued, which comes for certain. A job that was
    retried would meet that one, and wait for hours where Stripe is back after minutes.
    """
    try:
        return await work
    except PASSING as error:
        log.info("job_postponed", reason=type(error).__name__)
        return "postponed"


# -- the loops --------------------------------------------------------------------------------------------------------


async def relaying(engine: Engine, waiting: procrastinate.App) -> None:
    """Take turn after turn until cancelled. What fails is tried again at the next one: nothing was noted as read."""
    relay = Relay(engine, waiting)
    connector = waiting.connector
    if not isinstance(connector, procrastinate.PsycopgConnector):
        raise TypeError("the queue lives in Postgres")
    while True:
        count = 0
        try:
            async with connector.pool.connection() as connection:
                count = await relay.turn(connection)
            await relay.look_after_payments()
            await relay.send_webhooks()
        except Exception as error:
            _tell("relay_postponed", error)
        if count < EVENTS_PER_TURN:
            await asyncio.sleep(TURN_SECONDS)


async def repairing(engine: Engine, waiting: procrastinate.App) -> None:
    """Until cancelled: give dead workers' jobs to the living, look after the waiting list, make slots from schedules,
    and compare the mirror.
    """
    started = asyncio.get_running_loop().time()
    every = {
        _free_stalled: STALLED_SECONDS / 3,
        _look_after_waiting: WAITING_SECONDS,
        _keep_ahead: KEEP_AHEAD_SECONDS,
        _look_after_refunds: REFUNDS_SECONDS,
        _forget: FORGET_SECONDS,
        _forget_failed: FORGET_SECONDS,
        _reconcile: RECONCILE_SECONDS,
    }
    due = dict.fromkeys(every, 0.0) | {_reconcile: started + RECONCILE_SECONDS}
    while True:
        now = asyncio.get_running_loop().time()
        for work, at in due.items():
            if now >= at:
                due[work] = now + every[work]
                try:
                    await work(engine, waiting)
                except Exception as error:
                    _tell("repair_postponed", error)
        await asyncio.sleep(1.0)


async def _free_stalled(_: Engine, waiting: procrastinate.App) -> None:
    manager = waiting.job_manager
    for job in await manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_SECONDS):
        log.warning("job_of_a_dead_worker", task=job.task_name, job_id=job.id)
        try:
            await manager.retry_job(job)
        except exceptions.UniqueViolation:  # the same has been queued since, and waits for this one to end
            await manager.finish_job(job, jobs.Status.ABORTED, delete_job=True)


async def _look_after_refunds(engine: Engine, waiting_jobs: procrastinate.App) -> None:
    await Relay(engine, waiting_jobs).look_after_refunds()


async def _look_after_waiting(engine: Engine, _: procrastinate.App) -> None:
    await look_after(engine)


async def _keep_ahead(engine: Engine, _: procrastinate.App) -> None:
    await schedules.keep_ahead(engine)


async def _forget_failed(_: Engine, waiting_jobs: procrastinate.App) -> None:
    # Failed jobs are kept for a person to look at, but what Stripe refuses for good would add one a minute.
    await waiting_jobs.job_manager.delete_old_jobs(
        FAILED_HOURS, include_failed=True, include_cancelled=True, include_aborted=True
    )


async def _forget(engine: Engine, _: procrastinate.App) -> None:
    # In pieces that a statement's time is enough for.
    while await deliveries.forget_ended(engine.ledger):
        pass
    while await engine.payments.forget_news() or await engine.payments.forget_params():
        pass


async def _reconcile(engine: Engine, _: procrastinate.App) -> None:
    if engine.redis_ok:
        found = await engine.mirror.reconcile()
        log.info("reconciled", slots=found.slots, drift=len(found.drift))


def _tell(event: str, error: Exception) -> None:
    if isinstance(error, (*PASSING, exceptions.ConnectorException)):
        log.info(event, reason=type(error).__name__)
    else:
        log.exception(event)
