"""Postgres: the truth. Layers 2 and 3: one function call per commit, and the constraints behind it.

Every statement as a function, each its own transaction: when a function here returns, its change is committed. How it
gets there is the business of `postgres`; a commit whose reply never came is *in doubt*, which `commits` settles instead
of guessing (design 4). Knows nothing of Redis.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec
from msgspec import UNSET

from app.coalesce import Coalescer
from app.domain import LIVE, Booking, Counts, Customer, Slot, SlotFacts
from app.errors import DatabaseUnavailable, VenueNotFound
from app.postgres import MAX_WAITING, MAX_WAITING_SECONDS, SLOW_COMMIT_SECONDS, InDoubt, Postgres, Row, told_again

#: Slots that are read together.
MOST_LOOKS = 100
#: Slots that are looked at again because another one of their person changed.
MOST_AROUND = 500
#: Old answers deleted by one statement.
FORGET_BATCH = 1_000

Word = Literal[
    "booked",
    "replayed",
    "mismatch",
    "resolved",
    "lapsed",
    "not_found",
    "closed",
    "past",
    "too_many",
    "full",
    "occupied",
    "payment_required",
]

#: What a `Slot` tells, of slots n, venues v and resources r. Blocked is asked as the exclusion constraint is written.
_SLOT_WITH_NAMES = (
    "n.*, n.id AS slot_id, v.slug, v.timezone, r.name AS resource_name,"
    " (SELECT o.name FROM services AS o WHERE o.id = n.service_id) AS service_name,"
    " n.one_at_a_time AND EXISTS (SELECT FROM occupied AS o WHERE o.slot_id <> n.id AND"
    "   int8range(o.resource_no, o.resource_no, '[]') && int8range(n.resource_no, n.resource_no, '[]')"
    "   AND o.during && tstzrange(n.starts_at, n.occupied_until)) AS blocked"
)

_FORGET_ANSWERS = (
    "WITH old AS (DELETE FROM answers WHERE (scope, idempotency_key) IN ("
    "  SELECT scope, idempotency_key FROM answers WHERE created_at < now() - interval '7 days'"
    "  ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING 1)"
    " SELECT count(*) FROM old"
)


class NewPayment(msgspec.Struct, frozen=True):
    """What a booking that waits for payment shall cost in all, and word for word what Stripe will be asked (JSON)."""

    id: UUID
    amount: int
    currency: str
    params: str


class CommitRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One place in the list that `commit_bookings` takes; see the SQL function for the meaning of each field."""

    id: UUID
    slot_id: UUID
    venue_id: UUID
    quantity: int
    status: Literal["confirmed", "held", "pending_payment"]
    actor: str
    ttl_ms: int | None = None
    hold_deadline: datetime | None = None
    key: str | None = None
    fingerprint: str | None = None
    repeat: bool | None = None
    name: str | None = None
    email: str | None = None
    phone: str | None = None
    metadata: str | None = None
    manage_hash: str | None = None
    request_id: str | None = None
    payment: NewPayment | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request. `available_after` is the slot's count after it, `counts` after the whole list."""

    word: Word
    at: datetime
    available_after: int
    created_at: datetime | None
    deadline: datetime | None
    may_free_at: datetime | None
    counts: Counts | None


class StoredBooking(msgspec.Struct, frozen=True):
    booking: Booking
    manage_token_hash: bytes | None
    #: What the first answer said of the slot; a replay repeats it.
    available_after: int
    expired_at: datetime | None


class Moved(msgspec.Struct, frozen=True):
    """What became of a move: a word of `move_booking`, the counts of the new slot and of the old one, and of a booking
    that is there now what it then was.
    """

    word: str
    may_free_at: datetime | None
    counts: list[Counts]
    quantity: int
    version: int
    confirmed_at: datetime | None


