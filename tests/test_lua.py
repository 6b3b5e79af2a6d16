"""The hold scripts, one behaviour at a time, on fakeredis, on two versions of Redis and on a real cluster.

Called through `Holds`, as the application calls them, with a clock that stands still: both sides of every boundary.
"""

import itertools
import re
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.breaker import RedisAway
from app.domain import Counts, Room, SlotFacts
from app.holds import FRESH_SECONDS, SETTLED_SECONDS, Extended, Full, Gone, Holds, Taken, slot_keys, to_ms
from app.pipelines import Call, Client
from tests.redis_servers import client_fixture, redis_url
from tests.slots import HOUR_MS, ClockedHolds, altered, assert_adds_up, counts_of, holds, patience, some_facts, stored

__all__ = ["client_fixture", "holds", "patience", "redis_url"]

pytestmark = pytest.mark.anyio

TTL = 60_000
DAY_MS = 86_400_000
REPEATS = (2, 3, 11)


async def mirrored(holds: Holds, **counts: Any) -> SlotFacts:
    facts = some_facts()
    await holds.sync([counts_of(facts, **counts)])
    return facts


async def held(
    holds: Holds, facts: SlotFacts, quantity: int = 1, ttl_ms: int = TTL, hold_id: UUID | None = None
) -> UUID:
    hold_id = hold_id or uuid4()
    taken = await holds.take(facts, hold_id, quantity, ttl_ms)
    assert isinstance(taken, Taken), taken
    assert not taken.again
    return hold_id


async def room(holds: Holds, facts: SlotFacts) -> Room | None:
    found = (await holds.rooms([(facts.resource_id, facts.id)]))[facts.id]
    return found and found[0]


async def settle_word(holds: Holds, counts: Counts, hold_id: UUID, *, remember: bool = True) -> str:
    [word] = await holds.pipelines.run(holds.settle_call(counts, hold_id, remember=remember))
    return str(word)


async def sync_word(holds: Holds, counts: Counts, *, repair: bool = False) -> str:
    [word] = await holds.pipelines.run(holds.sync_call(counts, repair=repair))
    return str(word)


async def everything(holds: Holds, facts: SlotFacts) -> list[Any]:
    keys = slot_keys(facts.resource_id, facts.id)
    read = holds.client
    return [
        *await stored(read, facts),
        await read.zrange(keys["settled"], 0, -1, withscores=True),
        await read.zrange(keys["active"], 0, -1, withscores=True),
    ]


# -- hold -------------------------------------------------------------------------------------------------------------


