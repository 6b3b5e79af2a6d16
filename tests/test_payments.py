"""Paid means booked, or refunded exactly once: whatever Stripe says, in whatever order, however often (I7, I8).

In the test's own process, on real stores and with Stripe's SDK against the simulator, so that each step can be put
before or after any other. After each test the money query is empty, and Stripe's books say the same as ours.
`test_payment_deadlines.py`, `test_refunds.py` and `test_older_orders.py` do the same with what comes too late, what is
given back, and what an older system sold.
"""

import asyncio
import itertools
import random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors as pg

from app import checkout, settlement
from app.errors import PaymentRequired, SlotUnavailable
from app.reschedule import Wish, reschedule
from tests.shop import PRICE
from tests.stripe_simulator import SDK_WARNING
from tests.till import (
    ADA,
    CONFIRMED,
    CUSTOMER,
    OPERATOR,
    Till,
    confirmed,
    one_till,
    opened,
    paid,
    pending,
    several_times,
    stripe,
    till,
)

__all__ = ["one_till", "stripe", "till"]

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]


# -- any order, any number --------------------------------------------------------------------------------------------


def news_of_a_paid_session(till: Till, session_id: str, books: dict[str, Any]) -> list[dict[str, Any]]:
    """What may come about a session that was paid: the truth, and old or wrong news in between."""
    [completed] = till.told(session_id, books)
    unpaid = {"payment_status": "unpaid", "payment_intent": None}
    return [
        completed,
        till.forged("async_payment_succeeded", session_id, books),
        till.forged("expired", session_id, books, status="expired", **unpaid),
        till.forged("async_payment_failed", session_id, books, **unpaid),
        till.forged("completed", session_id, books, **unpaid),
    ]


async def test_every_order_of_a_paid_sessions_events_ends_in_one_state(till):
    rng, orders = random.Random(31), list(itertools.permutations(range(5)))
    slots = [till.slot() for _ in orders]
    sessions = [str((await paid(till, slot_id)).session_id) for slot_id in slots]
    books = till.stripe.ledger()

    async def tell(session_id: str, order: tuple[int, ...]) -> None:
        news = news_of_a_paid_session(till, session_id, books)
        await till.receive(*several_times([news[number] for number in order], rng))

    for some in range(0, len(orders), 10):
        await asyncio.gather(*map(tell, sessions[some : some + 10], orders[some : some + 10]))
    states = [till.state(slot_id) for slot_id in slots]
    assert len(states) == 120
    assert states[0]["bookings"] == [(1, "confirmed", ADA.email)]
    assert [state for state in states if state != states[0]] == []


async def test_every_order_of_a_refunded_sessions_events_ends_in_one_state(till):
    rng, states = random.Random(37), []
    for order in itertools.permutations(range(4)):
        slot_id = till.slot()
        started = await paid(till, slot_id)
        session_id = started.session_id or ""
        till.stripe.dashboard_refund(till.stripe.session(session_id)["payment_intent"])
        completed, refunded = till.told(session_id)
        assert refunded["type"] == "charge.refunded"
        news = [
            completed,
            refunded,
            till.forged("async_payment_succeeded", session_id),
            till.forged("expired", session_id, status="expired", payment_status="unpaid", payment_intent=None),
        ]
        await till.receive(*several_times([news[number] for number in order], rng))
        states.append(till.state(slot_id))
        assert till.refunds(session_id) == [PRICE]
    assert states[0]["bookings"] == [(1, "cancelled", ADA.email)]
    assert states[0]["free"] == [(1,)]
    assert [state for state in states if state != states[0]] == []


async def test_every_order_of_an_expired_sessions_events_ends_in_one_state(till):
    states = []
    for order in itertools.permutations(range(3)):
        slot_id = till.slot()
        started = await till.check_out(slot_id)
        await till.engine.gateway.expire(started.session_id)
        [expired] = till.told(started.session_id)
        news = [
            expired,
            till.forged("completed", started.session_id, status="complete"),
            till.forged("async_payment_failed", started.session_id),
        ]
        await till.receive(*[news[number] for number in order] * 2)
        states.append(till.state(slot_id))
    assert (states[0]["bookings"], states[0]["free"]) == ([(1, "expired", ADA.email)], [(1,)])
    assert [state for state in states if state != states[0]] == []


@pytest.fixture
def slow_money(monkeypatch):
    """Sessions that can be paid by direct debit: the money comes days later, or not."""
    made = checkout._session_params

    def with_debit(*asked):
        return {**made(*asked), "payment_method_types": ["card", "sepa_debit"]}

    monkeypatch.setattr(checkout, "_session_params", with_debit)


