"""The Stripe simulator, as the official SDK, a person's browser and a receiver of webhooks see it."""

import asyncio
import html
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe

from app.simulator.objects import API_VERSION
from tests.service import HOLDFAST, START_SECONDS, eventually
from tests.stripe_simulator import (
    CLIENT_SECONDS,
    ROOT,
    SDK_WARNING,
    WEBHOOK_SECRET,
    Receiver,
    Simulator,
    running_receiver,
    running_simulator,
)

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]

COMPLETED = "checkout.session.completed"
EXPIRED = "checkout.session.expired"
SOON = [0.05] * 20


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Simulator, Receiver]]:
    with running_receiver() as receiver, running_simulator(receiver.url) as simulator:
        yield simulator, receiver


@pytest.fixture
def simulator(running: tuple[Simulator, Receiver]) -> Simulator:
    simulator, receiver = running
    simulator.no_faults()
    simulator.clock(0)
    simulator.delivery("normal", retry_seconds=SOON)
    receiver.answers.clear()
    return simulator


@pytest.fixture
def receiver(running: tuple[Simulator, Receiver]) -> Receiver:
    return running[1]


@asynccontextmanager
async def sdk(
    simulator: Simulator, *, key: str | None = None, patience: float = CLIENT_SECONDS, retries: int = 0
) -> AsyncIterator[stripe.StripeClient]:
    """The official client, as our service makes it."""
    http = stripe.HTTPXClient(timeout=patience, verify_ssl_certs=False)
    try:
        yield stripe.StripeClient(
            key or simulator.key,
            base_addresses={"api": simulator.url},
            http_client=http,
            max_network_retries=retries,
        )
    finally:
        await http.close_async()


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[stripe.StripeClient]:
    async with sdk(simulator) as client:
        yield client


def see(url: str, **options: Any) -> httpx.Response:
    """Look at a page or an address, as another program."""
    return httpx.get(url, timeout=CLIENT_SECONDS, verify=False, **options)  # noqa: S501 not https, and faster so


def params(amount: int = 1250, quantity: int = 2, **more: Any) -> Any:
    price = {"currency": "eur", "unit_amount": amount, "product_data": {"name": "City walk"}}
    return {
        "mode": "payment",
        "line_items": [{"price_data": price, "quantity": quantity}],
        "success_url": "https://shop.example/done?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://shop.example/cancelled",
        **more,
    }


def key() -> Any:
    return {"idempotency_key": f"test-{uuid.uuid4()}"}


def of_session(simulator: Simulator, session_id: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in simulator.events(kind) if event["object"]["id"] == session_id]


async def create(client: stripe.StripeClient, *arguments: Any, **more: Any) -> stripe.checkout.Session:
    return await client.v1.checkout.sessions.create_async(params(**more), *arguments)


async def paid(simulator: Simulator, client: stripe.StripeClient, **more: Any) -> str:
    """Create a session and pay it; returns the payment intent."""
    session = simulator.pay((await create(client, **more)).id)
    return str(session["payment_intent"])


# -- sessions ---------------------------------------------------------------------------------------------------------


async def test_a_session_has_the_fields_of_stripes(simulator, client):
    session = await create(
        client,
        client_reference_id="booking-1",
        metadata={"booking_id": "b1", "7": "digits are no list", "empty": ""},
        payment_intent_data={"metadata": {"booking_id": "b1"}},
        customer_email="ada@example.com",
        payment_method_types=["card"],
        expires_at=int(time.time()) + 3600,
    )
    assert session.id.startswith("cs_test_")
    assert (session.object, session.mode, session.livemode) == ("checkout.session", "payment", False)
    assert (session.status, session.payment_status, session.payment_intent) == ("open", "unpaid", None)
    assert (session.amount_total, session.currency, session.client_reference_id) == (2500, "eur", "booking-1")
    assert session.metadata.to_dict() == {"booking_id": "b1", "7": "digits are no list"}
    assert (session.customer_email, session.payment_method_types) == ("ada@example.com", ["card"])
    assert session.url == f"{simulator.url}/pay/{session.id}"
    assert 0 <= session.expires_at - session.created - 3600 <= 2
    again = await client.v1.checkout.sessions.retrieve_async(session.id)
    assert again.to_dict() == session.to_dict()


async def test_a_session_lives_for_a_day_unless_it_says_otherwise(client):
    session = await create(client)
    assert session.expires_at - session.created == 24 * 3600


