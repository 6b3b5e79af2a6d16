"""Outgoing webhooks: from the log to a receiver on loopback, signed, guarded, repeated until somebody takes them."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
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
from app.errors import Conflict, IdempotencyKeyReused, InvalidRequest, NotFound, VenueNotFound
from app.ledger import Ledger
from app.webhooks import Outcome, deliveries, endpoints, sending, target
from app.webhooks.deliveries import DeliveryFilter
from app.webhooks.endpoints import Endpoint, NewEndpoint
from tests import factories
from tests.service import Postgres, Service

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def status(code: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} Told", "Content-Length: 0", *headers, "", ""]).encode()


# -- a receiver -------------------------------------------------------------------------------------------------------


@dataclass
class Received:
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)
        return told

    def verified(self, secret: str) -> dict[str, Any]:
        """Verify as a receiver does, with the library of the standard."""
        told: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return told


Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """Remembers what it got. `answers` are those to the next requests, bytes or what writes them; then it is 200."""

    port: int
    received: list[Received] = field(default_factory=list)
    answers: list[bytes | Handler] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks?of=venue"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.received.append(Received(head[0], headers, body))
            answer = self.answers.pop(0) if self.answers else OK
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(0)
    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(receiver.serve(reader, writer)))

    async with await asyncio.start_server(begin, "127.0.0.1", 0, ssl=tls) as server:
        receiver.port = server.sockets[0].getsockname()[1]
        yield receiver
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


# -- a venue ----------------------------------------------------------------------------------------------------------


@dataclass
class Venue:
    """Venues in a database of the test's own, and what the worker does with their events."""

    ledger: Ledger
    database_url: str
    ids: dict[str, UUID] = field(default_factory=dict)

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def open(self, slug: str = "salon") -> UUID:
        self.ids[slug] = uuid4()
        self.query("INSERT INTO venues (id, slug, name, timezone) VALUES (%s, %s, 'V', 'UTC')", self.ids[slug], slug)
        return self.ids[slug]

    async def endpoint(self, url: str, *types: str, venue: str = "salon") -> Endpoint:
        new = NewEndpoint(venue=venue, url=url, types=list(types) or None)
        made, _ = await endpoints.create(self.ledger, new, None, None, allow_private=True)
        return made

    def happens(self, kind: str = "booking.confirmed", venue: str = "salon", **data: Any) -> int:
        [(seq,)] = self.query(
            "INSERT INTO events (type, actor, venue_id, slot_id, booking_id, data)"
            " VALUES (%s, 'customer', %s, %s, %s, %s) RETURNING seq",
            kind, self.ids[venue], uuid4(), uuid4(), json.dumps({"quantity": 2, **data}),
        )  # fmt: skip
        return int(seq)

    async def enqueue(self, *seqs: int) -> list[UUID]:
        async with (
            await psycopg.AsyncConnection.connect(self.database_url) as connection,
            connection.transaction(),
        ):
            return await webhooks.enqueue(connection, seqs)

    async def queued(self, kind: str = "booking.confirmed", **data: Any) -> UUID:
        """Let something happen for which there is one endpoint."""
        [delivery_id] = await self.enqueue(self.happens(kind, **data))
        return delivery_id

    async def deliver(self, delivery_id: UUID, **how: Any) -> Outcome:
        return await webhooks.deliver(self.ledger, delivery_id, **{"allow_private": True, **how})

    def row(self, delivery_id: UUID) -> tuple[Any, ...]:
        [row] = self.query(
            "SELECT status, attempts, answer_status, error FROM webhook_deliveries WHERE id = %s", delivery_id
        )
        return row

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [data for (data,) in self.query("SELECT data FROM events WHERE type = %s ORDER BY seq", kind)]

    def pass_time(self) -> None:
        """Let every wait be over."""
        self.query("UPDATE webhook_deliveries SET next_at = now(), leased_until = NULL WHERE status = 'pending'")


@pytest.fixture
async def venue(postgres: Postgres) -> AsyncIterator[Venue]:
    url = postgres.fresh()
    ledger = Ledger(url)
    await ledger.pool.open()
    found = Venue(ledger, url)
    found.open()
    try:
        yield found
    finally:
        await ledger.pool.close()


# -- from the log to the receiver -------------------------------------------------------------------------------------


