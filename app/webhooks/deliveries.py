"""Deliveries: a row for each event and endpoint, and what becomes of it. All state is in Postgres.

    pending ── 2xx ─────────────────────────────→ delivered
       │  ↑                                          │
       │  └──────────── asked for by hand ───────────┤
       └── 410, endpoint gone, or no try is left ─→ dead

Every function here may be called again at any time. Nothing depends on a job that was queued: what is pending and due
is handed out by `due` until it is delivered or dead.
"""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import msgspec
import structlog

from app.errors import Conflict, NotFound
from app.ledger import Ledger
from app.webhooks.endpoints import venue_id_of
from app.webhooks.sending import Answer, WebhookMessage, headers, send
from app.webhooks.target import Resolver, by_system

if TYPE_CHECKING:
    import psycopg

log = structlog.get_logger()
Row = Any  # psycopg's named tuples: the fields are those of the statement above each use

Status = Literal["pending", "delivered", "dead"]

#: The events that a venue's system is told of, as Postgres and Python read it. Nothing about webhooks is among them: a
#: delivery must never cause another one. Holds leave events when Postgres keeps them, not when Redis does.
SENT_TYPES = (
    r"(hold\.(created|released|expired)|booking\.(confirmed|cancelled|expired|rescheduled)"
    r"|(checkout|payment|refund|slot|waiting)\.[a-z_]{1,40})"
)

#: Waits between attempts: a receiver that restarts is there again within a minute, one that broke on a Friday evening
#: hears of it within the next days. After the last one the delivery is dead.
WAITS_SECONDS = (5, 30, 120, 600, 3_600, 10_800, 21_600, 43_200, 86_400)
#: An attempt that has not ended after so long never will: whoever made it is dead. More than sending and noting take.
ATTEMPT_SECONDS = 30
#: What was handed out and not begun by then is handed out again: the queue lost it, or is very long.
LEASE_SECONDS = 60
#: In workers' hands at a time of one endpoint, so that one that is slow and has a long backlog leaves room to others.
MOST_PER_ENDPOINT = 5
#: Delivered ones are shown for so long, …
KEPT_DAYS = 30
#: … and dead ones, which a person may want to send again.
DEAD_DAYS = 90
FORGET_BATCH = 1_000

_COLUMNS = (
    "d.id, d.endpoint_id, d.event_seq, e.type, v.slug AS venue, d.status, d.attempts, d.answer_status, d.error,"
    " d.next_at, d.created_at, d.delivered_at"
)
_JOINED = (
    "webhook_deliveries AS d JOIN webhook_endpoints AS w ON w.id = d.endpoint_id JOIN venues AS v ON v.id = w.venue_id"
    " JOIN events AS e ON e.seq = d.event_seq"
)


class Outcome(msgspec.Struct, frozen=True):
    """What a call of `deliver` found or did.

    `word`: delivered (now or before), dead (now or before), retry (failed, or somebody else is at it, or it is not time
    yet), gone (no such delivery). `retry_in_seconds`: when another call makes sense; None: never. `due` will also hand
    it out again by then, so a caller need not remember.
    """

    word: Literal["delivered", "dead", "retry", "gone"]
    retry_in_seconds: float | None = None


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    endpoint_id: UUID
    event_seq: int
    type: str
    venue: str
    status: Status
    #: Begun since it was made, or last asked for by hand.
    attempts: int
    #: Of the last attempt; None: there was no answer.
    answer_status: int | None
    error: str | None
    #: None when no attempt will follow.
    next_at: datetime | None
    created_at: datetime
    delivered_at: datetime | None


class DeliveryFilter(msgspec.Struct, frozen=True, kw_only=True):
    venue: str | None = None
    status: Status | None = None


# -- from the log -----------------------------------------------------------------------------------------------------


async def enqueue(connection: "psycopg.AsyncConnection[Any]", seqs: Sequence[int]) -> list[UUID]:
    """Make a delivery of each of these events for each endpoint of its venue that wants it; returns the new ones.

    For committed events, inside the caller's transaction, in one statement. Repeated, it makes nothing twice and
    returns what is new. An endpoint is told of what happened since it was made.
    """
    cursor = await connection.execute(
        "WITH made AS ("
        "  INSERT INTO webhook_deliveries (id, endpoint_id, event_seq)"
        "  SELECT gen_random_uuid(), w.id, e.seq"
        "  FROM events AS e JOIN webhook_endpoints AS w ON w.venue_id = e.venue_id"
        "  WHERE e.seq = ANY (%(seqs)s) AND e.type ~ %(sent)s AND e.at >= w.created_at"
        "    AND w.disabled_at IS NULL AND w.removed_at IS NULL AND (w.types IS NULL OR e.type = ANY (w.types))"
        "  ON CONFLICT DO NOTHING RETURNING id, event_seq, endpoint_id)"
        " SELECT id FROM made ORDER BY event_seq, endpoint_id",
        {"seqs": list(seqs), "sent": f"^{SENT_TYPES}$"},
    )
    return [row[0] for row in await cursor.fetchall()]


