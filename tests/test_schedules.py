"""Slots that follow schedules but never bookings: in portions, over HTTP, and by many makers at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import msgspec
import psycopg
import pytest
import sqlalchemy as sa

from app import booking, schedules, timetable
from app.catalogue import Catalogue, NewResource, NewVenue, SlotFilter
from app.database import Database
from app.domain import Caller, Customer, Schedule
from app.engine import Engine
from app.hours import Lasting, Timetable
from app.settings import from_env
from tests import factories
from tests.redis_servers import RedisServer
from tests.service import Postgres, Service, store_environ
from tests.timetables import BERLIN, DAY, MINUTE, a_timetable, every_day

# -- portions ---------------------------------------------------------------------------------------------------------


def a_plan(*timetables: Timetable, zone: ZoneInfo = BERLIN, last_start: datetime | None = None) -> schedules.Plan:
    return schedules.Plan(UUID(int=7), zone, 1, last_start, list(timetables))


NOW = datetime(2030, 6, 3, 10, 10, tzinfo=UTC)  # noon, and ten minutes, in Berlin


def test_portions_are_whole_without_gaps_and_bounded():
    table = a_timetable("00:00-24:00", step_minutes=5, services=[Lasting(UUID(int=n), 30, 0) for n in range(2)])
    found = list(schedules.portions(a_plan(table), NOW))
    assert found[0].from_at == NOW
    assert [portion.before for portion in found[:-1]] == [portion.from_at for portion in found[1:]]
    assert all(portion.from_at <= start.at < portion.before for portion in found for start in portion.wanted.values())
    assert max(len(portion.wanted) for portion in found) < schedules.PORTION_SLOTS + 2 * 288
    starts = {start.at for portion in found for start in portion.wanted.values()}
    assert min(starts) == NOW + 5 * MINUTE
    assert max(starts).astimezone(BERLIN).date() == date(2030, 6, 17)


def test_of_two_schedules_that_want_the_same_slot_the_shorter_notice_counts():
    plan = a_plan(a_timetable("15:00-15:30", notice_minutes=60), a_timetable("15:00-16:00", notice_minutes=20))
    [first, second] = [
        start for portion in schedules.portions(plan, NOW) for start in portion.wanted.values()
        if start.at < NOW + timedelta(hours=12)
    ]  # fmt: skip
    assert (first.notice_minutes, second.notice_minutes) == (20, 20)


def test_what_was_made_beyond_the_horizon_is_looked_at_too():
    far = NOW + 40 * DAY
    found = list(schedules.portions(a_plan(a_timetable("09:00-10:00"), last_start=far), NOW))
    assert found[-1].before > far
    assert [
        list(schedules.portions(a_plan(), NOW)),
        next(schedules.portions(a_plan(last_start=NOW), NOW)).wanted,
    ] == [[], {}]


# -- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis, operator=True) as client:
        yield client


def a_person(operator: httpx.Client, venue: str | None = None, **fields: Any) -> dict[str, Any]:
    venue = venue or factories.venue(operator)["slug"]
    return factories.resource(operator, venue, kind="person", **fields)


def a_service(operator: httpx.Client, *people: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"venue": people[0]["venue"], "name": "Cut", "duration_minutes": 60, **fields}
    return factories.made(operator.post("/v1/services", json={"resource_ids": [p["id"] for p in people], **body}))


def schedule_body(person: dict[str, Any], *services: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "resource_id": person["id"],
        "service_ids": [service["id"] for service in services],
        "weekly": [{"weekday": n, "from": "09:00", "to": "12:00"} for n in range(1, 8)],
        "step_minutes": 60,
        "from_date": "2020-01-01",
        "horizon_days": 7,
        **fields,
    }


def a_schedule(
    operator: httpx.Client, person: dict[str, Any], *services: dict[str, Any], **fields: Any
) -> dict[str, Any]:
    return factories.made(operator.post("/v1/schedules", json=schedule_body(person, *services, **fields)))


def listed(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    """Read all pages of a list of slots."""
    found, cursor = [], None
    while True:
        asked = {**query, "limit": 100, **({"cursor": cursor} if cursor else {})}
        answer = client.get("/v1/slots", params=asked)
        assert answer.status_code == 200, answer.text
        found += answer.json()["data"]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found


def on_day(slots: list[dict[str, Any]], days: int, status: str | None = "available") -> list[str]:
    """List the wall times of the slots so many days from now, in Berlin."""
    day = (datetime.now(BERLIN) + days * DAY).date()
    at = [
        datetime.fromisoformat(each["starts_at"]).astimezone(BERLIN)
        for each in slots
        if status in (None, each["status"])
    ]
    return [each.strftime("%H:%M") for each in at if each.date() == day]


def in_days(days: int) -> str:
    return (datetime.now(BERLIN) + days * DAY).date().isoformat()


def test_services_and_schedules_become_slots(operator: httpx.Client, with_redis: Service):
    person = a_person(operator)
    price = {"amount": 3500, "currency": "EUR"}
    service = a_service(operator, person, buffer_minutes=15, price=price)
    assert service == {
        "id": service["id"], "venue": person["venue"], "name": "Cut", "duration_minutes": 60, "buffer_minutes": 15,
        "capacity": 1, "price": price, "active": True, "resource_ids": [person["id"]],
    }  # fmt: skip
    answer = operator.post("/v1/schedules", json=schedule_body(person, service))
    schedule = factories.made(answer)
    assert answer.headers["location"] == f"/v1/schedules/{schedule['id']}"
    assert schedule == {
        **schedule_body(person, service), "id": schedule["id"], "to_date": None, "notice_minutes": 0, "exceptions": [],
    }  # fmt: skip
    assert operator.get(answer.headers["location"]).json() == schedule
    assert operator.get("/v1/schedules", params={"venue": person["venue"]}).json()["data"] == [schedule]
    assert operator.get("/v1/schedules", params={"resource_id": str(uuid4())}).json()["data"] == []
    assert operator.get("/v1/services", params={"venue": person["venue"]}).json()["data"] == [service]

    with factories.client(with_redis) as everyone:
        venue = everyone.get(f"/v1/venues/{person['venue']}").json()
        assert venue["services"] == [service]
        assert venue["resources"] == [person]
        slots = listed(everyone, service_id=service["id"])
        assert [on_day(slots, days) for days in range(1, 8)] == [["09:00", "10:00", "11:00"]] * 7
        assert on_day(slots, 8) == []
        first = next(each for each in slots if each["status"] == "available")
        assert (first["service"], first["price"]) == ({"id": service["id"], "name": "Cut"}, price)
        assert factories.booking(everyone, first["id"])["status"] == "confirmed"
    [(until,)] = with_redis.query("SELECT occupied_until - ends_at FROM slots WHERE id = %s", first["id"])
    assert until == timedelta(minutes=15)


def test_a_schedule_makes_its_resource_offer_the_service(operator: httpx.Client):
    person = a_person(operator)
    service = a_service(operator, person, resource_ids=[])
    assert service["resource_ids"] == []
    a_schedule(operator, person, service)
    [now] = operator.get(f"/v1/venues/{person['venue']}").json()["services"]
    assert now["resource_ids"] == [person["id"]]
    # Who does not offer it any more has no slots of it.
    assert operator.patch(f"/v1/services/{service['id']}", json={"resource_ids": []}).json()["resource_ids"] == []
    assert {each["status"] for each in listed(operator, service_id=service["id"])} <= {"closed", "past"}


def test_other_venues_things_do_not_exist(operator: httpx.Client):
    person, stranger = a_person(operator), a_person(operator)
    service, theirs = a_service(operator, person), a_service(operator, stranger)
    body = {"venue": person["venue"], "name": "Cut", "duration_minutes": 30, "resource_ids": [stranger["id"]]}
    refusals = [
        operator.post("/v1/services", json=body),
        operator.post("/v1/services", json={**body, "venue": "nobody", "resource_ids": []}),
        operator.patch(f"/v1/services/{service['id']}", json={"resource_ids": [stranger["id"]]}),
        operator.patch(f"/v1/services/{uuid4()}", json={"name": "Cut"}),
        operator.post("/v1/schedules", json=schedule_body(person, theirs)),
        operator.post("/v1/schedules", json=schedule_body({"id": str(uuid4())}, service)),
        operator.patch(f"/v1/schedules/{uuid4()}", json={"step_minutes": 30}),
        operator.delete(f"/v1/schedules/{uuid4()}"),
        operator.post(f"/v1/schedules/{uuid4()}/exceptions", json={"date": "2030-01-01", "kind": "off"}),
        operator.post("/v1/slots", json=factories.slot_body(person, service_id=theirs["id"])),
        operator.get("/v1/services", params={"venue": "nobody"}),
        operator.get("/v1/schedules", params={"venue": "nobody"}),
    ]
    assert [answer.status_code for answer in refusals] == [404] * len(refusals)
    assert [
        each["resource_ids"] for each in operator.get("/v1/services", params={"venue": person["venue"]}).json()["data"]
    ] == [[person["id"]]]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"weekly": [{"weekday": 8, "from": "09:00", "to": "12:00"}]}, "weekly[0].weekday"),
        ({"weekly": [{"weekday": 1, "from": "12:00", "to": "12:00"}]}, "weekly[0].to"),
        ({"weekly": [{"weekday": 1, "from": "24:00", "to": "24:00"}]}, "weekly[0].from"),
        ({"weekly": [{"weekday": 1, "from": "9:00", "to": "12:00"}]}, "weekly[0].from"),
        ({"weekly": [{"weekday": 1, "from": "09:00", "to": to} for to in ("12:00", "13:00")]}, "weekly"),
        ({"step_minutes": 1}, "step_minutes"),
        ({"step_minutes": 5, "weekly": [{"weekday": 1, "from": "00:00", "to": "24:00"}] , "many": 4}, "step_minutes"),
        ({"from_date": "2030-01-02", "to_date": "2030-01-01"}, "to_date"),
        ({"from_date": "0001-01-01"}, "from_date"),
        ({"horizon_days": 367}, "horizon_days"),
        ({"notice_minutes": -1}, "notice_minutes"),
        ({"service_ids": []}, "service_ids"),
    ],
)  # fmt: skip
def test_hours_that_make_no_sense_are_refused_by_name(operator: httpx.Client, fields: dict[str, Any], field: str):
    person = a_person(operator)
    services = [a_service(operator, person) for _ in range(fields.pop("many", 1))]
    answer = operator.post("/v1/schedules", json=schedule_body(person, *services, **fields))
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field), answer.text
    assert listed(operator, resource_id=person["id"]) == []


def test_exceptions_take_away_and_add(operator: httpx.Client):
    person = a_person(operator)
    schedule = a_schedule(operator, person, a_service(operator, person))
    path = f"/v1/schedules/{schedule['id']}/exceptions"
    holiday = factories.made(
        operator.post(path, json={"date": in_days(2), "to_date": in_days(3), "kind": "off", "note": "Away"})
    )
    evening = factories.made(
        operator.post(path, json={"date": in_days(4), "kind": "extra", "from": "18:00", "to": "24:00"})
    )
    assert holiday == {
        "id": holiday["id"], "date": in_days(2), "to_date": in_days(3), "kind": "off", "from": None, "to": None,
        "note": "Away",
    }  # fmt: skip
    assert operator.get(f"/v1/schedules/{schedule['id']}").json()["exceptions"] == [holiday, evening]
    slots = listed(operator, resource_id=person["id"])
    assert [on_day(slots, days) for days in (1, 2, 3)] == [["09:00", "10:00", "11:00"], [], []]
    assert on_day(slots, 4) == ["09:00", "10:00", "11:00", "18:00", "19:00", "20:00", "21:00", "22:00", "23:00"]
    assert on_day(slots, 2, "closed") == ["09:00", "10:00", "11:00"]

    assert operator.delete(f"{path}/{holiday['id']}").status_code == 204
    assert operator.delete(f"{path}/{holiday['id']}").status_code == 404
    assert on_day(listed(operator, resource_id=person["id"]), 2) == ["09:00", "10:00", "11:00"]
    for odd in ({"kind": "extra"}, {"kind": "off", "from": "09:00"}, {"kind": "off", "to_date": in_days(1)}):
        assert operator.post(path, json={"date": in_days(5), **odd}).status_code == 400, odd


def test_a_changed_schedule_leaves_what_is_booked_or_an_operators(operator: httpx.Client, with_redis: Service):
    person = a_person(operator)
    service = a_service(operator, person)
    schedule = a_schedule(operator, person, service)
    nine, ten, eleven = [each for each in listed(operator, resource_id=person["id"]) if on_day([each], 2)]
    booked = factories.booking(operator, nine["id"])
    closed_by_hand = operator.patch(f"/v1/slots/{ten['id']}", json={"status": "closed"})
    assert closed_by_hand.json()["status"] == "closed"
    by_hand = factories.made(
        operator.post("/v1/slots", json=factories.slot_body(person, hours=1000, service_id=service["id"]))
    )

    # If the hours move to the afternoon, Expect the morning to close, but for the booking.
    afternoon = [{"weekday": n, "from": "14:00", "to": "16:00"} for n in range(1, 8)]
    changed = operator.patch(f"/v1/schedules/{schedule['id']}", json={"weekly": afternoon})
    assert changed.json() == {**schedule, "weekly": afternoon}
    slots = listed(operator, resource_id=person["id"])
    assert on_day(slots, 2) == ["14:00", "15:00"]
    assert {each["id"]: each["status"] for each in slots if on_day([each], 2, None)} | {} == {
        nine["id"]: "sold_out", ten["id"]: "closed", eleven["id"]: "closed",
        **{each["id"]: "available" for each in slots if on_day([each], 2)},
    }  # fmt: skip
    assert operator.get(f"/v1/slots/{by_hand['id']}").json()["status"] == "available"
    assert operator.get(f"/v1/bookings/{booked['id']}").json()["status"] == "confirmed"
    # The mirror has heard of it: refused early, for the right reason.
    refused = operator.post("/v1/bookings", json=factories.booking_body(eleven["id"]))
    assert (refused.status_code, refused.json()["reason"]) == (409, "closed")

    # If they move back, Expect the same slots to open, but not the one that an operator closed.
    operator.patch(f"/v1/schedules/{schedule['id']}", json={"weekly": schedule["weekly"]})
    again = listed(operator, resource_id=person["id"])
    assert {each["id"] for each in again if on_day([each], 2)} == {eleven["id"]}
    assert factories.booking(operator, eleven["id"])["status"] == "confirmed"

    # If the schedule goes, Expect nothing to be left but what was booked.
    assert operator.delete(f"/v1/schedules/{schedule['id']}").status_code == 204
    assert operator.get(f"/v1/schedules/{schedule['id']}").status_code == 404
    left = listed(operator, resource_id=person["id"])
    assert {each["id"] for each in left if each["status"] not in ("closed", "past")} == {
        nine["id"],
        eleven["id"],
        by_hand["id"],
    }
    counted = "SELECT count(*) FROM events WHERE type = 'slot.updated' AND actor = 'system' AND slot_id = %s"
    assert with_redis.query(counted, eleven["id"]) == [(2,)]
    assert with_redis.query(counted, nine["id"]) == [(0,)]


def test_a_changed_service_changes_what_nobody_booked(operator: httpx.Client):
    person = a_person(operator)
    service = a_service(operator, person)
    a_schedule(operator, person, service, step_minutes=90)
    first, second = [each for each in listed(operator, resource_id=person["id"]) if on_day([each], 2)]
    factories.booking(operator, first["id"])
    price = {"amount": 4000, "currency": "CHF"}
    assert (
        operator.patch(f"/v1/services/{service['id']}", json={"price": price, "name": "Trim"}).json()["price"] == price
    )
    now = {each["id"]: each for each in listed(operator, resource_id=person["id"])}
    assert (now[first["id"]]["price"], now[second["id"]]["price"]) == (None, price)
    assert now[first["id"]]["service"]["name"] == "Trim"

    # If it takes longer, Expect other slots in the place of the old ones; the booked hour keeps what it overlaps taken.
    operator.patch(f"/v1/services/{service['id']}", json={"duration_minutes": 90})
    slots = listed(operator, resource_id=person["id"])
    assert on_day(slots, 2) == ["10:30"]
    assert second["id"] in {each["id"] for each in slots if each["status"] == "closed"}
    assert operator.get("/v1/slots", params={"resource_id": person["id"], "quantity": 1, "limit": 1}).json()["data"]
    with_room = listed(operator, resource_id=person["id"], quantity=1)
    assert on_day(with_room, 2, None) == ["10:30"]

    operator.patch(f"/v1/services/{service['id']}", json={"active": False})
    assert operator.get(f"/v1/venues/{person['venue']}").json()["services"] == []
    assert listed(operator, resource_id=person["id"], quantity=1) == []


def test_the_same_hours_in_another_time_zone(operator: httpx.Client):
    person = a_person(operator)
    a_schedule(operator, person, a_service(operator, person))
    before = {each["id"] for each in listed(operator, resource_id=person["id"], quantity=1)}
    operator.patch(f"/v1/venues/{person['venue']}", json={"timezone": "Asia/Kathmandu"})
    after = listed(operator, resource_id=person["id"], quantity=1)
    walls = {
        datetime.fromisoformat(each["starts_at"]).astimezone(ZoneInfo("Asia/Kathmandu")).strftime("%H:%M")
        for each in after
    }
    assert walls == {"09:00", "10:00", "11:00"}
    assert not before & {each["id"] for each in after}


def test_a_repeated_request_is_the_same_schedule(operator: httpx.Client):
    person = a_person(operator)
    body = schedule_body(person, a_service(operator, person))
    first, second = (
        operator.post("/v1/schedules", json=body, headers={"Idempotency-Key": person["id"]}) for _ in range(2)
    )
    assert (first.content, second.headers["idempotency-replayed"]) == (second.content, "true")
    assert len(operator.get("/v1/schedules", params={"resource_id": person["id"]}).json()["data"]) == 1


def test_too_late_is_closed_and_not_offered(operator: httpx.Client):
    person = a_person(operator)
    service = a_service(operator, person)
    a_schedule(operator, person, service, notice_minutes=3 * 1440)
    slots = listed(operator, resource_id=person["id"])
    assert on_day(slots, 1, "closed") == ["09:00", "10:00", "11:00"]
    assert on_day(slots, 1) == on_day(slots, 2) == []
    assert on_day(slots, 5) == ["09:00", "10:00", "11:00"]
    with_room = listed(operator, service_id=service["id"], quantity=1)
    assert on_day(with_room, 2, None) == []
    assert {each["status"] for each in with_room} == {"available"}


def test_what_is_listed_with_room_can_be_booked_when_a_person_is_busy(operator: httpx.Client):
    """Overlapping starts of one person: the booked hour and its buffer take their neighbours out of the list."""
    person = a_person(operator)
    service = a_service(operator, person, buffer_minutes=30)
    a_schedule(operator, person, service, step_minutes=30)
    [ten] = [each for each in listed(operator, service_id=service["id"]) if on_day([each], 2) == ["10:00"]]
    factories.booking(operator, ten["id"])
    # 08:30 would be free, 09:00 ends when ten o'clock begins but needs its buffer; 11:00 is in the buffer of ten.
    free = [each for each in listed(operator, service_id=service["id"], quantity=1) if on_day([each], 2)]
    assert on_day(free, 2) == []
    other_day = [each for each in listed(operator, service_id=service["id"], quantity=1) if on_day([each], 3)]
    assert on_day(other_day, 3) == ["09:00", "09:30", "10:00", "10:30", "11:00"]
    while free := [each for each in listed(operator, service_id=service["id"], quantity=1) if on_day([each], 3)]:
        factories.booking(operator, free[0]["id"])
    assert on_day(listed(operator, service_id=service["id"]), 3) == []


def test_a_page_that_is_known_is_not_sent_again(operator: httpx.Client):
    person = a_person(operator)
    a_schedule(operator, person, a_service(operator, person))
    query = {"resource_id": person["id"], "quantity": 1}
    first = operator.get("/v1/slots", params=query)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    for known in (tag, f'W/{tag}, "other"', "*"):
        again = operator.get("/v1/slots", params=query, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert "content-type" not in again.headers
    assert operator.get("/v1/slots", params=query, headers={"If-None-Match": '"other"'}).content == first.content
    # A hold is in the answer, and so in its tag.
    hold = factories.hold(operator, first.json()["data"][0]["id"])
    now = operator.get("/v1/slots", params=query, headers={"If-None-Match": tag})
    assert (now.status_code, now.headers["etag"] == tag) == (200, False)
    operator.delete(f"/v1/holds/{hold['id']}")
    assert operator.get("/v1/slots", params=query, headers={"If-None-Match": tag}).status_code == 304


# -- many makers, and makers that die ---------------------------------------------------------------------------------


@asynccontextmanager
async def an_engine(postgres: Postgres, redis: RedisServer) -> AsyncIterator[tuple[Engine, Database]]:
    url = postgres.fresh()
    engine, database = Engine(from_env(store_environ(url, redis.url))), Database(url)
    await engine.ledger.pool.open()
    try:
        yield engine, database
    finally:
        await engine.drain()
        await engine.ledger.pool.close()
        await engine.holds.client.aclose()
        await database.close()


async def a_scheduled_person(database: Database, **fields: Any) -> Schedule:
    """Make a person with a schedule of an hourly service, and no slots yet."""
    venue = NewVenue(
        slug="venue", name="V", timezone="Europe/Berlin", payment="on_site", hold_ttl_seconds=None, hold_max_seconds=60
    )
    await Catalogue(database).create_venue(venue, None, None, msgspec.json.encode)
    resource = NewResource(venue="venue", name="P", kind="person")
    made = await Catalogue(database).create_resource(resource, None, None, msgspec.json.encode)
    service = timetable.NewService(
        venue="venue", name="Cut", duration_minutes=60, buffer_minutes=0, capacity=1, price_amount=None,
        price_currency=None, resource_ids=[],
    )  # fmt: skip
    service_made = await timetable.create_service(database, service, None, None, msgspec.json.encode)
    given = {
        "hours": every_day("09:00-17:00"), "step_minutes": 30, "from_date": date(2020, 1, 1), "to_date": None,
        "notice_minutes": 0, "horizon_days": 30, **fields,
    }  # fmt: skip
    schedule = timetable.NewSchedule(
        resource_id=UUID(msgspec.json.decode(made.body)["id"]),
        service_ids=[UUID(msgspec.json.decode(service_made.body)["id"])],
        **given,
    )
    answer = await timetable.create_schedule(database, schedule, None, None, msgspec.json.encode)
    return msgspec.json.decode(answer.body, type=Schedule)


async def rows(engine: Engine, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await engine.ledger.repeatable(statement, values)]


async def due_now(engine: Engine) -> None:
    await rows(engine, "UPDATE resources SET slots_due_at = now() RETURNING id")


@pytest.fixture(autouse=True)
def _on_one_day() -> None:
    """Begin no test that looks at days so late that it would end on the next one."""
    now = datetime.now(BERLIN)
    left = datetime(now.year, now.month, now.day, tzinfo=BERLIN) + DAY - now
    if left < MINUTE:
        time.sleep(left.total_seconds() + 0.1)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever changes a schedule wait for all of its slots: on a busy machine the worker would make the rest."""
    monkeypatch.setattr(schedules, "ON_DEMAND_SECONDS", 120.0)