@pytest.mark.parametrize(
    ("change", "code", "param", "words"),
    [
        ({"mode": "subscription"}, None, "mode", "mode"),
        ({"line_items": []}, "parameter_missing", "line_items", "Missing required param: line_items."),
        ({"colour": "red"}, "parameter_unknown", "colour", "Received unknown parameter: colour"),
        ({"quantity": 0}, "parameter_invalid_integer", "line_items[0][quantity]", "Invalid integer"),
        ({"amount": "ten"}, "parameter_invalid_integer", "line_items[0][price_data][unit_amount]", "Invalid integer"),
        ({"amount": 10}, "amount_too_small", "line_items", "at least 50"),
        ({"success_url": "javascript:alert(1)"}, "url_invalid", "success_url", "Not a valid URL"),
        ({"cancel_url": "https://shop.example;script-src *"}, "url_invalid", "cancel_url", "Not a valid URL"),
        ({"customer_email": "nobody"}, "email_invalid", "customer_email", "Invalid email"),
        ({"metadata": {"k": "v" * 501}}, None, "metadata", "500"),
        ({"client_reference_id": "x" * 201}, None, "client_reference_id", "200"),
    ],
)
async def test_wrong_parameters_are_refused_as_stripe_does(client, change, code, param, words):
    with pytest.raises(stripe.InvalidRequestError, match=re.escape(words)) as refused:
        await create(client, **change)
    assert (refused.value.http_status, refused.value.code, refused.value.param) == (400, code, param)


async def test_a_price_without_a_name_is_told_by_its_bracketed_name(client):
    price = {"currency": "eur", "unit_amount": 100, "product_data": {}}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await create(client, line_items=[{"price_data": price, "quantity": 1}])
    # An empty object cannot be written in a form: the whole of it is missing.
    assert refused.value.param == "line_items[0][price_data][product_data]"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(29 * 60, "at least 30 minutes"), (31 * 60, None), (24 * 3600 - 60, None), (24 * 3600 + 60, "less than 24 hours")],
)
async def test_a_session_ends_between_half_an_hour_and_a_day_from_now(client, seconds, words):
    wanted = int(time.time()) + seconds
    if words is None:
        assert (await create(client, expires_at=wanted)).expires_at == wanted
        return
    with pytest.raises(stripe.InvalidRequestError, match=words) as refused:
        await create(client, expires_at=wanted)
    assert refused.value.param == "expires_at"


