"""What no test over HTTP can time: lapsed holds beside locked slots, refusals whose words were lost, old answers."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from app.errors import DatabaseUnavailable
from app.ledger import _FORGET_ANSWERS, FORGET_BATCH, CommitRequest, InDoubt, Ledger, RuleViolated
from tests.service import Postgres

pytestmark = pytest.mark.anyio
Connection = psycopg.Connection[Any]


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh()


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Ledger]:
    ledger = Ledger(url)
    await ledger.pool.open()
    try:
        yield ledger
    finally:
        await ledger.pool.close()


@pytest.fixture
def sql(url: str) -> Iterator[Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def make_slots(sql: Connection, *hours: float, kind: str = "person", capacity: int = 1) -> list[UUID]:
    """Make slots of one resource, an hour long each, that begin after so many hours; their ids are in this order."""
    venue_id, slots = uuid4(), sorted(uuid4() for _ in hours)
    sql.execute("INSERT INTO venues (id, slug, name, timezone) VALUES (%s, 'v', 'V', 'UTC')", (venue_id,))
    sql.execute(
        "INSERT INTO resources (id, venue_id, name, kind) VALUES (gen_random_uuid(), %s, 'R', %s)", (venue_id, kind)
    )
    for slot_id, begin in zip(slots, hours, strict=True):
        sql.execute(
            "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity)"
            " SELECT %s, venue_id, id, no, one_at_a_time, current_date + 2 + %s, current_date + 2 + %s, %s"
            " FROM resources",
            (slot_id, timedelta(hours=begin), timedelta(hours=begin + 1), capacity),
        )
    return slots


def hold(sql: Connection, slot_id: UUID, *, ends_in: float, count: int = 1) -> None:
    """Keep holds as rows, as they are taken without Redis; a negative `ends_in` is one that lapsed unswept."""
    sql.execute(
        "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, expires_at, available_after)"
        " SELECT gen_random_uuid(), venue_id, id, exclusive, 1, 'held', clock_timestamp() + %s, 0"
        " FROM slots, generate_series(1, %s) WHERE id = %s",
        (timedelta(seconds=ends_in), count, slot_id),
    )


def statuses(sql: Connection, slot_id: UUID) -> list[str]:
    found = sql.execute("SELECT status FROM bookings WHERE slot_id = %s ORDER BY created_at", (slot_id,))
    return [status for (status,) in found]


def request(sql: Connection, slot_id: UUID) -> CommitRequest:
    row = sql.execute("SELECT venue_id FROM slots WHERE id = %s", (slot_id,)).fetchone()
    assert row is not None
    return CommitRequest(
        id=uuid4(), slot_id=slot_id, venue_id=row[0], quantity=1, status="confirmed", actor="customer",
        name="Ada", email="ada@example.com",
    )  # fmt: skip


# -- lapsed holds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0, 1], ids=["first locked", "last locked"])
async def test_a_persons_lapsed_hold_elsewhere_refuses_nobody(url: str, sql: Connection, wanted: int) -> None:
    slots = make_slots(sql, 0, 0.5)
    hold(sql, slots[1 - wanted], ends_in=-1)
    async with opened(url) as ledger:
        outcome = await ledger.commit_one(request(sql, slots[wanted]))
        other = await ledger.commit_one(request(sql, slots[1 - wanted]))
    assert (outcome.word, other.word) == ("booked", "occupied")
    assert statuses(sql, slots[1 - wanted]) == ["expired"]
    assert sql.execute("SELECT slot_id FROM occupied").fetchall() == [(slots[wanted],)]


async def test_a_live_hold_beside_the_lapsed_one_still_occupies_the_person(url: str, sql: Connection) -> None:
    wanted, other = make_slots(sql, 0, 0.5, capacity=2)
    hold(sql, other, ends_in=-1)
    hold(sql, other, ends_in=60)
    async with opened(url) as ledger:
        outcome = await ledger.commit_one(request(sql, wanted))
    assert outcome.word == "occupied"
    assert statuses(sql, other) == ["expired", "held"]


async def test_the_slot_of_a_lapsed_hold_is_not_waited_for(url: str, sql: Connection) -> None:
    wanted, other = make_slots(sql, 0, 0.5)
    hold(sql, other, ends_in=-1)
    async with opened(url) as ledger:
        with psycopg.connect(url) as rival:
            rival.execute("SELECT FROM slots WHERE id = %s FOR NO KEY UPDATE", (other,))
            outcome = await ledger.commit_one(request(sql, wanted))  # were it waited for: Busy
    assert outcome.word == "occupied"


async def test_places_that_one_request_gave_back_are_there_for_the_next_of_its_list(url: str, sql: Connection) -> None:
    wanted, before, after = make_slots(sql, 0.5, 0, 1)
    hold(sql, before, ends_in=-1)
    hold(sql, after, ends_in=60)
    async with opened(url) as ledger:
        outcomes = await ledger.commit([request(sql, wanted), request(sql, before)])
    assert [outcome.word for outcome in outcomes] == ["occupied", "booked"]


async def test_a_sweep_is_not_held_up_by_a_slot_with_many_lapsed_holds(url: str, sql: Connection) -> None:
    locked, *others = make_slots(sql, 0, 2, 4, kind="event", capacity=500)
    hold(sql, locked, ends_in=-60, count=200)
    for slot_id in others:
        hold(sql, slot_id, ends_in=-1, count=5)
    async with opened(url) as ledger:
        with psycopg.connect(url) as rival:
            rival.execute("SELECT FROM slots WHERE id = %s FOR NO KEY UPDATE", (locked,))
            assert set(await ledger.sweep(2)) == set(others)
        assert await ledger.sweep(2) == [locked]
        assert await ledger.sweep(2) == []
    assert sql.execute("SELECT count(*) FROM bookings WHERE status <> 'expired'").fetchall() == [(0,)]


# -- the rest ---------------------------------------------------------------------------------------------------------


async def test_a_refusal_whose_words_are_lost_did_nothing(
    url: str, sql: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slot_id,) = make_slots(sql, 0)
    async with opened(url) as ledger:

        async def refused(*_: Any) -> Any:
            raise RuleViolated("slots_available_count_range")

        async def lost(*_: Any) -> Any:
            raise InDoubt

        monkeypatch.setattr(ledger, "commit", refused)
        outcome = await ledger.commit_one(request(sql, slot_id))
        assert (outcome.word, outcome.available_after, outcome.counts and outcome.counts.capacity) == ("full", 1, 1)
        monkeypatch.setattr(ledger, "_rows", lost)
        with pytest.raises(DatabaseUnavailable) as told:
            await ledger.commit_one(request(sql, slot_id))
    assert told.value.effect_none


async def test_old_answers_are_forgotten_piece_by_piece(url: str, sql: Connection) -> None:
    sql.execute(
        "INSERT INTO answers (scope, idempotency_key, fingerprint, status, body, created_at)"
        " SELECT 'venues', n, '', 201, '', now() - interval '7 days' + interval '1 minute' - n * interval '1 second'"
        " FROM generate_series(1, %s) AS n",
        (60 + 2 * FORGET_BATCH + 1,),
    )
    sql.execute(
        f"""
        CREATE FUNCTION refuse_many() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            ASSERT (SELECT count(*) FROM gone) <= {FORGET_BATCH}, 'too many at once';
            RETURN NULL;
        END $$;
        CREATE TRIGGER refuse_many AFTER DELETE ON answers REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_many();
        ANALYZE answers
        """
    )
    plan = sql.execute(f"EXPLAIN {_FORGET_ANSWERS}", (FORGET_BATCH,)).fetchall()
    assert "answers_by_time" in str(plan), plan
    async with opened(url) as ledger:
        await ledger.forget_old_answers()
    [(kept,)] = sql.execute("SELECT count(*) FROM answers").fetchall()
    assert 55 <= kept <= 60  # those of the last minute; it has gone on meanwhile
