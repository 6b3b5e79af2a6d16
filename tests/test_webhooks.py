"""Outgoing webhooks: from the log to a receiver on loopback, signed, bounded, repeated until somebody takes them."""

import asyncio
import socket
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from standardwebhooks import WebhookVerificationError

from app import webhooks
from app.errors import Conflict, NotFound
from app.webhooks import Outcome, deliveries, endpoints, sending
from tests.receiver import Handler, Receiver, Venue, receiver, receiving, status, venue

__all__ = ["receiver", "venue"]

pytestmark = pytest.mark.anyio


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


async def test_it_is_not_attempted_before_its_time(
    venue: Venue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "WAITS_SECONDS", (60,))  # a busy machine may take five seconds to ask again
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


async def test_whoever_is_handed_some_leaves_the_rest_to_others(venue: Venue, receiver: Receiver) -> None:
    """Also before it has committed: of all that it looked at, it keeps from others what it is handed."""
    await venue.endpoint(receiver.url)
    made = await venue.enqueue(*(venue.happens() for _ in range(5)))
    async with await psycopg.AsyncConnection.connect(venue.database_url) as other:
        handed = await other.execute(deliveries._HAND_OUT, {"lease": 60, "each": 5, "limit": 2})
        assert await handed.fetchall() == [(made[0],), (made[1],)]
        assert await webhooks.due(venue.ledger, 2) == made[2:4]
    assert await webhooks.due(venue.ledger, 2) == made[4:]


async def test_a_long_backlog_is_not_read_to_hand_out_five(venue: Venue, receiver: Receiver) -> None:
    endpoint = await venue.endpoint(receiver.url)
    venue.query(
        "WITH told AS (INSERT INTO events (type, actor, venue_id, data)"
        "  SELECT 'booking.confirmed', 'customer', %s, '{}' FROM generate_series(1, 20000) RETURNING seq)"
        " INSERT INTO webhook_deliveries (id, endpoint_id, event_seq) SELECT gen_random_uuid(), %s, seq FROM told",
        venue.ids["salon"],
        endpoint.id,
    )
    venue.query("ANALYZE webhook_deliveries")
    async with await psycopg.AsyncConnection.connect(venue.database_url) as connection:
        plan = await connection.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {deliveries._HAND_OUT}", {"lease": 60, "each": 5, "limit": 100}
        )
        [[[told]]] = await plan.fetchall()
    assert max(rows_read(told["Plan"])) <= 5, told


def rows_read(plan: dict[str, Any]) -> list[float]:
    inner = [count for part in plan.get("Plans", ()) for count in rows_read(part)]
    return [plan["Actual Rows"] * plan["Actual Loops"], *inner]


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
