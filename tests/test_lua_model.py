"""The hold scripts against a model in Python, in any order, late, repeated and reordered (Hypothesis).

The model keeps what a slot should look like, and says each reply before the script does: every word, every number,
every field stored. Beside it stands a Postgres of a few lines, which commits bookings, cancels, closes; its messages
to the mirror are delivered at any time, in any order, and more than once.

The slots are an event's, which do not exclude each other, or a person's: then of two that overlap only one is ever
held, whatever the messages say and in whatever order they come.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import fakeredis
import hypothesis.strategies as st
import msgspec
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from msgspec import UNSET

from app.domain import Counts, Room, SlotFacts
from app.holds import FRESH_SECONDS, SETTLED_SECONDS, Doubtful, Extended, Full, Gone, Occupied, Taken, slot_keys, to_ms
from app.pipelines import Call, connect
from tests.slots import ClockedHolds, a_slot, altered, counts_of, patience

__all__ = ["patience"]

T = TypeVar("T")
Reply = list[Any]

FRESH_MS = FRESH_SECONDS * 1000
REMEMBER_MS = SETTLED_SECONDS * 1000
TTL, LONGEST, COMMIT_TTL = 1_000, 2_500, 700
TICKS = [1, 699, 700, 999, 1_000, FRESH_MS, FRESH_MS + 1]
SLOTS = st.sampled_from([0, 0, 0, 0, 1, 2])
#: The first and the last only touch; the one between overlaps both.
BEGIN_MINUTES = (0, 30, 60)
IDS = st.integers(0, 4)
QUANTITIES = st.sampled_from([1, 1, 2, 3])

WORDS = [
    *[
        "a hold",
        "a hold",
        "an extension",
        "a release",
        "a booking of a hold",
        "a booking",
        "a booking",
        "a cancellation",
    ],
    *["a message", "a message", "a message", "the same again", "time passes", "a hold lapses"],
    *["the slot closes or opens", "the scripts are lost", "a day or a month", "a repair", "the mirror is lost"],
]


class Person:
    """What a person's slots keep each other from: slot id -> when Postgres said it is booked (0: it is not), and when
    its last hold lapses (0: it has none). Those that are neither stay until somebody comes across them.
    """

    def __init__(self) -> None:
        self.doing: dict[str, tuple[int, int]] = {}
        self.times: dict[str, tuple[int, int]] = {}

    def in_the_way(self, now: int, slot_id: str, unsure: int) -> Reply | None:
        starts, ends = self.times[slot_id]
        lapse, doubtful = 0, []
        for other, (told, till) in sorted(self.doing.items(), key=lambda entry: self.times[entry[0]][1]):
            begin, end = self.times[other]
            if end <= starts:
                continue
            if not told and till <= now:
                del self.doing[other]
            elif begin >= ends:
                break
            elif other != slot_id and told and now - told <= FRESH_MS:
                return ["occupied", now, 0, unsure]
            elif other != slot_id and till > now:
                lapse = max(lapse, till)
            elif other != slot_id:
                doubtful.append(other)
        if lapse:
            return ["occupied", now, lapse, unsure]
        return ["stale", *doubtful] if doubtful else None

    def forget_the_past(self, now: int) -> None:
        self.doing = {slot: entry for slot, entry in self.doing.items() if self.times[slot][1] > now}

    def overlap(self, one: str, other: str) -> bool:
        return self.times[one][0] < self.times[other][1] and self.times[other][0] < self.times[one][1]


class Model:
    """One slot as the scripts should keep it. `parties`: hold id -> quantity, since, expiry, also those that lapsed."""

    def __init__(self, slot_id: UUID, starts: int, ends: int, person: Person | None) -> None:
        self.slot_id, self.starts, self.person = str(slot_id), starts, person
        if person:
            person.times[self.slot_id] = (starts, ends)
        self.counts: Counts | None = None
        self.seen = 0
        self.unsure = 0
        #: Places that are in the booked count and still held, and until when that is believed.
        self.twice = 0
        self.until = 0
        self.parties: dict[str, tuple[int, int, int]] = {}
        self.settled: dict[str, int] = {}
        self.active = 0

    def live(self, now: int) -> dict[str, tuple[int, int, int]]:
        return {hold_id: party for hold_id, party in self.parties.items() if party[2] > now}

    def held(self) -> int:
        return sum(quantity for quantity, _, _ in self.parties.values())

    def last(self) -> int:
        return max((expires for _, _, expires in self.parties.values()), default=0)

    def show_neighbours(self, told: int, booked: int) -> None:
        if self.person:
            self.person.doing[self.slot_id] = (told if booked else 0, self.last())

    def hold(self, now: int, hold_id: str, quantity: int, ttl: int) -> Reply:
        if self.counts is None:
            return ["missing"]
        self.parties = self.live(now)
        held = max(0, self.held() - self.twice) if now < self.until else self.held()
        left = self.counts.capacity - self.counts.booked - held
        if hold_id in self.parties:
            mine, since, expires = self.parties[hold_id]
            return ["again", now, expires, since, left] if mine == quantity else ["mismatch"]
        if hold_id in self.settled:
            return ["settled"]
        if (not self.counts.open or quantity > left) and now - self.seen > FRESH_MS:
            return ["stale"]
        if not self.counts.open:
            return ["closed"]
        if now >= self.starts:
            return ["past"]
        if quantity > left:
            first = min((expires for _, _, expires in self.parties.values()), default=0)
            return ["full", now, left, held, self.counts.booked, first, self.counts.capacity, self.unsure]
        if self.person and (refusal := self.person.in_the_way(now, self.slot_id, self.unsure)):
            return refusal
        self.parties[hold_id] = (quantity, now, now + ttl)
        self.show_neighbours(self.seen, self.counts.booked)
        self.settled.pop(f"released:{hold_id}", None)
        self.active = max(self.active, now + ttl)
        return ["held", now, now + ttl, now, left - quantity]

    def extend(self, now: int, hold_id: str, ttl: int, longest: int) -> Reply:
        if hold_id not in self.live(now):
            word = "settled" if hold_id in self.settled else "gone"
            return ["released" if word == "gone" and f"released:{hold_id}" in self.settled else word, now]
        quantity, since, expires = self.parties[hold_id]
        wanted = min(now + ttl, since + longest) if longest else now + ttl
        if wanted < now + ttl and wanted <= expires:
            return ["limit", now, expires, since, quantity]
        if wanted > expires:
            self.parties[hold_id] = (quantity, since, wanted)
            self.active = max(self.active, wanted)
            if self.person:
                told, till = self.person.doing[self.slot_id]
                self.person.doing[self.slot_id] = (told, max(till, wanted))
        return ["extended", now, max(expires, wanted), since, quantity]

    def release(self, now: int, hold_id: str, has_token: bool) -> Reply:
        if hold_id not in self.parties:
            return ["gone"]
        quantity, _, expires = self.parties.pop(hold_id)
        if has_token:
            self.forget(now)
            self.settled[f"released:{hold_id}"] = expires
        if self.person and self.slot_id in self.person.doing:
            self.person.doing[self.slot_id] = (self.person.doing[self.slot_id][0], self.last())
        return ["released", quantity]

    def settle(self, now: int, counts: Counts, hold_id: str, remember: bool) -> Reply:
        mine, _, _ = self.parties.pop(hold_id, (0, 0, 0))
        if remember:
            self.forget(now)
            self.settled[hold_id] = now + REMEMBER_MS
        if self.counts is None:
            return ["older"]
        if counts.version <= self.counts.version:
            self.show_neighbours(self.seen, self.counts.booked)
            self.twice = max(0, self.twice - mine)
            return ["older"]
        self.show_neighbours(now, counts.booked)
        self.twice += max(0, counts.booked - self.counts.booked - mine)
        self.until = now + 2000
        self.counts, self.seen = counts, now
        return ["settled"]

    def sync(self, now: int, counts: Counts, repair: bool) -> Reply:
        if self.counts is not None and counts.version < self.counts.version and not repair:
            return ["older"]
        if self.counts is None and counts.occupied_until is UNSET:
            return ["unknown"]
        if self.counts is None or repair:
            self.parties = self.live(now)
        more = counts.booked - (self.counts.booked if self.counts else 0)
        if more > 0 or (self.person and not self.counts and counts.version > 1):
            self.unsure = 1
        if more > 0 and self.counts:
            self.twice, self.until = self.twice + more, now + 2000
        self.counts, self.seen = counts, now
        if self.person:
            self.show_neighbours(now, counts.booked)
            if not counts.booked and self.last() <= now:
                del self.person.doing[self.slot_id]
            self.person.forget_the_past(now)
        return ["synced"]

    def counts_booked(self) -> int:
        return self.counts.booked if self.counts else 0

    def forget(self, now: int) -> None:
        self.settled = {member: until for member, until in self.settled.items() if until > now}


class Ledger:
    """What Postgres would say: one slot's committed counts, and what its changes tell the mirror."""

    def __init__(self, facts: SlotFacts, capacity: int) -> None:
        self.facts = facts
        self.versions = [counts_of(facts, capacity=capacity)]
        #: The ids that are booked, by version.
        self.booked: list[frozenset[str]] = [frozenset()]
        self.quantities: dict[str, int] = {}
        #: (version, hold id or None): a settle, or a sync that has no hold.
        self.messages: list[tuple[int, str | None]] = [(1, None)]

    @property
    def now(self) -> Counts:
        return self.versions[-1]

    def commit(
        self,
        *,
        add: str | None = None,
        remove: str | None = None,
        is_open: bool | None = None,
        settles: str | None = None,
    ) -> None:
        ids = (self.booked[-1] | ({add} if add else set())) - {remove}
        booked = sum(self.quantities[hold_id] for hold_id in ids)
        assert booked <= self.now.capacity, "the constraint of Postgres"
        version = self.now.version + 1
        is_open = self.now.open if is_open is None else is_open
        self.versions.append(
            counts_of(self.facts, capacity=self.now.capacity, booked=booked, version=version, is_open=is_open)
        )
        self.booked.append(frozenset(ids))
        self.messages.append((version, settles))


