"""The database that the migrations make is the one that the code believes in, and its rules are all there."""

import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from app import commits, database, schema
from app.migrate import upgrade
from tests.service import Postgres

COLUMNS = """
    SELECT t.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated
    FROM pg_attribute AS a JOIN pg_class AS t ON t.oid = a.attrelid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE t.relnamespace = 'public'::regnamespace AND t.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
      AND t.relname <> 'alembic_version' ORDER BY 1, 2
"""
CONSTRAINTS = """
    SELECT t.relname, c.conname, pg_get_constraintdef(c.oid), c.convalidated, c.condeferrable
    FROM pg_constraint AS c JOIN pg_class AS t ON t.oid = c.conrelid
    WHERE c.connamespace = 'public'::regnamespace AND t.relname <> 'alembic_version' AND c.contype <> 'n' ORDER BY 1, 2
"""
INDEXES = """
    SELECT tablename, indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2
"""
TRIGGERS = """
    SELECT t.relname, g.tgname, p.proname, g.tgenabled, pg_get_triggerdef(g.oid)
    FROM pg_trigger AS g JOIN pg_class AS t ON t.oid = g.tgrelid JOIN pg_proc AS p ON p.oid = g.tgfoid
    WHERE NOT g.tgisinternal AND t.relnamespace = 'public'::regnamespace ORDER BY 1, 2
"""
FUNCTIONS = """
    SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1
"""

#: Ten bookings of each state, of a person and of a tour, and an event for each.
POPULATE = """
    INSERT INTO venues (id, slug, name, timezone) VALUES (gen_random_uuid(), 'old', 'Old', 'Europe/Berlin');
    INSERT INTO resources (id, venue_id, name, kind)
    SELECT gen_random_uuid(), id, kind, kind FROM venues, unnest('{person,event}'::text[]) AS kind;
    INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity)
    SELECT gen_random_uuid(), venue_id, id, no, one_at_a_time, now() + n * interval '1 hour',
        now() + (n + 1) * interval '1 hour', CASE kind WHEN 'event' THEN 10 ELSE 1 END
    FROM resources, generate_series(1, 20) AS n;
    INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, expires_at, customer_name, customer_email,
        available_after, confirmed_at, cancelled_at, expired_at)
    SELECT gen_random_uuid(), s.venue_id, s.id, s.exclusive, 1, b.status,
        CASE b.status WHEN 'held' THEN now() + interval '1 hour' END, 'Ada', 'ada@example.com', s.capacity - 1,
        CASE b.status WHEN 'confirmed' THEN now() END, CASE b.status WHEN 'cancelled' THEN now() END,
        CASE b.status WHEN 'expired' THEN now() END
    FROM (SELECT *, row_number() OVER (ORDER BY starts_at, id) AS n FROM slots) AS s
    JOIN unnest('{held,confirmed,cancelled,expired}'::text[]) WITH ORDINALITY AS b (status, n) ON s.n % 4 = b.n - 1;
    INSERT INTO events (type, actor, venue_id, slot_id, booking_id)
    SELECT 'booking.confirmed', 'customer', venue_id, slot_id, id FROM bookings;
"""

#: Which trigger keeps which promise on which table. One that is missing or disabled would let a wrong state in.
EXPECTED_TRIGGERS = {
    ("blocks", "blocks_keep_occupied", "blocks_keep_occupied"),
    ("blocks", "blocks_never_move", "refuse_statement"),
    ("bookings", "bookings_confirmed_when_paid", "bookings_confirmed_when_paid"),
    ("bookings", "bookings_deleted", "bookings_keep_available_count"),
    ("bookings", "bookings_end_offers", "bookings_end_offers"),
    ("bookings", "bookings_end_offers_deleted", "bookings_end_offers"),
    ("bookings", "bookings_follow_transitions", "bookings_follow_transitions"),
    ("bookings", "bookings_inserted", "bookings_keep_available_count"),
    ("bookings", "bookings_never_truncated", "refuse_statement"),
    ("bookings", "bookings_updated", "bookings_keep_available_count"),
    ("bookings", "bookings_wanted_deleted", "bookings_offer_places"),
    ("bookings", "bookings_wanted_updated", "bookings_offer_places"),
    ("events", "events_append_only", "refuse_statement"),
    ("occupied", "occupied_kept_by_bookings", "refuse_statement"),
    ("payments", "payments_follow_transitions", "payments_follow_transitions"),
    ("payments", "payments_never_deleted", "refuse_statement"),
    ("refunds", "refunds_follow_transitions", "refunds_follow_transitions"),
    ("refunds", "refunds_never_deleted", "refuse_statement"),
    ("slots", "slots_begin_empty", "slots_begin_empty"),
    ("slots", "slots_guard_changes", "slots_guard_changes"),
    ("slots", "slots_wanted_changed", "slots_offer_places"),
    ("slots", "slots_wanted_inserted", "slots_offer_new_places"),
    ("waiting_entries", "waiting_entries_follow_transitions", "waiting_entries_follow_transitions"),
}


