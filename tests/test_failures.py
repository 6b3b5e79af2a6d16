"""What happens when a store fails, at each point where it can, over HTTP against two worker processes.

Each test says what both stores hold afterwards and what the customer was told. Redis may fail in any way: bookings go
on, exactly counted. Postgres may fail in any way: a clear 503, nothing lost, nothing doubled (reliability.md 4).
"""

import asyncio
import contextlib
import os
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app import embedded
from app.migrate import upgrade
from tests.faults import FaultProxy
from tests.redis_servers import RedisServer, running_redis
from tests.service import (
    CUSTOMER,
    START_SECONDS,
    Postgres,
    Service,
    assert_slot_holds,
    booking_body,
    eventually,
    is_ready,
    make_slot,
    make_slots,
    mirrored,
    race,
    resource_of,
    serving,
    sold_places,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis(own_redis: RedisServer) -> RedisServer:
    """A Redis to break. That it is away at the end of a test is mended before the next one."""
    if not own_redis.runs:
        own_redis.start()
    return own_redis


@pytest.fixture(scope="module")
def own_service(postgres: Postgres, own_redis: RedisServer) -> Iterator[Service]:
    with serving(postgres.fresh(), own_redis.url, redis=own_redis) as running:
        yield running


@pytest.fixture
def service(own_service: Service, redis: RedisServer) -> Service:
    eventually(lambda: not degraded(own_service), "all workers to trust Redis again")
    return own_service


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as client:
        yield client


def degraded(service: Service) -> bool:
    return service.metric("holdfast_degraded") > 0


def told_degraded(service: Service) -> bool:
    answer = httpx.get(f"{service.url}/readyz")
    assert answer.status_code == 200
    return bool(answer.json()["redis"] == "degraded")


async def book(client: httpx.AsyncClient, slot_id: str, quantity: int = 1, **headers: str) -> httpx.Response:
    return await client.post("/v1/bookings", json=booking_body(slot_id, quantity), headers=headers)


async def hold(client: httpx.AsyncClient, slot_id: str, quantity: int = 1) -> dict[str, Any]:
    answer = await client.post("/v1/holds", json={"slot_id": slot_id, "quantity": quantity})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def confirm(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/v1/bookings", json={"hold_token": token, "customer": CUSTOMER})


# -- Redis away -------------------------------------------------------------------------------------------------------


def kill(redis: RedisServer) -> None:
    redis.kill()


def restart(redis: RedisServer) -> None:
    redis.start()  # without persistence: it comes back empty


def pause(redis: RedisServer) -> None:
    redis.pause()


def resume(redis: RedisServer) -> None:
    redis.resume()


def make_read_only(redis: RedisServer) -> None:
    with redis.admin() as admin:
        admin.replicaof("127.0.0.1", "1")


def make_writable(redis: RedisServer) -> None:
    with redis.admin() as admin:
        admin.replicaof("NO", "ONE")


def fill_up(redis: RedisServer) -> None:
    with redis.admin() as admin:
        admin.config_set("maxmemory", 1)


def make_room(redis: RedisServer) -> None:
    with redis.admin() as admin:
        admin.config_set("maxmemory", 0)


AWAY = pytest.mark.parametrize(
    ("leave", "come_back"),
    [(kill, restart), (pause, resume), (make_read_only, make_writable), (fill_up, make_room)],
    ids=["killed", "paused", "read_only", "out_of_memory"],
)


@AWAY
async def test_s1_5_every_count_stays_exact_while_redis_is_away(service, redis, client, leave, come_back):
    slots = await make_slots(service, client, 10, 5, 1)
    kept = (await book(client, slots[0], 2)).json()
    cancelled = (await book(client, slots[1], 3)).json()
    assert_slot_holds(service, slots[0], 10, 2)

    leave(redis)
    try:
        answers = await race(client, slots[0], [1] * 40)
        assert sold_places(answers) == 8  # and nothing but 201 and 409: no 5xx
        answers = await race(client, slots[2], [1] * 20)
        assert sold_places(answers) == 1
        ended = await client.post(
            f"/v1/bookings/{cancelled['id']}/cancel", headers={"Manage-Token": cancelled["manage_token"]}
        )
        assert ended.json()["available_count"] == 5
        eventually(lambda: told_degraded(service), "the service to say so, and to stay ready")
    finally:
        come_back(redis)

    eventually(lambda: not degraded(service), "all workers to trust Redis again")
    assert_slot_holds(service, slots[0], 10, 10)
    assert_slot_holds(service, slots[2], 1, 1)
    assert {answer.status_code for answer in await race(client, slots[0], [1] * 10)} == {409}  # sold stays sold
    # What was cancelled meanwhile is for sale: the mirror did not keep an old "full".
    assert sold_places(await race(client, slots[1], [1] * 20)) == 5
    assert_slot_holds(service, slots[1], 5, 5)
    booking = await client.get(f"/v1/bookings/{kept['id']}", headers={"Manage-Token": kept["manage_token"]})
    assert booking.json()["status"] == "confirmed"


@AWAY
async def test_redis_leaving_in_the_middle_of_a_race_costs_no_place(service, redis, client, leave, come_back):
    slot_id = await make_slot(service, client, 30)
    timer = threading.Timer(0.02, leave, [redis])
    timer.start()
    try:
        answers = await race(client, slot_id, [1] * 100)
        timer.join()
        # Holds that Redis knew of when it left may keep a few places for their seconds; nothing is sold twice.
        assert sold_places(answers) <= 30
        answers += await race(client, slot_id, [1] * 30)
        assert sold_places(answers) == 30
    finally:
        timer.join()
        come_back(redis)
    eventually(lambda: not degraded(service), "all workers to trust Redis again")
    assert_slot_holds(service, slot_id, 30, 30)


async def test_while_the_breaker_is_open_nobody_asks_redis(postgres, redis):
    with (
        FaultProxy(redis.path) as proxy,
        serving(postgres.fresh(), f"redis://127.0.0.1:{proxy.port}", workers=1) as service,
    ):
        async with service.client() as client:
            slot_id = await make_slot(service, client, 1)
            assert (await book(client, slot_id)).status_code == 201
            proxy.arm("blackhole")
            await race(client, slot_id, [1] * 10)
            assert degraded(service)
            asked = proxy.commands(b"EVALSHA")
            answers = await race(client, slot_id, [1] * 50)
            assert {answer.status_code for answer in answers} == {409}
            assert proxy.commands(b"EVALSHA") == asked


async def test_an_emptied_redis_is_filled_again_and_holders_keep_their_chance(service, redis, client):
    slot_id = await make_slot(service, client, 3)
    assert (await book(client, slot_id)).status_code == 201
    held = await hold(client, slot_id, 2)
    with redis.admin() as admin:
        admin.flushall()
    assert not degraded(service)
    assert (await confirm(client, held["token"])).status_code == 201
    answers = await race(client, slot_id, [1] * 20)
    assert {answer.status_code for answer in answers} == {409}
    assert_slot_holds(service, slot_id, 3, 3)


async def test_a_forgotten_hold_whose_place_was_sold_is_told_the_truth(service, redis, client):
    slot_id = await make_slot(service, client, 1)
    held = await hold(client, slot_id)
    with redis.admin() as admin:
        admin.flushall()
    assert (await book(client, slot_id)).status_code == 201
    refused = await confirm(client, held["token"])
    assert (refused.status_code, refused.json()["code"]) == (409, "slot_unavailable")
    assert_slot_holds(service, slot_id, 1, 1)


async def test_flushing_the_scripts_under_load_goes_unnoticed(service, redis, client):
    slot_id = await make_slot(service, client, 20)
    stop = threading.Event()

    def flush() -> None:
        with redis.admin() as admin:
            while not stop.wait(0.002):
                admin.script_flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        answers = await race(client, slot_id, [1] * 100)
    finally:
        stop.set()
        flusher.join()
    assert sold_places(answers) == 20
    assert not degraded(service)
    assert_slot_holds(service, slot_id, 20, 20)


async def test_nobody_is_told_taken_because_of_their_own_booking(service, redis, client):
    slot_id = await make_slot(service, client, 1)
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = await book(client, slot_id, **key)
    assert first.status_code == 201
    assert_slot_holds(service, slot_id, 1, 1)
    with redis.admin() as admin:
        admin.flushall()  # the record of the key is gone with the rest
    again = await book(client, slot_id, **key)
    assert (again.status_code, again.content) == (201, first.content)
    assert (await book(client, slot_id)).status_code == 409
    assert_slot_holds(service, slot_id, 1, 1)


async def test_a_slot_opened_behind_the_mirrors_back_is_for_sale_again(service, client):
    slot_id = await make_slot(service, client, 1)
    closed = await client.patch(f"/v1/slots/{slot_id}", json={"status": "closed"}, headers=service.operator)
    assert closed.status_code == 200
    assert (await book(client, slot_id)).json()["reason"] == "closed"
    with psycopg.connect(service.database_url, autocommit=True) as person:
        person.execute("UPDATE slots SET status = 'open' WHERE id = %s", (slot_id,))
    for _ in range(100):
        answer = await book(client, slot_id)
        if answer.status_code == 201:
            break
        await asyncio.sleep(0.1)
    assert answer.status_code == 201
    assert_slot_holds(service, slot_id, 1, 1)


async def test_bookings_that_fail_do_not_prolong_a_hold_for_ever(service, redis, client):
    slot_id, other = await make_slots(service, client, 1, 1)
    venue = (await client.get(f"/v1/slots/{slot_id}")).json()["venue"]
    patched = await client.patch(f"/v1/venues/{venue}", json={"hold_max_seconds": 1}, headers=service.operator)
    assert patched.status_code == 200
    key = {"Idempotency-Key": uuid.uuid4().hex}
    assert (await book(client, other, **key)).status_code == 201
    held = await hold(client, slot_id)
    [(resource_id,)] = service.query("SELECT resource_id FROM slots WHERE id = %s", slot_id)
    holds = f"hf:{{{resource_id}}}:{slot_id}:holds"
    body = {"hold_token": held["token"], "customer": CUSTOMER}
    with redis.admin() as admin:
        before = admin.zscore(holds, held["id"])
        for _ in range(3):
            assert (await client.post("/v1/bookings", json=body, headers=key)).status_code == 422
        assert admin.zscore(holds, held["id"]) <= before + 16_000


async def test_one_slots_broken_keys_do_not_keep_redis_away(service, redis, client):
    slot_id, broken = await make_slots(service, client, 1, 1)
    [(resource_id,)] = service.query("SELECT resource_id FROM slots WHERE id = %s", broken)
    redis.pause()
    try:
        await race(client, broken, [1] * 10)
        assert degraded(service)
    finally:
        redis.resume()
    with redis.admin() as admin:
        admin.set(f"hf:{{{resource_id}}}:{broken}:settled", "not a sorted set")
    eventually(lambda: not degraded(service), "all workers to trust Redis again")
    assert sold_places(await race(client, slot_id, [1] * 10)) == 1


async def test_a_refused_hold_leaves_none_behind_in_a_redis_that_was_slow(service, redis, client):
    slot_id = await make_slot(service, client, 1)
    assert (await client.get(f"/v1/slots/{slot_id}")).status_code == 200
    held = await hold(client, slot_id)
    await client.delete(f"/v1/holds/{held['id']}", headers={"Hold-Token": held["token"]})
    with psycopg.connect(service.database_url) as rival:
        rival.execute("SELECT FROM slots WHERE id = %s FOR UPDATE", (slot_id,))
        redis.pause()
        try:
            refused = await client.post("/v1/holds", json={"slot_id": slot_id})
        finally:
            redis.resume()  # and it runs what it was asked
        assert (refused.status_code, refused.json()["effect"]) == (503, "none")
        rival.rollback()
    eventually(lambda: mirrored(service, slot_id) == (1, 0, 0), "the late hold to be given back")


async def test_a_redis_restored_from_an_old_copy_is_put_right(service, redis, client):
    slot_id = await make_slot(service, client, 4)
    assert (await book(client, slot_id)).status_code == 201
    assert_slot_holds(service, slot_id, 4, 1)
    [(resource_id,)] = service.query("SELECT resource_id FROM slots WHERE id = %s", slot_id)
    key = f"hf:{{{resource_id}}}:{slot_id}:mirror"
    with redis.admin() as admin:
        old = admin.hgetall(key)
        assert sold_places(await race(client, slot_id, [1] * 3)) == 3
        assert_slot_holds(service, slot_id, 4, 4)
        admin.hset(key, mapping=old)
    answers = await race(client, slot_id, [1] * 20)
    assert {answer.status_code for answer in answers} == {409}
    assert_slot_holds(service, slot_id, 4, 4)


# -- holds while Redis is away ----------------------------------------------------------------------------------------


async def test_a_degraded_hold_has_the_same_life(service, redis, client):
    slot_id = await make_slot(service, client, 2)
    redis.kill()
    held = await hold(client, slot_id, 2)
    assert held["degraded"] is True
    headers = {"Hold-Token": held["token"]}
    assert (await book(client, slot_id)).json()["reason"] == "held"
    seen = await client.get(f"/v1/holds/{held['id']}", headers=headers)
    assert (seen.status_code, seen.json()["status"]) == (200, "active")
    extended = await client.post(f"/v1/holds/{held['id']}/extend", headers=headers)
    assert extended.status_code == 200
    assert extended.json()["expires_at"] >= held["expires_at"]
    assert (await client.delete(f"/v1/holds/{held['id']}", headers=headers)).status_code == 204
    assert (await client.delete(f"/v1/holds/{held['id']}", headers=headers)).status_code == 204
    assert sold_places(await race(client, slot_id, [1] * 5)) == 2
    assert_slot_holds(service_without_redis(service), slot_id, 2, 2)


async def test_a_degraded_hold_is_confirmed_after_redis_is_back(service, redis, client):
    slot_id = await make_slot(service, client, 1)
    redis.kill()
    held = await hold(client, slot_id)
    redis.start()
    eventually(lambda: not degraded(service), "all workers to trust Redis again")
    assert (await book(client, slot_id)).status_code == 409
    confirmed = await confirm(client, held["token"])
    assert (confirmed.status_code, confirmed.json()["id"]) == (201, held["id"])
    again = await confirm(client, held["token"])
    assert (again.status_code, again.json()["code"]) == (409, "already_resolved")
    assert_slot_holds(service, slot_id, 1, 1)


async def test_a_hold_taken_before_the_outage_is_confirmed_during_it(service, redis, client):
    slot_id = await make_slot(service, client, 1)
    held = await hold(client, slot_id)
    assert held["degraded"] is False
    redis.pause()
    try:
        confirmed = await confirm(client, held["token"])
        assert confirmed.status_code == 201
    finally:
        redis.resume()
    eventually(lambda: not degraded(service), "all workers to trust Redis again")
    assert_slot_holds(service, slot_id, 1, 1)


async def test_a_degraded_hold_that_lapses_gives_its_place_back(postgres, redis):
    with serving(postgres.fresh(), redis.url, redis=redis, HOLDFAST_HOLD_TTL_SECONDS="1") as service:
        async with service.client() as client:
            slots = await make_slots(service, client, 1, 1)
            redis.kill()
            held = [await hold(client, slot_id) for slot_id in slots]
            lapsed = "SELECT count(*) FROM bookings WHERE status = 'held' AND expires_at > clock_timestamp()"
            eventually(lambda: service.query(lapsed) == [(0,)], "the holds to lapse")
            # Whether the sweep was there first or not: the claim itself ends what lapsed.
            assert (await book(client, slots[0])).status_code == 201
            expired = await confirm(client, held[0]["token"])
            assert (expired.status_code, expired.json()["code"]) == (410, "hold_expired")
            statuses = "SELECT status FROM bookings WHERE slot_id = %s"
            eventually(lambda: service.query(statuses, slots[1]) == [("expired",)], "the sweep")
            without = service_without_redis(service)
            assert_slot_holds(without, slots[0], 1, 1)
            assert_slot_holds(without, slots[1], 1, 0)


def service_without_redis(service: Service) -> Service:
    return Service(service.url, service.database_url, None, service.process)


# -- replies lost -----------------------------------------------------------------------------------------------------


Proxied = tuple[Service, FaultProxy, FaultProxy]


@pytest.fixture(scope="module")
def own_proxied(postgres: Postgres, own_redis: RedisServer) -> Iterator[Proxied]:
    """A service that reaches each store through a proxy: (service, Redis' proxy, Postgres' proxy)."""
    database_url = postgres.fresh()
    name, _, query = database_url.removeprefix("postgresql://postgres@/").partition("?")
    directory = Path(httpx.QueryParams(query)["host"])
    with FaultProxy(own_redis.path) as to_redis, FaultProxy(directory / ".s.PGSQL.5432") as to_postgres:
        proxied = f"postgresql://postgres@127.0.0.1:{to_postgres.port}/{name}?sslmode=disable"
        with serving(proxied, f"redis://127.0.0.1:{to_redis.port}") as service:
            direct = Service(service.url, database_url, own_redis, service.process)
            yield direct, to_redis, to_postgres


@pytest.fixture
def proxied(own_proxied: Proxied, redis: RedisServer) -> Proxied:
    service, *proxies = own_proxied
    for proxy in proxies:
        proxy.heal()
        proxy.hits = 0
    eventually(lambda: not degraded(service), "all workers to trust Redis again")
    return own_proxied


async def test_a_lost_reply_of_the_hold_script_leaves_one_hold_and_one_booking(proxied):
    service, to_redis, _ = proxied
    async with service.client() as client:
        slot_id = await make_slot(service, client, 2)
        assert (await book(client, slot_id)).status_code == 201
        assert_slot_holds(service, slot_id, 2, 1)
        to_redis.arm("cut_after", f"{slot_id}:mirror".encode())
        answer = await book(client, slot_id)
        assert answer.status_code == 201, answer.text
        assert to_redis.hits == 1
        assert_slot_holds(service, slot_id, 2, 2)


async def test_a_lost_reply_of_a_customers_hold_takes_its_places_once(proxied):
    service, to_redis, _ = proxied
    async with service.client() as client:
        slot_id = await make_slot(service, client, 3)
        await hold(client, slot_id)
        to_redis.arm("cut_after", f"{slot_id}:mirror".encode())
        held = await hold(client, slot_id, 2)
        assert to_redis.hits == 1
        assert mirrored(service, slot_id) == (3, 0, 3)
        assert (await confirm(client, held["token"])).status_code == 201
        eventually(lambda: mirrored(service, slot_id) == (3, 2, 1), "the booking to be settled")


async def test_a_hold_that_redis_took_too_late_does_not_count_twice(proxied):
    service, to_redis, _ = proxied
    async with service.client() as client:
        slot_id = await make_slot(service, client, 2)
        assert (await book(client, slot_id)).status_code == 201
        assert_slot_holds(service, slot_id, 2, 1)
        to_redis.arm("delay", f"{slot_id}:mirror".encode(), times=1, delay=60)
        held = await hold(client, slot_id)
        assert held["degraded"] is True  # 150 ms were over, so Postgres keeps it
        await to_redis.let_go()
        eventually(lambda: mirrored(service, slot_id) == (2, 2, 0), "the row to stand for the hold, alone")
        assert (await confirm(client, held["token"])).status_code == 201
        assert_slot_holds(service, slot_id, 2, 2)


@pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
@pytest.mark.parametrize("way", ["direct", "hold"])
async def test_a_lost_commit_reply_is_settled_not_guessed(proxied, cut, way):
    service, _, to_postgres = proxied
    before = service.metric("holdfast_in_doubt_total")
    async with service.client() as client:
        slot_id = await make_slot(service, client, 1)
        body: dict[str, Any] = {"customer": {"name": "Marker", "email": f"{uuid.uuid4().hex}@example.com"}}
        body |= {"slot_id": slot_id} if way == "direct" else {"hold_token": (await hold(client, slot_id))["token"]}
        to_postgres.arm(cut, body["customer"]["email"].encode())
        answer = await client.post("/v1/bookings", json=body)
        assert answer.status_code == 201, answer.text
        assert to_postgres.hits == 1
        assert service.metric("holdfast_in_doubt_total") == before + 1
        assert_slot_holds(service, slot_id, 1, 1)
        token = {"Manage-Token": answer.json()["manage_token"]}
        assert (await client.get(f"/v1/bookings/{answer.json()['id']}", headers=token)).status_code == 200


async def test_a_commit_that_arrives_after_it_was_given_up_takes_no_place(proxied):
    service, _, to_postgres = proxied
    [(before,)] = service.query("SELECT count(*) FROM abandoned_attempts")
    async with service.client() as client:
        slot_id = await make_slot(service, client, 5)
        email = f"{uuid.uuid4().hex}@example.com"
        to_postgres.arm("delay", email.encode(), times=1, delay=60)
        body = {"slot_id": slot_id, "customer": {"name": "Marker", "email": email}}
        answer = await client.post("/v1/bookings", json=body)
        assert answer.status_code == 201, answer.text
        assert service.query("SELECT count(*) FROM abandoned_attempts") == [(before + 1,)]
        await to_postgres.let_go()  # the first attempt has reached Postgres by then
        assert_slot_holds(service, slot_id, 5, 1)


async def test_when_even_the_second_reply_is_lost_the_same_key_gets_the_answer(proxied):
    service, _, to_postgres = proxied
    async with service.client() as client:
        slot_id = await make_slot(service, client, 1)
        email, key = f"{uuid.uuid4().hex}@example.com", {"Idempotency-Key": uuid.uuid4().hex}
        body = {"slot_id": slot_id, "customer": {"name": "Marker", "email": email}}
        to_postgres.arm("cut_after", email.encode(), times=2)
        unknown = await client.post("/v1/bookings", json=body, headers=key)
        assert (unknown.status_code, unknown.json()["code"]) == (503, "database_unavailable")
        assert "effect" not in unknown.json()  # it does not claim what it does not know
        assert "Retry-After" in unknown.headers
        # Nobody else gets the place meanwhile, and the customer is not told "taken" because of their own row.
        assert (await book(client, slot_id)).status_code == 409
        settled = await client.post("/v1/bookings", json=body, headers=key)
        assert settled.status_code == 201
        assert settled.headers["Idempotency-Replayed"] == "true"
        assert_slot_holds(service, slot_id, 1, 1)


async def test_a_lost_reply_of_a_cancellation_cancels_once(proxied):
    service, _, to_postgres = proxied
    async with service.client() as client:
        slot_id = await make_slot(service, client, 2)
        booking = (await book(client, slot_id)).json()
        await book(client, slot_id)
        to_postgres.arm("cut_after", b"cancel_booking")
        headers = {"Manage-Token": booking["manage_token"]}
        ended = await client.post(f"/v1/bookings/{booking['id']}/cancel", headers=headers)
        assert to_postgres.hits == 1
        assert (ended.status_code, ended.json()["available_count"]) == (200, 1)
        assert_slot_holds(service, slot_id, 2, 1)


# -- Postgres away ----------------------------------------------------------------------------------------------------


async def test_without_postgres_nothing_is_sold_and_nothing_stays_held(tmp_path: Path, redis: RedisServer):
    home = tmp_path / "stores"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        servers = first.enter_context(embedded.running(home, redis=False, fsync=False))
        assert servers.database_url is not None
        upgrade(servers.database_url)
        service = stack.enter_context(serving(servers.database_url, redis.url, redis=redis))
        async with service.client() as client:
            slot_id = await make_slot(service, client, 3)
            assert (await book(client, slot_id)).status_code == 201
            assert_slot_holds(service, slot_id, 3, 1)
            resource_id = resource_of(service, slot_id)
            first.close()  # Postgres stops

            answers = await race(client, slot_id, [1] * 20)
            for answer in answers:
                assert answer.status_code in (409, 503), answer.text  # 409: the others' places are held meanwhile
                if answer.status_code == 503:
                    problem = answer.json()
                    assert problem["code"] in ("database_unavailable", "busy")
                    assert problem["effect"] == "none"
                    assert "Retry-After" in answer.headers
            down = [answer.json() for answer in answers if answer.status_code == 503]
            assert any(problem["detail"].startswith("Database error") for problem in down)
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/livez")).status_code == 200
            eventually(lambda: mirrored(service, slot_id, resource_id) == (3, 1, 0), "the places to be given back")

            stack.enter_context(embedded.running(home, redis=False, fsync=False))
            eventually(lambda: is_ready(service.url), "the service to be ready again")
            assert sold_places(await race(client, slot_id, [1] * 10)) == 2
            assert_slot_holds(service, slot_id, 3, 3)


def end_connections(admin: psycopg.Connection) -> None:
    """End every other connection to this database. When this returns, their clients can see that they have ended."""
    told = admin.execute(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'holdfast%'"
    ).fetchall()
    assert all(ended for (ended,) in told)


async def test_connections_ended_by_the_server_while_idle_are_not_used(service, client):
    before = service.metric("holdfast_in_doubt_total")
    slots = await make_slots(service, client, *[1] * 20)
    await asyncio.gather(*(book(client, slot_id) for slot_id in slots[:10]))
    with psycopg.connect(service.database_url, autocommit=True) as admin:
        end_connections(admin)
    answers = await asyncio.gather(*(book(client, slot_id) for slot_id in slots[10:]))
    assert {answer.status_code for answer in answers} == {201}
    assert service.metric("holdfast_in_doubt_total") == before


async def test_a_locked_slot_is_busy_not_sold_out(service, client):
    slot_id = await make_slot(service, client, 2)
    assert (await book(client, slot_id)).status_code == 201
    assert_slot_holds(service, slot_id, 2, 1)
    with psycopg.connect(service.database_url) as rival:
        rival.execute("SELECT FROM slots WHERE id = %s FOR UPDATE", (slot_id,))
        answer = await book(client, slot_id)
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert answer.json()["effect"] == "none"
        assert "Retry-After" in answer.headers
        rival.rollback()
    eventually(lambda: mirrored(service, slot_id) == (2, 1, 0), "the place to be given back")
    assert (await book(client, slot_id)).status_code == 201
    assert_slot_holds(service, slot_id, 2, 2)


async def test_a_customers_hold_outlives_a_busy_database(service, client):
    slot_id = await make_slot(service, client, 1)
    held = await hold(client, slot_id)
    with psycopg.connect(service.database_url) as rival:
        rival.execute("SELECT FROM slots WHERE id = %s FOR UPDATE", (slot_id,))
        assert (await confirm(client, held["token"])).json()["code"] == "busy"
        rival.rollback()
    assert (await book(client, slot_id)).status_code == 409
    assert (await confirm(client, held["token"])).status_code == 201
    assert_slot_holds(service, slot_id, 1, 1)


async def test_a_server_that_cannot_write_says_so(service, client):
    slot_id = await make_slot(service, client, 1)
    name = service.query("SELECT current_database()")[0][0]
    with psycopg.connect(service.database_url, autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        try:
            end_connections(admin)
            answer = await book(client, slot_id)
            assert (answer.status_code, answer.json()["effect"]) == (503, "none")
        finally:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
            end_connections(admin)
    assert (await book(client, slot_id)).status_code == 201


# -- the process ------------------------------------------------------------------------------------------------------


async def test_stopping_under_load_loses_no_acknowledged_booking(postgres, redis):
    database_url = postgres.fresh()
    with serving(database_url, redis.url, redis=redis) as service:
        async with service.client() as client:
            slots = await make_slots(service, client, *[50] * 4)
            requests = [
                client.build_request("POST", "/v1/bookings", json=booking_body(slot_id)) for slot_id in slots * 50
            ]

            async def send(request: httpx.Request) -> str | None:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.send(request)
                    if answer.status_code == 201:
                        return str(answer.json()["id"])
                return None

            sending = [asyncio.create_task(send(request)) for request in requests]
            await asyncio.sleep(0.1)
            service.process.terminate()
            acknowledged = {booking for booking in await asyncio.gather(*sending) if booking}
            assert await asyncio.to_thread(service.process.wait, START_SECONDS) == 0
        stored = {str(booking) for (booking,) in service.query("SELECT id FROM bookings WHERE status = 'confirmed'")}
        assert acknowledged <= stored
    with serving(database_url, redis.url, redis=redis) as service:
        for slot_id in slots:
            [(sold,)] = service.query("SELECT count(*) FROM bookings WHERE slot_id = %s", slot_id)
            eventually(lambda s=slot_id, n=sold: mirrored(service, s) in (None, (50, n, 0)), "the mirror to be settled")


def workers(service: Service) -> list[int]:
    parent = service.process.pid
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def waits_for_a_lock(service: Service) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return service.query(waiting) != [(0,)]


async def test_a_killed_worker_is_replaced_and_its_places_come_back(service, redis, client):
    slot_id = await make_slot(service, client, 1)
    with psycopg.connect(service.database_url) as rival:
        rival.execute("SELECT FROM slots WHERE id = %s FOR UPDATE", (slot_id,))

        def is_in_the_middle() -> bool:
            return mirrored(service, slot_id) == (1, 0, 1) and waits_for_a_lock(service)

        for _ in range(5):
            waiting = asyncio.create_task(book(client, slot_id))
            # In a thread: the request above is sent by this very loop.
            await asyncio.to_thread(eventually, lambda: is_in_the_middle() or waiting.done(), "the inner hold")  # noqa: B023
            frozen = workers(service)
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            if is_in_the_middle():
                break
            # This process had no time while that one waited for the lock: it tells that the slot is busy.
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
            assert (await waiting).status_code == 503
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            await waiting
        # Its statement waits on without it; freed now, it would book, and nobody promised that it would not.
        eventually(lambda: not waits_for_a_lock(service), "the orphaned statement to give up")
        rival.rollback()
    eventually(lambda: is_ready(service.url), "new workers")
    assert service.query("SELECT count(*) FROM bookings WHERE slot_id = %s", slot_id) == [(0,)]
    # The inner hold lapses by itself, within seconds.
    async with service.client() as fresh:
        for _ in range(100):
            answer = await book(fresh, slot_id)
            if answer.status_code == 201:
                break
            assert (answer.status_code, answer.json()["reason"]) == (409, "held")
            await asyncio.sleep(0.25)
    assert_slot_holds(service, slot_id, 1, 1)
