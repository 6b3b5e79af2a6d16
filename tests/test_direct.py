"""Two ways lead to the handlers of holds and bookings: what comes the unusual way is answered no differently."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from app.api import answers, public
from app.api.direct import Direct
from app.settings import Settings
from tests import factories
from tests.factories import booking_body
from tests.service import CUSTOMER, Service
from tests.test_appointments import Salon, make_salon

JSON = ("Content-Type", "application/json")
#: A header that stands there twice means nothing, but is enough to be sent through Litestar.
TWICE = [("X-Odd", "1"), ("X-Odd", "2")]
LIMIT = 100


@pytest.fixture(scope="module")
def everyone(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis) as client:
        yield client


@pytest.fixture(scope="module")
def slots(with_redis: Service) -> dict[str, str]:
    """Make a slot with room, one without, and the id of none."""
    with factories.client(with_redis, operator=True) as operator, factories.client(with_redis) as customer:
        free, full = factories.slot(operator, capacity=100), factories.slot(operator, capacity=1)
        factories.booking(customer, full["id"])
    return {"FREE": str(free["id"]), "FULL": str(full["id"]), "NONE": str(uuid.uuid4())}


@pytest.fixture(scope="module")
def salon(with_redis: Service) -> Salon:
    return make_salon(with_redis)


def told(answer: httpx.Response) -> tuple[Any, ...]:
    """All of an answer but what differs each time."""
    names = [name for name in answer.headers if name not in ("date", "x-request-id", "content-length", "location")]
    headers = {name: answer.headers[name] for name in names}
    assert int(answer.headers["content-length"]) == len(answer.content)
    body = answer.json()
    if answer.is_success:
        assert answer.headers["location"].endswith(f"/{body['id']}")
        return answer.status_code, headers, set(body)
    assert body.pop("request_id") == answer.headers["x-request-id"]
    return answer.status_code, headers, body


HOLD, BOOK = "/v1/holds", "/v1/bookings"
BOOKING = json.dumps(booking_body("SLOT"))


@pytest.mark.parametrize(
    ("path", "slot", "body", "headers", "status"),
    [
        (HOLD, "FREE", '{"slot_id":"SLOT"}', [JSON], 201),
        (BOOK, "FREE", BOOKING, [JSON], 201),
        (BOOK, "FREE", BOOKING, [JSON, ("Authorization", "Bearer of somebody else")], 201),
        (BOOK, "FREE", BOOKING, [("Content-Type", 'Application/JSON; Charset="UTF-8"')], 201),
        (HOLD, "FULL", '{"slot_id":"SLOT"}', [JSON], 409),
        (BOOK, "FULL", BOOKING, [JSON], 409),
        (HOLD, "FREE", '{"slot_id":"SLOT","quantity":101}', [JSON], 400),
        (HOLD, "NONE", '{"slot_id":"SLOT"}', [JSON], 404),
        (BOOK, "NONE", BOOKING, [JSON], 404),
        (BOOK, "NONE", json.dumps({"hold_token": "SLOT", "customer": CUSTOMER}), [JSON], 404),
        (BOOK, "FREE", BOOKING, [], 415),
        (BOOK, "FREE", BOOKING, [("Content-Type", "text/plain")], 415),
        (BOOK, "FREE", BOOKING, [JSON, ("Content-Encoding", "gzip")], 415),
        (BOOK, "FREE", BOOKING, [JSON, ("Content-Encoding", "")], 415),
        (BOOK, "FREE", BOOKING, [JSON, ("Idempotency-Key", "")], 400),
        (BOOK, "FREE", BOOKING, [JSON, ("Idempotency-Key", '"')], 400),
        (HOLD, "FREE", "{", [JSON], 400),
        (HOLD, "FREE", '{"slot_id":"SLOT","slot_id":"SLOT"}', [JSON], 400),
        (HOLD, "FREE", '{"slot_id":"SLOT","guests":1}', [JSON], 400),
        (HOLD, "FREE", f'{{"slot_id":"SLOT","quantity":{10**30}}}', [JSON], 400),
        (HOLD, "FREE", "[" * 1_000, [JSON], 400),
        (HOLD, "FREE", "", [JSON], 400),
        (HOLD, "FREE", "", [], 415),
        (HOLD, "FREE", '{"slot_id":"SLOT"}' + " " * 16_384, [JSON], 413),
        (HOLD, "FREE", '{"slot_id":"SLOT"}', [JSON, ("Host", "a b")], 400),
    ],
)  # fmt: skip
def test_both_ways_give_the_same_answer(
    everyone: httpx.Client,
    slots: dict[str, str],
    path: str,
    slot: str,
    body: str,
    headers: list[tuple[str, str]],
    status: int,
) -> None:
    content = body.replace("SLOT", slots[slot]).encode()
    usual = everyone.post(path, content=content, headers=headers)
    unusual = everyone.post(path, content=content, headers=headers + TWICE)
    assert usual.status_code == status, usual.text
    assert told(usual) == told(unusual)


def test_a_key_is_the_same_whichever_way_it_comes(everyone: httpx.Client, slots: dict[str, str]) -> None:
    for path, body in ((HOLD, {"slot_id": slots["FREE"]}), (BOOK, booking_body(slots["FREE"]))):
        headers = [("Idempotency-Key", str(uuid.uuid4()))]
        first = everyone.post(path, json=body, headers=headers)
        again = everyone.post(path, json=body, headers=headers + TWICE)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json()["id"] == again.json()["id"]
        assert again.headers["idempotency-replayed"] == "true"
        for more in ([], TWICE):
            other = everyone.post(path, json=body | {"quantity": 2}, headers=headers + more)
            assert other.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("changes", "headers", "status"),
    [
        ({}, [JSON], 201),
        ({}, [JSON], 400),  # the same again: taken
        ({"startTime": "2020-01-01T10:00:00Z"}, [JSON], 400),
        ({"startTime": "tomorrow"}, [JSON], 400),
        ({"staffId": str(uuid.uuid4())}, [JSON], 404),
        ({"guests": 2}, [JSON], 400),
        ({}, [], 415),
        ({}, [JSON, ("Idempotency-Key", "")], 400),
    ],
)
def test_both_ways_book_an_appointment_alike(
    everyone: httpx.Client, salon: Salon, changes: dict[str, str], headers: list[tuple[str, str]], status: int
) -> None:
    usual, unusual = [
        everyone.post(salon.path, content=json.dumps(salon.body(staff) | changes), headers=headers + more)
        for staff, more in enumerate(([], TWICE))  # each way with a person of its own, or one could book and one not
    ]
    assert usual.status_code == unusual.status_code == status, usual.text
    assert set(usual.headers) == set(unusual.headers)
    bodies = usual.json(), unusual.json()
    if status == 201:
        assert set(bodies[0]) == set(bodies[1])
    else:
        assert bodies[0]["error"] == bodies[1]["error"]
        assert len(bodies[0].get("alternatives", [])) == len(bodies[1].get("alternatives", []))


def test_an_unknown_salon_is_told_alike(everyone: httpx.Client, salon: Salon) -> None:
    path = salon.path.replace(salon.slug, "nobody-of-this-name")
    usual = everyone.post(path, json=salon.body())
    assert usual.status_code == 404
    assert usual.json() == everyone.post(path, json=salon.body(), headers=TWICE).json()


class Behind:
    """What stands where Litestar does, and remembers that it was asked."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(
            engine=SimpleNamespace(
                settings=Settings(redis_url="", database_url="", operator_key="k" * 16, secrets=("s" * 32,))
            ),
            appointments=None,
        )
        self.asked = False

    async def __call__(self, *_: Any) -> None:
        self.asked = True


