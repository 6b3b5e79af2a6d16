"""Places of a slot, as every use case takes them: what is wanted, layer 1's answer, and what a refusal says.

Nothing here is decided, or written to Postgres: `booking`, `holding`, `several`, `reschedule`, `waiting` and `blocks`
do that, each in its way. All of them ask Redis first, and whoever comes too late is told the same by each.
"""

from datetime import datetime
from uuid import UUID

import msgspec

from app.domain import Alternatives, Counts, SlotFacts, UnavailableReason
from app.engine import Engine
from app.errors import (
    AlreadyResolved,
    BookingNotFound,
    HoldExpired,
    IdempotencyKeyReused,
    InvalidRequest,
    PaymentRequired,
    Problem,
    SlotNotFound,
    SlotUnavailable,
)
from app.holds import Doubtful, Full, Occupied, Taken
from app.ledger import Outcome, StoredBooking
from app.tokens import HoldGrant, from_ms

#: The hold of a booking that had none lives this long: longer than the longest commit, with the doubt about a lost
#: reply settled, and short enough that a process killed between hold and commit does not block the place (design 5).
INNER_TTL_MS = 15_000
#: A mirror that does not know the slot is loaded; one that still does not after this many times is left alone.
MAX_LOADS = 2


class Claim(msgspec.Struct, frozen=True):
    """What is wanted, once it is clear which slot and which id it is about."""

    facts: SlotFacts
    id: UUID
    quantity: int
    #: Of the customer's own hold; None when the places are yet to be taken.
    grant: HoldGrant | None
    #: Whether a refusal looks for other slots.
    offers: bool = True


async def take(
    engine: Engine, facts: SlotFacts, hold_id: UUID, quantity: int, ttl_ms: int, *, leaving: UUID | None = None
) -> Taken | Full | Occupied | Doubtful | str:
    """Ask layer 1 for places, as `holds.take` does, with a mirror that does not know the slot loaded first.

    Raises:
        RedisAway
    """
    for _ in range(MAX_LOADS):
        taken = await engine.holds.take(facts, hold_id, quantity, ttl_ms, leaving=leaving)
        if isinstance(taken, Doubtful):
            await engine.mirror.load(facts.id, taken.slot_ids)
        elif taken in ("missing", "stale"):
            await engine.mirror.load(facts.id)
        else:
            return taken
    return await engine.holds.take(facts, hold_id, quantity, ttl_ms, leaving=leaving)


async def give_back(engine: Engine, claim: Claim) -> None:
    """Release what was taken for a claim."""
    await engine.mirror.give_back(claim.facts, claim.id, has_token=claim.grant is not None)


def of_slot(claim: Claim, counts: Counts) -> Counts:
    """Add to the counts of a commit what the commit does not tell, so that Redis need not be asked for it."""
    return msgspec.structs.replace(counts, occupied_until=claim.facts.occupied_until)


async def stored_booking(engine: Engine, booking_id: UUID) -> StoredBooking:
    """Read a booking, or a hold that is a row.

    Raises:
        BookingNotFound
    """
    stored = await engine.ledger.booking(booking_id)
    if stored is None:
        raise BookingNotFound
    return stored


# -- refusals ---------------------------------------------------------------------------------------------------------


async def refusal(engine: Engine, claim: Claim, outcome: Outcome) -> Problem:
    """Say why Postgres did not book. The mirror thought otherwise, so it is told."""
    if outcome.word == "occupied":  # by a slot that it may not know of
        await engine.later(engine.mirror.load(claim.facts.id))
    elif outcome.counts:
        await engine.later(engine.mirror.sync_quietly([of_slot(claim, outcome.counts)]))
    match outcome.word:
        case "mismatch":
            return IdempotencyKeyReused()
        case "payment_required":
            return PaymentRequired()
        case "not_found":
            return SlotNotFound()
        case "too_many" if claim.grant:  # the capacity was lowered under the hold: nothing is wrong with the request
            return await not_open(engine, claim, "booked")
        case "too_many":
            return too_many(outcome.counts.capacity if outcome.counts else 0)
        case "resolved":
            return resolved(await stored_booking(engine, claim.id))
        case "lapsed":
            expired_at = claim.grant.expires_at if claim.grant else outcome.deadline or outcome.at
            return HoldExpired(expired_at, await engine.mirror.alternatives(claim.facts, claim.quantity))
        case "closed" | "past" as reason:
            return await not_open(engine, claim, reason)
        case "full" | "occupied":
            why = "held" if outcome.may_free_at else "booked"
            available = outcome.available_after if outcome.word == "full" else 0
            alternatives = await _alternatives(engine, claim)
            return SlotUnavailable(why, claim.quantity, available, outcome.may_free_at, alternatives)
    raise AssertionError(f"commit_bookings said {outcome.word!r}")


async def unavailable(engine: Engine, claim: Claim, refused: Full | Occupied) -> Problem:
    """Say why layer 1 has no room."""
    if isinstance(refused, Full) and claim.quantity > refused.capacity:
        return too_many(refused.capacity)
    reason, available, may_free_at = why_unavailable(claim.quantity, refused)
    alternatives = await _alternatives(engine, claim)
    return SlotUnavailable(reason, claim.quantity, available, may_free_at, alternatives)


def why_unavailable(quantity: int, refused: Full | Occupied) -> tuple[UnavailableReason, int, datetime | None]:
    """Tell why layer 1 refused a party: the reason, the places left, and when a hold may lapse."""
    if isinstance(refused, Occupied):
        may_free_at = from_ms(refused.lapses_ms) if refused.lapses_ms else None
        return "held" if may_free_at else "booked", 0, may_free_at
    held_up = refused.left + refused.held >= quantity  # without the holds there would be room
    may_free_at = from_ms(refused.next_expiry_ms) if held_up and refused.next_expiry_ms else None
    return "held" if held_up else "booked", max(0, refused.left), may_free_at


async def not_open(engine: Engine, claim: Claim, reason: str) -> Problem:
    """Say that nobody can have places of this slot now, however many are left."""
    alternatives = await _alternatives(engine, claim)
    return SlotUnavailable(reason, claim.quantity, 0, None, alternatives)


async def _alternatives(engine: Engine, claim: Claim) -> Alternatives:
    return await engine.mirror.alternatives(claim.facts, claim.quantity) if claim.offers else Alternatives()


def too_many(capacity: int) -> InvalidRequest:
    """Refuse a party that the slot could not even hold when it is empty."""
    return InvalidRequest("quantity", f"The slot has {capacity} places in all")


def resolved(stored: StoredBooking) -> AlreadyResolved:
    """Tell how and when a booking or hold ended, or was confirmed."""
    booking = stored.booking
    resolved_at = booking.cancelled_at or stored.expired_at or booking.confirmed_at
    return AlreadyResolved(booking.id, booking.status, resolved_at)