async def test_only_keys_of_simulators_open_it(simulator):
    async with sdk(simulator, key="sk_live_" + "x" * 24) as client:
        with pytest.raises(stripe.AuthenticationError) as refused:
            await create(client)
    assert "sk_live_" not in str(refused.value)
    url = f"{simulator.url}/v1/events"
    assert see(url).status_code == 401
    assert see(url, auth=(simulator.key, "")).status_code == 200
    assert see(url, auth=("sk_test_x", "")).status_code == 401
    assert see(f"{simulator.url}/_control/ledger").status_code == 401


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"mode=\xff", {}, 400, "not UTF-8"),
        (b"mode=%ff", {}, 400, "cannot be decoded"),
        (b"mode[[=payment", {}, 400, "Invalid parameter name"),
        (b"mode" + b"[a]" * 9 + b"=payment", {}, 400, "Invalid parameter name"),
        (b"mode=payment&mode[a]=b", {}, 400, "both a value and an object"),
        (b"mode=payment", {"Idempotency-Key": "k" * 256}, 400, "at most 255"),
        (b"mode=payment", {"Authorization": "Basic ???"}, 401, "did not provide an API key"),
        (b"a=" + b"b" * 300_000, {}, 413, "Too Large"),
    ],
)
def test_odd_requests_are_refused_in_stripes_form(simulator, content, headers, status, words):
    headers = {"Authorization": f"Bearer {simulator.key}", **headers}
    answer = simulator.http.post(f"{simulator.url}/v1/checkout/sessions", content=content, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


async def test_one_session_has_one_currency(client):
    items = [
        {"price_data": {"currency": currency, "unit_amount": 900, "product_data": {"name": "Walk"}}, "quantity": 1}
        for currency in ("eur", "usd")
    ]
    with pytest.raises(stripe.InvalidRequestError, match="same currency"):
        await create(client, line_items=items)


async def test_what_is_not_there_or_not_simulated_is_a_404(simulator, client):
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.checkout.sessions.retrieve_async("cs_test_none")
    assert (refused.value.http_status, refused.value.code) == (404, "resource_missing")
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL") as refused:
        await client.v1.customers.create_async({"name": "Ada"})
    assert refused.value.http_status == 404


async def test_ids_are_expanded_on_request(simulator, client):
    session = await create(client, payment_intent_data={"metadata": {"booking_id": "b1"}})
    simulator.pay(session.id)
    wanted = ["payment_intent.latest_charge", "line_items"]
    shown = await client.v1.checkout.sessions.retrieve_async(session.id, {"expand": wanted})
    assert shown.payment_intent.metadata["booking_id"] == "b1"
    assert shown.payment_intent.latest_charge.amount == 2500
    assert shown.line_items.data[0].quantity == 2
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        await client.v1.checkout.sessions.retrieve_async(session.id, {"expand": ["weather"]})


# -- paying -----------------------------------------------------------------------------------------------------------


async def test_a_payment_is_told_by_a_signed_event(simulator, client, receiver):
    session = await create(client, metadata={"booking_id": "b1"})
    simulator.pay(session.id, name="Ada", email="ada@example.com", phone="+49 30 1")
    eventually(lambda: any(session.id.encode() in got.body for got in receiver.received), "the webhook")
    [got] = [got for got in receiver.received if session.id.encode() in got.body]
    event = client.construct_event(got.body, got.signature, WEBHOOK_SECRET, tolerance=300)
    assert (event.type, event.livemode, event.api_version) == (COMPLETED, False, API_VERSION)
    told = event.data.object
    assert (told.status, told.payment_status, told.url) == ("complete", "paid", None)
    assert told.customer_details.to_dict() == {"name": "Ada", "email": "ada@example.com", "phone": "+49 30 1"}
    assert told.metadata["booking_id"] == "b1"
    for body, secret in ((got.body, "whsec_another"), (got.body + b" ", WEBHOOK_SECRET)):
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.WebhookSignature.verify_header(body, got.signature, secret, tolerance=300)
    payment = await client.v1.payment_intents.retrieve_async(told.payment_intent)
    assert (payment.status, payment.amount_received) == ("succeeded", 2500)
    found = await client.v1.checkout.sessions.list_async({"payment_intent": payment.id})
    assert [one.id for one in found.data] == [session.id]


def test_the_version_is_that_of_the_sdk():
    assert stripe.api_version == API_VERSION


@pytest.mark.parametrize(("succeed", "ended", "status"), [(True, "succeeded", "paid"), (False, "failed", "unpaid")])
async def test_a_delayed_method_completes_unpaid_and_ends_later(simulator, client, succeed, ended, status):
    session = await create(client)
    assert simulator.pay(session.id, "delayed")["payment_status"] == "unpaid"
    [completed] = of_session(simulator, session.id, COMPLETED)
    assert (completed["object"]["status"], completed["object"]["payment_status"]) == ("complete", "unpaid")
    assert simulator.settle(session.id, succeed=succeed)["payment_status"] == status
    [event] = of_session(simulator, session.id, f"checkout.session.async_payment_{ended}")
    assert event["object"]["payment_status"] == status
    # The event before stays as it was told.
    [again] = of_session(simulator, session.id, COMPLETED)
    assert again["object"] == completed["object"]
    kept = {one["id"]: one["kept"] for one in simulator.ledger()["payments"]}
    assert kept[event["object"]["payment_intent"]] == (2500 if succeed else 0)


async def test_a_session_of_cards_takes_no_delayed_method(simulator, client):
    session = await create(client, payment_method_types=["card"])
    assert refused_control(simulator, f"sessions/{session.id}/pay", {"method": "delayed"}) == 400
    assert simulator.session(session.id)["status"] == "open"


async def test_nothing_to_pay_needs_no_payment(simulator, client):
    session = await create(client, amount=0)
    told = simulator.pay(session.id)
    assert (told["payment_status"], told["payment_intent"]) == ("no_payment_required", None)


def refused_control(simulator: Simulator, path: str, body: Any) -> int:
    headers = {"Authorization": f"Bearer {simulator.key}"}
    return httpx.post(f"{simulator.url}/_control/{path}", json=body, headers=headers).status_code


async def test_a_session_of_an_older_system_has_what_it_was_given(simulator, client):
    made = simulator.older_session(metadata={"slot_id": "42"}, amount_total=1000)
    assert (await client.v1.checkout.sessions.retrieve_async(made["id"])).metadata.to_dict() == {"slot_id": "42"}
    simulator.pay(made["id"])
    [event] = of_session(simulator, made["id"], COMPLETED)
    assert event["object"]["client_reference_id"] is None


# -- expiry -----------------------------------------------------------------------------------------------------------


async def test_an_expired_session_cannot_be_paid(simulator, client):
    session = await create(client)
    ended = await client.v1.checkout.sessions.expire_async(session.id)
    assert (ended.status, ended.url) == ("expired", None)
    assert len(of_session(simulator, session.id, EXPIRED)) == 1
    assert refused_control(simulator, f"sessions/{session.id}/pay", {}) == 400
    assert of_session(simulator, session.id, COMPLETED) == []


async def test_a_paid_session_cannot_be_expired(simulator, client):
    session = await create(client)
    simulator.pay(session.id)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await client.v1.checkout.sessions.expire_async(session.id)
    assert refused.value.http_status == 400
    assert 'Only Checkout Sessions with a status in ["open"] can be expired.' in str(refused.value)
    assert simulator.session(session.id)["payment_status"] == "paid"


async def test_of_paying_and_expiring_one_wins(simulator, client):
    async def rivals(http: httpx.AsyncClient, session_id: str) -> tuple[bool, bool]:
        control = f"{simulator.url}/_control/sessions/{session_id}/pay"
        paying, expiring = await asyncio.gather(
            http.post(control, json={}, headers={"Authorization": f"Bearer {simulator.key}"}),
            http.post(f"{simulator.url}/v1/checkout/sessions/{session_id}/expire", auth=(simulator.key, "")),
        )
        return paying.status_code == 200, expiring.status_code == 200

    ids = [(await create(client)).id for _ in range(10)]
    async with httpx.AsyncClient(timeout=CLIENT_SECONDS) as http:
        for session_id, (paid, expired) in zip(
            ids, await asyncio.gather(*(rivals(http, session_id) for session_id in ids)), strict=True
        ):
            assert paid != expired
            told = len(of_session(simulator, session_id, COMPLETED)), len(of_session(simulator, session_id, EXPIRED))
            assert told == (int(paid), int(expired))


async def test_a_session_expires_when_its_time_comes_by_the_clock(simulator, client):
    session = await create(client, expires_at=int(time.time()) + 3600)
    simulator.clock(3500)
    assert simulator.session(session.id)["status"] == "open"
    simulator.clock(3700)
    assert simulator.session(session.id)["status"] == "expired"
    assert len(of_session(simulator, session.id, EXPIRED)) == 1


async def test_a_session_expires_though_nobody_asks(simulator, receiver):
    made = simulator.older_session(life_seconds=1)
    eventually(lambda: any(made["id"].encode() in got.body for got in receiver.received), "its expiry to be told")


# -- idempotency ------------------------------------------------------------------------------------------------------


async def test_a_repeated_request_gets_the_first_answer(simulator, client):
    options = key()
    first = await create(client, options)
    again = await create(client, options)
    assert again.to_dict() == first.to_dict()
    assert "idempotent-replayed" not in first.last_response.headers
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    # Also when the thing has changed since: it is an answer, not a look.
    simulator.pay(first.id)
    assert (await create(client, options)).status == "open"
    use = simulator.ledger()["idempotency_keys"][options["idempotency_key"]]
    assert use == {"operation": "sessions.create", "requests": 3, "executions": 1}


async def test_a_key_belongs_to_one_request(client):
    options = key()
    await create(client, options)
    with pytest.raises(stripe.IdempotencyError, match="same parameters") as refused:
        await create(client, options, quantity=3)
    assert refused.value.http_status == 400


async def test_a_key_is_kept_for_a_day(simulator, client):
    options = key()
    first = await create(client, options)
    simulator.clock(24 * 3600 - 60)
    assert (await create(client, options)).id == first.id
    simulator.clock(24 * 3600 + 60)
    assert (await create(client, options)).id != first.id


async def test_what_was_refused_before_execution_is_not_kept(simulator, client):
    options = key()
    async with sdk(simulator, key="sk_test_no") as stranger:
        with pytest.raises(stripe.AuthenticationError):
            await create(stranger, options)
    with pytest.raises(stripe.InvalidRequestError):
        await create(client, options, success_url="nowhere")
    assert (await create(client, options)).status == "open"


async def test_a_refusal_of_an_execution_is_kept(simulator, client):
    session = await create(client)
    simulator.pay(session.id)
    options = key()
    for replayed in (None, "true"):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await client.v1.checkout.sessions.expire_async(session.id, {}, options)
        assert refused.value.headers.get("idempotent-replayed") == replayed


async def test_a_500_is_kept_and_came_of_nothing(simulator, client):
    options = key()
    simulator.fault("sessions.create", "500")
    before = len(simulator.ledger()["sessions"])
    for replayed in (None, "true"):
        with pytest.raises(stripe.APIError) as failed:
            await create(client, options)
        assert failed.value.http_status == 500
        assert failed.value.headers.get("idempotent-replayed") == replayed
    assert len(simulator.ledger()["sessions"]) == before
    assert (await create(client, key())).status == "open"


async def test_a_500_may_hide_a_session(simulator, client):
    options, reference = key(), str(uuid.uuid4())
    simulator.fault("sessions.create", "500_after")
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            await create(client, options, client_reference_id=reference)
    listed = await client.v1.checkout.sessions.list_async({"limit": 100})
    assert [one.status for one in listed.data if one.client_reference_id == reference] == ["open"]


async def test_a_lost_reply_is_found_again_with_its_key(simulator, client):
    options, reference = key(), str(uuid.uuid4())
    simulator.fault("sessions.create", "reply_lost")
    with pytest.raises(stripe.APIConnectionError):
        await create(client, options, client_reference_id=reference)
    [hidden] = [one for one in simulator.ledger()["sessions"] if one["client_reference_id"] == reference]
    found = await create(client, options, client_reference_id=reference)
    assert found.id == hidden["id"]
    assert found.last_response.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("fault", ["reply_lost", "reset_before", "503"])
async def test_the_sdk_repeats_by_itself_and_makes_one_session(simulator, fault):
    reference = str(uuid.uuid4())
    simulator.fault("sessions.create", fault)
    async with sdk(simulator, retries=2) as client:
        session = await create(client, client_reference_id=reference)
    made = [one["id"] for one in simulator.ledger()["sessions"] if one["client_reference_id"] == reference]
    assert made == [session.id]


async def test_the_same_key_is_refused_while_the_first_request_runs(simulator, client):
    options = key()
    simulator.fault("sessions.create", "timeout", seconds=60)
    first = asyncio.create_task(create(client, options))
    while options["idempotency_key"] not in await asyncio.to_thread(lambda: simulator.ledger()["idempotency_keys"]):
        assert not first.done()
    with pytest.raises(stripe.APIError) as refused:
        await create(client, options)
    assert (refused.value.http_status, refused.value.json_body["error"]["code"]) == (409, "idempotency_key_in_use")
    simulator.no_faults()
    session = await first
    assert (await create(client, options)).id == session.id


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [
        ("429", stripe.RateLimitError, 429),
        ("503", stripe.APIError, 503),
        ("400", stripe.InvalidRequestError, 400),
        ("402", stripe.CardError, 402),
        ("500", stripe.APIError, 500),
        ("reset_before", stripe.APIConnectionError, None),
    ],
)
async def test_a_fault_meets_so_many_requests_and_does_nothing(simulator, client, fault, error, status):
    before = len(simulator.ledger()["sessions"])
    simulator.fault("sessions.create", fault, times=2)
    for _ in range(2):
        with pytest.raises(error) as met:
            await create(client)
        assert met.value.http_status == status
    assert len(simulator.ledger()["sessions"]) == before
    assert (await create(client)).status == "open"


