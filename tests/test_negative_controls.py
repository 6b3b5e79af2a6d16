"""The races again, with one protection after the other taken away: a test that cannot fail proves nothing.

Layer 1 off: Redis is not there, or does not know what it is about. Layer 2 off: `commit_bookings` without its row lock,
and with a pause between deciding and writing, so that all rivals decide by the same count. Layer 3 off: the constraints
dropped. Each choice in a scratch database, behind a service of its own.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import httpx
import psycopg
import pytest

from tests.redis_servers import running_redis
from tests.service import (
    Postgres,
    Service,
    all_at_once,
    assert_slot_holds,
    booking_body,
    make_slot,
    make_slots,
    race,
    serving,
    sold_places,
)

pytestmark = pytest.mark.anyio

RIVALS = 10
LOCK = " ORDER BY id FOR NO KEY UPDATE;\n    IF EXISTS (SELECT FROM abandoned_attempts"
NO_LOCK = " ORDER BY id;\n    IF EXISTS (SELECT FROM abandoned_attempts"
WRITE = "    IF 'book' = ANY (words) THEN\n"
#: Between deciding and writing, long enough for every rival to have read the same count.
PAUSE_SECONDS = 0.5
PAUSE_AND_WRITE = WRITE + f"        PERFORM pg_sleep({PAUSE_SECONDS});\n"


def without_row_lock(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        [[source]] = connection.execute("SELECT pg_get_functiondef('commit_bookings'::regproc)")
        assert source.count(LOCK) == source.count(WRITE) == 1, "the function changed: change this test with it"
        connection.execute(source.replace(LOCK, NO_LOCK).replace(WRITE, PAUSE_AND_WRITE).encode())


def without_constraints(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE slots DROP CONSTRAINT slots_available_count_range")
        connection.execute("DROP INDEX bookings_one_live_on_exclusive_slot")
        connection.execute("ALTER TABLE occupied DROP CONSTRAINT occupied_one_thing_at_a_time")


Layers = Callable[..., Service]


@pytest.fixture(scope="module")
def layers(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layers]:
    """Serve with what is asked for; without a Redis, layer 1 is off. What was served before is served still."""
    nobody = f"unix://{tmp_path_factory.mktemp('nobody')}/redis.sock"
    with ExitStack() as running:

        @cache
        def serve(*, lock: bool, constraints: bool, with_redis: bool = False) -> Service:
            database_url, redis = postgres.fresh(), None
            if not lock:
                without_row_lock(database_url)
            if not constraints:
                without_constraints(database_url)
            if with_redis:
                redis = running.enter_context(running_redis("--maxmemory-policy", "noeviction"))
            return running.enter_context(serving(database_url, redis.url if redis else nobody, redis=redis))

        yield serve


async def race_in_two_waves(client: httpx.AsyncClient, slot_id: str) -> list[httpx.Response]:
    """Have half of the rivals come while the others' commit pauses.

    What one process is asked at one instant it commits as one list, and those of a list do not race each other.
    """
    first = asyncio.create_task(race(client, slot_id, [1] * (RIVALS // 2)))
    await asyncio.sleep(PAUSE_SECONDS / 2)
    return [*await race(client, slot_id, [1] * (RIVALS - RIVALS // 2)), *await first]


@pytest.mark.parametrize("capacity", [1, 5])
@pytest.mark.parametrize(
    ("lock", "constraints"), [(True, True), (True, False), (False, True)], ids=["2+3", "2 alone", "3 alone"]
)
async def test_each_layer_alone_sells_exactly_the_capacity(
    layers: Layers, capacity: int, lock: bool, constraints: bool
):
    service = layers(lock=lock, constraints=constraints)
    before = service.metric("holdfast_backstop_conflicts_total")
    async with service.client() as client:
        slot_id = await make_slot(service, client, capacity)
        answers = await race_in_two_waves(client, slot_id)
        assert sum(answer.status_code == 201 for answer in answers) == capacity
        assert_slot_holds(service, slot_id, capacity, sold_places(answers))
    # Only without the lock do the constraints have anything to do; then they did it, and it was told as a 409.
    refused_by_rule = service.metric("holdfast_backstop_conflicts_total") - before
    assert (refused_by_rule > 0) == (not lock)


@pytest.mark.parametrize("capacity", [1, 5])
async def test_without_any_layer_the_same_race_oversells(layers: Layers, capacity: int):
    service = layers(lock=False, constraints=False)
    async with service.client() as client:
        slot_id = await make_slot(service, client, capacity)
        answers = await race_in_two_waves(client, slot_id)
        sold = sum(answer.status_code == 201 for answer in answers)
    [(booked,)] = service.query("SELECT count(*) FROM bookings WHERE slot_id = %s", slot_id)
    assert booked == sold
    assert sold > capacity


# -- one person, one thing at a time ----------------------------------------------------------------------------------


async def overlapping_winners(service: Service, kind: str = "person") -> int:
    """Race for ten slots of one resource that all overlap; returns how many were sold."""
    async with service.client() as client:
        slots = await make_slots(service, client, *[1] * RIVALS, kind=kind, hours_apart=0.05)
        requests = [client.build_request("POST", "/v1/bookings", json=booking_body(slot_id)) for slot_id in slots]
        answers = await all_at_once(client, requests)
        assert {answer.status_code for answer in answers} <= {201, 409}, [answer.text for answer in answers]
        return sum(answer.status_code == 201 for answer in answers)


async def test_layer_2_tells_who_comes_later_that_the_person_is_busy(layers: Layers):
    """Layers 1 and 3 off. Rivals at one instant need layer 3: the slots are different rows, and no lock is shared."""
    service = layers(lock=True, constraints=False)
    async with service.client() as client:
        slots = await make_slots(service, client, *[1] * RIVALS, kind="person", hours_apart=0.05)
        answers = [await client.post("/v1/bookings", json=booking_body(slot_id)) for slot_id in slots]
        assert [answer.status_code for answer in answers] == [201] + [409] * (RIVALS - 1)
        assert {answer.json()["reason"] for answer in answers[1:]} == {"booked"}


async def test_a_person_does_one_thing_at_a_time_by_the_exclusion_constraint(layers: Layers):
    """Layers 1 and 2 off: rivals decide while nobody has written."""
    assert await overlapping_winners(layers(lock=False, constraints=True)) == 1


async def test_a_person_does_one_thing_at_a_time_by_the_hold_script(layers: Layers):
    """Layers 2 and 3 off."""
    service = layers(lock=False, constraints=False, with_redis=True)
    before = service.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")
    assert await overlapping_winners(service) == 1
    refused = service.metric("holdfast_outcomes_total", operation="book", outcome="refused_early") - before
    assert refused == RIVALS - 1


async def test_without_any_layer_a_person_is_in_two_places(layers: Layers):
    assert await overlapping_winners(layers(lock=False, constraints=False)) > 1


async def test_a_redis_that_takes_the_person_for_an_event_keeps_nobody_away(layers: Layers):
    """What the test of layer 1 alone shows is the work of the hold script, not of a Redis that is there."""
    service = layers(lock=False, constraints=False, with_redis=True)
    assert await overlapping_winners(service, kind="event") == RIVALS


# -- nobody with psql -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_slot(postgres: Postgres) -> Iterator[psycopg.Connection]:
    """A database to try and break by hand: sold-out slots of capacity 1 and 2, and a person who is booked already."""
    with psycopg.connect(postgres.fresh(), autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO venues (id, slug, name, timezone) VALUES (gen_random_uuid(), 'v', 'V', 'UTC');
            INSERT INTO resources (id, venue_id, name, kind) SELECT gen_random_uuid(), id, 'R', 'event' FROM venues;
            INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity)
                SELECT gen_random_uuid(), venue_id, id, no, one_at_a_time, now() + interval '1 day',
                    now() + interval '25 hours', n FROM resources, generate_series(1, 2) AS n;
            INSERT INTO resources (id, venue_id, name, kind) SELECT gen_random_uuid(), id, 'P', 'person' FROM venues;
            INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity)
                SELECT gen_random_uuid(), venue_id, id, no, one_at_a_time, now() + interval '1 day',
                    now() + interval '25 hours', n FROM resources, generate_series(3, 4) AS n WHERE kind = 'person';
            INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,
                    available_after, confirmed_at)
                SELECT gen_random_uuid(), venue_id, id, exclusive, capacity, 'confirmed', 'A', 'a@b.c', 0, now()
                FROM slots WHERE capacity < 4
            """
        )
        yield connection


