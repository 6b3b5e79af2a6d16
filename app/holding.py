"""The use cases of a hold: take, look, extend, release. What a customer holds while deciding is lost to nobody else.

A hold lives in Redis alone (`lua/hold.lua`); while Redis is away it is a row in Postgres, with the same id, token and
life. The token says what is held, so that either store can be asked for it. How a hold becomes a booking is not known
here: `booking.book` takes the token.
"""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from app.breaker import RedisAway
from app.claims import claimed, given_up
from app.domain import Booking, Caller, Hold, SlotFacts
from app.engine import Engine
from app.errors import HoldExpired, HoldLimit, HoldNotFound, IdempotencyKeyReused, Problem
from app.holds import Extended, Full, Gone, Occupied, Taken, to_ms
from app.ledger import CommitRequest
from app.places import Claim, give_back, not_open, of_slot, refusal, resolved, stored_booking, take, unavailable
from app.telemetry import outcomes
from app.tokens import HoldGrant, from_ms, id_from_key, new_id, read_hold, sign_hold

#: A script that Redis has not answered by now has run, or Redis is away for good and its hold with it.
LATE_SECONDS = 1.0


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
        raise await not_open(engine, claim, "past")
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
                await give_back(engine, claim)
                raise IdempotencyKeyReused
            return live_hold(claim, taken.since_ms, taken.expires_at_ms, taken.now_ms, replayed=taken.again)
        case Full() | Occupied() as refused:
            outcomes("hold", "refused_early").inc()
            raise await unavailable(engine, claim, refused)
        case "closed" | "past" as reason:
            outcomes("hold", "refused_early").inc()
            raise await not_open(engine, claim, reason)
        case "mismatch":
            raise IdempotencyKeyReused
        case "settled":
            if key and not await engine.holds.claim_key(claim.id, f"{claim.facts.id}:{claim.quantity}"):
                raise IdempotencyKeyReused
            return await _held_before(engine, claim)
    raise RedisAway("the mirror does not keep this slot")


async def _held_before(engine: Engine, claim: Claim) -> Hold:
    """Answer a keyed hold whose id became a row: still held there (taken while Redis was away), or resolved."""
    stored = await stored_booking(engine, claim.id)
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
        raise await refusal(engine, claim, outcome)
    if outcome.counts:  # the script may have run after all: the row stands for the hold, and must not count beside it
        await engine.holds.settle_later(of_slot(claim, outcome.counts), claim.id, remember=True)
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
    """List live holds of both stores, those that end first first. Without Redis, only what Postgres keeps.

    Raises:
        VenueNotFound, SlotNotFound: to whoever mistypes, "nobody holds anything" would be no answer.
    """
    venue_id = await engine.ledger.venue_id(venue_slug) if venue_slug is not None else None
    if slot_id is not None:
        facts = await engine.mirror.facts(slot_id)
        slots = [(facts.resource_id, facts.id)] if venue_id in (None, facts.venue_id) else []
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