@pytest.mark.parametrize(
    ("succeed", "status", "free"), [(True, "confirmed", 0), (False, "expired", 1)], ids=["comes", "does not come"]
)
async def test_every_order_of_a_delayed_payments_events_ends_in_one_state(till, slow_money, succeed, status, free):
    states = []
    for order in itertools.permutations(range(2)):
        slot_id = till.slot()
        started = await till.check_out(slot_id)
        till.stripe.pay(started.session_id, "delayed")
        [completed] = till.told(started.session_id)
        assert await till.receive(completed, till.forged("completed", started.session_id)) == ["waiting", "waiting"]
        assert till.statuses(slot_id) == (["pending_payment"], [("open", "none")])  # complete is not paid (T-25)
        till.stripe.settle(started.session_id, succeed=succeed)
        news = till.told(started.session_id)
        await till.receive(*[news[number] for number in order] * 3)
        states.append(till.state(slot_id))
    assert states[0]["bookings"] == [(1, status, ADA.email)]
    assert states[0]["free"] == [(free,)]
    assert states[0] == states[1]


async def test_all_events_of_a_session_at_the_same_moment_have_one_effect(till):
    states = []
    for _ in range(5):
        slot_id = till.slot(3)
        started = await paid(till, slot_id, 2)
        news = news_of_a_paid_session(till, str(started.session_id), till.stripe.ledger()) * 5
        await asyncio.gather(*(till.receive(event) for event in news))
        states.append(till.state(slot_id))
    assert (states[0]["bookings"], states[0]["free"]) == ([(2, "confirmed", ADA.email)], [(1,)])
    assert [state for state in states if state != states[0]] == []


async def test_an_event_whose_effect_was_lost_is_done_again_and_one_that_is_done_is_not(till):
    slot_id = till.slot()
    started = await paid(till, slot_id)
    [completed] = till.told(started.session_id)
    await till.engine.payments.keep_event(
        completed["id"], completed["type"], settlement.needed(completed["type"], completed["data"]["object"])
    )
    assert till.statuses(slot_id)[0] == ["pending_payment"]  # a worker dies here: T-27
    assert await till.receive(completed, completed, completed) == ["confirmed", "done before", "done before"]
    assert till.statuses(slot_id) == CONFIRMED


# -- not what was asked -----------------------------------------------------------------------------------------------


async def mismatched(till: Till, slot_id: UUID, amount: int = 999, currency: str = "eur") -> str:
    """Have a session be paid that carries a payment's id, but asked for something else; returns the session."""
    payment_id = await pending(till, slot_id)
    ours = {"slots_reserved": "true", "payment_id": str(payment_id)}
    session_id = str(till.stripe.older_session(metadata=ours, amount_total=amount, currency=currency)["id"])
    till.stripe.pay(session_id)
    assert await till.receive(*till.told(session_id) * 3) == ["mismatched", "done before", "done before"]
    return session_id


@pytest.mark.parametrize(("amount", "currency"), [(PRICE - 1, "eur"), (PRICE + 1, "eur"), (PRICE, "usd")])
async def test_another_amount_or_currency_confirms_nothing(till, amount, currency):
    slot_id = till.slot()
    session_id = await mismatched(till, slot_id, amount, currency)
    assert till.statuses(slot_id) == (["pending_payment"], [("mismatched", "none")])
    [told] = till.happened(slot_id, "payment.mismatched")
    assert (told["paid_amount"], told["paid_currency"]) == (amount, currency.upper())
    assert till.refunds(session_id) == []
    with pytest.raises(SlotUnavailable):
        await till.check_out(slot_id)  # an operator decides: until then the place is kept


@pytest.mark.parametrize("by", [OPERATOR, CUSTOMER], ids=["operator", "customer"])
async def test_cancelling_what_was_paid_wrongly_gives_back_what_was_paid(till, by):
    slot_id = till.slot(refund_hours=48)
    session_id = await mismatched(till, slot_id)
    [(booking_id, payment_id)] = till.query("SELECT booking_id, id FROM payments WHERE session_id = %s", session_id)
    await till.cancel(booking_id, by)
    assert till.statuses(slot_id) == (["cancelled"], [("mismatched", "due")])
    assert await settlement.refund(till.engine, payment_id) == "refunded"
    assert till.refunds(session_id) == [999]
    assert till.state(slot_id)["payments"][0][6:8] == ("done", 999)


async def test_what_was_paid_wrongly_and_refunded_in_the_dashboard_ends_its_booking(till):
    slot_id = till.slot()
    session_id = await mismatched(till, slot_id)
    till.stripe.dashboard_refund(till.stripe.session(session_id)["payment_intent"])
    await till.receive(*till.told(session_id))
    assert till.statuses(slot_id) == (["cancelled"], [("mismatched", "done")])
    assert till.state(slot_id)["free"] == [(1,)]


