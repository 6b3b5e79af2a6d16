"""The use case of blocking time: a person or a place cannot be booked for a while, because the venue says so.

A block is a slot of its own that is never for sale, and takes its one place (migration 0010). So it goes the way of a
booking: held in Redis for the moment of the commit, lest somebody is given a hold of that time meanwhile, then decided
by Postgres, then told to the mirror. What is booked or held at that time refuses it, and it refuses those who come
later, in all three layers and by their own rules.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from app.breaker import RedisAway
from app.domain import Caller, Counts, SlotFacts
from app.engine import Engine
from app.errors import (
    Busy,
    Conflict,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    ResourceNotFound,
    Unavailable,
    VenueNotFound,
)
from app.holds import Doubtful, Occupied, Taken
from app.ledger import Ledger
from app.places import INNER_TTL_MS
from app.postgres import RuleViolated
from app.tokens import id_from_key, new_id

Row = Any  # psycopg's named tuples: the fields are those of the statement above each use

#: An operator's key is for one request, whichever venue that is about.
_EVERY_VENUE = UUID(int=0)
#: As in `reschedule`: whoever meets another rival each time is told to come back.
TRIES = 3
#: Redis refuses what has begun. Of a block that began before now only the rest matters there: nobody holds the past.
_SOON = timedelta(seconds=1)

_BLOCKS = (
    "SELECT b.id, v.slug, s.resource_id, r.name AS resource_name, s.starts_at, s.ends_at, b.reason, b.created_at"
    " FROM slots AS s JOIN blocks AS b ON b.id = s.id JOIN venues AS v ON v.id = s.venue_id"
    " JOIN resources AS r ON r.id = s.resource_id"
)


class Block(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    venue: str
    resource_id: UUID
    resource_name: str
    starts_at: datetime
    ends_at: datetime
    #: None: the venue gave none.
    reason: str | None
    created_at: datetime


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Whose time shall be blocked. `key`: the request's Idempotency-Key."""

    resource_id: UUID
    starts_at: datetime
    ends_at: datetime
    reason: str | None = None
    key: str | None = None


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """The blocks of a venue that touch [since, until)."""

    venue: str
    since: datetime | None = None
    until: datetime | None = None


async def block(engine: Engine, wish: Wish, *, caller: Caller) -> tuple[Block, bool]:
    """Block time; tells whether an earlier request with the same key had. When this returns, it is committed.

    Raises:
        ResourceNotFound. InvalidRequest: it is over already, or the resource has no time of its own.
        Conflict: something booked, held or blocked is in the way. IdempotencyKeyReused.
    """
    block_id = id_from_key("block", _EVERY_VENUE, wish.key) if wish.key else new_id()
    if wish.key and (known := await _find(engine.ledger, block_id)):
        return _first(known[0], wish), True
    if wish.ends_at <= datetime.now(UTC):
        raise InvalidRequest("ends_at", "must be in the future")
    facts = _facts(block_id, await _owner(engine.ledger, wish.resource_id), wish)
    held = await _hold(engine, facts)
    try:
        await _commit(engine, block_id, wish, caller)
    except Exception as error:
        if held and not (isinstance(error, Unavailable) and not error.effect_none):
            await engine.mirror.give_back(facts, block_id, has_token=False)
        raise
    await _settle(engine, block_id, remember=wish.key is not None)
    try:
        [made] = await _find(engine.ledger, block_id)
    except Unavailable as error:  # it is blocked: only the answer could not be read
        raise DatabaseUnavailable(effect_none=False) from error
    return _first(made, wish), False


async def unblock(engine: Engine, block_id: UUID, *, caller: Caller) -> None:
    """Give blocked time back; harmless when that was done before. Whoever waits for it is offered it.

    Raises:
        NotFound: there never was such a block.
    """
    values = (block_id, caller.actor, caller.request_id)
    [row] = await engine.ledger.repeatable("SELECT unblock_time(%s, %s, %s) AS found", values)
    if row.found is None:
        raise NotFound("Block not found")
    await engine.mirror.slots_changed([block_id])


async def listed(ledger: Ledger, which: Filter, after: tuple[datetime, UUID] | None, limit: int) -> list[Block]:
    """List a venue's blocks in the order in which they begin, after a position.

    Raises:
        VenueNotFound
    """
    rows = await ledger.repeatable(
        f"{_BLOCKS} WHERE v.slug = %(venue)s AND s.is_block AND b.removed_at IS NULL"
        " AND (%(since)s::timestamptz IS NULL OR s.ends_at > %(since)s)"
        " AND (%(until)s::timestamptz IS NULL OR s.starts_at < %(until)s)"
        " AND (%(at)s::timestamptz IS NULL OR (s.starts_at, s.id) > (%(at)s, %(id)s))"
        " ORDER BY s.starts_at, s.id LIMIT %(limit)s",
        {
            **msgspec.structs.asdict(which),
            "at": after[0] if after else None,
            "id": after[1] if after else None,
            "limit": limit,
        },
    )
    if not rows and not await ledger.repeatable("SELECT FROM venues WHERE slug = %s", (which.venue,)):
        raise VenueNotFound
    return [_block(row) for row in rows]


