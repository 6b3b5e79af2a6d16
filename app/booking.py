"""The use cases: hold, book, cancel. Read `book` first: it is the path that everything else exists for, `checkout` too.

    book ─→ holds.take          lua/hold.lua      layer 1  early rejection, one Redis round trip, Postgres not touched
         ─→ commits.commit_one  commit_bookings() layer 2  row lock, decide, write, audit: one transaction
                                constraints       layer 3  partial unique index, CHECK, exclusion: whatever layer 2 says
         ─→ holds.settle        lua/settle.lua    the hold becomes booked in the mirror, off the reply path
         on failure ─→ holds.release, then the error (CARD-5)

Why it cannot oversell: a booking exists only through the commit, the commit counts under the slot's row lock, and the
constraints refuse what a wrong count would store. Redis may be wrong in either direction, late, empty or gone; it only
decides who is turned away early, and whoever it cannot speak for goes on to Postgres.

Why a retry is harmless: a booking's id is its hold's id, chosen before anything is written (from the Idempotency-Key
when there is one). The same request finds its own hold, its own row, or the record that settle left behind.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from app.breaker import NotAsked, RedisAway
from app.claims import claimed, given_up
from app.domain import (
    Alternatives,
    Booking,
    BookingStatus,
    Counts,
    Customer,
    Hold,
    Room,
    Slot,
    SlotFacts,
    UnavailableReason,
)
from app.engine import Engine
from app.errors import (
    AlreadyResolved,
    BookingNotFound,
    Conflict,
    DatabaseUnavailable,
    HoldExpired,
    HoldLimit,
    HoldNotFound,
    IdempotencyKeyReused,
    InvalidRequest,
    PaymentRequired,
    Problem,
    SlotNotFound,
    SlotUnavailable,
    Unavailable,
)
from app.holds import Doubtful, Extended, Full, Gone, Occupied, Taken, to_ms
from app.ledger import CommitRequest, NewPayment, Outcome, StoredBooking
from app.telemetry import BACKSTOP_CONFLICTS, outcomes
from app.tokens import HoldGrant, from_ms, id_from_key, manage_token, new_id, read_hold, sign_hold, token_hash

#: The hold of a booking that had none lives this long: longer than the longest commit, with the doubt about a lost
#: reply settled, and short enough that a process killed between hold and commit does not block the place (design 5).
INNER_TTL_MS = 15_000
#: A script that Redis has not answered by now has run, or Redis is away for good and its hold with it.
LATE_SECONDS = 1.0
#: A mirror that does not know the slot is loaded; one that still does not after this many times is left alone.
MAX_LOADS = 2


class Caller(msgspec.Struct, frozen=True):
    """Who asks: customer, operator or system; goes into the audit log with the request's id."""

    actor: str
    request_id: str | None
    #: Stands for a customer's address. None: whose holds are not counted.
    client: str | None = None


class BookingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Places of a slot, or the hold that a token names; exactly one of the two.

    With a `payment` the booking waits for it (`checkout`), as long as `ttl_ms`.
    """

    slot_id: UUID | None = None
    quantity: int = 1
    hold_token: str | None = None
    customer: Customer
    metadata: dict[str, Any] = {}
    key: str | None = None
    payment: NewPayment | None = None
    ttl_ms: int | None = None
    #: Chosen before, by `id_of`, where it had to be known.
    booking_id: UUID | None = None
    #: What else was asked, so that the same key is not used for two things.
    asked: tuple[Any, ...] = ("book",)
    #: Whether a refusal looks for other slots: not where the caller offers some of its own choice.
    offers: bool = True


class Claim(msgspec.Struct, frozen=True):
    """What a booking wants, once it is clear which slot and which id it is about."""

    facts: SlotFacts
    id: UUID
    quantity: int
    #: Of the customer's own hold; None when the booking takes its places itself.
    grant: HoldGrant | None
    #: Whether a refusal looks for other slots.
    offers: bool = True


# -- booking ----------------------------------------------------------------------------------------------------------


async def book(engine: Engine, request: BookingRequest, *, caller: Caller) -> tuple[Booking, str]:
    """Book places and return the booking with its manage token. When this returns, the booking is committed.

    A repeated request with the same key gets the first answer again (`replayed`); without a key, a second one with
    the same hold token is told that it was resolved. After a 409 nothing is left in either store; after a 503 that says
    `"effect": "none"` neither, but a hold that the customer took keeps its places. Any other 503 leaves the hold alone:
    the places are not given away before it is known whether they were sold.
    """
    claim = await _claim(engine, request)
    places = await _take_places(engine, claim, keyed=request.key is not None)
    mine = places == "mine"
    token = manage_token(engine.settings.secrets, claim.id)
    try:
        outcome = await engine.commits.commit_one(_commit_request(claim, request, token, caller, mine=mine))
    except Exception as error:
        in_doubt = isinstance(error, Unavailable) and not error.effect_none
        if claim.grant is None and not in_doubt:
            await _let_go(engine, claim, places)
        outcomes("book", getattr(error, "code", "error")).inc()
        raise
    outcomes("book", outcome.word).inc()
    if outcome.word == "booked":
        await _settle_later(engine, claim, request, outcome)
        return _booked(claim, request, outcome), token
    if outcome.word == "replayed":
        await _settle_later(engine, claim, request, outcome)  # the first one's may have been lost with its process
        return await first_answer(engine, claim, _status(request))
    # Neither a reused key nor the wrong way to pay is a reason to lose a hold.
    if not (claim.grant and outcome.word in ("mismatch", "payment_required")):
        await _let_go(engine, claim, places)
    if mine and outcome.word in ("full", "occupied"):
        BACKSTOP_CONFLICTS.inc()
    raise await _refusal(engine, claim, outcome)


async def _claim(engine: Engine, request: BookingRequest) -> Claim:
    if request.hold_token is not None:
        grant = read_hold(engine.settings.secrets, request.hold_token)
        if grant is None:
            raise HoldNotFound
        return Claim(await engine.mirror.facts(grant.slot_id), grant.hold_id, grant.quantity, grant, request.offers)
    if request.slot_id is None:
        raise InvalidRequest("slot_id", "Give a slot_id or a hold_token")
    facts = await engine.mirror.facts(request.slot_id)
    booking_id = request.booking_id or id_of(request, facts.venue_id)
    return Claim(facts, booking_id, request.quantity, None, request.offers)


def id_of(request: BookingRequest, venue_id: UUID) -> UUID:
    """Choose the id of a booking that has no hold yet: the same one for every repetition of a keyed request."""
    return id_from_key("book", venue_id, request.key) if request.key else new_id()


#: What layer 1 says of a booking's places. `mine`: held for this request alone, to be given back if it fails.
#: `perhaps`: the script was sent, but Redis did not answer. `unknown`: another request with the same key has them, or
#: Redis cannot tell. Whatever it says, Postgres decides.
Places = Literal["mine", "perhaps", "unknown"]


async def _take_places(engine: Engine, claim: Claim, *, keyed: bool) -> Places:
    """Layer 1: take the places, or be refused early.

    Raises:
        SlotUnavailable, InvalidRequest, HoldNotFound: a true refusal, without a look at Postgres.
    """
    try:
        if claim.grant is not None:
            return "mine" if await _secure_hold(engine, claim) else "unknown"
        match await take(engine, claim.facts, claim.id, claim.quantity, INNER_TTL_MS):
            case Taken(again=again):
                engine.mirror.unheard.pop(claim.id, None)  # given up before, by a request with the same key: not now
                return "unknown" if again else "mine"
            case Full() | Occupied() as refused if not (keyed and refused.unsure and await _was_booked(engine, claim)):
                outcomes("book", "refused_early").inc()
                raise await _unavailable(engine, claim, refused)
            case "closed" | "past" as reason if not (keyed and await _was_booked(engine, claim)):
                outcomes("book", "refused_early").inc()
                raise await _not_open(engine, claim, reason)
    except RedisAway as away:
        return "unknown" if isinstance(away, NotAsked) else "perhaps"
    return "unknown"  # settled or another quantity under the same key: Postgres knows the first request


async def _let_go(engine: Engine, claim: Claim, places: Places) -> None:
    """Give back what a booking that failed has taken, or may yet take when Redis gets round to it."""
    if places == "mine":
        await _give_back(engine, claim)
    elif places == "perhaps" and claim.grant is None:
        lives_seconds = INNER_TTL_MS / 1000
        engine.mirror.give_back_later(claim.facts, claim.id, has_token=False, lives_seconds=lives_seconds)


async def _was_booked(engine: Engine, claim: Claim) -> bool:
    """Tell whether a keyed request is a retry that the mirror has no record of, so that nobody is told "taken"
    because of their own booking. Asked only where records may be missing: most refusals never come here.
    """
    return await engine.ledger.booking(claim.id) is not None


async def _secure_hold(engine: Engine, claim: Claim) -> bool:
    """Keep the customer's hold alive until the commit is through. False: this Redis does not have it (any more)."""
    longest_ms = INNER_TTL_MS
    if claim.grant is not None:  # or a booking that is refused again and again would hold for ever, and uncounted
        longest_ms = min(longest_ms, claim.grant.expires_at_ms + INNER_TTL_MS - to_ms(datetime.now(UTC)))
    match await engine.holds.extend(claim.facts, claim.id, max(0, longest_ms), 0):
        case Extended():
            return True
        case Gone(how="released"):
            raise HoldNotFound  # its places may be held by others by now: a given-up token beats nobody
        case _:
            return False  # booked before, lapsed, or forgotten by Redis: Postgres knows which (reliability.md H3)


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


