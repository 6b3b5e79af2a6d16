"""Whom webhooks are sent to: endpoints, their secrets and deliveries, for operators over HTTP and at the terminal."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app import webhooks
from app.cli import cli, stores
from app.cli.failing import CONFLICT, DONE, NOT_FOUND, USAGE, guarded
from app.errors import Conflict, IdempotencyKeyReused, NotFound, VenueNotFound
from app.ledger import Ledger
from app.webhooks import Outcome, deliveries, endpoints
from app.webhooks.deliveries import DeliveryFilter
from app.webhooks.endpoints import Endpoint, NewEndpoint
from tests import factories
from tests.receiver import Receiver, Venue, receiver, status, venue
from tests.service import Service

__all__ = ["receiver", "venue"]

pytestmark = pytest.mark.anyio


# -- endpoints --------------------------------------------------------------------------------------------------------


async def test_while_a_secret_is_rotated_both_sign(venue: Venue, receiver: Receiver) -> None:
    before = await venue.endpoint(receiver.url)
    after = await endpoints.rotate(venue.ledger, before.id, None)
    assert after.secret != before.secret
    assert after.old_secret_until is not None
    hours = (after.old_secret_until - datetime.now(UTC)).total_seconds() / 3600
    assert endpoints.ROTATION_HOURS - 1 < hours <= endpoints.ROTATION_HOURS

    await venue.deliver(await venue.queued())
    [got] = receiver.received
    assert len(got.headers["webhook-signature"].split()) == 2
    assert got.verified(before.secret) == got.verified(after.secret)

    venue.query("UPDATE webhook_endpoints SET old_secret_until = now()")
    await venue.deliver(await venue.queued())
    receiver.received[1].verified(after.secret)
    with pytest.raises(WebhookVerificationError):
        receiver.received[1].verified(before.secret)


async def test_a_rotation_repeated_under_its_key_is_one_rotation(venue: Venue, receiver: Receiver) -> None:
    before = await venue.endpoint(receiver.url)
    ways = {"derived_from": ("s" * 32,), "key": "once"}
    together = await asyncio.gather(*(endpoints.rotate(venue.ledger, before.id, None, **ways) for _ in range(6)))
    later = await endpoints.rotate(venue.ledger, before.id, None, **ways)
    assert {rotated.secret for rotated in together} == {later.secret}
    assert later.secret != before.secret
    assert len(venue.told("webhook.rotated")) == 1
    await venue.deliver(await venue.queued())
    receiver.received[0].verified(before.secret)


async def test_a_removed_endpoint_gets_nothing_more(venue: Venue, receiver: Receiver) -> None:
    endpoint = await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    for _ in range(2):
        await endpoints.remove(venue.ledger, endpoint.id, None)
    assert await venue.enqueue(venue.happens()) == []
    assert await venue.deliver(delivery_id) == Outcome("dead")
    assert receiver.connections == 0
    assert await endpoints.listed(venue.ledger, None, None, 10) == []
    assert venue.query("SELECT secret, old_secret FROM webhook_endpoints") == [(None, None)]
    assert len(venue.told("webhook.removed")) == 1
    for use in (endpoints.rotate, endpoints.remove):
        with pytest.raises(NotFound):
            await use(venue.ledger, uuid4(), None)
    with pytest.raises(NotFound):
        await endpoints.rotate(venue.ledger, endpoint.id, None)


async def test_a_venue_has_only_so_many(venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MOST_PER_VENUE", 2)
    first = await venue.endpoint("https://hooks.example/")
    await venue.endpoint("https://hooks.example/")
    with pytest.raises(Conflict):
        await venue.endpoint("https://hooks.example/")
    await endpoints.remove(venue.ledger, first.id, None)
    await venue.endpoint("https://hooks.example/")
    with pytest.raises(VenueNotFound):
        await venue.endpoint("https://hooks.example/", venue="nowhere")


async def test_an_endpoint_made_twice_under_one_key_is_one(venue: Venue) -> None:
    async def made(url: str, name: str = "salon") -> tuple[Endpoint, bool]:
        new = NewEndpoint(venue=name, url=url, types=["booking.confirmed"])
        return await endpoints.create(venue.ledger, new, "key-1", None, allow_private=False)

    venue.open("garage")
    results = await asyncio.gather(*(made("https://hooks.example/") for _ in range(8)))
    assert {(endpoint.id, endpoint.secret) for endpoint, _ in results} == {(results[0][0].id, results[0][0].secret)}
    assert [again for _, again in results].count(False) == 1
    assert len(venue.told("webhook.created")) == 1
    for other in (("https://other.example/", "salon"), ("https://hooks.example/", "garage")):
        with pytest.raises(IdempotencyKeyReused):
            await made(*other)
    await endpoints.remove(venue.ledger, results[0][0].id, None)
    with pytest.raises(Conflict):
        await made("https://hooks.example/")


async def test_a_redelivery_begins_anew(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    assert await venue.deliver(delivery_id) == Outcome("delivered")
    again = await deliveries.redeliver(venue.ledger, delivery_id, None)
    assert (again.status, again.attempts, again.delivered_at) == ("pending", 0, None)
    assert await webhooks.due(venue.ledger, 10) == [delivery_id]
    assert await venue.deliver(delivery_id) == Outcome("delivered")
    assert [got.headers["webhook-id"] for got in receiver.received] == [str(delivery_id)] * 2
    assert receiver.received[0].body == receiver.received[1].body
    assert len(venue.told("webhook.redelivered")) == 1


async def test_deliveries_are_listed_by_venue_and_status(venue: Venue, receiver: Receiver) -> None:
    venue.open("garage")
    await venue.endpoint(receiver.url)
    await venue.endpoint(receiver.url, venue="garage")
    made = [(await venue.enqueue(venue.happens()))[0] for _ in range(3)]
    [other] = await venue.enqueue(venue.happens(venue="garage"))
    await venue.deliver(made[0])

    async def ids(after: Any = None, limit: int = 10, **which: Any) -> list[UUID]:
        found = await deliveries.listed(venue.ledger, DeliveryFilter(**which), after, limit)
        return [delivery.id for delivery in found]

    assert await ids() == [other, *reversed(made)]
    assert await ids(venue="salon") == [*reversed(made)]
    assert await ids(status="pending", venue="salon") == [made[2], made[1]]
    assert await ids(status="dead") == []
    [first] = await deliveries.listed(venue.ledger, DeliveryFilter(), None, 1)
    assert await ids((first.created_at, first.id), 2) == [made[2], made[1]]
    with pytest.raises(VenueNotFound):
        await ids(venue="nowhere")


async def test_no_secret_is_shown_by_accident(venue: Venue) -> None:
    endpoint = await venue.endpoint("https://hooks.example/")
    assert endpoint.secret not in repr(endpoint)


async def test_impossible_rows_cannot_be_stored(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    await venue.queued()
    for statement, rule in (
        ("UPDATE webhook_deliveries SET status = 'delivered'", "webhook_deliveries_delivered_at_when_delivered"),
        ("UPDATE webhook_deliveries SET next_at = NULL", "webhook_deliveries_next_at_while_pending"),
        ("UPDATE webhook_deliveries SET status = 'lost', next_at = NULL", "webhook_deliveries_status_known"),
        ("UPDATE webhook_endpoints SET secret = 'guess'", "webhook_endpoints_secret_form"),
        ("UPDATE webhook_endpoints SET secret = NULL", "webhook_endpoints_secret_until_removed"),
        ("UPDATE webhook_endpoints SET url = 'ftp://x'", "webhook_endpoints_url_form"),
        ("UPDATE webhook_endpoints SET types = '{}'", "webhook_endpoints_types_few"),
        (
            "INSERT INTO webhook_deliveries (id, endpoint_id, event_seq)"
            " SELECT gen_random_uuid(), endpoint_id, event_seq FROM webhook_deliveries",
            "webhook_deliveries_once_per_event",
        ),
    ):
        with pytest.raises(psycopg.IntegrityError) as refused:
            venue.query(statement)
        assert refused.value.diag.constraint_name == rule


# -- the operators' API -----------------------------------------------------------------------------------------------

ENDPOINT_FIELDS = {
    "id", "venue", "url", "types", "enabled", "created_at", "disabled_at", "disabled_why", "old_secret_until",
}  # fmt: skip
DELIVERY_FIELDS = {
    "id", "endpoint_id", "venue", "event_seq", "type", "status", "attempts", "answer_status", "error", "next_at",
    "created_at", "delivered_at",
}  # fmt: skip


@pytest.fixture
def operator(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis, operator=True) as client:
        yield client


async def relayed(service: Service, slot_id: str) -> list[UUID]:
    """Do what the worker does with the events of a slot."""
    seqs = [seq for (seq,) in service.query("SELECT seq FROM events WHERE slot_id = %s ORDER BY seq", slot_id)]
    async with (
        await psycopg.AsyncConnection.connect(service.database_url) as connection,
        connection.transaction(),
    ):
        return await webhooks.enqueue(connection, seqs)


async def deliveries_of(operator: httpx.Client, **which: str) -> dict[str, Any]:
    answer = await asyncio.to_thread(operator.get, "/v1/webhook-deliveries", params=which)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def made_endpoint(operator: httpx.Client, slug: str, **fields: Any) -> dict[str, Any]:
    body = {"venue": slug, "url": "https://hooks.example/", **fields}
    return factories.made(operator.post("/v1/webhook-endpoints", json=body))


def problem_of(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def test_an_endpoint_tells_its_secret_once(operator: httpx.Client) -> None:
    slug = factories.venue(operator)["slug"]
    body = {"venue": slug, "url": "https://hooks.example/in?of=us", "types": ["booking.confirmed", "slot.updated"]}
    answer = operator.post("/v1/webhook-endpoints", json=body)
    made = factories.made(answer)
    assert made.keys() == ENDPOINT_FIELDS | {"secret"}
    assert {name: made[name] for name in body} == body
    assert answer.headers["location"] == f"/v1/webhook-endpoints/{made['id']}"
    assert Webhook(made["secret"])

    listed = operator.get("/v1/webhook-endpoints", params={"venue": slug}).json()
    del made["secret"]
    assert listed == {"data": [made], "next_cursor": None}

    assert operator.delete(answer.headers["location"]).status_code == 204
    assert operator.delete(answer.headers["location"]).status_code == 204
    assert operator.get("/v1/webhook-endpoints", params={"venue": slug}).json()["data"] == []


def test_endpoints_come_in_pages(operator: httpx.Client) -> None:
    slug = factories.venue(operator)["slug"]
    made = [made_endpoint(operator, slug)["id"] for _ in range(3)]
    first = operator.get("/v1/webhook-endpoints", params={"venue": slug, "limit": 2}).json()
    then = {"venue": slug, "limit": 2, "cursor": first["next_cursor"]}
    second = operator.get("/v1/webhook-endpoints", params=then).json()
    assert [one["id"] for one in first["data"] + second["data"]] == made
    assert second["next_cursor"] is None


def test_a_repeated_request_makes_no_second_endpoint(operator: httpx.Client) -> None:
    slug = factories.venue(operator)["slug"]
    body, key = {"venue": slug, "url": "https://hooks.example/"}, {"Idempotency-Key": factories.unique("key")}
    first, second = (operator.post("/v1/webhook-endpoints", json=body, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    other = operator.post("/v1/webhook-endpoints", json={**body, "url": "https://other.example/"}, headers=key)
    assert problem_of(other) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"url": "ftp://hooks.example/"}, "url"),
        ({"url": "https://me:pw@hooks.example/"}, "url"),
        ({"url": "https://127.1/"}, "url"),
        ({"url": "https://2130706433/"}, "url"),
        ({"url": "https://[::zz]/"}, "url"),
        ({"url": "https://[b01ee46e3b7d]/"}, "url"),
        ({"url": 1}, "url"),
        ({"types": []}, "types"),
        ({"types": ["webhook.dead"]}, "types[0]"),
        ({"types": ["venue.created"]}, "types[0]"),
        ({"types": "booking.confirmed"}, "types"),
        ({"secret": "whsec_mine"}, "secret"),
        ({"venue": "No Slug"}, "venue"),
    ],
)
def test_what_makes_no_sense_is_refused(operator: httpx.Client, wrong: dict[str, Any], field: str) -> None:
    body = {"venue": "somewhere", "url": "https://hooks.example/", **wrong}
    answer = operator.post("/v1/webhook-endpoints", json=body)
    assert problem_of(answer) == (400, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_what_is_not_there_is_404(operator: httpx.Client) -> None:
    body = {"venue": "nowhere", "url": "https://hooks.example/"}
    assert problem_of(operator.post("/v1/webhook-endpoints", json=body)) == (404, "venue_not_found")
    for path in ("/v1/webhook-endpoints", "/v1/webhook-deliveries"):
        assert problem_of(operator.get(path, params={"venue": "nowhere"})) == (404, "venue_not_found")
        assert problem_of(operator.get(path, params={"colour": "red"})) == (400, "invalid_request")
        assert problem_of(operator.get(path, params={"limit": "0"})) == (400, "invalid_request")
    for name in (uuid4(), "no-id"):
        assert problem_of(operator.delete(f"/v1/webhook-endpoints/{name}")) == (404, "not_found")
        assert problem_of(operator.post(f"/v1/webhook-endpoints/{name}/rotate")) == (404, "not_found")
        assert problem_of(operator.post(f"/v1/webhook-deliveries/{name}/redeliver")) == (404, "not_found")


def test_nobody_else_may(with_redis: Service) -> None:
    with factories.client(with_redis) as everyone:
        for method, path in (
            ("POST", "/v1/webhook-endpoints"),
            ("GET", "/v1/webhook-endpoints"),
            ("DELETE", f"/v1/webhook-endpoints/{uuid4()}"),
            ("POST", f"/v1/webhook-endpoints/{uuid4()}/rotate"),
            ("GET", "/v1/webhook-deliveries"),
            ("POST", f"/v1/webhook-deliveries/{uuid4()}/redeliver"),
        ):
            assert problem_of(everyone.request(method, path)) == (401, "unauthorized")


def test_a_rotation_tells_the_new_secret_once(operator: httpx.Client) -> None:
    made = made_endpoint(operator, factories.venue(operator)["slug"])
    path, key = f"/v1/webhook-endpoints/{made['id']}/rotate", {"Idempotency-Key": factories.unique("key")}
    first = operator.post(path, headers=key)
    assert first.status_code == 200
    assert first.json().keys() == ENDPOINT_FIELDS | {"secret"}
    assert first.json()["secret"] != made["secret"]
    assert first.json()["old_secret_until"] is not None
    again = operator.post(path, headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert operator.post(path).json()["secret"] not in (first.json()["secret"], made["secret"])


async def test_a_booking_reaches_the_venue_and_is_sent_again_when_asked(
    with_redis: Service, operator: httpx.Client, receiver: Receiver
) -> None:
    slot = factories.slot(operator, capacity=5)
    made = made_endpoint(operator, slot["venue"], url=receiver.url, types=["booking.confirmed"])
    with factories.client(with_redis) as everyone:
        booked = factories.booking(everyone, slot["id"], quantity=2)
    [delivery_id] = await relayed(with_redis, slot["id"])

    ledger = Ledger(with_redis.database_url)
    await ledger.pool.open()
    try:
        receiver.answers = [status(500)]
        assert (await webhooks.deliver(ledger, delivery_id, allow_private=True)).word == "retry"
        path = f"/v1/webhook-deliveries/{delivery_id}/redeliver"
        key = {"Idempotency-Key": f"again-{delivery_id}"}
        again = await asyncio.to_thread(operator.post, path, headers=key)
        assert again.status_code == 200
        assert again.json()["status"] == "pending"
        assert delivery_id in await webhooks.due(ledger, 100)
        assert await webhooks.deliver(ledger, delivery_id, allow_private=True) == Outcome("delivered")
        repeated = await asyncio.to_thread(operator.post, path, headers=key)
        assert repeated.headers["idempotency-replayed"] == "true"
        assert repeated.json() == again.json()
        assert await webhooks.deliver(ledger, delivery_id, allow_private=True) == Outcome("delivered")
    finally:
        await ledger.pool.close()

    assert len(receiver.received) == 2
    told = receiver.received[1].verified(made["secret"])
    assert told["type"] == "booking.confirmed"
    assert told["data"] == {
        "venue": slot["venue"], "booking_id": booked["id"], "slot_id": slot["id"], "quantity": 2,
    }  # fmt: skip
    assert "Ada" not in receiver.received[1].body.decode()  # no personal data
    [shown] = (await deliveries_of(operator, venue=slot["venue"]))["data"]
    assert shown.keys() == DELIVERY_FIELDS
    assert (shown["id"], shown["status"], shown["answer_status"]) == (str(delivery_id), "delivered", 200)
    pending = await deliveries_of(operator, venue=slot["venue"], status="pending")
    assert pending == {"data": [], "next_cursor": None}


async def test_deliveries_come_in_pages(with_redis: Service, operator: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=5)
    made_endpoint(operator, slot["venue"])
    with factories.client(with_redis) as everyone:
        for _ in range(3):
            factories.booking(everyone, slot["id"])
    made = await relayed(with_redis, slot["id"])
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(2):
        page = await deliveries_of(operator, venue=slot["venue"], limit="2", **cursor)
        seen += [one["id"] for one in page["data"]]
        cursor = {"cursor": page["next_cursor"]}
    assert page["next_cursor"] is None
    assert sorted(seen) == sorted(map(str, made))
    assert len(made) == 3


# -- the command line -------------------------------------------------------------------------------------------------


@dataclass
class Answered:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Holdfast = Callable[..., Awaitable[Answered]]


@pytest.fixture
def holdfast(
    venue: Venue,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Holdfast:
    """Run a command beside the test's own loop, in a thread with a loop of its own."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", venue.database_url)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path_factory.mktemp("no-demo")))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(stores, "be_quiet", lambda: None)

    async def run(*arguments: Any) -> Answered:
        capfd.readouterr()
        command = ["webhooks", *map(str, arguments)]
        code = await asyncio.to_thread(guarded, lambda: cli.main(command, standalone_mode=False))
        return Answered(code, *capfd.readouterr())

    return run


