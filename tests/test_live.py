"""Live updates: a page sees a slot held, sold, freed or lapsed, whichever process did it, and loses nothing."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app import engine
from app.api import live as api
from app.feed import KEY, MOST_ENTRIES, Feed
from app.live import MOST_AT_ONCE, MOST_BEHIND, Channel, Hub, Stream
from app.settings import Settings
from tests.redis_servers import RedisServer, running_redis
from tests.service import (
    CUSTOMER,
    OPERATOR_KEY,
    SECRET,
    Service,
    all_at_once,
    booking_body,
    eventually,
    make_slots,
    resource_of,
    serving,
)
from tests.shop import Shop, running_shop

pytestmark = pytest.mark.anyio

#: Far above a second, within which it is meant to be: a busy machine is no failure.
SECONDS = 20.0
#: How long a hold lives that a test sees both held and lapsed: where the machine was held up for longer, it lapsed
#: unseen, and the next one lives longer.
LIVES = (2, 6, 18)
#: So many streams that both workers have some: that all hear of a change says that each process does.
BOTH = 12


class Page:
    """One page with its stream: what it was told, and the answer's end."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.last_id: str | None = None
        self.ended = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def slots(self) -> list[dict[str, Any]]:
        return [data for kind, data in self.events if kind == "slot"]

    @property
    def said(self) -> set[str]:
        return {kind for kind, _ in self.events}

    def shows(self, slot_id: str) -> dict[str, Any]:
        """What the page shows of a slot by now: the last that it was told."""
        return next((slot for slot in reversed(self.slots) if slot["id"] == slot_id), {})

    async def until(self, true: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                while not true():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"waited for {what}; was told {self.events}")

    async def sees(self, slot_id: str, **expected: Any) -> None:
        def true() -> bool:
            shown = self.shows(slot_id)
            return bool(shown) and all(shown[name] == value for name, value in expected.items())

        await self.until(true, f"{slot_id} with {expected}")

    async def read(self, answer: httpx.Response) -> None:
        kind, data = "message", ""
        try:
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    data = value
                elif name == "id":
                    self.last_id = value
                elif not line:
                    if data:
                        self.events.append((kind, json.loads(data)))
                    kind, data = "message", ""
                self._news.set()
        finally:
            self.ended.set()
            self._news.set()


@asynccontextmanager
async def page(client: httpx.AsyncClient, since: str | None = None, **params: Any) -> AsyncIterator[Page]:
    """Open a page; its stream has begun, so that nothing is missed from here on."""
    shown = Page()
    headers = {"Last-Event-ID": since} if since else {}
    async with client.stream("GET", "/v1/live", params=params, headers=headers) as answer:
        assert answer.status_code == 200, (await answer.aread()).decode()
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers.get_list("cache-control") == ["no-store"]
        assert answer.headers["x-accel-buffering"] == "no"
        reading = asyncio.create_task(shown.read(answer))
        try:
            # A new stream begins with where it stands; one that is resumed, with what it missed.
            await shown.until(lambda: shown.last_id is not None, "the stream to begin")
            yield shown
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@asynccontextmanager
async def pages(client: httpx.AsyncClient, count: int, **params: Any) -> AsyncIterator[list[Page]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(page(client, **params)) for _ in range(count)]


async def everybody(those: list[Page], act: Callable[[Page], Awaitable[None]]) -> None:
    await asyncio.gather(*(act(each) for each in those))


