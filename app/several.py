"""The use cases of taking places of several slots at once: all of them, or none (issue: "several at once").

Each slot's places are held in Redis first, all at the same time; then one transaction decides about all of them, its
rows locked in one order, so that two such requests in opposite orders never wait for each other in a circle.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import Any
from uuid import UUID

import msgspec

from app import booking, holding, places
from app.breaker import RedisAway
from app.claims import claimed
from app.domain import Booking, Caller, Customer, Hold, UnavailableReason
from app.engine import Engine
from app.errors import (
    IdempotencyKeyReused,
    InvalidRequest,
    PaymentRequired,
    Problem,
    SlotNotFound,
    SlotUnavailable,
    Unavailable,
)
from app.holds import Doubtful, Full, Occupied, Taken
from app.ledger import CommitRequest, Outcome
from app.places import Claim
from app.postgres import RuleViolated
from app.telemetry import outcomes
from app.tokens import id_from_key, manage_token, new_id, token_hash

#: Slots of one request.
MOST_ITEMS = 20
#: A constraint refused (layer 3), or a rival with the same key was faster: the function is asked again, and sees why.
TRIES = 3


class Item(msgspec.Struct, frozen=True):
    """Places of one slot."""

    slot_id: UUID
    quantity: int = 1


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Places of up to `MOST_ITEMS` slots for one customer."""

    items: list[Item]
    customer: Customer
    metadata: dict[str, Any] = {}
    key: str | None = None


class Refused(msgspec.Struct, frozen=True):
    """Why one of the slots cannot be had."""

    slot_id: UUID
    reason: UnavailableReason
    requested: int
    available: int


# -- booking ----------------------------------------------------------------------------------------------------------


async def book(engine: Engine, order: Order, *, caller: Caller) -> list[tuple[Booking, str]]:
    """Book all of an order or nothing; returns each booking with its manage token, in the order given.

    When this returns, all are committed. A repeated request with the same key gets the first answer again.

    Raises:
        SlotUnavailable: `items` names every slot that cannot be had, as far as one look can tell.
        And what `booking.book` raises.
    """
    claims = await _claims(engine, order.items, "book", order.key)
    mine = await _hold_all(engine, claims, places.INNER_TTL_MS, keyed=order.key is not None)
    tokens = [manage_token(engine.settings.secrets, claim.id) for claim in claims]
    try:
        decided = await _commit_all(engine, claims, _requests(order, claims, tokens, caller))
    except Exception as error:
        if not (isinstance(error, Unavailable) and not error.effect_none):
            await _give_back(engine, mine)
        raise
    words = {outcome.word for outcome in decided}
    outcomes(
        "book_several", "booked" if words == {"booked"} else "replayed" if words == {"replayed"} else "refused"
    ).inc()
    if words <= {"booked", "replayed"}:
        for claim, outcome in zip(claims, decided, strict=True):
            if outcome.counts:
                await engine.holds.settle_later(outcome.counts, claim.id, remember=order.key is not None)
    if words == {"booked"}:
        made = [_booked(order, claim, outcome) for claim, outcome in zip(claims, decided, strict=True)]
        return list(zip(made, tokens, strict=True))
    if words == {"replayed"}:
        return [await booking.first_answer(engine, claim, "confirmed") for claim in claims]
    await _give_back(engine, mine)
    await engine.mirror.sync_quietly([outcome.counts for outcome in decided if outcome.counts])
    raise await _refusal(engine, claims, decided)


async def _claims(engine: Engine, items: Sequence[Item], scope: str, key: str | None) -> list[Claim]:
    """Find the slots, each once with its places summed, and choose the ids: the same ones for a repeated key."""
    wanted: dict[UUID, int] = {}
    for item in items:
        wanted[item.slot_id] = wanted.get(item.slot_id, 0) + item.quantity
    found = await asyncio.gather(*(engine.mirror.facts(slot_id) for slot_id in wanted))
    if len({facts.venue_id for facts in found}) > 1:
        raise InvalidRequest("items", "All slots must be of one venue")
    for one, other in combinations(found, 2):
        if one.excludes(other):  # neither is taken, and nobody could have both: no time will make this succeed
            raise InvalidRequest("items", f"{one.id} and {other.id} overlap, and are of one person or place")
    return [
        Claim(facts, id_from_key(scope, facts.venue_id, f"{key}\n{facts.id}") if key else new_id(), quantity, None)
        for facts, quantity in zip(found, wanted.values(), strict=True)
    ]


async def _hold_all(engine: Engine, claims: Sequence[Claim], ttl_ms: int, *, keyed: bool) -> list[Claim]:
    """Layer 1: take the places of every slot, or of none; returns those that are held for this request alone.

    Raises:
        SlotUnavailable, InvalidRequest: true refusals, without a look at Postgres.
    """
    answers = await asyncio.gather(*(_hold(engine, claim, ttl_ms) for claim in claims))
    mine = [claim for claim, answer in zip(claims, answers, strict=True) if answer == "mine"]
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    problems = [answer for answer in answers if isinstance(answer, Problem)]
    if not refused and not problems:
        return mine
    if keyed and await engine.ledger.booking(claims[0].id) is not None:
        return mine  # a retry, refused because of its own bookings: Postgres knows them
    await _give_back(engine, mine)
    if problems:
        raise problems[0]
    outcomes("book_several", "refused_early").inc()
    raise await _unavailable(engine, claims, refused)