def _commit_request(claim: Claim, request: BookingRequest, token: str, caller: Caller, *, mine: bool) -> CommitRequest:
    # A hold that Redis vouches for is alive, whatever its token says: it may have been extended since.
    deadline = claim.grant.expires_at if claim.grant and not mine else None
    return CommitRequest(
        id=claim.id,
        slot_id=claim.facts.id,
        venue_id=claim.facts.venue_id,
        quantity=claim.quantity,
        status=_status(request),
        ttl_ms=request.ttl_ms,
        payment=request.payment,
        actor=caller.actor,
        hold_deadline=deadline,
        key=request.key,
        fingerprint=_fingerprint(request),
        name=request.customer.name,
        email=request.customer.email,
        phone=request.customer.phone,
        metadata=msgspec.json.encode(request.metadata).decode(),
        manage_hash=token_hash(token).hex(),
        request_id=caller.request_id,
    )


def _status(request: BookingRequest) -> Literal["confirmed", "pending_payment"]:
    return "pending_payment" if request.payment else "confirmed"


def _fingerprint(request: BookingRequest) -> str:
    """Hash what was asked, not how it was written: spaces and the order of keys make no other request."""
    asked = (*request.asked, request.slot_id, request.quantity, request.hold_token, request.customer, request.metadata)
    return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()


def _booked(claim: Claim, request: BookingRequest, outcome: Outcome) -> Booking:
    return Booking(
        id=claim.id,
        venue_id=claim.facts.venue_id,
        slot_id=claim.facts.id,
        quantity=claim.quantity,
        status=_status(request),
        customer=request.customer,
        metadata=request.metadata,
        expires_at=outcome.deadline if request.payment else None,
        created_at=outcome.created_at or outcome.at,
        confirmed_at=None if request.payment else outcome.at,
        cancelled_at=None,
        available_count=outcome.available_after,
    )


async def _settle_later(engine: Engine, claim: Claim, request: BookingRequest, outcome: Outcome) -> None:
    """Have the mirror follow the commit. Remembered only where a retry can come back with the same id."""
    if outcome.counts:
        remember = request.key is not None or claim.grant is not None
        await engine.holds.settle_later(_of_slot(claim, outcome.counts), claim.id, remember=remember)