async def wanted_and_open(engine: Engine, schedule: Schedule) -> tuple[set[UUID], set[UUID]]:
    """Compare what a schedule wants of the days to come, by the rules, with the open slots of its resource."""
    plan = await schedules._plan(engine.ledger, schedule.resource_id)
    assert plan is not None
    now = datetime.now(UTC) + MINUTE
    wanted = {slot for portion in schedules.portions(plan, now) for slot in portion.wanted}
    opened = await rows(engine, "SELECT id FROM slots WHERE status = 'open' AND starts_at > %s", now)
    return wanted, {slot for (slot,) in opened}


@pytest.mark.anyio
async def test_many_makers_at_once_make_each_slot_once(postgres: Postgres, bundled_redis_server: RedisServer):
    async with an_engine(postgres, bundled_redis_server) as (engine, database):
        schedule = await a_scheduled_person(database)
        done = await asyncio.gather(*(schedules.make_slots(engine, [schedule.resource_id]) for _ in range(6)))
        [(slots,)] = await rows(engine, "SELECT count(*) FROM slots")
        assert sum(each.made for each in done) == slots >= 15 * 30
        assert {(each.closed, each.reopened, each.changed, each.finished) for each in done} == {(0, 0, 0, True)}
        wanted, opened = await wanted_and_open(engine, schedule)
        assert wanted == opened
        again = await schedules.make_slots(engine, [schedule.resource_id])
        assert again == schedules.Done()
        # Told in a few lines, not in hundreds; by whom and how many.
        told = await rows(
            engine,
            "SELECT actor, sum((data ->> 'slots')::int),"
            "   bool_and(right(data ->> 'from', 1) || right(data ->> 'before', 1) = 'ZZ')"  # as on the wire
            " FROM events WHERE type = 'slots.made' GROUP BY 1",
        )
        assert told == [("system", slots, True)]