def sent(
    *messages: dict[str, Any], method: str = "POST", path: bytes = b"/v1/holds", headers: dict[str, str]
) -> tuple[bool, int | None]:
    """Send a request to the layer alone; tells whether it was left to Litestar, and else the answer's status."""
    behind, told_to_client, waiting = Behind(), [], list(messages)

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        told_to_client.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path.decode(), "raw_path": path, "headers": raw}

    async def ask() -> None:
        await Direct(behind, LIMIT)(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(ask())
    return behind.asked, told_to_client[0]["status"] if told_to_client else None


LENGTH = {"content-length": "2", "content-type": "application/json"}


def body(content: bytes = b"{}", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_usual_request_does_not_go_through_litestar() -> None:
    assert sent(body(), headers=LENGTH) == (False, 400)  # a hold of nothing
    assert sent(body(b"{", more=True), body(b"}"), headers=LENGTH) == (False, 400)
    assert sent(body(), path=b"/v1/bookings", headers=LENGTH | {"host": "shop.example:8000"}) == (False, 400)
    assert sent(body(), path=b"/api/v1/public/a-salon/book", headers=LENGTH) == (False, 400)


@pytest.mark.parametrize(
    "unusual",
    [
        {"method": "GET"}, {"method": "HEAD"},
        {"path": b"/v1/holds/"}, {"path": b"/api/v1/public/A/book"}, {"path": b"/api/v1/public/a/b/book"},
        {"path": b"/v1/%68olds"}, {"path": b"//v1/holds"},
        {"headers": {}}, {"headers": LENGTH | {"content-length": "0"}}, {"headers": LENGTH | {"content-length": "+2"}},
        {"headers": LENGTH | {"content-length": str(LIMIT + 1)}},
        {"headers": LENGTH | {"transfer-encoding": "chunked"}}, {"headers": LENGTH | {"host": "a b"}},
    ],
)  # fmt: skip
def test_anything_unusual_is_left_to_litestar(unusual: dict[str, Any]) -> None:
    assert sent(body(), **{"headers": LENGTH} | unusual) == (True, None)


def test_who_hangs_up_in_the_middle_is_refused() -> None:
    assert sent(body(b"{", more=True), {"type": "http.disconnect"}, headers=LENGTH) == (False, 400)


def test_a_bug_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> answers.Answer:
        raise ZeroDivisionError

    monkeypatch.setitem(public.CROWDED, "/v1/holds", (broken, dict[str, int]))  # type: ignore[arg-type]
    assert sent(body(), headers=LENGTH) == (False, 500)
