"""Blocked time over HTTP: it excludes as a booking does, in every layer, with Redis and without, and whoever is first.

Against two worker processes. A block is a slot that takes its own place (migration 0010): no layer has a rule for it.
"""

import asyncio
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import errors as pg

from app import blocks
from app.blocks import unblock
from app.breaker import RedisAway
from app.cli.doctor import INVARIANTS
from app.domain import Caller
from app.errors import Busy
from app.holds import Extended
from app.tokens import id_from_key
from tests import factories
from tests.service import CUSTOMER, Service, all_at_once, booking_body, engine_on, eventually

HOUR = timedelta(hours=1)


@pytest.fixture
def operator(service: Service) -> Iterator[httpx.Client]:
    with factories.client(service, operator=True) as client:
        yield client


@pytest.fixture
def ada(operator: httpx.Client) -> dict[str, Any]:
    return factories.resource(operator, factories.venue(operator)["slug"], name="Ada", kind="person")


def wanted(of: dict[str, Any], *, hours: float = 0, lasting: float = 1, **fields: Any) -> dict[str, Any]:
    begin = factories.START + hours * HOUR
    when = {"starts_at": begin.isoformat(), "ends_at": (begin + lasting * HOUR).isoformat()}
    return {"resource_id": of["id"], **when, **fields}


def block(operator: httpx.Client, of: dict[str, Any], **fields: Any) -> httpx.Response:
    return operator.post("/v1/blocks", json=wanted(of, **fields))


def book(client: httpx.Client, slot: dict[str, Any]) -> httpx.Response:
    return client.post("/v1/bookings", json=booking_body(slot["id"]))


def shown(client: httpx.Client, slot: dict[str, Any]) -> tuple[str, int]:
    now = client.get(f"/v1/slots/{slot['id']}").json()
    return now["status"], now["available"]


def listed(operator: httpx.Client, of: dict[str, Any], **which: Any) -> list[dict[str, Any]]:
    answer = operator.get("/v1/blocks", params={"venue": of["venue"], **which})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


# -- what is blocked cannot be had ------------------------------------------------------------------------------------


def test_blocked_time_is_neither_held_nor_booked_nor_offered(operator: httpx.Client, ada: dict[str, Any]) -> None:
    before, inside, after = (factories.slot(operator, ada, hours=hours) for hours in (-1, 0.5, 1))
    made = block(operator, ada, reason="Dentist <i>")
    assert made.status_code == 201, made.text
    body = made.json()
    assert (body["venue"], body["resource"], body["reason"]) == (
        ada["venue"], {"id": ada["id"], "name": "Ada"}, "Dentist <i>"
    )  # fmt: skip
    assert made.headers["location"] == f"/v1/blocks?venue={ada['venue']}"
    assert shown(operator, inside) == ("sold_out", 0)
    assert operator.post("/v1/holds", json={"slot_id": inside["id"]}).json()["reason"] == "booked"
    refused = book(operator, inside)
    assert (refused.status_code, refused.json()["reason"]) == (409, "booked")
    assert {each["id"] for each in refused.json()["alternatives"]} == {before["id"], after["id"]}  # they only touch it
    assert book(operator, before).status_code == book(operator, after).status_code == 201


def test_a_block_is_not_for_sale_itself(operator: httpx.Client, ada: dict[str, Any]) -> None:
    blocked = block(operator, ada).json()
    assert operator.get("/v1/slots", params={"venue": ada["venue"]}).json()["data"] == []
    assert operator.get(f"/v1/slots/{blocked['id']}").json()["code"] == "slot_not_found"
    assert book(operator, blocked).json()["reason"] == "closed"
    opened = operator.patch(f"/v1/slots/{blocked['id']}", json={"status": "open"})
    assert (opened.status_code, opened.json()["detail"]) == (409, "This is blocked time: remove the block")
    assert operator.delete(f"/v1/blocks/{blocked['id']}").status_code == 204
    assert book(operator, blocked).json()["reason"] == "closed"  # nor is what remains of it