@pytest.mark.anyio
async def test_whoever_makes_slots_while_hours_change_the_newest_hours_win(
    postgres: Postgres, bundled_redis_server: RedisServer
):
    async with an_engine(postgres, bundled_redis_server) as (engine, database):
        schedule = await a_scheduled_person(database)

        async def change(spans: str) -> None:
            await timetable.change_schedule(
                database, schedule.id, {}, service_ids=None, hours=every_day(spans), request_id=None
            )
            await schedules.make_slots(engine, [schedule.resource_id])

        for n in range(4):
            spans = ["10:00-12:00", "11:00-20:00", "08:10-10:10"]
            await asyncio.gather(
                *(change(each) for each in spans[n % 3 :] + spans[: n % 3]), schedules.keep_ahead(engine)
            )
            await due_now(engine)
            while not (await schedules.keep_ahead(engine)).finished:
                pass
            wanted, opened = await wanted_and_open(engine, schedule)
            assert wanted == opened
            assert len(opened) > 30


@pytest.mark.anyio
async def test_lists_made_from_old_hours_are_refused(postgres: Postgres, bundled_redis_server: RedisServer):
    async with an_engine(postgres, bundled_redis_server) as (engine, database):
        schedule = await a_scheduled_person(database)
        plan = await schedules._plan(engine.ledger, schedule.resource_id)
        assert plan is not None
        await timetable.delete_schedule(database, schedule.id, None)
        assert await schedules._apply(engine.ledger, plan, next(schedules.portions(plan, datetime.now(UTC)))) is None
        assert await rows(engine, "SELECT 1 FROM slots") == []


