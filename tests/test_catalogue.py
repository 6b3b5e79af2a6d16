"""The lists and the log, straight on Postgres: nothing skipped, nothing slow, and every refusal translated."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from app import catalogue as catalogue_module
from app.catalogue import Catalogue, NewResource, NewSlot, NewVenue, SlotFilter
from app.database import READERS, Database, Keyed
from app.domain import Slot
from app.errors import (
    Busy,
    Conflict,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InvalidRequest,
    Overloaded,
    ResourceNotFound,
)
from app.postgres import LOCK_TIMEOUT_MS
from app.records import BookingFilter, EventFilter, follow_events, list_bookings, list_events
from tests.service import Postgres

pytestmark = pytest.mark.anyio
START = datetime(2030, 1, 1, tzinfo=UTC)
EVERYTHING = EventFilter()


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh()


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Catalogue]:
    database = Database(url)
    try:
        yield Catalogue(database)
    finally:
        await database.close()


async def a_resource(catalogue: Catalogue, slug: str = "venue", kind: str = "event") -> UUID:
    new = NewVenue(slug=slug, name="V", timezone="UTC", payment="on_site", hold_ttl_seconds=None, hold_max_seconds=1800)
    await catalogue.create_venue(new, None, None, msgspec.json.encode)
    answer = await catalogue.create_resource(
        NewResource(venue=slug, name="R", kind=kind), None, None, msgspec.json.encode
    )
    return UUID(msgspec.json.decode(answer.body)["id"])


def a_slot(resource_id: UUID, hours: float = 0, capacity: int = 2, venue: str = "venue") -> NewSlot:
    begin = START + timedelta(hours=hours)
    return NewSlot(
        venue=venue,
        resource_id=resource_id,
        starts_at=begin,
        ends_at=begin + timedelta(hours=1),
        capacity=capacity,
        price_amount=None,
        price_currency=None,
    )


async def create(catalogue: Catalogue, *new: NewSlot) -> list[Slot]:
    made: list[Slot] = []
    for start in range(0, len(new), 200):  # a thousand may take longer than is waited for a reply on a busy machine
        answer = await catalogue.create_slots(new[start : start + 200], None, None, msgspec.json.encode)
        made += msgspec.json.decode(answer.body, type=list[Slot])
    return made


# -- following the log ------------------------------------------------------------------------------------------------


def tell(connection: psycopg.Connection[Any], word: str) -> int:
    row = connection.execute(
        "INSERT INTO events (type, actor) VALUES (%s, 'system') RETURNING seq", (f"test.{word}",)
    ).fetchone()
    assert row is not None
    return int(row[0])


async def fed(catalogue: Catalogue, after: int, count: int) -> list[int]:
    """Follow the log until so many events came: transactions of other tests may hold the horizon for a moment."""
    found: list[int] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += [
            event.seq
            for event in await follow_events(catalogue.database, EVERYTHING, found[-1] if found else after, 1000)
        ]
    return found


async def test_an_event_that_is_committed_late_is_never_skipped(url: str) -> None:
    async with opened(url) as catalogue:
        with psycopg.connect(url) as slow, psycopg.connect(url) as fast:
            early = tell(slow, "early")  # has the smaller number, and does not commit yet
            late = tell(fast, "late")
            fast.commit()

            # If the larger number were shown now, a follower would go on behind it, and never see the smaller one.
            assert [event.seq for event in await list_events(catalogue.database, EVERYTHING, None, 10)] == [late]
            assert await follow_events(catalogue.database, EVERYTHING, 0, 10) == []
            slow.commit()
        assert await fed(catalogue, 0, 2) == [early, late]
        assert [event.seq for event in await follow_events(catalogue.database, EVERYTHING, early, 10)] == [late]
        assert await follow_events(catalogue.database, EVERYTHING, late, 10) == []


async def test_the_order_is_that_of_the_transactions_not_of_the_numbers(url: str) -> None:
    async with opened(url) as catalogue:
        with psycopg.connect(url) as older, psycopg.connect(url) as younger:
            older.execute("SELECT pg_current_xact_id()")  # it begins first, but writes last
            small = tell(younger, "small")
            younger.commit()
            large = tell(older, "large")
            older.commit()
        assert small < large
        assert await fed(catalogue, 0, 2) == [large, small]
        assert [event.seq for event in await follow_events(catalogue.database, EVERYTHING, large, 10)] == [small]


@pytest.mark.parametrize("seed", range(5))
async def test_a_follower_sees_every_event_exactly_once(url: str, seed: int) -> None:
    chance = random.Random(seed)
    written: list[int] = []
    seen: list[int] = []
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(psycopg.connect(url)) for _ in range(4)]
        async with opened(url) as catalogue:
            for _ in range(200):
                writer = chance.choice(writers)
                match chance.choice(["tell", "tell", "commit", "rollback", "look"]):
                    case "tell":
                        tell(writer, "some")
                    case "commit":
                        writer.commit()
                    case "rollback":
                        writer.rollback()
                    case "look":
                        page = await follow_events(
                            catalogue.database, EVERYTHING, seen[-1] if seen else 0, chance.randint(1, 5)
                        )
                        seen += [event.seq for event in page]
            for writer in writers:
                writer.commit()
            with psycopg.connect(url) as reader:
                written = [row[0] for row in reader.execute("SELECT seq FROM events").fetchall()]
            seen += await fed(catalogue, seen[-1] if seen else 0, len(written) - len(seen))
    assert len(seen) == len(set(seen))
    assert sorted(seen) == sorted(written)


async def test_the_log_is_filtered(url: str) -> None:
    async with opened(url) as catalogue:
        (slot,) = await create(catalogue, a_slot(await a_resource(catalogue)))
        await catalogue.change_slot(slot.id, {"status": "closed"}, "request-1")
        of_slot = await list_events(catalogue.database, EventFilter(slot_id=slot.id), None, 10)
        assert [event.type for event in of_slot] == ["slot.created", "slot.updated"]
        assert of_slot[1].data == {"status": "closed"}
        assert {event.actor for event in of_slot} == {"operator"}
        updates = await list_events(catalogue.database, EventFilter(type="slot.updated"), None, 10)
        assert [event.seq for event in updates] == [of_slot[1].seq]
        assert await list_events(catalogue.database, EventFilter(booking_id=uuid4()), None, 10) == []
        assert [event.type for event in await list_events(catalogue.database, EVERYTHING, updates[0].seq - 1, 10)] == [
            "slot.updated"
        ]


# -- slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["venue", "resource", "everything"])
async def test_pages_of_slots_are_complete_and_come_from_an_index(url: str, which: str) -> None:
    async with opened(url) as catalogue:
        resource_id = await a_resource(catalogue)
        other_id = await a_resource(catalogue, "other")
        # Two begin at every instant, so that a page can end between them.
        made = await create(catalogue, *(a_slot(resource_id, hours // 2) for hours in range(1000)))
        others = await create(catalogue, *(a_slot(other_id, hours, venue="other") for hours in range(1000)))
        filters = {
            "venue": SlotFilter(venue="venue"),
            "resource": SlotFilter(resource_id=resource_id),
            "everything": SlotFilter(),
        }
        wanted = sorted([*made, *(others if which == "everything" else [])], key=lambda slot: (slot.starts_at, slot.id))
        found: list[Slot] = []
        while page := await catalogue.slots(
            filters[which], (found[-1].starts_at, found[-1].id) if found else None, 333
        ):
            found += page
        assert [slot.id for slot in found] == [slot.id for slot in wanted]

        with psycopg.connect(url) as connection:
            connection.execute("ANALYZE")
            given = {name: value for name, value in msgspec.structs.asdict(filters[which]).items() if value}
            given |= {"after_at": made[500].starts_at, "after_id": made[500].id, "limit": 50}
            query = catalogue_module._slot_page(frozenset(given) - {"limit"}).compile(
                dialect=postgresql.psycopg.dialect()
            )
            explained = connection.execute(f"EXPLAIN {query}", {**query.params, **given}).fetchall()
            plan = "\n".join(row[0] for row in explained)
        assert "slots_by_venue_time" in plan or "slots_by_resource_time" in plan, plan
        assert "Seq Scan on slots" not in plan, plan


@pytest.mark.parametrize("which", ["bookings", "events"])
async def test_lists_of_all_venues_read_a_page_and_not_the_table(url: str, which: str) -> None:
    async with opened(url) as catalogue:
        (slot,) = await create(catalogue, a_slot(await a_resource(catalogue), capacity=5000))
        asked: list[tuple[str, Any]] = []
        sa.event.listen(
            catalogue.database._reading.sync_engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, values, *_: asked.append((statement, values)),
        )
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name,"
                " customer_email, available_after, created_at, confirmed_at) SELECT gen_random_uuid(), %s, %s, false,"
                " 1, 'confirmed', 'Ada', 'ada@example.com', 0, now() + n * interval '1 s', now()"
                " FROM generate_series(1, 3000) AS n",
                (slot.venue_id, slot.id),
            )
            connection.execute(
                "INSERT INTO events (type, actor) SELECT CASE n WHEN 9000 THEN 'test.rare' ELSE 'test.common' END,"
                " 'system' FROM generate_series(1, 10000) AS n"
            )
            connection.execute("ANALYZE")
            if which == "bookings":
                first = await list_bookings(catalogue.database, BookingFilter(), None, 10)
                await list_bookings(catalogue.database, BookingFilter(), (first[-1].created_at, first[-1].id), 10)
                index = "bookings_by_time"
            else:
                assert len(await list_events(catalogue.database, EventFilter(type="test.rare"), None, 10)) == 1
                index = "events_by_type"
            for statement, values in asked:
                plan = str(connection.execute(f"EXPLAIN {statement}", values).fetchall())
                assert index in plan, plan
                assert "->  Sort " not in plan, plan  # an incremental one orders what ties in time, and no more


async def test_slots_are_filtered_by_time_and_room(url: str) -> None:
    async with opened(url) as catalogue:
        resource_id = await a_resource(catalogue)
        small, large, past = await create(
            catalogue,
            a_slot(resource_id, 0, capacity=1),
            a_slot(resource_id, 5, capacity=3),
            a_slot(resource_id, -24 * 365 * 8, capacity=9),
        )
        at = START + timedelta(hours=5)

        async def ids(**fields: Any) -> list[UUID]:
            return [slot.id for slot in await catalogue.slots(SlotFilter(venue="venue", **fields), None, 10)]

        assert await ids() == [past.id, small.id, large.id]
        assert await ids(starts_from=at) == [large.id]
        assert await ids(starts_before=at) == [past.id, small.id]
        assert await ids(room_for=1) == [small.id, large.id]
        assert await ids(room_for=2) == [large.id]
        assert await ids(room_for=4) == []
        await catalogue.change_slot(large.id, {"status": "closed"}, None)
        assert await ids(room_for=1) == [small.id]


def occupy(url: str, slot: Slot, status: str = "confirmed") -> None:
    held = status == "held"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, expires_at, customer_name,"
            " customer_email, available_after, confirmed_at) VALUES (%s, %s, %s, %s, 1, %s, %s, %s, %s, 0, %s)",
            (
                uuid4(), slot.venue_id, slot.id, slot.capacity == 1, status,
                datetime.now(UTC) + timedelta(hours=1) if held else None,
                None if held else "Ada", None if held else "ada@example.com", None if held else START,
            ),
        )  # fmt: skip


async def test_a_person_elsewhere_blocks_what_overlaps(url: str) -> None:
    async with opened(url) as catalogue:
        person, tour = await a_resource(catalogue, kind="person"), await a_resource(catalogue, "tours")
        ten, half_past_ten, eleven = await create(
            catalogue, a_slot(person, 10), a_slot(person, 10.5), a_slot(person, 11)
        )
        first_tour, second_tour = await create(
            catalogue, a_slot(tour, 10, venue="tours"), a_slot(tour, 10.5, venue="tours")
        )
        occupy(url, ten)
        occupy(url, first_tour)
        slots = [ten, half_past_ten, eleven, first_tour, second_tour]
        assert [(await catalogue.slot(slot.id)).blocked for slot in slots] == [False, True, False, False, False]


async def test_places_of_held_rows_are_told(url: str) -> None:
    async with opened(url) as catalogue:
        (slot,) = await create(catalogue, a_slot(await a_resource(catalogue), capacity=5))
        occupy(url, slot, "held")
        occupy(url, slot)
        found = await catalogue.slot(slot.id)
        assert (found.available_count, found.held_rows) == (3, 1)


async def test_a_list_of_slots_is_made_whole_or_not_at_all(url: str) -> None:
    async with opened(url) as catalogue:
        resource_id = await a_resource(catalogue)
        backwards = msgspec.structs.replace(a_slot(resource_id, 1), ends_at=START)
        with pytest.raises(InvalidRequest):
            await create(catalogue, a_slot(resource_id), backwards)
        await a_resource(catalogue, "other")
        with pytest.raises(ResourceNotFound):
            await create(catalogue, a_slot(resource_id), a_slot(resource_id, venue="other"))
        assert await catalogue.slots(SlotFilter(), None, 10) == []
        assert await list_events(catalogue.database, EventFilter(type="slot.created"), None, 10) == []


async def test_capacity_does_not_go_below_what_is_booked(url: str) -> None:
    async with opened(url) as catalogue:
        (slot,) = await create(catalogue, a_slot(await a_resource(catalogue), capacity=3))
        occupy(url, slot)
        occupy(url, slot)
        with pytest.raises(Conflict):
            await catalogue.change_slot(slot.id, {"capacity": 1}, None)
        changed = await catalogue.change_slot(slot.id, {"capacity": 2}, None)
        assert (changed.capacity, changed.available_count) == (2, 0)


# -- first answers ----------------------------------------------------------------------------------------------------


async def test_two_at_once_with_one_key_get_one_answer(url: str) -> None:
    async with opened(url) as catalogue:
        resource_id = await a_resource(catalogue)
        keyed = Keyed("slots", "key", b"asked")
        answers = await asyncio.gather(
            *(catalogue.create_slots([a_slot(resource_id)], keyed, None, msgspec.json.encode) for _ in range(4))
        )
        assert len({answer.body for answer in answers}) == 1
        assert sorted(answer.replayed for answer in answers) == [False, True, True, True]
        assert len(await catalogue.slots(SlotFilter(), None, 10)) == 1
        with pytest.raises(IdempotencyKeyReused):
            await catalogue.database.first_answer(Keyed("slots", "key", b"asked otherwise"))
        assert await catalogue.database.first_answer(Keyed("venues", "key", b"asked otherwise")) is None


async def test_the_first_of_two_kept_answers_stays(url: str) -> None:
    async with opened(url) as catalogue:
        keyed = Keyed("cancel:1", "key", b"asked")
        assert await catalogue.database.keep_answer(keyed, b"first") == b"first"
        assert await catalogue.database.keep_answer(keyed, b"second") == b"first"


# -- a database that is busy, away or gone ----------------------------------------------------------------------------


async def test_a_locked_row_is_busy_and_not_a_refusal(url: str) -> None:
    async with opened(url) as catalogue:
        (slot,) = await create(catalogue, a_slot(await a_resource(catalogue)))
        with psycopg.connect(url) as rival:
            rival.execute("SELECT FROM slots WHERE id = %s FOR UPDATE", (slot.id,))
            assert LOCK_TIMEOUT_MS < 5_000, "this test waits for it"
            with pytest.raises(Busy) as told:
                await catalogue.change_slot(slot.id, {"capacity": 9}, None)
        assert told.value.effect_none
        assert (await catalogue.slot(slot.id)).capacity == 2


async def test_a_crowd_of_readers_waits_for_its_turn(url: str) -> None:
    """S1-6: a hundred pages that read at once on a slow machine are answered, not told to try again. The bound of a
    reply begins with its turn: both together take longer than that.
    """
    async with opened(url) as catalogue:
        slow = [
            catalogue.database.read(lambda c: c.execute(sa.text("SELECT pg_sleep(1.6)"))) for _ in range(READERS + 1)
        ]
        *_, found = await asyncio.gather(*slow, catalogue.slots(SlotFilter(), None, 10))
        assert found == []


async def test_readers_who_wait_are_bounded_and_turned_away_when_it_takes_too_long(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.database.MOST_WAITING", 1)
    monkeypatch.setattr("app.database.TURN_SECONDS", 0.3)
    async with opened(url) as catalogue:
        slow = [
            asyncio.create_task(catalogue.database.read(lambda c: c.execute(sa.text("SELECT pg_sleep(1.5)"))))
            for _ in range(READERS)
        ]
        await asyncio.sleep(0)
        late = asyncio.create_task(catalogue.slots(SlotFilter(), None, 10))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await catalogue.slots(SlotFilter(), None, 10)
        with pytest.raises(Busy):
            await late
        await asyncio.gather(*slow)
        assert await catalogue.slots(SlotFilter(), None, 10) == []


async def test_without_postgres_nothing_was_done(tmp_path: Any) -> None:
    async with opened(f"postgresql://postgres@/nothing?host={tmp_path}") as catalogue:
        reads: list[Callable[[], Awaitable[Any]]] = [
            lambda: catalogue.slots(SlotFilter(), None, 10),
            lambda: catalogue.change_slot(uuid4(), {"capacity": 2}, None),
        ]
        for ask in reads:
            with pytest.raises(DatabaseUnavailable) as told:
                await ask()
            assert told.value.effect_none
        # What was done elsewhere is answered even though the answer cannot be kept.
        assert await catalogue.database.keep_answer(Keyed("extend:1", "key", b"asked"), b"done") == b"done"


async def test_connections_that_the_server_closed_are_replaced_before_they_are_used(url: str) -> None:
    async with opened(url) as catalogue:
        (slot,) = await create(catalogue, a_slot(await a_resource(catalogue)))
        with psycopg.connect(url, autocommit=True) as killer:
            killer.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'holdfast-catalogue' AND datname = current_database()"
            )
        assert await catalogue.slot(slot.id) == slot
