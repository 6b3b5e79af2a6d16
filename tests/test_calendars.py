"""Calendars: feeds over HTTP, read back with icalendar, and the view of a day or week in a terminal."""

import asyncio
import json
import logging
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import icalendar
import msgspec
import psycopg
import pytest
from rich.console import Console

from app.calendars import agenda, bookings, ical
from app.calendars.agenda import Line, Look, Named, Slot, Taken
from app.calendars.bookings import Entry
from app.calendars.feeds import Subject
from app.cli import calendar as calendar_command
from app.cli import cli, stores
from app.cli.failing import DONE, NOT_FOUND, USAGE, guarded
from tests import factories
from tests.service import HOLDFAST, START_SECONDS, Postgres, Service, eventually, free_port, is_ready, store_environ

HOSTILE = 'Ada, "Countess";\r\nSTATUS:CANCELLED\r\n\\n Lovelace 👩🏽\N{ZERO WIDTH JOINER}🚀 \N{RIGHT-TO-LEFT OVERRIDE}x'
#: As one line that can be seen: nothing is lost but what breaks lines or turns them around.
HARMLESS = 'Ada, "Countess"; STATUS:CANCELLED \\n Lovelace 👩🏽\N{ZERO WIDTH JOINER}🚀 x'


@pytest.fixture
def operator(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis, operator=True) as client:
        yield client


@pytest.fixture
def everyone(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis) as client:
        yield client


def feed(operator: httpx.Client, venue: str, resource_id: str | None = None, **headers: str) -> dict[str, Any]:
    wanted = {"venue": venue} | ({"resource_id": resource_id} if resource_id else {})
    return factories.made(operator.post("/v1/calendar-feeds", json=wanted, headers=headers))


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


def events(calendar: icalendar.Calendar) -> dict[str, icalendar.Event]:
    found = {str(event["uid"]): event for event in calendar.events}
    assert len(found) == len(calendar.events)
    return found


def event_of(client: httpx.Client, made: dict[str, Any], booking_id: str) -> icalendar.Event:
    return events(read(client, made))[f"{booking_id}@holdfast"]


def named(slot_id: str, name: str, quantity: int = 1) -> dict[str, Any]:
    return factories.booking_body(slot_id, quantity, customer={"name": name, "email": "ada@example.com"})


# -- what is in a feed ------------------------------------------------------------------------------------------------


def test_a_confirmed_booking_is_an_event(operator: httpx.Client, everyone: httpx.Client) -> None:
    of = factories.resource(operator, factories.venue(operator, name="Boats, & more")["slug"], name="Lake")
    slot = factories.slot(operator, of, capacity=10)
    booked = factories.booking(everyone, slot["id"], quantity=3)
    made = feed(operator, of["venue"])
    calendar = read(everyone, made)

    assert (str(calendar["version"]), str(calendar["prodid"])) == ("2.0", "-//Holdfast//Bookings//EN")
    assert str(calendar["name"]) == str(calendar["x-wr-calname"]) == "Boats, & more"
    assert calendar["refresh-interval"].dt == timedelta(minutes=15)
    assert str(calendar["x-published-ttl"]) == "PT15M"
    [event] = calendar.events
    assert str(event["uid"]) == f"{booked['id']}@holdfast"
    assert str(event["status"]) == "CONFIRMED"
    assert event["sequence"] == 0
    assert str(event["summary"]) == "Ada Lovelace · 3 \N{MULTIPLICATION SIGN} Lake"
    assert str(event["description"]) == f"Places: 3\nBooking: {booked['id']}"
    assert str(event["location"]) == "Boats, & more"
    assert event.start == datetime.fromisoformat(slot["starts_at"])
    assert event.end == datetime.fromisoformat(slot["ends_at"])
    confirmed_at = datetime.fromisoformat(booked["confirmed_at"]).replace(microsecond=0)
    assert event["dtstamp"].dt == event["last-modified"].dt == confirmed_at


def test_nobody_is_told_an_address_or_a_number(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator)
    customer = {"name": "Ada", "email": "secret.ada@example.com", "phone": "+49 30 1234567"}
    booked = factories.made(everyone.post("/v1/bookings", json=factories.booking_body(slot["id"], customer=customer)))
    told = everyone.get(path_of(feed(operator, slot["venue"]))).text
    assert "Ada" in told
    for secret in ("secret.ada", "1234567", booked["manage_token"]):
        assert secret not in told.replace("\r\n ", "")


def test_a_cancelled_booking_says_so(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator)
    made = feed(operator, slot["venue"])
    booked = factories.booking(everyone, slot["id"])
    before = event_of(everyone, made, booked["id"])
    cancelled = operator.post(f"/v1/bookings/{booked['id']}/cancel").json()
    after = event_of(everyone, made, booked["id"])
    assert (before["sequence"], after["sequence"]) == (0, 1)
    assert str(after["status"]) == "CANCELLED"
    assert str(after["transp"]) == "TRANSPARENT"
    assert str(after["summary"]).startswith("Cancelled: Ada Lovelace")
    assert after["last-modified"].dt == datetime.fromisoformat(cancelled["cancelled_at"]).replace(microsecond=0)
    assert after.start == before.start


