"""One person, one thing at a time, over HTTP: races for overlapping slots, and what Redis may forget of them (S4-6).

Against two worker processes, with Redis and without. Whatever was asked in whatever order, the live bookings of a
person never overlap; the tests that show that these bite are in test_negative_controls.py.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app import booking as bookings
from app.booking import BookingRequest
from app.domain import Caller, Customer
from app.engine import Engine
from app.holds import slot_keys
from tests.redis_servers import RedisServer, running_redis
from tests.service import (
    CUSTOMER,
    Postgres,
    Service,
    all_at_once,
    assert_slot_holds,
    booking_body,
    engine_on,
    eventually,
    mirrored,
    resource_of,
    serving,
)

pytestmark = pytest.mark.anyio

#: Seven times of one person, each of which overlaps all others: (begins, lasts) in minutes.
ALL_OVERLAP = [(0, 60), (15, 60), (30, 60), (45, 30), (0, 90), (-30, 90), (50, 5)]
#: The first and the last only touch; the one between overlaps both.
CHAIN = [(0, 60), (30, 60), (60, 60)]


async def make_person(
    service: Service,
    client: httpx.AsyncClient,
    times: Sequence[tuple[int, int]],
    *,
    capacity: int = 1,
    kind: str = "person",
    buffer: int | None = None,
) -> list[str]:
    """Make a person with a slot for each time; with a buffer, of a service that has one."""
    venue = f"v-{uuid.uuid4().hex[:16]}"

    async def make(path: str, **body: Any) -> dict[str, Any]:
        answer = await client.post(path, json=body, headers=service.operator)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    await make("/v1/venues", slug=venue, name="Venue", timezone="Europe/Berlin")
    ada = (await make("/v1/resources", venue=venue, name="Ada", kind=kind))["id"]
    of_service: dict[str, Any] = {}
    if buffer is not None:
        what = {"name": "Cut", "duration_minutes": 60, "buffer_minutes": buffer, "resource_ids": [ada]}
        of_service = {"service_id": (await make("/v1/services", venue=venue, **what))["id"]}
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    slots = []
    for begins, lasts in times:
        begin = start + timedelta(minutes=begins)
        when = {"starts_at": begin.isoformat(), "ends_at": (begin + timedelta(minutes=lasts)).isoformat()}
        slots.append({"venue": venue, "resource_id": ada, "capacity": capacity, **when, **of_service})
    return [slot["id"] for slot in (await make("/v1/slots", slots=slots))["data"]]


def request(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Request:
    return client.build_request("POST", path, json=body)


def booking(client: httpx.AsyncClient, slot_id: str, quantity: int = 1) -> httpx.Request:
    return request(client, "/v1/bookings", **booking_body(slot_id, quantity))


async def book(client: httpx.AsyncClient, slot_id: str) -> httpx.Response:
    return await client.send(booking(client, slot_id))


async def hold(client: httpx.AsyncClient, slot_id: str) -> httpx.Response:
    return await client.post("/v1/holds", json={"slot_id": slot_id})


async def shown(client: httpx.AsyncClient, slot_id: str) -> tuple[str, int]:
    slot = (await client.get(f"/v1/slots/{slot_id}")).json()
    return slot["status"], slot["available"]


def statuses(answers: Sequence[httpx.Response]) -> list[int]:
    return sorted(answer.status_code for answer in answers)


def refusals(answers: Sequence[httpx.Response]) -> set[tuple[str, str]]:
    return {(a.json()["code"], a.json()["reason"]) for a in answers if a.status_code == 409}


def assert_one_at_a_time(service: Service, slot_ids: Sequence[str]) -> None:
    """No two live bookings of the person overlap, buffers counted, and `occupied` says the same as the bookings."""
    live = "b.status IN ('held', 'pending_payment', 'confirmed')"
    resource_id = resource_of(service, slot_ids[0])
    overlapping = service.query(
        "SELECT s.id, t.id FROM slots AS s JOIN slots AS t ON t.resource_id = s.resource_id AND t.id > s.id"
        "   AND tstzrange(s.starts_at, s.occupied_until) && tstzrange(t.starts_at, t.occupied_until)"
        f" WHERE s.resource_id = %s AND EXISTS (SELECT FROM bookings AS b WHERE b.slot_id = s.id AND {live})"
        f"   AND EXISTS (SELECT FROM bookings AS b WHERE b.slot_id = t.id AND {live})",
        resource_id,
    )
    assert overlapping == []
    booked = service.query(
        f"SELECT DISTINCT b.slot_id FROM bookings AS b JOIN slots AS s ON s.id = b.slot_id"
        f" WHERE s.resource_id = %s AND {live}",
        resource_id,
    )
    occupied = service.query(
        "SELECT o.slot_id FROM occupied AS o JOIN slots AS s ON s.id = o.slot_id WHERE s.resource_id = %s", resource_id
    )
    assert set(booked) == set(occupied)
    if service.redis is not None:
        eventually(lambda: _busy(service, resource_id) == {str(row[0]) for row in booked}, "Redis to say the same")


def _busy(service: Service, resource_id: str) -> set[str]:
    """Read which slots keep the others away, past the code under test."""
    assert service.redis is not None
    with service.redis.admin() as redis:
        doing = redis.hgetall(f"hf:{{{resource_id}}}:doing")
        now = redis.time()[0] * 1000
    parts = {slot_id: entry.split(":") for slot_id, entry in doing.items()}
    return {slot_id for slot_id, (_, told, until) in parts.items() if told != "0" or int(until) > now}


# -- races ------------------------------------------------------------------------------------------------------------


async def test_s4_6_a_hundred_rivals_for_seven_overlapping_times_one_wins(service: Service):
    for _ in range(3):
        async with service.client() as client:
            slots = await make_person(service, client, ALL_OVERLAP)
            answers = await all_at_once(client, [booking(client, slots[n % 7]) for n in range(100)])
            assert statuses(answers) == [201] + [409] * 99
            assert refusals(answers) <= {("slot_unavailable", "held"), ("slot_unavailable", "booked")}
            assert_one_at_a_time(service, slots)
            [winner] = [answer.json()["slot_id"] for answer in answers if answer.status_code == 201]
            for slot_id in slots:
                assert_slot_state(service, slot_id, sold=int(slot_id == winner))


def assert_slot_state(service: Service, slot_id: str, *, sold: int) -> None:
    [(count, booked)] = service.query(
        "SELECT s.available_count, (SELECT count(*) FROM bookings AS b WHERE b.slot_id = s.id) FROM slots AS s"
        " WHERE s.id = %s",
        slot_id,
    )
    assert (count, booked) == (1 - sold, sold)


async def test_of_a_chain_one_or_two_win_and_then_nothing_is_free(service: Service):
    for _ in range(3):
        async with service.client() as client:
            slots = await make_person(service, client, CHAIN)
            answers = await all_at_once(client, [booking(client, slots[n % 3]) for n in range(60)])
            won = {answer.json()["slot_id"] for answer in answers if answer.status_code == 201}
            assert statuses(answers) == [201] * len(won) + [409] * (60 - len(won))
            assert_one_at_a_time(service, slots)
            assert won <= {slots[1]} or won <= {slots[0], slots[2]}
            # What is left can be had by whoever comes now, and nothing else can.
            late = [await book(client, slot_id) for slot_id in slots]
            expected = [] if won == {slots[1]} else [slots[0], slots[2]]
            won |= {answer.json()["slot_id"] for answer in late if answer.status_code == 201}
            assert won == set(expected) or won == {slots[1]}
            assert_one_at_a_time(service, slots)


async def test_many_share_one_class_and_nothing_else_is_taught_meanwhile(service: Service):
    async with service.client() as client:
        slots = await make_person(service, client, [(0, 60), (30, 60)], capacity=20)
        answers = await all_at_once(client, [booking(client, slots[n % 2]) for n in range(40)])
        won = {answer.json()["slot_id"] for answer in answers if answer.status_code == 201}
        assert len(won) == 1
        assert_one_at_a_time(service, slots)
        [chosen] = won
        first = sum(answer.status_code == 201 for answer in answers)
        rest = await all_at_once(client, [booking(client, chosen) for _ in range(30)])
        assert first + sum(answer.status_code == 201 for answer in rest) == 20
        assert_slot_holds(service, chosen, 20, 20)


async def test_buffers_keep_their_distance_in_a_race(service: Service):
    async with service.client() as client:
        for begins, most in ((74, 1), (75, 2)):
            slots = await make_person(service, client, [(0, 60), (begins, 60)], buffer=15)
            answers = await all_at_once(client, [booking(client, slots[n % 2]) for n in range(40)])
            assert statuses(answers) == [201] * most + [409] * (40 - most)
            assert_one_at_a_time(service, slots)


async def test_an_event_sells_all_its_overlapping_slots(service: Service):
    async with service.client() as client:
        slots = await make_person(service, client, ALL_OVERLAP, kind="event")
        answers = await all_at_once(client, [booking(client, slots[n % 7]) for n in range(70)])
        assert statuses(answers) == [201] * 7 + [409] * 63


async def test_holds_bookings_releases_and_cancellations_in_any_order(service: Service):
    dice = random.Random(11)
    async with service.client() as client:
        slots = await make_person(service, client, [*ALL_OVERLAP, (90, 60), (120, 60)])

        async def customer(number: int) -> None:
            slot_id = dice.choice(slots)
            if number % 2:
                held = await hold(client, slot_id)
                assert held.status_code in (201, 409), held.text
                if held.status_code == 409:
                    return
                if number % 3 == 0:
                    headers = {"Hold-Token": held.json()["token"]}
                    assert (await client.delete(f"/v1/holds/{held.json()['id']}", headers=headers)).status_code == 204
                    return
                body = {"hold_token": held.json()["token"], "customer": CUSTOMER}
                booked = await client.post("/v1/bookings", json=body)
                assert booked.status_code == 201, booked.text  # one's own hold never blocks, and nobody beats it
            else:
                booked = await book(client, slot_id)
                assert booked.status_code in (201, 409), booked.text
                if booked.status_code == 409:
                    return
            if number % 5:
                headers = {"Manage-Token": booked.json()["manage_token"]}
                ended = await client.post(f"/v1/bookings/{booked.json()['id']}/cancel", headers=headers)
                assert ended.status_code == 200

        await asyncio.gather(*(customer(number) for number in range(150)))
        assert_one_at_a_time(service, slots)


async def test_held_times_become_exactly_the_bookings(service: Service):
    async with service.client() as client:
        slots = await make_person(service, client, ALL_OVERLAP)
        answers = await all_at_once(client, [request(client, "/v1/holds", slot_id=slots[n % 7]) for n in range(70)])
        assert statuses(answers) == [201] + [409] * 69
        [held] = [answer.json() for answer in answers if answer.status_code == 201]
        by_token = request(client, "/v1/bookings", hold_token=held["token"], customer=CUSTOMER)
        answers = await all_at_once(client, [*(booking(client, slots[n % 7]) for n in range(30)), by_token])
        assert statuses(answers) == [201] + [409] * 30
        assert answers[-1].status_code == 201
        assert_one_at_a_time(service, slots)


# -- what the refused are told ----------------------------------------------------------------------------------------


async def test_a_refusal_tells_when_the_hold_in_the_way_may_lapse(with_redis: Service):
    async with with_redis.client() as client:
        one, other, apart = await make_person(with_redis, client, [(0, 60), (30, 60), (120, 60)])
        held = (await hold(client, one)).json()
        for answer in (await hold(client, other), await book(client, other)):
            refused = answer.json()
            assert (refused["code"], refused["reason"], refused["available"]) == ("slot_unavailable", "held", 0)
            assert abs(datetime.fromisoformat(refused["may_free_at"]) - datetime.fromisoformat(held["expires_at"])) < (
                timedelta(milliseconds=2)
            )
            assert [slot["id"] for slot in refused["alternatives"]] == [apart]
        assert [await shown(client, slot_id) for slot_id in (one, other, apart)] == [
            ("held", 0), ("held", 0), ("available", 1),
        ]  # fmt: skip
        await client.delete(f"/v1/holds/{held['id']}", headers={"Hold-Token": held["token"]})
        assert await shown(client, other) == ("available", 1)
        assert (await hold(client, other)).status_code == 201


async def test_what_overlaps_a_booking_is_shown_sold_out_and_refused_by_redis_alone(with_redis: Service):
    async with with_redis.client() as client:
        one, other, apart = await make_person(with_redis, client, [(0, 60), (30, 60), (120, 60)])
        booked = (await book(client, one)).json()
        before = with_redis.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")
        refused = (await book(client, other)).json()
        assert (refused["reason"], refused["may_free_at"]) == ("booked", None)
        assert with_redis.metric("holdfast_outcomes_total", operation="book", outcome="refused_early") == before + 1
        assert [await shown(client, slot_id) for slot_id in (one, other, apart)] == [
            ("sold_out", 0), ("sold_out", 0), ("available", 1),
        ]  # fmt: skip
        headers = {"Manage-Token": booked["manage_token"]}
        await client.post(f"/v1/bookings/{booked['id']}/cancel", headers=headers)
        assert await shown(client, other) == ("available", 1)
        assert (await book(client, other)).status_code == 201
        assert_one_at_a_time(with_redis, [one, other, apart])


async def test_a_list_leaves_out_what_the_person_has_no_time_for(with_redis: Service):
    async with with_redis.client() as client:
        slots = await make_person(with_redis, client, [(0, 60), (30, 60), (60, 60), (120, 60)])
        await hold(client, slots[0])
        page = await client.get(f"/v1/slots?resource_id={resource_of(with_redis, slots[0])}&quantity=1")
        assert [slot["id"] for slot in page.json()["data"]] == [slots[2], slots[3]]


async def test_a_keyed_retry_is_told_its_booking_and_not_that_the_person_is_busy(service: Service):
    async with service.client() as client:
        one, other = await make_person(service, client, [(0, 60), (30, 60)], capacity=2)
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        first = await client.post("/v1/bookings", json=booking_body(one), headers=headers)
        token = {"Manage-Token": first.json()["manage_token"]}
        await client.post(f"/v1/bookings/{first.json()['id']}/cancel", headers=token)
        assert (await book(client, other)).status_code == 201
        for emptied in (False, True):
            if emptied and service.redis is not None:
                with service.redis.admin() as redis:
                    redis.flushall()
            again = await client.post("/v1/bookings", json=booking_body(one), headers=headers)
            assert (again.status_code, again.content) == (201, first.content)


# -- Redis forgets, is wrong, or goes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with running_redis("--maxmemory-policy", "noeviction") as server:
        yield server


@pytest.fixture(scope="module")
def own_service(postgres: Postgres, own_redis: RedisServer) -> Iterator[Service]:
    with serving(postgres.fresh(), own_redis.url, redis=own_redis) as service:
        yield service


@pytest.fixture
def shaky(own_service: Service, own_redis: RedisServer) -> Service:
    """A service whose Redis is its own to break. At the start it is trusted, and knows nothing."""
    eventually(lambda: own_service.metric("holdfast_degraded") == 0, "all processes to trust Redis")
    with own_redis.admin() as redis:
        redis.flushall()
    return own_service


@pytest.fixture
async def engine(shaky: Service, own_redis: RedisServer) -> AsyncIterator[Engine]:
    async with engine_on(shaky.database_url, own_redis.url) as engine:
        yield engine


def refused_early(service: Service) -> float:
    return service.metric("holdfast_outcomes_total", operation="book", outcome="refused_early")


def tamper(service: Service, slot_id: str, entry: str | None) -> None:
    """Change what Redis tells the others of a slot; None: it forgets it."""
    assert service.redis is not None
    keys = slot_keys(uuid.UUID(resource_of(service, slot_id)), uuid.UUID(slot_id))
    with service.redis.admin() as redis:
        if entry is None:
            redis.hdel(keys["doing"], slot_id)
            redis.zrem(keys["busy"], slot_id)
        else:
            redis.hset(keys["doing"], slot_id, entry)


async def test_an_emptied_redis_learns_what_its_persons_do_before_it_answers(shaky: Service, own_redis: RedisServer):
    async with shaky.client() as client:
        one, other, third = await make_person(shaky, client, [(0, 60), (30, 60), (45, 60)])
        assert (await book(client, one)).status_code == 201
        assert [(await book(client, slot_id)).status_code for slot_id in (other, third)] == [409, 409]
        with own_redis.admin() as redis:
            redis.flushall()
        before, let_through = refused_early(shaky), shaky.metric("holdfast_backstop_conflicts_total")
        answers = await all_at_once(client, [booking(client, slot_id) for slot_id in [other, third] * 20])
        assert refusals(answers) == {("slot_unavailable", "booked")}
        assert statuses(answers) == [409] * 40
        assert refused_early(shaky) - before == 40
        assert shaky.metric("holdfast_backstop_conflicts_total") == let_through
        assert_one_at_a_time(shaky, [one, other, third])


async def test_what_was_booked_behind_redis_back_is_refused_by_postgres_once(shaky: Service):
    async with shaky.client(connections=1) as client:  # one process: another would look at what it does not know
        one, other = await make_person(shaky, client, [(0, 60), (30, 60)], capacity=2)
        assert (await hold(client, other)).status_code == 201  # so that Redis knows the slot
        tamper(shaky, other, None)
        async with engine_on(shaky.database_url, "unix:///nonexistent/redis.sock") as aside:
            behind = BookingRequest(slot_id=uuid.UUID(one), customer=Customer(**CUSTOMER))
            await bookings.book(aside, behind, caller=Caller("customer", None))
        before = refused_early(shaky)
        assert (await book(client, other)).json()["reason"] == "booked"
        assert refused_early(shaky) == before
        eventually(lambda: str(one) in _busy(shaky, resource_of(shaky, one)), "Redis to be told")
        assert (await book(client, other)).json()["reason"] == "booked"
        assert refused_early(shaky) == before + 1


async def test_an_old_booking_is_verified_before_it_refuses_anybody(shaky: Service):
    """Cancelled while nobody could tell Redis: what it believes for longer than a moment is looked up first."""
    async with shaky.client() as client:
        one, other = await make_person(shaky, client, [(0, 60), (30, 60)])
        booked = (await book(client, one)).json()
        assert_one_at_a_time(shaky, [one, other])
        shaky.query("SELECT word FROM cancel_booking(%s, false, 'operator', NULL)", booked["id"])
        starts = int((datetime.now(UTC) + timedelta(hours=1)).timestamp() * 1000)
        tamper(shaky, one, f"{starts}:1:0")
        assert await shown(client, other) == ("available", 1)
        assert (await book(client, other)).status_code == 201
        assert_one_at_a_time(shaky, [one, other])


async def test_while_redis_is_away_and_after_it_is_back(shaky: Service, own_redis: RedisServer):
    async with shaky.client() as client:
        slots = await make_person(shaky, client, [(0, 60), (30, 60), (120, 60), (150, 60)])
        assert (await book(client, slots[0])).status_code == 201
        own_redis.kill()
        answers = [await hold(client, slots[1]), await hold(client, slots[2]), await hold(client, slots[3])]
        assert [answer.status_code for answer in answers] == [409, 201, 409]
        assert answers[1].json()["degraded"]
        own_redis.start()  # empty
        eventually(lambda: httpx.get(f"{shaky.url}/readyz").json()["redis"] == "ok", "Redis to be trusted again")
        for slot_id in (slots[1], slots[3]):
            assert (await book(client, slot_id)).json()["reason"] == "booked"
        body = {"hold_token": answers[1].json()["token"], "customer": CUSTOMER}
        assert (await client.post("/v1/bookings", json=body)).status_code == 201
        assert_one_at_a_time(shaky, slots)


@pytest.mark.parametrize("wrong", [None, "1:0:0", "1:0:9999999999999"])
async def test_reconcile_finds_and_repairs_what_the_others_see(shaky: Service, engine: Engine, wrong: str | None):
    async with shaky.client() as client:
        one, other, held = await make_person(shaky, client, [(0, 60), (30, 60), (120, 60)])
        assert (await book(client, one)).status_code == 201
        assert (await hold(client, held)).status_code == 201
        eventually(lambda: mirrored(shaky, one) == (1, 1, 0), "the booking to be settled")
        assert (await engine.mirror.reconcile()).drift == []
        before = _busy(shaky, resource_of(shaky, one))
        tamper(shaky, one, wrong)
        [drift] = (await engine.mirror.reconcile(repair=False)).drift
        assert (str(drift.slot_id), drift.field, drift.actual) == (one, "occupied", 2)
        assert len((await engine.mirror.reconcile()).drift) == 1
        assert (await engine.mirror.reconcile()).drift == []
        assert _busy(shaky, resource_of(shaky, one)) == before == {one, held}
        assert (await book(client, other)).status_code == 409


async def test_reconcile_brings_in_bookings_that_redis_was_never_told_of(shaky: Service, engine: Engine):
    async with shaky.client() as client:
        one, other = await make_person(shaky, client, [(0, 60), (30, 60)])
        assert (await book(client, one)).status_code == 201
        assert shaky.redis is not None
        with shaky.redis.admin() as redis:
            redis.flushall()
        assert (await engine.mirror.reconcile(repair=False)).drift == []
        assert _busy(shaky, resource_of(shaky, one)) == set()
        assert (await engine.mirror.reconcile()).drift == []  # nobody asked for them: nothing was wrong
        assert _busy(shaky, resource_of(shaky, one)) == {one}
        assert await shown(client, other) == ("sold_out", 0)


async def test_layer_2_is_never_needed_while_redis_is_healthy(with_redis: Service):
    before = with_redis.metric("holdfast_backstop_conflicts_total")
    async with with_redis.client() as client:
        slots = await make_person(with_redis, client, ALL_OVERLAP)
        answers = await all_at_once(client, [booking(client, slots[n % 7]) for n in range(100)])
        assert statuses(answers) == [201] + [409] * 99
    assert with_redis.metric("holdfast_backstop_conflicts_total") == before