async def test_a_request_meets_one_fault_at_most(simulator, client):
    simulator.fault("sessions.create", "timeout", seconds=0.01)
    simulator.fault("sessions.create", "500")
    assert (await create(client)).status == "open"
    with pytest.raises(stripe.APIError):
        await create(client)


async def test_faults_of_one_operation_leave_the_others_alone(simulator, client):
    session = await create(client)
    simulator.fault("sessions.expire", "500")
    assert (await client.v1.checkout.sessions.retrieve_async(session.id)).status == "open"
    with pytest.raises(stripe.APIError):
        await client.v1.checkout.sessions.expire_async(session.id)
    assert simulator.session(session.id)["status"] == "open"


@pytest.mark.parametrize("fault", ["timeout", "late_reply"])
async def test_a_slow_answer_outlasts_the_client_and_still_happens(simulator, fault):
    options, reference = key(), str(uuid.uuid4())
    simulator.fault("sessions.create", fault, seconds=60)
    async with sdk(simulator, patience=0.3) as hasty:
        with pytest.raises(stripe.APIConnectionError):
            await create(hasty, options, client_reference_id=reference)

    def made() -> int:
        simulator.no_faults()  # again and again: the pause may not have begun yet
        return sum(one["client_reference_id"] == reference for one in simulator.ledger()["sessions"])

    eventually(lambda: made() == 1, "the session")
    async with sdk(simulator) as client:
        again = await create(client, options, client_reference_id=reference)
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert made() == 1