@pytest.fixture
def empty(postgres: Postgres) -> Callable[[], str]:
    """Make empty databases on the session's server."""

    def make() -> str:
        name = f"empty_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(postgres.of("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return postgres.of(name)

    return make


def looked_up(url: str, *queries: str) -> list[list[tuple[Any, ...]]]:
    with psycopg.connect(url) as connection:
        return [connection.execute(query).fetchall() for query in queries]


def test_the_migrations_make_what_the_code_believes_in(postgres: Postgres, empty: Callable[[], str]) -> None:
    believed = empty()
    engine = sa.create_engine(believed)
    with engine.begin() as connection:
        schema.metadata.create_all(connection)
    engine.dispose()

    queries = (COLUMNS, CONSTRAINTS, INDEXES)
    for migrated, described in zip(looked_up(postgres.fresh(), *queries), looked_up(believed, *queries), strict=True):
        assert described == migrated
        assert migrated, "nothing was compared"


def test_a_second_upgrade_changes_nothing(empty: Callable[[], str]) -> None:
    url = empty()
    queries = (COLUMNS, CONSTRAINTS, INDEXES, TRIGGERS, FUNCTIONS, "SELECT version_num FROM alembic_version")
    upgrade(url)
    first = looked_up(url, *queries)
    upgrade(url)
    assert looked_up(url, *queries) == first
    assert len(first[-1]) == 1


def test_what_a_database_of_revision_0002_holds_is_kept(empty: Callable[[], str]) -> None:
    """Slots, bookings in every state and events, made before there were payments, services or waiting lists."""
    url = empty()
    upgrade(url, "0002")
    with psycopg.connect(url) as connection:
        connection.execute(POPULATE)
    contents = (
        "SELECT id, resource_id, starts_at, ends_at, capacity, available_count, version, status FROM slots ORDER BY id",
        "SELECT id, slot_id, quantity, status, expires_at, customer_name FROM bookings ORDER BY id",
        "SELECT * FROM occupied ORDER BY slot_id",
        "SELECT seq, type, booking_id FROM events ORDER BY seq",
    )
    before = looked_up(url, *contents)
    upgrade(url)
    assert looked_up(url, *contents) == before
    assert {status for _, _, _, status, *_ in before[1]} == {"held", "confirmed", "cancelled", "expired"}
    wrong, unread = looked_up(
        url,
        "SELECT id FROM slots WHERE occupied_until <> ends_at OR made_by_schedule",
        "SELECT e.seq FROM events AS e, event_readers AS r WHERE (e.xid, e.seq) > (r.xid, r.seq)",
    )
    assert (wrong, unread) == ([], [])  # nobody gets a letter about what happened before
    with psycopg.connect(url) as connection:  # and what there was can be changed, as ever
        connection.execute(
            "SELECT cancel_booking(id, false, 'operator', NULL) FROM bookings WHERE status = 'confirmed'"
        )
        assert connection.execute("SELECT count(*) FROM slots WHERE available_count < capacity").fetchone() == (10,)


def test_two_that_start_together_take_turns(empty: Callable[[], str]) -> None:
    url = empty()
    command = [sys.executable, "-W", "error", "-c", "import sys; from app.migrate import upgrade; upgrade(sys.argv[1])"]
    rivals = [subprocess.Popen([*command, url], stderr=subprocess.PIPE) for _ in range(2)]
    told = [rival.communicate(timeout=120)[1].decode() for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0], told
    assert looked_up(url, "SELECT count(*) FROM alembic_version") == [[(1,)]]


def test_every_trigger_is_there_and_enabled(postgres: Postgres) -> None:
    (triggers,) = looked_up(postgres.fresh(), TRIGGERS)
    assert {(table, name, function) for table, name, function, _, _ in triggers} == EXPECTED_TRIGGERS
    assert {enabled for _, _, _, enabled, _ in triggers} == {"O"}


def test_every_constraint_is_checked(postgres: Postgres) -> None:
    (constraints,) = looked_up(postgres.fresh(), CONSTRAINTS)
    assert [name for _, name, _, validated, deferrable in constraints if not validated or deferrable] == []


def test_the_rules_that_the_code_translates_by_name_exist(postgres: Postgres) -> None:
    constraints, indexes = looked_up(postgres.fresh(), CONSTRAINTS, INDEXES)
    names = {row[1] for row in (*constraints, *indexes)}
    translated = {*commits._TAKEN_BY_RULE, *commits._SAME_REQUEST_RULES, *database._PROBLEM_BY_RULE}
    assert translated <= names


def test_every_name_says_the_table_it_keeps_in_order(postgres: Postgres) -> None:
    constraints, indexes = looked_up(postgres.fresh(), CONSTRAINTS, INDEXES)
    assert [(table, name) for table, name, *_ in (*constraints, *indexes) if not name.startswith(table)] == []
