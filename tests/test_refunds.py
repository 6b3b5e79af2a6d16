"""What is owed goes back exactly once: by policy, in Stripe's Dashboard or by hand, and when a refund comes to nothing.

A booking has ended when all its money went back, wherever it had moved to. In the test's own process, as in
`test_payments.py`.
"""

import asyncio
import itertools
import random
from uuid import UUID, uuid4

import psycopg
import pytest

from app import settlement
from app.checkout import Started
from app.errors import AlreadyResolved
from app.gateway import Refused, Session, Unclear
from app.reschedule import Wish, reschedule
from tests.shop import PRICE, event_of
from tests.stripe_simulator import SDK_WARNING
from tests.till import (
    ADA,
    CONFIRMED,
    CUSTOMER,
    OPERATOR,
    Till,
    confirmed,
    one_till,
    paid,
    several_times,
    stripe,
    till,
    try_to_pay,
)

__all__ = ["one_till", "stripe", "till"]

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]


# -- owed, and given back once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "refund_hours", "refund"),
    [
        (CUSTOMER, 0, "due"),
        (CUSTOMER, 23, "due"),
        (CUSTOMER, 25, "waived"),
        (OPERATOR, 25, "due"),
    ],
    ids=["always", "in time", "too late", "by the venue"],
)
async def test_a_paid_booking_that_is_cancelled_is_refunded_by_policy(till, by, refund_hours, refund):
    slot_id = till.slot(refund_hours=refund_hours)
    started = await confirmed(till, slot_id)
    for _ in range(2):
        assert (await till.cancel(started.booking.id, by)).status == "cancelled"
    assert till.statuses(slot_id) == (["cancelled"], [("paid", refund)])
    outcome = await settlement.refund(till.engine, till.payment_id(started))
    assert outcome == ("refunded" if refund == "due" else "nothing to do")
    assert till.refunds(started.session_id) == ([PRICE] if refund == "due" else [])
    assert len(till.happened(slot_id, "refund.due")) + len(till.happened(slot_id, "refund.waived")) == 1


@pytest.mark.parametrize("fault", ["reset_before", "429", "503", "500", "500_after", "reply_lost"])
async def test_a_refund_that_fails_is_tried_again_and_made_once(till, fault):
    slot_id = till.slot()
    started = await confirmed(till, slot_id)
    await till.cancel(started.booking.id)
    payment_id = till.payment_id(started)
    till.stripe.fault("refunds.create", fault, times=1 if fault.startswith("500") else 3)
    with pytest.raises(Unclear):
        await settlement.refund(till.engine, payment_id)
    assert till.statuses(slot_id) == (["cancelled"], [("paid", "due")])
    till.stripe.no_faults()
    assert await till.refund_due(payment_id) == "refunded"
    assert await settlement.refund(till.engine, payment_id) == "nothing to do"
    assert (till.statuses(slot_id)[1], till.refunds(started.session_id)) == ([("paid", "done")], [PRICE])
    assert len(till.happened(slot_id, "payment.refunded")) == 1


async def test_a_refund_that_stripe_refuses_is_still_owed(till):
    slot_id = till.slot()
    started = await confirmed(till, slot_id)
    await till.cancel(started.booking.id)
    till.stripe.fault("refunds.create", "400")
    with pytest.raises(Refused):
        await settlement.refund(till.engine, till.payment_id(started))
    assert till.statuses(slot_id)[1] == [("paid", "due")]
    assert await till.refund_due(till.payment_id(started)) == "refunded"
    assert till.refunds(started.session_id) == [PRICE]


async def test_a_refund_that_was_made_but_not_noted_is_noted_from_the_webhook_or_the_next_try(till):
    for noted_by in ("webhook", "try"):
        slot_id = till.slot()
        started = await confirmed(till, slot_id)
        await till.cancel(started.booking.id)
        payment_id = till.payment_id(started)
        payment = await till.engine.payments.payment(payment_id)
        await till.engine.gateway.refund(payment.payment_intent, f"of a worker that died: {payment_id}")
        if noted_by == "webhook":
            assert await till.receive(till.told(started.session_id)[-1]) == ["refunded"]
            assert await settlement.refund(till.engine, payment_id) == "nothing to do"
        else:
            assert await settlement.refund(till.engine, payment_id) == "refunded"
            assert await till.receive(till.told(started.session_id)[-1]) == ["already"]
        assert (till.statuses(slot_id)[1], till.refunds(started.session_id)) == ([("paid", "done")], [PRICE])


