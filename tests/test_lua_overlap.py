"""One person, one thing at a time: the hold scripts on overlapping slots, on every kind of Redis.

As in `test_lua`, with a clock that stands still. A slot is written as (begins, lasts) in minutes of one day.
"""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
import redis
from msgspec import UNSET

from app.domain import Counts, SlotFacts
from app.holds import FRESH_SECONDS, Doubtful, Extended, Full, Occupied, Taken, slot_keys, to_ms
from app.pipelines import Client
from tests.redis_servers import client_fixture, redis_url
from tests.slots import ClockedHolds, a_slot, counts_of, holds, patience, some_facts

__all__ = ["client_fixture", "holds", "patience", "redis_url"]

pytestmark = pytest.mark.anyio

TTL = 60_000
FRESH_MS = FRESH_SECONDS * 1000
DAY_MS = 86_400_000
REPEATS = (2, 3, 11)


#: Of all slots here: one made a second later than its neighbour would overlap it by a second.
NOW = datetime.now(UTC)


def slots_of(*times: tuple[int, int], resource_id: UUID | None = None, buffer: int | None = 0) -> list[SlotFacts]:
    """Slots of one person; without a buffer, not even one of no time, of one event."""
    resource_id = resource_id or uuid4()
    return [
        some_facts(
            resource_id=resource_id,
            starts_in=timedelta(hours=12, minutes=begins),  # none begins before the last of the tests runs
            lasting=timedelta(minutes=lasts),
            buffer=None if buffer is None else timedelta(minutes=buffer),
            now=NOW,
        )
        for begins, lasts in times
    ]


async def person(holds: ClockedHolds, *times: tuple[int, int], **more: Any) -> list[SlotFacts]:
    slots = slots_of(*times, **more)
    await holds.sync([counts_of(facts) for facts in slots])
    return slots


async def hold(holds: ClockedHolds, facts: SlotFacts, *, ttl_ms: int = TTL, quantity: int = 1) -> UUID:
    hold_id = uuid4()
    taken = await holds.take(facts, hold_id, quantity, ttl_ms)
    assert isinstance(taken, Taken), taken
    return hold_id


async def ask(holds: ClockedHolds, facts: SlotFacts, **more: Any) -> Any:
    """Try to hold, and leave nothing behind."""
    hold_id = uuid4()
    answer = await holds.take(facts, hold_id, 1, TTL, **more)
    if isinstance(answer, Taken):
        assert await holds.release(facts, hold_id, has_token=False)
    return answer


async def book(holds: ClockedHolds, facts: SlotFacts, *, booked: int = 1, version: int = 2) -> None:
    hold_id = await hold(holds, facts)
    await holds.settle(counts_of(facts, booked=booked, version=version), hold_id, remember=True)


def held(holds: ClockedHolds, lapses_ms: int) -> Occupied:
    return Occupied(holds.now_ms, lapses_ms)


def booked(holds: ClockedHolds) -> Occupied:
    return Occupied(holds.now_ms, 0)


def silent(counts: Counts) -> Counts:
    """Counts as most functions of the database tell them: not whose they are."""
    return msgspec.structs.replace(counts, occupied_until=UNSET)


async def stored(client: Client, facts: SlotFacts) -> tuple[dict[str, float], dict[str, str]]:
    keys = slot_keys(facts.resource_id, facts.id)
    return dict(await client.zrange(keys["busy"], 0, -1, withscores=True)), await client.hgetall(keys["doing"])


# -- held -------------------------------------------------------------------------------------------------------------


async def test_a_hold_keeps_its_person_from_what_overlaps(holds: ClockedHolds) -> None:
    one, other, apart = await person(holds, (0, 60), (30, 60), (120, 60))
    await hold(holds, one)
    assert await ask(holds, other) == held(holds, holds.now_ms + TTL)
    assert isinstance(await ask(holds, apart), Taken)


async def test_an_event_runs_several_slots_at_once(holds: ClockedHolds) -> None:
    one, other = await person(holds, (0, 60), (30, 60), buffer=None)
    await hold(holds, one)
    await hold(holds, other)
    assert await stored(holds.client, one) == ({}, {})


@pytest.mark.parametrize(
    ("begins", "lasts", "free"),
    [
        (-60, 60, True),
        (-59, 60, False),
        (60, 60, True),
        (59, 60, False),
        (0, 60, False),
        (10, 5, False),
        (-30, 150, False),
    ],
)
async def test_times_are_half_open(holds: ClockedHolds, begins: int, lasts: int, free: bool) -> None:
    one, other = await person(holds, (0, 60), (begins, lasts))
    await hold(holds, one)
    assert isinstance(await ask(holds, other), Taken if free else Occupied)
    one, other = await person(holds, (0, 60), (begins, lasts))
    await book(holds, one)
    assert isinstance(await ask(holds, other), Taken if free else Occupied)