async def test_an_event_reaches_the_venue_signed(venue: Venue, receiver: Receiver) -> None:
    endpoint = await venue.endpoint(receiver.url)
    seq = venue.happens("booking.confirmed", quantity=3)
    [delivery_id] = await venue.enqueue(seq)

    assert await venue.deliver(delivery_id) == Outcome("delivered")

    [got] = receiver.received
    assert got.line == "POST /hooks?of=venue HTTP/1.1"
    told = got.verified(endpoint.secret)
    [(at, slot_id, booking_id)] = venue.query("SELECT at, slot_id, booking_id FROM events WHERE seq = %s", seq)
    assert datetime.fromisoformat(told.pop("time")) == at
    assert told == {
        "specversion": "1.0",
        "type": "booking.confirmed",
        "source": "/v1/venues/salon",
        "id": str(seq),
        "subject": f"bookings/{booking_id}",
        "datacontenttype": "application/json",
        "data": {"venue": "salon", "booking_id": str(booking_id), "slot_id": str(slot_id), "quantity": 3},
    }
    assert got.headers["webhook-id"] == str(delivery_id)
    assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 60
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"] == "Holdfast-Webhooks/1"
    assert venue.row(delivery_id) == ("delivered", 1, 200, None)
    with pytest.raises(WebhookVerificationError):
        got.verified((await venue.endpoint(receiver.url)).secret)