async def test_a_refund_that_several_operators_decide_at_once_is_owed_once(till):
    slot_id = till.slot()
    started = await paid(till, slot_id)
    await till.receive(*till.told(started.session_id))
    payment_id = till.payment_id(started)
    await asyncio.gather(*(till.engine.payments.owe_refund(payment_id, "by an operator") for _ in range(5)))
    assert len(till.happened(slot_id, "refund.due")) == 1
    assert await settlement.refund(till.engine, payment_id) == "refunded"
    await till.engine.payments.owe_refund(payment_id, "by an operator")
    assert till.statuses(slot_id) == (["cancelled"], [("paid", "done")])


async def test_a_refund_that_stays_owed_is_seen(till):
    slot_id = till.slot()
    started = await confirmed(till, slot_id)
    await till.cancel(started.booking.id)
    payment_id = till.payment_id(started)
    assert await till.engine.payments.mismatches() == 0
    till.query("UPDATE payments SET owed_at = owed_at - interval '2 hours' WHERE id = %s RETURNING 1", payment_id)
    assert await till.engine.payments.mismatches() == 1
    assert await settlement.refund(till.engine, payment_id) == "refunded"
    assert await till.engine.payments.mismatches() == 0


# -- given or claimed back at Stripe ----------------------------------------------------------------------------------


async def test_parts_refunded_in_the_dashboard_add_up_and_the_last_one_ends_the_booking(till):
    slot_id = till.slot()
    started = await confirmed(till, slot_id)
    intent = till.stripe.session(started.session_id)["payment_intent"]
    till.stripe.dashboard_refund(intent, 1000)
    till.stripe.dashboard_refund(intent, 500)
    _, first, second = till.told(started.session_id)
    assert await till.receive(second, first, second) == ["partly", "already", "done before"]
    assert till.statuses(slot_id) == CONFIRMED
    assert till.state(slot_id)["payments"][0][7] == 1500
    # What is left goes back when the venue cancels: neither more nor less.
    await till.cancel(started.booking.id)
    assert await settlement.refund(till.engine, till.payment_id(started)) == "refunded"
    assert (till.statuses(slot_id), till.refunds(started.session_id)) == (
        (["cancelled"], [("paid", "done")]),
        [1000, 500, 1000],
    )


async def test_a_whole_refund_in_the_dashboard_cancels_the_booking_and_frees_its_places(till):
    slot_id = till.slot(3)
    started = await confirmed(till, slot_id, 2)
    till.stripe.dashboard_refund(till.stripe.session(started.session_id)["payment_intent"])
    assert await till.receive(till.told(started.session_id)[-1]) == ["refunded"]
    assert till.statuses(slot_id) == (["cancelled"], [("paid", "done")])
    assert till.state(slot_id)["free"] == [(3,)]


async def test_a_refund_of_somebody_elses_money_is_not_ours(till):
    charge = {"id": "ch_other", "payment_intent": "pi_other", "amount_refunded": 100, "metadata": {}}
    assert await till.receive(event_of("charge.refunded", charge)) == ["not ours"]


async def test_a_dispute_is_told_to_operators_once_and_the_booking_stays(till):
    slot_id = till.slot()
    started = await confirmed(till, slot_id)
    intent = till.stripe.session(started.session_id)["payment_intent"]
    dispute = {"id": f"dp_{uuid4().hex}", "payment_intent": intent, "amount": PRICE, "reason": "fraudulent"}
    for expected in ("disputed", "disputed"):
        assert await till.receive(event_of("charge.dispute.created", dispute)) == [expected]
    [told] = till.happened(slot_id, "payment.disputed")
    assert (told["dispute_id"], told["disputed_amount"], told["reason"]) == (dispute["id"], PRICE, "fraudulent")
    assert till.statuses(slot_id) == CONFIRMED
    foreign = event_of("charge.dispute.created", {**dispute, "payment_intent": "pi_of_another_shop"})
    assert await till.receive(foreign) == ["not ours"]