@pytest.mark.parametrize(
    ("by_hand", "rule"),
    [
        (
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,"
            " available_after, confirmed_at) SELECT gen_random_uuid(), venue_id, id, exclusive, 1, 'confirmed', 'B',"
            " 'b@b.c', 0, now() FROM slots WHERE capacity = 2",
            "slots_available_count_range",
        ),
        (
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,"
            " available_after, confirmed_at) SELECT gen_random_uuid(), venue_id, id, exclusive, 1, 'confirmed', 'B',"
            " 'b@b.c', 0, now() FROM slots WHERE capacity = 1",
            "bookings_one_live_on_exclusive_slot",
        ),
        (
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,"
            " available_after, confirmed_at) SELECT gen_random_uuid(), venue_id, id, NOT exclusive, 1, 'confirmed',"
            " 'B', 'b@b.c', 0, now() FROM slots WHERE capacity = 1",
            "bookings_one_live_on_exclusive_slot|bookings_of_a_slot|slots_available_count_range",
        ),
        ("UPDATE slots SET available_count = available_count + 1", "slots_available_count_is_derived"),
        ("UPDATE slots SET capacity = capacity - 1 WHERE capacity = 2", "slots_available_count_range"),
        ("UPDATE slots SET starts_at = starts_at - interval '1 hour'", "slots_never_move"),
        ("UPDATE bookings SET quantity = quantity + 1", "slots_available_count_range"),
        ("UPDATE bookings SET status = 'held', expires_at = now()", "bookings_transitions_allowed"),
        ("UPDATE bookings SET status = 'expired'", "bookings_transitions_allowed"),
        ("UPDATE bookings SET confirmed_at = NULL", "bookings_confirmed_at_when_confirmed"),
        (
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,"
            " available_after, confirmed_at) SELECT gen_random_uuid(), venue_id, id, exclusive, 1, 'confirmed', 'B',"
            " 'b@b.c', 0, now() FROM slots WHERE capacity = 4",
            "occupied_one_thing_at_a_time",
        ),
        ("DELETE FROM occupied", "occupied_kept_by_bookings"),
        ("UPDATE occupied SET during = 'empty'", "occupied_kept_by_bookings"),
        (
            "INSERT INTO occupied SELECT id, resource_no, 'empty' FROM slots WHERE capacity = 4",
            "occupied_kept_by_bookings",
        ),
        ("TRUNCATE occupied", "occupied_kept_by_bookings"),
        ("DELETE FROM events", "events_append_only"),
        ("TRUNCATE bookings CASCADE", "bookings_never_truncated"),
    ],
)
def test_nobody_with_psql_can_store_an_oversold_or_impossible_state(
    full_slot: psycopg.Connection, by_hand: str, rule: str
):
    with pytest.raises(psycopg.Error) as refused:
        full_slot.execute(by_hand)
    assert refused.value.diag.constraint_name in rule.split("|")


def test_a_slot_begins_with_its_capacity_whatever_is_inserted(full_slot: psycopg.Connection):
    with full_slot.transaction(force_rollback=True):
        [[count]] = full_slot.execute(
            "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity,"
            " available_count) SELECT gen_random_uuid(), venue_id, id, no, one_at_a_time, now(),"
            " now() + interval '1 hour', 3, 1000 FROM resources WHERE kind = 'event' RETURNING available_count"
        )
        assert count == 3