async def test_a_hold_tells_when_it_ends_by_the_servers_clock(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    taken = await holds.take(facts, uuid4(), 2, TTL)
    assert taken == Taken(holds.now_ms, holds.now_ms + TTL, holds.now_ms, again=False)
    assert await room(holds, facts) == Room(3, 0, 2, open=True)


async def test_an_unknown_slot_is_missing_and_stays_unwritten(holds: ClockedHolds) -> None:
    facts = some_facts()
    assert await holds.take(facts, uuid4(), 1, TTL) == "missing"
    assert not await holds.client.exists(*slot_keys(facts.resource_id, facts.id).values())


@pytest.mark.parametrize(("quantities", "fits"), [([3], True), ([4], False), ([2, 1], True), ([2, 2], False)])
async def test_both_sides_of_the_capacity(holds: ClockedHolds, quantities: list[int], fits: bool) -> None:
    facts = await mirrored(holds, capacity=3)
    *before, last = quantities
    for quantity in before:
        await held(holds, facts, quantity)
    assert isinstance(await holds.take(facts, uuid4(), last, TTL), Taken if fits else Full)
    await assert_adds_up(holds.client, facts)


async def test_full_tells_who_has_the_places(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=5, booked=2)
    await held(holds, facts, 2, ttl_ms=TTL)
    holds.tick(10)
    await held(holds, facts, 1, ttl_ms=TTL - 20)
    refused = await holds.take(facts, uuid4(), 1, TTL)
    assert refused == Full(holds.now_ms, 0, 3, 2, holds.now_ms + TTL - 20, 5, unsure=True)


async def test_sold_out_without_holds_names_no_expiry(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=3, booked=3)
    assert await holds.take(facts, uuid4(), 1, TTL) == Full(holds.now_ms, 0, 0, 3, 0, 3, unsure=True)


async def test_a_refusal_writes_nothing(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    await held(holds, facts, 3)
    before = await everything(holds, facts)
    assert isinstance(await holds.take(facts, uuid4(), 1, TTL), Full)
    assert await everything(holds, facts) == before


async def test_capacity_taken_back_under_live_holds_leaves_less_than_nothing(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=3)
    await held(holds, facts, 3)
    await holds.sync([counts_of(facts, capacity=2, version=2)])
    refused = await holds.take(facts, uuid4(), 1, TTL)
    assert isinstance(refused, Full)
    assert refused.left == -1


@pytest.mark.parametrize("lapsed", [False, True])
async def test_both_sides_of_a_holds_expiry(holds: ClockedHolds, lapsed: bool) -> None:
    facts = await mirrored(holds, capacity=1)
    first = await held(holds, facts)
    holds.tick(TTL if lapsed else TTL - 1)
    await holds.sync([counts_of(facts, capacity=1)])  # a fresh look, or a refusal would ask for one
    second = await holds.take(facts, uuid4(), 1, TTL)
    assert isinstance(second, Taken if lapsed else Full)
    assert (str(first) in (await stored(holds.client, facts))[2]) is not lapsed
    await assert_adds_up(holds.client, facts)


async def test_lapsed_holds_are_dropped_also_by_a_refusal(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=20)
    for _ in range(15):
        await held(holds, facts)
    await held(holds, facts, 5, ttl_ms=2 * TTL)
    holds.tick(TTL)
    await holds.sync([counts_of(facts, capacity=20)])
    assert await holds.take(facts, uuid4(), 16, TTL) == Full(holds.now_ms, 15, 5, 0, holds.now_ms + TTL, 20)
    assert len((await stored(holds.client, facts))[1]) == 1
    await assert_adds_up(holds.client, facts)


@pytest.mark.parametrize("repeats", REPEATS)
async def test_repeating_a_hold_neither_doubles_nor_prolongs_it(holds: ClockedHolds, repeats: int) -> None:
    facts = await mirrored(holds, capacity=2)
    hold_id = uuid4()
    first = await holds.take(facts, hold_id, 2, TTL)
    assert isinstance(first, Taken)
    for _ in range(repeats - 1):
        holds.tick(100)
        assert await holds.take(facts, hold_id, 2, TTL) == Taken(
            holds.now_ms, first.expires_at_ms, first.since_ms, again=True
        )
    assert await room(holds, facts) == Room(2, 0, 2, open=True)


async def test_the_same_id_with_another_quantity_is_a_mismatch(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts, 2)
    before = await everything(holds, facts)
    assert await holds.take(facts, hold_id, 1, TTL) == "mismatch"
    assert await holds.take(facts, hold_id, 3, TTL) == "mismatch"
    assert await everything(holds, facts) == before


async def test_a_lapsed_hold_may_be_taken_anew_with_any_quantity(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts, 1)
    holds.tick(TTL)
    assert await holds.take(facts, hold_id, 3, TTL) == Taken(
        holds.now_ms, holds.now_ms + TTL, holds.now_ms, again=False
    )
    await assert_adds_up(holds.client, facts)


async def test_ones_own_hold_is_found_again_in_a_slot_that_has_closed_or_begun(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=1)
    hold_id = await held(holds, facts, ttl_ms=3 * HOUR_MS)
    await holds.sync([counts_of(facts, capacity=1, version=2, is_open=False)])
    holds.set_clock(to_ms(facts.starts_at))
    found = await holds.take(facts, hold_id, 1, TTL)
    assert isinstance(found, Taken)
    assert found.again


async def test_a_closed_slot_takes_nobody(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, is_open=False)
    before = await everything(holds, facts)
    assert await holds.take(facts, uuid4(), 1, TTL) == "closed"
    assert await everything(holds, facts) == before


async def test_a_slot_that_was_closed_a_while_ago_is_looked_up_again(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, is_open=False)
    holds.tick(FRESH_SECONDS * 1000)
    assert await holds.take(facts, uuid4(), 1, TTL) == "closed"
    holds.tick(1)
    assert await holds.take(facts, uuid4(), 1, TTL) == "stale"


async def test_bookings_that_only_a_sync_told_of_make_a_refusal_unsure(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=2)
    first = await held(holds, facts)
    await holds.settle(counts_of(facts, capacity=2, booked=1, version=2), first, remember=True)
    refused = await holds.take(facts, uuid4(), 2, TTL)
    assert isinstance(refused, Full)
    assert not refused.unsure  # the settle left a record of all there is
    await holds.sync([counts_of(facts, capacity=2, booked=2, version=3)])
    refused = await holds.take(facts, uuid4(), 1, TTL)
    assert isinstance(refused, Full)
    assert refused.unsure


@pytest.mark.parametrize("begun", [False, True])
async def test_both_sides_of_a_slots_start(holds: ClockedHolds, begun: bool) -> None:
    facts = await mirrored(holds)
    holds.set_clock(to_ms(facts.starts_at) - (0 if begun else 1))
    answer = await holds.take(facts, uuid4(), 1, TTL)
    assert answer == "past" if begun else isinstance(answer, Taken)


@pytest.mark.parametrize("old", [False, True])
async def test_both_sides_of_how_long_counts_may_say_full(holds: ClockedHolds, old: bool) -> None:
    facts = await mirrored(holds, booked=3)
    holds.tick(FRESH_SECONDS * 1000 + (1 if old else 0))
    answer = await holds.take(facts, uuid4(), 1, TTL)
    assert answer == "stale" if old else isinstance(answer, Full)


async def test_a_stale_full_is_full_again_when_the_same_counts_were_seen_again(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, booked=3)
    holds.tick(HOUR_MS)
    assert await holds.take(facts, uuid4(), 1, TTL) == "stale"
    await holds.sync([counts_of(facts, booked=3)])
    assert isinstance(await holds.take(facts, uuid4(), 1, TTL), Full)


async def test_room_is_believed_however_old_the_counts_are(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    holds.tick(HOUR_MS)
    await held(holds, facts, 3)


# -- extend -----------------------------------------------------------------------------------------------------------


async def test_an_extended_hold_ends_a_ttl_from_now(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    since = holds.now_ms
    hold_id = await held(holds, facts, 2)
    holds.tick(1000)
    extended = await holds.extend(facts, hold_id, TTL, HOUR_MS)
    assert extended == Extended(holds.now_ms, holds.now_ms + TTL, since, 2, limited=False)
    assert (await stored(holds.client, facts))[1] == {str(hold_id): holds.now_ms + TTL}


@pytest.mark.parametrize("longest", [0, HOUR_MS])
async def test_extending_never_shortens(holds: ClockedHolds, longest: int) -> None:
    facts = await mirrored(holds)
    since = holds.now_ms
    hold_id = await held(holds, facts)
    assert await holds.extend(facts, hold_id, 1, longest) == Extended(since, since + TTL, since, 1, limited=False)
    assert (await stored(holds.client, facts))[1] == {str(hold_id): since + TTL}


async def test_extending_stops_at_the_longest_life(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    since, longest = holds.now_ms, TTL + 500
    hold_id = await held(holds, facts)
    holds.tick(499)
    assert await holds.extend(facts, hold_id, TTL, longest) == Extended(
        holds.now_ms, since + TTL + 499, since, 1, limited=False
    )
    holds.tick(1)
    assert await holds.extend(facts, hold_id, TTL, longest) == Extended(
        holds.now_ms, since + longest, since, 1, limited=False
    )
    holds.tick(1)
    assert await holds.extend(facts, hold_id, TTL, longest) == Extended(
        holds.now_ms, since + longest, since, 1, limited=True
    )


async def test_a_cap_below_what_the_hold_has_takes_nothing_away(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    since = holds.now_ms
    hold_id = await held(holds, facts)
    assert await holds.extend(facts, hold_id, TTL, 1000) == Extended(since, since + TTL, since, 1, limited=True)


async def test_a_commit_extends_past_the_longest_life(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts)
    holds.tick(TTL - 1)
    extended = await holds.extend(facts, hold_id, 2 * TTL, 0)
    assert isinstance(extended, Extended)
    assert extended.expires_at_ms == holds.now_ms + 2 * TTL


@pytest.mark.parametrize("lapsed", [False, True])
async def test_both_sides_of_the_last_moment_to_extend(holds: ClockedHolds, lapsed: bool) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts)
    holds.tick(TTL - (0 if lapsed else 1))
    extended = await holds.extend(facts, hold_id, TTL, 0)
    assert extended == Gone(holds.now_ms, "gone") if lapsed else isinstance(extended, Extended)


@pytest.mark.parametrize("repeats", REPEATS)
async def test_repeating_an_extension_changes_nothing(holds: ClockedHolds, repeats: int) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts)
    holds.tick(5)
    answers = [await holds.extend(facts, hold_id, TTL, HOUR_MS) for _ in range(repeats)]
    assert answers == answers[:1] * repeats
    await assert_adds_up(holds.client, facts)


async def test_extend_tells_booked_released_and_unknown_apart(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    booked, released = await held(holds, facts), await held(holds, facts)
    await holds.settle(counts_of(facts, booked=1, version=2), booked, remember=True)
    await holds.release(facts, released, has_token=True)
    assert await holds.extend(facts, booked, TTL, 0) == Gone(holds.now_ms, "settled")
    assert await holds.extend(facts, released, TTL, 0) == Gone(holds.now_ms, "released")
    assert await holds.extend(facts, uuid4(), TTL, 0) == Gone(holds.now_ms, "gone")


async def test_extending_does_not_need_the_mirror(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts)
    await holds.client.delete(slot_keys(facts.resource_id, facts.id)["mirror"])
    assert isinstance(await holds.extend(facts, hold_id, TTL, 0), Extended)


# -- release ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_token", [False, True])
@pytest.mark.parametrize("repeats", REPEATS)
async def test_a_release_gives_back_once(holds: ClockedHolds, repeats: int, has_token: bool) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts, 2)
    await held(holds, facts, 1)
    answers = [await holds.release(facts, hold_id, has_token=has_token) for _ in range(repeats)]
    assert answers == [True] + [False] * (repeats - 1)
    assert await room(holds, facts) == Room(3, 0, 1, open=True)
    await assert_adds_up(holds.client, facts)


async def test_releasing_what_was_never_held_frees_nothing(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    await held(holds, facts, 3)
    before = await everything(holds, facts)
    assert await holds.release(facts, uuid4(), has_token=True) is False
    assert await everything(holds, facts) == before


async def test_releasing_a_lapsed_hold_gives_it_back_once(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts, 3)
    holds.tick(TTL + 1)
    await holds.release(facts, hold_id, has_token=False)
    await held(holds, facts, 3)
    assert await holds.release(facts, hold_id, has_token=False) is False
    assert await room(holds, facts) == Room(3, 0, 3, open=True)


async def test_releasing_without_the_mirror_leaves_none_behind(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts, 3)
    await holds.client.delete(slot_keys(facts.resource_id, facts.id)["mirror"])
    assert await holds.release(facts, hold_id, has_token=False) is True
    assert await stored(holds.client, facts) == ({}, {}, {})


async def test_a_release_is_remembered_only_when_somebody_has_a_token(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    inner, customers = await held(holds, facts), await held(holds, facts)
    await holds.release(facts, inner, has_token=False)
    await holds.release(facts, customers, has_token=True)
    assert await holds.extend(facts, inner, TTL, 0) == Gone(holds.now_ms, "gone")
    assert await holds.extend(facts, customers, TTL, 0) == Gone(holds.now_ms, "released")


async def test_a_released_hold_may_be_taken_again_and_is_then_not_released(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts)
    await holds.release(facts, hold_id, has_token=True)
    await held(holds, facts, hold_id=hold_id)
    assert isinstance(await holds.extend(facts, hold_id, TTL, 0), Extended)
    holds.tick(TTL)
    assert await holds.extend(facts, hold_id, TTL, 0) == Gone(holds.now_ms, "gone")


# -- settle -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", REPEATS)
async def test_settling_turns_the_hold_into_a_booking(holds: ClockedHolds, repeats: int) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts, 2)
    await held(holds, facts, 1)
    words = [await settle_word(holds, counts_of(facts, booked=2, version=2), hold_id) for _ in range(repeats)]
    assert words == ["settled"] + ["older"] * (repeats - 1)
    assert await room(holds, facts) == Room(3, 2, 1, open=True)
    await assert_adds_up(holds.client, facts)


async def test_a_retry_of_the_booking_that_took_the_last_place_is_not_told_full(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=1)
    hold_id = await held(holds, facts)
    await holds.settle(counts_of(facts, capacity=1, booked=1, version=2), hold_id, remember=True)
    assert await holds.take(facts, hold_id, 1, TTL) == "settled"
    assert isinstance(await holds.take(facts, uuid4(), 1, TTL), Full)


async def test_a_booking_that_nobody_will_repeat_leaves_no_record(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=1)
    hold_id = await held(holds, facts)
    await holds.settle(counts_of(facts, capacity=1, booked=1, version=2), hold_id, remember=False)
    assert isinstance(await holds.take(facts, hold_id, 1, TTL), Full)
    assert not await holds.client.exists(slot_keys(facts.resource_id, facts.id)["settled"])


async def test_records_of_bookings_are_dropped_when_their_time_is_over(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    first, second = uuid4(), uuid4()
    await holds.settle(counts_of(facts, booked=1, version=2), first, remember=True)
    holds.tick(SETTLED_SECONDS * 1000)
    await holds.settle(counts_of(facts, booked=2, version=3), second, remember=True)
    assert await holds.client.zrange(slot_keys(facts.resource_id, facts.id)["settled"], 0, -1) == [str(second)]


async def test_an_older_settle_ends_its_hold_and_leaves_the_counts(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    late, prompt = await held(holds, facts), await held(holds, facts)
    assert await settle_word(holds, counts_of(facts, booked=2, version=3), prompt) == "settled"
    assert await settle_word(holds, counts_of(facts, booked=1, version=2), late) == "older"
    assert await room(holds, facts) == Room(3, 2, 0, open=True)
    assert await holds.extend(facts, late, TTL, 0) == Gone(holds.now_ms, "settled")
    await assert_adds_up(holds.client, facts)


async def test_settling_a_lapsed_hold_applies_the_counts_all_the_same(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=1)
    hold_id = await held(holds, facts)
    holds.tick(TTL)
    other = await held(holds, facts)
    assert await settle_word(holds, counts_of(facts, capacity=1, booked=1, version=2), hold_id) == "settled"
    # Whether the other hold is the one that was booked, nobody can tell for a moment: Postgres would.
    assert await room(holds, facts) == Room(1, 1, 0, open=True)
    holds.tick(2000)
    assert await room(holds, facts) == Room(1, 1, 1, open=True)
    assert await holds.release(facts, other, has_token=False)
    await assert_adds_up(holds.client, facts)


async def test_settling_in_an_unknown_slot_leaves_it_to_sync_to_count(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    booked = await held(holds, facts, 2)
    await held(holds, facts, 1)
    await holds.client.delete(slot_keys(facts.resource_id, facts.id)["mirror"])
    counts = counts_of(facts, booked=2, version=2)
    assert await settle_word(holds, counts, booked) == "older"
    assert await room(holds, facts) is None
    assert await holds.take(facts, booked, 2, TTL) == "missing"
    await holds.sync([counts])
    assert await room(holds, facts) == Room(3, 2, 1, open=True)
    assert await holds.take(facts, booked, 2, TTL) == "settled"


# -- sync -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
async def test_counts_converge_on_the_newest_in_any_order(holds: ClockedHolds, order: tuple[int, ...]) -> None:
    facts = some_facts()
    newest = 0
    for version in order:
        word = await sync_word(holds, counts_of(facts, booked=version, version=version, is_open=version == 3))
        assert word == ("synced" if version > newest else "older")
        newest = max(newest, version)
    assert await room(holds, facts) == Room(3, 3, 0, open=True)


@pytest.mark.parametrize("repeats", REPEATS)
async def test_repeating_a_sync_leaves_the_holds_alone(holds: ClockedHolds, repeats: int) -> None:
    facts = await mirrored(holds)
    await held(holds, facts, 2)
    before = await everything(holds, facts)
    assert [await sync_word(holds, counts_of(facts)) for _ in range(repeats)] == ["synced"] * repeats
    assert await everything(holds, facts) == before


async def test_older_counts_do_not_count_as_seen(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, booked=3, version=2)
    holds.tick(HOUR_MS)
    assert await sync_word(holds, counts_of(facts, booked=0, version=1)) == "older"
    assert await holds.take(facts, uuid4(), 1, TTL) == "stale"


async def test_a_repair_takes_lower_versions_too(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, booked=3, version=9)
    restored = counts_of(facts, booked=1, version=4)
    assert await sync_word(holds, restored) == "older"
    assert await sync_word(holds, restored, repair=True) == "synced"
    assert await room(holds, facts) == Room(3, 1, 0, open=True)


async def test_a_repair_counts_the_holds_anew(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    await held(holds, facts, 1)
    lapsing = await held(holds, facts, 1, ttl_ms=10)
    await holds.client.hset(slot_keys(facts.resource_id, facts.id)["mirror"], "held", 3)
    holds.tick(10)
    await holds.sync([counts_of(facts)], repair=True)
    assert await room(holds, facts) == Room(3, 0, 1, open=True)
    assert str(lapsing) not in (await stored(holds.client, facts))[2]
    await assert_adds_up(holds.client, facts)


@pytest.mark.parametrize("lapsed", [False, True])
async def test_holds_that_outlived_their_mirror_are_counted_again(holds: ClockedHolds, lapsed: bool) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts, 2)
    await holds.client.delete(slot_keys(facts.resource_id, facts.id)["mirror"])
    assert await holds.take(facts, hold_id, 2, TTL) == "missing"
    holds.tick(TTL if lapsed else TTL - 1)
    await holds.sync([counts_of(facts)])
    assert await room(holds, facts) == Room(3, 0, 0 if lapsed else 2, open=True)
    assert isinstance(await holds.take(facts, uuid4(), 2, TTL), Taken if lapsed else Full)
    await assert_adds_up(holds.client, facts)


# -- room, inspect, active --------------------------------------------------------------------------------------------


async def test_rooms_of_many_resources_come_back_under_their_slots(holds: ClockedHolds) -> None:
    resources = [uuid4() for _ in range(4)]  # on a cluster: on several shards
    slots = [some_facts(resource_id=resources[number % 4]) for number in range(12)]
    await holds.sync(
        [counts_of(facts, capacity=20, booked=number, version=number) for number, facts in enumerate(slots)]
    )
    await held(holds, slots[5], 3)
    unknown = some_facts(resource_id=resources[0])
    rooms = await holds.rooms([(facts.resource_id, facts.id) for facts in [*slots, unknown]])
    expected = {facts.id: (Room(20, n, 3 if n == 5 else 0, open=True), n) for n, facts in enumerate(slots)}
    assert rooms == {**expected, unknown.id: None}
    assert await holds.rooms([]) == {}


async def test_room_does_not_count_lapsed_holds_and_writes_nothing(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    await held(holds, facts, 1)
    await held(holds, facts, 2, ttl_ms=10)
    holds.tick(9)
    assert await room(holds, facts) == Room(3, 0, 3, open=True)
    holds.tick(1)
    before = await everything(holds, facts)
    assert await room(holds, facts) == Room(3, 0, 1, open=True)
    assert await everything(holds, facts) == before


async def test_room_of_a_closed_slot_says_so(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, is_open=False)
    assert await room(holds, facts) == Room(3, 0, 0, open=False)


async def test_inspect_lists_live_holds_in_the_order_of_their_end(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=9, booked=1, version=7)
    since = holds.now_ms
    later = await held(holds, facts, 2, ttl_ms=300)
    await held(holds, facts, 3, ttl_ms=100)
    sooner = await held(holds, facts, 1, ttl_ms=101)
    holds.tick(100)
    before = await everything(holds, facts)
    [seen] = await holds.inspect([(facts.resource_id, facts.id)])
    assert [(h.id, h.quantity, to_ms(h.since) - since, to_ms(h.expires_at) - since) for h in seen.holds] == [
        (sooner, 1, 0, 101),
        (later, 2, 0, 300),
    ]
    assert (seen.room, seen.version) == (Room(9, 1, 3, open=True), 7)  # the lapsed one counts no more
    assert await everything(holds, facts) == before


async def test_inspect_lists_at_most_what_was_asked_for(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=9)
    ids = [await held(holds, facts, ttl_ms=TTL + number) for number in range(4)]
    [seen] = await holds.inspect([(facts.resource_id, facts.id)], most=3)
    assert [hold.id for hold in seen.holds] == ids[:3]


async def test_inspect_shows_holds_of_a_slot_whose_counts_are_unknown(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    hold_id = await held(holds, facts)
    await holds.client.delete(slot_keys(facts.resource_id, facts.id)["mirror"])
    [seen, nothing] = await holds.inspect([(facts.resource_id, facts.id), (uuid4(), uuid4())])
    assert (seen.room, seen.version, [hold.id for hold in seen.holds]) == (None, -1, [hold_id])
    assert (nothing.room, nothing.version, nothing.holds) == (None, -1, [])


async def test_active_slots_are_those_that_may_have_live_holds(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    sibling = some_facts(resource_id=facts.resource_id)
    await holds.sync([counts_of(sibling)])
    assert await holds.active_slots([facts.resource_id]) == []
    await held(holds, facts)
    await held(holds, sibling)
    found = await holds.active_slots([facts.resource_id, uuid4()])
    assert sorted(found) == sorted([(facts.resource_id, facts.id), (facts.resource_id, sibling.id)])


async def test_the_active_index_has_the_latest_expiry_and_forgets_old_ones(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    active = slot_keys(facts.resource_id, facts.id)["active"]
    start = holds.now_ms
    hold_id = await held(holds, facts, ttl_ms=500)
    await held(holds, facts, ttl_ms=400)
    assert await holds.client.zscore(active, str(facts.id)) == start + 500
    await holds.extend(facts, hold_id, 600, 0)
    assert await holds.client.zscore(active, str(facts.id)) == start + 600
    await holds.client.zadd(active, {str(facts.id): start - 120_000})
    assert await holds.active_slots([facts.resource_id]) == []
    assert not await holds.client.exists(active)


async def test_a_keyed_hold_is_bound_to_what_was_asked(holds: ClockedHolds) -> None:
    hold_id = uuid4()
    assert await holds.claim_key(hold_id, "two places") is True
    assert await holds.claim_key(hold_id, "two places") is True
    assert await holds.claim_key(hold_id, "three places") is False
    assert await holds.claim_key(hold_id, "two places") is True
    assert 0 < await holds.client.ttl(f"hf:{{{hold_id}}}:asked") <= SETTLED_SECONDS


# -- memory -----------------------------------------------------------------------------------------------------------


async def test_every_key_of_a_slot_is_forgotten_in_the_end(holds: ClockedHolds) -> None:
    facts = await mirrored(holds, capacity=9)
    last = to_ms(facts.ends_at) + DAY_MS - holds.now_ms
    keys = slot_keys(facts.resource_id, facts.id)
    for _ in range(2):  # the second time, the keys of the holds are made anew
        ids = [await held(holds, facts) for _ in range(3)]
        for name in ("mirror", "holds", "parties", "active"):
            assert DAY_MS < await holds.client.pttl(keys[name]) <= last, name
        await holds.settle(counts_of(facts, capacity=9, booked=1), ids[0], remember=True)
        await holds.release(facts, ids[1], has_token=True)
        assert 0 < await holds.client.pttl(keys["settled"]) <= DAY_MS
        await holds.release(facts, ids[2], has_token=False)


async def test_a_release_alone_is_forgotten_too(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    await holds.release(facts, await held(holds, facts), has_token=True)
    assert 0 < await holds.client.pttl(slot_keys(facts.resource_id, facts.id)["settled"]) <= DAY_MS


async def test_holding_and_releasing_for_ever_does_not_fill_the_memory(holds: ClockedHolds) -> None:
    facts = await mirrored(holds)
    for _ in range(20):
        hold_id = await held(holds, facts)
        await holds.release(facts, hold_id, has_token=True)
        holds.tick(TTL // 4)
    settled = slot_keys(facts.resource_id, facts.id)["settled"]
    assert await holds.client.zcard(settled) <= 5  # those whose token has not run out


async def test_the_active_index_does_not_grow_with_the_slots_of_the_past(holds: ClockedHolds) -> None:
    resource_id = uuid4()
    for _ in range(10):
        facts = some_facts(resource_id=resource_id)
        await holds.sync([counts_of(facts)])
        await held(holds, facts)
        holds.tick(TTL)
    assert await holds.client.zcard(f"hf:{{{resource_id}}}:active") == 1


# -- the server's own clock, and lost scripts -------------------------------------------------------------------------


async def test_a_life_by_the_servers_own_clock(client: Client) -> None:
    """The other tests replace TIME: here it is the server's, and time passes by moving what is stored."""
    holds = Holds(client)
    facts = await mirrored(holds, capacity=1)
    hold_id = uuid4()
    taken = await holds.take(facts, hold_id, 1, TTL)
    assert isinstance(taken, Taken)
    assert taken.expires_at_ms == taken.now_ms + TTL
    assert abs(taken.now_ms - to_ms(facts.starts_at) + 2 * HOUR_MS) < HOUR_MS
    extended = await holds.extend(facts, hold_id, 2 * TTL, 0)
    assert isinstance(extended, Extended)
    assert extended.expires_at_ms >= taken.expires_at_ms + TTL
    assert isinstance(await holds.take(facts, uuid4(), 1, TTL), Full)

    await client.zadd(slot_keys(facts.resource_id, facts.id)["holds"], {str(hold_id): taken.now_ms})
    assert await room(holds, facts) == Room(1, 0, 0, open=True)
    assert (await holds.inspect([(facts.resource_id, facts.id)]))[0].holds == []
    assert isinstance(await holds.extend(facts, hold_id, TTL, 0), Gone)
    other = await held(holds, facts)
    await holds.settle(counts_of(facts, capacity=1, booked=1, version=2), other, remember=True)
    assert await holds.take(facts, other, 1, TTL) == "settled"
    await assert_adds_up(client, facts)


async def test_a_server_that_lost_the_scripts_is_given_them_again(client: Client) -> None:
    holds = Holds(client)
    slots = [some_facts() for _ in range(5)]
    await client.script_flush()
    await holds.sync([counts_of(facts) for facts in slots])  # a pipeline, on a cluster over several shards
    for facts in slots:
        await client.script_flush()
        hold_id = await held(holds, facts)
        await client.script_flush()
        assert isinstance(await holds.extend(facts, hold_id, TTL, 0), Extended)
        await client.script_flush()
        await holds.settle(counts_of(facts, booked=1, version=2), hold_id, remember=True)
        await client.script_flush()
        assert await holds.release(facts, hold_id, has_token=True) is False
    await client.script_flush()
    rooms = await holds.rooms([(facts.resource_id, facts.id) for facts in slots])
    assert [found and found[0] for found in rooms.values()] == [Room(3, 1, 0, open=True)] * 5
    await client.script_flush()
    assert len(await holds.inspect([(facts.resource_id, facts.id) for facts in slots])) == 5
    assert holds.breaker.failures == 0


# -- negative controls ------------------------------------------------------------------------------------------------


async def test_control_a_hold_script_that_drops_nothing_leaks_the_places(client: Client) -> None:
    holds = ClockedHolds(client, altered("hold", "redis.call('ZRANGEBYSCORE', holds, '-inf', now)", "{}"))
    facts = await mirrored(holds, capacity=1)
    await held(holds, facts)
    holds.tick(TTL)
    await holds.sync([counts_of(facts, capacity=1)])
    assert isinstance(await holds.take(facts, uuid4(), 1, TTL), Full)


async def test_control_a_key_of_another_tag_is_refused_by_the_cluster(
    request: pytest.FixtureRequest, client: Client
) -> None:
    """On one server, a key of a foreign slot passes unnoticed: only the cluster proves that they share a shard."""
    holds = Holds(client)
    mirror, other = slot_keys(uuid4(), uuid4())["mirror"], slot_keys(uuid4(), uuid4())["holds"]
    call = Call("room", (mirror, other, other), ())
    if request.node.callspec.params["redis_url"] == "cluster":
        with pytest.raises(RedisAway) as caught:
            await holds.pipelines.run(call)
        assert re.search("same (key )?slot", str(caught.value.__cause__))  # the server's words, or its client's
    else:
        assert await holds.pipelines.run(call) == ["room", []]