async def test_unknown_faults_and_operations_are_refused(simulator):
    for wrong in (
        {"operation": "sessions.crate", "fault": "500"},
        {"operation": "sessions.create", "fault": "418"},
        {"operation": "sessions.create", "fault": "500", "often": 2},
    ):
        assert refused_control(simulator, "faults", wrong) == 400


# -- refunds ----------------------------------------------------------------------------------------------------------


async def test_refunds_end_where_the_charge_ends(simulator, client):
    session = await create(client, payment_intent_data={"metadata": {"booking_id": "b1"}})
    payment_intent = simulator.pay(session.id)["payment_intent"]

    async def refund(**more: Any) -> stripe.Refund:
        return await client.v1.refunds.create_async({"payment_intent": payment_intent, **more})

    assert (await refund(amount=1000, reason="requested_by_customer")).status == "succeeded"
    with pytest.raises(stripe.InvalidRequestError, match="is greater than unrefunded amount on charge") as refused:
        await refund(amount=1501)
    assert (refused.value.http_status, refused.value.code, refused.value.param) == (400, None, "amount")
    assert (await refund()).amount == 1500
    for more in ({}, {"amount": 1}):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await refund(**more)
        assert (refused.value.http_status, refused.value.code) == (400, "charge_already_refunded")
    listed = await client.v1.refunds.list_async({"payment_intent": payment_intent})
    assert [one.amount for one in listed.data] == [1500, 1000]
    charges = [one["object"] for one in simulator.events("charge.refunded")]
    told = [one for one in charges if one["payment_intent"] == payment_intent]
    assert [(one["amount_refunded"], one["refunded"]) for one in told] == [(1000, False), (2500, True)]
    assert {one["metadata"]["booking_id"] for one in told} == {"b1"}
    [payment] = [one for one in simulator.ledger()["payments"] if one["id"] == payment_intent]
    assert (payment["refunded"], payment["kept"]) == (2500, 0)