async def test_endpoints_at_the_terminal(venue: Venue, holdfast: Holdfast) -> None:
    added = await holdfast("add", "salon", "https://hooks.example/", "--type", "booking.confirmed")
    assert added.code == DONE
    [endpoint] = await endpoints.listed(venue.ledger, "salon", None, 10)
    assert endpoint.secret in added.out
    assert "not told again" in added.err

    listed = await holdfast("list", "--venue", "salon")
    assert (listed.code, str(endpoint.id) in listed.out, endpoint.secret in listed.out) == (DONE, True, False)
    told = (await holdfast("list", "--json")).json
    assert told["next_cursor"] is None
    assert [(one["id"], one["types"], one["enabled"]) for one in told["data"]] == [
        (str(endpoint.id), ["booking.confirmed"], True)
    ]
    assert "secret" not in told["data"][0]

    rotated = (await holdfast("rotate", endpoint.id, "--json")).json
    assert rotated["secret"] != endpoint.secret
    assert (await holdfast("remove", endpoint.id)).code == USAGE  # nobody can be asked
    for _ in range(2):
        assert (await holdfast("remove", endpoint.id, "--yes")).code == DONE
    assert (await holdfast("list")).err.strip() == "No webhook endpoints"


async def test_what_is_wrong_at_the_terminal(holdfast: Holdfast) -> None:
    for arguments, code in (
        (("add", "nowhere", "https://hooks.example/"), NOT_FOUND),
        (("add", "salon", "http://hooks.example/"), USAGE),
        (("add", "salon", "https://127.0.0.1/"), USAGE),
        (("add", "salon", "https://hooks.example/", "--type", "webhook.dead"), USAGE),
        (("list", "--venue", "nowhere"), NOT_FOUND),
        (("deliveries", "--status", "lost"), USAGE),
        (("deliveries", "--cursor", "x"), USAGE),
        (("rotate", uuid4()), NOT_FOUND),
        (("remove", uuid4(), "--yes"), NOT_FOUND),
        (("redeliver", uuid4()), NOT_FOUND),
        (("redeliver", "x"), USAGE),
    ):
        assert ((await holdfast(*arguments)).code, arguments) == (code, arguments)


