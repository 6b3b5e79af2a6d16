"""Redis: the holds, and the mirror of the slots' counts. Layer 1 (CARD-3): early rejection, never the truth.

One function per script of `lua/`: the keys and arguments that it is given, and what the words of its reply mean. Every
caller must be able to go on without it: whatever is wrong with Redis arrives as `RedisAway`. How scripts get there is
the business of `pipelines`. Knows nothing of Postgres.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from itertools import chain
from operator import itemgetter
from typing import Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET

from app.domain import Counts, Room, Slot, SlotFacts
from app.pipelines import Call, Client, Pipelines, Reply
from app.tokens import from_ms

#: A "full" of counts older than this is verified in Postgres first: what a lost update can cost (reliability.md T-13).
FRESH_SECONDS = 5
#: How long a retry of a booking finds its record although the slot is full.
SETTLED_SECONDS = 86_400
#: What scripts say that changed what a slot shows: such slots are told of, see `feed`.
TOUCHING: Mapping[str, frozenset[str]] = {
    "hold": frozenset({"held"}),
    "release": frozenset({"released"}),
    "settle": frozenset({"settled", "older"}),  # of older counts: the hold has ended all the same
    "sync": frozenset({"synced"}),
}
#: Holds of one slot that are told to operators.
MOST_HOLDS = 1_000
#: Counts are forgotten this long after their slot has ended.
FORGET_AFTER = timedelta(days=1)

#: The keys that each script is given, in its order (its head says what they hold).
_KEYS_OF: Mapping[str, Callable[[Mapping[str, str]], tuple[str, ...]]] = {
    "hold": itemgetter("mirror", "holds", "parties", "settled", "active"),
    "extend": itemgetter("holds", "parties", "settled", "active"),
    "release": itemgetter("mirror", "holds", "parties", "settled"),
    "settle": itemgetter("mirror", "holds", "parties", "settled"),
    "sync": itemgetter("mirror", "holds", "parties"),
    "room": itemgetter("mirror", "holds", "parties"),
    "inspect": itemgetter("mirror", "holds", "parties", "doing"),
}
#: … and where the slot is a person's or a place's: with what is known of the others of theirs.
_KEYS_OF_BUSY: Mapping[str, Callable[[Mapping[str, str]], tuple[str, ...]]] = {
    "hold": itemgetter("mirror", "holds", "parties", "settled", "active", "busy", "doing"),
    "extend": itemgetter("holds", "parties", "settled", "active", "doing"),
    "release": itemgetter("mirror", "holds", "parties", "settled", "doing"),
    "settle": itemgetter("mirror", "holds", "parties", "settled", "busy", "doing"),
    "sync": itemgetter("mirror", "holds", "parties", "busy", "doing"),
    "clash": itemgetter("busy", "doing"),
}


class Taken(msgspec.Struct, frozen=True):
    """The hold is there, by this call or (`again`) by an earlier one with the same id."""

    now_ms: int
    expires_at_ms: int
    since_ms: int
    again: bool


class Full(msgspec.Struct, frozen=True):
    """No room for the party; `next_expiry_ms` is when the next hold may lapse, 0 when there is none.

    `unsure`: the mirror learned of some bookings by a sync. A keyed retry of one of those must be looked up first.
    """

    now_ms: int
    left: int
    held: int
    booked: int
    next_expiry_ms: int
    capacity: int
    unsure: bool = False


class Occupied(msgspec.Struct, frozen=True):
    """The person or place does something else meanwhile; `lapses_ms` is when the last hold in the way may lapse, 0 when
    it is booked. `unsure` as in `Full`.
    """

    now_ms: int
    lapses_ms: int
    unsure: bool = False


class Doubtful(msgspec.Struct, frozen=True):
    """These other slots would be in the way, but were last known to be booked too long ago: look them up."""

    slot_ids: list[UUID]


class Extended(msgspec.Struct, frozen=True):
    """A hold that lives on. `limited`: it was as long as allowed before, and did not move."""

    now_ms: int
    expires_at_ms: int
    since_ms: int
    quantity: int
    limited: bool


class InTheWay(msgspec.Struct, frozen=True):
    """What a client holds already, and when the first of it ends by itself; None: it holds nothing."""

    held: int
    next_end: datetime | None
    ids: list[UUID]


class Gone(msgspec.Struct, frozen=True):
    """No such live hold. `settled`: it was booked; `gone`: it lapsed, or this Redis never knew it."""

    now_ms: int
    how: Literal["settled", "released", "gone"]


class HeldPlace(msgspec.Struct, frozen=True):
    """One live hold, as operators see it."""

    id: UUID
    slot_id: UUID
    quantity: int
    since: datetime
    expires_at: datetime
    now: datetime


class Mirrored(msgspec.Struct, frozen=True):
    """One slot as Redis knows it; `room` is None when the mirror does not know its counts."""

    room: Room | None
    version: int
    holds: list[HeldPlace]
    #: What the other slots of its person or place see of it: 0 nothing, 1 held, 2 booked.
    occupied: int = 0


@lru_cache(maxsize=4_096)  # the slots that are wanted now: writing a UUID out costs more than looking it up
def slot_keys(resource_id: UUID, slot_id: UUID) -> Mapping[str, str]:
    """Name every key of a slot. One hash tag per resource: a script's keys lie on one shard (libraries.md 4)."""
    slot = f"hf:{{{resource_id}}}:{slot_id}"
    return {
        "mirror": f"{slot}:mirror",
        "holds": f"{slot}:holds",
        "parties": f"{slot}:parties",
        "settled": f"{slot}:settled",
        "active": f"hf:{{{resource_id}}}:active",
        "busy": f"hf:{{{resource_id}}}:busy",
        "doing": f"hf:{{{resource_id}}}:doing",
    }