def test_a_moved_booking_is_the_same_event_later(
    with_redis: Service, operator: httpx.Client, everyone: httpx.Client
) -> None:
    of = factories.resource(operator, factories.venue(operator)["slug"])
    old, new = factories.slot(operator, of), factories.slot(operator, of, hours=5)
    made = feed(operator, of["venue"])
    booked = factories.booking(everyone, old["id"])
    before = event_of(everyone, made, booked["id"])
    moved = with_redis.query(
        "SELECT word FROM move_booking(%s, %s, NULL, NULL, 'operator', NULL)", UUID(booked["id"]), UUID(new["id"])
    )
    assert moved[0] == ("moved",)
    after = event_of(everyone, made, booked["id"])
    assert (before["sequence"], after["sequence"]) == (0, 1)
    assert after.start == datetime.fromisoformat(new["starts_at"])
    [(at,)] = with_redis.query("SELECT at FROM events WHERE type = 'booking.rescheduled' AND slot_id = %s", new["id"])
    assert after["last-modified"].dt == at.replace(microsecond=0)
    operator.post(f"/v1/bookings/{booked['id']}/cancel").raise_for_status()
    assert event_of(everyone, made, booked["id"])["sequence"] == 2


def test_what_waits_for_payment_is_tentative_and_holds_are_no_events(
    with_redis: Service, operator: httpx.Client, everyone: httpx.Client
) -> None:
    slot = factories.slot(operator, capacity=5)
    made = feed(operator, slot["venue"])
    factories.hold(everyone, slot["id"])
    pending = uuid4()
    for booking_id, status, name in ((pending, "pending_payment", "Ada"), (uuid4(), "held", None)):
        with_redis.query(
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, expires_at, customer_name,"
            " customer_email, available_after) SELECT %s, venue_id, id, exclusive, 1, %s, now() + interval '1 hour',"
            " %s, %s, 3 FROM slots WHERE id = %s RETURNING 1",
            booking_id, status, name, name and "ada@example.com", slot["id"],
        )  # fmt: skip
    [event] = read(everyone, made).events
    assert str(event["uid"]) == f"{pending}@holdfast"
    assert str(event["status"]) == "TENTATIVE"
    assert str(event["description"]).startswith("Waiting for payment\n")


def test_hostile_names_stay_in_their_place(operator: httpx.Client, everyone: httpx.Client) -> None:
    venue = factories.venue(operator, name=f"{HOSTILE}; Boats")
    of = factories.resource(operator, venue["slug"], name=HOSTILE)
    slot = factories.slot(operator, of)
    factories.made(everyone.post("/v1/bookings", json=named(slot["id"], HOSTILE)))
    calendar = read(everyone, feed(operator, venue["slug"], of["id"]))
    assert str(calendar["name"]) == f"{HARMLESS} · {HARMLESS}; Boats"
    [event] = calendar.events
    assert str(event["status"]) == "CONFIRMED"
    assert str(event["summary"]) == f"{HARMLESS} · 1 \N{MULTIPLICATION SIGN} {HARMLESS}"
    assert str(event["location"]) == f"{HARMLESS}; Boats"


@pytest.mark.parametrize("local", ["2027-03-28T01:30", "2027-10-31T02:30", "2027-10-31T03:30"])
def test_times_are_utc_whatever_the_clocks_do(operator: httpx.Client, everyone: httpx.Client, local: str) -> None:
    """Around the hours that Berlin skips or has twice, or in another year at the same hour: a feed shows one year."""
    begin = datetime.fromisoformat(local).replace(tzinfo=UTC)
    while begin > datetime.now(UTC) + timedelta(days=360):
        begin -= timedelta(days=364)
    while begin < datetime.now(UTC) + timedelta(hours=1):  # it is over: nobody could book it
        begin += timedelta(days=364)
    of = factories.resource(operator, factories.venue(operator)["slug"])
    times = {"starts_at": begin.isoformat(), "ends_at": (begin + timedelta(hours=2)).isoformat()}
    slot = factories.made(operator.post("/v1/slots", json={**factories.slot_body(of), **times}))
    factories.booking(everyone, slot["id"])
    [event] = read(everyone, feed(operator, of["venue"])).events
    assert (event.start, event.end) == (begin, begin + timedelta(hours=2))
    assert event.start.tzinfo is not None
    assert event["dtstart"].to_ical() == begin.strftime("%Y%m%dT%H%M%SZ").encode()


def test_a_feed_shows_its_own_bookings_only(operator: httpx.Client, everyone: httpx.Client) -> None:
    venue = factories.venue(operator)["slug"]
    ada, ben = (factories.resource(operator, venue, name=name, kind="person") for name in ("Ada", "Ben"))
    elsewhere = factories.resource(operator, factories.venue(operator)["slug"])
    booked = {
        name: factories.booking(everyone, factories.slot(operator, of)["id"])["id"]
        for name, of in (("ada", ada), ("ben", ben), ("elsewhere", elsewhere))
    }
    uids = {name: f"{booking_id}@holdfast" for name, booking_id in booked.items()}
    assert events(read(everyone, feed(operator, venue))).keys() == {uids["ada"], uids["ben"]}
    assert events(read(everyone, feed(operator, venue, ada["id"]))).keys() == {uids["ada"]}
    assert events(read(everyone, feed(operator, elsewhere["venue"]))).keys() == {uids["elsewhere"]}