def _of_slot(claim: Claim, counts: Counts) -> Counts:
    """Add to the counts of a commit what the commit does not tell, so that Redis need not be asked for it."""
    return msgspec.structs.replace(counts, occupied_until=claim.facts.occupied_until)


async def first_answer(engine: Engine, claim: Claim, status: BookingStatus) -> tuple[Booking, str]:
    """Answer as the first time, word for word, whatever became of the booking since (promise 6)."""
    try:
        stored = await _stored(engine, claim.id)
    except Unavailable as error:  # it is booked: only the answer could not be read
        raise DatabaseUnavailable(effect_none=False) from error
    first = msgspec.structs.replace(
        stored.booking,
        slot_id=claim.facts.id,  # it may have been rescheduled since
        quantity=claim.quantity,
        version=1,
        status=status,
        expires_at=None,  # of one that waited for payment: `checkout` knows it
        confirmed_at=stored.booking.confirmed_at if status == "confirmed" else None,
        cancelled_at=None,
        available_count=stored.available_after,
        replayed=True,
    )
    return first, token_of(engine, stored)


def token_of(engine: Engine, stored: StoredBooking) -> str:
    """Derive a booking's manage token by the secret of then, which may have been rotated since."""
    tokens = [manage_token((secret,), stored.booking.id) for secret in engine.settings.secrets]
    return next((token for token in tokens if token_hash(token) == stored.manage_token_hash), tokens[0])


# -- refusals ---------------------------------------------------------------------------------------------------------


async def _refusal(engine: Engine, claim: Claim, outcome: Outcome) -> Problem:
    """Say why Postgres did not book. The mirror thought otherwise, so it is told."""
    if outcome.word == "occupied":  # by a slot that it may not know of
        await engine.later(engine.mirror.load(claim.facts.id))
    elif outcome.counts:
        await engine.later(engine.mirror.sync_quietly([_of_slot(claim, outcome.counts)]))
    match outcome.word:
        case "mismatch":
            return IdempotencyKeyReused()
        case "payment_required":
            return PaymentRequired()
        case "not_found":
            return SlotNotFound()
        case "too_many" if claim.grant:  # the capacity was lowered under the hold: nothing is wrong with the request
            return await _not_open(engine, claim, "booked")
        case "too_many":
            return too_many(outcome.counts.capacity if outcome.counts else 0)
        case "resolved":
            return resolved(await _stored(engine, claim.id))
        case "lapsed":
            expired_at = claim.grant.expires_at if claim.grant else outcome.deadline or outcome.at
            return HoldExpired(expired_at, await engine.mirror.alternatives(claim.facts, claim.quantity))
        case "closed" | "past" as reason:
            return await _not_open(engine, claim, reason)
        case "full" | "occupied":
            why = "held" if outcome.may_free_at else "booked"
            available = outcome.available_after if outcome.word == "full" else 0
            alternatives = await _alternatives(engine, claim)
            return SlotUnavailable(why, claim.quantity, available, outcome.may_free_at, alternatives)
    raise AssertionError(f"commit_bookings said {outcome.word!r}")


async def _unavailable(engine: Engine, claim: Claim, refused: Full | Occupied) -> Problem:
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


async def _not_open(engine: Engine, claim: Claim, reason: str) -> Problem:
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


async def _give_back(engine: Engine, claim: Claim) -> None:
    await engine.mirror.give_back(claim.facts, claim.id, has_token=claim.grant is not None)


# -- holds ------------------------------------------------------------------------------------------------------------


async def take_hold(
    engine: Engine, slot_id: UUID, quantity: int, *, key: str | None, caller: Caller
) -> tuple[Hold, str]:
    """Hold places for a customer who is still deciding; returns the hold and its token.

    Repeated with the same key it gives the same hold. While Redis is away the hold is a row in Postgres with the same
    id, token and life, and says `degraded`.
    """
    facts = await engine.mirror.facts(slot_id)
    ttl_ms = 1000 * (facts.hold_ttl_seconds or engine.settings.hold_ttl_seconds)
    claim = Claim(facts, id_from_key("hold", facts.venue_id, key) if key else new_id(), quantity, None)
    if too_late(facts, caller):
        raise await _not_open(engine, claim, "past")
    async with claimed(engine, caller.client, [claim], ttl_ms, keyed=key is not None):
        hold = await _take_somewhere(engine, claim, ttl_ms, key, caller)
    outcomes("hold", "degraded" if hold.degraded else "replayed" if hold.replayed else "held").inc()
    return hold, hold_token(engine, hold)


