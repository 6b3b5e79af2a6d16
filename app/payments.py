"""The rows of payments and of what Stripe told us: Postgres only, one function call for each change (migration 0003).

Every change finds itself done when it is repeated: webhooks, polling, deadlines and retries may come in any order, and
at the same time.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from app.domain import Counts, Payment
from app.gateway import Refund, Session
from app.ledger import Ledger, counts_of
from app.tokens import new_id

Row = Any
Unfinished = Literal["close", "look"]

#: A session is looked at again this long after the last look: a webhook that never comes is made up for in time.
LOOK_SECONDS = 45
#: One that Stripe was not done creating when its process died is taken over after this long.
CREATING_SECONDS = 60
#: A refund that is still owed is asked for again after this long.
REFUND_SECONDS = 60
#: A refund may fail for so long after it was made, says Stripe, and is looked at once a day meanwhile: the webhook that
#: tells of it may be lost, or nobody has asked for it.
REFUND_DAYS = 35
#: Rows handed out at a time, …
BATCH = 100
#: … and of what is looked at once an hour.
HOURLY = 1_000
#: What Stripe was asked, with the customer's address, is kept for so long after it has been paid or given up, …
PARAMS_DAYS = 30
#: … and what it told us for so long. Stripe itself repeats nothing after three days, and lists nothing after 30.
INBOX_DAYS = 90
FORGET_BATCH = 1_000

_COLUMNS = (
    "id, venue_id, slot_id, booking_id, rebooked_id, quantity, amount, currency, status, expires_at, session_id,"
    " session_url, payment_intent, refund_status, refund_reason, refunded_amount, created_at, asked_at, paid_at,"
    " refunded_at"
)


class Offer(msgspec.Struct, frozen=True):
    """What a slot costs, and what the customer's card statement and Stripe's page say about it."""

    slot_id: UUID
    venue_id: UUID
    venue: str
    venue_name: str
    timezone: str
    resource_name: str
    #: null: the resource itself is sold
    service_name: str | None
    starts_at: datetime
    ends_at: datetime
    price_amount: int | None
    price_currency: str | None
    #: Where a customer may be sent after paying; None: any https page.
    return_origins: list[str] | None

    @property
    def what(self) -> str:
        """What people call it: a haircut with Anna, or the city walk."""
        return f"{self.service_name} · {self.resource_name}" if self.service_name else self.resource_name


class Change(msgspec.Struct, frozen=True):
    """What became of a payment: a word of the SQL function, the booking it is about, its slot's counts."""

    word: str
    booking_id: UUID | None
    counts: Counts | None


class Inbox(msgspec.Struct, frozen=True):
    """One event of Stripe. `applied`: its effect is committed."""

    event_id: str
    type: str
    object: dict[str, Any]
    applied: bool