# -- refunds that come to nothing -------------------------------------------------------------------------------------


async def refunded(till: Till, slot_id: UUID) -> tuple[Started, str]:
    """Pay, cancel and refund; returns the refund's id at Stripe, too."""
    started = await confirmed(till, slot_id)
    await till.cancel(started.booking.id)
    assert await settlement.refund(till.engine, till.payment_id(started)) == "refunded"
    [refund_id] = [
        id_ for (id_,) in till.query("SELECT id FROM refunds WHERE payment_id = %s", till.payment_id(started))
    ]
    return started, refund_id


@pytest.mark.parametrize("status", ["failed", "canceled"])
async def test_a_refund_that_fails_later_is_reported_once_and_made_again_when_an_operator_says_so(till, status):
    slot_id = till.slot()
    started, refund_id = await refunded(till, slot_id)
    payment_id = till.payment_id(started)
    till.stripe.fail_refund(refund_id, status)
    news = [event for event in till.told(started.session_id) if "refund" in event["type"]]
    outcomes = await till.receive(*several_times(news, random.Random(43)))
    assert (outcomes.count("failed"), set(outcomes)) == (1, {"failed", "already", "done before"})
    assert till.statuses(slot_id) == (["cancelled"], [("paid", "failed")])
    assert till.state(slot_id)["payments"][0][7] == 0
    [told] = till.happened(slot_id, "payment.refund_failed")
    assert (told["payment_id"], told["failed_amount"]) == (str(payment_id), PRICE)
    # It is seen until somebody acts, …
    assert till.query("SELECT payment_id, what FROM money_mismatches") == [(payment_id, "its refund failed")]
    assert await settlement.refund(till.engine, payment_id) == "nothing to do"
    # … and old news of the first refund do not spoil the second.
    await till.engine.payments.owe_refund(payment_id, "by an operator")
    again = [{**event, "id": f"{event['id']}_again"} for event in news]
    assert set(await till.receive(*again)) == {"already"}
    assert await settlement.refund(till.engine, payment_id) == "refunded"
    assert await till.receive(*({**event, "id": f"{event['id']}_late"} for event in news)) == ["already"] * len(news)
    assert till.statuses(slot_id)[1] == [("paid", "done")]


async def test_a_refund_that_fails_unheard_is_found_by_looking_once_a_day(till):
    slot_id = till.slot()
    started, refund_id = await refunded(till, slot_id)
    payment_id, recent = till.payment_id(started), till.engine.payments.recent_refunds
    till.stripe.fail_refund(refund_id)
    assert payment_id not in await recent()
    later = "UPDATE payments SET asked_at = asked_at - interval '25 hours' WHERE id = %s RETURNING 1"
    till.query(later, payment_id)
    assert payment_id in await recent()
    assert payment_id not in await recent()
    assert await settlement.look_at_refunds(till.engine, payment_id) == "failed"
    assert till.statuses(slot_id)[1] == [("paid", "failed")]
    await till.engine.payments.owe_refund(payment_id, "by an operator")
    assert await settlement.refund(till.engine, payment_id) == "refunded"
    # One that did arrive is left alone, and after some weeks not looked at any more.
    assert await settlement.look_at_refunds(till.engine, payment_id) == "already"
    till.query(
        "UPDATE payments SET refunded_at = refunded_at - interval '36 days' WHERE id = %s RETURNING 1", payment_id
    )
    till.query(later, payment_id)
    assert payment_id not in await recent()


