"""The waiting list: who waits for a slot, or for a service on a day, and what is offered to them.

    join ─→ a line, in the order of coming; refused while there is room
    whatever frees places ─→ triggers (migration 0008): a hold for the first who fits, in the same commit
    jobs ─→ notices    the e-mail, with the hold's token: from then on it is a hold like any other
         ─→ look_after    what Postgres could not offer alone, see there; and entries whose time has passed

Why nobody snipes: the places go from one to the other inside a transaction, under the slot's lock. Only places that the
transaction has freed are offered so: what was free before may be held in Redis, and no hold is ever broken for a line.
"""

import hmac
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import msgspec
import structlog

from app import places
from app.breaker import RedisAway
from app.domain import Caller, Customer, Slot
from app.engine import Engine
from app.errors import (
    Busy,
    Conflict,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    ResourceNotFound,
    SlotAvailable,
    SlotNotFound,
    SlotUnavailable,
    Unavailable,
    VenueNotFound,
)
from app.holds import Taken
from app.ledger import Ledger, counts_of
from app.telemetry import outcomes
from app.tokens import HoldGrant, id_from_key, new_id, sign_hold, waiting_token

log = structlog.get_logger()
Row = Any  # psycopg's named tuples: the fields are those of the statement above each use

Status = Literal["waiting", "offered", "booked", "lapsed", "left", "expired"]

#: Waiting for one slot, or for one service on one day. Who comes later than that waits in vain.
MOST_IN_LINE = 100
#: Slots of a day that are asked whether they have room.
MOST_SLOTS = 200
#: So far ahead somebody may wait for a day.
MOST_DAYS_AHEAD = 366
#: The slot changes while somebody joins its line: looked at again so often, then "busy".
MAX_TRIES = 3
#: Ended, and looked at, in one go.
BATCH = 500
#: How long the lines of days are looked at, one after the other, in one go: a full day of many people takes a while.
DAYS_SECONDS = 0.5

_COLUMNS = (
    "w.id, v.slug AS venue, w.slot_id, w.service_id, w.day, w.resource_id, w.quantity, w.status, w.customer_name,"
    " w.customer_email, w.customer_phone, w.first_position, w.hold_id, w.offered_slot_id, w.offered_at,"
    " coalesce(b.expires_at, w.offered_until) AS offered_until, w.created_at, w.ended_at,"
    " CASE WHEN w.status = 'waiting' THEN 1 + (SELECT count(*) FROM waiting_entries AS o"
    "   WHERE o.status = 'waiting' AND (o.created_at, o.id) < (w.created_at, w.id) AND (o.slot_id = w.slot_id"
    "     OR o.service_id = w.service_id AND o.day = w.day AND o.resource_id IS NOT DISTINCT FROM w.resource_id))"
    " END AS place_in_line"
)
#: An offered hold may be extended, as any hold: the booking knows how long it lives.
_JOINED = (
    "waiting_entries AS w JOIN venues AS v ON v.id = w.venue_id"
    " LEFT JOIN bookings AS b ON b.id = w.hold_id AND w.status = 'offered'"
)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Places of a slot; or of any slot of a venue's service on a day of its calendar, with anybody or one resource."""

    slot_id: UUID | None = None
    venue: str | None = None
    service_id: UUID | None = None
    day: date | None = None
    resource_id: UUID | None = None
    quantity: int = 1
    customer: Customer
    key: str | None = None


class Offered(msgspec.Struct, frozen=True):
    """The hold that somebody was offered. It is a hold like any other, and so is its token."""

    hold_id: UUID
    slot_id: UUID
    at: datetime
    until: datetime


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody in a line. `position` 1 is the next one; None: not waiting (any more)."""

    id: UUID
    venue: str
    slot_id: UUID | None
    service_id: UUID | None
    day: date | None
    resource_id: UUID | None
    quantity: int
    customer: Customer
    status: Status
    position: int | None
    first_position: int
    offer: Offered | None
    created_at: datetime
    ended_at: datetime | None
    replayed: bool = False


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries to list; those of a slot are who waits for it and who was offered it."""

    venue: str | None = None
    slot_id: UUID | None = None
    status: Status | None = None


class _Target(msgspec.Struct, frozen=True):
    """What is waited for, as it is now: the slots that would do, and what the line is called in the database."""

    venue_id: UUID
    slots: Sequence[Slot]
    #: Of the slot, when it is one; None: a day.
    version: int | None


# -- joining, looking, leaving ----------------------------------------------------------------------------------------