class Ledger:
    """The statements as functions."""

    def __init__(self, database_url: str) -> None:
        self.postgres = Postgres(database_url)
        self.pool = self.postgres.pool
        # Bound once: every statement takes this way, those of other modules by `repeatable`.
        self._rows, self.repeatable = self.postgres.rows, self.postgres.repeatable
        self._settled_rows, self._settled_row = self.postgres.settled_rows, self.postgres.settled_row
        self._looks = Coalescer(
            self._read_facts,
            _no_facts,
            most_together=MOST_LOOKS,
            most_waiting=MAX_WAITING,
            longest_wait_seconds=MAX_WAITING_SECONDS,
            slow_seconds=SLOW_COMMIT_SECONDS,
            most_flights=2,
        )

    # -- the booking path -------------------------------------------------------------------------------------------

    async def commit_bookings(self, attempt: UUID, requests: Sequence[CommitRequest]) -> list[Outcome]:
        """Decide and write a list of requests in one transaction, one round trip. Order of answers = order of requests.

        Raises:
            InDoubt: whether it was committed can be told once `abandon_attempt` has returned.
            RuleViolated, Busy, Overloaded, DatabaseUnavailable: nothing was written.
        """
        rows = await self._rows("SELECT * FROM commit_bookings(%s, %s)", (attempt, _jsonb(requests)))
        return [_outcome(row) for row in rows]

    async def commit_bookings_together(self, attempt: UUID, requests: Sequence[CommitRequest]) -> list[Outcome]:
        """Decide and write a list of requests as `commit_bookings` does, but all are written, or none."""
        rows = await self._rows("SELECT * FROM commit_bookings_together(%s, %s)", (attempt, _jsonb(requests)))
        return [_outcome(row) for row in rows]

    async def abandon_attempt(self, attempt: UUID, slot_ids: Sequence[UUID]) -> None:
        """Wait for an attempt if it runs, and disarm it if it has not got as far as these slots."""
        await self._rows("SELECT abandon_attempt(%s, %s)", (attempt, list(slot_ids)))

    async def refused_by_rule(self, request: CommitRequest, word: Word) -> Outcome:
        """Tell the refusal that a violated rule stands for, with the slot's counts."""
        [row] = await self._settled_rows(
            "SELECT *, id AS slot_id, status = 'open' AS is_open, clock_timestamp() AS at FROM slots WHERE id = %s",
            (request.slot_id,),
        )
        return Outcome(word, row.at, row.available_count, None, None, None, counts_of(row))

    async def cancel(
        self, booking_id: UUID, actor: str, request_id: str | None, *, only_held: bool = False
    ) -> tuple[str, datetime | None, Counts | None]:
        """End a booking once, harmlessly repeated; returns the word of `cancel_booking`, when it was cancelled, and
        its slot's counts.
        """
        [row] = await self.repeatable(
            "SELECT * FROM cancel_booking(%s, %s, %s, %s)", (booking_id, only_held, actor, request_id)
        )
        return row.word, row.cancelled_at, None if row.slot_id is None else counts_of(row)

    async def move(
        self,
        booking_id: UUID,
        slot_id: UUID,
        quantity: int | None,
        version: int | None,
        *,
        actor: str,
        request_id: str | None,
    ) -> Moved:
        """Move a booking to another slot, or leave it where it is; harmlessly repeated."""
        rows = await self.repeatable(
            "SELECT * FROM move_booking(%s, %s, %s, %s, %s, %s)",
            (booking_id, slot_id, quantity, version, actor, request_id),
        )
        counts = [counts_of(row) for row in rows if row.resource_id is not None]
        first = rows[0]
        return Moved(first.word, first.may_free_at, counts, first.quantity, first.booking_version, first.confirmed_at)

    async def extend_held(self, hold_id: UUID, ttl_ms: int, longest_ms: int) -> Row | None:
        """Prolong a hold that Postgres keeps, as `extend.lua` does. None: no such live hold."""
        try:
            rows = await self._rows(
                "UPDATE bookings AS b SET expires_at = greatest(b.expires_at, least(wanted, latest)) FROM ("
                "  SELECT id, expires_at AS before, clock_timestamp() + %(ttl)s * interval '1 ms' AS wanted,"
                "    created_at + %(longest)s * interval '1 ms' AS latest"
                "  FROM bookings WHERE id = %(id)s AND status = 'held' AND expires_at > clock_timestamp() FOR UPDATE"
                " ) AS old WHERE b.id = old.id"
                " RETURNING b.slot_id, b.quantity, b.created_at, b.expires_at, clock_timestamp() AS now,"
                "   wanted > latest AND b.expires_at = before AS limited",
                {"id": hold_id, "ttl": ttl_ms, "longest": longest_ms},
            )
        except InDoubt as error:
            raise DatabaseUnavailable(effect_none=False) from error
        return rows[0] if rows else None

    async def booking(self, booking_id: UUID) -> StoredBooking | None:
        row = await self._settled_row(
            "SELECT b.*, s.available_count FROM bookings AS b JOIN slots AS s ON s.id = b.slot_id WHERE b.id = %s",
            (booking_id,),
        )
        return None if row is None else _stored(row)

    async def sweep(self, batch: int) -> list[UUID]:
        """Expire lapsed holds of at most `batch` slots (design 8); returns the slots whose counts changed."""
        return [row[0] for row in await self._settled_rows("SELECT sweep_lapsed_holds(%s)", (batch,))]

    # -- slots ------------------------------------------------------------------------------------------------------

    async def facts(self, slot_id: UUID) -> tuple[SlotFacts, Counts] | None:
        """Read what never changes about a slot, and its counts; one statement for all that are asked meanwhile."""
        return await self._looks.ask(slot_id)

    async def _read_facts(self, slot_ids: Sequence[UUID]) -> list[tuple[SlotFacts, Counts] | Exception | None]:
        rows = await self._settled_rows(
            "SELECT s.*, s.id AS slot_id, s.status = 'open' AS is_open, v.hold_ttl_seconds, v.hold_max_seconds,"
            " v.holds_per_client FROM slots AS s JOIN venues AS v ON v.id = s.venue_id WHERE s.id = ANY (%s)",
            (list(slot_ids),),
        )
        found = {row.slot_id: (_facts(row), counts_of(row)) for row in rows}
        return [found.get(slot_id) for slot_id in slot_ids]

    async def counts(self, slot_ids: Sequence[UUID]) -> list[Counts]:
        rows = await self._settled_rows(
            "SELECT *, id AS slot_id, status = 'open' AS is_open FROM slots WHERE id = ANY (%s)", (list(slot_ids),)
        )
        return [counts_of(row) for row in rows]

    async def counts_around(self, slot_id: UUID, others: Sequence[UUID]) -> list[Counts]:
        """Read the counts of a slot, of what else occupies its person or place meanwhile, and of these others."""
        rows = await self._settled_rows(
            "SELECT *, id AS slot_id, status = 'open' AS is_open FROM slots WHERE id IN ("
            "  SELECT unnest(%(ids)s::uuid[]) UNION ("
            "    SELECT e.id FROM slots AS n CROSS JOIN LATERAL occupied_elsewhere("
            "      n.id, n.resource_no, tstzrange(n.starts_at, n.occupied_until)) AS e (id)"
            "    WHERE n.id = %(slot)s AND n.one_at_a_time LIMIT %(limit)s))",
            {"ids": [slot_id, *others], "slot": slot_id, "limit": MOST_LOOKS},
        )
        return [counts_of(row) for row in rows]

    async def upcoming_counts(self, after: UUID | None, limit: int) -> list[Counts]:
        """Page through the slots that have not ended, in id order."""
        rows = await self._settled_rows(
            "SELECT *, id AS slot_id, status = 'open' AS is_open FROM slots"
            " WHERE ends_at > now() AND (%(after)s::uuid IS NULL OR id > %(after)s)"
            " ORDER BY id LIMIT %(limit)s",
            {"after": after, "limit": limit},
        )
        return [counts_of(row) for row in rows]

    async def changed_since(
        self, after: tuple[datetime, int], limit: int
    ) -> tuple[tuple[datetime, int], list[tuple[Counts, list[UUID]]]] | None:
        """Read a page of events behind a place in time: where it ends, and the slots that changed in it.

        With each slot come the ids of the bookings behind it, which Redis may have missed. None: nothing more.
        """
        rows = await self._settled_rows(
            "WITH page AS ("
            "  SELECT at, seq, slot_id, booking_id FROM events WHERE (at, seq) > (%(at)s, %(seq)s)"
            "  ORDER BY at, seq LIMIT %(limit)s)"
            " SELECT s.*, s.id AS slot_id, s.status = 'open' AS is_open, c.booking_ids, e.at, e.seq"
            " FROM (SELECT at, seq FROM page ORDER BY at DESC, seq DESC LIMIT 1) AS e"
            " LEFT JOIN (SELECT slot_id,"
            "     array_agg(DISTINCT booking_id) FILTER (WHERE booking_id IS NOT NULL) AS booking_ids"
            "   FROM page WHERE slot_id IS NOT NULL GROUP BY slot_id) AS c ON true"
            " LEFT JOIN slots AS s ON s.id = c.slot_id",
            {"at": after[0], "seq": after[1], "limit": limit},
        )
        if not rows:
            return None
        changed = [(counts_of(row), row.booking_ids or []) for row in rows if row.slot_id is not None]
        return (rows[0].at, rows[0].seq), changed

    async def settled_among(self, ids: Sequence[UUID]) -> set[UUID]:
        """Of these hold ids, those that have become rows: Redis must not count them as holds as well."""
        rows = await self._settled_rows("SELECT id FROM bookings WHERE id = ANY (%s)", (list(ids),))
        return {row.id for row in rows}

    async def live_in_slot(self, slot_id: UUID) -> list[StoredBooking]:
        rows = await self._settled_rows(
            "SELECT b.*, s.available_count FROM bookings AS b JOIN slots AS s ON s.id = b.slot_id"
            " WHERE b.slot_id = %s AND b.status = ANY (%s) ORDER BY b.created_at, b.id",
            (slot_id, list(LIVE)),
        )
        return [_stored(row) for row in rows]

    async def held_rows(self, venue_slug: str | None, slot_id: UUID | None) -> list[Row]:
        """List the holds that Postgres keeps, taken while Redis was away; those that end first first."""
        return await self._settled_rows(
            "SELECT b.id, b.slot_id, b.quantity, b.created_at, b.expires_at, clock_timestamp() AS now"
            " FROM bookings AS b JOIN venues AS v ON v.id = b.venue_id"
            " WHERE b.status = 'held' AND b.expires_at > clock_timestamp()"
            "   AND (%(venue)s::text IS NULL OR v.slug = %(venue)s)"
            "   AND (%(slot)s::uuid IS NULL OR b.slot_id = %(slot)s)"
            " ORDER BY b.expires_at LIMIT 1000",
            {"venue": venue_slug, "slot": slot_id},
        )

    async def venue_id(self, slug: str) -> UUID:
        """Find a venue.

        Raises:
            VenueNotFound
        """
        rows = await self._settled_rows("SELECT id FROM venues WHERE slug = %(slug)s", {"slug": slug})
        if not rows:
            raise VenueNotFound
        found: UUID = rows[0].id
        return found

    async def resource_ids(self, venue_slug: str | None) -> list[UUID]:
        rows = await self._settled_rows(
            "SELECT r.id FROM resources AS r JOIN venues AS v ON v.id = r.venue_id"
            " WHERE %(slug)s::text IS NULL OR v.slug = %(slug)s ORDER BY r.id",
            {"slug": venue_slug},
        )
        return [row.id for row in rows]

    async def slots_near(self, facts: SlotFacts, limit: int) -> list[Slot]:
        """List open slots of the same resource and service that have not begun, the nearest in time first (S4-5).

        Two index scans outwards from the slot (`slots_by_resource_time`), so the resource may have years of slots.
        """
        alike = (
            "SELECT * FROM slots WHERE resource_id = %(resource)s AND id <> %(slot)s AND status = 'open'"
            " AND service_id IS NOT DISTINCT FROM (SELECT service_id FROM slots WHERE id = %(slot)s)"
        )
        rows = await self._settled_rows(
            f"SELECT {_SLOT_WITH_NAMES}, 0 AS held_rows"  # noqa: S608 a constant of this module
            f" FROM (({alike} AND starts_at >= greatest(%(at)s, now()) ORDER BY starts_at, id LIMIT %(limit)s)"
            "       UNION ALL"
            f"       ({alike} AND starts_at < %(at)s AND starts_at > now() ORDER BY starts_at DESC, id"
            "        LIMIT %(limit)s)) AS n"
            " JOIN venues AS v ON v.id = n.venue_id JOIN resources AS r ON r.id = n.resource_id"
            " WHERE n.closes_at IS NULL OR n.closes_at > now()"
            " ORDER BY abs(extract(epoch FROM n.starts_at - %(at)s)), n.starts_at, n.id LIMIT %(limit)s",
            {"resource": facts.resource_id, "slot": facts.id, "at": facts.starts_at, "limit": limit},
        )
        return [slot_of(row) for row in rows]

    async def slots_of_service_near(
        self, slot_id: UUID, service_id: UUID, resource_id: UUID, at: datetime, limit: int
    ) -> list[Slot]:
        """List open slots of a service that can still be booked: of this resource first, the nearest in time first.

        Index scans outwards from the time, `limit` each, so there may be years of slots.
        """
        of_service = "SELECT * FROM slots WHERE service_id = %(service)s AND status = 'open'"
        parts = " UNION ".join(
            f"({of_service} AND {whose} AND {when} LIMIT %(limit)s)"
            for whose in ("resource_id = %(resource)s", "true")
            for when in (
                "starts_at >= greatest(%(at)s, now()) ORDER BY starts_at, id",
                "starts_at < %(at)s AND starts_at > now() ORDER BY starts_at DESC, id",
            )
        )
        rows = await self._settled_rows(
            f"SELECT {_SLOT_WITH_NAMES}, 0 AS held_rows FROM ({parts}) AS n"  # noqa: S608 constants
            " JOIN venues AS v ON v.id = n.venue_id JOIN resources AS r ON r.id = n.resource_id"
            " WHERE n.id <> %(slot)s AND (n.closes_at IS NULL OR n.closes_at > now())"
            " ORDER BY n.resource_id <> %(resource)s, abs(extract(epoch FROM n.starts_at - %(at)s)), n.starts_at, n.id",
            {"service": service_id, "resource": resource_id, "at": at, "slot": slot_id, "limit": limit},
        )
        return [slot_of(row) for row in rows]

    async def slots(self, slot_ids: Sequence[UUID]) -> list[Slot]:
        """Read slots with the names that people know them by; those that do not exist are left out."""
        rows = await self._settled_rows(
            f"SELECT {_SLOT_WITH_NAMES}, 0 AS held_rows FROM slots AS n"  # noqa: S608 a constant of this module
            " JOIN venues AS v ON v.id = n.venue_id JOIN resources AS r ON r.id = n.resource_id"
            " WHERE n.id = ANY (%s) ORDER BY n.starts_at, n.id",
            (list(slot_ids),),
        )
        return [slot_of(row) for row in rows]

    async def slots_around(self, slot_ids: Sequence[UUID]) -> list[Slot]:
        """Read slots as `slots` does, the places of `held` rows as well; beside those of a person or place also what
        cannot be sold while they are held or booked, for the soonest of which there is `MOST_AROUND`. Of blocked time
        only what lies around it: who is away is nobody's business, and a block is nothing that can be had.

        What overlaps is looked for in one span of each person's time: no slot occupies more than 32 days.
        """
        rows = await self._settled_rows(
            "WITH changed AS MATERIALIZED ("  # noqa: S608 a constant of this module
            "  SELECT resource_id, starts_at, occupied_until FROM slots WHERE id = ANY (%(ids)s) AND one_at_a_time),"
            " spans AS (SELECT resource_id, greatest(min(starts_at) - interval '32 days', now()) AS begins,"
            "             max(occupied_until) AS ends FROM changed GROUP BY resource_id),"
            " around AS (SELECT o.id FROM spans AS s JOIN slots AS o ON o.resource_id = s.resource_id"
            "    AND o.starts_at > s.begins AND o.starts_at < s.ends AND NOT o.is_block"
            "   WHERE EXISTS (SELECT FROM changed AS c WHERE c.resource_id = o.resource_id"
            "     AND o.starts_at < c.occupied_until AND c.starts_at < o.occupied_until)"
            "   ORDER BY o.starts_at, o.id LIMIT %(limit)s)"
            f" SELECT {_SLOT_WITH_NAMES}, (SELECT coalesce(sum(b.quantity), 0) FROM bookings AS b"
            "   WHERE b.slot_id = n.id AND b.status = 'held') AS held_rows"
            " FROM slots AS n JOIN venues AS v ON v.id = n.venue_id JOIN resources AS r ON r.id = n.resource_id"
            " WHERE NOT n.is_block AND n.id IN (SELECT unnest(%(ids)s::uuid[]) UNION SELECT id FROM around)"
            " ORDER BY n.starts_at, n.id",
            {"ids": list(slot_ids), "limit": MOST_AROUND},
        )
        return [slot_of(row) for row in rows]

    async def event_before_last(
        self, count: int, event_type: str | None, slot_id: UUID | None, booking_id: UUID | None
    ) -> int:
        """Find the event after which the last `count` of these follow in the feed's order; 0: the beginning."""
        row = await self._settled_row(
            "SELECT seq FROM events WHERE (%(type)s::text IS NULL OR type = %(type)s)"
            "   AND (%(slot)s::uuid IS NULL OR slot_id = %(slot)s)"
            "   AND (%(booking)s::uuid IS NULL OR booking_id = %(booking)s)"
            " ORDER BY xid DESC, seq DESC OFFSET %(count)s LIMIT 1",
            {"type": event_type, "slot": slot_id, "booking": booking_id, "count": count},
        )
        return 0 if row is None else int(row.seq)

    async def forget_old_answers(self) -> None:
        """Drop the first answers of keyed operator requests when no retry can be expected any more (README)."""
        # In pieces that a statement's time is enough for; other processes, which do the same, take other pieces.
        forgotten = FORGET_BATCH
        while forgotten == FORGET_BATCH:
            [(forgotten,)] = await self._settled_rows(_FORGET_ANSWERS, (FORGET_BATCH,))

    # -- clients ----------------------------------------------------------------------------------------------------

    async def claim_places(
        self, client: str, hold_id: UUID, places: int, most: int, ttl_ms: int
    ) -> bool | tuple[int, datetime | None, list[UUID]]:
        """Count places as held by a client, as `claim.lua` does; False when this hold's were counted before. Else what
        is in the way: how many places, when the first of them ends, and which holds'.
        """
        [row] = await self._settled_rows(
            "SELECT * FROM claim_places(%s, %s, %s, %s, %s * interval '1 millisecond')",
            (client, hold_id, places, most, ttl_ms),
        )
        if row.word == "limit":
            return int(row.held), row.next_end, list(row.ids)
        return bool(row.word == "claimed")

    async def drop_claims(self, client: str, ids: Sequence[UUID]) -> None:
        await self._settled_rows(
            "DELETE FROM claims WHERE client = %s AND id = ANY (%s) RETURNING 1", (client, list(ids))
        )

    async def forget_claims(self) -> None:
        """Drop the claims that have ended: their clients may never come back."""
        await self._settled_rows("DELETE FROM claims WHERE expires_at < now() RETURNING 1", ())

    async def resolved(self, ids: Sequence[UUID]) -> list[UUID]:
        """Tell which of these holds have become bookings, or rows that ended."""
        rows = await self._settled_rows(
            "SELECT id FROM bookings WHERE id = ANY (%s) AND status NOT IN ('held', 'pending_payment')", (list(ids),)
        )
        return [row.id for row in rows]

    async def ping(self) -> None:
        await self._settled_rows("SELECT 1", ())


