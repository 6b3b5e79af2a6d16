"""The webhooks of the Stripe simulator, as a receiver gets them: repeated, doubled, held, dropped, or out of order."""

import socket
from typing import Any

import pytest
import stripe

from tests.service import eventually
from tests.stripe_client import COMPLETED, client, create, receiver, running, simulator
from tests.stripe_simulator import (
    SDK_WARNING,
    Receiver,
    of_session,
    refused_control,
    running_receiver,
    running_simulator,
)

__all__ = ["client", "receiver", "running", "simulator"]

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]


def got(receiver: Receiver, session_id: str) -> list[str]:
    """The types of the webhooks about a session, in the order they came."""
    return [one.event["type"] for one in list(receiver.received) if session_id.encode() in one.body]


async def test_an_event_is_repeated_until_it_is_received(simulator, client, receiver):
    session = await create(client)
    receiver.answers[:] = [500, 302, 404]
    simulator.pay(session.id)
    eventually(lambda: len(got(receiver, session.id)) == 4, "four attempts")
    eventually(
        lambda: of_session(simulator, session.id, COMPLETED)[0]["delivery"] == "delivered", "the books to say so"
    )
    [event] = of_session(simulator, session.id, COMPLETED)
    assert [one["status"] for one in event["attempts"]] == [500, 302, 404, 200]


async def test_an_event_that_nobody_takes_is_given_up(simulator, client, receiver):
    session = await create(client)
    simulator.delivery(retry_seconds=[0.01, 0.01])
    receiver.answers[:] = [500] * 3
    simulator.pay(session.id)
    eventually(lambda: of_session(simulator, session.id, COMPLETED)[0]["delivery"] == "failed", "it to be given up")
    unheard = await client.v1.events.list_async({"delivery_success": False, "type": COMPLETED})
    assert session.id in [event.data.object.id for event in unheard.data]


async def test_duplicates_come_as_often_as_wished(simulator, client, receiver):
    simulator.delivery(duplicates=3)
    session = await create(client)
    simulator.pay(session.id)
    eventually(lambda: got(receiver, session.id) == [COMPLETED] * 4, "one and three duplicates")
    assert len({one.event["id"] for one in receiver.received if session.id.encode() in one.body}) == 1


async def test_held_events_come_in_the_order_that_is_asked_for(simulator, client, receiver):
    simulator.delivery("hold")
    session = await create(client)
    simulator.pay(session.id, "delayed")
    simulator.settle(session.id, succeed=True)
    first, second = (event["id"] for event in simulator.events() if event["object"]["id"] == session.id)
    assert got(receiver, session.id) == []
    simulator.deliver([second, first, first])
    assert got(receiver, session.id) == ["checkout.session.async_payment_succeeded", COMPLETED, COMPLETED]
    assert simulator.deliver([first], times=10, concurrently=True) == [{"event": first, "delivery": "delivered"}]
    assert len(got(receiver, session.id)) == 13


async def test_all_that_is_held_can_be_delivered_at_once(simulator, client, receiver):
    simulator.delivery("hold")
    sessions = [(await create(client)).id for _ in range(3)]
    for session_id in sessions:
        simulator.pay(session_id)
    simulator.deliver()
    assert [got(receiver, session_id) for session_id in sessions] == [[COMPLETED]] * 3
    assert simulator.deliver() == []


async def test_a_dropped_event_is_only_in_the_list(simulator, client, receiver):
    simulator.delivery("drop")
    session = await create(client)
    simulator.pay(session.id)
    simulator.delivery("normal")
    heard = await create(client)
    simulator.pay(heard.id)
    eventually(lambda: of_session(simulator, heard.id, COMPLETED)[0]["delivery"] == "delivered", "the other event")
    lists = {}
    for success in (False, True):
        asked: Any = {"delivery_success": success, "types": [COMPLETED], "limit": 100}
        lists[success] = [event.data.object.id async for event in (await listed(client, asked)).auto_paging_iter()]
    assert session.id in lists[False]
    assert session.id not in lists[True]
    assert heard.id in lists[True]
    assert got(receiver, session.id) == []


async def listed(client: stripe.StripeClient, asked: Any) -> Any:
    return await client.v1.events.list_async(asked)


async def test_nobody_can_be_told_without_an_address(simulator):
    with running_simulator(None) as alone:
        session_id = alone.older_session()["id"]
        alone.pay(session_id)
        assert [event["delivery"] for event in alone.events()] == ["none"]
        assert refused_control(alone, "deliver", {}) == 400
    assert refused_control(simulator, "deliver", {"event_ids": ["evt_none"]}) == 404


async def test_a_receiver_that_is_not_there_is_an_attempt_without_a_status():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen: nobody else can do it there meanwhile
        with running_simulator(f"http://127.0.0.1:{closed.getsockname()[1]}/") as simulator:
            simulator.delivery(retry_seconds=[])
            simulator.pay(simulator.older_session()["id"])
            eventually(lambda: simulator.events()[0]["delivery"] == "failed", "it to be given up")
            [attempt] = simulator.events()[0]["attempts"]
    assert attempt["status"] is None
    assert "ConnectError" in attempt["error"]


def test_both_secrets_sign_while_one_is_replaced():
    with running_receiver() as receiver, running_simulator(receiver.url, "whsec_the_new_one,whsec_the_old_one") as both:
        both.pay(both.older_session()["id"])
        [got] = receiver.wait_for(1)
    for secret in ("whsec_the_new_one", "whsec_the_old_one"):
        assert stripe.WebhookSignature.verify_header(got.body, got.signature, secret, tolerance=300)