_HAND_OUT = (
    # now(), which stands still during a statement, so that the index is entered at it. And an array of the few that it
    # finds: joined with them, all that are due would be read.
    "WITH waiting AS ("
    " SELECT next.id FROM webhook_endpoints AS w CROSS JOIN LATERAL ("
    "  SELECT d.id FROM webhook_deliveries AS d WHERE d.endpoint_id = w.id AND d.status = 'pending'"
    "    AND d.next_at <= now() AND (d.leased_until IS NULL OR d.leased_until <= now())"
    "  ORDER BY d.next_at LIMIT greatest(0, %(each)s - (SELECT count(*) FROM webhook_deliveries AS h"
    "    WHERE h.endpoint_id = w.id AND h.leased_until > now()))) AS next),"
    # Locked one by one until there are enough: whoever is handed others at this moment need not do without the rest.
    # What is true of them is asked again, of the row as it is once it is locked.
    " due AS ("
    " SELECT d.id FROM webhook_deliveries AS d WHERE d.id = ANY (ARRAY(SELECT id FROM waiting))"
    "   AND d.status = 'pending' AND d.next_at <= now() AND (d.leased_until IS NULL OR d.leased_until <= now())"
    " ORDER BY d.next_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED),"
    " handed AS ("
    " UPDATE webhook_deliveries AS d SET leased_until = clock_timestamp() + %(lease)s * interval '1 second'"
    " FROM due WHERE d.id = due.id RETURNING d.id, d.next_at)"
    " SELECT id FROM handed ORDER BY next_at, id"
)


async def due(ledger: Ledger, limit: int) -> list[UUID]:
    """Hand out pending deliveries whose time has come and that nobody works on, those that wait longest first.

    At most `limit`, and of one endpoint no more than `MOST_PER_ENDPOINT` that are handed out and not yet done. Nobody
    else is handed the same ones within `LEASE_SECONDS`; if they were not attempted by then, somebody is.

    Raises:
        Busy, Overloaded, DatabaseUnavailable
    """
    rows = await ledger.repeatable(_HAND_OUT, {"lease": LEASE_SECONDS, "each": MOST_PER_ENDPOINT, "limit": limit})
    return [row.id for row in rows]


# -- one attempt ------------------------------------------------------------------------------------------------------


async def deliver(ledger: Ledger, delivery_id: UUID, *, allow_private: bool, resolve: Resolver = by_system) -> Outcome:
    """Attempt a delivery once, if it is pending and its time has come; a few seconds at the longest.

    At least once: whoever dies between the receiver's answer and the note of it leaves a delivery that will be sent
    again, with the same webhook-id. Two that are called at once attempt it once. `allow_private` is for development and
    tests: http, and addresses that are not public.

    Raises:
        Busy, Overloaded, DatabaseUnavailable: the attempt may have been made; it comes round again by `due`.
    """
    claimed = await _claim(ledger, delivery_id)
    if claimed is None:
        return await _not_now(ledger, delivery_id)
    if claimed.attempts > len(WAITS_SECONDS) + 1:
        # Begun again and again, and never ended: whoever attempts it dies of it.
        await _bury(ledger, claimed.id, Answer(None), "its attempts were never ended")
        return Outcome("dead")
    body = msgspec.json.encode(_message(claimed))
    signed = headers(str(claimed.id), body, [s for s in (claimed.secret, claimed.old_secret) if s], datetime.now(UTC))
    answer = await send(claimed.url, body, signed, allow_private=allow_private, resolve=resolve)
    if answer.is_success:
        await _note_delivered(ledger, claimed, answer)
        return Outcome("delivered")
    error = answer.error or f"answered {answer.status}"
    log.info("webhook_failed", delivery_id=str(claimed.id), attempt=claimed.attempts, reason=error)
    if answer.status == 410:
        await _bury(ledger, claimed.id, answer, "answered 410: it wants no more", disable=True)
        return Outcome("dead")
    if claimed.attempts > len(WAITS_SECONDS):
        await _bury(ledger, claimed.id, answer, error)
        return Outcome("dead")
    return await _note_failed(ledger, claimed, answer, error)