async def test_a_price_in_another_currency_counts_as_dearer(till):
    here, there = till.slots(24, 48)
    till.query(
        "UPDATE venues SET payment = 'required' WHERE id = (SELECT venue_id FROM slots WHERE id = %s) RETURNING 1", here
    )
    till.query("UPDATE slots SET price_currency = 'JPY' WHERE id = %s RETURNING 1", here)
    started = await confirmed(till, here)
    with pytest.raises(PaymentRequired):
        await reschedule(till.engine, started.booking.id, started.manage_token, Wish(there), caller=CUSTOMER)
    assert till.statuses(here) == CONFIRMED
    moved = await reschedule(till.engine, started.booking.id, None, Wish(there), caller=OPERATOR)
    assert moved.slot_id == there


# -- forgetting -------------------------------------------------------------------------------------------------------


async def test_what_nobody_needs_any_more_is_forgotten_and_no_more_than_that(till):
    done, waiting = till.slot(), till.slot()
    paid_one, open_one = await confirmed(till, done), await till.check_out(waiting)
    ids = [till.payment_id(paid_one), till.payment_id(open_one)]
    payments = till.engine.payments
    assert (await payments.forget_params(), await payments.forget_news()) == (0, 0)
    old = "UPDATE payments SET created_at = created_at - interval '31 days' WHERE id = ANY (%s) RETURNING 1"
    till.query(old, ids)
    assert await payments.forget_params() == 1
    assert [await payments.params(id_) is None for id_ in ids] == [True, False]
    await payments.keep_event("evt_not_applied", "checkout.session.completed", {"id": "cs_none"})
    till.query("UPDATE webhook_inbox SET received_at = received_at - interval '91 days' RETURNING 1")
    assert await payments.forget_news() > 0
    assert till.query("SELECT event_id FROM webhook_inbox") == [("evt_not_applied",)]
    till.query("DELETE FROM webhook_inbox RETURNING 1")


# -- the database refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE payments SET status = 'open' WHERE id = %s",
        "UPDATE payments SET status = 'expired', paid_at = NULL, paid_amount = NULL WHERE id = %s",
        "UPDATE payments SET refund_status = 'due', refunded_at = NULL WHERE id = %s",
        "UPDATE payments SET refunded_amount = 0 WHERE id = %s",
        "UPDATE refunds SET amount = 1 WHERE payment_id = %s",
        "DELETE FROM refunds WHERE payment_id = %s",
        "UPDATE payments SET amount = 1, paid_amount = 1 WHERE id = %s",
        "UPDATE payments SET session_id = 'another' WHERE id = %s",
        "DELETE FROM payments WHERE id = %s",
    ],
)
async def test_what_was_paid_and_refunded_stays_so_for_every_writer(till, change):
    slot_id = till.slot()
    started = await confirmed(till, slot_id)
    await till.cancel(started.booking.id)
    await settlement.refund(till.engine, till.payment_id(started))
    with pytest.raises((pg.CheckViolation, pg.InsufficientPrivilege)):
        till.query(change, till.payment_id(started))


UNPAID = "UPDATE bookings SET status = 'confirmed', expires_at = NULL, confirmed_at = now() WHERE id = %s RETURNING 1"


async def test_the_trigger_is_what_keeps_an_unpaid_booking_from_being_confirmed(postgres, bundled_redis_server, stripe):
    async with opened(postgres.fresh(), bundled_redis_server, stripe) as scratch:
        started = await scratch.check_out(scratch.slot())
        with pytest.raises(pg.CheckViolation, match="is not paid"):
            scratch.query(UNPAID, started.booking.id)
        assert await scratch.engine.payments.mismatches() == 0
        with psycopg.connect(scratch.database_url, autocommit=True) as connection:
            connection.execute("DROP TRIGGER bookings_confirmed_when_paid ON bookings")
        assert scratch.query(UNPAID, started.booking.id) == [(1,)]
        # And then the money query sees it.
        assert await scratch.engine.payments.mismatches() == 1
        assert scratch.query("SELECT what FROM money_mismatches") == [("confirmed, but not paid",)]


async def test_two_payments_for_one_booking_cannot_be_stored(till):
    started = await till.check_out(till.slot())
    copy = (
        "INSERT INTO payments (id, venue_id, slot_id, booking_id, quantity, amount, currency)"
        " SELECT gen_random_uuid(), venue_id, slot_id, booking_id, quantity, amount, currency FROM payments"
        " WHERE session_id = %s RETURNING 1"
    )
    with pytest.raises(pg.UniqueViolation, match="payments_one_per_booking"):
        till.query(copy, started.session_id)