async def join(engine: Engine, wish: Wish, *, caller: Caller) -> tuple[Entry, str]:
    """Join a line and return the entry with its token. Repeated with the same key, it gives the first answer again.

    Raises:
        SlotAvailable: there is room at this moment. SlotUnavailable: nobody waits for a slot that is closed or past.
        SlotNotFound, VenueNotFound, ResourceNotFound, NotFound (the service).
        Conflict: this address waits there already, or enough others do. IdempotencyKeyReused.
    """
    for _ in range(MAX_TRIES):
        target = await _target(engine, wish)
        entry_id = id_from_key("waiting", target.venue_id, wish.key) if wish.key else new_id()
        if wish.key and (earlier := await _find(engine.ledger, "w.id = %(id)s", {"id": entry_id})):
            return _first_answer(engine, wish, earlier)
        _require_waiting_makes_sense(wish, target)
        await _require_no_room(engine, wish, target)
        word = await _join(engine, entry_id, wish, target, caller)
        if word == "changed":  # between the look and the lock: its places may be free now
            continue
        outcomes("waiting", word).inc()
        if word == "double":
            raise Conflict("This e-mail address is on that waiting list already")
        if word == "crowded":
            raise Conflict(f"{MOST_IN_LINE} are waiting already")
        made = await _read(engine.ledger, entry_id)
        if word == "again":  # of two at once under one key, or of a lost answer
            return _first_answer(engine, wish, made)
        return made, token_of(engine, entry_id)
    raise Busy


async def read(engine: Engine, entry_id: UUID, token: str | None) -> Entry:
    """Read an entry by its token, or as an operator (None).

    Raises:
        NotFound: also for a wrong token.
    """
    if token is not None and not _is_token_of(engine, entry_id, token):
        raise _not_found()
    return await _read(engine.ledger, entry_id)


async def leave(engine: Engine, entry_id: UUID, token: str | None, *, caller: Caller) -> None:
    """Leave a line, by the token or as an operator (None); an offer goes to the next one at once. Twice is harmless.

    Raises:
        NotFound: also for a wrong token. Conflict: what was offered is being paid for.
    """
    if token is not None and not _is_token_of(engine, entry_id, token):
        raise _not_found()
    [row] = await engine.ledger.repeatable(
        "SELECT * FROM leave_waiting_list(%s, %s, %s)", (entry_id, caller.actor, caller.request_id)
    )
    if row.resource_id is not None:
        await engine.mirror.sync_quietly([counts_of(row)])
    if row.word == "not_found":
        raise _not_found()
    if row.word == "paying":
        raise Conflict("The places are being paid for: cancel the booking instead")
    outcomes("waiting", row.word).inc()


async def listed(ledger: Ledger, which: Filter, after: tuple[datetime, UUID] | None, limit: int) -> list[Entry]:
    """List entries in the order in which they were made, behind a position.

    Raises:
        VenueNotFound
    """
    venue_id = None
    if which.venue is not None:
        venues = await ledger.repeatable("SELECT id FROM venues WHERE slug = %s", (which.venue,))
        if not venues:
            raise VenueNotFound
        venue_id = venues[0].id
    rows = await ledger.repeatable(
        f"SELECT {_COLUMNS} FROM {_JOINED}"  # noqa: S608 constants of this module
        " WHERE (%(venue)s::uuid IS NULL OR w.venue_id = %(venue)s)"
        "   AND (%(slot)s::uuid IS NULL OR %(slot)s IN (w.slot_id, w.offered_slot_id))"
        "   AND (%(status)s::text IS NULL OR w.status = %(status)s)"
        "   AND (%(at)s::timestamptz IS NULL OR (w.created_at, w.id) > (%(at)s, %(id)s))"
        " ORDER BY w.created_at, w.id LIMIT %(limit)s",
        {
            "venue": venue_id,
            "slot": which.slot_id,
            "status": which.status,
            "at": after[0] if after else None,
            "id": after[1] if after else None,
            "limit": limit,
        },
    )
    return [_entry(row) for row in rows]


def token_of(engine: Engine, entry_id: UUID) -> str:
    """Sign the right to look at an entry and to leave."""
    return waiting_token(engine.settings.secrets[0], entry_id)


def hold_token(engine: Engine, entry: Entry) -> str | None:
    """Sign what an offer grants; None: there is none to be taken."""
    if entry.status != "offered" or entry.offer is None:
        return None
    offer = entry.offer
    expires_at_ms = round(offer.until.timestamp() * 1000)
    return sign_hold(engine.settings.secrets, HoldGrant(offer.hold_id, offer.slot_id, entry.quantity, expires_at_ms))


async def of_hold(ledger: Ledger, hold_id: UUID) -> Entry | None:
    """Find who was offered a hold."""
    return await _find(ledger, "w.hold_id = %(id)s", {"id": hold_id})