@pytest.mark.parametrize("by", ["booking", "hold", "block"])
def test_what_is_taken_is_not_blocked(operator: httpx.Client, ada: dict[str, Any], by: str) -> None:
    slot = factories.slot(operator, ada, hours=0.5)
    taken = {
        "booking": lambda: factories.booking(operator, slot["id"])["id"],
        "hold": lambda: factories.hold(operator, slot["id"])["id"],
        "block": lambda: block(operator, ada, hours=0.5).json()["id"],
    }[by]()
    refused = block(operator, ada)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert [each["id"] for each in listed(operator, ada)] == ([taken] if by == "block" else [])
    free = {"booking": f"/v1/bookings/{taken}/cancel", "hold": f"/v1/holds/{taken}", "block": f"/v1/blocks/{taken}"}
    assert operator.request("POST" if by == "booking" else "DELETE", free[by]).is_success
    assert block(operator, ada).status_code == 201


def test_what_is_given_back_can_be_booked_again(service: Service, operator: httpx.Client, ada: dict[str, Any]) -> None:
    slot = factories.slot(operator, ada)
    blocked = block(operator, ada, lasting=3).json()
    for _ in range(2):  # a second time is harmless
        assert operator.delete(f"/v1/blocks/{blocked['id']}").status_code == 204
    assert shown(operator, slot) == ("available", 1)
    assert book(operator, slot).status_code == 201
    assert listed(operator, ada) == []
    told = service.query(
        "SELECT type, actor, data ->> 'resource_id' FROM events WHERE slot_id = %s ORDER BY seq", blocked["id"]
    )
    assert told == [("block.created", "operator", ada["id"]), ("block.removed", "operator", ada["id"])]
    [(times,)] = service.query(
        "SELECT data - 'resource_id' FROM events WHERE type = 'block.created' AND slot_id = %s", blocked["id"]
    )
    assert times == {"starts_at": blocked["starts_at"], "ends_at": blocked["ends_at"]}  # to the letter: with Z