@pytest.mark.anyio
async def test_what_a_dead_maker_left_is_finished_by_the_worker(postgres: Postgres, bundled_redis_server: RedisServer):
    async with an_engine(postgres, bundled_redis_server) as (engine, database):
        schedule = await a_scheduled_person(database)
        async for _ in schedules._applied(engine.ledger, schedule.resource_id, float("inf")):
            break  # it is killed after its first portion
        wanted, opened = await wanted_and_open(engine, schedule)
        assert opened < wanted
        done = await schedules.keep_ahead(engine)
        assert (done.made, done.finished) == (len(wanted - opened), True)
        wanted, opened = await wanted_and_open(engine, schedule)
        assert wanted == opened
        # Nothing is due for a while; then a look finds nothing to do.
        assert await schedules.keep_ahead(engine) == schedules.Done()
        [(wait,)] = await rows(engine, "SELECT slots_due_at > now() FROM resources")
        assert wait
        await due_now(engine)
        assert await schedules.keep_ahead(engine) == schedules.Done()


@pytest.mark.anyio
async def test_what_is_being_booked_is_not_waited_for(postgres: Postgres, bundled_redis_server: RedisServer):
    async with an_engine(postgres, bundled_redis_server) as (engine, database):
        schedule = await a_scheduled_person(database)
        await schedules.make_slots(engine, [schedule.resource_id])
        [(locked,)] = await rows(engine, "SELECT id FROM slots WHERE starts_at > now() + interval '1 day' LIMIT 1")
        await timetable.delete_schedule(database, schedule.id, None)
        with psycopg.connect(engine.settings.database_url) as rival:
            rival.execute("SELECT FROM slots WHERE id = %s FOR NO KEY UPDATE", (locked,))
            await schedules.make_slots(engine, [schedule.resource_id])
            assert await rows(engine, "SELECT id FROM slots WHERE status = 'open' AND starts_at > now()") == [(locked,)]
        await due_now(engine)
        assert (await schedules.keep_ahead(engine)).closed == 1
        await due_now(engine)
        assert await schedules.keep_ahead(engine) == schedules.Done()
        [(due,)] = await rows(engine, "SELECT slots_due_at FROM resources")
        assert due is None  # no schedule, no slots: nobody needs to look again


