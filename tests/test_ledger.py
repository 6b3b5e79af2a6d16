"""What no test over HTTP can time: lapsed holds beside locked slots, refusals whose words were lost, old answers.

`test_gathering` has what becomes of commits that go together.
"""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from app import postgres as postgres_module
from app.commits import Commits
from app.errors import Busy, DatabaseUnavailable
from app.ledger import _FORGET_ANSWERS, FORGET_BATCH, CommitRequest, Ledger, _jsonb
from app.postgres import InDoubt, RuleViolated
from tests.service import Postgres, eventually

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


@contextlib.asynccontextmanager
async def committing(url: str) -> AsyncIterator[Commits]:
    async with opened(url) as ledger:
        yield Commits(ledger)


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


def request(sql: Connection, slot_id: UUID, **more: Any) -> CommitRequest:
    row = sql.execute("SELECT venue_id FROM slots WHERE id = %s", (slot_id,)).fetchone()
    assert row is not None
    fields = {"id": uuid4(), "quantity": 1, "status": "confirmed", "name": "Ada", "email": "ada@example.com", **more}
    return CommitRequest(slot_id=slot_id, venue_id=row[0], actor="customer", **fields)


# -- lapsed holds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0, 1], ids=["first locked", "last locked"])
async def test_a_persons_lapsed_hold_elsewhere_refuses_nobody(url: str, sql: Connection, wanted: int) -> None:
    slots = make_slots(sql, 0, 0.5)
    hold(sql, slots[1 - wanted], ends_in=-1)
    async with committing(url) as commits:
        outcome = await commits.commit_one(request(sql, slots[wanted]))
        other = await commits.commit_one(request(sql, slots[1 - wanted]))
    assert (outcome.word, other.word) == ("booked", "occupied")
    assert statuses(sql, slots[1 - wanted]) == ["expired"]
    assert sql.execute("SELECT slot_id FROM occupied").fetchall() == [(slots[wanted],)]


async def test_a_live_hold_beside_the_lapsed_one_still_occupies_the_person(url: str, sql: Connection) -> None:
    wanted, other = make_slots(sql, 0, 0.5, capacity=2)
    hold(sql, other, ends_in=-1)
    hold(sql, other, ends_in=60)
    async with committing(url) as commits:
        outcome = await commits.commit_one(request(sql, wanted))
    assert outcome.word == "occupied"
    assert statuses(sql, other) == ["expired", "held"]


async def test_the_slot_of_a_lapsed_hold_is_not_waited_for(url: str, sql: Connection) -> None:
    wanted, other = make_slots(sql, 0, 0.5)
    hold(sql, other, ends_in=-1)
    async with committing(url) as commits:
        with psycopg.connect(url) as rival:
            rival.execute("SELECT FROM slots WHERE id = %s FOR NO KEY UPDATE", (other,))
            outcome = await commits.commit_one(request(sql, wanted))  # were it waited for: Busy
    assert outcome.word == "occupied"


async def test_places_that_one_request_gave_back_are_there_for_the_next_of_its_list(url: str, sql: Connection) -> None:
    wanted, before, after = make_slots(sql, 0.5, 0, 1)
    hold(sql, before, ends_in=-1)
    hold(sql, after, ends_in=60)
    async with committing(url) as commits:
        outcomes = await commits.commit([request(sql, wanted), request(sql, before)])
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


# -- lists ------------------------------------------------------------------------------------------------------------


async def test_a_list_is_decided_in_its_order_and_told_in_its_order(url: str, sql: Connection) -> None:
    first, second = make_slots(sql, 0, 2, kind="event", capacity=5)
    wanted = [(second, 2), (first, 4), (second, 4), (first, 6), (second, 3), (first, 1), (first, 1)]
    async with committing(url) as commits:
        outcomes = await commits.commit([request(sql, slot_id, quantity=quantity) for slot_id, quantity in wanted])
    told = [(outcome.word, outcome.available_after) for outcome in outcomes]
    assert told == [
        ("booked", 3),
        ("booked", 1),
        ("full", 3),
        ("too_many", 1),
        ("booked", 0),
        ("booked", 0),
        ("full", 0),
    ]
    assert [outcome.counts and (outcome.counts.slot_id, outcome.counts.available_count) for outcome in outcomes] == [
        (slot_id, 0) for slot_id, _ in wanted
    ]
    logged = sql.execute("SELECT slot_id, (data ->> 'quantity')::int FROM events ORDER BY seq").fetchall()
    assert logged == [wanted[0], wanted[1], wanted[4], wanted[5]]