class HoldScripts(RuleBasedStateMachine):
    """`url` None: fakeredis. `texts`: scripts with a flaw, which the machine must notice."""

    def __init__(self, url: str | None = None, texts: dict[str, str] | None = None) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        if url:
            self.client = connect(url)
            self.reader = redis.Redis.from_url(url, decode_responses=True)
        else:
            server = fakeredis.FakeServer()
            self.client = fakeredis.FakeAsyncRedis(server=server, decode_responses=True)
            self.reader = fakeredis.FakeRedis(server=server, decode_responses=True)
        self.reader.flushall()
        self.reader.script_flush()
        self.texts = texts
        self.may_lose = False
        self.last: Callable[[], Any] = lambda: None
        self.ids = [uuid4() for _ in range(5)]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def inside() -> T:
            return await work

        return self.runner.run(inside())

    def teardown(self) -> None:
        try:
            if hasattr(self, "holds"):
                self.nothing_leaks_in_the_end()
        finally:
            self.run(self.client.aclose())
            self.reader.close()
            self.runner.close()

    @initialize(
        capacities=st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 2)),
        known=st.sampled_from([True, True, True, False]),
        may_lose=st.booleans(),
        of_a_person=st.booleans(),
    )
    def begin(self, capacities: tuple[int, int, int], known: bool, may_lose: bool, of_a_person: bool) -> None:
        self.holds = ClockedHolds(self.client, self.texts)
        start = int(time.time()) * 1000
        self.holds.set_clock(start)
        self.may_lose = may_lose
        starts_at = datetime.fromtimestamp(start // 1000, UTC) + timedelta(days=30)
        resource = uuid4()
        self.slots = []
        for minutes in BEGIN_MINUTES:
            begin = starts_at + timedelta(minutes=minutes)
            end = begin + timedelta(minutes=55)
            until = end + timedelta(minutes=5) if of_a_person else None
            self.slots.append(SlotFacts(uuid4(), uuid4(), resource, begin, end, None, 1800, until))
        self.person = Person() if of_a_person else None
        self.models = [
            Model(facts.id, to_ms(facts.starts_at), to_ms(facts.ends_at) + 300_000, self.person) for facts in self.slots
        ]
        self.ledgers = [Ledger(f, capacity) for f, capacity in zip(self.slots, capacities, strict=True)]
        #: No place promised twice, not even by a hold: until the mirror was told less than it had been told before.
        self.exact = [True] * len(self.slots)
        self.told = [0] * len(self.slots)
        for slot in range(len(self.slots)) if known else ():
            self.sync(slot, self.ledgers[slot].now, repair=False)

    def now(self) -> int:
        return self.holds.now_ms

    def often_held(self, slot: int, hold: int) -> int:
        """A hold that is there, when there is one; the last id keeps its own chance."""
        there = [number for number, hold_id in enumerate(self.ids) if str(hold_id) in self.models[slot].parties]
        return there[hold % len(there)] if there and hold < len(self.ids) - 1 else hold

    # One rule with many words: of many rules, Hypothesis leaves out half in each example, and then little happens.
    @rule(
        what=st.sampled_from(WORDS),
        slot=SLOTS,
        hold=IDS,
        quantity=QUANTITIES,
        ttl=st.sampled_from([TTL, TTL, 1, 10 * TTL]),
        number=st.integers(0, 5),
        yes=st.booleans(),
    )
    def something_happens(
        self, what: str, slot: int, hold: int, quantity: int, ttl: int, number: int, yes: bool
    ) -> None:
        if not self.person:
            slot %= 2  # they have nothing to do with each other: two are enough
        there = self.often_held(slot, hold)
        match what:
            case "a hold":
                self.hold(slot, hold, quantity, ttl)
            case "an extension":
                self.extend(slot, there, ttl, LONGEST if yes else 0)
            case "a release":
                self.release(slot, there, yes)
            case "a booking of a hold":
                self.book(slot, there)
            case "a booking":
                self.hold(slot, hold, quantity, TTL)
                self.book(slot, hold)
                if yes:
                    self.deliver(slot, 0, remember=True, whole=True)
            case "a cancellation":
                self.cancel(slot, hold)
            case "a message":
                self.deliver(slot, number, remember=yes, whole=quantity > 1)
            case "the same again":
                self.last()
            case "time passes":
                self.holds.tick(TICKS[(hold + number) % len(TICKS)])
            case "a hold lapses":
                self.almost_lapse(slot, there, just_before=yes)
                for neighbour in self.neighbours(slot)[:number]:
                    self.hold(neighbour, hold, 1, 1)
            case "the slot closes or opens":
                self.ledgers[slot].commit(is_open=not self.ledgers[slot].now.open)
            case "the scripts are lost":
                self.reader.script_flush()
            case "a day or a month":
                self.holds.tick(REMEMBER_MS if yes or number else 30 * REMEMBER_MS)
            case "a repair" if self.may_lose:
                versions = self.ledgers[slot].versions
                self.sync(slot, versions[-1 - (0 if yes else number % len(versions))], repair=True)
            case "the mirror is lost" if self.may_lose:
                facts = self.slots[slot]
                self.reader.delete(slot_keys(facts.resource_id, facts.id)["mirror"])
                self.models[slot].counts, self.models[slot].unsure = None, 0
                self.models[slot].twice = self.models[slot].until = 0
        if not number:
            self.both_views_show_the_live_holds()

    # -- the scripts ------------------------------------------------------------------------------------------------

    def hold(self, slot: int, hold: int, quantity: int, ttl: int) -> None:
        self.last = lambda: self.hold(slot, hold, quantity, ttl)
        answer = self.run(self.holds.take(self.slots[slot], self.ids[hold], quantity, ttl))
        expected = self.models[slot].hold(self.now(), str(self.ids[hold]), quantity, ttl)
        match expected:
            case ["held" | "again" as word, now, expires, since, _]:
                assert answer == Taken(now, expires, since, again=word == "again")
            case ["full", *fields]:
                assert answer == Full(*fields)
            case ["occupied", *fields]:
                assert answer == Occupied(*fields)
            case ["stale", *others] if others:
                assert answer == Doubtful([UUID(other) for other in others])
            case _:
                assert [answer] == expected
        if expected[0] == "held":
            assert not any(self.models[other].counts_booked() for other in self.neighbours(slot))

    def extend(self, slot: int, hold: int, ttl: int, longest: int) -> bool:
        self.last = lambda: self.extend(slot, hold, ttl, longest)
        answer = self.run(self.holds.extend(self.slots[slot], self.ids[hold], ttl, longest))
        expected = self.models[slot].extend(self.now(), str(self.ids[hold]), ttl, longest)
        match expected:
            case ["extended" | "limit" as word, *fields]:
                assert answer == Extended(*fields, limited=word == "limit")
            case [word, now]:
                assert answer == Gone(now, word)
        return isinstance(answer, Extended)

    def release(self, slot: int, hold: int, has_token: bool) -> None:
        self.last = lambda: self.release(slot, hold, has_token)
        answer = self.run(self.holds.release(self.slots[slot], self.ids[hold], has_token=has_token))
        expected = self.models[slot].release(self.now(), str(self.ids[hold]), has_token)
        assert answer is (expected[0] == "released")

    def deliver(self, slot: int, number: int, *, remember: bool, whole: bool) -> None:
        """Any message of any commit, as often as it likes; `whole` when it tells whose slot it is."""
        ledger, model = self.ledgers[slot], self.models[slot]
        version, hold_id = ledger.messages[-1 - number % len(ledger.messages)]
        counts = ledger.versions[version - 1]
        if not whole:
            counts = msgspec.structs.replace(counts, occupied_until=UNSET)
        self.last = lambda: self.deliver(slot, number, remember=remember, whole=whole)
        if hold_id is None:
            self.sync(slot, counts, repair=False)
            return
        call = self.holds.settle_call(counts, UUID(hold_id), remember=remember)
        self.tell(slot, call, model.settle(self.now(), counts, hold_id, remember), version)

    def sync(self, slot: int, counts: Counts, *, repair: bool) -> None:
        expected = self.models[slot].sync(self.now(), counts, repair)
        self.tell(slot, self.holds.sync_call(counts, repair=repair), expected, counts.version)

    def tell(self, slot: int, call: Call, expected: Reply, version: int) -> None:
        [answer] = self.run(self.holds.pipelines.run_many([call]))
        assert answer == expected
        self.told[slot] = max(self.told[slot], version)
        known = self.models[slot].counts
        if known and known.version < self.told[slot]:
            self.exact[slot] = False

    # -- what happens around them -----------------------------------------------------------------------------------

    def book(self, slot: int, hold: int) -> None:
        """As a confirmation does: prolong the hold over the commit, and commit if Postgres has room."""
        ledger, hold_id = self.ledgers[slot], str(self.ids[hold])
        if hold_id in ledger.quantities or not self.extend(slot, hold, COMMIT_TTL, 0):
            return
        quantity = self.models[slot].parties[hold_id][0]
        if any(self.ledgers[other].now.booked for other in self.neighbours(slot)):
            return  # the exclusion constraint
        if ledger.now.booked + quantity <= ledger.now.capacity:
            ledger.quantities[hold_id] = quantity
            ledger.commit(add=hold_id, settles=hold_id)

    def neighbours(self, slot: int) -> list[int]:
        """Other slots that the person cannot do as well; an event's slots have none."""
        ids = [model.slot_id for model in self.models]
        return [
            other
            for other in range(len(ids))
            if other != slot and self.person and self.person.overlap(ids[slot], ids[other])
        ]

    def cancel(self, slot: int, hold: int) -> None:
        booked = sorted(self.ledgers[slot].booked[-1])
        if booked:
            self.ledgers[slot].commit(remove=booked[hold % len(booked)])

    def almost_lapse(self, slot: int, hold: int, *, just_before: bool) -> None:
        party = self.models[slot].live(self.now()).get(str(self.ids[hold]))
        if party and party[2] - just_before > self.now():
            self.holds.set_clock(party[2] - just_before)

    # -- what is true after every step ------------------------------------------------------------------------------

    @invariant()
    def the_store_is_as_the_model_says(self) -> None:
        pipe = self.reader.pipeline(transaction=False)
        for facts in self.slots:
            keys = slot_keys(facts.resource_id, facts.id)
            pipe.hgetall(keys["mirror"])
            pipe.zrange(keys["holds"], 0, -1, withscores=True)
            pipe.hgetall(keys["parties"])
            pipe.zrange(keys["settled"], 0, -1, withscores=True)
            pipe.zscore(keys["active"], str(facts.id))
        fields = iter(pipe.execute())
        for model in self.models:
            mirror, holds, parties, settled, active = (next(fields) for _ in range(5))
            assert bool(mirror) is (model.counts is not None)
            if model.counts:
                assert int(mirror["held"]) == model.held() >= 0
                assert int(mirror["seen"]) == model.seen
                assert (int(mirror.get("twice", 0)), int(mirror.get("until", 0))) == (model.twice, model.until)
            assert dict(holds) == {hold_id: expires for hold_id, (_, _, expires) in model.parties.items()}
            assert parties == {
                hold_id: f"{quantity}:{since}" for hold_id, (quantity, since, _) in model.parties.items()
            }
            assert dict(settled) == model.settled
            if model.active > self.now():
                assert active == model.active

    @invariant()
    def a_person_is_as_the_model_says(self) -> None:
        keys = slot_keys(self.slots[0].resource_id, self.slots[0].id)
        times, doing = self.person.times if self.person else {}, self.person.doing if self.person else {}
        assert dict(self.reader.zrange(keys["busy"], 0, -1, withscores=True)) == {
            slot: times[slot][1] for slot in doing
        }
        assert self.reader.hgetall(keys["doing"]) == {
            slot: f"{times[slot][0]}:{told}:{till}" for slot, (told, till) in doing.items()
        }

    @invariant()
    def nobody_is_held_in_two_places(self) -> None:
        held = [slot for slot, model in enumerate(self.models) if model.live(self.now())]
        assert not any(other in held for slot in held for other in self.neighbours(slot))

    def both_views_show_the_live_holds(self) -> None:
        pairs = [(facts.resource_id, facts.id) for facts in self.slots]
        rooms, inspected = self.run(self.holds.rooms(pairs)), self.run(self.holds.inspect(pairs))
        for facts, model, slot in zip(self.slots, self.models, inspected, strict=True):
            live, counts = model.live(self.now()), model.counts
            held = sum(quantity for quantity, _, _ in live.values())
            held = max(0, held - model.twice) if self.now() < model.until else held
            expected = counts and (Room(counts.capacity, counts.booked, held, counts.open), counts.version)
            assert rooms[facts.id] == expected
            assert {str(h.id): (h.quantity, to_ms(h.since), to_ms(h.expires_at)) for h in slot.holds} == live
            assert slot.version == (counts.version if counts else -1)
            told, till = self.person.doing.get(model.slot_id, (0, 0)) if self.person else (0, 0)
            assert slot.occupied == (2 if told else int(till > self.now()))
        self.lists_show_what_is_in_the_way()

    def lists_show_what_is_in_the_way(self) -> None:
        expected = {}
        for slot, facts in enumerate(self.slots):
            for other in self.neighbours(slot):
                told, till = self.person.doing.get(self.models[other].slot_id, (0, 0)) if self.person else (0, 0)
                if told and self.now() - told <= FRESH_MS:
                    expected.setdefault(facts.id, "booked")
                elif till > self.now():
                    expected.setdefault(facts.id, "held")
        assert self.run(self.holds.clashes([a_slot(facts) for facts in self.slots])) == expected

    @invariant()
    def no_place_is_promised_twice(self) -> None:
        for slot, (model, ledger) in enumerate(zip(self.models, self.ledgers, strict=True)):
            live = model.live(self.now())
            # A booking whose hold ended before the mirror heard of it: its place was free for a while.
            for version, hold_id in ledger.messages:
                if hold_id and version > self.told[slot] and hold_id not in live:
                    self.exact[slot] = False
            if model.counts and self.exact[slot]:
                booked = ledger.booked[model.counts.version - 1]
                held = sum(quantity for hold_id, (quantity, _, _) in live.items() if hold_id not in booked)
                assert 0 <= model.counts.booked + held <= model.counts.capacity

    def nothing_leaks_in_the_end(self) -> None:
        """Everything lapses, the mirror hears the newest: then exactly what is not booked is free."""
        self.holds.tick(20 * TTL)
        for slot, facts in enumerate(self.slots):
            self.ledgers[slot].commit(is_open=True)
            newest, model = self.ledgers[slot].now, self.models[slot]
            self.holds.set_clock(min(self.now(), model.starts - 1))
            if any(expires > self.now() for _, _, expires in model.parties.values()):
                continue  # the clock stands at the slot's start: these cannot lapse before it
            self.sync(slot, newest, repair=False)
            free = newest.capacity - newest.booked
            if free and not any(self.ledgers[other].now.booked for other in self.neighbours(slot)):
                newcomer = uuid4()
                last = self.run(self.holds.take(facts, newcomer, 1, TTL))
                assert isinstance(last, Taken | Doubtful)  # of what an old message told: it would be looked up
                self.run(self.holds.release(facts, newcomer, has_token=False))
            taken = self.run(self.holds.take(facts, uuid4(), free + 1, TTL))
            assert isinstance(taken, Full)
            assert (taken.left, taken.held, taken.next_expiry_ms) == (free, 0, 0)
            keys = slot_keys(facts.resource_id, facts.id)
            assert not self.reader.exists(keys["holds"], keys["parties"])


def bounds(examples: int) -> settings:
    """The same examples at every run: a failure in CI is one that everybody sees."""
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_the_scripts_do_what_the_model_says_on_fakeredis() -> None:
    run_state_machine_as_test(HoldScripts, settings=bounds(80))


def test_the_scripts_do_what_the_model_says_on_redis_6(redis6: str) -> None:
    run_state_machine_as_test(lambda: HoldScripts(redis6), settings=bounds(60))


FLAWS = {
    "sells more than there is": ("hold", "if quantity > left then", "if false then"),
    "never drops what lapsed": ("hold", "redis.call('ZRANGEBYSCORE', holds, '-inf', now)", "{}"),
    "drops too early": ("hold", "'-inf', now)\nfor", "'-inf', now + 1)\nfor"),
    "doubles a repeated hold": ("hold", "if expires then", "if false then"),
    "forgets what was booked": ("hold", "if redis.call('ZSCORE', settled, hold_id) then return {'settled'} end", ""),
    "shortens": ("extend", "if wanted > expires then\n  expires", "if true then\n  expires"),
    "gives back twice": ("release", "if not expires then return {'gone'} end", "if not expires then expires = 0 end"),
    "frees the hold and not its places": (
        "settle",
        "then redis.call('HINCRBY', mirror, 'held', -mine) end",
        "then end",
    ),
    "believes older counts": ("settle", "if version <= known then", "if false then"),
    "counts what is booked and held twice": ("settle", "'twice', twice, 'until', now + 2000", "'twice', 0, 'until', 0"),
    "synchronises backwards": ("sync", "if version < known and not repair then return {'older'} end", ""),
    "overlooks holds that outlived the mirror": ("sync", "held = held + tonumber", "held = 0 * tonumber"),
    "lets a person do two things at once": ("hold", "while busy do", "while false do"),
    "does not tell the neighbours of a hold": ("hold", "redis.call('ZADD', busy, ends, slot_id)", ""),
    "takes what begins when it ends for what overlaps": (
        "hold",
        "elseif from >= tonumber(ends)",
        "elseif from > tonumber(ends)",
    ),
    "takes what ends when it begins for what overlaps": ("hold", "'(' .. counts[5], '+inf'", "counts[5], '+inf'"),
    "is stopped by what lapsed": ("hold", "told == 0 and till <= now", "told == 0 and till < now"),
    "believes an old booking for ever": ("hold", "if told > 0 and now - told <= fresh", "if told > 0"),
    "keeps a prolonged hold from the neighbours": ("extend", "if till and expires > tonumber(till)", "if false"),
    "keeps a release from the neighbours": ("release", "if known then", "if false then"),
    "takes a settled hold for a held one": ("settle", "(is_booked ~= '0' and told or 0)", "0"),
    "keeps a cancellation from the neighbours": ("sync", "redis.call('HDEL', doing, slot_id)", ""),
    "keeps a booking from the neighbours": ("sync", "local told = booked == '0' and '0' or", "local told = '0' or"),
    "lists what has no time": ("clash", "tonumber(from) >= ends", "tonumber(from) >= 0"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_control_the_model_notices_a_script_that(flaw: str) -> None:
    texts = altered(*FLAWS[flaw])
    quick = settings(bounds(300), phases=[Phase.generate], report_multiple_bugs=False, print_blob=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(lambda: HoldScripts(texts=texts), settings=quick)