async def test_delivered_once_is_delivered(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    seq = venue.happens()
    [delivery_id] = await venue.enqueue(seq)
    assert [await venue.deliver(delivery_id) for _ in range(3)] == [Outcome("delivered")] * 3
    assert await venue.enqueue(seq) == []
    assert await webhooks.due(venue.ledger, 10) == []
    assert len(receiver.received) == 1


async def test_two_that_deliver_at_once_attempt_it_once(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    outcomes = await asyncio.gather(*(venue.deliver(delivery_id) for _ in range(5)))
    assert len(receiver.received) == 1
    assert {outcome.word for outcome in outcomes} <= {"delivered", "retry"}
    assert Outcome("delivered") in outcomes


async def test_events_go_to_whom_they_concern(venue: Venue, receiver: Receiver) -> None:
    venue.open("garage")
    everything = await venue.endpoint(receiver.url)
    bookings = await venue.endpoint(receiver.url, "booking.cancelled", "booking.confirmed")
    elsewhere = await venue.endpoint(receiver.url, venue="garage")
    kinds = ("booking.confirmed", "payment.refunded", "booking.cancelled", "slot.updated", "hold.expired")
    seqs = [venue.happens(kind) for kind in kinds]
    others = [venue.happens("booking.confirmed", venue="garage")]

    made = await venue.enqueue(*reversed(seqs), *others)

    rows = venue.query("SELECT id, endpoint_id, event_seq FROM webhook_deliveries")
    wanted = [(everything.id, seq) for seq in seqs] + [(bookings.id, seqs[0]), (bookings.id, seqs[2])]
    wanted.append((elsewhere.id, others[0]))
    assert sorted((endpoint_id, seq) for _, endpoint_id, seq in rows) == sorted(wanted)
    # In the order of the log, however they were asked for.
    by_id = {delivery_id: seq for delivery_id, _, seq in rows}
    assert [by_id[delivery_id] for delivery_id in made] == sorted(by_id.values())


@pytest.mark.parametrize(
    "kind", ["webhook.dead", "webhook.disabled", "venue.created", "resource.created", "booking.read", "hold.extended"]
)
async def test_what_no_system_of_a_venue_can_use_is_not_sent(venue: Venue, receiver: Receiver, kind: str) -> None:
    await venue.endpoint(receiver.url)
    assert await venue.enqueue(venue.happens(kind)) == []


async def test_what_happened_before_an_endpoint_was_made_is_not_sent(venue: Venue, receiver: Receiver) -> None:
    before = venue.happens()
    await venue.endpoint(receiver.url)
    assert await venue.enqueue(before) == []


async def test_a_rolled_back_turn_makes_nothing(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    seq = venue.happens()
    async with await psycopg.AsyncConnection.connect(venue.database_url) as connection:
        assert len(await webhooks.enqueue(connection, [seq])) == 1
        await connection.rollback()
    assert venue.query("SELECT 1 FROM webhook_deliveries") == []
    assert len(await venue.enqueue(seq)) == 1


# -- again and again --------------------------------------------------------------------------------------------------


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def test_it_is_attempted_until_somebody_takes_it(venue: Venue, receiver: Receiver) -> None:
    endpoint = await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    receiver.answers = [status(500), status(404), hang_up, b"nonsense\r\n\r\n", status(204)]
    told = []
    for wait in deliveries.WAITS_SECONDS[:4]:
        outcome = await venue.deliver(delivery_id)
        assert outcome.word == "retry"
        assert outcome.retry_in_seconds is not None
        assert wait <= outcome.retry_in_seconds <= wait * 1.2
        told.append(venue.row(delivery_id))
        venue.pass_time()
    assert await venue.deliver(delivery_id) == Outcome("delivered")

    assert told == [
        ("pending", 1, 500, "answered 500"),
        ("pending", 2, 404, "answered 404"),
        ("pending", 3, None, "no HTTP answer"),
        ("pending", 4, None, "no HTTP answer"),
    ]
    assert venue.row(delivery_id) == ("delivered", 5, 204, None)
    assert len(receiver.received) == 5
    assert {got.headers["webhook-id"] for got in receiver.received} == {str(delivery_id)}
    assert len({got.body for got in receiver.received}) == 1
    for got in receiver.received:
        got.verified(endpoint.secret)


async def test_it_is_not_attempted_before_its_time(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    receiver.answers = [status(503)]
    await venue.deliver(delivery_id)
    again = await venue.deliver(delivery_id)
    assert again.word == "retry"
    assert again.retry_in_seconds is not None
    assert 0 < again.retry_in_seconds <= deliveries.WAITS_SECONDS[0] * 1.2
    assert len(receiver.received) == 1
    assert await webhooks.due(venue.ledger, 10) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"\r\n\r\n", b"HTTP/1.1 099 No\r\n\r\n", b"HTTP/1.1 000 No\r\n\r\n", b"HTTP/1.1 1000 No\r\n\r\n",
        b"HTTP/1.1 -20 No\r\n\r\n", b"HTTP/1.1 200 No\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 No\r\nX: a\0b\r\n\r\n", b"HTTP/1.1 200 No\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 No\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"\x16\x03\x01\0\xff" * 20,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 No\r\nTransfer-Encoding: unknown\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000,
    ],
)  # fmt: skip
async def test_what_is_no_answer_is_a_failed_attempt(venue: Venue, receiver: Receiver, answer: bytes) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    receiver.answers = [answer]
    assert (await venue.deliver(delivery_id)).word == "retry"
    assert venue.row(delivery_id)[:2] == ("pending", 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk", b"HTTP/1.1 299 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 201 OK\r\nContent-Length: 99\r\n\r\ncut off", b"HTTP/1.0 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 OK\r\n\r\n",
    ],
)  # fmt: skip
async def test_the_status_is_what_counts(venue: Venue, receiver: Receiver, answer: bytes) -> None:
    await venue.endpoint(receiver.url)
    receiver.answers = [answer]
    assert await venue.deliver(await venue.queued()) == Outcome("delivered")


async def test_nobody_listens(venue: Venue) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        await venue.endpoint(f"http://127.0.0.1:{closed.getsockname()[1]}/")
        delivery_id = await venue.queued()
        assert (await venue.deliver(delivery_id)).word == "retry"
    assert venue.row(delivery_id) == ("pending", 1, None, "no connection")


async def test_a_delivery_that_nobody_takes_is_a_dead_letter(venue: Venue, receiver: Receiver) -> None:
    endpoint = await venue.endpoint(receiver.url)
    delivery_id = await venue.queued("booking.cancelled")
    attempts = len(deliveries.WAITS_SECONDS) + 1
    receiver.answers = [status(500)] * attempts
    words = []
    for _ in range(attempts):
        words.append((await venue.deliver(delivery_id)).word)
        venue.pass_time()

    assert words == ["retry"] * (attempts - 1) + ["dead"]
    assert await venue.deliver(delivery_id) == Outcome("dead")
    assert len(receiver.received) == attempts
    assert venue.row(delivery_id) == ("dead", attempts, 500, "answered 500")
    [(seq,)] = venue.query("SELECT event_seq FROM webhook_deliveries")
    [told] = venue.told("webhook.dead")
    assert told == {
        "delivery_id": str(delivery_id),
        "endpoint_id": str(endpoint.id),
        "event_seq": seq,
        "type": "booking.cancelled",
        "attempts": attempts,
        "error": "answered 500",
    }
    # The event of a dead letter makes no other delivery, and the endpoint goes on.
    [(dead_seq,)] = venue.query("SELECT seq FROM events WHERE type = 'webhook.dead'")
    assert await venue.enqueue(dead_seq) == []
    assert await venue.deliver(await venue.queued()) == Outcome("delivered")


async def test_the_waiting_list_is_told_of_too(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    kinds = ("waiting.joined", "waiting.offered", "waiting.lapsed")
    assert len(await venue.enqueue(*(venue.happens(kind) for kind in kinds))) == len(kinds)


async def test_410_is_the_end_of_an_endpoint(venue: Venue, receiver: Receiver) -> None:
    endpoint = await venue.endpoint(receiver.url)
    first, second = await venue.enqueue(venue.happens(), venue.happens())
    receiver.answers = [status(410)]
    assert await venue.deliver(first) == Outcome("dead")
    assert await venue.deliver(second) == Outcome("dead")

    assert len(receiver.received) == 1
    assert venue.row(first) == ("dead", 1, 410, "answered 410: it wants no more")
    assert venue.row(second) == ("dead", 0, None, "the endpoint was disabled or removed")
    assert [told["delivery_id"] for told in venue.told("webhook.dead")] == [str(first)]
    assert [told["endpoint_id"] for told in venue.told("webhook.disabled")] == [str(endpoint.id)]
    [shown] = await endpoints.listed(venue.ledger, "salon", None, 10)
    assert shown.disabled_at is not None
    assert shown.disabled_why == "answered 410: it wants no more"
    assert await venue.enqueue(venue.happens()) == []
    with pytest.raises(Conflict):
        await deliveries.redeliver(venue.ledger, first, None)


async def test_whoever_dies_after_sending_leaves_it_to_be_sent_again(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    assert await deliveries._claim(venue.ledger, delivery_id) is not None  # … and then nothing more

    held = await venue.deliver(delivery_id)
    assert held.word == "retry"
    assert held.retry_in_seconds is not None
    assert deliveries.ATTEMPT_SECONDS - 10 < held.retry_in_seconds <= deliveries.ATTEMPT_SECONDS
    assert await webhooks.due(venue.ledger, 10) == []
    venue.pass_time()
    assert await webhooks.due(venue.ledger, 10) == [delivery_id]
    assert await venue.deliver(delivery_id) == Outcome("delivered")
    assert venue.row(delivery_id) == ("delivered", 2, 200, None)


async def test_a_delivery_that_kills_whoever_attempts_it_is_given_up(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    for _ in range(len(deliveries.WAITS_SECONDS) + 1):
        assert await deliveries._claim(venue.ledger, delivery_id) is not None
        venue.pass_time()
    assert await venue.deliver(delivery_id) == Outcome("dead")
    assert receiver.received == []
    assert len(venue.told("webhook.dead")) == 1


async def test_what_is_due_is_handed_out_once(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    made = await venue.enqueue(*(venue.happens() for _ in range(5)))
    handed = await asyncio.gather(*(webhooks.due(venue.ledger, 2) for _ in range(4)))
    assert sorted(delivery_id for some in handed for delivery_id in some) == sorted(made)
    assert max(len(some) for some in handed) <= 2
    assert await webhooks.due(venue.ledger, 10) == []
    # Whoever has one in hand attempts it; what nobody attempted is handed out again.
    assert await venue.deliver(made[0]) == Outcome("delivered")
    venue.query("UPDATE webhook_deliveries SET leased_until = now() WHERE leased_until IS NOT NULL")
    assert await webhooks.due(venue.ledger, 10) == made[1:]


async def test_a_long_backlog_leaves_room_for_others(venue: Venue, receiver: Receiver) -> None:
    venue.open("garage")
    slow = await venue.endpoint(receiver.url)
    await venue.enqueue(*(venue.happens() for _ in range(deliveries.MOST_PER_ENDPOINT + 5)))
    quick = await venue.endpoint(receiver.url, venue="garage")
    await venue.enqueue(venue.happens(venue="garage"))
    handed = await webhooks.due(venue.ledger, 1_000)
    whose = dict(venue.query("SELECT id, endpoint_id FROM webhook_deliveries"))
    assert [whose[delivery_id] for delivery_id in handed] == [slow.id] * deliveries.MOST_PER_ENDPOINT + [quick.id]
    # The next ones follow when these are done, one for each.
    assert await webhooks.due(venue.ledger, 1_000) == []
    assert await deliveries._claim(venue.ledger, handed[0]) is not None  # under way
    assert await webhooks.due(venue.ledger, 1_000) == []
    receiver.answers = [status(500)]
    await venue.deliver(handed[1])
    await venue.deliver(handed[2])
    assert len(await webhooks.due(venue.ledger, 1_000)) == 2


async def test_no_such_delivery(venue: Venue) -> None:
    assert await venue.deliver(uuid4()) == Outcome("gone")
    with pytest.raises(NotFound):
        await deliveries.redeliver(venue.ledger, uuid4(), None)


async def test_what_arrived_long_ago_is_forgotten(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    made = await venue.enqueue(*(venue.happens() for _ in range(4)))
    for delivery_id in made[:3]:
        await venue.deliver(delivery_id)
    old = f"clock_timestamp() - interval '{deliveries.KEPT_DAYS + 1} days'"
    venue.query(f"UPDATE webhook_deliveries SET created_at = {old} WHERE id = ANY (%s)", [*made[:2], made[3]])
    assert await webhooks.forget_ended(venue.ledger) == 2
    assert await webhooks.forget_ended(venue.ledger) == 0
    assert {row[0] for row in venue.query("SELECT id FROM webhook_deliveries")} == {made[2], made[3]}


async def test_the_dead_are_kept_longer_for_a_person(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    made = await venue.enqueue(venue.happens(), venue.happens())
    for delivery_id, days in zip(made, (deliveries.KEPT_DAYS + 1, deliveries.DEAD_DAYS + 1), strict=True):
        venue.query(
            "UPDATE webhook_deliveries SET status = 'dead', next_at = NULL,"
            " created_at = clock_timestamp() - %s * interval '1 day' WHERE id = %s",
            days,
            delivery_id,
        )
    assert await webhooks.forget_ended(venue.ledger) == 1
    assert venue.query("SELECT id FROM webhook_deliveries") == [(made[0],)]


# -- bounds -----------------------------------------------------------------------------------------------------------


async def say_nothing(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def begin_an_answer(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnearly")
    await asyncio.sleep(60)


@pytest.mark.parametrize("slowly", [say_nothing, drip])
async def test_a_slow_receiver_is_given_up_soon(
    venue: Venue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, slowly: Handler
) -> None:
    monkeypatch.setattr(sending, "SEND_SECONDS", 1.0)
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    receiver.answers = [slowly]
    async with asyncio.timeout(20):
        assert (await venue.deliver(delivery_id)).word == "retry"
    assert venue.row(delivery_id) == ("pending", 1, None, "no answer in time")


async def test_a_slow_resolver_is_given_up_soon(
    venue: Venue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SEND_SECONDS", 1.0)
    await venue.endpoint("http://hooks.example/")
    delivery_id = await venue.queued()

    async def asleep(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return ["127.0.0.1"]

    async with asyncio.timeout(20):
        assert (await venue.deliver(delivery_id, resolve=asleep)).word == "retry"
    assert venue.row(delivery_id)[3] == "no answer in time"


async def test_a_status_counts_though_its_body_never_comes(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    receiver.answers = [begin_an_answer]
    async with asyncio.timeout(20):
        assert await venue.deliver(delivery_id) == Outcome("delivered")


async def test_of_a_huge_answer_only_the_beginning_is_read(venue: Venue, receiver: Receiver) -> None:
    piece, pieces, cut = b"x" * 65_536, 1_000, asyncio.Event()

    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(piece) * pieces}\r\n\r\n".encode())
        try:
            for _ in range(pieces):
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            cut.set()

    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    receiver.answers = [flood]
    async with asyncio.timeout(20):
        assert await venue.deliver(delivery_id) == Outcome("delivered")
        await cut.wait()


async def test_headers_without_end_are_no_answer(venue: Venue, receiver: Receiver) -> None:
    async def chatter(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 8_000 + b"\r\n")
            await writer.drain()

    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    receiver.answers = [chatter]
    async with asyncio.timeout(20):
        assert (await venue.deliver(delivery_id)).word == "retry"
    assert venue.row(delivery_id)[2:] == (None, "no HTTP answer")


async def test_a_redirect_is_not_followed(venue: Venue, receiver: Receiver) -> None:
    async with receiving() as elsewhere:
        await venue.endpoint(receiver.url)
        delivery_id = await venue.queued()
        receiver.answers = [status(code, f"Location: {elsewhere.url}") for code in (302, 307, 308)]
        for code in (302, 307, 308):
            assert (await venue.deliver(delivery_id)).word == "retry"
            assert venue.row(delivery_id)[2:] == (code, f"answered {code}")
            venue.pass_time()
        assert elsewhere.connections == 0


async def test_proxies_of_the_environment_are_not_used(
    venue: Venue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        await venue.endpoint(receiver.url)
        assert await venue.deliver(await venue.queued()) == Outcome("delivered")
        assert proxy.connections == 0


# -- where it must not go ---------------------------------------------------------------------------------------------

INSIDE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9", "168.63.129.16",  # noqa: S104
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1",
    "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%eth0", "fec0::1", "ff02::1",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e"]


def to(*addresses: str) -> target.Resolver:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolve


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_leads_inside_is_refused(venue: Venue, receiver: Receiver, address: str) -> None:
    await venue.endpoint(f"https://hooks.example:{receiver.port}/")
    delivery_id = await venue.queued()
    # Also when a public address is among them, before or after.
    for addresses in ((address,), ("8.8.8.8", address), (address, "2606:4700:4700::1111")):
        assert (await venue.deliver(delivery_id, allow_private=False, resolve=to(*addresses))).word == "retry"
        assert venue.row(delivery_id)[2:] == (None, "the host has an address that is not public")
        venue.pass_time()
    assert receiver.connections == 0


@pytest.mark.parametrize("address", OUTSIDE)
async def test_a_name_that_leads_outside_is_not(address: str) -> None:
    found = await target.resolved(target.parse("https://hooks.example/"), to(address), allow_private=False)
    assert [str(each) for each in found] == [address]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0177.0.0.1", "0x7f000001", "0x7f.0.0.1", "017700000001", "0", "[::1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "169.254.169.254", "2852039166",
        "0xA9FEA9FE", "[::ffff:169.254.169.254]", "localhost", "LOCALHOST", "localhost.",
    ],
)  # fmt: skip
async def test_however_an_address_inside_is_written(venue: Venue, receiver: Receiver, host: str) -> None:
    """Asked of the system's own resolver, which understands them all."""
    endpoint = await venue.endpoint("https://hooks.example/")
    url = f"https://{host}:{receiver.port}/"
    venue.query("UPDATE webhook_endpoints SET url = %s WHERE id = %s", url, endpoint.id)
    delivery_id = await venue.queued()
    assert (await venue.deliver(delivery_id, allow_private=False)).word == "retry"
    error = venue.row(delivery_id)[3]
    assert error in ("the host has an address that is not public", "the name of the host leads nowhere")
    assert receiver.connections == 0
    new = NewEndpoint(venue="salon", url=url)
    with pytest.raises(InvalidRequest):
        await endpoints.create(venue.ledger, new, None, None, allow_private=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/", "ftp://hooks.example/", "https://", "https:///path", "https://me@hooks.example/",
        "https://hooks.example\\@8.8.8.8/", "https://hooks.example/#there", "https://hooks.example:0/",
        "https://hooks.example:65536/", "https://hooks.example:/", "https://hooks example/", "https://höks.example/",
        "https://[::1/", "https://[hooks.example]/", "https://hooks.example/\r\nX: y", "https://hooks.example/\n",
        "https://hooks.example/ä", "//hooks.example/", "javascript:alert(1)", "https://hooks.example/" + "x" * 2_000,
        "https://intranet/",
    ],
)  # fmt: skip
async def test_what_is_no_plain_url_is_refused_when_it_is_given(venue: Venue, url: str) -> None:
    with pytest.raises(InvalidRequest):
        await endpoints.create(venue.ledger, NewEndpoint(venue="salon", url=url), None, None, allow_private=False)


async def test_http_is_for_development_only(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(receiver.url)
    delivery_id = await venue.queued()
    assert (await venue.deliver(delivery_id, allow_private=False, resolve=to("8.8.8.8"))).word == "retry"
    assert venue.row(delivery_id)[3] == "the URL must begin with https://"
    assert receiver.connections == 0


async def test_a_name_is_asked_for_once_and_only_that_answer_is_used(venue: Venue, receiver: Receiver) -> None:
    """DNS rebinding: the second answer, which would lead elsewhere, is never asked for."""
    async with receiving() as elsewhere:
        asked: list[tuple[str, int]] = []

        async def rebinding(host: str, port: int) -> Sequence[str]:
            asked.append((host, port))
            return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

        await venue.endpoint(f"http://Hooks.Example.:{receiver.port}/a?b=c")
        assert await venue.deliver(await venue.queued(), resolve=rebinding) == Outcome("delivered")
        assert asked == [("hooks.example", receiver.port)]
        assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
        assert elsewhere.connections == 0


async def test_what_is_connected_to_is_what_was_checked(
    venue: Venue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public when it was checked, private when anybody asks again: nobody does, and nothing arrives inside."""
    connected: list[tuple[Any, ...]] = []

    async def refused(self: Any, _protocol: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        connected.append((host, port))
        raise ConnectionRefusedError

    loop = asyncio.get_running_loop()
    await venue.endpoint(f"https://hooks.example:{receiver.port}/")
    delivery_id = await venue.queued()
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])

    async def rebinding(_host: str, _port: int) -> Sequence[str]:
        return next(answers)

    monkeypatch.setattr(type(loop), "create_connection", refused)
    outcome = await venue.deliver(delivery_id, allow_private=False, resolve=rebinding)
    monkeypatch.undo()
    assert outcome.word == "retry"
    assert connected == [("93.184.215.14", receiver.port)]
    assert venue.row(delivery_id)[3] == "no connection"
    assert receiver.connections == 0


async def test_another_address_of_the_name_is_tried_when_one_is_down(venue: Venue, receiver: Receiver) -> None:
    await venue.endpoint(f"http://hooks.example:{receiver.port}/")
    # Nobody listens on the first one.
    outcome = await venue.deliver(await venue.queued(), resolve=to("127.0.0.9", "127.0.0.1"))
    assert outcome == Outcome("delivered")
    assert len(receiver.received) == 1


async def test_a_name_that_leads_nowhere(venue: Venue) -> None:
    async def unknown(_host: str, _port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    await venue.endpoint("https://hooks.example/")
    for resolve in (unknown, to()):
        delivery_id = await venue.queued()
        assert (await venue.deliver(delivery_id, resolve=resolve)).word == "retry"
        assert venue.row(delivery_id)[3] == "the name of the host leads nowhere"


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext]:
    """A certificate for hooks.example that is its own authority: its file, and the server's side."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl is not there to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, made = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=hooks.example", "-addext", "subjectAltName=DNS:hooks.example", "-keyout", key, "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return made, context


@pytest.mark.parametrize(
    ("host", "trusted", "expected"),
    [
        ("hooks.example", True, ("delivered", 1, 200, None)),
        ("other.example", True, ("pending", 1, None, "TLS failed: the certificate may not be right")),
        ("hooks.example", False, ("pending", 1, None, "TLS failed: the certificate may not be right")),
    ],
)
async def test_the_certificate_must_be_for_the_name_and_not_for_the_address(
    venue: Venue,
    authority: tuple[str, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    trusted: bool,
    expected: tuple[Any, ...],
) -> None:
    trusted_file, context = authority
    if trusted:
        monkeypatch.setattr(sending, "_tls", lambda: ssl.create_default_context(cafile=trusted_file))
    asked_for: list[str | None] = []
    monkeypatch.setattr(context, "sni_callback", lambda _socket, name, _context: asked_for.append(name))
    async with receiving(context) as receiver:
        await venue.endpoint(f"https://{host}:{receiver.port}/")
        delivery_id = await venue.queued()
        await venue.deliver(delivery_id, resolve=to("127.0.0.1"))
        assert venue.row(delivery_id) == expected
        assert asked_for == [host]
        assert len(receiver.received) == (expected[0] == "delivered")


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