async def _take_somewhere(engine: Engine, claim: Claim, ttl_ms: int, key: str | None, caller: Caller) -> Hold:
    try:
        return await _take_in_redis(engine, claim, ttl_ms, key)
    except RedisAway:
        try:
            return await _take_in_postgres(engine, claim, ttl_ms, None, caller)
        except Problem:
            if not key:  # a keyed one may have been taken by an earlier request, whose it still is
                await engine.later(_give_back_late(engine, claim))
            raise


def too_late(facts: SlotFacts, caller: Caller) -> bool:
    """Tell whether a customer would hold what the commit refuses: a slot so near that only the venue may book it."""
    return caller.actor == "customer" and facts.closes_at is not None and facts.closes_at <= datetime.now(UTC)


async def _give_back_late(engine: Engine, claim: Claim) -> None:
    """Release what a script may take that was sent to a Redis too slow to answer, once it has run."""
    await asyncio.sleep(LATE_SECONDS)
    await engine.mirror.give_back(claim.facts, claim.id, has_token=False)


async def _take_in_redis(engine: Engine, claim: Claim, ttl_ms: int, key: str | None) -> Hold:
    match await take(engine, claim.facts, claim.id, claim.quantity, ttl_ms):
        case Taken() as taken:
            asked = f"{claim.facts.id}:{claim.quantity}"
            if key and not taken.again and not await engine.holds.claim_key(claim.id, asked):
                await _give_back(engine, claim)
                raise IdempotencyKeyReused
            return live_hold(claim, taken.since_ms, taken.expires_at_ms, taken.now_ms, replayed=taken.again)
        case Full() | Occupied() as refused:
            outcomes("hold", "refused_early").inc()
            raise await _unavailable(engine, claim, refused)
        case "closed" | "past" as reason:
            outcomes("hold", "refused_early").inc()
            raise await _not_open(engine, claim, reason)
        case "mismatch":
            raise IdempotencyKeyReused
        case "settled":
            if key and not await engine.holds.claim_key(claim.id, f"{claim.facts.id}:{claim.quantity}"):
                raise IdempotencyKeyReused
            return await _held_before(engine, claim)
    raise RedisAway("the mirror does not keep this slot")


async def _held_before(engine: Engine, claim: Claim) -> Hold:
    """Answer a keyed hold whose id became a row: still held there (taken while Redis was away), or resolved."""
    stored = await _stored(engine, claim.id)
    booking = stored.booking
    if booking.status != "held" or booking.expires_at is None:
        raise resolved(stored)
    if (booking.slot_id, booking.quantity) != (claim.facts.id, claim.quantity):
        raise IdempotencyKeyReused
    return _row_hold(booking, booking.expires_at, datetime.now(UTC), replayed=True)


async def _take_in_postgres(
    engine: Engine, claim: Claim, ttl_ms: int, deadline: datetime | None, caller: Caller
) -> Hold:
    """Hold places as a row: counted by the trigger like a booking, until it is confirmed, cancelled or lapses."""
    outcome = await engine.commits.commit_one(
        CommitRequest(
            id=claim.id,
            slot_id=claim.facts.id,
            venue_id=claim.facts.venue_id,
            quantity=claim.quantity,
            status="held",
            ttl_ms=ttl_ms,
            hold_deadline=deadline,
            actor=caller.actor,
            request_id=caller.request_id,
        )
    )
    if outcome.word not in ("booked", "replayed") or outcome.deadline is None:
        outcomes("hold", outcome.word).inc()
        raise await _refusal(engine, claim, outcome)
    if outcome.counts:  # the script may have run after all: the row stands for the hold, and must not count beside it
        await engine.holds.settle_later(_of_slot(claim, outcome.counts), claim.id, remember=True)
    return Hold(
        claim.id,
        claim.facts.id,
        claim.quantity,
        since=outcome.created_at or outcome.at,
        expires_at=outcome.deadline,
        now=outcome.at,
        degraded=True,
        replayed=outcome.word == "replayed",
    )