@pytest.mark.anyio
async def test_a_cancelled_booking_outside_of_the_hours_leaves_nothing_open(
    postgres: Postgres, bundled_redis_server: RedisServer
):
    async with an_engine(postgres, bundled_redis_server) as (engine, database):
        schedule = await a_scheduled_person(database)
        await schedules.make_slots(engine, [schedule.resource_id])
        [(slot_id,)] = await rows(engine, "SELECT id FROM slots WHERE starts_at > now() + interval '1 day' LIMIT 1")
        caller = Caller("customer", None)
        asked = booking.BookingRequest(slot_id=slot_id, customer=Customer("Ada", "ada@example.com"))
        booked, token = await booking.book(engine, asked, caller=caller)
        await timetable.delete_schedule(database, schedule.id, None)
        await schedules.make_slots(engine, [schedule.resource_id])
        assert await rows(engine, "SELECT id FROM slots WHERE status = 'open' AND starts_at > now()") == [(slot_id,)]
        await booking.cancel(engine, booked.id, token, caller=caller)
        await due_now(engine)
        assert (await schedules.keep_ahead(engine)).closed == 1
        assert await rows(engine, "SELECT id FROM slots WHERE status = 'open' AND starts_at > now()") == []


# -- a year of slots for fifty people ---------------------------------------------------------------------------------

