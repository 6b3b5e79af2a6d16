"""The use case of moving a booking: one atomic swap, after which it has its old place or its new one, and never both.

The booking keeps its id and its tokens. An old link can therefore only move it again, and never mint a second booking;
who names the version that was seen is told when it has changed since.
"""

from uuid import UUID

import msgspec

from app import booking, places
from app.breaker import RedisAway
from app.domain import Booking, Caller
from app.engine import Engine
from app.errors import (
    BookingNotFound,
    Busy,
    Conflict,
    PaymentRequired,
    Problem,
    SlotNotFound,
    SlotUnavailable,
)
from app.holds import Full, Occupied, Taken
from app.ledger import Moved
from app.places import Claim
from app.postgres import RuleViolated
from app.telemetry import outcomes
from app.tokens import new_id

#: The exclusion constraint refused (layer 3), since somebody took that time of the person at this moment: asked again,
#: the function sees whose it is. Who meets another rival each time is told to come back.
TRIES = 3


class Wish(msgspec.Struct, frozen=True):
    """Where a booking shall go. `quantity` None: as many places as before. `version` None: whatever it is now."""

    slot_id: UUID
    quantity: int | None = None
    version: int | None = None


async def reschedule(engine: Engine, booking_id: UUID, token: str | None, wish: Wish, *, caller: Caller) -> Booking:
    """Move a booking to another slot of its venue, or change how many places it takes. Both stores agree afterwards.

    A second time it is there already, and nothing changes. A refusal keeps the old place.

    Raises:
        BookingNotFound: also for a wrong token. SlotNotFound: no such slot in this venue. SlotUnavailable: no room.
        AlreadyResolved: it ended before. PaymentRequired: dearer, in a venue that is paid first.
        Conflict: it waits for payment, its slot has begun, or its version is another.
    """
    found = (await booking.authorized(engine, booking_id, token)).booking
    there = await engine.mirror.facts(wish.slot_id)
    if there.venue_id != found.venue_id:
        raise SlotNotFound
    claim = Claim(there, new_id(), wish.quantity or found.quantity, None)
    held = await _hold(engine, claim, found)
    try:
        moved = await _move(engine, booking_id, wish, caller)
    except Exception:
        if held:
            await engine.mirror.give_back(there, claim.id, has_token=False)
        raise
    outcomes("reschedule", moved.word).inc()
    if held and moved.word != "moved":
        await engine.mirror.give_back(there, claim.id, has_token=False)
    elif held:
        await engine.holds.settle_later(moved.counts[0], claim.id, remember=False)
    await engine.mirror.sync_quietly(moved.counts)
    if moved.word != "moved":
        raise await _refusal(engine, booking_id, claim, moved)
    # As the move left it, and not read again: by now it may be cancelled, or have moved on.
    return msgspec.structs.replace(
        found,
        slot_id=wish.slot_id,
        quantity=moved.quantity,
        status="confirmed",  # no other kind of booking moves
        expires_at=None,
        confirmed_at=moved.confirmed_at,
        version=moved.version,
        available_count=moved.counts[0].available_count,
    )


async def _hold(engine: Engine, claim: Claim, found: Booking) -> bool:
    """Layer 1: take the new places for a moment, or be refused early. False: Postgres decides alone.

    Not asked about its own slot, and told to overlook it beside another: or somebody would be refused because of their
    own place.
    """
    if claim.facts.id == found.slot_id:
        return False
    try:
        match await places.take(
            engine, claim.facts, claim.id, claim.quantity, places.INNER_TTL_MS, leaving=found.slot_id
        ):
            case Taken():
                return True
            case Full() | Occupied() as refused if isinstance(refused, Occupied) or claim.quantity <= refused.capacity:
                reason, available, may_free_at = places.why_unavailable(claim.quantity, refused)
                alternatives = await engine.mirror.alternatives(claim.facts, claim.quantity)
                raise SlotUnavailable(reason, claim.quantity, available, may_free_at, alternatives)
    except RedisAway:
        return False
    return False


async def _move(engine: Engine, booking_id: UUID, wish: Wish, caller: Caller) -> Moved:
    """Layers 2 and 3: move it in one transaction, or learn why not."""
    for _ in range(TRIES):
        try:
            return await engine.ledger.move(
                booking_id, wish.slot_id, wish.quantity, wish.version, actor=caller.actor, request_id=caller.request_id
            )
        except RuleViolated as violation:
            if violation.rule != "occupied_one_thing_at_a_time":
                raise
    raise Busy


async def _refusal(engine: Engine, booking_id: UUID, claim: Claim, moved: Moved) -> Problem:
    match moved.word:
        case "not_found":
            return BookingNotFound()
        case "slot_not_found":
            return SlotNotFound()
        case "payment_required":
            return PaymentRequired()
        case "unpaid":
            return Conflict("The booking waits for its payment: pay or cancel it first")
        case "changed":
            return Conflict("The booking has changed since that version")
        case "begun":
            return Conflict("The slot has begun: ask the venue")
        case "too_many":
            return places.too_many(moved.counts[0].capacity)
        case "ended":
            stored = await engine.ledger.booking(booking_id)
            return places.resolved(stored) if stored else BookingNotFound()
    reason, available = moved.word, 0
    if moved.word in ("full", "occupied"):
        reason = "held" if moved.may_free_at else "booked"
        available = moved.counts[0].available_count if moved.word == "full" else 0
    alternatives = await engine.mirror.alternatives(claim.facts, claim.quantity)
    return SlotUnavailable(reason, claim.quantity, available, moved.may_free_at, alternatives)