@pytest.fixture
async def client(with_redis: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with with_redis.client() as client:
        yield client


async def of(client: httpx.AsyncClient, slot_id: str) -> dict[str, Any]:
    answer = await client.get(f"/v1/slots/{slot_id}")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def venue_of(client: httpx.AsyncClient, slot_id: str) -> str:
    return str((await of(client, slot_id))["venue"])


async def hold(client: httpx.AsyncClient, slot_id: str, quantity: int = 1) -> dict[str, Any]:
    answer = await client.post("/v1/holds", json={"slot_id": slot_id, "quantity": quantity})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def book(client: httpx.AsyncClient, slot_id: str, quantity: int = 1) -> dict[str, Any]:
    answer = await client.post("/v1/bookings", json=booking_body(slot_id, quantity))
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


def lapsed(held: dict[str, Any]) -> bool:
    return datetime.now(UTC) >= datetime.fromisoformat(held["expires_at"])


async def sees_held_or_lapsed(shown: Page, held: dict[str, Any]) -> bool:
    """Wait until a page shows a hold; False when it has lapsed by then."""

    def is_held() -> bool:
        return bool(shown.shows(held["slot_id"]).get("status") == "held")

    await shown.until(lambda: is_held() or lapsed(held), "the hold")
    return is_held() and not lapsed(held)


def streams_of(service: Service) -> float:
    return service.metric("holdfast_live_streams")


# -- what is told -----------------------------------------------------------------------------------------------------


async def test_pages_of_every_process_see_a_slot_held_sold_and_freed(with_redis, client):
    [slot_id] = await make_slots(with_redis, client, 2)
    async with pages(client, BOTH, venue=await venue_of(client, slot_id)) as open_pages:
        held = await hold(client, slot_id, 2)
        await everybody(open_pages, lambda each: each.sees(slot_id, held=2, available=0, status="held"))
        body = {"hold_token": held["token"], "customer": CUSTOMER}
        booked = (await client.post("/v1/bookings", json=body)).json()
        await everybody(open_pages, lambda each: each.sees(slot_id, held=0, available_count=0, status="sold_out"))
        await client.post(f"/v1/bookings/{booked['id']}/cancel", headers={"Manage-Token": booked["manage_token"]})
        await everybody(open_pages, lambda each: each.sees(slot_id, available=2, status="available"))
        shown = open_pages[0].shows(slot_id)
        assert shown == await of(client, slot_id)  # to the letter what GET says
        told = json.dumps([each.events for each in open_pages])
        assert not any(secret in told for secret in (*CUSTOMER.values(), held["token"], booked["manage_token"]))


async def test_a_hold_given_up_is_seen(with_redis, client):
    [slot_id] = await make_slots(with_redis, client, 1)
    async with page(client, venue=await venue_of(client, slot_id)) as shown:
        held = await hold(client, slot_id)
        await shown.sees(slot_id, status="held")
        await client.delete(f"/v1/holds/{held['id']}", headers={"Hold-Token": held["token"]})
        await shown.sees(slot_id, status="available", held=0)


async def test_a_hold_that_lapses_is_seen_although_nobody_tells(with_redis, client):
    for seconds in LIVES:
        [slot_id] = await make_slots(with_redis, client, 1, hold_ttl_seconds=seconds)
        async with page(client, venue=await venue_of(client, slot_id)) as shown:
            held = await hold(client, slot_id)
            if await sees_held_or_lapsed(shown, held):
                return await shown.sees(slot_id, status="available", held=0)
    return pytest.fail("the machine was held up again and again")


async def test_so_is_one_that_was_taken_before_the_page_was_opened(with_redis, client):
    for seconds in LIVES:
        [slot_id] = await make_slots(with_redis, client, 3, hold_ttl_seconds=seconds)
        held = await hold(client, slot_id, 2)
        async with pages(client, BOTH, venue=await venue_of(client, slot_id)) as open_pages:
            if not lapsed(held):
                return await everybody(open_pages, lambda each, slot_id=slot_id: each.sees(slot_id, available=3))
    return pytest.fail("the machine was held up again and again")


async def test_a_prolonged_hold_is_seen_when_it_lapses_at_last(with_redis, client):
    for seconds in LIVES:
        [slot_id] = await make_slots(with_redis, client, 1, hold_ttl_seconds=seconds)
        async with page(client, venue=await venue_of(client, slot_id)) as shown:
            held = await hold(client, slot_id)
            if not await sees_held_or_lapsed(shown, held):
                continue
            await asyncio.sleep(seconds / 2)
            extended = await client.post(f"/v1/holds/{held['id']}/extend", headers={"Hold-Token": held["token"]})
            if extended.status_code == 410 and lapsed(held):
                continue
            assert extended.status_code == 200
            await shown.sees(slot_id, status="available")
            gone = await client.get(f"/v1/holds/{held['id']}", headers={"Hold-Token": extended.json()["token"]})
            assert gone.status_code == 410  # and not before
            return
    pytest.fail("the machine was held up again and again")


async def test_what_an_operator_changes_is_seen(with_redis, client):
    [slot_id] = await make_slots(with_redis, client, 1)
    async with page(client, venue=await venue_of(client, slot_id)) as shown:
        for change, expected in (
            ({"status": "closed"}, {"status": "closed"}),
            ({"status": "open", "capacity": 7}, {"status": "available", "capacity": 7, "available": 7}),
        ):
            answer = await client.patch(f"/v1/slots/{slot_id}", json=change, headers=with_redis.operator)
            assert answer.status_code == 200
            await shown.sees(slot_id, **expected)


async def test_a_booking_that_moves_is_seen_in_both_slots(with_redis, client):
    here, there = await make_slots(with_redis, client, 1, 1)
    async with page(client, venue=await venue_of(client, here)) as shown:
        booked = await book(client, here)
        await shown.sees(here, status="sold_out")
        answer = await client.post(
            f"/v1/bookings/{booked['id']}/reschedule",
            json={"slot_id": there},
            headers={"Manage-Token": booked["manage_token"]},
        )
        assert answer.status_code == 200, answer.text
        await shown.sees(here, status="available")
        await shown.sees(there, status="sold_out")


async def test_what_else_a_person_cannot_do_meanwhile_is_seen(with_redis, client):
    one, overlapping, later = await make_slots(with_redis, client, 1, 1, 1, kind="person", hours_apart=0.75)
    async with page(client, venue=await venue_of(client, one)) as shown:
        held = await hold(client, one)
        await shown.sees(overlapping, status="held", available=0)
        await client.delete(f"/v1/holds/{held['id']}", headers={"Hold-Token": held["token"]})
        await shown.sees(overlapping, status="available", available=1)
        await book(client, one)
        await shown.sees(overlapping, status="sold_out", available=0)
        assert shown.shows(overlapping) == await of(client, overlapping)
        seen = {told["status"] for kind, told in shown.events if kind == "slot" and told["id"] == later}
        assert seen <= {"available"}  # it begins when the first has ended; that it is new may be told


async def test_of_blocked_time_only_what_it_is_in_the_way_of_is_seen(with_redis, client):
    """And the owner's calendar reads anew at that."""
    slot_id, later = await make_slots(with_redis, client, 1, 1, kind="person")
    slot = await of(client, slot_id)
    wanted = {"resource_id": slot["resource"]["id"], **{at: slot[at] for at in ("starts_at", "ends_at")}}
    async with page(client, venue=slot["venue"]) as shown:
        answer = await client.post("/v1/blocks", json=wanted, headers=with_redis.operator)
        await shown.sees(slot_id, status="sold_out", available=0)
        removed = await client.delete(f"/v1/blocks/{answer.json()['id']}", headers=with_redis.operator)
        assert removed.status_code == 204
        await shown.sees(slot_id, status="available", available=1)
        await book(client, later)
        await shown.sees(later, status="sold_out")
        assert {told["id"] for kind, told in shown.events if kind == "slot"} == {slot_id, later}


async def test_many_changes_at_once_are_all_told(with_redis, client):
    slot_ids = await make_slots(with_redis, client, *[1] * (MOST_AT_ONCE + 50))
    async with page(client, venue=await venue_of(client, slot_ids[0])) as shown:
        requests = [client.build_request("POST", "/v1/bookings", json=booking_body(slot_id)) for slot_id in slot_ids]
        answers = await all_at_once(client, requests)
        assert {answer.status_code for answer in answers} == {201}
        for slot_id in slot_ids:
            await shown.sees(slot_id, status="sold_out")


@pytest.fixture
def shop(postgres, tmp_path, bundled_redis_server) -> Iterator[Shop]:
    with running_shop(postgres.fresh(), bundled_redis_server, tmp_path) as shop:
        yield shop


async def test_a_checkout_is_seen(shop):
    async with shop.service.client() as client:
        slot_id = shop.slot(1)
        async with page(client, venue=await venue_of(client, slot_id)) as shown:
            with shop.with_worker():
                started = shop.checked_out(slot_id)
                await shown.sees(slot_id, available=0, available_count=0)
                shop.cancel(started, operator=True)
                await shown.sees(slot_id, status="available")


# -- to whom ----------------------------------------------------------------------------------------------------------


async def test_a_stream_is_about_its_venue_and_resource(with_redis, client):
    [ours], [others] = [await make_slots(with_redis, client, 5) for _ in range(2)]
    venue = await venue_of(client, ours)
    made = await client.post(
        "/v1/resources", json={"venue": venue, "name": "Second", "kind": "event"}, headers=with_redis.operator
    )
    slot = {**await of(client, ours), "resource_id": made.json()["id"]}
    wanted = {name: slot[name] for name in ("venue", "resource_id", "starts_at", "ends_at", "capacity")}
    second = (await client.post("/v1/slots", json=wanted, headers=with_redis.operator)).json()["id"]
    first_only = {"venue": venue, "resource_id": resource_of(with_redis, ours)}
    async with page(client, venue=venue) as whole, page(client, **first_only) as narrow:
        for slot_id in (others, second, ours):  # the last is told last: then nothing else is on its way
            await book(client, slot_id)
            await asyncio.sleep(0.3)
        await whole.sees(ours, available=4)
        await narrow.sees(ours, available=4)
        assert {slot["id"] for slot in whole.slots} == {second, ours}
        assert {slot["id"] for slot in narrow.slots} == {ours}


async def test_a_new_resource_of_the_venue_is_part_of_it(with_redis, client):
    [slot_id] = await make_slots(with_redis, client, 5)
    slot = await of(client, slot_id)
    async with page(client, venue=slot["venue"]) as shown:
        made = await client.post(
            "/v1/resources", json={"venue": slot["venue"], "name": "New", "kind": "event"}, headers=with_redis.operator
        )
        wanted = {name: slot[name] for name in ("venue", "starts_at", "ends_at", "capacity")}
        new = await client.post(
            "/v1/slots", json={**wanted, "resource_id": made.json()["id"]}, headers=with_redis.operator
        )
        await shown.sees(new.json()["id"], available=5)  # before anybody has touched it
        await hold(client, new.json()["id"], 2)
        await shown.sees(new.json()["id"], held=2)


async def test_what_a_schedule_makes_and_closes_is_seen(with_redis, client):
    [slot_id] = await make_slots(with_redis, client, 1)
    venue, resource = (await of(client, slot_id))["venue"], None
    operator: dict[str, Any] = {"headers": with_redis.operator}
    made = await client.post("/v1/resources", json={"venue": venue, "name": "Ada", "kind": "person"}, **operator)
    resource = made.json()["id"]
    wanted = {"venue": venue, "name": "Cut", "duration_minutes": 60, "resource_ids": [resource]}
    service = (await client.post("/v1/services", json=wanted, **operator)).json()["id"]
    async with page(client, venue=venue) as shown:
        hours = {
            "resource_id": resource,
            "service_ids": [service],
            "weekly": [{"weekday": day, "from": "09:00", "to": "10:00"} for day in range(1, 8)],
            "step_minutes": 60,
            "from_date": str(datetime.now(UTC).date()),
            "horizon_days": 3,
        }
        schedule = await client.post("/v1/schedules", json=hours, **operator)
        assert schedule.status_code == 201, schedule.text

        def statuses() -> set[str]:
            return {slot["status"] for slot in shown.slots if slot["resource"]["id"] == resource}

        await shown.until(lambda: "available" in statuses(), "the slots of the schedule")
        new = next(slot["id"] for slot in shown.slots if slot["resource"]["id"] == resource)
        gone = await client.delete(f"/v1/schedules/{schedule.json()['id']}", **operator)
        assert gone.status_code == 204, gone.text
        await shown.sees(new, status="closed")


async def test_what_makes_no_sense_is_a_problem(with_redis, client):
    for query, status, code in (
        ("venue=there-is-none", 404, "venue_not_found"),
        ("", 400, "invalid_request"),
        ("venue=demo&resource_id=1", 400, "invalid_request"),
        (f"resource_id={uuid4()}", 404, "not_found"),
        ("venue=demo&page=1", 400, "invalid_request"),
    ):
        answer = await client.get(f"/v1/live?{query}")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    eventually(lambda: streams_of(with_redis) == 0, "no stream to be left open", SECONDS)


# -- coming back ------------------------------------------------------------------------------------------------------


async def test_a_stream_is_resumed_without_loss_or_repetition(with_redis, client):
    slot_ids = await make_slots(with_redis, client, 9, 9, 9)
    venue = await venue_of(client, slot_ids[0])
    with with_redis.redis.admin() as redis:  # that they are new has been told: it is not what the pages wait for
        eventually(lambda: all(slot_id in str(redis.xrange(KEY)) for slot_id in slot_ids), "the new slots to be told")
    # By holds, each of which is one change: a booking is one when it takes its places, and one when it is made.
    async with page(client, venue=venue) as shown:
        await hold(client, slot_ids[0])
        await shown.sees(slot_ids[0], available=8)
    eventually(lambda: streams_of(with_redis) == 0, "the stream to be left", SECONDS)
    [other] = await make_slots(with_redis, client, 1)
    await hold(client, other)
    await hold(client, slot_ids[1])
    changed_after(with_redis, shown.last_id, slot_ids[1])  # told to nobody by now
    async with page(client, since=shown.last_id, venue=venue) as again:
        await again.sees(slot_ids[1], available=8)
        await hold(client, slot_ids[2])
        await again.sees(slot_ids[2], available=8)
        assert [(kind, data["id"]) for kind, data in again.events] == [("slot", slot_ids[1]), ("slot", slot_ids[2])]
    async with page(client, since=again.last_id, venue=venue) as at_last:
        await hold(client, slot_ids[0])
        await at_last.sees(slot_ids[0], available=7)
        assert len(at_last.events) == 1


def changed_after(service: Service, position: str, slot_id: str) -> None:
    """Wait until the feed says, after a position, that a slot has changed."""
    with service.redis.admin() as redis:
        eventually(lambda: slot_id in str(redis.xrange(KEY, min=f"({position}")), f"{slot_id} in the feed", SECONDS)


async def test_who_was_away_too_long_is_told_to_reload(with_redis, client):
    [slot_id] = await make_slots(with_redis, client, 9)
    venue = await venue_of(client, slot_id)
    async with page(client, venue=venue) as shown:
        await hold(client, slot_id)
        await shown.sees(slot_id, available=8)
    await hold(client, slot_id)
    changed_after(with_redis, shown.last_id, slot_id)
    with with_redis.redis.admin() as redis:
        redis.xtrim(KEY, maxlen=1, approximate=False)
    for since in (shown.last_id, "0-0", "99999999999999-0", "of another service"):
        async with page(client, since=since, venue=venue) as again:
            await again.until(lambda again=again: bool(again.events), "the word to reload")
            told = len(again.slots)  # by another process than the last time, perhaps, which had yet to tell of that
            assert again.events[0] == ("reset", {})
            await hold(client, slot_id)  # and goes on
            await again.until(lambda again=again, told=told: len(again.slots) > told, "the next change")
            assert [kind for kind, _ in again.events].count("reset") == 1


async def test_the_feed_is_bounded(with_redis, client):
    with with_redis.redis.admin() as redis:
        for _ in range(MOST_ENTRIES + 500):
            redis.xadd(KEY, {"-": ""})
        [slot_id] = await make_slots(with_redis, client, 9)
        await hold(client, slot_id)
        eventually(lambda: redis.xlen(KEY) <= MOST_ENTRIES + 100, "the stream to be cut", SECONDS)


# -- stores that go away ----------------------------------------------------------------------------------------------


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis("--maxmemory-policy", "noeviction", "--appendonly", "yes") as server:
        yield server


async def test_redis_goes_and_comes(postgres, redis):
    with serving(postgres.fresh(), redis.url, redis=redis) as service:
        async with service.client() as client:
            [slot_id] = await make_slots(service, client, 9)
            venue = await venue_of(client, slot_id)
            async with pages(client, BOTH, venue=venue) as open_pages:
                await hold(client, slot_id)
                await everybody(open_pages, lambda each: each.sees(slot_id, held=1))
                redis.kill()
                for each in open_pages:
                    await each.until(each.ended.is_set, "the stream to end")
                    assert each.events[-1] == ("degraded", {})
            eventually(lambda: streams_of(service) == 0, "the streams to be closed", SECONDS)
            await book(client, slot_id, 2)  # which goes on, and of which nobody could be told
            refused = await client.get("/v1/live", params={"venue": venue})
            assert (refused.status_code, refused.json()["code"]) == (503, "live_unavailable")
            assert int(refused.headers["Retry-After"]) > 0
            polled = await client.get("/v1/slots", params={"venue": venue})
            same = await client.get(
                "/v1/slots", params={"venue": venue}, headers={"If-None-Match": polled.headers["ETag"]}
            )
            assert same.status_code == 304
            redis.start()
            await _live_again(client, venue)
            async with pages(client, BOTH, venue=venue) as open_pages:
                await book(client, slot_id)
                await everybody(open_pages, lambda each: each.sees(slot_id, available_count=6, held=1))
                assert open_pages[0].shows(slot_id) == await of(client, slot_id)


async def _live_again(client: httpx.AsyncClient, venue: str) -> None:
    deadline, in_a_row = time.monotonic() + SECONDS, 0
    while in_a_row < BOTH:  # every worker
        assert time.monotonic() < deadline
        async with client.stream("GET", "/v1/live", params={"venue": venue}) as answer:
            in_a_row = in_a_row + 1 if answer.status_code == 200 else 0
        await asyncio.sleep(0.02)


async def test_a_redis_that_comes_back_without_its_memory_makes_pages_reload(postgres):
    with (
        running_redis("--maxmemory-policy", "noeviction") as redis,
        serving(postgres.fresh(), redis.url, redis=redis) as service,
    ):
        async with service.client() as client:
            [slot_id] = await make_slots(service, client, 9)
            async with pages(client, BOTH, venue=await venue_of(client, slot_id)) as open_pages:
                await hold(client, slot_id)
                await everybody(open_pages, lambda each: each.sees(slot_id, held=1))
                redis.kill()
                redis.start()  # at once: no booking was made meanwhile that could have missed it
                for each in open_pages:
                    await each.until(lambda each=each: bool(each.said & {"reset", "degraded"}), "the word")


async def test_without_redis_there_is_no_stream(without_redis):
    async with without_redis.client() as client:
        [slot_id] = await make_slots(without_redis, client, 1)
        venue = await venue_of(client, slot_id)
        answer = await client.get("/v1/live", params={"venue": venue})
        assert (answer.status_code, answer.json()["code"]) == (503, "live_unavailable")


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_streams_are_bounded_and_places_come_back(postgres, bundled_redis_server):
    server = bundled_redis_server
    with serving(postgres.fresh(), server.url, redis=server, workers=1, HOLDFAST_LIVE_STREAMS="3") as service:
        async with service.client() as client:
            [slot_id] = await make_slots(service, client, 1)
            venue = await venue_of(client, slot_id)
            for _ in range(3):  # each round ends by hanging up
                async with pages(client, 3, venue=venue):
                    over = await client.get("/v1/live", params={"venue": venue})
                    assert (over.status_code, over.json()["code"]) == (503, "overloaded")
                    assert int(over.headers["Retry-After"]) > 0
                    assert (await client.get("/livez")).status_code == 200
                    assert streams_of(service) == 3
                eventually(lambda: streams_of(service) == 0, "the places to come back", SECONDS)


async def test_a_stop_ends_open_streams_cleanly_and_at_once(postgres, bundled_redis_server):
    server = bundled_redis_server
    with serving(postgres.fresh(), server.url, redis=server) as service:
        async with service.client() as client:
            [slot_id] = await make_slots(service, client, 1)
            async with pages(client, 50, venue=await venue_of(client, slot_id)) as open_pages:
                began = time.monotonic()
                service.process.terminate()
                for each in open_pages:
                    await each.until(each.ended.is_set, "the stream to end")  # whole: else reading had raised
                assert await asyncio.to_thread(service.process.wait, SECONDS) == 0
                assert time.monotonic() - began < SECONDS / 2 + 5


async def test_a_reader_that_forgets_a_cancellation_ends_with_its_hub(with_redis, monkeypatch):
    """As Python 3.11 may make it: see `app.ending`."""
    ended, close = [], Feed.close

    async def deaf(self: Hub, feed: Feed) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("reader")

    async def closed(self: Feed) -> None:
        ended.append("feed")
        await close(self)

    monkeypatch.setattr(Hub, "_follow", deaf)
    monkeypatch.setattr(Feed, "close", closed)
    settings = Settings(
        redis_url=with_redis.redis.url,
        database_url=with_redis.database_url,
        operator_key=OPERATOR_KEY,
        secrets=(SECRET,),
    )
    async with engine.running(settings) as running:
        hub = Hub(running, lambda slot, room: b"")
        await hub.join("nowhere", None, None)
        async with asyncio.timeout(30):
            await hub.close()
        assert ended == ["reader", "feed"]


async def test_a_client_that_reads_too_slowly_is_cut_off():
    """It would otherwise collect what it does not read, for as long as it likes."""
    left: list[Stream] = []
    stream = Stream(Channel("venue", None), None)
    hub: Any = SimpleNamespace(leave=left.append)
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if len(sent) > 1:
            await asyncio.Event().wait()  # its socket is full, and stays so

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    writing = asyncio.create_task(api.Events(hub, stream)._follow({}, receive, send))  # type: ignore[arg-type]
    stream.push(b"first")
    await asyncio.sleep(0.01)
    for _ in range(MOST_BEHIND // 1000):
        stream.push(b"." * 1000)
    assert not writing.done()
    stream.push(b"." * 1000)
    async with asyncio.timeout(SECONDS):
        await writing
    assert left == [stream]
    assert sent == [b"", b"first"]


async def test_a_stream_ends_in_time_with_what_it_still_has(monkeypatch):
    monkeypatch.setattr(api, "LIFE_SECONDS", 0.2)
    monkeypatch.setattr(api, "LIFE_JITTER_SECONDS", 0)
    left: list[Stream] = []
    stream = Stream(Channel("venue", None), None)
    hub: Any = SimpleNamespace(leave=left.append)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    stream.push(b"first")
    async with asyncio.timeout(SECONDS):
        await api.Events(hub, stream)._follow({}, receive, send)  # type: ignore[arg-type]
    assert sent[1:] == [
        {"type": "http.response.body", "body": b"first", "more_body": True},
        {"type": "http.response.body", "body": b"", "more_body": False},
    ]
    assert left == [stream]


async def test_a_resource_is_followed_without_its_venue(with_redis, client):
    [slot_id], [other] = [await make_slots(with_redis, client, 9) for _ in range(2)]
    resource = resource_of(with_redis, slot_id)
    async with page(client, resource_id=resource) as first, page(client, resource_id=resource) as second:
        for each in (other, slot_id):  # of which only the second is of this resource
            await book(client, each)
        for shown in (first, second):  # the venue of the second is known from the first
            await shown.sees(slot_id, available=8)
            assert {slot["id"] for slot in shown.slots} == {slot_id}


async def test_an_unknown_resource_hears_nothing(with_redis, client):
    [slot_id] = await make_slots(with_redis, client, 9)
    venue = await venue_of(client, slot_id)
    async with page(client, venue=venue) as whole, page(client, venue=venue, resource_id=uuid4()) as nothing:
        await book(client, slot_id)
        await whole.sees(slot_id, available=8)
        assert nothing.events == []
