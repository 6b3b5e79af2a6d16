"""The use cases of a booking: book, read, cancel. Read `book` first: it is the path that everything else exists for.

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

import hashlib
import hmac
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from app.breaker import NotAsked, RedisAway
from app.domain import Booking, BookingStatus, Caller, Customer
from app.engine import Engine
from app.errors import (
    BookingNotFound,
    Conflict,
    DatabaseUnavailable,
    HoldNotFound,
    InvalidRequest,
    Unavailable,
)
from app.holds import Extended, Full, Gone, Occupied, Taken, to_ms
from app.ledger import CommitRequest, NewPayment, Outcome, StoredBooking
from app.places import (
    INNER_TTL_MS,
    Claim,
    give_back,
    not_open,
    of_slot,
    refusal,
    resolved,
    stored_booking,
    take,
    unavailable,
)
from app.telemetry import BACKSTOP_CONFLICTS, outcomes
from app.tokens import id_from_key, manage_token, new_id, read_hold, token_hash


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
    raise await refusal(engine, claim, outcome)


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
                raise await unavailable(engine, claim, refused)
            case "closed" | "past" as reason if not (keyed and await _was_booked(engine, claim)):
                outcomes("book", "refused_early").inc()
                raise await not_open(engine, claim, reason)
    except RedisAway as away:
        return "unknown" if isinstance(away, NotAsked) else "perhaps"
    return "unknown"  # settled or another quantity under the same key: Postgres knows the first request


async def _let_go(engine: Engine, claim: Claim, places: Places) -> None:
    """Give back what a booking that failed has taken, or may yet take when Redis gets round to it."""
    if places == "mine":
        await give_back(engine, claim)
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
        await engine.holds.settle_later(of_slot(claim, outcome.counts), claim.id, remember=remember)


async def first_answer(engine: Engine, claim: Claim, status: BookingStatus) -> tuple[Booking, str]:
    """Answer as the first time, word for word, whatever became of the booking since (promise 6)."""
    try:
        stored = await stored_booking(engine, claim.id)
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
        raise resolved(await stored_booking(engine, booking_id))
    if counts is None:
        raise BookingNotFound
    await engine.mirror.sync_quietly([counts])
    with suppress(Unavailable):  # it is committed: that it cannot be read just now must not be told as a failure
        # It may have moved before it ended, and has not changed since.
        stored = await stored_booking(engine, booking_id)
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
    stored = await stored_booking(engine, booking_id)
    if token is None:
        return stored
    if stored.manage_token_hash is None or not hmac.compare_digest(stored.manage_token_hash, token_hash(token)):
        raise BookingNotFound
    return stored