async def get_hold(engine: Engine, hold_id: UUID, token: str) -> Hold:
    """Tell of a live hold. While Redis is away its token speaks for it.

    Raises:
        HoldNotFound: not this token's hold, or given up. HoldExpired, AlreadyResolved: it ended otherwise.
    """
    claim = await _claim_of_token(engine, hold_id, token)
    try:
        # A prolongation by nothing is a look.
        match await engine.holds.extend(claim.facts, claim.id, 0, 0):
            case Extended() as found:
                return live_hold(claim, found.since_ms, found.expires_at_ms, found.now_ms)
            case Gone() as gone:
                return await _read_row(engine, claim, gone)
    except RedisAway:
        return await _read_row(engine, claim, None)


async def extend_hold(engine: Engine, hold_id: UUID, token: str, *, caller: Caller) -> tuple[Hold, str]:
    """Prolong a hold by its venue's time from now, at most to the venue's longest; returns it with a new token.

    Raises:
        HoldLimit: it is as long as allowed. And what `get_hold` raises.
    """
    claim = await _claim_of_token(engine, hold_id, token)
    ttl_ms = 1000 * (claim.facts.hold_ttl_seconds or engine.settings.hold_ttl_seconds)
    async with claimed(engine, caller.client, [claim], ttl_ms, keyed=False):
        hold = await _extend_somewhere(engine, claim, ttl_ms, caller)
    return hold, hold_token(engine, hold)


async def _extend_somewhere(engine: Engine, claim: Claim, ttl_ms: int, caller: Caller) -> Hold:
    longest_ms = 1000 * claim.facts.hold_max_seconds
    try:
        match await engine.holds.extend(claim.facts, claim.id, ttl_ms, longest_ms):
            case Extended() as found if found.limited:
                raise HoldLimit(from_ms(found.expires_at_ms))
            case Extended() as found:
                return live_hold(claim, found.since_ms, found.expires_at_ms, found.now_ms)
            case Gone() as gone:
                await _read_row(engine, claim, gone)  # raises, unless Postgres keeps the hold
    except RedisAway:
        pass
    return await _extend_row(engine, claim, ttl_ms, longest_ms, caller)


async def _extend_row(engine: Engine, claim: Claim, ttl_ms: int, longest_ms: int, caller: Caller) -> Hold:
    row = await engine.ledger.extend_held(claim.id, ttl_ms, longest_ms)
    if row is None:  # Redis had it and is away: from now on Postgres keeps it
        deadline = claim.grant.expires_at if claim.grant else None
        return await _take_in_postgres(engine, claim, ttl_ms, deadline, caller)
    if row.limited:
        raise HoldLimit(row.expires_at)
    return Hold(claim.id, claim.facts.id, claim.quantity, row.created_at, row.expires_at, row.now, degraded=True)


async def release_hold(engine: Engine, hold_id: UUID, token: str, *, caller: Caller) -> None:
    """Give a hold up. Harmless when it was gone, lapsed or booked: a booking is not touched.

    Raises:
        HoldNotFound: not this token's hold.
    """
    claim = await _claim_of_token(engine, hold_id, token)
    released = await engine.mirror.give_back(claim.facts, claim.id, has_token=True)
    if not released:
        await _release_row(engine, claim.id, caller)
    await given_up(engine, caller.client, claim)
    outcomes("release", "released").inc()


async def operator_release_hold(engine: Engine, hold_id: UUID, *, caller: Caller) -> None:
    """Give up any live hold by its id, as an operator.

    Raises:
        HoldNotFound
    """
    if await _release_row(engine, hold_id, caller):
        return
    for hold in await list_holds(engine, None, None):
        if hold.id == hold_id:
            await engine.holds.release(await engine.mirror.facts(hold.slot_id), hold_id, has_token=True)
            return
    raise HoldNotFound