# -- the way of a booking ---------------------------------------------------------------------------------------------


async def _owner(ledger: Ledger, resource_id: UUID) -> Row:
    rows = await ledger.repeatable("SELECT venue_id, one_at_a_time FROM resources WHERE id = %s", (resource_id,))
    if not rows:
        raise ResourceNotFound
    if not rows[0].one_at_a_time:
        raise InvalidRequest("resource_id", "An event has no time of its own to block: close its slots instead")
    return rows[0]


async def _hold(engine: Engine, facts: SlotFacts) -> bool:
    """Layer 1: keep others from holding that time until the commit. True: held by this request, which gives it back if
    it fails. False: by another one with the same key, or by nobody, and Postgres decides alone.

    The slot is not in Postgres yet, so the mirror is told of it as it will be before the block takes it.

    Raises:
        Conflict: somebody holds or has booked it.
    """
    unsold = Counts(facts.id, facts.resource_id, 1, 1, 0, True, facts.starts_at, facts.ends_at, facts.occupied_until)
    try:
        await engine.holds.sync([unsold])
        for _ in range(TRIES):
            match await engine.holds.take(facts, facts.id, 1, INNER_TTL_MS):
                case Taken(again=again):
                    return not again  # of a request with the same key it is that one's to give back
                case Occupied():
                    raise _in_the_way()
                case Doubtful(slot_ids=others):
                    await engine.holds.sync(await engine.ledger.counts(others))
                case _:
                    return False  # another request with the same key is further than this one
    except RedisAway:
        pass
    return False


async def _commit(engine: Engine, block_id: UUID, wish: Wish, caller: Caller) -> None:
    """Layers 2 and 3: one transaction."""
    values = (
        block_id, wish.resource_id, wish.starts_at, wish.ends_at, wish.reason, caller.actor, caller.request_id
    )  # fmt: skip
    for _ in range(TRIES):
        try:
            [row] = await engine.ledger.repeatable("SELECT block_time(%s, %s, %s, %s, %s, %s, %s) AS word", values)
        except RuleViolated as violation:
            if violation.rule not in ("occupied_one_thing_at_a_time", "slots_pkey"):
                raise
            continue  # a rival was committed at this moment: asked again, the function sees whose it is
        if row.word == "blocked":
            return
        raise _in_the_way() if row.word == "occupied" else ResourceNotFound()
    raise Busy


async def _settle(engine: Engine, block_id: UUID, *, remember: bool) -> None:
    try:
        for counts in await engine.ledger.counts([block_id]):
            await engine.holds.settle(counts, block_id, remember=remember)
    except (RedisAway, Unavailable):
        pass  # it is committed: the mirror hears of it when it asks


def _in_the_way() -> Conflict:
    return Conflict("Something is booked, held or blocked in that time")


# -- rows to values ---------------------------------------------------------------------------------------------------


async def _find(ledger: Ledger, block_id: UUID) -> list[Block]:
    return [_block(row) for row in await ledger.repeatable(f"{_BLOCKS} WHERE s.id = %s", (block_id,))]


def _first(known: Block, wish: Wish) -> Block:
    """Answer as the first time, if this is what was asked then."""
    asked = (wish.resource_id, wish.starts_at, wish.ends_at, wish.reason)
    if (known.resource_id, known.starts_at, known.ends_at, known.reason) != asked:
        raise IdempotencyKeyReused
    return known


def _facts(block_id: UUID, owner: Row, wish: Wish) -> SlotFacts:
    starts_at = max(wish.starts_at, datetime.now(UTC) + _SOON)
    return SlotFacts(
        block_id, owner.venue_id, wish.resource_id, starts_at, max(wish.ends_at, starts_at + _SOON),
        hold_ttl_seconds=None, hold_max_seconds=60, occupied_until=wish.ends_at,
    )  # fmt: skip


def _block(row: Row) -> Block:
    return Block(
        id=row.id, venue=row.slug, resource_id=row.resource_id, resource_name=row.resource_name,
        starts_at=row.starts_at, ends_at=row.ends_at, reason=row.reason, created_at=row.created_at,
    )  # fmt: skip
