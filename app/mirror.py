"""The mirror: keeps what Redis knows of the slots equal to Postgres, and what a process remembers of both.

Below the use cases the only module that knows the two stores. Nothing here decides whether a place is sold: a mirror
that is missing, stale or wrong costs a round trip or an early answer, never a wrong sale (design, promise 4).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Generic, Literal, TypeVar
from uuid import UUID

import msgspec
import structlog

from app.breaker import BrokenKeys, RedisAway
from app.domain import Alternatives, Counts, Room, Slot, SlotFacts
from app.errors import SlotNotFound, Unavailable
from app.holds import MOST_HOLDS, Holds, Mirrored
from app.ledger import Ledger
from app.telemetry import DRIFT, MIRROR_LOADS

log = structlog.get_logger()
T = TypeVar("T")

#: What never changes about a slot is remembered for this many slots; its venue's hold policy is read again after …
KNOWN_SLOTS = 50_000
KNOWN_SECONDS = 60.0
#: Which slots are near changes rarely; whether they have room is asked of the mirror each time.
NEAR_SECONDS = 5.0
#: Alternatives are looked for among this many neighbours, and at most this many are told (api.md).
NEAR_SLOTS = 20
MAX_ALTERNATIVES = 5
#: Changes this long before Redis was noticed missing are compared as well: calls that were waiting for it.
OUTAGE_MARGIN = timedelta(seconds=10)
#: Releases kept for a Redis that is away. What is beyond it lapses by itself.
MAX_UNHEARD = 1_000
#: Events read per round trip after an outage: a page takes a fraction of what a statement may.
RECOVER_EVENTS = 10_000
#: Slots compared per round trip.
RECONCILE_BATCH = 500


class Drift(msgspec.Struct, frozen=True):
    """A slot whose mirror said something else than Postgres, before the repair."""

    slot_id: UUID
    field: str
    mirrored: int
    actual: int


class Reconciled(msgspec.Struct, frozen=True):
    slots: int
    mirrored: int
    drift: list[Drift]


class Neighbours:
    """The slots near another one and their rooms at one moment: asked for once by all who were refused it then."""

    def __init__(self, slots: Sequence[Slot], rooms: Mapping[UUID, Room]) -> None:
        self._open = [(slot, rooms[slot.id]) for slot in slots if not slot.blocked and rooms[slot.id].open]
        self._fitting: dict[int, Alternatives] = {}

    def fitting(self, quantity: int) -> Alternatives:
        """List those with room for a party of this size, the nearest first."""
        found = self._fitting.get(quantity)
        if found is None:
            fitting = [(slot, room) for slot, room in self._open if room.available >= quantity][:MAX_ALTERNATIVES]
            found = self._fitting[quantity] = Alternatives((_as_of(slot, room), room) for slot, room in fitting)
        return found


class Remembered(Generic[T]):
    """Answers kept for a while, and asked for once when many want the same one at the same time (single flight).

    Bounded: the oldest entry makes room for a new one. A failure is told to those who waited and not remembered.
    """

    def __init__(self, size: int, seconds: float) -> None:
        self._size, self._seconds = size, seconds
        self._entries: dict[UUID, tuple[float, T]] = {}
        self._flights: dict[UUID, asyncio.Future[T]] = {}
        self._asking: dict[UUID, int] = {}

    def known(self, key: UUID) -> T | None:
        entry = self._entries.get(key)
        return entry[1] if entry and entry[0] > time.monotonic() else None

    async def get(self, key: UUID, load: Callable[[], Awaitable[T]]) -> T:
        value = self.known(key)
        return value if value is not None else await self.load(key, load)

    async def load(self, key: UUID, load: Callable[[], Awaitable[T]]) -> T:
        self._asking[key] = self.asking(key) + 1
        # Shielded: one impatient caller does not take the answer away from the others.
        return await asyncio.shield(self._begin(key, load))

    def prepare(self, key: UUID, load: Callable[[], Awaitable[T]]) -> None:
        """Begin to ask what somebody will want in a moment. Whoever does when it has failed asks again."""
        self._begin(key, load).add_done_callback(lambda flight: flight.cancelled() or flight.exception())

    def asking(self, key: UUID) -> int:
        """Tell how many have asked for an answer that is still to come."""
        return self._asking.get(key, 0)

    def _begin(self, key: UUID, load: Callable[[], Awaitable[T]]) -> "asyncio.Future[T]":
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(self._fly(key, load))
        return flight

    async def _fly(self, key: UUID, load: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await load()
        finally:
            del self._flights[key]
            self._asking.pop(key, None)
        self._entries.pop(key, None)
        if len(self._entries) >= self._size:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (time.monotonic() + self._seconds, value)
        return value


class Mirror:
    def __init__(self, holds: Holds, ledger: Ledger) -> None:
        self.holds, self.ledger = holds, ledger
        self._facts: Remembered[SlotFacts] = Remembered(KNOWN_SLOTS, KNOWN_SECONDS)
        self._near: Remembered[list[Slot]] = Remembered(1_000, NEAR_SECONDS)
        self._neighbours: Remembered[Neighbours] = Remembered(1, 0)
        self._loads: Remembered[list[Counts]] = Remembered(1, 0)
        #: Holds given up while Redis could not hear it: hold id -> (slot, has a token, when it lapses at the latest).
        self.unheard: dict[UUID, tuple[SlotFacts, bool, float]] = {}

    # -- knowing a slot ---------------------------------------------------------------------------------------------

    async def facts(self, slot_id: UUID) -> SlotFacts:
        """Tell what never changes about a slot; the first look reads Postgres and brings its counts into the mirror.

        Raises:
            SlotNotFound
        """
        return await self._facts.get(slot_id, lambda: self._read_facts(slot_id))

    async def _read_facts(self, slot_id: UUID) -> SlotFacts:
        found = await self.ledger.facts(slot_id)
        if found is None:
            raise SlotNotFound
        facts, counts = found
        known = [counts]
        if facts.occupied_until is not None and not self.holds.breaker.is_open:
            # A hold will look at what else its person or place does then: the mirror must know of that, too.
            known = await self.ledger.counts_around(slot_id, [])
        for each in known:
            await self.holds.sync_first(each)
        if self._facts.asking(slot_id) > max(1, counts.available_count) and not self.holds.breaker.is_open:
            # Some of this crowd will be refused: what is near is looked up while Redis tells whom, and not after it.
            self._neighbours.prepare(slot_id, lambda: self._look_around(facts))
        return facts

    async def load(self, slot_id: UUID, others: Sequence[UUID] = ()) -> None:
        """Bring a slot that the mirror does not know, or only knows by an old look, up to date: once for all askers.

        A person's or place's with what else occupies them meanwhile, and with those other slots that are said to.
        """
        await self._loads.load(slot_id, lambda: self._load(slot_id, others))

    async def _load(self, slot_id: UUID, others: Sequence[UUID]) -> list[Counts]:
        MIRROR_LOADS.inc()
        if (await self.facts(slot_id)).occupied_until is None:
            counts = await self.ledger.counts([slot_id])
        else:
            counts = await self.ledger.counts_around(slot_id, others)
        if not counts:
            raise SlotNotFound
        await self.holds.sync(counts)
        return counts

    async def give_back(self, facts: SlotFacts, hold_id: UUID, *, has_token: bool) -> bool:
        """Release a hold; False when it was gone, or when Redis could not hear it, which is then repeated."""
        try:
            return await self.holds.release(facts, hold_id, has_token=has_token)
        except RedisAway:
            self.give_back_later(facts, hold_id, has_token=has_token)
            return False

    def give_back_later(
        self, facts: SlotFacts, hold_id: UUID, *, has_token: bool, lives_seconds: float | None = None
    ) -> None:
        """Have a hold released when Redis hears again: in a second, or when it has returned."""
        if len(self.unheard) < MAX_UNHEARD:
            lapses_at = time.monotonic() + (lives_seconds or facts.hold_max_seconds)
            self.unheard[hold_id] = (facts, has_token, lapses_at)

    async def release_unheard(self) -> None:
        """Repeat the releases that Redis did not hear, but none whose hold has lapsed: its id may hold again.

        Raises:
            RedisAway: those that are left are kept.
        """
        for hold_id, (facts, has_token, lapses_at) in list(self.unheard.items()):
            if time.monotonic() < lapses_at:
                with suppress(BrokenKeys):  # of one slot, and logged: the others' releases must not wait for a person
                    await self.holds.release(facts, hold_id, has_token=has_token)
            self.unheard.pop(hold_id, None)

    async def sync_quietly(self, counts: Sequence[Counts]) -> None:
        """Tell Redis, if it listens. If not, the counts are compared again when it returns."""
        try:
            await self.holds.sync(counts)
        except RedisAway:
            log.debug("mirror_not_told", slots=len(counts))

    async def slots_changed(self, slot_ids: Sequence[UUID]) -> None:
        """Follow an operator who changed slots. What Redis is not told now, it asks for in seconds."""
        with suppress(Unavailable):  # the change is committed: it must not be answered as a failure
            await self.sync_quietly(await self.ledger.counts(slot_ids))

    # -- room -------------------------------------------------------------------------------------------------------

    async def rooms(self, slots: Sequence[Slot], *, without_redis: bool = True) -> dict[UUID, Room]:
        """Tell what can be taken of each slot now: from the mirror where it knows it, else from the row itself.

        Raises:
            RedisAway: it was not to be `without_redis`, where the rows alone know no holds.
        """
        mirrored: dict[UUID, tuple[Room, int] | None] = {}
        clashes: dict[UUID, Literal["held", "booked"]] = {}
        of_slots = self.holds.rooms([(slot.resource_id, slot.id) for slot in slots])
        try:
            if any(slot.occupied_until for slot in slots):  # in the same round trip
                mirrored, clashes = await asyncio.gather(of_slots, self.holds.clashes(slots))
            else:
                mirrored = await of_slots
        except RedisAway:
            if not without_redis:
                raise
            log.debug("rooms_without_redis", slots=len(slots))
        rooms = {}
        for slot in slots:
            room = _room(slot, mirrored.get(slot.id))
            clash = clashes.get(slot.id)
            rooms[slot.id] = msgspec.structs.replace(room, blocked=clash) if clash else room
        return rooms

    async def alternatives(self, facts: SlotFacts, quantity: int) -> Alternatives:
        """List slots of the same resource with room for the party, the nearest first. Never fails: it is a courtesy."""
        try:
            # One look for all who were refused this slot at the same moment: in a crowd that is nearly everybody.
            return (await self._neighbours.load(facts.id, lambda: self._look_around(facts))).fitting(quantity)
        except Exception:
            log.warning("no_alternatives", slot_id=str(facts.id), exc_info=True)
            return Alternatives()

    async def _look_around(self, facts: SlotFacts) -> Neighbours:
        # Without Redis the rows are the only counts, and must be of this moment.
        recall = self._near.load if self.holds.breaker.is_open else self._near.get
        near = await recall(facts.id, lambda: self._read_near(facts))
        return Neighbours(near, await self.rooms(near))

    async def _read_near(self, facts: SlotFacts) -> list[Slot]:
        near = await self.ledger.slots_near(facts, NEAR_SLOTS)
        # Into the mirror with them: from here on it follows every change, and the next refusal asks nobody else.
        await self.sync_quietly([_counts(slot) for slot in near])
        return near

    # -- repair -----------------------------------------------------------------------------------------------------

    async def recover(self, since: datetime) -> int:
        """Make the mirror trustworthy after an outage: tell it all that was committed meanwhile. Returns the slots.

        The events know which slots changed, whichever process changed them, also one that has died since.

        Raises:
            RedisAway: it is gone again.
        """
        slots, after = 0, (since - OUTAGE_MARGIN, 0)
        while page := await self.ledger.changed_since(after, RECOVER_EVENTS):
            after, changed = page
            calls = [self.holds.sync_call(counts) for counts, _ in changed]
            # A booking's id is its hold's id: what became a row must not also count as a hold.
            calls += [
                self.holds.settle_call(counts, booking_id, remember=True)
                for counts, ids in changed
                for booking_id in ids
            ]
            await self.holds.pipelines.run_many(calls)
            slots += len(changed)
        await self.release_unheard()
        return slots

    async def reconcile(self, *, repair: bool = True, progress: Callable[[int], None] = lambda _: None) -> Reconciled:
        """Compare every mirrored slot that has not ended with Postgres, and repair what differs (design 8).

        Raises:
            RedisAway, DatabaseUnavailable: it could not be finished.
        """
        total, mirrored, drift, after = 0, 0, list[Drift](), None
        while page := await self.ledger.upcoming_counts(after, RECONCILE_BATCH):
            after = page[-1].slot_id
            seen = await self.holds.inspect([(c.resource_id, c.slot_id) for c in page])
            settled = await self.ledger.settled_among([hold.id for slot in seen for hold in slot.holds])
            suspects = [c for c, m in zip(page, seen, strict=True) if _differences(c, m, settled)]
            found = await self._compare_again(suspects) if suspects else []
            drift += found
            if repair and found:
                await self._repair({d.slot_id for d in found})
            if repair:  # no drift, since nobody asked for them: but what is booked stands in the way of other slots
                unasked = [c for c, m in zip(page, seen, strict=True) if m.room is None and c.booked and _is_busy(c)]
                await self.holds.sync(unasked)
            total, mirrored = total + len(page), mirrored + sum(m.room is not None for m in seen)
            progress(len(page))
        DRIFT.inc(len(drift))
        return Reconciled(total, mirrored, drift)

    async def _compare_again(self, suspects: Sequence[Counts]) -> list[Drift]:
        """Look a second time, a moment later: a commit whose settle was on its way is no drift."""
        await asyncio.sleep(0.2)
        found = []
        for before in suspects:
            [actual] = await self.ledger.counts([before.slot_id])
            [mirrored] = await self.holds.inspect([(before.resource_id, before.slot_id)])
            settled = await self.ledger.settled_among([hold.id for hold in mirrored.holds])
            found += _differences(actual, mirrored, settled)
        return found

    async def _repair(self, slot_ids: set[UUID]) -> None:
        for counts in await self.ledger.counts(sorted(slot_ids)):
            [mirrored] = await self.holds.inspect([(counts.resource_id, counts.slot_id)])
            settled = await self.ledger.settled_among([hold.id for hold in mirrored.holds])
            await self.holds.pipelines.run_many(
                [
                    *(self.holds.settle_call(counts, hold_id, remember=False) for hold_id in settled),
                    self.holds.sync_call(counts, repair=True),
                ]
            )


def _room(slot: Slot, mirrored: tuple[Room, int] | None) -> Room:
    from_row = Room(slot.capacity, slot.capacity - slot.available_count, 0, slot.open)
    if mirrored is None:
        return from_row
    room, version = mirrored
    # An older mirror belongs to commits whose settle is on its way: their inner holds stand for them until then.
    # Closing and opening, however, has no hold to stand for it: there the newer word counts.
    return room if version >= slot.version else Room(room.capacity, room.booked, room.held, slot.open)


def _as_of(slot: Slot, room: Room) -> Slot:
    """Give a slot that was read a while ago the counts of now, or it would be offered and called sold out at once."""
    return msgspec.structs.replace(slot, capacity=room.capacity, available_count=room.capacity - room.booked)


def _counts(slot: Slot) -> Counts:
    return Counts(
        slot.id, slot.resource_id, slot.capacity, slot.available_count, slot.version, slot.open,
        slot.starts_at, slot.ends_at, slot.occupied_until,
    )  # fmt: skip


def _is_busy(counts: Counts) -> bool:
    """Tell whether a slot keeps others from being sold while it is held or booked: those of persons and places do."""
    return isinstance(counts.occupied_until, datetime)


def _differences(actual: Counts, mirrored: Mirrored, settled: set[UUID]) -> list[Drift]:
    ghosts = sum(hold.quantity for hold in mirrored.holds if hold.id in settled)
    pairs = [("booked_holds", ghosts, 0)]
    if mirrored.room is not None:
        room = mirrored.room
        if len(mirrored.holds) < MOST_HOLDS:  # else not all of them were told
            pairs.append(("held", room.held, sum(hold.quantity for hold in mirrored.holds)))
        pairs += [
            ("capacity", room.capacity, actual.capacity),
            ("booked", room.booked, actual.booked),
            ("open", int(room.open), int(actual.open)),
        ]
        if _is_busy(actual):
            pairs.append(("occupied", mirrored.occupied, 2 if actual.booked else int(bool(mirrored.holds))))
    return [Drift(actual.slot_id, field, mirror, truth) for field, mirror, truth in pairs if mirror != truth]