async def test_a_refund_may_name_the_charge(simulator, client):
    payment = await client.v1.payment_intents.retrieve_async(await paid(simulator, client))
    refund = await client.v1.refunds.create_async({"charge": payment.latest_charge, "expand": ["payment_intent"]})
    assert refund.payment_intent.id == payment.id
    assert (await client.v1.refunds.retrieve_async(refund.id)).amount == 2500
    with pytest.raises(stripe.InvalidRequestError, match="No such charge"):
        await client.v1.refunds.create_async({"charge": "ch_none"})
    with pytest.raises(stripe.InvalidRequestError, match="payment_intent or charge"):
        await client.v1.refunds.create_async({"amount": 100})
    with pytest.raises(stripe.InvalidRequestError, match="No such refund"):
        await client.v1.refunds.retrieve_async("re_none")


async def test_a_lost_refund_is_found_again_with_its_key(simulator, client):
    payment_intent = await paid(simulator, client)
    options = {"idempotency_key": f"refund:{payment_intent}"}
    simulator.fault("refunds.create", "reply_lost")
    with pytest.raises(stripe.APIConnectionError):
        await client.v1.refunds.create_async({"payment_intent": payment_intent}, options)
    refund = await client.v1.refunds.create_async({"payment_intent": payment_intent}, options)
    listed = await client.v1.refunds.list_async({"payment_intent": payment_intent})
    assert [one.id for one in listed.data] == [refund.id]


async def test_what_was_not_paid_is_not_refunded(simulator, client):
    session = await create(client)
    payment_intent = simulator.pay(session.id, "delayed")["payment_intent"]
    with pytest.raises(stripe.InvalidRequestError, match="does not have a successful charge to refund"):
        await client.v1.refunds.create_async({"payment_intent": payment_intent})
    with pytest.raises(stripe.InvalidRequestError, match="No such payment_intent"):
        await client.v1.refunds.create_async({"payment_intent": "pi_none"})


async def test_a_refund_of_the_dashboard_is_told_by_its_event(simulator, client):
    payment_intent = await paid(simulator, client)
    simulator.dashboard_refund(payment_intent)
    told = [one["object"] for one in simulator.events("charge.refunded")]
    assert [one["refunded"] for one in told if one["payment_intent"] == payment_intent] == [True]


# -- webhooks ---------------------------------------------------------------------------------------------------------


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


async def test_lists_are_read_page_by_page_newest_first(simulator, client):
    for _ in range(5):
        await paid(simulator, client)
    page = await client.v1.events.list_async({"limit": 2, "type": COMPLETED})
    assert (len(page.data), page.has_more) == (2, True)
    all_of_them = [event.id async for event in page.auto_paging_iter()]
    assert all_of_them == [event["id"] for event in reversed(simulator.events(COMPLETED))]
    newest = await client.v1.events.list_async({"ending_before": all_of_them[1], "type": COMPLETED})
    assert [event.id for event in newest.data] == all_of_them[:1]
    assert (await client.v1.events.retrieve_async(all_of_them[0])).id == all_of_them[0]


async def test_lists_can_be_cut_by_time(simulator, client):
    simulator.clock(3600)
    payment_intent = await paid(simulator, client)
    simulator.dashboard_refund(payment_intent)
    since: Any = {"created": {"gte": int(time.time()) + 3000}}
    before: Any = {"created": {"lt": int(time.time()) + 3000}}
    for listing in (client.v1.events, client.v1.refunds, client.v1.checkout.sessions):
        late = {one.id for one in (await listing.list_async({**since, "limit": 100})).data}
        early = {one.id for one in (await listing.list_async({**before, "limit": 100})).data}
        assert late
        assert not late & early
    with pytest.raises(stripe.InvalidRequestError, match="No such"):
        await client.v1.events.list_async({"starting_after": "evt_none"})


async def test_nobody_can_be_told_without_an_address(simulator):
    with running_simulator(None) as alone:
        session_id = alone.older_session()["id"]
        alone.pay(session_id)
        assert [event["delivery"] for event in alone.events()] == ["none"]
        assert refused_control(alone, "deliver", {}) == 400
    assert refused_control(simulator, "deliver", {"event_ids": ["evt_none"]}) == 404


