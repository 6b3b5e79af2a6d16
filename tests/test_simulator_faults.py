"""What the Stripe simulator does when something goes wrong, as the official SDK meets it: each fault is one that Stripe
may have, and a request that is repeated with its key happens once.
"""

import asyncio
import uuid
from typing import Any

import pytest
import stripe

from tests.service import eventually
from tests.stripe_client import client, create, running, sdk, simulator
from tests.stripe_simulator import SDK_WARNING, refused_control

__all__ = ["client", "running", "simulator"]

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]


def key() -> Any:
    return {"idempotency_key": f"test-{uuid.uuid4()}"}


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