class Holds:
    """The scripts as functions. Every one raises `RedisAway` when Redis does not serve."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.pipelines = Pipelines(client, self._note)
        self.breaker = self.pipelines.breaker
        # Bound once: every request takes this way.
        self._run, self._run_many = self.pipelines.run, self.pipelines.run_many
        self._later, self._guarded = self.pipelines.later, self.pipelines.guarded
        #: Slots that show something else since `feed` told of them: "<resource id>}:<slot id>", the oldest first.
        self.touched: dict[str, None] = {}
        self.some_touched = asyncio.Event()

    # -- one function per script ------------------------------------------------------------------------------------

    async def take(
        self, facts: SlotFacts, hold_id: UUID, quantity: int, ttl_ms: int, *, leaving: UUID | None = None
    ) -> Taken | Full | Occupied | Doubtful | str:
        """Hold places, or learn why not: `Full`, `Occupied`, `Doubtful`, or one of the words
        settled, mismatch, closed, past, missing, stale (`lua/hold.lua` says when). What the person or place does in the
        slot `leaving`, which is given up for this one, is not in the way.
        """
        more = () if facts.occupied_until is None else (to_ms(facts.occupied_until), str(leaving or ""))
        reply = await self._run(
            self._call(
                "hold", facts,
                str(hold_id), quantity, ttl_ms, str(facts.id), FRESH_SECONDS * 1000, *more,
            )
        )  # fmt: skip
        match reply:
            case ["held" | "again" as word, now, expires, since, _]:
                return Taken(now, expires, since, again=word == "again")
            case ["full", now, left, held, booked, next_expiry, capacity, unsure]:
                return Full(now, left, held, booked, next_expiry, capacity, bool(unsure))
            case ["occupied", now, lapses, unsure]:
                return Occupied(now, lapses, bool(unsure))
            case ["stale", *slot_ids] if slot_ids:
                return Doubtful([UUID(slot_id) for slot_id in slot_ids])
            case ["settled" | "mismatch" | "closed" | "past" | "missing" | "stale" as word]:
                return str(word)
        raise AssertionError(f"hold.lua said {reply!r}")

    async def extend(self, facts: SlotFacts, hold_id: UUID, ttl_ms: int, longest_ms: int) -> Extended | Gone:
        """Prolong a live hold to `ttl_ms` from now, at most `longest_ms` after it was taken (0: any)."""
        reply = await self._run(
            self._call(
                "extend", facts,
                str(hold_id), ttl_ms, longest_ms, str(facts.id),
            )
        )  # fmt: skip
        match reply:
            case ["extended" | "limit" as word, now, expires, since, quantity]:
                return Extended(now, expires, since, quantity, limited=word == "limit")
            case ["settled" | "released" | "gone" as word, now]:
                return Gone(now, word)
        raise AssertionError(f"extend.lua said {reply!r}")

    async def release(self, facts: SlotFacts, hold_id: UUID, *, has_token: bool) -> bool:
        """Give a hold up; False when it was gone. With a token it is remembered as released until it would lapse."""
        slot_id = () if facts.occupied_until is None else (str(facts.id),)
        reply = await self._run(self._call("release", facts, str(hold_id), int(has_token), *slot_id))
        return bool(reply[0] == "released")

    async def settle(self, counts: Counts, hold_id: UUID, *, remember: bool) -> None:
        """End a hold whose booking was committed, and apply the commit's counts."""
        await self._run(self.settle_call(counts, hold_id, remember=remember))

    async def settle_later(self, counts: Counts, hold_id: UUID, *, remember: bool) -> None:
        """Settle without waiting for it, unless very many are waiting already. A Redis that is away is told when it
        returns (`mirror.recover`).
        """
        await self._later(self.settle_call(counts, hold_id, remember=remember))

    async def sync_first(self, counts: Counts) -> None:
        """Have the mirror know a slot before whatever this process asks of it next, without waiting: calls of one slot
        go in the order in which they were made.
        """
        await self._later(self.sync_call(counts))

    async def sync(self, counts: Sequence[Counts], *, repair: bool = False) -> None:
        """Bring the mirror of these slots to what Postgres said; newer wins, unless it is a repair."""
        await self._run_many([self.sync_call(c, repair=repair) for c in counts])

    async def rooms(self, slots: Sequence[tuple[UUID, UUID]]) -> dict[UUID, tuple[Room, int] | None]:
        """Tell the counts and versions of slots given as (resource id, slot id); None: not in the mirror."""
        by_resource: dict[UUID, list[UUID]] = {}
        for resource_id, slot_id in slots:
            by_resource.setdefault(resource_id, []).append(slot_id)
        replies = await self._run_many([_room_call(resource, ids) for resource, ids in by_resource.items()])
        return {
            slot_id: _room(row)
            for ids, reply in zip(by_resource.values(), replies, strict=True)
            for slot_id, row in zip(ids, reply[1:] or [[]] * len(ids), strict=True)
        }

    async def clashes(self, slots: Sequence[Slot]) -> dict[UUID, Literal["held", "booked"]]:
        """Tell which of these slots of persons and places another one is in the way of, and why. Events never are."""
        by_resource: dict[UUID, list[Slot]] = {}
        for slot in slots:
            if slot.occupied_until is not None:
                by_resource.setdefault(slot.resource_id, []).append(slot)
        replies = await self._run_many([_clash_call(resource, those) for resource, those in by_resource.items()])
        return {
            slot.id: "held" if clash == 1 else "booked"
            for those, reply in zip(by_resource.values(), replies, strict=True)
            for slot, clash in zip(those, reply[1:] or [0] * len(those), strict=True)
            if clash
        }

    async def inspect(self, slots: Sequence[tuple[UUID, UUID]], most: int = MOST_HOLDS) -> list[Mirrored]:
        """Tell all that Redis knows of slots given as (resource id, slot id), at most `most` holds of each."""
        calls = [
            Call("inspect", _KEYS_OF["inspect"](slot_keys(resource_id, slot_id)), (most, str(slot_id)))
            for resource_id, slot_id in slots
        ]
        replies = await self._run_many(calls)
        return [_mirrored(slot_id, reply) for (_, slot_id), reply in zip(slots, replies, strict=True)]

    async def active_slots(self, resource_ids: Sequence[UUID]) -> list[tuple[UUID, UUID]]:
        """List the slots of these resources that may have live holds, as (resource id, slot id)."""
        # A minute of slack: the scores are of Redis' clock, and a lapsed slot shows no holds anyway.
        earliest = int(datetime.now(UTC).timestamp() * 1000) - 60_000
        found: list[tuple[UUID, UUID]] = []
        for resource_id in resource_ids:
            key = f"hf:{{{resource_id}}}:active"
            await self._guarded(partial(self.client.zremrangebyscore, key, "-inf", earliest))
            members: Any = await self._guarded(partial(self.client.zrange, key, 0, -1))
            found += [(resource_id, UUID(member)) for member in members]
        return found

    # -- keys of holds' requests ------------------------------------------------------------------------------------

    async def claim_key(self, hold_id: UUID, fingerprint: str) -> bool:
        """Bind a keyed hold's id to what was asked; False when another request used the key (422)."""
        key = f"hf:{{{hold_id}}}:asked"
        await self._guarded(lambda: self.client.set(key, fingerprint, nx=True, ex=SETTLED_SECONDS))
        return bool(await self._guarded(lambda: self.client.get(key)) == fingerprint)

    # -- clients ----------------------------------------------------------------------------------------------------

    async def allow(self, limit: str, client: str, interval: float, most: int, requests: int) -> float:
        """Let a client's request pass, `most` at once and one every `interval` seconds; returns how long it must wait
        instead, 0 when it need not. -1 request gives one back.
        """
        call = Call("allow", (f"hf:{{{client}}}:{limit}",), (round(interval * 1e6), most, requests))
        match await self._run(call):
            case ["allowed"]:
                return 0.0
            case ["wait", wait]:
                return float(wait) / 1e6
            case reply:
                raise AssertionError(f"allow.lua said {reply!r}")

    async def claim(self, client: str, hold_id: UUID, places: int, most: int, ttl_ms: int) -> bool | InTheWay:
        """Count places as held by a client; False when this hold's were counted before."""
        match await self._run(Call("claim", (f"hf:{{{client}}}:claims",), (str(hold_id), places, most, ttl_ms))):
            case ["claimed", new]:
                return bool(new)
            case ["limit", held, next_end, *ids]:
                return InTheWay(held, from_ms(next_end) if next_end else None, [UUID(each) for each in ids])
            case reply:
                raise AssertionError(f"claim.lua said {reply!r}")

    async def drop_claim(self, client: str, hold_id: UUID) -> None:
        """Count a hold's places no longer."""
        await self._run(Call("claim", (f"hf:{{{client}}}:claims",), (str(hold_id), 0, 0, 0)))

    # -- calls, also for `run_many` ---------------------------------------------------------------------------------

    def settle_call(self, counts: Counts, hold_id: UUID, *, remember: bool) -> Call:
        keys, whose = _whose("settle", counts)
        args = (str(hold_id), SETTLED_SECONDS * 1000 if remember else 0, *_count_args(counts), *whose)
        return Call("settle", keys, args)

    def sync_call(self, counts: Counts, *, repair: bool = False) -> Call:
        keys, whose = _whose("sync", counts)
        return Call("sync", keys, (*_count_args(counts), int(repair), *whose))

    def _call(self, script: str, facts: SlotFacts, *args: str | int) -> Call:
        keys_of = _KEYS_OF if facts.occupied_until is None else _KEYS_OF_BUSY
        return Call(script, keys_of[script](slot_keys(facts.resource_id, facts.id)), args)

    def _note(self, call: Call, reply: Reply) -> None:
        """Remember a slot that the call has changed. Every change of a hold or of counts comes by here, whoever made
        it, and this is all that live updates cost it: a look-up, and a place in a dict for the first of many.
        """
        if call.script in TOUCHING and reply[0] in TOUCHING[call.script]:
            self.touched[call.keys[0][4:78]] = None  # of hf:{<resource id>}:<slot id>:…
            self.some_touched.set()

    def note_new(self, slots: Iterable[tuple[UUID, UUID]]) -> None:
        """Have live updates tell of new slots, given as (resource id, slot id): no script has touched them."""
        for resource_id, slot_id in slots:
            self.touched[f"{resource_id}}}:{slot_id}"] = None
            self.some_touched.set()


