"""Calendars as tests read them, and what stands in them. The fixtures are imported by name."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import icalendar
import psycopg
import pytest

from tests import factories
from tests.service import Postgres, Service


@pytest.fixture
def operator(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis, operator=True) as client:
        yield client


@pytest.fixture
def everyone(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis) as client:
        yield client


def path_of(made: dict[str, Any]) -> str:
    """Take the path of a feed's address: the tests' service is not where its public address says."""
    path: str = httpx.URL(made["url"]).path
    return path


def read(client: httpx.Client, made: dict[str, Any]) -> icalendar.Calendar:
    answer = client.get(path_of(made))
    assert answer.status_code == 200, answer.text
    return parsed(answer.content)


def parsed(written: bytes) -> icalendar.Calendar:
    assert all(len(line) <= 75 for line in written.split(b"\r\n"))
    assert b"\n" not in written.replace(b"\r\n", b"")
    calendar = icalendar.Calendar.from_ical(written)
    assert isinstance(calendar, icalendar.Calendar)
    assert [each.errors for each in calendar.walk() if each.errors] == []
    return calendar


def named(slot_id: str, name: str, quantity: int = 1) -> dict[str, Any]:
    return factories.booking_body(slot_id, quantity, customer={"name": name, "email": "ada@example.com"})


def store_booking(database_url: str, resource_id: str, at: datetime) -> UUID:
    """Write a slot and its booking, also into the past."""
    slot_id, booking_id = uuid4(), uuid4()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity,"
            " available_count, exclusive) SELECT %s, venue_id, id, no, one_at_a_time, %s, %s, 1, 1, true"
            " FROM resources WHERE id = %s",
            (slot_id, at, at + timedelta(hours=1), resource_id),
        )
        connection.execute(
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, confirmed_at, customer_name,"
            " customer_email, available_after) SELECT %s, venue_id, id, true, 1, 'confirmed', now(), 'Ada', 'a@b.cd', 0"
            " FROM slots WHERE id = %s",
            (booking_id, slot_id),
        )
    return booking_id


#: Five years of a venue whose classes are booked by twenty each, beside others: far more bookings than a feed shows.
MANY = """
    INSERT INTO venues (id, slug, name, timezone)
        SELECT gen_random_uuid(), 'v' || n, 'Venue', 'UTC' FROM generate_series(1, 3) AS n;
    INSERT INTO resources (id, venue_id, name, kind) SELECT gen_random_uuid(), id, 'Class', 'event' FROM venues;
    INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity,
            available_count, exclusive)
        SELECT gen_random_uuid(), venue_id, id, no, false, at, at + interval '1 hour', 20, 20, false FROM resources,
            generate_series(now() - interval '800 days', now() + interval '400 days', interval '12 hours') AS at;
    INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, confirmed_at, customer_name,
            customer_email, available_after)
        SELECT gen_random_uuid(), venue_id, id, false, 1, 'confirmed', now(), 'Ada', 'a@b.cd', 0
        FROM slots, generate_series(1, 6);
    ANALYZE;
"""


@pytest.fixture(scope="module")
def crowded(postgres: Postgres) -> str:
    url = postgres.fresh()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(MANY)
    return url