async def _claim(ledger: Ledger, delivery_id: UUID) -> Row | None:
    """Begin an attempt: nobody else can until it is noted, or taken for dead. None: it is not to be attempted."""
    rows = await ledger.repeatable(
        "UPDATE webhook_deliveries AS d SET attempts = d.attempts + 1,"
        "   next_at = clock_timestamp() + %(attempt)s * interval '1 second',"
        "   leased_until = clock_timestamp() + %(attempt)s * interval '1 second'"
        " FROM webhook_endpoints AS w, events AS e, venues AS v"
        " WHERE d.id = %(id)s AND d.status = 'pending' AND d.next_at <= clock_timestamp()"
        "   AND w.id = d.endpoint_id AND e.seq = d.event_seq AND v.id = w.venue_id AND w.disabled_at IS NULL"
        " RETURNING d.id, d.attempts, w.url, w.secret,"
        "   CASE WHEN w.old_secret_until > clock_timestamp() THEN w.old_secret END AS old_secret,"
        "   e.seq, e.at, e.type, e.booking_id, e.slot_id, e.data, v.slug AS venue",
        {"id": delivery_id, "attempt": ATTEMPT_SECONDS},
    )
    return rows[0] if rows else None


async def _not_now(ledger: Ledger, delivery_id: UUID) -> Outcome:
    """Tell why a delivery was not attempted; one whose endpoint takes no more is dead."""
    rows = await ledger.repeatable(
        "SELECT d.status, w.disabled_at IS NOT NULL AS disabled,"
        "   extract(epoch FROM d.next_at - clock_timestamp())::float8 AS seconds"
        " FROM webhook_deliveries AS d JOIN webhook_endpoints AS w ON w.id = d.endpoint_id WHERE d.id = %s",
        (delivery_id,),
    )
    if not rows:
        return Outcome("gone")
    [row] = rows
    if row.status != "pending":
        return Outcome(row.status)
    if row.disabled:
        # No event for each of them: that the endpoint was disabled or removed has been told once.
        await _bury(ledger, delivery_id, Answer(None), "the endpoint was disabled or removed", tell=False)
        return Outcome("dead")
    return Outcome("retry", max(0.1, row.seconds))


def _message(claimed: Row) -> WebhookMessage:
    subject = f"bookings/{claimed.booking_id}" if claimed.booking_id else f"slots/{claimed.slot_id}"
    ids = {"venue": claimed.venue, "booking_id": claimed.booking_id, "slot_id": claimed.slot_id}
    return WebhookMessage(
        type=claimed.type,
        source=f"/v1/venues/{claimed.venue}",
        id=str(claimed.seq),
        time=claimed.at,
        subject=subject,
        data={**claimed.data, **ids},
    )


async def _note_delivered(ledger: Ledger, claimed: Row, answer: Answer) -> None:
    # Whichever attempt it was: taken is taken.
    await ledger.repeatable(
        "WITH noted AS (UPDATE webhook_deliveries SET status = 'delivered', delivered_at = clock_timestamp(),"
        "   next_at = NULL, leased_until = NULL, answer_status = %s, error = NULL"
        " WHERE id = %s AND status = 'pending' RETURNING 1) SELECT count(*) FROM noted",
        (answer.status, claimed.id),
    )


async def _note_failed(ledger: Ledger, claimed: Row, answer: Answer, error: str) -> Outcome:
    # Jitter, so that what failed together does not come back together.
    wait = WAITS_SECONDS[claimed.attempts - 1] * random.uniform(1.0, 1.2)  # noqa: S311 not a secret
    # Only of this attempt: asked for by hand meanwhile, its time is what that said.
    await ledger.repeatable(
        "WITH noted AS (UPDATE webhook_deliveries SET next_at = clock_timestamp() + %s * interval '1 second',"
        "   leased_until = NULL, answer_status = %s, error = %s"
        " WHERE id = %s AND status = 'pending' AND attempts = %s RETURNING 1) SELECT count(*) FROM noted",
        (wait, answer.status, error, claimed.id, claimed.attempts),
    )
    return Outcome("retry", wait)