PEOPLE, DAYS, A_DAY = 50, 365, 8


@pytest.fixture(scope="module")
def a_year(postgres: Postgres) -> str:
    """Make a venue with fifty people who all offer two services in turn, eight slots a day for a year."""
    url = postgres.fresh()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO venues (id, slug, name, timezone) VALUES (gen_random_uuid(), 'large', 'V', 'UTC')"
        )
        connection.execute(
            "INSERT INTO services (id, venue_id, name, duration_minutes) SELECT gen_random_uuid(), id, n::text, 30"
            " FROM venues, generate_series(1, 2) AS n"
        )
        connection.execute(
            "INSERT INTO resources (id, venue_id, name, kind) SELECT gen_random_uuid(), id, n::text, 'person'"
            " FROM venues, generate_series(1, %s) AS n",
            (PEOPLE,),
        )
        connection.execute("ALTER TABLE slots DISABLE TRIGGER slots_begin_empty")
        connection.execute(
            "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, service_id, starts_at, ends_at,"
            "   occupied_until, capacity, available_count, exclusive)"
            " SELECT gen_random_uuid(), r.venue_id, r.id, r.no, true, s.ids[1 + n %% 2],"
            "   t.at, t.at + interval '30 min', t.at + interval '30 min', 1, 1, true"
            " FROM resources AS r, (SELECT array_agg(id) AS ids FROM services) AS s,"
            "   generate_series(1, %s) AS d, generate_series(1, %s) AS n,"
            "   LATERAL (SELECT now() + d * interval '1 day' + n * interval '30 min') AS t (at)",
            (DAYS, A_DAY),
        )
        connection.execute("ANALYZE")
    return url


