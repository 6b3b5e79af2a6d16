"""The waiting list: who waited gets what becomes free, in the commit that frees it, and nobody else does.

Over HTTP against two workers, with Redis and without. What the job worker does is called here in the test's own
process, but for the e-mail, which a real worker sends.
"""

import asyncio
import random
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email import message_from_string, policy
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import msgspec
import psycopg
import pytest

from app import engine as engine_module
from app import waiting, written
from app.cli import cli, stores
from app.cli.doctor import INVARIANTS
from app.cli.failing import DONE, NOT_FOUND, guarded
from app.engine import Engine
from app.settings import from_env
from tests import factories
from tests.redis_servers import RedisServer
from tests.service import (
    CUSTOMER,
    Postgres,
    Service,
    all_at_once,
    assert_slot_holds,
    booking_body,
    eventually,
    mirrored,
    serving,
    store_environ,
)
from tests.shop import Shop, running_shop
from tests.stripe_simulator import SDK_WARNING

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]

RIVALS = 50
BERLIN = ZoneInfo("Europe/Berlin")


class Line:
    """A venue of its own, and what its customers and its operator do."""

    def __init__(self, service: Service, kind: str = "event", **venue: Any) -> None:
        self.service = service
        self.everyone, self.operator = factories.client(service), factories.client(service, operator=True)
        self.venue = factories.venue(self.operator, **venue)["slug"]
        self.of = factories.resource(self.operator, self.venue, kind=kind)
        self._joined = 0

    def slot(self, capacity: int = 1, **fields: Any) -> str:
        return str(factories.slot(self.operator, self.of, capacity=capacity, **fields)["id"])

    def booked(self, slot_id: str, quantity: int = 1) -> dict[str, Any]:
        return factories.booking(self.everyone, slot_id, quantity)

    def sold_out(self, capacity: int = 1) -> tuple[str, dict[str, Any]]:
        slot_id = self.slot(capacity)
        return slot_id, self.booked(slot_id, capacity)

    def service_of(self, minutes: int = 60) -> str:
        """Make a service of the resource, as an operator would."""
        body = {"venue": self.venue, "name": "Cut", "duration_minutes": minutes, "resource_ids": [self.of["id"]]}
        return str(factories.made(self.operator.post("/v1/services", json=body))["id"])

    def ask(self, slot_id: str | None = None, quantity: int = 1, key: str | None = None, **fields: Any) -> Any:
        """Ask to be put on the list, as somebody new."""
        self._joined += 1
        customer = {"name": f"Guest {self._joined}", "email": f"guest{self._joined}@example.com"}
        body = {"quantity": quantity, "customer": customer, **({"slot_id": slot_id} if slot_id else {}), **fields}
        return self.everyone.post("/v1/waiting-list", json=body, headers={"Idempotency-Key": key} if key else {})

    def joined(self, slot_id: str | None = None, quantity: int = 1, **fields: Any) -> dict[str, Any]:
        return factories.made(self.ask(slot_id, quantity, **fields))

    def cancel(self, booking: dict[str, Any]) -> dict[str, Any]:
        headers = {"Manage-Token": booking["manage_token"]}
        answer = self.everyone.post(f"/v1/bookings/{booking['id']}/cancel", headers=headers)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def look(self, entry: dict[str, Any]) -> dict[str, Any]:
        answer = self.everyone.get(f"/v1/waiting-list/{entry['id']}", headers={"Waiting-Token": entry["token"]})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def leave(self, entry: dict[str, Any]) -> httpx.Response:
        return self.everyone.delete(f"/v1/waiting-list/{entry['id']}", headers={"Waiting-Token": entry["token"]})

    def statuses(self, *entries: dict[str, Any]) -> list[str]:
        return [self.look(entry)["status"] for entry in entries]

    def take(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Book what was offered."""
        token = self.look(entry)["offer"]["hold_token"]
        body = {"hold_token": token, "customer": CUSTOMER}
        return factories.made(self.everyone.post("/v1/bookings", json=body))

    def lapse(self, entry: dict[str, Any]) -> None:
        """Let the time of an offer be over."""
        hold_id = UUID(self.look(entry)["offer"]["hold_id"])
        self.service.query(
            "UPDATE bookings SET expires_at = clock_timestamp() WHERE id = %s AND status = 'held' RETURNING 1", hold_id
        )

    def offers(self, slot_id: str) -> list[UUID]:
        """List the live holds that were offered of a slot."""
        rows = self.service.query(
            "SELECT w.hold_id FROM waiting_entries AS w JOIN bookings AS b ON b.id = w.hold_id"
            " WHERE b.slot_id = %s AND b.status = 'held' AND w.status = 'offered'",
            slot_id,
        )
        return [row[0] for row in rows]

    def available(self, slot_id: str) -> tuple[int, int]:
        slot = self.everyone.get(f"/v1/slots/{slot_id}").json()
        return slot["available_count"], slot["available"]

    def assert_counts(self, slot_id: str, capacity: int, taken: int) -> None:
        """Both stores say that so many places are taken, held ones included: those that Postgres keeps."""
        [(count, live)] = self.service.query(
            "SELECT s.available_count, (SELECT coalesce(sum(b.quantity), 0) FROM bookings AS b WHERE b.slot_id = s.id"
            " AND b.status IN ('held', 'pending_payment', 'confirmed')) FROM slots AS s WHERE s.id = %s",
            slot_id,
        )
        assert (count, live) == (capacity - taken, taken)
        if self.service.redis is not None:
            wanted = (capacity, taken, 0)
            eventually(lambda: mirrored(self.service, slot_id) == wanted, f"the mirror to say {wanted}")
        assert self.available(slot_id) == (capacity - taken, capacity - taken)


Lines = Callable[..., Line]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Make venues, and close their clients afterwards."""
    made: list[Line] = []

    def make(service: Service, **fields: Any) -> Line:
        made.append(Line(service, **fields))
        return made[-1]

    yield make
    for line in made:
        line.everyone.close()
        line.operator.close()


@pytest.fixture
def line(service: Service, lines: Lines) -> Line:
    return lines(service)


@pytest.fixture
def with_engine(service: Service) -> Callable[[Callable[[Engine], Awaitable[Any]]], Any]:
    """Do what the job worker does, with an engine of the test's own beside the service."""
    nobody = "unix:///nonexistent/redis.sock"
    settings = from_env(store_environ(service.database_url, service.redis.url if service.redis else nobody))

    def use(work: Callable[[Engine], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with engine_module.running(settings) as engine:
                return await work(engine)

        with ThreadPoolExecutor(1) as thread:  # beside the loop of the test
            return thread.submit(lambda: asyncio.run(run())).result()

    return use


# -- the first who fits -----------------------------------------------------------------------------------------------


def test_the_first_in_line_has_the_place_when_the_cancellation_is_answered(line: Line):
    slot_id, booking = line.sold_out()
    first, second = line.joined(slot_id), line.joined(slot_id)
    assert [entry["position"] for entry in (first, second)] == [1, 2]

    assert line.cancel(booking)["available_count"] == 0
    offered = line.look(first)
    assert (offered["status"], offered["position"]) == ("offered", None)
    assert (line.look(second)["status"], line.look(second)["position"]) == ("waiting", 1)
    assert offered["offer"]["slot_id"] == slot_id
    life = datetime.fromisoformat(offered["offer"]["expires_at"]) - datetime.fromisoformat(
        offered["offer"]["offered_at"]
    )
    assert life == timedelta(minutes=15)
    line.assert_counts(slot_id, 1, 1)
    refused = line.everyone.post("/v1/bookings", json=booking_body(slot_id))
    assert (refused.status_code, refused.json()["code"]) == (409, "slot_unavailable")

    # It is a hold like any other.
    hold_id, token = offered["offer"]["hold_id"], offered["offer"]["hold_token"]
    hold = line.everyone.get(f"/v1/holds/{hold_id}", headers={"Hold-Token": token})
    assert hold.status_code == 200, hold.text
    assert (hold.json()["status"], hold.json()["degraded"], hold.json()["quantity"]) == ("active", True, 1)
    taken = line.take(first)
    assert (taken["id"], taken["status"]) == (hold_id, "confirmed")
    assert line.statuses(first, second) == ["booked", "waiting"]
    assert line.look(first)["offer"].get("hold_token") is None
    assert_slot_holds(line.service, slot_id, 1, 1)
    # And what he has booked goes the same way when he cancels.
    line.cancel(taken)
    assert line.statuses(first, second) == ["booked", "offered"]


def test_parties_that_do_not_fit_are_passed_over_and_keep_their_place(line: Line):
    slot_id = line.slot(4)
    three, one = line.booked(slot_id, 3), line.booked(slot_id, 1)
    four, single, two, another = (line.joined(slot_id, quantity) for quantity in (4, 1, 2, 1))
    line.cancel(three)
    assert line.statuses(four, single, two, another) == ["waiting", "offered", "offered", "waiting"]
    line.cancel(one)
    assert line.statuses(four, single, two, another) == ["waiting", "offered", "offered", "offered"]
    assert line.look(four)["position"] == 1
    line.assert_counts(slot_id, 4, 4)


def test_what_nobody_takes_in_time_goes_to_the_next_one(line: Line):
    slot_id, booking = line.sold_out()
    first, second = line.joined(slot_id), line.joined(slot_id)
    line.cancel(booking)
    line.lapse(first)
    eventually(lambda: line.statuses(first, second) == ["lapsed", "offered"], "the next one to be asked")
    assert len(line.offers(slot_id)) == 1
    line.assert_counts(slot_id, 1, 1)


def test_a_rival_who_finds_the_lapsed_offer_does_not_get_it_either(line: Line):
    """Whoever comes first ends it: here a booking, which is told that there is no room, and is told the truth."""
    slot_id, booking = line.sold_out()
    first, second = line.joined(slot_id), line.joined(slot_id)
    line.cancel(booking)
    [(hold_id,)] = [(each,) for each in line.offers(slot_id)]
    with psycopg.connect(line.service.database_url) as connection:  # one transaction: no sweep comes in between
        connection.execute("UPDATE bookings SET expires_at = clock_timestamp() WHERE id = %s", (hold_id,))
        request = {
            "id": str(uuid4()), "slot_id": slot_id, "quantity": 1, "status": "confirmed", "actor": "customer",
            "fingerprint": "00", "name": "Rival", "email": "rival@example.com", "manage_hash": "00",
            "venue_id": str(connection.execute("SELECT venue_id FROM slots WHERE id = %s", (slot_id,)).fetchone()[0]),
        }  # fmt: skip
        rows = connection.execute(
            "SELECT word, available_count FROM commit_bookings(%s, %s)",
            (uuid4(), msgspec.json.encode([request]).decode()),
        ).fetchall()
    assert rows == [("full", 0)]
    assert line.statuses(first, second) == ["lapsed", "offered"]


@pytest.mark.parametrize("how", ["leaves the list", "gives the hold up"])
def test_who_wants_no_more_makes_room_for_the_next_one_at_once(line: Line, how: str):
    slot_id, booking = line.sold_out()
    first, second, third = line.joined(slot_id), line.joined(slot_id), line.joined(slot_id)
    assert line.leave(second).status_code == 204
    line.cancel(booking)
    if how == "leaves the list":
        assert line.leave(first).status_code == 204
    else:
        offer = line.look(first)["offer"]
        headers = {"Hold-Token": offer["hold_token"]}
        assert line.everyone.delete(f"/v1/holds/{offer['hold_id']}", headers=headers).status_code == 204
    assert line.statuses(first, second, third) == ["left", "left", "offered"]
    assert line.leave(first).status_code == 204  # a second time changes nothing
    assert line.statuses(first, second, third) == ["left", "left", "offered"]
    line.assert_counts(slot_id, 1, 1)


def test_more_capacity_is_offered_to_several(line: Line):
    slot_id, _ = line.sold_out(3)
    entries = [line.joined(slot_id, quantity) for quantity in (1, 2, 3, 1)]
    changed = line.operator.patch(f"/v1/slots/{slot_id}", json={"capacity": 7})
    assert (changed.status_code, changed.json()["available_count"]) == (200, 0)
    assert line.statuses(*entries) == ["offered", "offered", "waiting", "offered"]
    line.assert_counts(slot_id, 7, 7)


def test_an_exclusive_slot_that_gets_more_places_offers_them(line: Line):
    slot_id, _ = line.sold_out()
    entry = line.joined(slot_id)
    assert line.operator.patch(f"/v1/slots/{slot_id}", json={"capacity": 2}).status_code == 200
    assert line.statuses(entry) == ["offered"]
    line.assert_counts(slot_id, 2, 2)


def test_a_closed_slot_offers_nothing_until_it_opens_again(line: Line):
    slot_id, booking = line.sold_out()
    entry = line.joined(slot_id)
    assert line.operator.patch(f"/v1/slots/{slot_id}", json={"status": "closed"}).status_code == 200
    line.cancel(booking)
    assert line.statuses(entry) == ["waiting"]
    assert line.operator.patch(f"/v1/slots/{slot_id}", json={"status": "open"}).status_code == 200
    assert line.statuses(entry) == ["offered"]
    line.assert_counts(slot_id, 1, 1)


def test_a_booking_that_moves_away_leaves_its_place_to_who_waits(line: Line):
    slot_id, booking = line.sold_out()
    elsewhere = line.slot(hours=5)
    entry = line.joined(slot_id)
    moved = line.everyone.post(
        f"/v1/bookings/{booking['id']}/reschedule",
        json={"slot_id": elsewhere},
        headers={"Manage-Token": booking["manage_token"]},
    )
    assert moved.status_code == 200, moved.text
    assert line.statuses(entry) == ["offered"]
    line.assert_counts(slot_id, 1, 1)
    line.assert_counts(elsewhere, 1, 1)


def test_a_slot_that_nobody_waits_for_is_free_for_everybody(line: Line):
    slot_id, booking = line.sold_out()
    other, _ = line.sold_out()
    line.joined(other)
    assert line.cancel(booking)["available_count"] == 1
    line.assert_counts(slot_id, 1, 0)
    assert line.booked(slot_id)["status"] == "confirmed"
    assert line.offers(other) == []


# -- nobody snipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 5])
async def test_a_cancellation_that_races_fifty_buyers_is_for_who_waited(line: Line, capacity: int):
    for _ in range(3):
        slot_id = line.slot(capacity)
        bookings = [line.booked(slot_id) for _ in range(capacity)]
        entry = line.joined(slot_id)
        async with line.service.client() as client:
            requests = [client.build_request("POST", "/v1/bookings", json=booking_body(slot_id)) for _ in range(RIVALS)]
            cancel = client.build_request(
                "POST",
                f"/v1/bookings/{bookings[0]['id']}/cancel",
                headers={"Manage-Token": bookings[0]["manage_token"]},
            )
            requests.insert(RIVALS // 2, cancel)
            answers = await all_at_once(client, requests)
        cancelled = answers.pop(RIVALS // 2)
        assert cancelled.status_code == 200, cancelled.text
        assert cancelled.json()["available_count"] == 0
        assert {answer.status_code for answer in answers} == {409}, [answer.text for answer in answers]
        assert len(line.offers(slot_id)) == 1
        line.assert_counts(slot_id, capacity, capacity)
        line.take(entry)
        assert_slot_holds(line.service, slot_id, capacity, capacity)


def test_without_its_triggers_a_rival_snipes_the_place(
    postgres: Postgres, bundled_redis_server: RedisServer, lines: Lines
):
    """The control: it is the triggers that keep the place, and the tests above can fail."""
    database_url = postgres.fresh()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER bookings_wanted_updated ON bookings")
    with serving(database_url, bundled_redis_server.url, redis=bundled_redis_server) as service:
        line = lines(service)
        slot_id, booking = line.sold_out()
        entry = line.joined(slot_id)
        assert line.cancel(booking)["available_count"] == 1
        assert line.booked(slot_id)["status"] == "confirmed"
        assert line.statuses(entry) == ["waiting"]


async def test_after_a_storm_of_everything_nobody_waits_for_a_free_place(line: Line, with_engine: Any):
    """Bookings, cancellations, lines joined and left, offers taken and given up, all at once; then it all adds up."""
    rng = random.Random(5)
    slot_id, capacity = line.slot(6), 6
    bookings = [line.booked(slot_id, quantity) for quantity in (1, 1, 2, 2)]
    entries = [line.joined(slot_id, rng.choice([1, 1, 2, 3])) for _ in range(8)]
    async with line.service.client() as client:
        for _ in range(4):
            requests = [client.build_request("POST", "/v1/bookings", json=booking_body(slot_id)) for _ in range(6)]
            requests += [
                client.build_request(
                    "POST", f"/v1/bookings/{each['id']}/cancel", headers={"Manage-Token": each["manage_token"]}
                )
                for each in rng.sample(bookings, 2)
            ]
            for entry in rng.sample(entries, 3):
                offer, shown = line.look(entry)["offer"], {"Waiting-Token": entry["token"]}
                if offer and offer.get("hold_token") and rng.random() < 0.5:
                    body = {"hold_token": offer["hold_token"], "customer": CUSTOMER}
                    requests.append(client.build_request("POST", "/v1/bookings", json=body))
                else:
                    requests.append(client.build_request("DELETE", f"/v1/waiting-list/{entry['id']}", headers=shown))
            rng.shuffle(requests)
            for answer in await all_at_once(client, requests):
                assert answer.status_code < 500, answer.text
                if answer.status_code == 201:
                    bookings.append(answer.json())
            entries.append(line.joined(slot_id, 6))  # a whole slot, so that nobody refuses for there being room
            assert line.leave(entries.pop()).status_code == 204
    with_engine(waiting.look_after)
    [(left, fitting)] = line.service.query(
        "SELECT s.available_count, (SELECT count(*) FROM waiting_entries AS w WHERE w.slot_id = s.id"
        "   AND w.status = 'waiting' AND w.quantity <= s.available_count) FROM slots AS s WHERE s.id = %s",
        slot_id,
    )
    assert fitting == 0
    line.assert_counts(slot_id, capacity, capacity - left)
    for name, query in INVARIANTS.items():
        assert line.service.query(query) == [], name


# -- holds in Redis are nobody's to give away -------------------------------------------------------------------------


def test_no_hold_is_broken_for_a_line(with_redis: Service, lines: Lines):
    """A party of two waits; one place becomes free, the other one is held: by somebody who can book it, and does."""
    line = lines(with_redis)
    slot_id = line.slot(2)
    booking, hold = line.booked(slot_id), factories.hold(line.everyone, slot_id)
    two = line.joined(slot_id, 2)
    assert line.cancel(booking)["available_count"] == 2
    assert line.statuses(two) == ["waiting"]
    body = {"hold_token": hold["token"], "customer": CUSTOMER}
    assert line.everyone.post("/v1/bookings", json=body).status_code == 201
    assert line.statuses(two) == ["waiting"]


def test_what_redis_alone_knows_to_be_free_is_offered_by_the_worker(with_redis: Service, lines: Lines):
    line = lines(with_redis)
    slot_id = line.slot(2)
    booking, hold = line.booked(slot_id), factories.hold(line.everyone, slot_id)
    two = line.joined(slot_id, 2)
    line.cancel(booking)
    settings = from_env(store_environ(with_redis.database_url, with_redis.redis.url))

    async def look_after() -> None:
        async with engine_module.running(settings) as engine:
            await waiting.look_after(engine)

    asyncio.run(look_after())
    assert line.statuses(two) == ["waiting"]  # held: as true for the worker as for everybody
    released = line.everyone.delete(f"/v1/holds/{hold['id']}", headers={"Hold-Token": hold["token"]})
    assert released.status_code == 204
    asyncio.run(look_after())
    assert line.statuses(two) == ["offered"]
    line.assert_counts(slot_id, 2, 2)
    assert line.take(two)["quantity"] == 2


def test_a_hold_that_is_given_up_is_offered_to_who_waits_for_the_day(with_redis: Service, lines: Lines):
    line = lines(with_redis)
    service_id = line.service_of()
    slot = factories.slot(line.operator, line.of, service_id=service_id)
    hold = factories.hold(line.everyone, slot["id"])
    entry = line.joined(venue=line.venue, service_id=service_id, day=local_day(slot))
    line.everyone.delete(f"/v1/holds/{hold['id']}", headers={"Hold-Token": hold["token"]})
    assert line.statuses(entry) == ["waiting"]
    settings = from_env(store_environ(with_redis.database_url, with_redis.redis.url))

    def offered() -> bool:
        """Look as the worker does, who sees to a few days each time: others wait at this service as well."""
        asyncio.run(look_after())
        return line.statuses(entry) == ["offered"]

    async def look_after() -> None:
        async with engine_module.running(settings) as engine:
            await waiting.look_after(engine)

    eventually(offered, "the place to be offered")
    line.assert_counts(slot["id"], 1, 1)


# -- a service and a day ----------------------------------------------------------------------------------------------


def local_day(slot: dict[str, Any]) -> str:
    return datetime.fromisoformat(slot["starts_at"]).astimezone(BERLIN).date().isoformat()


def test_who_waits_for_a_day_gets_the_first_slot_of_it_that_becomes_free(line: Line):
    service_id = line.service_of()
    # About noon of the day after the first: whatever the hour is now, there is room for another slot on that day.
    noon = 36 - factories.START.astimezone(BERLIN).hour
    hours_of_slots = (0, noon, noon + 30)
    slots = [factories.slot(line.operator, line.of, hours=hours, service_id=service_id) for hours in hours_of_slots]
    bookings = [line.booked(slot["id"]) for slot in slots]
    day = local_day(slots[1])
    of_day = {"venue": line.venue, "service_id": service_id, "day": day}
    anybody = line.joined(**of_day)
    with_her = line.joined(**of_day, resource_id=line.of["id"])
    with_another = line.joined(**of_day, resource_id=factories.resource(line.operator, line.venue)["id"])
    assert [entry["position"] for entry in (anybody, with_her, with_another)] == [1, 1, 1]
    line.cancel(bookings[0])
    assert line.statuses(anybody, with_her, with_another) == ["waiting"] * 3
    line.cancel(bookings[1])
    assert line.statuses(anybody, with_her, with_another) == ["offered", "waiting", "waiting"]
    assert line.look(anybody)["offer"]["slot_id"] == slots[1]["id"]
    # A slot that is made for the day is theirs, too.
    new = factories.slot(line.operator, line.of, hours=noon + 1.5, service_id=service_id)
    assert local_day(new) == day
    assert line.statuses(anybody, with_her, with_another) == ["offered", "offered", "waiting"]
    assert line.look(with_her)["offer"]["slot_id"] == new["id"]
    assert line.available(new["id"]) == (0, 0)


def test_a_persons_free_hour_is_offered_for_other_services_of_hers(service: Service, lines: Lines, with_engine: Any):
    line = lines(service, kind="person")
    long, short = line.service_of(60), line.service_of(30)
    colour = factories.slot(line.operator, line.of, service_id=long)
    cuts = [
        factories.slot(line.operator, line.of, hours=hours, lasting=0.5, service_id=short) for hours in (0, 0.25, 0.5)
    ]
    booking = line.booked(colour["id"])
    of_day = {"venue": line.venue, "service_id": short, "day": local_day(cuts[0])}
    first, second, third = (line.joined(**of_day) for _ in range(3))
    line.cancel(booking)
    # Two fit into the hour one after the other; the grid's third slot overlaps both.
    assert line.statuses(first, second, third) == ["offered", "offered", "waiting"]
    given = [line.look(entry)["offer"]["slot_id"] for entry in (first, second)]
    assert given == [cuts[0]["id"], cuts[2]["id"]]
    for slot_id in given:
        with_engine(lambda engine, slot_id=slot_id: waiting.tell_mirror(engine, UUID(slot_id)))
        line.assert_counts(slot_id, 1, 1)
    assert line.everyone.post("/v1/bookings", json=booking_body(colour["id"])).status_code == 409


def occupy(connection: psycopg.Connection[Any], slot_id: str) -> None:
    """Book a slot of one place past the service, in a transaction that stays open."""
    connection.execute(
        "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,"
        " available_after, confirmed_at) SELECT %s, venue_id, id, true, 1, 'confirmed', 'A', 'a@b.c', 0, now()"
        " FROM slots WHERE id = %s",
        (uuid4(), slot_id),
    )


def test_an_offer_that_meets_a_rival_of_the_same_person_fails_alone(service: Service, lines: Lines):
    """A slot opens while an overlapping one of the same person is being booked: it opens, and nobody is offered it."""
    line = lines(service, kind="person")
    slot_id, rival = line.slot(), line.slot(hours=0.5)
    booking = line.booked(slot_id)
    entry = line.joined(slot_id)
    assert line.operator.patch(f"/v1/slots/{slot_id}", json={"status": "closed"}).status_code == 200
    line.cancel(booking)
    impatient = "-c lock_timeout=60s -c statement_timeout=20s"  # it would fail if it waited for the rival
    with (
        psycopg.connect(line.service.database_url) as connection,
        psycopg.connect(line.service.database_url, options=impatient, autocommit=True) as opening,
    ):
        occupy(connection, rival)
        opening.execute("UPDATE slots SET status = 'open' WHERE id = %s", (slot_id,))
    assert line.statuses(entry) == ["waiting"]
    assert line.offers(slot_id) == []


def cancelled_beside_a_rival(line: Line) -> tuple[str, str]:
    """Cancel a booking that somebody waits for while its person is being booked for another hour; returns the slot, and
    what became of who waits.
    """
    slot_id, another = line.slot(), line.slot(hours=5)
    booking = line.booked(slot_id)
    entry = line.joined(slot_id)
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    with psycopg.connect(line.service.database_url) as connection, ThreadPoolExecutor(1) as thread:
        occupy(connection, another)
        cancelling = thread.submit(line.cancel, booking)
        eventually(lambda: bool(line.service.query(waits)) or cancelling.done(), "the offer to wait for its turn")
        connection.commit()
        cancelling.result()
    [status] = line.statuses(entry)
    return slot_id, status


def test_an_offer_waits_for_its_turn_while_the_person_is_booked_for_another_hour(service: Service, lines: Lines):
    """Else the place would be anybody's until somebody looks after the line."""
    for _ in range(5):  # a busy machine may take longer to end the rival's turn than an offer waits for it
        line = lines(service, kind="person")
        slot_id, status = cancelled_beside_a_rival(line)
        if status == "offered":
            break
    assert status == "offered"
    assert line.everyone.post("/v1/bookings", json=booking_body(slot_id)).status_code == 409


# -- joining ----------------------------------------------------------------------------------------------------------


def problem_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_nobody_waits_for_what_is_free_or_cannot_come(line: Line):
    free, (full, _) = line.slot(2), line.sold_out(2)
    refused = line.ask(free)
    assert problem_of(refused) == (409, "slot_available")
    assert refused.json()["slot_id"] == free
    assert problem_of(line.ask(full, 3)) == (400, "invalid_request")
    assert problem_of(line.ask(str(uuid4()))) == (404, "slot_not_found")
    line.operator.patch(f"/v1/slots/{full}", json={"status": "closed"})
    assert problem_of(line.ask(full)) == (409, "slot_unavailable")

    service_id = line.service_of()
    of_day = {"venue": line.venue, "service_id": service_id, "day": "2199-01-01"}
    assert problem_of(line.ask(**of_day)) == (400, "invalid_request")
    today = datetime.now(BERLIN).date()
    assert problem_of(line.ask(**{**of_day, "day": str(today - timedelta(days=1))})) == (400, "invalid_request")
    of_day["day"] = str(today + timedelta(days=1))
    assert problem_of(line.ask(**{**of_day, "venue": "nowhere"})) == (404, "venue_not_found")
    assert problem_of(line.ask(**{**of_day, "service_id": str(uuid4())})) == (404, "not_found")
    assert problem_of(line.ask(**of_day, resource_id=str(uuid4()))) == (404, "not_found")
    assert line.ask(**of_day).status_code == 201  # a day without any slot yet
    slot = factories.slot(line.operator, line.of, hours=100, service_id=service_id)
    answer = line.ask(**{**of_day, "day": local_day(slot)})
    assert problem_of(answer) == (409, "slot_available")
    assert answer.json()["slot_id"] == slot["id"]


def test_an_address_stands_in_a_line_once_and_a_line_has_an_end(line: Line):
    slot_id, _ = line.sold_out()
    entry = line.joined(slot_id, customer={"name": "Eve", "email": "eve@example.com"})
    again = line.ask(slot_id, customer={"name": "Eve", "email": "EVE@example.com"})
    assert problem_of(again) == (409, "conflict")
    assert line.leave(entry).status_code == 204
    assert line.ask(slot_id, customer={"name": "Eve", "email": "eve@example.com"}).status_code == 201
    line.service.query(
        "INSERT INTO waiting_entries (id, venue_id, slot_id, quantity, customer_name, customer_email, wanted_until,"
        " first_position) SELECT gen_random_uuid(), venue_id, id, 1, 'N', n || '@example.com', starts_at, 1"
        " FROM slots, generate_series(2, %s) AS n WHERE id = %s RETURNING 1",
        waiting.MOST_IN_LINE,
        slot_id,
    )
    assert problem_of(line.ask(slot_id)) == (409, "conflict")


def test_a_repeated_request_gets_its_first_answer_again(line: Line):
    slot_id, booking = line.sold_out()
    line.joined(slot_id)
    customer = {"name": "Eve", "email": "eve@example.com"}
    first = line.ask(slot_id, key="wait-1", customer=customer)
    assert (first.status_code, first.json()["position"]) == (201, 2)
    line.cancel(booking)
    again = line.ask(slot_id, key="wait-1", customer=customer)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert problem_of(line.ask(slot_id, 2, key="wait-1", customer=customer)) == (422, "idempotency_key_reused")


async def test_two_at_once_under_one_key_join_once(line: Line):
    slot_id, _ = line.sold_out()
    body = {"slot_id": slot_id, "customer": CUSTOMER}
    async with line.service.client() as client:
        request = client.build_request("POST", "/v1/waiting-list", json=body, headers={"Idempotency-Key": "once"})
        answers = await all_at_once(client, [request] * 8)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert line.service.query("SELECT count(*) FROM waiting_entries WHERE slot_id = %s", slot_id) == [(1,)]


async def test_joining_while_the_place_becomes_free_is_never_in_vain(line: Line, with_engine: Any):
    """Who joins and who cancels meet under the slot's lock: an offer follows, or the news that there is room."""
    for _ in range(10):
        slot_id, booking = line.sold_out()
        async with line.service.client() as client:
            cancel = client.build_request(
                "POST", f"/v1/bookings/{booking['id']}/cancel", headers={"Manage-Token": booking["manage_token"]}
            )
            join = client.build_request("POST", "/v1/waiting-list", json={"slot_id": slot_id, "customer": CUSTOMER})
            cancelled, joined = await all_at_once(client, [cancel, join])
        assert cancelled.status_code == 200
        if joined.status_code == 201:
            if line.look(joined.json())["status"] == "waiting":
                # Redis had not heard of the cancellation, and was asked after it.
                with_engine(waiting.look_after)
            assert line.look(joined.json())["status"] == "offered"
        else:
            assert problem_of(joined) == (409, "slot_available")


def test_an_entry_is_shown_to_its_owner_and_to_operators(line: Line):
    slot_id, booking = line.sold_out()
    entry, other = line.joined(slot_id), line.joined(slot_id)
    path = f"/v1/waiting-list/{entry['id']}"
    for headers in ({}, {"Waiting-Token": other["token"]}, {"Waiting-Token": "é".encode()}):
        assert line.everyone.get(path, headers=headers).status_code == 404
        assert line.everyone.delete(path, headers=headers).status_code == 404
    line.cancel(booking)
    assert "hold_token" not in line.operator.get(path).json()["offer"]
    assert line.everyone.get("/v1/waiting-list").status_code == 401
    listed = line.operator.get("/v1/waiting-list", params={"venue": line.venue}).json()["data"]
    assert [each["id"] for each in listed] == [entry["id"], other["id"]]
    assert all("token" not in each for each in listed)
    page = line.operator.get("/v1/waiting-list", params={"slot_id": slot_id, "limit": 1}).json()
    after = line.operator.get("/v1/waiting-list", params={"slot_id": slot_id, "cursor": page["next_cursor"]}).json()
    assert [each["id"] for each in (*page["data"], *after["data"])] == [entry["id"], other["id"]]
    params = {"venue": line.venue, "status": "offered"}
    assert [each["id"] for each in line.operator.get("/v1/waiting-list", params=params).json()["data"]] == [entry["id"]]
    assert line.operator.delete(path).status_code == 204
    assert line.statuses(entry, other) == ["left", "offered"]


def test_nobody_waits_for_what_is_over(line: Line, with_engine: Any):
    slot_id, _ = line.sold_out()
    entry = line.joined(slot_id)
    line.service.query("UPDATE waiting_entries SET wanted_until = now() WHERE id = %s RETURNING 1", UUID(entry["id"]))
    with_engine(waiting.look_after)
    assert line.statuses(entry) == ["expired"]
    told = line.service.query("SELECT type FROM events WHERE slot_id = %s AND type LIKE 'waiting.%%'", slot_id)
    assert told == [("waiting.joined",), ("waiting.expired",)]


def test_an_offer_ends_with_the_time_for_booking(line: Line):
    slot_id, booking = line.sold_out()
    entry = line.joined(slot_id)
    assert line.operator.patch(f"/v1/venues/{line.venue}", json={"waiting_offer_minutes": 5}).status_code == 200
    line.cancel(booking)
    offer = line.look(entry)["offer"]
    life = datetime.fromisoformat(offer["expires_at"]) - datetime.fromisoformat(offer["offered_at"])
    assert life == timedelta(minutes=5)
    told = "SELECT data ->> 'until' FROM events WHERE type = 'waiting.offered' AND slot_id = %s"
    assert line.service.query(told, slot_id) == [(offer["expires_at"],)]  # to the letter: with Z
    begins = datetime.now(UTC) + timedelta(minutes=3)
    soon = factories.slot_body(line.of) | {
        "starts_at": begins.isoformat(), "ends_at": (begins + timedelta(hours=1)).isoformat()
    }  # fmt: skip
    slot_id = factories.made(line.operator.post("/v1/slots", json=soon))["id"]
    booking, entry = line.booked(slot_id), line.joined(slot_id)
    line.cancel(booking)
    assert datetime.fromisoformat(line.look(entry)["offer"]["expires_at"]) == begins


# -- the worker and the money -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(
    postgres: Postgres, bundled_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    with (
        running_shop(postgres.fresh(), bundled_redis_server, tmp_path_factory.mktemp("shop")) as shop,
        shop.with_worker(),
    ):
        yield shop


def join(shop: Shop, slot_id: str, email: str) -> dict[str, Any]:
    body = {"slot_id": slot_id, "customer": {"name": "Grace Hopper", "email": email}}
    return factories.made(httpx.post(f"{shop.service.url}/v1/waiting-list", json=body, timeout=30))


def look(shop: Shop, entry: dict[str, Any]) -> dict[str, Any]:
    path = f"{shop.service.url}/v1/waiting-list/{entry['id']}"
    told: dict[str, Any] = httpx.get(path, headers={"Waiting-Token": entry["token"]}, timeout=30).json()
    return told


def test_a_payment_that_never_came_makes_room_and_the_letter_says_how_to_take_it(shop: Shop):
    slot_id = shop.slot()
    started = shop.checked_out(slot_id)
    entry = join(shop, slot_id, "grace@example.com")
    shop.lapse(started["booking"]["id"])
    eventually(lambda: look(shop, entry)["status"] == "offered", "the place to be offered")
    offer = look(shop, entry)["offer"]
    [source] = shop.letters(offer["hold_id"])
    letter = message_from_string(source, policy=policy.default)
    assert letter["To"] == "grace@example.com"
    assert letter["Subject"].startswith("Free for you: ")
    body = letter.get_body(("plain",))
    assert body is not None
    text = body.get_content()
    until = datetime.fromisoformat(offer["expires_at"]).astimezone(BERLIN)
    assert written.clock("en", until) in text
    [(entry_id, waiting_token)] = re.findall(r"^http\S+/offer/(\S+)#(\S+)\r?$", text, re.MULTILINE)
    assert (entry_id, waiting_token) == (entry["id"], entry["token"])
    token = look(shop, entry)["offer"]["hold_token"]
    taken = httpx.post(f"{shop.service.url}/v1/bookings", json={"hold_token": token, "customer": CUSTOMER}, timeout=30)
    assert taken.status_code == 201, taken.text
    assert look(shop, entry)["status"] == "booked"
    shop.assert_places(slot_id, 1, 1)
    shop.assert_money_adds_up()


def test_what_is_offered_can_be_paid_for(shop: Shop):
    slot_id = shop.slot(payment="required")
    paid = shop.paid(slot_id)
    entry, second = join(shop, slot_id, "grace@example.com"), join(shop, slot_id, "next@example.com")
    shop.cancel(paid)
    token = look(shop, entry)["offer"]["hold_token"]
    body = {"hold_token": token, "customer": CUSTOMER}
    assert httpx.post(f"{shop.service.url}/v1/bookings", json=body, timeout=30).status_code == 402
    started = factories.made(httpx.post(f"{shop.service.url}/v1/checkout", json=body, timeout=30))
    assert look(shop, entry)["status"] == "offered"
    headers = {"Waiting-Token": entry["token"]}
    left = httpx.delete(f"{shop.service.url}/v1/waiting-list/{entry['id']}", headers=headers, timeout=30)
    assert problem_of(left) == (409, "conflict")
    shop.stripe.pay(started["session_id"])
    shop.wait_for(started["booking"]["id"], "confirmed")
    assert (look(shop, entry)["status"], look(shop, second)["status"]) == ("booked", "waiting")
    shop.assert_places(slot_id, 1, 1)
    shop.assert_money_adds_up()


def test_who_is_failed_by_stripe_is_asked_again_before_all_others(shop: Shop):
    slot_id = shop.slot(payment="required")
    paid = shop.paid(slot_id)
    entry, second = join(shop, slot_id, "grace@example.com"), join(shop, slot_id, "next@example.com")
    shop.cancel(paid)
    first_offer = look(shop, entry)["offer"]
    shop.stripe.fault("sessions.create", "402")
    body = {"hold_token": first_offer["hold_token"], "customer": CUSTOMER}
    failed = httpx.post(f"{shop.service.url}/v1/checkout", json=body, timeout=30)
    shop.stripe.no_faults()
    assert problem_of(failed) == (502, "payment_failed")
    again = look(shop, entry)
    assert (again["status"], look(shop, second)["status"]) == ("offered", "waiting")
    assert again["offer"]["hold_id"] != first_offer["hold_id"]
    shop.letters(again["offer"]["hold_id"])
    shop.assert_places(slot_id, 1, 1)
    body["hold_token"] = again["offer"]["hold_token"]
    started = factories.made(httpx.post(f"{shop.service.url}/v1/checkout", json=body, timeout=30))
    # Nobody pays: the next one is asked.
    shop.lapse(started["booking"]["id"])
    eventually(lambda: look(shop, second)["status"] == "offered", "the next one to be asked")
    assert look(shop, entry)["status"] == "lapsed"
    shop.assert_money_adds_up()


# -- at the terminal --------------------------------------------------------------------------------------------------


def test_the_list_at_the_terminal(
    with_redis: Service,
    lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
):
    monkeypatch.setenv("REDIS_URL", with_redis.redis.url)
    monkeypatch.setenv("DATABASE_URL", with_redis.database_url)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path_factory.mktemp("no-demo")))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(stores, "be_quiet", lambda: None)

    def holdfast(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        codes: list[int] = []
        command = ["waiting", *arguments]
        thread = threading.Thread(
            target=lambda: codes.append(guarded(lambda: cli.main(command, standalone_mode=False)))
        )
        thread.start()
        thread.join()
        return codes[0], capfd.readouterr().out

    line = lines(with_redis)
    slot_id, booking = line.sold_out()
    first, second = line.joined(slot_id), line.joined(slot_id)
    line.cancel(booking)
    code, told = holdfast("list", "--slot", slot_id)
    assert code == DONE
    assert first["id"] in told
    assert "offered until" in told
    assert "waiting, number 1" in told
    code, told = holdfast("list", "--venue", line.venue, "--limit", "1", "--json")
    page = msgspec.json.decode(told)
    assert [each["id"] for each in page["data"]] == [first["id"]]
    assert page["next_cursor"]
    code, told = holdfast("show", first["id"], "--json")
    assert (code, msgspec.json.decode(told)["status"]) == (DONE, "offered")
    code, told = holdfast("show", first["id"])
    assert "guest1@example.com" in told
    assert holdfast("remove", first["id"], "--yes")[0] == DONE
    assert line.statuses(first, second) == ["left", "offered"]
    assert holdfast("show", str(uuid4()))[0] == NOT_FOUND
