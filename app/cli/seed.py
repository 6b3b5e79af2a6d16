"""The demo venue: a salon with three people, four services and its opening hours, and a tour with ten places.

Every id is derived from what it names, so that a second start adds what is missing (the next days above all) and
nothing else.
"""

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5
from zoneinfo import ZoneInfo

import msgspec
import psycopg

from app import schedules
from app.ledger import Ledger

SLUG = "demo"
ZONE = ZoneInfo("Europe/Berlin")
HORIZON_DAYS = 14
#: Appointments begin on the quarter of an hour.
STEP_MINUTES = 15


class Service(msgspec.Struct, frozen=True):
    """What the salon sells; the price in cents."""

    name: str
    minutes: int
    buffer_minutes: int
    price: int


class Person(msgspec.Struct, frozen=True):
    """Who works there, from when to when (on Thursdays longer), and offers what."""

    name: str
    opens: time
    closes: time
    late: time
    services: tuple[str, ...]


class Tour(msgspec.Struct, frozen=True):
    """What many take part in, every day; the price in cents."""

    name: str
    capacity: int
    minutes: int
    price: int
    starts: tuple[time, ...]


class Seeded(msgspec.Struct, frozen=True):
    """A slot with room, to book as a first try."""

    slot_id: UUID
    name: str
    when: str


SERVICES = (
    Service("Haircut", 30, 0, 3500),
    Service("Cut and blow-dry", 60, 0, 6000),
    Service("Colour", 90, 15, 9500),
    Service("Beard trim", 15, 0, 1800),
)
# Open every day, at least from nine to six: whatever tomorrow is, something can be booked at ten.
PEOPLE = (
    Person("Anna", time(9), time(18), time(20), ("Haircut", "Cut and blow-dry", "Colour")),
    Person("Ben", time(8), time(18), time(20), ("Haircut", "Beard trim")),
    Person("Clara", time(9), time(19), time(21), ("Haircut", "Cut and blow-dry", "Colour")),
)
TOUR = Tour("City walk", 10, 120, 2500, (time(10), time(14), time(17)))
_THURSDAY = 4


def seed(database_url: str) -> Seeded:
    """Make the demo venue, or top it up to the horizon; returns a slot of it that can be booked."""
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        connection.execute(
            "INSERT INTO venues (id, slug, name, timezone, origins) VALUES (%s, %s, 'Holdfast demo', %s, '{*}')"
            " ON CONFLICT DO NOTHING",
            (_id("venue"), SLUG, ZONE.key),
        )
        [venue_id] = _one(connection, "SELECT id FROM venues WHERE slug = %s", (SLUG,))
        _seed_tour(connection, venue_id)
        for service in SERVICES:
            _seed_service(connection, venue_id, service)
        for person in PEOPLE:
            _seed_person(connection, venue_id, person)
    asyncio.run(_make_slots(database_url))
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        return _bookable(connection, venue_id)


def _seed_tour(connection: psycopg.Connection[Any], venue_id: UUID) -> None:
    resource_id = _seed_resource(connection, venue_id, TOUR.name, "event")
    today = datetime.now(ZONE).date()
    days = [today + timedelta(days=n) for n in range(HORIZON_DAYS)]
    starts = [datetime.combine(day, at, ZONE).astimezone(UTC) for day in days for at in TOUR.starts]
    starts = [at for at in starts if at > datetime.now(UTC)]
    connection.execute(
        "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity,"
        "   available_count, exclusive, price_amount, price_currency)"
        " SELECT new.id, r.venue_id, r.id, r.no, r.one_at_a_time, new.starts_at,"
        "   new.starts_at + %(minutes)s * interval '1 minute', %(capacity)s, %(capacity)s, %(capacity)s = 1,"
        "   %(price)s, 'EUR'"
        " FROM resources AS r, unnest(%(ids)s::uuid[], %(starts)s::timestamptz[]) AS new (id, starts_at)"
        " WHERE r.id = %(resource)s ON CONFLICT (id) DO NOTHING",
        {
            "ids": [_id(f"slot/{TOUR.name}/{at.isoformat()}") for at in starts],
            "starts": starts,
            "minutes": TOUR.minutes,
            "capacity": TOUR.capacity,
            "price": TOUR.price,
            "resource": resource_id,
        },
    )