def _count_args(counts: Counts) -> tuple[int, ...]:
    forget = max(counts.ends_at, datetime.now(UTC)) + FORGET_AFTER
    return (counts.capacity, counts.booked, counts.version, int(counts.open), to_ms(counts.starts_at), to_ms(forget))


def _whose(script: str, counts: Counts) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    """Name the keys, and say what a script must know of a person's or place's slot. Of an event's: nothing.

    Counts that do not tell whose they are leave it to the mirror, which was told by others before.
    """
    keys = slot_keys(counts.resource_id, counts.slot_id)
    if counts.occupied_until is None:
        return _KEYS_OF[script](keys), ()
    ends = "" if counts.occupied_until is UNSET else to_ms(counts.occupied_until)
    return _KEYS_OF_BUSY[script](keys), (str(counts.slot_id), ends)


def to_ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


def _room_call(resource_id: UUID, slot_ids: Sequence[UUID]) -> Call:
    keys = (_KEYS_OF["room"](slot_keys(resource_id, slot_id)) for slot_id in slot_ids)
    return Call("room", tuple(chain.from_iterable(keys)), ())


def _clash_call(resource_id: UUID, slots: Sequence[Slot]) -> Call:
    args: list[str | int] = [FRESH_SECONDS * 1000]
    for slot in slots:
        if slot.occupied_until is not None:
            args += [str(slot.id), to_ms(slot.starts_at), to_ms(slot.occupied_until)]
    return Call("clash", _KEYS_OF_BUSY["clash"](slot_keys(resource_id, slots[0].id)), tuple(args))


def _room(row: list[int]) -> tuple[Room, int] | None:
    if not row:
        return None
    capacity, booked, held, is_open, version = row
    return Room(capacity, booked, held, bool(is_open)), version


def _mirrored(slot_id: UUID, reply: Reply) -> Mirrored:
    if not reply:  # its keys are broken
        return Mirrored(None, -1, [])
    _, now, counts, occupied, *fields = reply
    holds = [
        HeldPlace(UUID(hold_id), slot_id, quantity, from_ms(since), from_ms(expires), from_ms(now))
        for hold_id, quantity, since, expires in zip(*[iter(fields)] * 4, strict=True)
    ]
    if not counts:
        return Mirrored(None, -1, holds, occupied)
    capacity, booked, held, is_open, version, _seen = counts
    return Mirrored(Room(capacity, booked, held, bool(is_open)), version, holds, occupied)