async def test_every_order_of_a_failed_refunds_events_ends_in_one_state(till):
    states = []
    for order in itertools.permutations(range(4)):
        slot_id = till.slot()
        started = await paid(till, slot_id)
        intent = till.stripe.session(started.session_id)["payment_intent"]
        till.stripe.fail_refund(till.stripe.dashboard_refund(intent)["id"])
        news = till.told(started.session_id)
        assert [event["type"] for event in news[1:3]] == ["charge.refunded", "charge.refund.updated"]
        await till.receive(*several_times([news[number] for number in order], random.Random(47)))
        states.append(till.state(slot_id))
    # The venue's refund came to nothing, and who paid is still booked.
    assert states[0]["bookings"] == [(1, "confirmed", ADA.email)]
    assert dict(states[0]["events"])["payment.refund_failed"] == 1
    assert [state for state in states if state != states[0]] == []


# -- by hand ----------------------------------------------------------------------------------------------------------


async def test_what_an_operator_gave_back_by_hand_is_noted_and_stripe_not_asked(till):
    slot_id = till.slot()
    started, refund_id = await refunded(till, slot_id)
    payment_id = till.payment_id(started)
    till.stripe.fail_refund(refund_id)
    await till.receive(till.told(started.session_id)[-1])
    await settlement.note_by_hand(till.engine, payment_id)
    assert till.statuses(slot_id)[1] == [("paid", "done")]
    assert till.query("SELECT what FROM money_mismatches") == []
    assert await settlement.refund(till.engine, payment_id) == "nothing to do"
    assert till.refunds(started.session_id) == [PRICE]  # the one that failed
    # Only so that Stripe's books and ours are the same again after the test.
    till.stripe.dashboard_refund(till.stripe.session(started.session_id)["payment_intent"])


async def test_what_stripe_may_be_giving_back_now_is_not_noted_as_given_by_hand(till):
    slot_id = till.slot()
    started = await confirmed(till, slot_id)
    await till.cancel(started.booking.id)
    payment_id = till.payment_id(started)
    assert not await settlement.note_by_hand(till.engine, payment_id)
    assert till.statuses(slot_id)[1] == [("paid", "due")]
    till.query("UPDATE payments SET owed_at = owed_at - interval '2 hours' WHERE id = %s RETURNING 1", payment_id)
    assert await settlement.note_by_hand(till.engine, payment_id)  # a person has to look at it
    assert till.statuses(slot_id)[1] == [("paid", "done")]
    assert till.query("SELECT what FROM money_mismatches") == []
    # Only so that Stripe's books and ours are the same again after the test.
    till.stripe.dashboard_refund(till.stripe.session(started.session_id)["payment_intent"])


async def test_what_was_given_back_twice_is_seen(till):
    slot_id = till.slot()
    started, _ = await refunded(till, slot_id)
    again = '[{"id": "by hand", "amount": 1, "failed": false}]'
    with psycopg.connect(till.database_url) as connection:
        connection.execute("SELECT record_refunds(%s, %s)", (till.payment_id(started), again))
        seen = connection.execute("SELECT what FROM money_mismatches").fetchall()
        connection.rollback()
    assert seen == [("more given back than was paid",)]


# -- bookings that move -----------------------------------------------------------------------------------------------


async def test_a_refund_ends_its_booking_where_it_has_moved_to(till):
    paid_for, moved_to = till.slots(24, 48)
    started = await paid(till, paid_for)
    assert await till.receive(*till.told(started.session_id)) == ["confirmed"]
    booking_id = started.booking.id
    await reschedule(till.engine, booking_id, started.manage_token, Wish(moved_to), caller=CUSTOMER)
    till.stripe.dashboard_refund(till.stripe.session(started.session_id)["payment_intent"])
    assert (await till.receive(*till.told(started.session_id)))[-1] == "refunded"
    ended = till.query(
        "SELECT slot_id, data FROM events WHERE type = 'booking.cancelled' AND booking_id = %s", booking_id
    )
    assert [(slot_id, data["quantity"]) for slot_id, data in ended] == [(moved_to, 1)]
    [slot] = await till.engine.ledger.slots([moved_to])
    room = (await till.engine.mirror.rooms([slot], without_redis=False))[moved_to]
    assert (room.booked, room.available) == (0, 1)