def _seed_service(connection: psycopg.Connection[Any], venue_id: UUID, service: Service) -> None:
    connection.execute(
        "INSERT INTO services (id, venue_id, name, duration_minutes, buffer_minutes, price_amount, price_currency)"
        " VALUES (%s, %s, %s, %s, %s, %s, 'EUR') ON CONFLICT (id) DO NOTHING",
        (
            _id(f"service/{service.name}"),
            venue_id,
            service.name,
            service.minutes,
            service.buffer_minutes,
            service.price,
        ),
    )


def _seed_person(connection: psycopg.Connection[Any], venue_id: UUID, person: Person) -> None:
    resource_id = _seed_resource(connection, venue_id, person.name, "person")
    schedule_id = _id(f"schedule/{person.name}")
    new = connection.execute(
        "INSERT INTO schedules (id, venue_id, resource_id, step_minutes, from_date, horizon_days)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
        (schedule_id, venue_id, resource_id, STEP_MINUTES, date(2020, 1, 1), HORIZON_DAYS),
    ).rowcount
    if not new:  # it may have been changed since
        return
    connection.execute("UPDATE resources SET schedule_version = schedule_version + 1 WHERE id = %s", (resource_id,))
    for weekday in range(1, 8):
        closes = person.late if weekday == _THURSDAY else person.closes
        connection.execute(
            "INSERT INTO schedule_hours (schedule_id, weekday, opens, closes) VALUES (%s, %s, %s, %s)",
            (schedule_id, weekday, 60 * person.opens.hour, 60 * closes.hour),
        )
    for name in person.services:
        service_id = _id(f"service/{name}")
        connection.execute(
            "INSERT INTO service_resources (service_id, resource_id, venue_id) VALUES (%s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (service_id, resource_id, venue_id),
        )
        connection.execute(
            "INSERT INTO schedule_services (schedule_id, service_id, resource_id) VALUES (%s, %s, %s)",
            (schedule_id, service_id, resource_id),
        )


def _seed_resource(connection: psycopg.Connection[Any], venue_id: UUID, name: str, kind: str) -> UUID:
    resource_id = _id(f"resource/{name}")
    connection.execute(
        "INSERT INTO resources (id, venue_id, name, kind) VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
        (resource_id, venue_id, name, kind),
    )
    return resource_id


async def _make_slots(database_url: str) -> None:
    ledger = Ledger(database_url)
    await ledger.pool.open()
    try:
        for person in PEOPLE:
            await schedules.bring_up_to_date(ledger, _id(f"resource/{person.name}"))
    finally:
        await ledger.pool.close()


def _bookable(connection: psycopg.Connection[Any], venue_id: UUID) -> Seeded:
    """Choose the next slot with the most places, an hour ahead so that it does not begin while somebody reads."""
    slot_id, name, starts_at = _one(
        connection,
        "SELECT s.id, r.name, s.starts_at FROM slots AS s JOIN resources AS r ON r.id = s.resource_id"
        " WHERE s.venue_id = %s AND s.status = 'open' AND s.available_count > 0"
        "   AND s.starts_at > now() + interval '1 hour'"
        " ORDER BY s.capacity DESC, s.starts_at LIMIT 1",
        (venue_id,),
    )
    return Seeded(slot_id, name, f"{starts_at.astimezone(ZONE):%A %H:%M}")


def _one(connection: psycopg.Connection[Any], statement: str, values: tuple[Any, ...]) -> Any:
    return connection.execute(statement, values).fetchall()[0]


def _id(name: str) -> UUID:
    return uuid5(NAMESPACE_URL, f"https://holdfast.invalid/demo/{name}")
