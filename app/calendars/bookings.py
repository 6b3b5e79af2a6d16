"""What is in a calendar: the bookings of a person or venue, as many as a calendar can bear. Never an e-mail address or
a telephone number: whoever is shown a calendar sees names at most.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import msgspec

from app.calendars.feeds import Subject
from app.ledger import Ledger

Row = Any  # psycopg's named tuples: the fields are those of the statement above each use

#: How far a feed looks back and ahead.
PAST_DAYS, AHEAD_DAYS = 30, 365
#: Of more bookings than this the earliest to come are shown, and the latest of those that were: calendars of clients
#: choke on more. A booking of a class is an event of its own.
MOST_AHEAD, MOST_PAST = 4_000, 1_000


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A booking as a calendar shows it."""

    booking_id: UUID
    #: Grows with each change, as calendars want it.
    sequence: int
    status: Literal["confirmed", "pending_payment", "cancelled"]
    changed_at: datetime
    starts_at: datetime
    ends_at: datetime
    resource_name: str
    #: None: the resource itself is sold.
    service_name: str | None
    customer_name: str
    quantity: int


#: Walks along the slots in the order of their start, and along each one's bookings: both by an index, whatever the
#: planner thinks of the table's size (OFFSET 0 keeps the two apart). A slot whose version is 1 never had a booking:
#: in the grid of a salon that is nearly every one. No index knows that, because each booking would have to write it.
_SIDE = """(
    SELECT s.starts_at, s.ends_at, b.*, r.name AS resource_name, v.name AS service_name
    FROM slots AS s
    CROSS JOIN LATERAL (
        SELECT id, version, status, created_at, confirmed_at, cancelled_at, customer_name, quantity FROM bookings
        WHERE slot_id = s.id AND status IN ('confirmed', 'pending_payment', 'cancelled')
            AND customer_name IS NOT NULL
        OFFSET 0) AS b
    JOIN resources AS r ON r.id = s.resource_id LEFT JOIN services AS v ON v.id = s.service_id
    WHERE s.{whose} = %(whose)s AND s.starts_at >= %({first})s AND s.starts_at < %({last})s AND s.version > 1
    ORDER BY s.starts_at {direction}, b.id LIMIT %(most_{side})s)"""
_STATEMENT = """
    WITH found AS ({ahead} UNION ALL {past})
    SELECT id, version, status, starts_at, ends_at, resource_name, service_name, customer_name, quantity,
        greatest(created_at, confirmed_at, cancelled_at, CASE WHEN version > 1 THEN (
            SELECT max(e.at) FROM events AS e
            WHERE e.booking_id = found.id AND e.type = 'booking.rescheduled') END) AS changed_at
    FROM found ORDER BY starts_at, id"""


def _statement(whose: Literal["venue_id", "resource_id"]) -> str:
    return _STATEMENT.format(
        ahead=_SIDE.format(whose=whose, first="today", last="until", direction="ASC", side="ahead"),
        past=_SIDE.format(whose=whose, first="since", last="today", direction="DESC", side="past"),
    )


OF_VENUE, OF_RESOURCE = _statement("venue_id"), _statement("resource_id")


async def read(ledger: Ledger, subject: Subject, now: datetime) -> list[Entry]:
    """Read what a feed shows, in the order of the start. Its window moves once a day, so that a feed of which nothing
    changed stays as it is all day long.

    Raises:
        Busy, Overloaded, DatabaseUnavailable
    """
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = await ledger.repeatable(
        OF_VENUE if subject.resource_id is None else OF_RESOURCE,
        {
            "whose": subject.resource_id or subject.venue_id,
            "since": today - timedelta(days=PAST_DAYS),
            "today": today,
            "until": today + timedelta(days=AHEAD_DAYS + 1),
            "most_ahead": MOST_AHEAD,
            "most_past": MOST_PAST,
        },
    )
    return _entries(rows)


def _entries(rows: Sequence[Row]) -> list[Entry]:
    return [
        Entry(
            booking_id=row.id,
            # A cancellation is its booking's last change, and has no number of its own.
            sequence=row.version - 1 + (row.status == "cancelled"),
            status=row.status,
            changed_at=row.changed_at,
            starts_at=row.starts_at,
            ends_at=row.ends_at,
            resource_name=row.resource_name,
            service_name=row.service_name,
            customer_name=row.customer_name,
            quantity=row.quantity,
        )
        for row in rows
    ]