async def test_deliveries_at_the_terminal(venue: Venue, receiver: Receiver, holdfast: Holdfast) -> None:
    await holdfast("add", "salon", receiver.url, "--allow-private")
    assert (await holdfast("deliveries")).err.strip() == "No webhook deliveries"
    first, second = await venue.enqueue(venue.happens(), venue.happens())
    receiver.answers = [status(500), status(410)]
    await venue.deliver(first)

    listed = await holdfast("deliveries", "--venue", "salon")
    assert listed.code == DONE
    assert str(first) in listed.out
    assert "answered 500" in listed.out
    page = (await holdfast("deliveries", "--limit", "1", "--json")).json
    rest = (await holdfast("deliveries", "--limit", "1", "--cursor", page["next_cursor"], "--json")).json
    assert [page["data"][0]["id"], rest["data"][0]["id"]] == [str(second), str(first)]
    assert rest["next_cursor"] is None

    assert (await holdfast("redeliver", first)).code == DONE
    assert set(await webhooks.due(venue.ledger, 10)) == {first, second}
    again = (await holdfast("redeliver", first, "--json")).json
    assert (again["id"], again["status"], again["attempts"]) == (str(first), "pending", 0)
    await venue.deliver(first)  # 410
    assert (await holdfast("redeliver", first)).code == CONFLICT
    [dead] = (await holdfast("deliveries", "--status", "dead", "--json")).json["data"]
    assert dead["id"] == str(first)