@pytest.mark.parametrize(("begins", "free"), [(74, False), (75, True), (-74, False), (-75, True)])
async def test_buffers_count_on_both_sides(holds: ClockedHolds, begins: int, free: bool) -> None:
    one, other = await person(holds, (0, 60), (begins, 60), buffer=15)
    await hold(holds, one)
    assert isinstance(await ask(holds, other), Taken if free else Occupied)


async def test_many_share_one_class_and_nobody_else_gets_its_teacher(holds: ClockedHolds) -> None:
    lesson, other = await person(holds, (0, 60), (30, 60))
    await hold(holds, lesson)
    await book(holds, lesson)
    await hold(holds, lesson)
    assert isinstance(await holds.take(lesson, uuid4(), 1, TTL), Full)
    assert await ask(holds, other) == booked(holds)


@pytest.mark.parametrize("lapsed", [False, True])
async def test_both_sides_of_the_expiry_of_another_slots_hold(holds: ClockedHolds, lapsed: bool) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    await hold(holds, one)
    lapses = holds.now_ms + TTL
    holds.tick(TTL - (0 if lapsed else 1))
    answer = await ask(holds, other)
    assert isinstance(answer, Taken) if lapsed else answer == held(holds, lapses)
    assert (
        str(one.id) in (await stored(holds.client, one))[1]
    ) is not lapsed  # … and dropped by whoever comes across it


async def test_the_last_of_several_holds_in_the_way_is_told(holds: ClockedHolds) -> None:
    long, first, second = await person(holds, (0, 120), (10, 20), (60, 20))
    await hold(holds, first, ttl_ms=3 * TTL)
    await hold(holds, second, ttl_ms=TTL)
    assert await ask(holds, long) == held(holds, holds.now_ms + 3 * TTL)


async def test_a_hold_inside_a_longer_one_is_found_from_both(holds: ClockedHolds) -> None:
    long, inside, before, after = await person(holds, (0, 180), (60, 30), (-30, 60), (150, 60))
    await hold(holds, long)
    for facts in (inside, before, after):
        assert isinstance(await ask(holds, facts), Occupied)
    long, inside, before, after = await person(holds, (0, 180), (60, 30), (-30, 60), (150, 60))
    await hold(holds, inside)
    assert isinstance(await ask(holds, long), Occupied)
    for facts in (before, after):
        assert isinstance(await ask(holds, facts), Taken)