@pytest.mark.parametrize(
    ("hours", "refund"), [((2, 72), "waived"), ((48, 72), "due")], ids=["too late to cancel", "in time"]
)
async def test_moving_a_booking_does_not_win_its_money_back(till, hours, refund):
    paid_for, moved_to = till.slots(*hours, refund_hours=24)
    started = await paid(till, paid_for)
    await till.receive(*till.told(started.session_id))
    await reschedule(till.engine, started.booking.id, started.manage_token, Wish(moved_to), caller=CUSTOMER)
    await till.cancel(started.booking.id, CUSTOMER)
    assert till.statuses(paid_for)[1] == [("paid", refund)]
    if refund == "due":
        assert await settlement.refund(till.engine, till.payment_id(started)) == "refunded"


# -- cancelled while it is paid ---------------------------------------------------------------------------------------


async def test_a_pending_booking_that_is_cancelled_can_no_longer_be_paid(till):
    slot_id = till.slot()
    started = await till.check_out(slot_id)
    assert (await till.cancel(started.booking.id, CUSTOMER)).status == "cancelled"
    assert till.stripe.session(started.session_id)["status"] == "expired"
    await till.receive(*till.told(started.session_id))
    assert till.statuses(slot_id) == (["cancelled"], [("expired", "none")])


async def test_a_pending_booking_cancelled_while_stripe_is_away_is_closed_by_the_worker_or_refunded(till):
    for then in ("closed", "paid"):
        slot_id = till.slot()
        started = await till.check_out(slot_id)
        till.stripe.fault("sessions.expire", "503", times=3)
        assert (await till.cancel(started.booking.id, CUSTOMER)).status == "cancelled"
        assert till.statuses(slot_id) == (["cancelled"], [("closing", "none")])
        if then == "closed":
            assert await settlement.close(till.engine, till.payment_id(started)) == "ended"
            assert till.statuses(slot_id) == (["cancelled"], [("expired", "none")])
        else:
            till.stripe.pay(started.session_id)
            assert await settlement.close(till.engine, till.payment_id(started)) == "refund_due"
            assert await settlement.refund(till.engine, till.payment_id(started)) == "refunded"
            assert till.refunds(started.session_id) == [PRICE]


async def test_cancelling_what_was_paid_a_moment_ago_refunds_it(till):
    slot_id = till.slot()
    started = await paid(till, slot_id)  # its webhook is on its way
    assert (await till.cancel(started.booking.id, CUSTOMER)).status == "cancelled"
    assert till.statuses(slot_id) == (["cancelled"], [("paid", "due")])
    assert await till.receive(*till.told(started.session_id)) == ["refund_due"]
    assert await settlement.refund(till.engine, till.payment_id(started)) == "refunded"
    assert till.refunds(started.session_id) == [PRICE]


async def test_the_news_of_our_own_cancellation_may_come_before_it_is_written(till, monkeypatch):
    slot_id = till.slot()
    started = await till.check_out(slot_id)
    expire = till.engine.gateway.expire

    async def told_at_once(session_id: str) -> Session:
        ended = await expire(session_id)
        assert await till.receive(*till.told(session_id)) == ["ended"]
        return ended

    monkeypatch.setattr(till.engine.gateway, "expire", told_at_once)
    assert (await till.cancel(started.booking.id, CUSTOMER)).status == "expired"
    monkeypatch.undo()
    with pytest.raises(AlreadyResolved):
        await till.cancel(started.booking.id, CUSTOMER)


async def test_cancelling_and_paying_at_the_same_moment_keeps_no_money(till):
    for _ in range(10):
        slot_id = till.slot()
        started = await till.check_out(slot_id)
        await asyncio.gather(till.cancel(started.booking.id, CUSTOMER), try_to_pay(till, started.session_id))
        await till.receive(*till.told(started.session_id))
        [(_, refund)] = till.statuses(slot_id)[1]
        if refund == "due":
            assert await settlement.refund(till.engine, till.payment_id(started)) == "refunded"
        [session] = [till.stripe.session(started.session_id)]
        assert till.statuses(slot_id)[0] == ["cancelled"]
        assert till.refunds(started.session_id) == ([PRICE] if session["payment_status"] == "paid" else [])