def _is_token_of(engine: Engine, entry_id: UUID, token: str) -> bool:
    shown = token.encode()
    return any(hmac.compare_digest(shown, waiting_token(s, entry_id).encode()) for s in engine.settings.secrets)


def _not_found() -> NotFound:
    return NotFound("Waiting list entry not found")


# -- what is waited for -----------------------------------------------------------------------------------------------


async def _target(engine: Engine, wish: Wish) -> _Target:
    if wish.slot_id is not None:
        slots = await engine.ledger.slots([wish.slot_id])
        if not slots:
            raise SlotNotFound
        return _Target(slots[0].venue_id, slots, slots[0].version)
    rows = await engine.ledger.repeatable(
        "SELECT v.id, v.timezone,"
        "  EXISTS (SELECT FROM services AS o WHERE o.id = %(service)s AND o.venue_id = v.id AND o.active) AS service,"
        "  EXISTS (SELECT FROM resources AS r WHERE r.id = %(resource)s AND r.venue_id = v.id) AS resource"
        " FROM venues AS v WHERE v.slug = %(venue)s",
        {"venue": wish.venue, "service": wish.service_id, "resource": wish.resource_id},
    )
    if not rows:
        raise VenueNotFound
    [venue] = rows
    if not venue.service:
        raise NotFound("Service not found")
    if wish.resource_id is not None and not venue.resource:
        raise ResourceNotFound
    return _Target(venue.id, await _slots_of_day(engine.ledger, wish, ZoneInfo(venue.timezone)), None)


async def _slots_of_day(ledger: Ledger, wish: Wish, zone: ZoneInfo) -> list[Slot]:
    """List the slots that would do and may have room."""
    today, day = datetime.now(zone).date(), wish.day or date.min
    if not today <= day <= today + timedelta(days=MOST_DAYS_AHEAD):
        raise InvalidRequest("day", f"Must be today or one of the next {MOST_DAYS_AHEAD} days")
    rows = await ledger.repeatable(
        "SELECT s.id FROM slots AS s WHERE s.service_id = %(service)s"
        "   AND s.starts_at >= %(from)s AND s.starts_at < %(before)s AND s.status = 'open'"
        "   AND least(s.closes_at, s.starts_at) > clock_timestamp() AND s.available_count >= %(quantity)s"
        "   AND (%(resource)s::uuid IS NULL OR s.resource_id = %(resource)s)"
        " ORDER BY s.starts_at, s.id LIMIT %(most)s",
        {
            "service": wish.service_id,
            "from": datetime(day.year, day.month, day.day, tzinfo=zone),
            "before": datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(days=1),
            "quantity": wish.quantity,
            "resource": wish.resource_id,
            "most": MOST_SLOTS,
        },
    )
    return await ledger.slots([row.id for row in rows]) if rows else []


def _require_waiting_makes_sense(wish: Wish, target: _Target) -> None:
    """Let nobody wait for what cannot come."""
    if target.version is None:
        return
    [slot] = target.slots
    if wish.quantity > slot.capacity:
        raise places.too_many(slot.capacity)
    if not slot.open:
        raise SlotUnavailable("closed", wish.quantity, 0)
    if min(slot.closes_at or slot.starts_at, slot.starts_at) <= datetime.now(UTC):
        raise SlotUnavailable("past", wish.quantity, 0)


async def _require_no_room(engine: Engine, wish: Wish, target: _Target) -> None:
    """Send to the booking whoever need not wait. Places that somebody holds are waited for: holds lapse."""
    rooms = await engine.mirror.rooms(target.slots) if target.slots else {}
    for slot in target.slots:
        if not slot.blocked and rooms[slot.id].available >= wish.quantity:
            raise SlotAvailable(slot.id)


async def _join(engine: Engine, entry_id: UUID, wish: Wish, target: _Target, caller: Caller) -> str:
    asked = {
        "id": entry_id,
        "slot_id": wish.slot_id,
        "service_id": wish.service_id,
        "day": wish.day,
        "resource_id": wish.resource_id,
        "quantity": wish.quantity,
        "customer_name": wish.customer.name,
        "customer_email": wish.customer.email,
        "customer_phone": wish.customer.phone,
    }
    [row] = await engine.ledger.repeatable(
        "SELECT word FROM join_waiting_list(%s, %s, %s, %s, %s)",
        (msgspec.json.encode(asked).decode(), target.version, MOST_IN_LINE, caller.actor, caller.request_id),
    )
    return str(row.word)