async def test_a_prolonged_hold_keeps_the_others_away_as_long(holds: ClockedHolds) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    first = await hold(holds, one)
    second = await hold(holds, one, ttl_ms=TTL // 2)
    holds.tick(TTL - 1)
    extended = await holds.extend(one, first, 2 * TTL, 0)
    assert isinstance(extended, Extended)
    assert await ask(holds, other) == held(holds, extended.expires_at_ms)
    assert not isinstance(await holds.extend(one, second, TTL, 0), Extended)  # lapsed, and changes nothing
    assert await ask(holds, other) == held(holds, extended.expires_at_ms)


@pytest.mark.parametrize("has_token", [False, True])
@pytest.mark.parametrize("repeats", REPEATS)
async def test_a_release_frees_the_person_when_it_was_the_last_hold(
    holds: ClockedHolds, has_token: bool, repeats: int
) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    first = await hold(holds, one, ttl_ms=2 * TTL)
    second = await hold(holds, one)
    for _ in range(repeats):
        await holds.release(one, first, has_token=has_token)
    assert await ask(holds, other) == held(holds, holds.now_ms + TTL)
    for _ in range(repeats):
        await holds.release(one, second, has_token=has_token)
    assert isinstance(await ask(holds, other), Taken)


@pytest.mark.parametrize("repeats", REPEATS)
async def test_ones_own_hold_is_never_in_the_way(holds: ClockedHolds, repeats: int) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    hold_id = uuid4()
    answers = [await holds.take(one, hold_id, 1, TTL) for _ in range(repeats)]
    assert [answer.again for answer in answers if isinstance(answer, Taken)] == [False] + [True] * (repeats - 1)
    # Also when the other was booked although: Postgres will say so.
    await holds.sync([counts_of(other, booked=1, version=2)])
    found = await holds.take(one, hold_id, 1, TTL)
    assert isinstance(found, Taken)
    assert found.again
    await holds.settle(counts_of(one, booked=1, version=2), hold_id, remember=True)
    assert await holds.take(one, hold_id, 1, TTL) == "settled"


async def test_a_refusal_writes_nothing_but_drops_what_lapsed(holds: ClockedHolds) -> None:
    one, other, gone = await person(holds, (0, 60), (30, 60), (60, 10))
    await hold(holds, gone, ttl_ms=10)
    await hold(holds, one)
    holds.tick(10)
    await ask(holds, other)
    before = [
        await stored(holds.client, one),
        await holds.client.hgetall(slot_keys(other.resource_id, other.id)["mirror"]),
    ]
    assert isinstance(await ask(holds, other), Occupied)
    assert before == [
        await stored(holds.client, one),
        await holds.client.hgetall(slot_keys(other.resource_id, other.id)["mirror"]),
    ]
    assert set(before[0][1]) == {str(one.id)}


async def test_what_is_left_for_another_time_is_not_in_the_way_of_it(holds: ClockedHolds) -> None:
    old, new, third = await person(holds, (0, 60), (30, 60), (60, 60))
    await book(holds, old)
    assert await ask(holds, new) == booked(holds)
    assert isinstance(await ask(holds, new, leaving=old.id), Taken)
    await hold(holds, third)
    assert await ask(holds, new, leaving=old.id) == held(holds, holds.now_ms + TTL)


# -- booked -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tells", [True, False])
async def test_a_settled_hold_is_a_booking_to_the_others(holds: ClockedHolds, tells: bool) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    hold_id = await hold(holds, one)
    counts = counts_of(one, booked=1, version=2)
    await holds.settle(counts if tells else silent(counts), hold_id, remember=True)
    assert await ask(holds, other) == booked(holds)
    holds.tick(FRESH_MS)
    assert await ask(holds, other) == booked(holds)


async def test_a_settle_that_comes_too_late_leaves_the_newer_word(holds: ClockedHolds) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    late = await hold(holds, one)
    await holds.sync([counts_of(one, booked=0, version=5)])  # booked and cancelled meanwhile
    await holds.settle(counts_of(one, booked=1, version=4), late, remember=True)
    assert isinstance(await ask(holds, other), Taken)


async def test_settling_a_lapsed_hold_tells_the_others_all_the_same(holds: ClockedHolds) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    hold_id = await hold(holds, one)
    holds.tick(TTL)
    assert isinstance(await ask(holds, other), Taken)  # which drops what is known of the lapsed one
    await holds.settle(counts_of(one, booked=1, version=2), hold_id, remember=True)
    assert await ask(holds, other) == booked(holds)


@pytest.mark.parametrize("tells", [True, False])
async def test_a_cancellation_frees_the_person_unless_somebody_holds(holds: ClockedHolds, tells: bool) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    await book(holds, one)
    hold_id = await hold(holds, one)
    cancelled = counts_of(one, booked=0, version=3)
    await holds.sync([cancelled if tells else silent(cancelled)])
    assert await ask(holds, other) == held(holds, holds.now_ms + TTL)
    await holds.release(one, hold_id, has_token=False)
    assert isinstance(await ask(holds, other), Taken)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
async def test_what_the_others_see_converges_in_any_order(holds: ClockedHolds, order: tuple[int, ...]) -> None:
    one, other = slots_of((0, 60), (30, 60))
    await holds.sync([counts_of(other)])
    for version in order:
        await holds.sync([counts_of(one, booked=3 - version, version=version)])
    assert isinstance(await ask(holds, other), Taken)
    for version in order:
        await holds.sync([counts_of(one, booked=version, version=10 + version)])
    assert await ask(holds, other) == booked(holds)


async def test_a_booking_told_by_a_sync_alone_is_in_the_way(holds: ClockedHolds) -> None:
    one, other = slots_of((0, 60), (30, 60))
    await holds.sync([counts_of(one, booked=1, version=4), counts_of(other)])
    assert await ask(holds, other) == booked(holds)


@pytest.mark.parametrize("old", [False, True])
async def test_both_sides_of_how_long_a_booking_is_believed(holds: ClockedHolds, old: bool) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    await book(holds, one)
    holds.tick(FRESH_MS + (1 if old else 0))
    assert await ask(holds, other) == (Doubtful([one.id]) if old else booked(holds))


async def test_doubtful_bookings_are_all_named_and_verified(holds: ClockedHolds) -> None:
    first, second, third, long = slots_of((0, 30), (30, 30), (60, 30), (0, 120))
    bookings = [counts_of(facts, booked=1, version=2) for facts in (first, second, third)]
    await holds.sync([*bookings, counts_of(long)])
    holds.tick(FRESH_MS + 1)
    assert await ask(holds, long) == Doubtful([first.id, second.id, third.id])
    await holds.sync([counts_of(first, version=3), *bookings[1:]])
    assert await ask(holds, long) == booked(holds)
    await holds.sync([counts_of(facts, version=3) for facts in (second, third)])
    assert isinstance(await ask(holds, long), Taken)


async def test_a_live_hold_refuses_without_a_look_at_a_doubtful_booking(holds: ClockedHolds) -> None:
    one, other, long = await person(holds, (0, 30), (60, 30), (0, 120))
    await book(holds, one)
    holds.tick(FRESH_MS + 1)
    await hold(holds, other)
    assert await ask(holds, long) == held(holds, holds.now_ms + TTL)


async def test_other_refusals_come_first(holds: ClockedHolds) -> None:
    full, closed, begun, other = slots_of((0, 60), (5, 60), (-12 * 60, 60), (30, 60))
    await holds.sync([counts_of(full, booked=3), counts_of(closed, is_open=False), counts_of(begun), counts_of(other)])
    assert isinstance(await ask(holds, full), Full)
    assert await ask(holds, closed) == "closed"
    assert await ask(holds, begun) == "past"
    assert await ask(holds, other) == booked(holds)


# -- the mirror -------------------------------------------------------------------------------------------------------


async def test_counts_that_do_not_tell_whose_they_are_make_no_mirror(holds: ClockedHolds) -> None:
    [facts] = slots_of((0, 60))
    [reply] = await holds.pipelines.run_many([holds.sync_call(silent(counts_of(facts)))])
    assert reply == ["unknown"]
    assert not await holds.client.exists(*slot_keys(facts.resource_id, facts.id).values())


async def test_counts_of_an_event_that_do_not_say_so_are_taken_as_such(holds: ClockedHolds) -> None:
    one, other = await person(holds, (0, 60), (30, 60), buffer=None)
    await holds.sync([silent(counts_of(one, booked=1, version=2))])
    hold_id = await hold(holds, one)
    await holds.settle(silent(counts_of(one, booked=2, version=3)), hold_id, remember=True)
    await hold(holds, other)
    assert await stored(holds.client, one) == ({}, {})


async def test_a_mirror_made_anew_finds_the_holds_that_outlived_it(holds: ClockedHolds) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    await hold(holds, one)
    keys = slot_keys(one.resource_id, one.id)
    await holds.client.delete(keys["mirror"], keys["busy"], keys["doing"])
    assert isinstance(await ask(holds, other), Taken)  # forgotten …
    await holds.sync([counts_of(one)])
    assert await ask(holds, other) == held(holds, holds.now_ms + TTL)  # … and found


@pytest.mark.parametrize("wrong", ["1:1:1", "0:0:0", "9999999999999:9999999999999:9999999999999", None])
async def test_a_repair_puts_right_what_the_others_see(holds: ClockedHolds, wrong: str | None) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    await hold(holds, one)
    keys, before = slot_keys(one.resource_id, one.id), await stored(holds.client, one)
    if wrong:
        await holds.client.hset(keys["doing"], str(one.id), wrong)
    else:
        await holds.client.delete(keys["doing"], keys["busy"])
    await holds.sync([counts_of(one)], repair=True)
    assert await stored(holds.client, one) == before
    assert await ask(holds, other) == held(holds, holds.now_ms + TTL)


async def test_a_booking_restored_from_a_backup_is_repaired_away(holds: ClockedHolds) -> None:
    one, other = await person(holds, (0, 60), (30, 60))
    await book(holds, one, version=9)
    await holds.sync([counts_of(one, booked=0, version=4)], repair=True)
    assert isinstance(await ask(holds, other), Taken)


async def test_a_slot_that_was_booked_before_its_mirror_was_made_is_unsure(holds: ClockedHolds) -> None:
    """Its booking may have been cancelled, and its record lost: a keyed retry must be looked up, not told "taken"."""
    one, other = slots_of((0, 60), (30, 60))
    await holds.sync([counts_of(one, booked=0, version=3), counts_of(other, booked=1, version=2)])
    assert await ask(holds, one) == Occupied(holds.now_ms, 0, unsure=True)


# -- what is shown ----------------------------------------------------------------------------------------------------


async def test_lists_tell_what_is_in_the_way_and_write_nothing(holds: ClockedHolds) -> None:
    slots = await person(holds, (0, 60), (30, 60), (60, 60), (100, 10), (200, 60))
    one, overlapping, touching, inside, apart = slots
    await hold(holds, one, ttl_ms=TTL)
    await book(holds, touching)
    for facts in await person(holds, (0, 60), buffer=None):
        slots.append(facts)  # an event's
    before = await stored(holds.client, one)
    shown = [a_slot(facts) for facts in slots]
    assert await holds.clashes(shown) == {overlapping.id: "held", inside.id: "booked"}
    holds.tick(FRESH_MS + 1)  # of bookings the list's own look at Postgres is newer now
    assert await holds.clashes(shown) == {overlapping.id: "held"}
    holds.tick(TTL)
    assert await holds.clashes(shown) == {}
    assert await stored(holds.client, one) == before
    assert await holds.clashes([]) == {}
    assert apart.id not in await holds.clashes(shown)


async def test_operators_see_what_the_others_see(holds: ClockedHolds) -> None:
    one, other = await person(holds, (0, 60), (120, 60))
    pairs = [(one.resource_id, one.id), (other.resource_id, other.id)]
    assert [slot.occupied for slot in await holds.inspect(pairs)] == [0, 0]
    await hold(holds, one)
    await book(holds, other)
    assert [slot.occupied for slot in await holds.inspect(pairs)] == [1, 2]
    holds.tick(TTL)
    assert [slot.occupied for slot in await holds.inspect(pairs)] == [0, 2]


# -- memory and cost --------------------------------------------------------------------------------------------------


async def test_what_a_person_does_is_forgotten_in_the_end(holds: ClockedHolds) -> None:
    early, late = await person(holds, (0, 60), (600, 60))
    keys = slot_keys(early.resource_id, early.id)
    await hold(holds, late)
    await hold(holds, early)  # must not shorten what the later one needs
    last = to_ms(late.ends_at) + DAY_MS - holds.now_ms
    for name in ("busy", "doing"):
        assert last - 120_000 < await holds.client.pttl(keys[name]) <= last
    assert set((await stored(holds.client, early))[0]) == set((await stored(holds.client, early))[1])


async def test_the_past_is_dropped(holds: ClockedHolds) -> None:
    one, other, third = await person(holds, (0, 60), (60, 60), (600, 60))
    await book(holds, one)
    await book(holds, other)
    holds.set_clock(to_ms(one.ends_at))
    await holds.sync([counts_of(third)])
    assert [set(kept) for kept in await stored(holds.client, one)] == [{str(other.id)}] * 2
    holds.set_clock(to_ms(other.ends_at))
    await holds.sync([counts_of(third)])
    assert await stored(holds.client, one) == ({}, {})


async def test_a_hold_looks_at_what_overlaps_and_at_nothing_else(redis7: str) -> None:
    """However many slots a person has in a year: counted in commands, not in time."""
    client = redis.asyncio.from_url(redis7, decode_responses=True)
    try:
        holds = ClockedHolds(client)
        slots = slots_of(*((60 * number, 60) for number in range(500)))
        await holds.sync([counts_of(facts, booked=1, version=2) for facts in slots])
        [free] = await person(holds, (250 * 60 + 30, 30), resource_id=slots[0].resource_id)
        await holds.sync([counts_of(slots[250], booked=0, version=3)])
        before = await _commands(client)
        await hold(holds, free)
        after = await _commands(client)
    finally:
        await client.aclose()
    looked = {name: after[name] - before.get(name, 0) for name in ("cmdstat_hget", "cmdstat_zrangebyscore")}
    assert looked == {"cmdstat_hget": 1, "cmdstat_zrangebyscore": 2}


async def test_of_very_many_in_the_way_some_are_enough_to_refuse(holds: ClockedHolds) -> None:
    *short, long = await person(holds, *((number, 1) for number in range(60)), (0, 60))
    for number, facts in enumerate(short):
        await hold(holds, facts, ttl_ms=TTL + number)
    assert await ask(holds, long) == held(holds, holds.now_ms + TTL + 19)
    holds.tick(TTL + 50)  # most have lapsed: they are passed by, however many there are
    assert await ask(holds, long) == held(holds, holds.now_ms + 9)


async def _commands(client: Client) -> dict[str, int]:
    return {name: stats["calls"] for name, stats in (await client.info("commandstats")).items()}