async def test_a_receiver_that_is_not_there_is_an_attempt_without_a_status():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    with running_simulator(nobody) as simulator:
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


# -- pages ------------------------------------------------------------------------------------------------------------


class Browser:
    """A person with the pay page: reads it, and sends its form with one of its buttons."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answer = see(url)
        self.text = html.unescape(self.answer.text)

    @property
    def buttons(self) -> list[str]:
        return re.findall(r'name="action" value="(\w+)"', self.text)

    def press(self, action: str, **fields: str) -> str:
        """Returns where the browser is sent."""
        assert action in self.buttons
        return press(self.url, action, **fields)


def press(url: str, action: str, **fields: str) -> str:
    sent = httpx.post(url, data={"action": action, **fields}, verify=False)  # noqa: S501 not https
    assert sent.status_code == 303, sent.text
    return sent.headers["location"]


async def test_a_person_pays_and_is_sent_back_to_the_shop(simulator, client):
    session = await create(client, customer_email="ada@example.com")
    page = Browser(session.url)
    assert "No money moves" in page.text
    assert "City walk" in page.text
    assert "25.00 EUR" in page.text
    assert page.buttons == ["pay", "later", "decline", "abandon"]
    done = f"https://shop.example/done?session={session.id}"
    assert page.press("pay", name="Ada", email="ada@example.com") == done
    assert simulator.session(session.id)["customer_details"]["name"] == "Ada"
    # A second click, in a page that is still open, pays nothing more.
    assert press(page.url, "pay", email="ada@example.com") == done
    assert len([one for one in simulator.ledger()["payments"] if one["session"] == session.id]) == 1
    assert Browser(page.url).buttons == []


async def test_who_pays_is_whom_the_session_was_made_for(simulator, client):
    session = await create(client, customer_email="ada@example.com")
    assert "readonly" in Browser(session.url).text
    press(session.url, "pay", email="another@example.com")
    assert simulator.session(session.id)["customer_details"]["email"] == "ada@example.com"


async def test_a_declined_card_leaves_the_session_open(simulator, client):
    session = await create(client)
    page = Browser(session.url)
    declined = Browser(simulator.url + page.press("decline"))
    assert 'role="alert"' in declined.text
    assert "pay" in declined.buttons
    assert simulator.session(session.id)["status"] == "open"


async def test_who_leaves_goes_to_the_cancel_url(simulator, client):
    session = await create(client)
    assert Browser(session.url).press("abandon") == "https://shop.example/cancelled"
    assert simulator.session(session.id)["status"] == "open"
    without = await create(client, cancel_url="")
    assert Browser(without.url).buttons == ["pay", "later", "decline"]


@pytest.mark.parametrize(("action", "status"), [("arrive", "paid"), ("fail", "unpaid")])
async def test_a_person_pays_later_and_chooses_whether_the_money_comes(simulator, client, action, status):
    session = await create(client)
    Browser(session.url).press("later", email="ada@example.com")
    page = Browser(session.url)
    assert page.buttons == ["arrive", "fail"]
    page.press(action)
    assert simulator.session(session.id)["payment_status"] == status


async def test_the_page_of_an_ended_session_sells_nothing(simulator, client):
    session = await create(client)
    page = Browser(session.url)
    await client.v1.checkout.sessions.expire_async(session.id)
    assert page.press("pay", email="ada@example.com") == f"/pay/{session.id}"
    assert "expired" in Browser(session.url).text
    assert simulator.session(session.id)["payment_intent"] is None
    assert see(f"{simulator.url}/pay/cs_test_none").status_code == 404


async def test_the_page_runs_and_loads_nothing_of_others(simulator, client):
    price = {"currency": "jpy", "unit_amount": 1234, "product_data": {"name": "<script>alert(1)</script>"}}
    session = await create(client, line_items=[{"price_data": price, "quantity": 1}])
    answer = see(session.url)
    assert "<script" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "1,234 JPY" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    # Browsers hold the redirect after a form against this, too.
    assert "form-action 'self' https://shop.example;" in policy
    assert re.findall(r'(?:src|href)="([^"]+)"', answer.text) == ["/pay.css", "data:,"]
    assert "color-scheme: light dark" in see(f"{simulator.url}/pay.css").text


def test_only_its_own_names_lead_to_it(simulator):
    for host, status in (
        ("localhost", 200),
        ("127.0.0.1:80", 200),
        ("shop.example", 421),
        ("[", 421),
        ("127.0.0.1.example", 421),
    ):
        assert simulator.http.get(f"{simulator.url}/", headers={"Host": host}).status_code == status


async def test_every_answer_says_that_it_is_simulated(simulator, client):
    session = await create(client)
    assert "no money moves" in session.last_response.headers["x-simulator"]
    for path in ("/", "/livez", "/pay/none", "/v1/none", f"/pay/{session.id}", "/_control/ledger"):
        assert "no money moves" in see(simulator.url + path).headers["x-simulator"]
    assert "no money moves" in simulator.ledger()["simulator"]


# -- the process ------------------------------------------------------------------------------------------------------


def test_a_restart_knows_what_was_before(tmp_path):
    state = tmp_path / "stripe.json"
    options = {"HOLDFAST_SIMULATOR_STATE": str(state)}
    request = {"mode": "payment", "success_url": "https://shop.example/"}
    request |= {
        f"line_items[0]{name}": value
        for name, value in {
            "[quantity]": "1",
            "[price_data][currency]": "eur",
            "[price_data][unit_amount]": "900",
            "[price_data][product_data][name]": "Walk",
        }.items()
    }

    def ask(simulator: Simulator) -> httpx.Response:
        return httpx.post(
            f"{simulator.url}/v1/checkout/sessions",
            auth=(simulator.key, ""),
            data=request,
            headers={"Idempotency-Key": "once"},
        )

    with running_receiver() as receiver:
        receiver.answers[:] = [500] * 100
        with running_simulator(receiver.url, **options) as simulator:
            simulator.clock(60)
            first = ask(simulator).json()
            assert simulator.pay(first["id"])["payment_status"] == "paid"
            receiver.wait_for(1)
        receiver.answers.clear()
        receiver.received.clear()
        with running_simulator(receiver.url, **options) as simulator:
            # What was not received goes on.
            receiver.wait_for(1)
            assert simulator.session(first["id"])["payment_status"] == "paid"
            assert [one["kept"] for one in simulator.ledger()["payments"]] == [900]
            again = ask(simulator)
            assert (again.json()["id"], again.headers["idempotent-replayed"]) == (first["id"], "true")
    assert state.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == [state]


def test_a_broken_state_is_no_fresh_start(tmp_path):
    state = tmp_path / "stripe.json"
    state.write_text("{")
    done = start_by_hand("--state", str(state))
    assert done.returncode == 2
    assert "The state of the simulator cannot be read" in done.stderr
    assert state.read_text() == "{"


def start_by_hand(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Start the command where it cannot run for long: with an option it refuses."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "STRIPE_"))}
    command = [str(HOLDFAST), "simulator", "--port", "1", *arguments]
    return subprocess.run(
        command,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_production_has_no_simulator():
    done = start_by_hand(HOLDFAST_ENV="production")
    assert done.returncode == 2
    assert "not for production" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reader, writer = os.pipe()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "app.simulator", str(listener.fileno()), str(reader)],
            env={**os.environ, "HOLDFAST_ENV": "production"},
            cwd=ROOT,
            pass_fds=(listener.fileno(), reader),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        os.close(reader)
        os.close(writer)
    assert done.returncode == 2
    assert "not for production" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "loopback"),  # noqa: S104 it is refused
        (["--webhook-url", "http://127.0.0.1:1/"], "STRIPE_WEBHOOK_SECRET"),
        (["--webhook-url", "http://127.0.0.1:1/", "--webhook-secret", "short"], "STRIPE_WEBHOOK_SECRET"),
    ],
)
def test_what_would_not_be_safe_is_refused(arguments, words):
    done = start_by_hand(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_the_command_serves_and_stops(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(HOLDFAST), "simulator", "--port", str(port), "--state", str(tmp_path / "state.json")]
    environ = {**os.environ, "HOLDFAST_ENV": "test"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        eventually(lambda: answers(port), "the command to serve", seconds=START_SECONDS)
        assert "no money moves" in see(f"http://127.0.0.1:{port}/livez").text
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "no money moves" in said
    assert f"http://127.0.0.1:{port}" in said


def answers(port: int) -> bool:
    try:
        return see(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_it_ends_with_its_parent():
    with running_simulator(None) as simulator:
        simulator.lifeline.close()
        assert simulator.process.wait(timeout=START_SECONDS) == -signal.SIGKILL


def test_its_mailbox_takes_and_shows_mail(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as smtp:
        host, port = smtp.getsockname()
        with running_simulator(None, smtp=smtp, HOLDFAST_SIMULATOR_MAIL_DIR=str(tmp_path / "mail")) as simulator:
            with smtplib.SMTP(host, port, timeout=CLIENT_SECONDS) as post:
                letter = "Subject: Your booking\nFrom: a@shop.example\nTo: b@example.com\n\nHello"
                post.sendmail("a@shop.example", ["b@example.com"], letter)
            assert "Your booking" in see(f"{simulator.url}/mailbox").text
    with running_simulator(None) as simulator:
        assert see(f"{simulator.url}/mailbox").status_code == 404
