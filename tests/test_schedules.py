"""Slots from working hours: the rules where clocks change, and slots that follow schedules but never bookings."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import msgspec
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from app import booking, hours, schedules, timetable
from app.catalogue import Catalogue, NewResource, NewVenue, SlotFilter
from app.database import Database
from app.domain import Caller, Customer, Deviation, Hours, Schedule
from app.engine import Engine
from app.hours import Lasting, Timetable
from app.settings import from_env
from tests import factories
from tests.redis_servers import RedisServer
from tests.service import Postgres, Service, store_environ

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
CUT = Lasting(UUID(int=1), 30, 0)


# -- the rules --------------------------------------------------------------------------------------------------------


def clock(text: str) -> int:
    hour, minute = text.split(":")
    return 60 * int(hour) + int(minute)


def every_day(*spans: str) -> list[Hours]:
    """Read "09:00-17:00" as hours of each weekday."""
    return [Hours(weekday, *(clock(each) for each in span.split("-"))) for weekday in range(1, 8) for span in spans]


def a_timetable(*spans: str, **fields: Any) -> Timetable:
    given = {
        "services": [CUT], "hours": every_day(*spans), "step_minutes": 30, "from_date": date(1970, 1, 1),
        "to_date": None, "notice_minutes": 0, "horizon_days": 14, **fields,
    }  # fmt: skip
    return Timetable(**given)


def off(day: date, span: str | None = None, to: date | None = None) -> Deviation:
    opens, closes = (clock(each) for each in span.split("-")) if span else (None, None)
    return Deviation(kind="off", from_date=day, to_date=to or day, opens=opens, closes=closes)


def extra(day: date, span: str) -> Deviation:
    opens, closes = (clock(each) for each in span.split("-"))
    return Deviation(kind="extra", from_date=day, to_date=day, opens=opens, closes=closes)


def on(day: date, timetable: Timetable, zone: ZoneInfo = BERLIN) -> list[str]:
    """List what a day offers as people read it: the wall times, the first of two marked by nothing."""
    found = list(hours.starts(timetable, zone, day, day + DAY))
    return [start.at.astimezone(zone).strftime("%H:%M") for start in found]


MONDAY = date(2030, 6, 3)


def test_starts_are_on_the_grid_and_end_by_closing_time():
    assert on(MONDAY, a_timetable("09:00-10:45")) == ["09:00", "09:30", "10:00"]
    assert on(MONDAY, a_timetable("09:10-10:10", step_minutes=15)) == ["09:10", "09:25", "09:40"]
    assert on(MONDAY, a_timetable("09:00-09:29")) == []
    assert on(MONDAY, a_timetable("09:00-17:00", services=[])) == []


def test_the_buffer_may_pass_closing_time():
    assert on(MONDAY, a_timetable("09:00-10:00", services=[Lasting(UUID(int=1), 30, 60)])) == ["09:00", "09:30"]


def test_each_service_fits_by_its_own_length():
    two = [CUT, Lasting(UUID(int=2), 60, 0)]
    found = hours.starts(a_timetable("09:00-10:00", services=two), BERLIN, MONDAY, MONDAY + DAY)
    assert [(start.at.astimezone(BERLIN).hour, start.at.minute, start.service.id.int) for start in found] == [
        (9, 0, 1), (9, 0, 2), (9, 30, 1),
    ]  # fmt: skip


def test_hours_that_touch_are_one_and_their_grids_both_count():
    day = a_timetable("09:00-09:45", "09:45-10:30", services=[Lasting(UUID(int=1), 60, 0)], step_minutes=15)
    assert on(MONDAY, day) == ["09:00", "09:15", "09:30"]
    assert on(MONDAY, a_timetable("09:00-10:00", "10:10-11:00")) == ["09:00", "09:30", "10:10"]


def test_a_night_is_one_stretch_across_midnight():
    night = a_timetable("22:00-24:00", "00:00-02:00", services=[Lasting(UUID(int=1), 120, 0)], step_minutes=60)
    assert on(MONDAY, night) == ["00:00", "22:00", "23:00"]


def test_a_service_of_days_needs_days_without_a_gap():
    week = a_timetable("00:00-24:00", services=[Lasting(UUID(int=1), 3 * 1440, 0)], step_minutes=1440)
    assert on(MONDAY, week) == ["00:00"]
    gap = a_timetable(
        "00:00-24:00",
        services=week.services,
        step_minutes=1440,
        deviations=[off(MONDAY + 2 * DAY, "12:00-12:30")],
    )
    assert [on(MONDAY + n * DAY, gap) for n in range(-1, 4)] == [["00:00"], [], [], [], ["00:00"]]


def test_weekdays_and_dates_bound_a_schedule():
    workdays = [Hours(weekday, 540, 600) for weekday in range(1, 6)]
    table = a_timetable(hours=workdays, from_date=MONDAY, to_date=MONDAY + 6 * DAY)
    found = hours.starts(table, BERLIN, MONDAY - 7 * DAY, MONDAY + 14 * DAY)
    assert sorted({start.at.date() for start in found}) == [MONDAY + n * DAY for n in range(5)]
    assert hours.last_day(table, MONDAY) == MONDAY + 6 * DAY
    assert hours.last_day(a_timetable(), MONDAY) == MONDAY + 14 * DAY


def test_a_day_off_extra_hours_and_both():
    def day(*deviations: Deviation) -> list[str]:
        return on(MONDAY, a_timetable("09:00-11:00", deviations=list(deviations)))

    assert day(off(MONDAY)) == []
    assert day(off(MONDAY - DAY, to=MONDAY + DAY)) == []
    assert day(off(MONDAY + DAY)) == ["09:00", "09:30", "10:00", "10:30"]
    # What is left keeps its grid: nobody's afternoon moves because of a free quarter of an hour.
    assert day(off(MONDAY, "09:15-09:50")) == ["10:00", "10:30"]
    assert day(extra(MONDAY, "18:10-19:10")) == ["09:00", "09:30", "10:00", "10:30", "18:10", "18:40"]
    assert day(off(MONDAY), extra(MONDAY, "10:00-11:00")) == ["10:00", "10:30"]


def test_an_exception_is_only_of_its_schedules_days():
    table = a_timetable("09:00-10:00", to_date=MONDAY, deviations=[extra(MONDAY + DAY, "09:00-10:00")])
    assert on(MONDAY + DAY, table) == []


# -- where clocks change ----------------------------------------------------------------------------------------------


def test_spring_in_berlin_skips_what_never_is():
    """02:00 becomes 03:00."""
    assert on(date(2030, 3, 31), a_timetable("01:00-04:00")) == ["01:00", "01:30", "03:00", "03:30"]
    # An hour that begins at half past one ends at half past three, and lasts an hour.
    hour = a_timetable("01:30-03:30", services=[Lasting(UUID(int=1), 60, 0)])
    assert on(date(2030, 3, 31), hour) == ["01:30"]


def test_autumn_in_berlin_offers_each_wall_time_once():
    """03:00 becomes 02:00."""
    found = [
        start.at for start in hours.starts(a_timetable("01:00-04:00"), BERLIN, date(2030, 10, 27), date(2030, 10, 28))
    ]
    assert [at.strftime("%H:%M") for at in found] == ["23:00", "23:30", "00:00", "00:30", "02:00", "02:30"]
    # Closing at half past two is the first half past two.
    assert on(date(2030, 10, 27), a_timetable("01:30-02:30")) == ["01:30", "02:00"]


def test_closing_at_a_time_that_is_skipped_is_closing_at_the_jump():
    assert on(date(2030, 3, 31), a_timetable("01:00-02:30")) == ["01:00", "01:30"]
    assert hours.moment(datetime(2030, 3, 31, 2, 30), BERLIN) == datetime(2030, 3, 31, 1, tzinfo=UTC)  # noqa: DTZ001


def test_a_day_that_never_was_offers_nothing():
    apia = ZoneInfo("Pacific/Apia")
    assert on(date(2011, 12, 30), a_timetable("00:00-24:00"), apia) == []
    assert hours.moment(datetime(2011, 12, 30, 12), apia) == datetime(2011, 12, 30, 10, tzinfo=UTC)  # noqa: DTZ001


#: Half an hour, a quarter of one for good, at midnight, with the moon; and the years in which clocks changed.
ZONES = {
    "Europe/Berlin": range(1980, 2041), "America/New_York": range(1970, 2041), "Australia/Lord_Howe": range(1981, 2041),
    "Africa/Casablanca": range(2008, 2041), "America/Sao_Paulo": range(1985, 2020), "Asia/Kathmandu": range(1985, 1987),
}  # fmt: skip


def transitions(name: str) -> Iterator[datetime]:
    """List the instants at which the clocks of a zone change, found by looking at each hour, then each minute."""
    zone, at = ZoneInfo(name), datetime(ZONES[name].start, 1, 1, tzinfo=UTC)
    end = datetime(ZONES[name].stop, 1, 1, tzinfo=UTC)
    while at < end:
        if at.astimezone(zone).utcoffset() == (at + DAY).astimezone(zone).utcoffset():
            at += DAY
            continue
        low, high = at, at + DAY
        while high - low > MINUTE:
            middle = low + ((high - low) // 2).total_seconds() // 60 * MINUTE
            same = middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset()
            low, high = (middle, high) if same else (low, middle)
        yield high
        at += DAY


def shown(zone: ZoneInfo, first: date, days: int) -> dict[datetime, datetime]:
    """Watch the clock on the wall minute by minute: what it showed, and when for the first time."""
    at = datetime.combine(first, time(), UTC) - DAY
    seen: dict[datetime, datetime] = {}
    for _ in range((days + 2) * hours.MINUTES_A_DAY):
        seen.setdefault(at.astimezone(zone).replace(tzinfo=None), at)
        at += MINUTE
    return seen


def offered_by_watching(timetable: Timetable, zone: ZoneInfo, day: date) -> list[tuple[datetime, UUID]]:
    """Follow the stated rules by watching a clock, instead of calculating."""
    wall_clock = shown(zone, day, 3)
    found = []
    for each in timetable.hours:
        if each.weekday != day.isoweekday():
            continue
        midnight = datetime.combine(day, time())
        closes = midnight + each.closes * MINUTE
        closes_at = min(at for wall, at in wall_clock.items() if wall >= closes)
        for minutes in range(each.opens, each.closes, timetable.step_minutes):
            at = wall_clock.get(midnight + minutes * MINUTE)
            found += [
                (at, service.id)
                for service in timetable.services
                if at is not None and at + service.duration_minutes * MINUTE <= closes_at
            ]
    return found


@pytest.mark.parametrize("name", ZONES)
def test_around_every_transition_the_starts_are_those_that_a_watched_clock_shows(name: str):
    zone = ZoneInfo(name)
    changes = list(transitions(name))
    assert len(changes) >= 1
    table = a_timetable(
        hours=[Hours(weekday, 0, 1440) for weekday in range(1, 8)],
        services=[Lasting(UUID(int=1), 15, 0), Lasting(UUID(int=2), 240, 0)],
        step_minutes=15,
    )
    for change in changes:
        for day in (change.astimezone(zone).date() + n * DAY for n in (-1, 0)):
            starts = list(hours.starts(table, zone, day, day + DAY))
            walls = [start.at.astimezone(zone).replace(tzinfo=None) for start in starts]
            assert all(wall.date() == day for wall in walls)
            assert all(start.at.astimezone(zone).fold == 0 for start in starts)
            assert walls == sorted(walls)
            assert [start.at for start in starts] == sorted(start.at for start in starts)
            of_one = [start.at for start in starts if start.service.id.int == 1]
            assert len(set(of_one)) == len(of_one)
            # Every quarter of an hour that there is, and no other.
            there = {
                wall for wall in (datetime.combine(day, time()) + n * 15 * MINUTE for n in range(96))
                if wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wall
            }  # fmt: skip
            assert set(walls) == there


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_hours_the_starts_are_those_that_a_watched_clock_shows(data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(ZONES)))
    zone = ZoneInfo(name)
    change = data.draw(st.sampled_from(list(transitions(name))))
    day = change.astimezone(zone).date() + data.draw(st.sampled_from([-1, 0, 1])) * DAY
    opens = data.draw(st.integers(0, 1439))
    span = data.draw(st.integers(1, 1440 - opens))
    table = a_timetable(
        hours=[Hours(day.isoweekday(), opens, opens + span)],
        services=[Lasting(UUID(int=n), data.draw(st.integers(1, 300)), 0) for n in range(2)],
        step_minutes=data.draw(st.integers(5, 120)),
    )
    starts = [(start.at, start.service.id) for start in hours.starts(table, zone, day, day + DAY)]
    assert starts == offered_by_watching(table, zone, day)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_off_hours_only_take_away_and_extra_hours_only_add(data: st.DataObject):
    def some_hours() -> tuple[int, int]:
        opens = data.draw(st.integers(0, 1439))
        return opens, data.draw(st.integers(opens + 1, 1440))

    table = a_timetable(hours=[Hours(weekday, *some_hours()) for weekday in range(1, 8)], step_minutes=20)
    opens, closes = some_hours()
    kind = data.draw(st.sampled_from(["off", "extra"]))
    differs = Deviation(kind=kind, from_date=MONDAY, to_date=MONDAY + DAY, opens=opens, closes=closes)
    before = set(hours.starts(table, BERLIN, MONDAY - 7 * DAY, MONDAY + 7 * DAY))
    table = a_timetable(hours=table.hours, step_minutes=20, deviations=[differs])
    after = set(hours.starts(table, BERLIN, MONDAY - 7 * DAY, MONDAY + 7 * DAY))
    assert after <= before if kind == "off" else after >= before
    days = {start.at.astimezone(BERLIN).date() for start in after ^ before}
    # An appointment of the evening before may have ended in the hours that are off now.
    assert days <= {MONDAY - DAY, MONDAY, MONDAY + DAY}
    for start in after if kind == "off" else ():
        end = (start.at + start.service.duration_minutes * MINUTE).astimezone(BERLIN).replace(tzinfo=None)
        begin = start.at.astimezone(BERLIN).replace(tzinfo=None)
        for day in (MONDAY, MONDAY + DAY):
            midnight = datetime.combine(day, time())
            assert end <= midnight + opens * MINUTE or begin >= midnight + closes * MINUTE


def test_days_cut_anywhere_offer_the_same():
    table = a_timetable("22:00-24:00", "00:00-03:00", services=[CUT, Lasting(UUID(int=2), 120, 0)], step_minutes=20)
    first, days = date(2030, 3, 25), 14
    whole = list(hours.starts(table, BERLIN, first, first + days * DAY))
    pieces = [list(hours.starts(table, BERLIN, first + n * DAY, first + (n + 1) * DAY)) for n in range(days)]
    assert list(itertools.chain.from_iterable(pieces)) == whole


def test_the_name_of_a_slot_says_what_it_is():
    person, at = uuid4(), datetime(2030, 6, 3, 9, tzinfo=UTC)
    named = hours.slot_id(person, CUT, at)
    assert named == hours.slot_id(person, Lasting(CUT.id, 30, 0), at.astimezone(BERLIN))
    others = {
        hours.slot_id(uuid4(), CUT, at),
        hours.slot_id(person, Lasting(uuid4(), 30, 0), at),
        hours.slot_id(person, Lasting(CUT.id, 45, 0), at),
        hours.slot_id(person, Lasting(CUT.id, 30, 5), at),
        hours.slot_id(person, CUT, at + MINUTE),
    }
    assert len(others | {named}) == 6
    assert (named.version, named.variant) == (8, "specified in RFC 4122")


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
            engine, "SELECT actor, sum((data ->> 'slots')::int) FROM events WHERE type = 'slots.made' GROUP BY 1"
        )
        assert told == [("system", slots)]


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