async def operator_extend_hold(engine: Engine, hold_id: UUID, more_ms: int) -> Hold:
    """Let any live hold end later, by its id, as an operator: also beyond its venue's longest.

    Raises:
        HoldNotFound
    """
    for hold in await list_holds(engine, None, None):
        if hold.id == hold_id:
            break
    else:
        raise HoldNotFound
    ttl_ms = to_ms(hold.expires_at) - to_ms(hold.now) + more_ms
    if hold.degraded:
        row = await engine.ledger.extend_held(hold_id, ttl_ms, to_ms(hold.now) - to_ms(hold.since) + ttl_ms)
        if row is None:
            raise HoldNotFound
        return msgspec.structs.replace(hold, expires_at=row.expires_at, now=row.now)
    match await engine.holds.extend(await engine.mirror.facts(hold.slot_id), hold_id, ttl_ms, 0):
        case Extended() as found:
            return msgspec.structs.replace(hold, expires_at=from_ms(found.expires_at_ms), now=from_ms(found.now_ms))
    raise HoldNotFound


async def _release_row(engine: Engine, hold_id: UUID, caller: Caller) -> bool:
    word, _, counts = await engine.ledger.cancel(hold_id, caller.actor, caller.request_id, only_held=True)
    if counts:
        await engine.mirror.sync_quietly([counts])
    return word == "cancelled"


async def list_holds(engine: Engine, venue_slug: str | None, slot_id: UUID | None) -> list[Hold]:
    """List live holds of both stores, those that end first first. Without Redis, only what Postgres keeps."""
    if slot_id is not None:
        facts = await engine.mirror.facts(slot_id)
        slots = [(facts.resource_id, facts.id)]
    else:
        slots = await _active_slots(engine, venue_slug)
    found: dict[UUID, Hold] = {}
    try:
        for mirrored in await engine.holds.inspect(slots):
            for place in mirrored.holds:
                found[place.id] = Hold(
                    place.id, place.slot_id, place.quantity, place.since, place.expires_at, place.now, degraded=False
                )
    except RedisAway:
        found = {}
    for row in await engine.ledger.held_rows(venue_slug, slot_id):
        found[row.id] = Hold(row.id, row.slot_id, row.quantity, row.created_at, row.expires_at, row.now, degraded=True)
    return sorted(found.values(), key=lambda hold: hold.expires_at)


async def _active_slots(engine: Engine, venue_slug: str | None) -> list[tuple[UUID, UUID]]:
    try:
        return await engine.holds.active_slots(await engine.ledger.resource_ids(venue_slug))
    except RedisAway:
        return []


async def _claim_of_token(engine: Engine, hold_id: UUID, token: str) -> Claim:
    grant = read_hold(engine.settings.secrets, token)
    if grant is None or grant.hold_id != hold_id:
        raise HoldNotFound
    return Claim(await engine.mirror.facts(grant.slot_id), hold_id, grant.quantity, grant)


async def _read_row(engine: Engine, claim: Claim, gone: Gone | None) -> Hold:
    """Tell what Postgres knows of a hold that Redis does not have, or cannot be asked for (`gone` is None)."""
    if (grant := claim.grant) is None:
        raise HoldNotFound
    stored = await engine.ledger.booking(claim.id)
    now = from_ms(gone.now_ms) if gone else datetime.now(UTC)
    if stored is None:
        if gone and gone.how == "released":
            raise HoldNotFound
        if grant.expires_at <= now:
            raise HoldExpired(grant.expires_at, await engine.mirror.alternatives(claim.facts, claim.quantity))
        if gone:
            raise HoldNotFound
        return Hold(claim.id, claim.facts.id, claim.quantity, now, grant.expires_at, now, degraded=True)
    booking = stored.booking
    if booking.status == "held" and booking.expires_at and booking.expires_at > now:
        return _row_hold(booking, booking.expires_at, now)
    if booking.status in ("held", "expired"):
        expired_at = booking.expires_at or stored.expired_at or grant.expires_at
        raise HoldExpired(expired_at, await engine.mirror.alternatives(claim.facts, claim.quantity))
    raise resolved(stored)