async def _bury(
    ledger: Ledger, delivery_id: UUID, answer: Answer, error: str, *, disable: bool = False, tell: bool = True
) -> None:
    """End a delivery that will not be attempted any more, once, and tell operators by an event."""
    await ledger.repeatable(
        "WITH buried AS ("
        "  UPDATE webhook_deliveries SET status = 'dead', next_at = NULL, leased_until = NULL,"
        "    answer_status = %(answer)s, error = %(error)s"
        "  WHERE id = %(id)s AND status = 'pending' RETURNING *"
        "), disabled AS ("
        "  UPDATE webhook_endpoints AS w SET disabled_at = clock_timestamp(), disabled_why = %(error)s FROM buried"
        "  WHERE w.id = buried.endpoint_id AND w.disabled_at IS NULL AND %(disable)s RETURNING w.id, w.venue_id"
        "), told AS ("
        "  INSERT INTO events (type, actor, venue_id, slot_id, booking_id, data)"
        "  SELECT 'webhook.dead', 'system', w.venue_id, e.slot_id, e.booking_id, jsonb_build_object("
        "    'delivery_id', b.id, 'endpoint_id', b.endpoint_id, 'event_seq', b.event_seq, 'type', e.type,"
        "    'attempts', b.attempts, 'error', b.error)"
        "  FROM buried AS b JOIN webhook_endpoints AS w ON w.id = b.endpoint_id JOIN events AS e ON e.seq = b.event_seq"
        "  WHERE %(tell)s"
        "  UNION ALL"
        "  SELECT 'webhook.disabled', 'system', d.venue_id, NULL, NULL,"
        "    jsonb_build_object('endpoint_id', d.id, 'reason', %(error)s::text) FROM disabled AS d)"
        " SELECT count(*) FROM buried",
        {"id": delivery_id, "answer": answer.status, "error": error, "disable": disable, "tell": tell},
    )


# -- for operators ----------------------------------------------------------------------------------------------------


async def listed(
    ledger: Ledger, which: DeliveryFilter, after: tuple[datetime, UUID] | None, limit: int
) -> list[Delivery]:
    """List deliveries, the newest first, behind a position.

    Raises:
        VenueNotFound
    """
    venue_id = await venue_id_of(ledger, which.venue) if which.venue is not None else None
    rows = await ledger.repeatable(
        f"SELECT {_COLUMNS} FROM {_JOINED}"  # noqa: S608 constants of this module
        " WHERE (%(venue)s::uuid IS NULL OR w.venue_id = %(venue)s)"
        "   AND (%(status)s::text IS NULL OR d.status = %(status)s)"
        "   AND (%(at)s::timestamptz IS NULL OR (d.created_at, d.id) < (%(at)s, %(id)s))"
        " ORDER BY d.created_at DESC, d.id DESC LIMIT %(limit)s",
        {
            "venue": venue_id,
            "status": which.status,
            "at": after[0] if after else None,
            "id": after[1] if after else None,
            "limit": limit,
        },
    )
    return [_delivery(row) for row in rows]


async def redeliver(ledger: Ledger, delivery_id: UUID, request_id: str | None) -> Delivery:
    """Have a delivery attempted again from the beginning, whatever became of it; it is due at once.

    Repeated, it begins anew once more. The receiver gets it with the same webhook-id.

    Raises:
        NotFound: no such delivery. Conflict: its endpoint was disabled or removed.
    """
    rows = await ledger.repeatable(
        "WITH again AS ("  # noqa: S608 constants of this module
        "  UPDATE webhook_deliveries AS d SET status = 'pending', attempts = 0, next_at = clock_timestamp(),"
        "    leased_until = NULL, delivered_at = NULL"
        "  FROM webhook_endpoints AS w WHERE d.id = %(id)s AND w.id = d.endpoint_id AND w.disabled_at IS NULL"
        "  RETURNING d.*, w.venue_id"
        "), told AS ("
        "  INSERT INTO events (type, actor, request_id, venue_id, data)"
        "  SELECT 'webhook.redelivered', 'operator', %(request)s, venue_id,"
        "    jsonb_build_object('delivery_id', id, 'endpoint_id', endpoint_id) FROM again)"
        f" SELECT {_COLUMNS} FROM again AS d JOIN venues AS v ON v.id = d.venue_id"
        "   JOIN events AS e ON e.seq = d.event_seq",
        {"id": delivery_id, "request": request_id},
    )
    if rows:
        return _delivery(rows[0])
    if await ledger.repeatable("SELECT 1 FROM webhook_deliveries WHERE id = %s", (delivery_id,)):
        raise Conflict("The endpoint of this delivery was disabled or removed")
    raise NotFound("Webhook delivery not found")


async def forget_ended(ledger: Ledger) -> int:
    """Delete deliveries that arrived or were given up long ago, a batch at a time; returns how many."""
    [row] = await ledger.repeatable(
        "WITH old AS (DELETE FROM webhook_deliveries WHERE id IN ("
        "  SELECT id FROM webhook_deliveries WHERE status IN ('delivered', 'dead')"
        "    AND created_at < now() - CASE status WHEN 'dead' THEN %s ELSE %s END * interval '1 day'"
        "  ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) AS n FROM old",
        (DEAD_DAYS, KEPT_DAYS, FORGET_BATCH),
    )
    return int(row.n)


def _delivery(row: Row) -> Delivery:
    return Delivery(**row._asdict())