def _first_answer(engine: Engine, wish: Wish, entry: Entry) -> tuple[Entry, str]:
    """Answer as the first time, whatever became of the entry since (promise 6)."""
    asked = (wish.slot_id, wish.service_id, wish.day, wish.resource_id, wish.quantity, wish.customer)
    if asked != (entry.slot_id, entry.service_id, entry.day, entry.resource_id, entry.quantity, entry.customer):
        raise IdempotencyKeyReused
    first = msgspec.structs.replace(
        entry, status="waiting", position=entry.first_position, offer=None, ended_at=None, replayed=True
    )
    return first, token_of(engine, entry.id)


async def _read(ledger: Ledger, entry_id: UUID) -> Entry:
    found = await _find(ledger, "w.id = %(id)s", {"id": entry_id})
    if found is None:
        raise _not_found()
    return found


async def _find(ledger: Ledger, condition: str, values: Mapping[str, Any]) -> Entry | None:
    rows = await ledger.repeatable(f"SELECT {_COLUMNS} FROM {_JOINED} WHERE {condition}", values)  # noqa: S608
    return _entry(rows[0]) if rows else None


def _entry(row: Row) -> Entry:
    offer = None
    if row.hold_id is not None:
        offer = Offered(row.hold_id, row.offered_slot_id, row.offered_at, row.offered_until)
    return Entry(
        id=row.id, venue=row.venue, slot_id=row.slot_id, service_id=row.service_id, day=row.day,
        resource_id=row.resource_id, quantity=row.quantity,
        customer=Customer(row.customer_name, row.customer_email, row.customer_phone),
        status=row.status, position=row.place_in_line, first_position=row.first_position, offer=offer,
        created_at=row.created_at, ended_at=row.ended_at,
    )  # fmt: skip


# -- for the worker ---------------------------------------------------------------------------------------------------


async def look_after(engine: Engine) -> int:
    """Offer what the triggers could not, and end the entries whose time has passed; returns how many offers were made.

    Postgres offers only what it has freed itself. Left for here: a hold in Redis that lapsed or was given up; a party
    for which the places freed now are enough only together with those that were free before; and slots whose row was
    locked. All of these may be held by somebody: the places are first taken in Redis, as a customer takes them.

    Raises:
        Unavailable: Postgres could not; it is done next time.
    """
    await engine.ledger.repeatable("SELECT expire_waiting(%s)", (BATCH,))
    made = await _offer_all(engine, await engine.ledger.repeatable("SELECT * FROM find_offers(%s)", (BATCH,)))
    # In any order, and no more of them than there is time for: every day gets its turn.
    days = await engine.ledger.repeatable(
        "SELECT service_id, day FROM (SELECT DISTINCT service_id, day FROM waiting_entries"
        "  WHERE status = 'waiting' AND service_id IS NOT NULL) AS days ORDER BY random() LIMIT %s",
        (BATCH,),
    )
    enough = time.monotonic() + DAYS_SECONDS
    for row in days:
        found = await engine.ledger.repeatable(
            "SELECT * FROM find_offers_of_day(%s, %s, %s)", (row.service_id, row.day, BATCH)
        )
        made += await _offer_all(engine, found)
        if time.monotonic() > enough:
            break
    return made


async def _offer_all(engine: Engine, found: Sequence[Row]) -> int:
    """Make each an offer of the first slot that can be had."""
    served, refused = set[UUID](), set[tuple[UUID, int]]()
    for row in found:
        if row.entry_id in served or (row.slot_id, row.quantity) in refused:
            continue
        if await _offer(engine, row.entry_id, row.slot_id, row.quantity):
            served.add(row.entry_id)
        else:
            refused.add((row.slot_id, row.quantity))
    return len(served)


async def _offer(engine: Engine, entry_id: UUID, slot_id: UUID, quantity: int) -> bool:
    """Make one offer as every booking is made: layer 1, the commit, and then the mirror follows."""
    facts, hold_id = await engine.mirror.facts(slot_id), uuid4()
    try:
        taken = isinstance(await places.take(engine, facts, hold_id, quantity, places.INNER_TTL_MS), Taken)
        if not taken:
            return False
    except RedisAway:
        taken = False  # Postgres decides alone
    try:
        [row] = await engine.ledger.repeatable("SELECT * FROM offer_place(%s, %s, %s)", (entry_id, slot_id, hold_id))
    except Unavailable as error:
        if taken and error.effect_none:
            await engine.mirror.give_back(facts, hold_id, has_token=False)
        raise
    outcomes("offer", row.word).inc()
    if row.word == "offered":
        await engine.holds.settle_later(counts_of(row), hold_id, remember=True)
    elif taken:
        await engine.mirror.give_back(facts, hold_id, has_token=False)
    return bool(row.word == "offered")


async def tell_mirror(engine: Engine, slot_id: UUID) -> str:
    """Tell the mirror of an offer. Who freed the places may have known of another slot, or not have been one of us."""
    await engine.mirror.slots_changed([slot_id])
    return "told"