async def _hold(engine: Engine, claim: Claim, ttl_ms: int) -> Refused | Problem | str:
    try:
        match await places.take(engine, claim.facts, claim.id, claim.quantity, ttl_ms):
            case Taken(again=again):
                return "unknown" if again else "mine"
            case answer:
                return _refused(claim, answer) or "unknown"
    except RedisAway:
        return "unknown"


def _refused(claim: Claim, answer: Full | Occupied | Doubtful | str) -> Refused | Problem | None:
    """Say why layer 1 has no places for a claim; None when that is not what it said."""
    match answer:
        case Full() as full if claim.quantity > full.capacity:
            return places.too_many(full.capacity)
        case Full() | Occupied() as refused:
            reason, available, _ = places.why_unavailable(claim.quantity, refused)
            return Refused(claim.facts.id, reason, claim.quantity, available)
        case "closed" | "past" as reason:
            return Refused(claim.facts.id, reason, claim.quantity, 0)
    return None


async def _give_back(engine: Engine, claims: Sequence[Claim]) -> None:
    await asyncio.gather(*(engine.mirror.give_back(claim.facts, claim.id, has_token=False) for claim in claims))


def _requests(order: Order, claims: Sequence[Claim], tokens: Sequence[str], caller: Caller) -> list[CommitRequest]:
    fingerprint = _fingerprint(order)
    return [
        CommitRequest(
            id=claim.id,
            slot_id=claim.facts.id,
            venue_id=claim.facts.venue_id,
            quantity=claim.quantity,
            status="confirmed",
            actor=caller.actor,
            # One row carries the key, which is unique. The others are found again by their ids, which come from it.
            key=order.key if number == 0 else None,
            repeat=True if order.key and number else None,
            fingerprint=fingerprint,
            name=order.customer.name,
            email=order.customer.email,
            phone=order.customer.phone,
            metadata=msgspec.json.encode(order.metadata).decode(),
            manage_hash=token_hash(token).hex(),
            request_id=caller.request_id,
        )
        for number, (claim, token) in enumerate(zip(claims, tokens, strict=True))
    ]


def _fingerprint(order: Order) -> str:
    asked = ("book several", order.items, order.customer, order.metadata)
    return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()


async def _commit_all(engine: Engine, claims: Sequence[Claim], requests: Sequence[CommitRequest]) -> list[Outcome]:
    for _ in range(TRIES):
        try:
            return await engine.commits.commit_all(requests)
        except RuleViolated as violation:
            last = violation
    raise last


def _booked(order: Order, claim: Claim, outcome: Outcome) -> Booking:
    return Booking(
        id=claim.id,
        venue_id=claim.facts.venue_id,
        slot_id=claim.facts.id,
        quantity=claim.quantity,
        status="confirmed",
        customer=order.customer,
        metadata=order.metadata,
        expires_at=None,
        created_at=outcome.created_at or outcome.at,
        confirmed_at=outcome.at,
        cancelled_at=None,
        available_count=outcome.available_after,
    )


async def _refusal(engine: Engine, claims: Sequence[Claim], decided: Sequence[Outcome]) -> Problem:
    """Say why not all of them: what is wrong with the request first, then every slot that has no room."""
    words = [outcome.word for outcome in decided]
    if any(word in ("mismatch", "resolved", "lapsed") for word in words):
        return IdempotencyKeyReused()
    if "not_found" in words:
        return SlotNotFound()
    if "too_many" in words:
        counts = decided[words.index("too_many")].counts
        return places.too_many(counts.capacity if counts else 0)
    if "payment_required" in words:
        return PaymentRequired()
    refused = [
        Refused(claim.facts.id, *_reason(outcome, claim.quantity))
        for claim, outcome in zip(claims, decided, strict=True)
        if outcome.word not in ("booked", "replayed")
    ]
    return await _unavailable(engine, claims, refused)


def _reason(outcome: Outcome, quantity: int) -> tuple[UnavailableReason, int, int]:
    if outcome.word in ("closed", "past"):
        return "closed" if outcome.word == "closed" else "past", quantity, 0
    reason: UnavailableReason = "held" if outcome.may_free_at else "booked"
    return reason, quantity, outcome.available_after if outcome.word == "full" else 0


async def _unavailable(engine: Engine, claims: Sequence[Claim], refused: Sequence[Refused]) -> SlotUnavailable:
    first = refused[0]
    claim = next(claim for claim in claims if claim.facts.id == first.slot_id)
    alternatives = await engine.mirror.alternatives(claim.facts, claim.quantity)
    return SlotUnavailable(first.reason, first.requested, first.available, None, alternatives, items=refused)