async def test_a_slot_locked_by_somebody_is_given_up_by_the_list_and_the_others_are_booked_alone(
    url: str, sql: Connection
) -> None:
    slots = make_slots(sql, 0, 2, 4)
    requests = [request(sql, slot_id) for slot_id in slots]
    async with committing(url) as commits:
        with psycopg.connect(url) as rival:
            rival.execute("SELECT FROM slots WHERE id = %s FOR NO KEY UPDATE", (slots[1],))
            with pytest.raises(Busy):
                await commits.commit(requests)
            assert sql.execute("SELECT count(*) FROM bookings").fetchall() == [(0,)]
            words = [(await commits.commit_one(requests[n])).word for n in (0, 2)]
        words.append((await commits.commit_one(requests[1])).word)
    assert words == ["booked"] * 3


async def test_a_slot_locked_by_somebody_is_kept_apart_from_the_others_for_a_while(
    url: str, sql: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, other = make_slots(sql, 0, 2, kind="event", capacity=9)
    with psycopg.connect(url) as rival:
        rival.execute("SELECT FROM slots WHERE id = %s FOR NO KEY UPDATE", (locked,))
        async with committing(url) as commits:
            answers = await asyncio.gather(
                *(commits.commit_one(request(sql, slot_id)) for slot_id in (locked, other, other)),
                return_exceptions=True,
            )
            assert isinstance(answers[0], Busy)
            assert [answer.word for answer in answers[1:]] == ["booked"] * 2  # type: ignore[union-attr]
            assert list(commits._locked) == [locked]
        # Now with all the time of the world: who waits for the lock waits until it is given up, and beside the others.
        for bound in ("LOCK_TIMEOUT_MS", "STATEMENT_TIMEOUT_MS", "REPLY_TIMEOUT_SECONDS"):
            monkeypatch.setattr(postgres_module, bound, 60_000)
        async with committing(url) as commits:
            commits._locked[locked] = float("inf")
            waiting = asyncio.create_task(commits.commit_one(request(sql, locked)))
            await asyncio.sleep(0)
            flying = [await commits.commit_one(request(sql, other)) for _ in range(3)]
            assert [outcome.word for outcome in flying] == ["booked"] * 3
            assert not waiting.done()
            rival.rollback()
            assert (await waiting).word == "booked"
            commits._locked[locked] = 0.0
            assert (await commits.commit_one(request(sql, locked))).word == "booked"
            assert commits._locked == {}
    counts = sql.execute(
        "SELECT available_count FROM slots WHERE id = ANY(%s) ORDER BY id = %s", ([locked, other], other)
    )
    assert counts.fetchall() == [(7,), (4,)]


@pytest.mark.parametrize(
    ("requests", "before", "after"),
    [(1, "1s", "1s"), (2, "1s", "250ms"), (2, "0", "250ms"), (2, "100ms", "100ms"), (2, "1min", "250ms")],
)
def test_only_lists_wait_shortly_for_a_lock(url: str, sql: Connection, requests: int, before: str, after: str) -> None:
    (slot_id,) = make_slots(sql, 0, capacity=5)
    listed = [request(sql, slot_id) for _ in range(requests)]
    with psycopg.connect(url) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (before,))
        connection.execute("SELECT * FROM commit_bookings(%s, %s)", (uuid4(), _jsonb(listed)))
        assert connection.execute("SHOW lock_timeout").fetchone() == (after,)
        connection.commit()
        assert connection.execute("SHOW lock_timeout").fetchone() == (before,)


async def test_one_hold_is_not_confirmed_twice_by_one_list(url: str, sql: Connection) -> None:
    (slot_id,) = make_slots(sql, 0, capacity=5)
    hold(sql, slot_id, ends_in=60)
    [(hold_id,)] = sql.execute("SELECT id FROM bookings").fetchall()
    rivals = [request(sql, slot_id, id=hold_id, name=name) for name in ("Ada", "Grace")]
    async with committing(url) as commits:
        with pytest.raises(RuleViolated, match="bookings_pkey"):
            await commits.commit(rivals)
        assert statuses(sql, slot_id) == ["held"]
        words = [(await commits.commit_one(rival)).word for rival in rivals]
    assert words == ["booked", "resolved"]
    assert sql.execute("SELECT type FROM events").fetchall() == [("booking.confirmed",)]


