"""Orders of an older system, whose sessions have reserved nothing: each takes its places once or is refunded (S0-8).

Money that is for no slot of ours at all is told once, and left alone. In the test's own process, as in
`test_payments.py`.
"""

import asyncio
from uuid import uuid4

import pytest

from app import settlement
from tests.shop import PRICE
from tests.stripe_simulator import SDK_WARNING
from tests.till import CONFIRMED, older_order, one_till, stripe, till

__all__ = ["one_till", "stripe", "till"]

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]


async def test_s0_8_an_older_order_takes_its_places_once(till):
    slot_id = till.slot(5)
    session_id = older_order(till, slot_id, 2)
    news = [*till.told(session_id), till.forged("async_payment_succeeded", session_id)]
    outcomes = await till.receive(*news * 5)
    assert outcomes == ["legacy confirmed", "confirmed"] + ["done before"] * 8
    assert till.state(slot_id)["bookings"] == [(2, "confirmed", "grace@example.com")]
    assert till.state(slot_id)["free"] == [(3,)]
    [completed] = till.happened(slot_id, "checkout.completed")
    assert (completed["slots_reserved"], completed["decrement"]) == (False, "legacy")


async def test_s0_8_an_older_order_is_booked_though_its_customer_is_hardly_known(till):
    slot_id = till.slot()
    session_id = older_order(till, slot_id)
    nobody = {"name": "", "email": "grace@example.com", "phone": ""}
    assert await till.receive(till.forged("completed", session_id, customer_details=nobody)) == ["legacy confirmed"]
    assert till.state(slot_id)["bookings"] == [(1, "confirmed", "grace@example.com")]


async def test_s0_8_an_older_order_without_room_is_refunded_once(till):
    slot_id = till.slot(1)
    session_id = older_order(till, slot_id, 2)
    news = [*till.told(session_id), till.forged("async_payment_succeeded", session_id)]
    assert await till.receive(*news * 5) == ["legacy refund_due", "refund_due"] + ["done before"] * 8
    [(payment_id,)] = till.query("SELECT id FROM payments WHERE session_id = %s", session_id)
    await asyncio.gather(*(settlement.refund(till.engine, payment_id) for _ in range(5)))
    assert (till.statuses(slot_id), till.refunds(session_id)) == (([], [("paid", "done")]), [2 * PRICE])
    assert till.state(slot_id)["free"] == [(1,)]


async def test_older_orders_racing_for_one_place_are_booked_or_refunded(till):
    slot_id = till.slot(1)
    sessions = [older_order(till, slot_id) for _ in range(4)]
    news = [event for session_id in sessions for event in till.told(session_id)]
    await asyncio.gather(*(till.receive(event) for event in news * 5))
    bookings, payments = till.statuses(slot_id)
    assert (bookings, sorted(payments)) == (["confirmed"], [("paid", "due")] * 3 + [("paid", "none")])
    for (payment_id,) in till.query("SELECT id FROM payments WHERE slot_id = %s AND refund_status = 'due'", slot_id):
        assert await settlement.refund(till.engine, payment_id) == "refunded"
    assert sorted(len(till.refunds(session_id)) for session_id in sessions) == [0, 1, 1, 1]


@pytest.mark.parametrize(
    "metadata",
    [
        {"slot_id": str(uuid4()), "quantity": "1"},
        {"slot_id": "nonsense"},
        {"slot_id": str(uuid4()), "quantity": "0"},
        {"slots_reserved": "true", "payment_id": str(uuid4())},
        {},
    ],
    ids=["unknown slot", "no slot", "no places", "somebody else's payment", "nothing"],
)
async def test_money_for_no_slot_of_ours_is_reported_once_and_left_alone(till, metadata):
    session_id = till.stripe.older_session(metadata=metadata, payment_metadata={"nobodys": "yes"})["id"]
    till.stripe.pay(session_id)
    assert await till.receive(*till.told(session_id) * 5) == ["orphaned"] + ["done before"] * 4
    told = till.query(
        "SELECT data FROM events WHERE type = 'payment.orphaned' AND data->>'session_id' = %s", session_id
    )
    assert (len(told), till.refunds(session_id)) == (1, [])


async def test_an_older_order_by_direct_debit_waits_for_the_money(till):
    slot_id = till.slot()
    metadata = {"slot_id": str(slot_id)}
    session_id = till.stripe.older_session(metadata=metadata, amount_total=PRICE)["id"]
    till.stripe.pay(session_id, "delayed", name="Grace Hopper", email="grace@example.com")
    assert await till.receive(*till.told(session_id)) == ["not ours"]
    till.stripe.settle(session_id, succeed=True)
    assert await till.receive(*till.told(session_id)) == ["done before", "legacy confirmed"]
    assert till.statuses(slot_id) == CONFIRMED