class Payments:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def offer(self, slot_id: UUID) -> Offer | None:
        rows = await self._ledger.repeatable(
            "SELECT s.id AS slot_id, s.venue_id, v.slug AS venue, v.name AS venue_name, v.timezone,"
            " r.name AS resource_name, n.name AS service_name, s.starts_at, s.ends_at, s.price_amount,"
            " s.price_currency, v.return_origins"
            " FROM slots AS s JOIN venues AS v ON v.id = s.venue_id JOIN resources AS r ON r.id = s.resource_id"
            " LEFT JOIN services AS n ON n.id = s.service_id WHERE s.id = %s",
            (slot_id,),
        )
        return Offer(**rows[0]._asdict()) if rows else None

    # -- looking ----------------------------------------------------------------------------------------------------

    async def payment(self, payment_id: UUID) -> Payment | None:
        return await self._one("id = %s", (payment_id,))

    async def of_session(self, session_id: str) -> Payment | None:
        return await self._one("session_id = %s", (session_id,))

    async def of_intent(self, payment_intent: str) -> Payment | None:
        return await self._one("payment_intent = %s", (payment_intent,))

    async def of_booking(self, booking_id: UUID) -> Payment | None:
        """Find the payment that counts for a booking: of several attempts the one that was not given up."""
        return (await self.of_bookings([booking_id])).get(booking_id)

    async def of_bookings(self, booking_ids: Sequence[UUID]) -> Mapping[UUID, Payment]:
        rows = await self._ledger.repeatable(
            f"SELECT {_COLUMNS} FROM payments WHERE booking_id = ANY (%(ids)s) OR rebooked_id = ANY (%(ids)s)"  # noqa: S608
            " ORDER BY status IN ('failed', 'abandoned') DESC, created_at",
            {"ids": list(booking_ids)},
        )
        found = [_payment(row) for row in rows]
        return {
            booking_id: payment
            for payment in found
            for booking_id in (payment.booking_id, payment.rebooked_id)
            if booking_id is not None
        }

    async def params(self, payment_id: UUID) -> dict[str, Any] | None:
        """Read what Stripe was asked, to ask the same again."""
        rows = await self._ledger.repeatable("SELECT params FROM payments WHERE id = %s", (payment_id,))
        return rows[0].params if rows else None

    async def listed(
        self,
        status: str | None,
        refund_status: str | None,
        limit: int,
        after: tuple[datetime, UUID] | None = None,
    ) -> list[Payment]:
        """List payments, the newest first, behind a position."""
        rows = await self._ledger.repeatable(
            f"SELECT {_COLUMNS} FROM payments WHERE (%(status)s::text IS NULL OR status = %(status)s)"  # noqa: S608
            " AND (%(refund)s::text IS NULL OR refund_status = %(refund)s)"
            " AND (%(at)s::timestamptz IS NULL OR (created_at, id) < (%(at)s, %(id)s))"
            " ORDER BY created_at DESC, id DESC LIMIT %(limit)s",
            {
                "status": status,
                "refund": refund_status,
                "at": after[0] if after else None,
                "id": after[1] if after else None,
                "limit": limit,
            },
        )
        return [_payment(row) for row in rows]

    async def mismatches(self) -> int:
        """Count what does not add up: 0, or somebody must act."""
        [row] = await self._ledger.repeatable("SELECT count(*) AS n FROM money_mismatches", ())
        return int(row.n)

    async def _one(self, condition: str, values: tuple[Any, ...]) -> Payment | None:
        rows = await self._ledger.repeatable(f"SELECT {_COLUMNS} FROM payments WHERE {condition}", values)  # noqa: S608
        return _payment(rows[0]) if rows else None

    # -- changing ---------------------------------------------------------------------------------------------------

    async def open(self, payment_id: UUID, session: Session) -> str:
        """Note the session that Stripe has made; tells what the payment has become, `open` in most cases."""
        values = (payment_id, session.id, session.url)
        [row] = await self._ledger.repeatable("SELECT open_payment(%s, %s, %s) AS word", values)
        return str(row.word)

    async def fail(self, payment_id: UUID, *, maybe: bool, why: str) -> Change:
        """Give the places back because Stripe made no session, or (`maybe`) none that anybody was told of."""
        return await self._change("fail_payment(%s, %s, %s)", (payment_id, maybe, why))

    async def end(self, payment_id: UUID, as_status: Literal["expired", "failed"]) -> Change:
        """Give the places back because Stripe says that the session can never be paid any more."""
        return await self._change("end_payment(%s, %s)", (payment_id, as_status))

    async def apply(self, payment_id: UUID, session: Session, new_booking: UUID, new_manage_hash: bytes) -> Change:
        """Take note that a session was paid, and do with its booking what follows; see `apply_payment`."""
        return await self._change(
            "apply_payment(%s, %s, %s, %s, %s, %s, %s)",
            (
                payment_id, session.id, session.amount, session.currency, session.payment_intent,
                new_booking, new_manage_hash,
            ),
        )  # fmt: skip

    async def book_legacy(
        self, session: Session, slot_id: UUID, quantity: int, new_booking: UUID, new_manage_hash: bytes
    ) -> Change:
        """Take the places of a paid session that an older system made, once per session (S0-8)."""
        email = session.payer.email or "unknown@example.invalid"
        name, phone = session.payer.name or email, session.payer.phone
        return await self._change(
            "book_legacy_payment(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                new_id(), session.id, session.amount, session.currency, session.payment_intent, slot_id, quantity,
                name[:200], email[:254], phone[:40] if phone else None, new_booking, new_manage_hash,
            ),
        )  # fmt: skip

    async def record_refunds(self, payment_id: UUID, found: Sequence[Refund]) -> Change:
        """Take note of money that went back, or, as Stripe found later, did not."""
        return await self._change("record_refunds(%s, %s)", (payment_id, msgspec.json.encode(found).decode()))

    async def record_by_hand(self, payment_id: UUID) -> Change:
        """Take note, for an operator, that what is left of a payment was given back in another way than by Stripe.

        Nothing is noted of a refund that is owed, until a person has to look at it (`money_mismatches`): Stripe may be
        making it at this moment. Locked before it is judged: another may be deciding, too.
        """
        return await self._change(
            "record_refunds(%(id)s, (SELECT jsonb_build_array(jsonb_build_object('id', 'by hand: ' || id,"
            " 'amount', paid_amount - refunded_amount, 'failed', false)) FROM payments WHERE id = %(id)s"
            " AND (refund_status <> 'due' OR owed_at < clock_timestamp() - interval '1 hour') FOR UPDATE))",
            {"id": payment_id},
        )

    async def owe_refund(self, payment_id: UUID, why: str) -> None:
        """Decide, as an operator, that a payment goes back which nobody else has decided about."""
        # Locked before it is judged: somebody else may be deciding, or giving it back, at this moment.
        await self._ledger.repeatable(
            "WITH undecided AS MATERIALIZED ("
            "  SELECT p FROM payments AS p WHERE p.id = %s AND p.refund_status IN ('none', 'waived', 'failed')"
            "    AND p.status IN ('paid', 'mismatched') FOR UPDATE)"
            " SELECT owe_refund(p, %s) FROM undecided",
            (payment_id, why),
        )

    async def note_dispute(self, payment_id: UUID, dispute_id: str, amount: int, reason: str) -> None:
        """Write a dispute into the audit log, once, with the booking that it is about."""
        details = {"dispute_id": dispute_id, "disputed_amount": amount, "reason": reason}
        await self._ledger.repeatable(
            "WITH told AS MATERIALIZED (SELECT p FROM payments AS p WHERE p.id = %s AND NOT EXISTS ("
            "  SELECT FROM events AS e WHERE e.type = 'payment.disputed' AND e.data ->> 'dispute_id' = %s) FOR UPDATE)"
            " SELECT log_payment(p, 'payment.disputed', 'system', %s::jsonb) FROM told",
            (payment_id, dispute_id, msgspec.json.encode(details).decode()),
        )

    async def _change(self, call: str, values: tuple[Any, ...] | dict[str, Any]) -> Change:
        [row] = await self._ledger.repeatable(f"SELECT * FROM {call}", values)  # noqa: S608 a constant at each use
        return Change(row.word, row.booking_id, None if row.resource_id is None else counts_of(row))

    # -- what Stripe told us ----------------------------------------------------------------------------------------

    async def keep_event(self, event_id: str, event_type: str, about: Mapping[str, Any]) -> None:
        """Store an event once; when this returns, Stripe need not send it again."""
        await self._ledger.repeatable(
            "WITH kept AS (INSERT INTO webhook_inbox (event_id, type, object) VALUES (%s, %s, %s)"
            " ON CONFLICT DO NOTHING RETURNING 1) SELECT count(*) FROM kept",
            (event_id, event_type, msgspec.json.encode(about).decode()),
        )

    async def event(self, event_id: str) -> Inbox | None:
        rows = await self._ledger.repeatable(
            "SELECT event_id, type, object, applied_at IS NOT NULL AS applied FROM webhook_inbox WHERE event_id = %s",
            (event_id,),
        )
        return Inbox(**rows[0]._asdict()) if rows else None

    async def applied(self, event_id: str, outcome: str) -> None:
        await self._ledger.repeatable(
            "WITH done AS (UPDATE webhook_inbox SET applied_at = clock_timestamp(), outcome = %s"
            " WHERE event_id = %s AND applied_at IS NULL RETURNING 1) SELECT count(*) FROM done",
            (outcome, event_id),
        )

    async def log(self, event_type: str, details: Mapping[str, Any]) -> None:
        """Write what concerns no payment of ours into the audit log, for operators."""
        await self._ledger.repeatable(
            "WITH logged AS (INSERT INTO events (type, actor, data) VALUES (%s, 'system', %s) RETURNING 1)"
            " SELECT count(*) FROM logged",
            (event_type, msgspec.json.encode(details).decode()),
        )

    # -- what has to be looked after --------------------------------------------------------------------------------

    async def unfinished(self) -> list[tuple[UUID, Unfinished]]:
        """Hand out payments that Stripe must be asked about, each at most once in a while: those whose time is up,
        whose booking was cancelled, that were left half made, and those that may have been paid unheard.
        """
        rows = await self._ledger.repeatable(
            "UPDATE payments AS p SET asked_at = clock_timestamp() FROM ("
            "  SELECT p.id, p.status IN ('closing', 'abandoned') OR p.expires_at <= clock_timestamp() AS over"
            "  FROM payments AS p WHERE p.status IN ('creating', 'open', 'closing', 'abandoned')"
            "    AND (p.asked_at < clock_timestamp() - %(look)s * interval '1 second'"
            "      OR p.status = 'closing' AND p.asked_at < clock_timestamp() - interval '5 seconds'"
            "      OR p.status = 'open' AND p.expires_at <= clock_timestamp() AND p.asked_at < p.expires_at)"
            "    AND (p.status <> 'creating' OR p.created_at < clock_timestamp() - %(creating)s * interval '1 second')"
            "  ORDER BY p.asked_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED"
            " ) AS due WHERE p.id = due.id RETURNING p.id, due.over",
            {"look": LOOK_SECONDS, "creating": CREATING_SECONDS, "batch": BATCH},
        )
        return [(row.id, "close" if row.over else "look") for row in rows]

    async def overdue_refunds(self) -> list[UUID]:
        """Hand out refunds that have been owed for a while: the first try has failed, or was never made."""
        rows = await self._ledger.repeatable(
            "UPDATE payments SET asked_at = clock_timestamp() WHERE id IN ("
            "  SELECT id FROM payments WHERE refund_status = 'due'"
            "    AND asked_at < clock_timestamp() - %s * interval '1 second'"
            "  ORDER BY asked_at LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id",
            (REFUND_SECONDS, BATCH),
        )
        return [row.id for row in rows]

    async def recent_refunds(self) -> list[UUID]:
        """Hand out payments whose refund may have failed since, each once a day."""
        rows = await self._ledger.repeatable(
            "UPDATE payments SET asked_at = clock_timestamp() WHERE id IN ("
            "  SELECT id FROM payments WHERE refund_status = 'done' AND payment_intent IS NOT NULL"
            "    AND refunded_at > clock_timestamp() - %s * interval '1 day'"
            "    AND asked_at < clock_timestamp() - interval '1 day'"
            "  ORDER BY refunded_at LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id",
            (REFUND_DAYS, HOURLY),
        )
        return [row.id for row in rows]

    # -- what is not needed any more --------------------------------------------------------------------------------

    async def forget_params(self) -> int:
        """Forget what Stripe was asked of payments that are settled, a batch at a time; returns how many."""
        [row] = await self._ledger.repeatable(
            "WITH old AS (UPDATE payments SET params = NULL WHERE id IN ("
            "  SELECT id FROM payments WHERE params IS NOT NULL AND created_at < now() - %s * interval '1 day'"
            "    AND status NOT IN ('creating', 'open', 'closing', 'abandoned')"
            "  ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) AS n FROM old",
            (PARAMS_DAYS, FORGET_BATCH),
        )
        return int(row.n)

    async def forget_news(self) -> int:
        """Delete what Stripe told us long ago and was acted on, a batch at a time; returns how much."""
        [row] = await self._ledger.repeatable(
            "WITH old AS (DELETE FROM webhook_inbox WHERE event_id IN ("
            "  SELECT event_id FROM webhook_inbox WHERE applied_at IS NOT NULL"
            "    AND received_at < now() - %s * interval '1 day'"
            "  ORDER BY received_at LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) AS n FROM old",
            (INBOX_DAYS, FORGET_BATCH),
        )
        return int(row.n)


def _payment(row: Row) -> Payment:
    return Payment(**row._asdict())