@pytest.mark.anyio
async def test_what_was_given_back_is_not_told_as_a_failure(
    service: Service, operator: httpx.Client, ada: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = block(operator, ada).json()
    redis_url = service.redis.url if service.redis else "unix:///nonexistent/redis.sock"
    async with engine_on(service.database_url, redis_url) as engine:
        run = engine.ledger.postgres.rows

        async def busy_afterwards(statement: str, values: Any) -> list[Any]:
            if "unblock_time" not in statement:
                raise Busy
            return await run(statement, values)

        monkeypatch.setattr(engine.ledger.postgres, "rows", busy_afterwards)
        await unblock(engine, uuid.UUID(blocked["id"]), caller=Caller("operator", None))
    assert listed(operator, ada) == []


def test_a_booking_cannot_move_into_blocked_time(operator: httpx.Client, ada: dict[str, Any]) -> None:
    here, there = factories.slot(operator, ada, hours=5), factories.slot(operator, ada)
    booked = factories.booking(operator, here["id"])
    assert block(operator, ada).status_code == 201
    moved = operator.post(f"/v1/bookings/{booked['id']}/reschedule", json={"slot_id": there["id"]})
    assert (moved.status_code, moved.json()["reason"]) == (409, "booked")


def test_who_waits_is_offered_what_a_block_gives_back(operator: httpx.Client, ada: dict[str, Any]) -> None:
    slot = factories.slot(operator, ada, hours=0.25, lasting=0.5)
    blocked = block(operator, ada).json()
    wish = {"slot_id": slot["id"], "customer": {"name": "Eve", "email": "eve@example.com"}}
    entry = factories.made(operator.post("/v1/waiting-list", json=wish))
    assert operator.delete(f"/v1/blocks/{blocked['id']}").status_code == 204
    assert operator.get(f"/v1/waiting-list/{entry['id']}").json()["status"] == "offered"
    assert block(operator, ada).status_code == 409


def test_time_that_began_already_is_blocked_from_now_on(operator: httpx.Client, ada: dict[str, Any]) -> None:
    now = datetime.now().astimezone()
    soon = factories.made(
        operator.post("/v1/slots", json={
            **factories.slot_body(ada), "starts_at": (now + HOUR).isoformat(), "ends_at": (now + 2 * HOUR).isoformat()
        })
    )  # fmt: skip
    when = {"starts_at": (now - 8 * HOUR).isoformat(), "ends_at": (now + 8 * HOUR).isoformat()}
    assert operator.post("/v1/blocks", json=wanted(ada) | when).status_code == 201
    assert book(operator, soon).status_code == 409


# -- asking for it ----------------------------------------------------------------------------------------------------


def test_a_repeated_request_gets_the_first_answer(operator: httpx.Client, ada: dict[str, Any]) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first, again = (operator.post("/v1/blocks", json=wanted(ada), headers=key) for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (201, 201, first.json())
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    other = operator.post("/v1/blocks", json=wanted(ada, hours=5), headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    operator.delete(f"/v1/blocks/{first.json()['id']}")
    assert operator.post("/v1/blocks", json=wanted(ada), headers=key).json() == first.json()  # that is what was done
    assert listed(operator, ada) == []


def test_the_list_is_of_what_touches_a_time(operator: httpx.Client, ada: dict[str, Any]) -> None:
    made = [block(operator, ada, hours=hours).json() for hours in (0, 2, 4)]
    times = {"from": (factories.START + HOUR).isoformat(), "to": (factories.START + 4 * HOUR).isoformat()}
    assert listed(operator, ada, **times) == [made[1]]
    first = operator.get("/v1/blocks", params={"venue": ada["venue"], "limit": 2}).json()
    rest = listed(operator, ada, limit=2, cursor=first["next_cursor"])
    assert [*first["data"], *rest] == made


@pytest.mark.parametrize(
    ("changed", "status", "told"),
    [
        ({"ends_at": factories.START.isoformat()}, 400, "ends_at must be after"),
        ({"ends_at": (factories.START + timedelta(days=32)).isoformat()}, 400, "by at most 31 days"),
        ({"starts_at": "2020-01-01T00:00:00Z", "ends_at": "2020-01-02T00:00:00Z"}, 400, "must be in the future"),
        ({"reason": ""}, 400, "reason"),
        ({"reason": " "}, 400, "reason"),
        ({"reason": "x" * 201}, 400, "reason"),
        ({"resource_id": str(uuid.uuid4())}, 404, "Resource not found"),
        ({"whose": "Ada"}, 400, "whose"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    operator: httpx.Client, ada: dict[str, Any], changed: dict[str, Any], status: int, told: str
) -> None:
    answer = operator.post("/v1/blocks", json=wanted(ada) | changed)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text


def test_an_event_has_no_time_to_block(operator: httpx.Client) -> None:
    tour = factories.resource(operator, factories.venue(operator)["slug"], kind="event")
    refused = block(operator, tour)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "resource_id")


def test_only_operators_block_and_look(service: Service, ada: dict[str, Any]) -> None:
    with factories.client(service) as everyone:
        assert block(everyone, ada).status_code == 401
        assert everyone.get("/v1/blocks", params={"venue": ada["venue"]}).status_code == 401
        assert everyone.delete(f"/v1/blocks/{uuid.uuid4()}").status_code == 401
        assert everyone.get("/v1/calendar").status_code == 401


def test_what_never_was_is_not_found(operator: httpx.Client, ada: dict[str, Any]) -> None:
    slot = factories.slot(operator, ada)
    for unknown in (uuid.uuid4(), slot["id"]):
        assert operator.delete(f"/v1/blocks/{unknown}").status_code == 404
    assert operator.get("/v1/blocks", params={"venue": "nowhere"}).status_code == 404


# -- the days of an owner ---------------------------------------------------------------------------------------------


def test_the_calendar_tells_who_comes_and_what_is_held_blocked_and_free(
    service: Service, operator: httpx.Client, ada: dict[str, Any]
) -> None:
    slots = [factories.slot(operator, ada, hours=hours) for hours in range(3)]
    booked, held = factories.booking(operator, slots[0]["id"]), factories.hold(operator, slots[1]["id"])
    blocked = block(operator, ada, hours=3, reason="Dentist").json()
    gone = block(operator, ada, hours=4).json()
    operator.delete(f"/v1/blocks/{gone['id']}")
    times = {"from": factories.START.isoformat(), "to": (factories.START + 6 * HOUR).isoformat()}
    told = operator.get("/v1/calendar", params={"venue": ada["venue"], **times}).json()
    assert [(each["kind"], each["id"], each["customer"], each["reason"]) for each in told["data"]] == [
        ("booking", booked["id"], CUSTOMER["name"], None),
        ("hold", held["id"], None, None),
        ("free", None, None, None),
        ("block", blocked["id"], None, "Dentist"),
    ]
    assert (told["data"][0]["version"], told["degraded"]) == (1, service.redis is None)
    assert told["resources"] == [{"id": ada["id"], "name": "Ada"}]


@pytest.mark.parametrize(("changed", "status"), [({"to": "2026-01-01T00:00:00Z"}, 400), ({"venue": "nowhere"}, 404)])
def test_a_calendar_of_nothing_is_refused(
    operator: httpx.Client, ada: dict[str, Any], changed: dict[str, str], status: int
) -> None:
    six_weeks = {"venue": ada["venue"], "from": "2026-01-01T00:00:00Z", "to": "2026-02-12T00:00:00Z"}
    assert operator.get("/v1/calendar", params=six_weeks).status_code == 200
    assert operator.get("/v1/calendar", params=six_weeks | changed).status_code == status


# -- races ------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_block_against_twenty_bookings_one_side_wins(
    service: Service, operator: httpx.Client, ada: dict[str, Any]
) -> None:
    """Twenty slots that all overlap the block, and partly each other; whoever wins, nobody is in two places."""
    async with service.client() as client:
        for day in range(4):
            bodies = [factories.slot_body(ada, hours=24 * day + n / 20) for n in range(20)]
            answer = await client.post("/v1/slots", json={"slots": bodies}, headers=service.operator)
            slots = factories.made(answer)["data"]
            requests = [client.build_request("POST", "/v1/bookings", json=booking_body(slot["id"])) for slot in slots]
            blocking = client.build_request(
                "POST", "/v1/blocks", json=wanted(ada, hours=24 * day, lasting=2), headers=service.operator
            )
            requests.insert(day * 6, blocking)
            answers = await all_at_once(client, requests)
            assert sorted(answer.status_code for answer in answers) == [201] + [409] * 20, [
                a.text for a in answers if a.status_code not in (201, 409)
            ]
            assert_occupied_once(service, ada["id"])
    await assert_stores_agree(service, ada["id"])


@pytest.mark.anyio
async def test_twenty_equal_blocks_with_one_key_are_one(
    service: Service, operator: httpx.Client, ada: dict[str, Any]
) -> None:
    headers = {**service.operator, "Idempotency-Key": str(uuid.uuid4())}
    async with service.client() as client:
        requests = [client.build_request("POST", "/v1/blocks", json=wanted(ada), headers=headers) for _ in range(20)]
        answers = await all_at_once(client, requests)
    assert [answer.status_code for answer in answers] == [201] * 20, {answer.text for answer in answers}
    assert len({answer.text for answer in answers}) == 1
    assert len(listed(operator, ada)) == 1


@pytest.mark.anyio
async def test_a_repetition_that_fails_leaves_the_hold_to_the_first(
    with_redis: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one key, both have one id and so one hold, under which the first may be about to commit."""
    assert with_redis.redis is not None
    with factories.client(with_redis, operator=True) as operator:
        of = factories.resource(operator, factories.venue(operator)["slug"], kind="person")
    begins, key = factories.START, str(uuid.uuid4())
    wish = blocks.Wish(resource_id=uuid.UUID(of["id"]), starts_at=begins, ends_at=begins + HOUR, key=key)

    async def busy(*_: Any) -> None:
        raise Busy

    async with engine_on(with_redis.database_url, with_redis.redis.url) as engine:
        block_id = id_from_key("block", blocks._EVERY_VENUE, key)
        facts = blocks._facts(block_id, await blocks._owner(engine.ledger, wish.resource_id), wish)
        assert await blocks._hold(engine, facts)
        monkeypatch.setattr(blocks, "_commit", busy)
        with pytest.raises(Busy):
            await blocks.block(engine, wish, caller=Caller("operator", None))
        assert isinstance(await engine.holds.extend(facts, block_id, 0, 0), Extended)


def assert_occupied_once(service: Service, resource_id: str) -> None:
    """Live bookings and blocks of a person never overlap, and `occupied` has exactly their slots."""
    live = (
        "SELECT s.* FROM slots AS s WHERE s.resource_id = %s AND (EXISTS (SELECT FROM blocks AS b WHERE b.id = s.id"
        " AND b.removed_at IS NULL) OR EXISTS (SELECT FROM bookings AS b WHERE b.slot_id = s.id"
        " AND b.status IN ('held', 'pending_payment', 'confirmed')))"
    )
    overlapping = service.query(
        f"WITH live AS ({live}) SELECT a.id, b.id FROM live AS a JOIN live AS b ON b.id > a.id"
        " AND tstzrange(a.starts_at, a.occupied_until) && tstzrange(b.starts_at, b.occupied_until)",
        resource_id,
    )
    assert overlapping == []
    occupied = service.query(
        "SELECT o.slot_id FROM occupied AS o JOIN slots AS s ON s.id = o.slot_id WHERE s.resource_id = %s", resource_id
    )
    assert {row[0] for row in service.query(f"SELECT id FROM ({live}) AS live", resource_id)} == {
        row[0] for row in occupied
    }


async def assert_stores_agree(service: Service, resource_id: str) -> None:
    """The mirror says of every slot of the person what Postgres says, also which of them keep the others away."""
    if service.redis is None:
        return
    ours = {row[0] for row in service.query("SELECT id FROM slots WHERE resource_id = %s", resource_id)}
    for patience in (1, 1, 0):
        try:
            async with engine_on(service.database_url, service.redis.url) as engine:
                compared = await engine.mirror.reconcile(repair=False)
            break
        except RedisAway:  # it did not answer within 150 ms, on a machine with much else to do
            if not patience:
                raise
            await asyncio.sleep(patience)
    assert [drift for drift in compared.drift if drift.slot_id in ours] == []


# -- the database alone -----------------------------------------------------------------------------------------------


def test_the_doctor_counts_blocks_among_what_takes_places(
    service: Service, operator: httpx.Client, ada: dict[str, Any]
) -> None:
    removed = block(operator, ada, hours=2).json()
    operator.delete(f"/v1/blocks/{removed['id']}")
    assert block(operator, ada).status_code == block(operator, ada, hours=1).status_code == 201  # they only touch
    ours = set(service.query("SELECT id FROM slots WHERE resource_id = %s", ada["id"]))
    assert {name for name, query in INVARIANTS.items() if ours & set(service.query(query))} == set()


def test_nobody_with_psql_gets_around_it(service: Service, operator: httpx.Client, ada: dict[str, Any]) -> None:
    slot = factories.slot(operator, ada)
    first = block(operator, ada, hours=3).json()
    operator.delete(f"/v1/blocks/{first['id']}")
    factories.booking(operator, slot["id"])
    second = block(operator, ada, hours=3).json()
    with psycopg.connect(service.database_url, autocommit=True) as connection:
        with pytest.raises(pg.ExclusionViolation):  # it would come back over the second one
            connection.execute("UPDATE blocks SET removed_at = NULL WHERE id = %s", (first["id"],))
        with pytest.raises(pg.CheckViolation):
            connection.execute("UPDATE slots SET status = 'open' WHERE id = %s", (second["id"],))
        with pytest.raises(pg.InsufficientPrivilege):
            connection.execute("TRUNCATE blocks")
        connection.execute("DELETE FROM blocks WHERE id = %s", (second["id"],))
    assert_occupied_once(service, ada["id"])


def test_whoever_occupies_a_person_waits_for_a_turn(
    service: Service, operator: httpx.Client, ada: dict[str, Any]
) -> None:
    """Without turns, two who have both written what the constraint compares wait for each other: a deadlock."""

    def occupy(connection: psycopg.Connection[Any], *, begins: int, ends: int) -> str:
        since, until = (factories.START + n * HOUR for n in (begins, ends))
        values = (uuid.uuid4(), ada["id"], since, until)
        [word] = connection.execute("SELECT block_time(%s, %s, %s, %s, NULL, 'operator', NULL)", values).fetchone() or [
            ""
        ]
        return str(word)

    def is_waiting(pid: int) -> bool:
        waiting = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        return bool(service.query(waiting, pid))

    bounded = "-c lock_timeout=20s"  # or a failure here would wait for the rival for ever
    with (
        psycopg.connect(service.database_url, options=bounded) as one,
        psycopg.connect(service.database_url, options=bounded) as two,
        ThreadPoolExecutor(1) as thread,
    ):
        assert occupy(one, begins=1, ends=2) == "blocked"
        rival = thread.submit(occupy, two, begins=1, ends=4)
        eventually(lambda: is_waiting(two.info.backend_pid), "the rival waits")
        assert occupy(one, begins=3, ends=4) == "blocked"
        one.commit()
        with pytest.raises(pg.ExclusionViolation):
            rival.result()
