"""Calendars as feeds over HTTP, read back with icalendar."""

import asyncio
import os
import re
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import icalendar
import msgspec
import psycopg
import pytest

from app.calendars import bookings, ical
from app.calendars.bookings import Entry
from app.calendars.feeds import Subject
from tests import factories
from tests.calendars import crowded, everyone, named, operator, parsed, path_of, read, store_booking
from tests.service import HOLDFAST, START_SECONDS, Postgres, Service, eventually, free_port, is_ready, store_environ

__all__ = ["crowded", "everyone", "operator"]

HOSTILE = 'Ada, "Countess";\r\nSTATUS:CANCELLED\r\n\\n Lovelace 👩🏽\N{ZERO WIDTH JOINER}🚀 \N{RIGHT-TO-LEFT OVERRIDE}x'
#: As one line that can be seen: nothing is lost but what breaks lines or turns them around.
HARMLESS = 'Ada, "Countess"; STATUS:CANCELLED \\n Lovelace 👩🏽\N{ZERO WIDTH JOINER}🚀 x'


def feed(operator: httpx.Client, venue: str, resource_id: str | None = None, **headers: str) -> dict[str, Any]:
    wanted = {"venue": venue} | ({"resource_id": resource_id} if resource_id else {})
    return factories.made(operator.post("/v1/calendar-feeds", json=wanted, headers=headers))


def events(calendar: icalendar.Calendar) -> dict[str, icalendar.Event]:
    found = {str(event["uid"]): event for event in calendar.events}
    assert len(found) == len(calendar.events)
    return found


def event_of(client: httpx.Client, made: dict[str, Any], booking_id: str) -> icalendar.Event:
    return events(read(client, made))[f"{booking_id}@holdfast"]


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