def test_bounds_are_thirty_days_and_a_year(with_redis: Service, operator: httpx.Client, everyone: httpx.Client) -> None:
    of = factories.resource(operator, factories.venue(operator)["slug"])
    shown = set()
    for days, is_shown in ((-32, False), (-29, True), (0, True), (364, True), (367, False)):
        booking_id = store_booking(with_redis.database_url, of["id"], datetime.now(UTC) + timedelta(days=days))
        shown |= {f"{booking_id}@holdfast"} if is_shown else set()
    assert events(read(everyone, feed(operator, of["venue"]))).keys() == shown


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


# -- asking again -----------------------------------------------------------------------------------------------------


def test_what_did_not_change_is_not_sent_again(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=2)
    path = path_of(feed(operator, slot["venue"]))
    factories.booking(everyone, slot["id"])
    first = everyone.get(path)
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    assert first.headers["cache-control"] == "private, no-cache"
    assert first.headers["content-type"] == "text/calendar; charset=utf-8"
    assert first.headers["content-disposition"] == 'inline; filename="calendar.ics"'
    assert everyone.get(path).content == first.content
    for known in (tag, f'"other", W/{tag}', "*"):
        same = everyone.get(path, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert "content-type" not in same.headers
    assert everyone.get(path, headers={"If-None-Match": '"other"'}).status_code == 200

    factories.booking(everyone, slot["id"])
    changed = everyone.get(path, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.headers["etag"] != tag) == (200, True)


def test_head_answers_as_get_without_the_body(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator)
    path = path_of(feed(operator, slot["venue"]))
    got, looked = everyone.get(path), everyone.head(path)
    assert (looked.status_code, looked.content) == (200, b"")
    for name in ("etag", "content-type", "content-length", "cache-control"):
        assert looked.headers[name] == got.headers[name]
    assert everyone.head(path, headers={"If-None-Match": got.headers["etag"]}).status_code == 304
    assert everyone.head(path.replace(".ics", "x.ics")).status_code == 404


# -- who may read -----------------------------------------------------------------------------------------------------


def test_an_unknown_secret_opens_nothing(operator: httpx.Client, everyone: httpx.Client) -> None:
    path = path_of(feed(operator, factories.venue(operator)["slug"]))
    assert re.fullmatch(r"/v1/calendars/[A-Za-z0-9_-]{32}\.ics", path)
    other = "B" if path[20] == "A" else "A"
    for wrong in (
        path.removesuffix(".ics"),
        path.replace(path[14:24], other * 10),
        "/v1/calendars/.ics",
        f"/v1/calendars/{'%00' * 32}.ics",
        f"/v1/calendars/{'é' * 32}.ics",
        f"/v1/calendars/{'A' * 5000}.ics",
        f"{path}%0A",
    ):
        answer = everyone.get(wrong)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), wrong
        assert answer.json()["code"] == "not_found"


def test_a_rotated_address_is_dead_at_once(operator: httpx.Client, everyone: httpx.Client) -> None:
    made = feed(operator, factories.venue(operator)["slug"])
    rotated = operator.post(f"/v1/calendar-feeds/{made['id']}/rotate")
    assert rotated.status_code == 200
    assert rotated.json()["url"] != made["url"]
    assert rotated.json()["rotated_at"] is not None
    assert everyone.get(path_of(made)).status_code == 404
    assert everyone.get(path_of(rotated.json())).status_code == 200


def test_a_removed_feed_is_dead_and_another_can_be_made(operator: httpx.Client, everyone: httpx.Client) -> None:
    venue = factories.venue(operator)["slug"]
    made = feed(operator, venue)
    for _ in range(2):
        assert operator.delete(f"/v1/calendar-feeds/{made['id']}").status_code == 204
    assert everyone.get(path_of(made)).status_code == 404
    assert operator.post(f"/v1/calendar-feeds/{made['id']}/rotate").status_code == 404
    assert operator.get("/v1/calendar-feeds", params={"venue": venue}).json()["data"] == []
    assert feed(operator, venue)["id"] != made["id"]


def test_there_is_one_feed_of_a_calendar(with_redis: Service, operator: httpx.Client) -> None:
    venue = factories.venue(operator)["slug"]
    of = factories.resource(operator, venue)
    made = [feed(operator, venue), feed(operator, venue, of["id"])]
    for wanted in ({"venue": venue}, {"venue": venue, "resource_id": of["id"]}):
        again = operator.post("/v1/calendar-feeds", json=wanted)
        assert (again.status_code, again.json()["code"]) == (409, "conflict")
    page = operator.get("/v1/calendar-feeds", params={"venue": venue, "limit": 1}).json()
    rest = operator.get("/v1/calendar-feeds", params={"venue": venue, "cursor": page["next_cursor"]}).json()
    listed = [*page["data"], *rest["data"]]
    assert [one["id"] for one in listed] == [one["id"] for one in made]
    assert [one["resource"] for one in listed] == [None, {"id": of["id"], "name": "Ada"}]
    assert "url" not in listed[0]
    # Nowhere in the database, either: only hashes.
    [row] = with_redis.query("SELECT f::text FROM calendar_feeds AS f WHERE id = %s", made[0]["id"])
    assert path_of(made[0])[14:46] not in row[0]
    told = with_redis.query(
        "SELECT data FROM events WHERE type = 'calendar.created' AND data->>'feed_id' = %s", made[0]["id"]
    )
    assert told == [({"feed_id": made[0]["id"]},)]


