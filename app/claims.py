"""How many places of a venue one client holds at once, so that nobody can keep it empty by holding all of it.

A claim is made before the places are taken, and given back when they could not be had; it ends by itself with the hold.
So no client ever holds more than it may, however many of its requests arrive at once. Redis counts, and Postgres while
it is away; between the two nothing is carried over, so in the minutes around an outage a client may have as much again.

A client is an address. Who comes by another one meanwhile leaves a claim behind, until the hold would have lapsed; what
was booked, from wherever, is found out when a claim is in the way.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import msgspec

from app.breaker import RedisAway
from app.domain import SlotFacts
from app.engine import Engine
from app.errors import HeldTooMuch, Problem, Unavailable
from app.holds import Extended, InTheWay
from app.limits import Limit
from app.places import Claim
from app.settings import Rate
from app.tokens import derived_id

#: A claim outlives the hold that it was made for, or its places were free to claim while still held: by as long as a
#: hold may be prolonged while it is booked (`places.INNER_TTL_MS`), and for clocks that differ.
LONGER_MS = 18_000
#: Looks for what a client has booked of its claims. Beyond it they are believed to be held: or whoever asks on and on
#: at the limit would make each refusal a question to Postgres.
LOOKS = Limit("looks", Rate(1, 1, 5))


class Share(msgspec.Struct, frozen=True):
    """What a client may hold of a venue; `name` says nothing of either."""

    name: str
    most: int


@asynccontextmanager
async def claimed(
    engine: Engine, client: str | None, wanted: Sequence[Claim], ttl_ms: int, *, keyed: bool
) -> AsyncIterator[None]:
    """Count places as held by a client while, and after, they are taken. No client: an operator, who may hold all.
    Of a keyed request that has taken them before, nothing is counted again.

    Raises:
        HeldTooMuch: it holds as much as it may.
    """
    share = _share(engine, client, wanted[0].facts)
    if share is None:
        yield
        return
    try:
        new = await _claim_all(engine, share, wanted, ttl_ms + LONGER_MS)
    except HeldTooMuch:
        if not (keyed and await _are_taken(engine, wanted)):
            raise
        new = []
    try:
        yield
    except Problem as problem:
        if not (isinstance(problem, Unavailable) and not problem.effect_none):  # else they may be held
            await _drop_soon(engine, share, new)
        raise


async def given_up(engine: Engine, client: str | None, wanted: Claim) -> None:
    """Count places no longer, since their hold was released."""
    share = _share(engine, client, wanted.facts)
    if share is not None:
        await _drop(engine, share, [wanted.id])


def _share(engine: Engine, client: str | None, facts: SlotFacts) -> Share | None:
    most = facts.holds_per_client
    most = engine.settings.holds_per_client if most is None else most
    if client is None or not most:
        return None
    return Share(str(derived_id(b"claims", facts.venue_id.bytes, client.encode())), most)


async def _are_taken(engine: Engine, wanted: Sequence[Claim]) -> bool:
    """Tell whether an earlier request took all of these places: repeated, it holds no more, and gets its answer."""
    return all(await asyncio.gather(*(_is_taken(engine, each) for each in wanted)))


async def _is_taken(engine: Engine, wanted: Claim) -> bool:
    with suppress(RedisAway):
        if isinstance(await engine.holds.extend(wanted.facts, wanted.id, 0, 0), Extended):  # by nothing: a look
            return True
    return await engine.ledger.booking(wanted.id) is not None


async def _claim_all(engine: Engine, share: Share, wanted: Sequence[Claim], ttl_ms: int) -> list[UUID]:
    """Claim all or nothing; returns the ids of the claims that were not there before."""
    answers = await asyncio.gather(*(_claim(engine, share, each, ttl_ms) for each in wanted), return_exceptions=True)
    new = [each.id for each, answer in zip(wanted, answers, strict=True) if answer is True]
    for answer in answers:
        if isinstance(answer, BaseException):
            await _drop_soon(engine, share, new)
            raise answer
        if isinstance(answer, InTheWay):
            await _drop_soon(engine, share, new)
            raise HeldTooMuch(share.most, answer.held, sum(each.quantity for each in wanted), answer.next_end)
    return new


async def _claim(engine: Engine, share: Share, wanted: Claim, ttl_ms: int) -> bool | InTheWay:
    """Claim places; False when they were claimed before, by the same request."""
    answer = await _asked(engine, share, wanted, ttl_ms)
    if not isinstance(answer, InTheWay) or not answer.ids or not engine.limits.passes_here(LOOKS, share.name):
        return answer
    # What was booked is held no longer. Nobody told: it may have been done from elsewhere.
    resolved = await engine.ledger.resolved(answer.ids)
    if not resolved:
        return answer
    await _drop(engine, share, resolved)
    return await _asked(engine, share, wanted, ttl_ms)


async def _asked(engine: Engine, share: Share, wanted: Claim, ttl_ms: int) -> bool | InTheWay:
    try:
        return await engine.holds.claim(share.name, wanted.id, wanted.quantity, share.most, ttl_ms)
    except RedisAway:
        answer = await engine.ledger.claim_places(share.name, wanted.id, wanted.quantity, share.most, ttl_ms)
    return answer if isinstance(answer, bool) else InTheWay(*answer)


async def _drop_soon(engine: Engine, share: Share, ids: Sequence[UUID]) -> None:
    """Give claims back, of which nobody needs to wait for the answer. Redis is asked one thing after the other, so that
    who asks again finds them given back; Postgres is not.
    """
    if ids and engine.redis_ok:
        await engine.later(_drop(engine, share, ids))
    elif ids:
        await _drop(engine, share, ids)


async def _drop(engine: Engine, share: Share, ids: Sequence[UUID]) -> None:
    """Give claims back. One that could not be ends by itself."""
    try:
        await asyncio.gather(*(engine.holds.drop_claim(share.name, each) for each in ids))
    except RedisAway:
        with suppress(Unavailable):
            await engine.ledger.drop_claims(share.name, ids)
    except Unavailable:
        pass