# -- holds ------------------------------------------------------------------------------------------------------------


async def hold(engine: Engine, items: Sequence[Item], *, key: str | None, caller: Caller) -> list[tuple[Hold, str]]:
    """Hold places of several slots, all or none; returns each hold with its token, in the order given.

    Each can be extended, released and booked by itself. Repeated with the same key it gives the same holds. While Redis
    is away they are rows in Postgres, made in one transaction.

    Raises:
        As `book`.
    """
    claims = await _claims(engine, items, "hold", key)
    late = [claim for claim in claims if holding.too_late(claim.facts, caller)]
    if late:
        outcomes("hold_several", "refused_early").inc()
        raise await _unavailable(engine, claims, [Refused(c.facts.id, "past", c.quantity, 0) for c in late])
    ttl_ms = 1000 * min(claim.facts.hold_ttl_seconds or engine.settings.hold_ttl_seconds for claim in claims)
    async with claimed(engine, caller.client, claims, ttl_ms, keyed=key is not None):
        holds = await _hold_somewhere(engine, claims, ttl_ms, key, caller)
    return [(each, holding.hold_token(engine, each)) for each in holds]


async def _hold_somewhere(
    engine: Engine, claims: Sequence[Claim], ttl_ms: int, key: str | None, caller: Caller
) -> list[Hold]:
    try:
        taken = await asyncio.gather(*(_taken(engine, claim, ttl_ms) for claim in claims))
        reused = (
            key is not None
            and all(isinstance(each, Hold) for each in taken)
            and not await _claim_key(engine, claims, key)
        )
    except RedisAway:
        await _give_back(engine, claims)
        return await _hold_rows(engine, claims, ttl_ms, key, caller)
    holds = [each for each in taken if isinstance(each, Hold)]
    refused = [each for each in taken if isinstance(each, Refused)]
    problem = next((each for each in taken if isinstance(each, Problem)), IdempotencyKeyReused() if reused else None)
    if refused or problem:
        new = {each.id for each in holds if not each.replayed}
        await _give_back(engine, [claim for claim in claims if claim.id in new])
        if problem:
            raise problem
        outcomes("hold_several", "refused_early").inc()
        raise await _unavailable(engine, claims, refused)
    outcomes("hold_several", "replayed" if all(each.replayed for each in holds) else "held").inc()
    return holds


async def _claim_key(engine: Engine, claims: Sequence[Claim], key: str) -> bool:
    """Bind the key to all that was asked, as a single hold does; False when it was used for something else."""
    return await engine.holds.claim_key(id_from_key("hold", claims[0].facts.venue_id, key), _asked(claims))


def _asked(claims: Sequence[Claim]) -> str:
    return ",".join(sorted(f"{claim.facts.id}:{claim.quantity}" for claim in claims))


async def _taken(engine: Engine, claim: Claim, ttl_ms: int) -> Hold | Refused | Problem:
    match await places.take(engine, claim.facts, claim.id, claim.quantity, ttl_ms):
        case Taken() as taken:
            return holding.live_hold(claim, taken.since_ms, taken.expires_at_ms, taken.now_ms, replayed=taken.again)
        case answer:  # else another quantity under the same key, or it became a booking since
            return _refused(claim, answer) or IdempotencyKeyReused()


async def _hold_rows(
    engine: Engine, claims: Sequence[Claim], ttl_ms: int, key: str | None, caller: Caller
) -> list[Hold]:
    # Of rows that may come in another order next time, the first by its slot carries the key, which is unique: not as
    # it is, because whoever books these holds may use the same one.
    bound = min(claims, key=lambda claim: claim.facts.id) if key else None
    key_of_all = hashlib.sha256(f"hold several\n{key}".encode()).hexdigest()
    fingerprint = hashlib.sha256(_asked(claims).encode()).hexdigest()
    decided = await _commit_all(
        engine,
        claims,
        [
            CommitRequest(
                id=claim.id,
                slot_id=claim.facts.id,
                venue_id=claim.facts.venue_id,
                quantity=claim.quantity,
                status="held",
                ttl_ms=ttl_ms,
                actor=caller.actor,
                request_id=caller.request_id,
                key=key_of_all if claim is bound else None,
                fingerprint=fingerprint if claim is bound else None,
            )
            for claim in claims
        ],
    )
    if any(outcome.word not in ("booked", "replayed") for outcome in decided):
        outcomes("hold_several", "refused").inc()
        raise await _refusal(engine, claims, decided)
    if any(outcome.deadline is None or outcome.deadline <= outcome.at for outcome in decided):  # they have ended
        raise IdempotencyKeyReused
    holds = [
        Hold(
            claim.id, claim.facts.id, claim.quantity, since=outcome.created_at or outcome.at,
            expires_at=outcome.deadline or outcome.at, now=outcome.at, degraded=True,
            replayed=outcome.word == "replayed",
        )
        for claim, outcome in zip(claims, decided, strict=True)
    ]  # fmt: skip
    outcomes("hold_several", "degraded").inc()
    return holds