def test_only_what_belongs_together_gets_a_feed(operator: httpx.Client, everyone: httpx.Client) -> None:
    elsewhere = factories.resource(operator, factories.venue(operator)["slug"])
    venue = factories.venue(operator)["slug"]
    for wanted, code in (
        ({"venue": "nowhere"}, "venue_not_found"),
        ({"venue": venue, "resource_id": elsewhere["id"]}, "not_found"),
        ({"venue": venue, "resource_id": str(uuid4())}, "not_found"),
    ):
        answer = operator.post("/v1/calendar-feeds", json=wanted)
        assert (answer.status_code, answer.json()["code"]) == (404, code)
    assert operator.delete(f"/v1/calendar-feeds/{uuid4()}").status_code == 404
    assert operator.delete("/v1/calendar-feeds/what").status_code == 404
    assert everyone.post("/v1/calendar-feeds", json={"venue": venue}).status_code == 401


# -- retries ----------------------------------------------------------------------------------------------------------


def test_a_repeated_request_is_told_the_same_address(operator: httpx.Client, everyone: httpx.Client) -> None:
    venue, key = factories.venue(operator)["slug"], {"Idempotency-Key": str(uuid4())}
    first = operator.post("/v1/calendar-feeds", json={"venue": venue}, headers=key)
    again = operator.post("/v1/calendar-feeds", json={"venue": venue}, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    reused = operator.post("/v1/calendar-feeds", json={"venue": factories.venue(operator)["slug"]}, headers=key)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")

    rotate = f"/v1/calendar-feeds/{first.json()['id']}/rotate"
    rotated, repeated = (operator.post(rotate, headers=key) for _ in range(2))
    assert rotated.json()["url"] != first.json()["url"]
    assert repeated.json() == rotated.json()
    assert repeated.headers["idempotency-replayed"] == "true"
    # What was replaced since can be told no more, and a late retry does not bring it back.
    assert operator.post("/v1/calendar-feeds", json={"venue": venue}, headers=key).status_code == 409
    newest = operator.post(rotate).json()
    assert operator.post(rotate, headers=key).status_code == 409
    assert [everyone.get(path_of(one)).status_code for one in (first.json(), rotated.json(), newest)] == [404, 404, 200]
    operator.delete(f"/v1/calendar-feeds/{first.json()['id']}").raise_for_status()
    assert operator.post("/v1/calendar-feeds", json={"venue": venue}, headers=key).status_code == 409


def test_two_at_once_are_told_the_same(with_redis: Service, operator: httpx.Client) -> None:
    venue, key = factories.venue(operator)["slug"], {"Idempotency-Key": str(uuid4())}
    for body in ({"venue": venue}, None):
        path = "/v1/calendar-feeds"
        if body is None:
            [made] = operator.get(path, params={"venue": venue}).json()["data"]
            path += f"/{made['id']}/rotate"
        told: list[httpx.Response] = []

        def ask(path: str = path, body: Any = body, told: list[httpx.Response] = told) -> None:
            with factories.client(with_redis, operator=True) as client:
                told.append(client.post(path, json=body, headers=key))

        rivals = [threading.Thread(target=ask) for _ in range(6)]
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join()
        assert {answer.status_code for answer in told} <= {200, 201}, [answer.text for answer in told]
        assert len({answer.json()["url"] for answer in told}) == 1


# -- what is not told -------------------------------------------------------------------------------------------------


def test_no_log_line_and_no_metric_holds_a_secret(postgres: Postgres, with_redis: Service, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    assert with_redis.redis is not None
    environ = {**os.environ, **store_environ(postgres.fresh(), with_redis.redis.url)}
    with log.open("wb") as sink:
        process = subprocess.Popen([HOLDFAST, "serve", "--port", str(port)], env=environ, stdout=sink, stderr=sink)
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: is_ready(url), "the service to be ready", seconds=START_SECONDS)
            headers = {"Authorization": f"Bearer {environ['HOLDFAST_OPERATOR_KEY']}"}
            with httpx.Client(base_url=url, timeout=30) as client:
                client.post(
                    "/v1/venues", json={"slug": "salon", "name": "S", "timezone": "UTC"}, headers=headers
                ).raise_for_status()
                made = factories.made(client.post("/v1/calendar-feeds", json={"venue": "salon"}, headers=headers))
                path = path_of(made)
                for asked in (path, f"{path}?x=1", f"{path}/", f"{path}/more", path.removesuffix(".ics")):
                    client.get(asked)
                    client.head(asked)
                    client.post(asked, json={})
                metrics = client.get("/metrics").text
        finally:
            process.terminate()
            process.wait(timeout=START_SECONDS)
    told = log.read_text()
    assert '"route":"/v1/calendars/{calendar}"' in told
    assert 'route="/v1/calendars/{calendar}"' in metrics
    secret = path.removeprefix("/v1/calendars/").removesuffix(".ics")
    for everything in (told, metrics):
        assert secret not in everything
        assert made["url"] not in everything


# -- many bookings ----------------------------------------------------------------------------------------------------


def entry(**changes: Any) -> Entry:
    at = datetime(2026, 11, 21, 10, tzinfo=UTC)
    facts: dict[str, Any] = {
        "booking_id": uuid4(), "sequence": 0, "status": "confirmed", "changed_at": at, "starts_at": at,
        "ends_at": at + timedelta(hours=1), "resource_name": "Ada", "service_name": None, "customer_name": "Ben",
        "quantity": 1,
    }  # fmt: skip
    return Entry(**{**facts, **changes})


SUBJECT = Subject(venue_id=uuid4(), venue_name="Salon", resource_id=None, resource_name=None)


@pytest.mark.anyio
async def test_many_events_leave_time_for_others() -> None:
    """The loop goes on while a large calendar is written: others get their turn many times."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    rival = asyncio.create_task(others())
    written = await ical.calendar(SUBJECT, [entry() for _ in range(300)])
    rival.cancel()
    assert turns > 5
    assert len(parsed(written).events) == 300


@pytest.mark.parametrize("change", [
    {"sequence": 1}, {"status": "cancelled"}, {"customer_name": "Bob"}, {"quantity": 2}, {"service_name": "Haircut"},
    {"changed_at": datetime(2026, 1, 1, tzinfo=UTC)}, {"resource_name": "Eve"},
])  # fmt: skip
def test_whatever_is_shown_is_in_the_etag(change: dict[str, Any]) -> None:
    booking_id = uuid4()
    before, after = entry(booking_id=booking_id), entry(booking_id=booking_id, **change)
    assert ical.etag(SUBJECT, [before]) != ical.etag(SUBJECT, [after])
    assert ical.etag(SUBJECT, [before]) == ical.etag(SUBJECT, [entry(booking_id=booking_id)])
    assert ical.etag(SUBJECT, [before]) != ical.etag(msgspec.structs.replace(SUBJECT, venue_name="Bar"), [before])


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


@pytest.mark.parametrize(
    ("statement", "whose"), [(bookings.OF_VENUE, "venue_id"), (bookings.OF_RESOURCE, "resource_id")]
)
def test_a_feed_is_read_along_indexes(crowded: str, statement: str, whose: str) -> None:
    now = datetime.now(UTC)
    with psycopg.connect(crowded, autocommit=True) as connection:
        [(subject, total)] = connection.execute(
            f"SELECT min({whose}::text)::uuid, (SELECT count(*) FROM bookings) FROM slots"
        ).fetchall()
        values = {
            "whose": subject, "since": now - timedelta(days=30), "today": now, "until": now + timedelta(days=365),
            "most_ahead": bookings.MOST_AHEAD, "most_past": bookings.MOST_PAST,
        }  # fmt: skip
        rows = connection.execute(f"EXPLAIN (ANALYZE, TIMING off) {statement}", values).fetchall()
        plan = "\n".join(row[0] for row in rows)
        found = connection.execute(statement, values).fetchall()
    assert total > 40_000
    assert f"slots_by_{whose.removesuffix('_id')}_time" in plan
    assert re.search("Index Scan (using|on) bookings_", plan), plan
    assert "Seq Scan on bookings" not in plan, plan
    assert "Seq Scan on slots" not in plan, plan
    # Of more than a calendar can bear: the first to come, and the last that were.
    assert len(found) <= bookings.MOST_AHEAD + bookings.MOST_PAST
    starts = [row[3] for row in found]
    assert starts == sorted(starts)
    ahead = [at for at in starts if at >= now]
    assert len(ahead) == bookings.MOST_AHEAD
    assert max(ahead) < now + timedelta(days=365)
    assert len(starts) - len(ahead) == 30 * 2 * 6


# -- what an agenda tells ---------------------------------------------------------------------------------------------

NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
ANNA, WALK = Named(uuid4(), "Anna"), Named(uuid4(), "City walk")


def start(minutes: int, lasting: int = 30, *, buffer: int = 0, taken: int = 0, **changes: Any) -> Slot:
    """Describe a slot of a person that begins so many minutes after nine."""
    begin = NINE + timedelta(minutes=minutes)
    end = begin + timedelta(minutes=lasting)
    facts: dict[str, Any] = {
        "id": uuid4(), "resource": ANNA, "service": None, "starts_at": begin, "ends_at": end,
        "occupied_until": end + timedelta(minutes=buffer), "bookable_until": begin, "capacity": 1,
        "available_count": changes.get("capacity", 1) - taken, "open": True, "unwanted": False, "one_at_a_time": True,
    }  # fmt: skip
    return Slot(**{**facts, **changes})


def booked(slot: Slot, quantity: int = 1, **changes: Any) -> Taken:
    facts: dict[str, Any] = {
        "kind": "booking", "id": uuid4(), "slot_id": slot.id, "quantity": quantity, "status": "confirmed",
        "customer": "Ben",
    }  # fmt: skip
    return Taken(**{**facts, **changes})


def held(slot: Slot, quantity: int = 1) -> Taken:
    return booked(slot, quantity, kind="hold", status="held", customer=None, only_in_redis=True)


def told(slots: list[Slot], *taken: Taken, now: datetime = NINE - timedelta(hours=1)) -> list[Line]:
    seen = Look(slots, list(taken), True)
    return agenda.lines(seen, NINE - timedelta(hours=9), NINE + timedelta(hours=15), now)


def spans(lines: list[Line], kind: str) -> list[tuple[int, int]]:
    """Tell from when to when, in minutes after nine."""
    minute = timedelta(minutes=1)
    return [((x.starts_at - NINE) // minute, (x.ends_at - NINE) // minute) for x in lines if x.kind == kind]


def test_a_grid_of_starts_is_told_as_free_time() -> None:
    grid = [start(minutes, lasting) for minutes in range(0, 480, 15) for lasting in (30, 90)]
    assert spans(told(grid), "free") == [(0, 465 + 90)]
    busy = start(120, 60, buffer=15, taken=1)
    lines = told([*grid, busy], booked(busy))
    assert spans(lines, "booking") == [(120, 180)]
    assert spans(lines, "free") == [(0, 120), (195, 555)]


def test_what_a_hold_keeps_is_not_free() -> None:
    grid = [start(minutes) for minutes in range(0, 180, 30)]
    lines = told(grid, held(grid[2]))
    assert spans(lines, "hold") == [(60, 90)]
    assert spans(lines, "free") == [(0, 60), (90, 180)]
    # One that Postgres keeps is in its count already.
    [free] = [line for line in told([start(0, capacity=5, one_at_a_time=False, taken=2)]) if line.kind == "free"]
    assert free.quantity == 3


def test_times_at_most_a_buffer_apart_are_one() -> None:
    assert spans(told([start(0, buffer=15), start(45, buffer=15), start(91)]), "free") == [(0, 75), (91, 121)]


def test_places_of_a_class_are_told_one_by_one() -> None:
    tours = [start(minutes, 60, capacity=10, one_at_a_time=False, resource=WALK) for minutes in (0, 0, 60)]
    tours[0] = msgspec.structs.replace(tours[0], available_count=8)
    lines = told(tours, booked(tours[0], 2), held(tours[0], 3))
    assert [(line.kind, line.quantity) for line in lines if line.slot_id == tours[0].id] == [
        ("booking", 2), ("hold", 3), ("free", 5),
    ]  # fmt: skip
    assert [line.quantity for line in lines if line.slot_id != tours[0].id] == [10, 10]


def test_what_is_full_past_or_closed_is_not_free() -> None:
    full = start(0, taken=1)
    late = start(60, bookable_until=NINE - timedelta(hours=2))
    closed = [start(120, open=False), start(150, open=False), start(150, 90, open=False), start(180)]
    unwanted = start(300, open=False, unwanted=True)
    lines = told([full, late, *closed, unwanted], booked(full))
    assert spans(lines, "booking") == [(0, 30)]
    assert spans(lines, "free") == [(180, 210)]
    assert spans(lines, "closed") == [(120, 180), (210, 240)]
    assert spans(told([start(0), start(30), start(60)], now=NINE + timedelta(minutes=30)), "free") == [(60, 90)]


# -- holdfast calendar ------------------------------------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")
#: A Monday on which nothing is past, in weeks without a change of the clocks in most years.
MONDAY = datetime.now(BERLIN).date() + timedelta(days=14 - datetime.now(BERLIN).weekday())


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def data(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.out)["data"]
        return found


@pytest.fixture
def holdfast(
    with_redis: Service, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Answer]:
    """Run a command in this process, beside the service whose stores it reads."""
    assert with_redis.redis is not None
    for name, value in store_environ(with_redis.database_url, with_redis.redis.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    monkeypatch.setattr(stores, "be_quiet", lambda: None)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)

    def run(*arguments: str, columns: int = 100, command: str = "calendar") -> Answer:
        monkeypatch.setattr(calendar_command, "out", lambda: Console(highlight=False, width=columns))
        capfd.readouterr()
        code = guarded(lambda: cli.main([command, *arguments], standalone_mode=False))
        return Answer(code, *capfd.readouterr())

    return run


@dataclass
class Salon:
    """A person with appointments from nine to five, and a tour of ten; on a Monday."""

    slug: str
    anna: dict[str, Any]
    walk: dict[str, Any]
    slots: list[dict[str, Any]]
    tour: dict[str, Any]


@pytest.fixture
def salon(operator: httpx.Client) -> Salon:
    slug = factories.venue(operator, name="Salon")["slug"]
    anna = factories.resource(operator, slug, name=factories.unique("Anna"), kind="person")
    walk = factories.resource(operator, slug, name="City walk")

    def slot(of: dict[str, Any], hour: int, minutes: int, capacity: int) -> dict[str, Any]:
        begin = datetime(MONDAY.year, MONDAY.month, MONDAY.day, hour, tzinfo=BERLIN)
        times = {"starts_at": begin.isoformat(), "ends_at": (begin + timedelta(minutes=minutes)).isoformat()}
        return {**factories.slot_body(of), **times, "capacity": capacity}

    wanted = [*(slot(anna, hour, 60, 1) for hour in range(9, 17)), slot(walk, 14, 120, 10)]
    made = factories.made(operator.post("/v1/slots", json={"slots": wanted}))["data"]
    return Salon(slug, anna, walk, made[:-1], made[-1])


def test_a_day_in_the_terminal(
    holdfast: Callable[..., Answer], salon: Salon, operator: httpx.Client, everyone: httpx.Client
) -> None:
    factories.made(everyone.post("/v1/bookings", json=named(salon.slots[1]["id"], "[bold]Ada[/bold]\n<&> \x1b[31m")))
    factories.booking(everyone, salon.tour["id"], 3)
    factories.hold(everyone, salon.slots[4]["id"])
    operator.patch(f"/v1/slots/{salon.slots[7]['id']}", json={"status": "closed"}).raise_for_status()
    answer = holdfast("--venue", salon.slug, "--day", str(MONDAY))
    assert answer.code == DONE, answer.err
    told = [re.sub(r"\s{2,}", "|", line.strip()) for line in answer.out.splitlines()]
    name = salon.anna["name"]
    assert told[0] == f"Salon, {MONDAY:%A %d %B %Y}|Europe/Berlin"
    dash = "\N{EN DASH}"
    expected = [
        f"09:00{dash}10:00|{name}|free",
        f"10:00{dash}11:00|{name}|[bold]Ada[/bold] <&> [31m|1|confirmed",
        f"11:00{dash}13:00|{name}|free",
        f"14:00{dash}16:00|{name}|free",
        f"14:00{dash}16:00|City walk|Ada Lovelace|3|confirmed",
        f"14:00{dash}16:00|City walk|7 of 10|free",
        f"16:00{dash}17:00|{name}|closed",
        "2 bookings (4 places), 1 hold (1 place)",
    ]
    assert [line for line in told if line in expected] == expected, answer.out
    assert any(re.fullmatch(rf"13:00{dash}14:00\|{name}\|1\|held, \dm \d\ds left", line) for line in told)
    assert "\x1b" not in answer.out


def test_a_day_for_programs(holdfast: Callable[..., Answer], salon: Salon, everyone: httpx.Client) -> None:
    booking = factories.booking(everyone, salon.slots[1]["id"])
    hold = factories.hold(everyone, salon.tour["id"], 2)
    answer = holdfast("--venue", salon.slug, "--day", str(MONDAY), "--json")
    whole = json.loads(answer.out)
    midnight = datetime(MONDAY.year, MONDAY.month, MONDAY.day, tzinfo=BERLIN).astimezone(UTC)
    assert whole["from"] == midnight.isoformat().replace("+00:00", "Z")
    assert (whole["venue"], whole["timezone"], whole["resource"]) == (salon.slug, "Europe/Berlin", None)
    assert (whole["degraded"], whole["next_cursor"]) == (False, None)
    short = [(one["kind"], one["resource"]["name"], one["quantity"], one["slot_id"]) for one in answer.data]
    name = salon.anna["name"]
    assert short == [
        ("free", name, None, None),
        ("booking", name, 1, salon.slots[1]["id"]),
        ("free", name, None, None),
        ("hold", "City walk", 2, salon.tour["id"]),
        ("free", "City walk", 8, salon.tour["id"]),
    ]
    assert [one["id"] for one in answer.data] == [None, booking["id"], None, hold["id"], None]
    assert answer.data[1]["customer"] == "Ada Lovelace"
    assert 0 < answer.data[3]["ttl_seconds"] <= hold["ttl_seconds"]


def test_one_person_by_name_or_id(holdfast: Callable[..., Answer], salon: Salon) -> None:
    for asked in (salon.anna["name"].upper(), salon.anna["id"]):
        answer = holdfast("--resource", asked, "--day", str(MONDAY), "--json")
        assert [one["kind"] for one in answer.data] == ["free"]
        assert json.loads(answer.out)["resource"] == {"id": salon.anna["id"], "name": salon.anna["name"]}
    assert holdfast("--resource", "Nobody").code == NOT_FOUND
    assert holdfast("--venue", "nowhere").code == NOT_FOUND


def test_a_week_is_seven_columns_where_there_is_room(
    holdfast: Callable[..., Answer], salon: Salon, everyone: httpx.Client
) -> None:
    factories.booking(everyone, salon.tour["id"], 3)
    factories.hold(everyone, salon.tour["id"])
    thursday = str(MONDAY + timedelta(days=3))
    wide = holdfast("--venue", salon.slug, "--week", thursday, columns=140)
    header = next(line for line in wide.out.splitlines() if f"{MONDAY:%a %d %b}" in line)
    assert [header.find(day) >= 0 for day in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")] == [True] * 7
    assert "3/10 booked +1 h" in wide.out
    assert max(len(line) for line in wide.out.splitlines()) <= 140

    narrow = holdfast("--venue", salon.slug, "--week", thursday, columns=80)
    assert f"{MONDAY:%A %d %B}" in narrow.out
    assert f"{MONDAY + timedelta(days=1):%A %d %B}: nothing" in narrow.out
    assert max(len(line) for line in narrow.out.splitlines()) <= 80


def test_a_salon_with_a_fine_grid_is_told_in_few_lines(
    holdfast: Callable[..., Answer], operator: httpx.Client, everyone: httpx.Client
) -> None:
    slug = factories.venue(operator)["slug"]
    anna = factories.resource(operator, slug, kind="person")
    begin = datetime(MONDAY.year, MONDAY.month, MONDAY.day, 9, tzinfo=BERLIN).astimezone(UTC)
    starts = [begin + timedelta(minutes=15 * n) for n in range(32)]
    wanted = [
        {**factories.slot_body(anna), "starts_at": at.isoformat(), "ends_at": (at + timedelta(minutes=45)).isoformat()}
        for at in starts
    ]
    made = factories.made(operator.post("/v1/slots", json={"slots": wanted}))["data"]
    factories.booking(everyone, made[8]["id"])
    answer = holdfast("--venue", slug, "--day", str(MONDAY), "--json")
    at = [(one["kind"], datetime.fromisoformat(one["starts_at"]), one["ends_at"]) for one in answer.data]
    assert [(kind, (when - begin) // timedelta(minutes=1)) for kind, when, _ in at] == [
        ("free", 0), ("booking", 120), ("free", 165),
    ]  # fmt: skip


def test_without_redis_it_says_so(
    holdfast: Callable[..., Answer], salon: Salon, everyone: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    factories.booking(everyone, salon.slots[1]["id"])
    monkeypatch.setenv("REDIS_URL", "unix:///nowhere/redis.sock")
    answer = holdfast("--venue", salon.slug, "--day", str(MONDAY), "--json")
    assert answer.code == DONE
    assert "Redis cannot be reached" in answer.err
    assert json.loads(answer.out)["degraded"] is True
    assert [one["kind"] for one in answer.data] == ["free", "booking", "free", "free"]


@pytest.mark.parametrize(
    "arguments", [("--day", "soon"), ("--day", "1200-01-01"), ("--day", "today", "--week", "today")]
)
def test_what_makes_no_sense_is_refused(
    holdfast: Callable[..., Answer], salon: Salon, arguments: tuple[str, ...]
) -> None:
    assert holdfast("--venue", salon.slug, *arguments).code == USAGE


def test_a_name_that_several_have_is_asked_back(holdfast: Callable[..., Answer], operator: httpx.Client) -> None:
    name = factories.unique("Twin")
    slugs = [factories.resource(operator, factories.venue(operator)["slug"], name=name)["venue"] for _ in range(2)]
    answer = holdfast("--resource", name)
    assert answer.code == NOT_FOUND
    assert all(slug in answer.err for slug in slugs)
    assert holdfast("--resource", name, "--venue", slugs[0]).code == DONE
    which = holdfast()  # there are several venues by now
    assert (which.code, "Say --venue and one of" in which.err) == (NOT_FOUND, True)


def test_an_empty_day_says_so(holdfast: Callable[..., Answer], salon: Salon) -> None:
    answer = holdfast("--venue", salon.slug, "--day", str(MONDAY - timedelta(days=1)))
    assert "Nothing: no bookings" in answer.out
    assert holdfast("--venue", salon.slug, "--day", "tomorrow").code == DONE
    assert holdfast("--venue", salon.slug, "--week").code == DONE


def test_a_day_on_which_the_clocks_change_tells_the_zone(
    with_redis: Service, holdfast: Callable[..., Answer], operator: httpx.Client
) -> None:
    of = factories.resource(operator, factories.venue(operator)["slug"])
    for hour in (0, 1):  # 02:30 twice
        store_booking(with_redis.database_url, of["id"], datetime(2026, 10, 25, hour, 30, tzinfo=UTC))
    answer = holdfast("--venue", of["venue"], "--day", "2026-10-25")
    dash = "\N{EN DASH}"
    assert f"02:30 CEST{dash}02:30 CET" in answer.out
    assert f"02:30 CET{dash}03:30 CET" in answer.out
    assert "The clocks change" in answer.out
    whole = json.loads(holdfast("--venue", of["venue"], "--day", "2026-10-25", "--json").out)
    assert datetime.fromisoformat(whole["to"]) - datetime.fromisoformat(whole["from"]) == timedelta(hours=25)


def test_a_day_is_read_along_indexes(crowded: str) -> None:
    now = datetime.now(UTC)
    with psycopg.connect(crowded, autocommit=True) as connection:
        [(venue,)] = connection.execute("SELECT min(id::text)::uuid FROM venues").fetchall()
        values = {
            "whose": venue, "from": now, "to": now + timedelta(days=1), "longest": agenda.LONGEST_SLOT, "most": 1_000,
        }  # fmt: skip
        for statement in (agenda._SLOTS, agenda._BOOKINGS):
            rows = connection.execute(f"EXPLAIN {statement.format(whose='venue_id')}", values).fetchall()
            plan = "\n".join(row[0] for row in rows)
            assert "slots_by_venue_time" in plan, plan
            assert "Seq Scan on bookings" not in plan
            assert "Seq Scan on slots" not in plan


def test_feeds_are_made_rotated_and_closed_in_the_terminal(
    holdfast: Callable[..., Answer], everyone: httpx.Client, salon: Salon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_PUBLIC_URL", "https://book.example.com")

    def feeds(*arguments: str) -> dict[str, Any]:
        answer = holdfast(*arguments, "--json", command="feeds")
        assert answer.code == 0, answer.err
        told: dict[str, Any] = json.loads(answer.out)
        return told

    made = feeds("add", salon.slug, "--resource", salon.anna["id"])
    assert made["url"].startswith("https://book.example.com/v1/calendars/")
    assert "secret" not in made
    read(everyone, made)
    assert [feed["id"] for feed in feeds("list", "--venue", salon.slug)["data"]] == [made["id"]]
    rotated = feeds("rotate", made["id"])
    assert [everyone.get(path_of(one)).status_code for one in (made, rotated)] == [404, 200]
    assert holdfast("remove", made["id"], "--yes", command="feeds").code == 0
    assert everyone.get(path_of(rotated)).status_code == 404
    assert holdfast("add", "nowhere", command="feeds").code == 3
    # For people: the whole address in one line, to be copied.
    shown = holdfast("add", salon.slug, command="feeds").out
    assert any(line.startswith("https://book.example.com/v1/calendars/") for line in shown.splitlines())
