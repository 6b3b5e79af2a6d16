"""The use case of a salon's page: book a service with a person at a time. The slot is found, `booking.book` books it.

Why a time cannot be had is told apart: it is taken (and others are offered), or it never was one that could be booked.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec
import structlog

from app import booking
from app.booking import BookingRequest
from app.domain import Booking, Caller, Customer, Slot
from app.engine import Engine
from app.errors import InvalidRequest, NotFound, SlotUnavailable, VenueNotFound
from app.ledger import Ledger
from app.mirror import Remembered
from app.tokens import id_from_key

log = structlog.get_logger()

#: A slot that was found is remembered for so long: a crowd wants the same one, and its id never changes.
FOUND_SECONDS = 5.0
FOUND_SLOTS = 10_000
#: Neighbours looked at of the same person and of colleagues, and how many of those with room are told.
NEAR_SLOTS = 40
MAX_ALTERNATIVES = 5


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A service with a person at an instant (UTC)."""

    slug: str
    service_id: UUID
    staff_id: UUID
    starts_at: datetime
    customer: Customer
    key: str | None = None


class Found(msgspec.Struct, frozen=True):
    """What there is at that time. `slot_id` None: no slot begins then, for the reason told."""

    venue_id: UUID
    slot_id: UUID | None
    why_not: Literal["past", "too_soon", "beyond", "off_grid", None]


class Taken(Exception):
    """The person has no time then; `alternatives` are free slots of the same service."""

    def __init__(self, alternatives: Sequence[Slot]) -> None:
        super().__init__("taken")
        self.alternatives = alternatives


class Appointments:
    """The use case, with what a process remembers of times that were asked for: a crowd asks Postgres once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._found: Remembered[Found] = Remembered(FOUND_SLOTS, FOUND_SECONDS)
        self._near: Remembered[list[Slot]] = Remembered(1_000, FOUND_SECONDS)
        self._free: Remembered[list[Slot]] = Remembered(1, 0)

    async def book(self, asked: Wanted, *, caller: Caller) -> tuple[Booking, Slot, str]:
        """Book an appointment; returns the booking, its slot and its manage token.

        Raises:
            Taken. InvalidRequest: nobody could book that time. VenueNotFound, NotFound: no such venue, service, person.
            And what `booking.book` raises.
        """
        name = f"{asked.slug}\n{asked.staff_id}\n{asked.starts_at.isoformat()}"
        found_id = id_from_key("appointment", asked.service_id, name)
        found = await self._found.get(found_id, lambda: _look_up(self._engine.ledger, asked))
        if found.slot_id is None:
            raise _never(found)
        # What else is free of the service, which `booking` does not know, is looked up here.
        request = BookingRequest(slot_id=found.slot_id, customer=asked.customer, key=asked.key, offers=False)
        try:
            made, token = await booking.book(self._engine, request, caller=caller)
        except SlotUnavailable as refusal:
            if refusal.fields["reason"] == "past":
                raise InvalidRequest("startTime", "It is too late to book that time") from refusal
            raise Taken(await self._alternatives(asked, found.slot_id)) from refusal
        [slot] = await self._engine.ledger.slots([found.slot_id])
        return made, slot, token

    async def _alternatives(self, asked: Wanted, slot_id: UUID) -> list[Slot]:
        """List free slots of the same service: of the same person first, then of colleagues, the nearest first.

        Never fails: it is a courtesy.
        """
        try:
            # One look for all who were refused this time at the same moment.
            return await self._free.load(slot_id, lambda: self._look_around(asked, slot_id))
        except Exception:
            log.warning("no_alternatives", slot_id=str(slot_id), exc_info=True)
            return []

    async def _look_around(self, asked: Wanted, slot_id: UUID) -> list[Slot]:
        async def read() -> list[Slot]:
            return await self._engine.ledger.slots_of_service_near(
                slot_id, asked.service_id, asked.staff_id, asked.starts_at, NEAR_SLOTS
            )

        near = await self._near.get(slot_id, read)
        rooms = await self._engine.mirror.rooms(near)
        fitting = [slot for slot in near if not slot.blocked and rooms[slot.id].open and rooms[slot.id].available > 0]
        return fitting[:MAX_ALTERNATIVES]


async def _look_up(ledger: Ledger, asked: Wanted) -> Found:
    rows = await ledger.repeatable(
        "SELECT v.id AS venue_id, sv.id AS service_id, o.resource_id, s.id AS slot_id,"
        "   CASE WHEN %(at)s <= clock_timestamp() THEN 'past'"
        "     WHEN s.closes_at <= clock_timestamp() THEN 'too_soon'"
        "     WHEN s.id IS NULL AND %(at)s > (SELECT max(l.starts_at) FROM slots AS l"
        "       WHERE l.resource_id = o.resource_id AND l.service_id = sv.id) THEN 'beyond'"
        "     WHEN s.id IS NULL THEN 'off_grid' END AS why_not"
        " FROM venues AS v"
        " LEFT JOIN services AS sv ON sv.id = %(service)s AND sv.venue_id = v.id AND sv.active"
        " LEFT JOIN service_resources AS o ON o.service_id = sv.id AND o.resource_id = %(staff)s"
        " LEFT JOIN slots AS s ON s.resource_id = o.resource_id AND s.service_id = sv.id AND s.starts_at = %(at)s"
        " WHERE v.slug = %(slug)s ORDER BY s.status = 'open' DESC, s.id LIMIT 1",
        {"slug": asked.slug, "service": asked.service_id, "staff": asked.staff_id, "at": asked.starts_at},
    )
    if not rows:
        raise VenueNotFound
    [row] = rows
    if row.service_id is None:
        raise NotFound("Service not found")
    if row.resource_id is None:
        raise NotFound("Nobody of that id offers this service")
    return Found(row.venue_id, None if row.why_not else row.slot_id, row.why_not)


def _never(found: Found) -> InvalidRequest:
    message = {
        "past": "It is in the past",
        "too_soon": "It is too late to book that time",
        "beyond": "It is too far ahead",
        "off_grid": "No appointment begins at that time",
    }[found.why_not or "off_grid"]
    return InvalidRequest("startTime", message)