async def _no_facts(_: UUID, error: Exception) -> tuple[SlotFacts, Counts] | None:
    raise told_again(error)


def _jsonb(requests: Sequence[CommitRequest]) -> str:
    return msgspec.json.encode(requests).decode()


def _facts(row: Row) -> SlotFacts:
    return SlotFacts(
        row.slot_id, row.venue_id, row.resource_id, row.starts_at, row.ends_at,
        row.hold_ttl_seconds, row.hold_max_seconds, _occupied_until(row), row.closes_at,
        row.holds_per_client,
    )  # fmt: skip


def counts_of(row: Row) -> Counts:
    return Counts(
        row.slot_id, row.resource_id, row.capacity, row.available_count, row.version, row.is_open,
        row.starts_at, row.ends_at, _occupied_until(row) if hasattr(row, "one_at_a_time") else UNSET,
    )  # fmt: skip


def _occupied_until(row: Row) -> datetime | None:
    return row.occupied_until if row.one_at_a_time else None


def _outcome(row: Row) -> Outcome:
    counts = None if row.resource_id is None else counts_of(row)
    return Outcome(
        row.word, row.at, row.available_after or 0, row.created_at, row.deadline, row.may_free_at, counts
    )  # fmt: skip


def booking_of(row: Row) -> Booking:
    customer = None
    if row.customer_name is not None:
        customer = Customer(row.customer_name, row.customer_email, row.customer_phone)
    return Booking(
        id=row.id,
        venue_id=row.venue_id,
        slot_id=row.slot_id,
        quantity=row.quantity,
        status=row.status,
        customer=customer,
        metadata=row.metadata,
        expires_at=row.expires_at,
        created_at=row.created_at,
        confirmed_at=row.confirmed_at,
        cancelled_at=row.cancelled_at,
        available_count=row.available_count,
        version=row.version,
    )


def _stored(row: Row) -> StoredBooking:
    return StoredBooking(booking_of(row), row.manage_token_hash, row.available_after, row.expired_at)


def slot_of(row: Row) -> Slot:
    return Slot(
        id=row.id,
        venue_id=row.venue_id,
        venue=row.slug,
        timezone=row.timezone,
        resource_id=row.resource_id,
        resource_name=row.resource_name,
        service_id=row.service_id,
        service_name=row.service_name,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        closes_at=row.closes_at,
        capacity=row.capacity,
        available_count=row.available_count,
        open=row.status == "open",
        blocked=row.blocked,
        held_rows=int(row.held_rows),  # a sum is a Decimal
        version=row.version,
        price_amount=row.price_amount,
        price_currency=row.price_currency,
        occupied_until=_occupied_until(row),
    )