@pytest.mark.parametrize("known", ["never analyzed", "analyzed when small"])
async def test_no_commit_reads_a_table_whole_though_its_plans_were_made_when_it_was_small(
    url: str, sql: Connection, known: str
) -> None:
    slots = make_slots(sql, *range(0, 40, 2), kind="event", capacity=100)

    async def commit(count: int) -> None:
        listed = [request(sql, slot_id, key=str(uuid4()), fingerprint="00") for slot_id in slots[:count]]
        assert {outcome.word for outcome in await commits.commit(listed)} == {"booked"}

    if known == "analyzed when small":
        async with committing(url) as commits:
            await commit(2)
        sql.execute("ANALYZE")
    before = rows_read(sql)
    async with committing(url) as commits:
        for _ in range(20):
            await commit(20)
    # Each is read once, for the answer. Read whole, the table would give its rows twenty times over, or more.
    assert rows_read(sql) - before <= 2 * 20 * 20


def rows_read(sql: Connection) -> int:
    """Count the bookings that ever were read, by whatever way; those of a connection are known when it has ended."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    eventually(lambda: sql.execute(f"{others} AND backend_type = 'client backend'").fetchall() == [(0,)], "their end")
    [(read,)] = sql.execute(
        "SELECT t.seq_tup_read + (SELECT sum(i.idx_tup_read)::bigint FROM pg_stat_user_indexes AS i"
        " WHERE i.relid = t.relid) FROM pg_stat_user_tables AS t WHERE t.relname = 'bookings'"
    )
    return int(read)


# -- the rest ---------------------------------------------------------------------------------------------------------


async def test_a_refusal_whose_words_are_lost_did_nothing(
    url: str, sql: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slot_id,) = make_slots(sql, 0)
    async with opened(url) as ledger:
        commits = Commits(ledger)

        async def refused(*_: Any) -> Any:
            raise RuleViolated("slots_available_count_range")

        async def lost(*_: Any) -> Any:
            raise InDoubt

        monkeypatch.setattr(commits, "commit", refused)
        outcome = await commits.commit_one(request(sql, slot_id))
        assert (outcome.word, outcome.available_after, outcome.counts and outcome.counts.capacity) == ("full", 1, 1)
        monkeypatch.setattr(ledger.postgres, "rows", lost)
        with pytest.raises(DatabaseUnavailable) as told:
            await commits.commit_one(request(sql, slot_id))
    assert told.value.effect_none


async def test_old_answers_are_forgotten_piece_by_piece(url: str, sql: Connection) -> None:
    sql.execute(
        "INSERT INTO answers (scope, idempotency_key, fingerprint, status, body, created_at)"
        " SELECT 'venues', n, '', 201, '', now() - interval '7 days' + CASE WHEN n <= 60 THEN interval '1 hour'"
        "   ELSE n * interval '-1 second' END FROM generate_series(1, %s) AS n",
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
    kept = sql.execute("SELECT count(*), max(idempotency_key::int) FROM answers").fetchall()
    assert kept == [(60, 60)]


async def test_a_statement_that_fails_after_its_caller_went_away_is_nobodys_error(url, sql):
    """Else asyncio would report an error of which nobody asked, and fail this test."""
    running = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep%'"
    async with opened(url) as ledger:
        asking = asyncio.create_task(ledger.postgres.rows("SELECT pg_sleep(60)", ()))
        await asyncio.to_thread(eventually, lambda: bool(sql.execute(f"SELECT {running}").fetchall()), "it to run")
        asking.cancel()
        await asyncio.wait([asking])
        sql.execute(f"SELECT pg_terminate_backend(pid) {running}")
        pool = ledger.pool

        def is_back() -> bool:
            stats = pool.get_stats()
            return stats["pool_available"] == stats["pool_size"]

        await asyncio.to_thread(eventually, is_back, "the connection to be given back")
        del asking
        gc.collect()
    assert (await asyncio.to_thread(sql.execute, f"SELECT {running}")).fetchall() == []