def looks_into(plan: dict[str, Any], table: str) -> tuple[set[str], float]:
    """Tell which indexes of a table a plan goes through, and how many of its rows it read."""
    indexes, read = set[str](), 0.0
    if plan.get("Index Name", "").startswith(f"{table}_"):
        indexes.add(plan["Index Name"])
    if plan.get("Relation Name") == table:
        read += (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    for inner in plan.get("Plans", ()):
        used, more = looks_into(inner, table)
        indexes, read = indexes | used, read + more
    return indexes, read


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "index"),
    [
        ({"service"}, "slots_by_service_time"),
        ({"service", "venue"}, "slots_by_service_time or slots_by_venue_time"),
        ({"service", "person"}, "slots_by_offer_time"),
        ({"service", "person", "venue"}, "slots_by_offer_time"),
        ({"person"}, "slots_by_resource_time"),
        ({"venue"}, "slots_by_venue_time"),
    ],
)
@pytest.mark.parametrize("party", [None, 1])
@pytest.mark.parametrize("later", [False, True], ids=["first page", "later page"])
async def test_a_page_of_a_year_for_fifty_people_reads_a_page(
    a_year: str, given: set[str], index: str, party: int | None, later: bool
):
    database = Database(a_year)
    asked: list[tuple[str, Any]] = []
    sa.event.listen(
        database._reading.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, values, *_: asked.append((statement, values)),
    )
    day = datetime.now(UTC) + 200 * DAY
    with psycopg.connect(a_year, autocommit=True) as connection:
        [service_id] = connection.execute("SELECT id FROM services LIMIT 1").fetchone() or ()
        [resource_id] = connection.execute("SELECT id FROM resources LIMIT 1").fetchone() or ()
        which = SlotFilter(
            venue="large" if "venue" in given else None,
            service_id=service_id if "service" in given else None,
            resource_id=resource_id if "person" in given else None,
            starts_from=day,
            starts_before=day + 30 * DAY,
            room_for=party,
        )
        try:
            page = await Catalogue(database).slots(which, None, 51)
            if later:
                asked.clear()
                page = await Catalogue(database).slots(which, (page[-1].starts_at, page[-1].id), 51)
        finally:
            await database.close()
        assert len(page) == 51
        [(statement, values)] = asked
        [[[explained]]] = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values).fetchall()
    [used], read = looks_into(explained["Plan"], "slots")
    assert used in index
    # Of 146,000: a page, and those that begin at the instants where it does; or all of one person in these 30 days.
    assert read <= 300