def live_hold(claim: Claim, since_ms: int, expires_at_ms: int, now_ms: int, *, replayed: bool = False) -> Hold:
    """Tell of a hold that Redis keeps."""
    return Hold(
        claim.id, claim.facts.id, claim.quantity, from_ms(since_ms), from_ms(expires_at_ms), from_ms(now_ms),
        degraded=False, replayed=replayed,
    )  # fmt: skip


def _row_hold(booking: Booking, expires_at: datetime, now: datetime, *, replayed: bool = False) -> Hold:
    return Hold(
        booking.id, booking.slot_id, booking.quantity, booking.created_at, expires_at, now,
        degraded=True, replayed=replayed,
    )  # fmt: skip


def hold_token(engine: Engine, hold: Hold) -> str:
    """Sign what a hold grants."""
    grant = HoldGrant(hold.id, hold.slot_id, hold.quantity, to_ms(hold.expires_at))
    return sign_hold(engine.settings.secrets, grant)


# -- what became of it ------------------------------------------------------------------------------------------------


async def read_booking(engine: Engine, booking_id: UUID, token: str | None) -> Booking:
    """Read a booking by its manage token, or as an operator (None).

    Raises:
        BookingNotFound: also for a wrong token, and for a row that is only a hold.
    """
    return (await authorized(engine, booking_id, token)).booking


async def cancel(engine: Engine, booking_id: UUID, token: str | None, *, caller: Caller) -> Booking:
    """Cancel a booking; its places are back in both stores when this returns. A second time: the same answer.

    Raises:
        BookingNotFound. AlreadyResolved: it expired before. Conflict: too late for a customer, the slot has begun.
    """
    stored = await authorized(engine, booking_id, token)
    word, cancelled_at, counts = await engine.ledger.cancel(booking_id, caller.actor, caller.request_id)
    outcomes("cancel", word).inc()
    if word == "begun":
        raise Conflict("The slot has begun: ask the venue")
    if word == "expired":
        raise resolved(await _stored(engine, booking_id))
    if counts is None:
        raise BookingNotFound
    await engine.mirror.sync_quietly([counts])
    with suppress(Unavailable):  # it is committed: that it cannot be read just now must not be told as a failure
        stored = await _stored(engine, booking_id)  # it may have moved before it ended, and has not changed since
    return msgspec.structs.replace(
        stored.booking,
        status="cancelled",
        cancelled_at=cancelled_at,
        expires_at=None,
        available_count=counts.available_count,
    )


async def authorized(engine: Engine, booking_id: UUID, token: str | None) -> StoredBooking:
    """Read a booking by its manage token, or as an operator (None).

    Raises:
        BookingNotFound: also for a wrong token.
    """
    stored = await _stored(engine, booking_id)
    if token is None:
        return stored
    if stored.manage_token_hash is None or not hmac.compare_digest(stored.manage_token_hash, token_hash(token)):
        raise BookingNotFound
    return stored


async def _stored(engine: Engine, booking_id: UUID) -> StoredBooking:
    stored = await engine.ledger.booking(booking_id)
    if stored is None:
        raise BookingNotFound
    return stored


# -- slots ------------------------------------------------------------------------------------------------------------


async def rooms(engine: Engine, slots: Sequence[Slot]) -> dict[UUID, Room]:
    """Tell what can be taken of each slot right now, holds included."""
    return await engine.mirror.rooms(slots)


async def slot_changed(engine: Engine, slot_ids: Sequence[UUID]) -> None:
    """Bring the mirror up to date after an operator changed slots. What it is not told now, it asks for in seconds."""
    with suppress(Unavailable):  # the change is committed: it must not be answered as a failure
        await engine.mirror.sync_quietly(await engine.ledger.counts(slot_ids))
