"""The Stripe simulator as the official SDK sees it: sessions, payments, refunds, and lists of them.

Other modules have its faults, the webhooks it sends, the pages it shows, and its process.
"""

import asyncio
import re
import time
from typing import Any

import httpx
import pytest
import stripe

from app.simulator.objects import API_VERSION
from tests.service import eventually
from tests.stripe_client import COMPLETED, client, create, receiver, running, sdk, simulator
from tests.stripe_simulator import (
    CLIENT_SECONDS,
    SDK_WARNING,
    WEBHOOK_SECRET,
    Simulator,
    of_session,
    refused_control,
    see,
)

__all__ = ["client", "receiver", "running", "simulator"]

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]
EXPIRED = "checkout.session.expired"


async def paid(simulator: Simulator, client: stripe.StripeClient, **more: Any) -> str:
    """Create a session and pay it; returns the payment intent."""
    session = simulator.pay((await create(client, **more)).id)
    return str(session["payment_intent"])


# -- sessions ---------------------------------------------------------------------------------------------------------


async def test_a_session_has_the_fields_of_stripes(simulator, client):
    asked_at = int(time.time())
    session = await create(
        client,
        client_reference_id="booking-1",
        metadata={"booking_id": "b1", "7": "digits are no list", "empty": ""},
        payment_intent_data={"metadata": {"booking_id": "b1"}},
        customer_email="ada@example.com",
        payment_method_types=["card"],
        expires_at=asked_at + 3600,
    )
    assert session.id.startswith("cs_test_")
    assert (session.object, session.mode, session.livemode) == ("checkout.session", "payment", False)
    assert (session.status, session.payment_status, session.payment_intent) == ("open", "unpaid", None)
    assert (session.amount_total, session.currency, session.client_reference_id) == (2500, "eur", "booking-1")
    assert session.metadata.to_dict() == {"booking_id": "b1", "7": "digits are no list"}
    assert (session.customer_email, session.payment_method_types) == ("ada@example.com", ["card"])
    assert session.url == f"{simulator.url}/pay/{session.id}"
    assert session.expires_at == asked_at + 3600
    assert asked_at <= session.created <= time.time()  # a second may have passed on its way
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


# -- lists ------------------------------------------------------------------------------------------------------------


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
