"""Who pays gets the places or the money back: too late, as time runs out, and for what was only half made.

What a customer can still pay for, nobody else gets: Stripe ends the session first. In the test's own process, as in
`test_payments.py`.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from app import settlement
from app.checkout import Started
from app.errors import PaymentFailed, SlotUnavailable
from app.gateway import InProgress, NotOpen, Session, Unclear
from tests.shop import PRICE
from tests.stripe_simulator import SDK_WARNING
from tests.till import CONFIRMED, Till, older_order, one_till, paid, pending, stripe, till, try_to_pay

__all__ = ["one_till", "stripe", "till"]

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]
EXPIRED = (["expired"], [("expired", "none")])


# -- too late ---------------------------------------------------------------------------------------------------------


async def freed_too_early(till: Till, slot_id: UUID) -> Started:
    """Bring a booking's time to an end without asking Stripe, as must never happen: its session can still be paid."""
    started = await till.check_out(slot_id)
    await end_here(till, till.payment_id(started))
    return started


async def end_here(till: Till, payment_id: UUID) -> None:
    change = await till.engine.payments.end(payment_id, "expired")
    await till.engine.mirror.sync_quietly([change.counts])
    assert change.word == "ended"


async def test_a_payment_after_its_places_were_freed_gets_them_again(till):
    slot_id = till.slot()
    started = await freed_too_early(till, slot_id)
    till.stripe.pay(started.session_id)
    assert await till.receive(*till.told(started.session_id) * 3) == ["rebooked", "done before", "done before"]
    assert till.statuses(slot_id) == (["expired", "confirmed"], [("paid", "none")])
    assert (till.state(slot_id)["free"], till.refunds(started.session_id)) == ([(0,)], [])
    [late] = till.happened(slot_id, "payment.late")
    assert (late["outcome"], late["expired_booking_id"]) == ("rebooked", str(started.booking.id))
    # The new booking is as good as the old one: it can be cancelled, and its money goes back.
    [(new_booking,)] = till.query("SELECT rebooked_id FROM payments WHERE slot_id = %s", slot_id)
    await till.cancel(new_booking)
    assert await settlement.refund(till.engine, till.payment_id(started)) == "refunded"
    assert (till.statuses(slot_id)[0], till.refunds(started.session_id)) == (["expired", "cancelled"], [PRICE])


@pytest.mark.parametrize("gone", ["sold", "closed"])
async def test_a_payment_whose_places_are_gone_is_refunded_once(till, gone):
    slot_id = till.slot()
    started = await freed_too_early(till, slot_id)
    if gone == "sold":
        other = await paid(till, slot_id)
        assert await till.receive(*till.told(other.session_id)) == ["confirmed"]
    else:
        till.query("UPDATE slots SET status = 'closed' WHERE id = %s RETURNING 1", slot_id)
    till.stripe.pay(started.session_id)
    await asyncio.gather(*(till.receive(event) for event in till.told(started.session_id) * 5))
    assert till.happened(slot_id, "payment.late")[0]["outcome"] == "refunded"
    assert len(till.happened(slot_id, "refund.due")) == 1
    payment_id = till.payment_id(started)
    outcomes = await asyncio.gather(*(settlement.refund(till.engine, payment_id) for _ in range(5)))
    assert "refunded" in outcomes
    assert till.refunds(started.session_id) == [PRICE]
    # Stripe tells us of our own refund, which is no news.
    assert await till.receive(till.told(started.session_id)[-1]) == ["already"]
    assert till.statuses(slot_id)[1][0] == ("paid", "done")


@contextmanager
def taking_a_persons_other_slot(till: Till, slot_id: UUID) -> Iterator[psycopg.Connection[Any]]:
    """Book a slot in a transaction that is not committed yet: nobody sees it, but the exclusion constraint does."""
    with psycopg.connect(till.database_url) as connection:
        connection.execute(
            "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,"
            " available_after, confirmed_at)"
            " SELECT %s, venue_id, id, exclusive, 1, 'confirmed', 'Eve', 'eve@example.com', 0, now()"
            " FROM slots WHERE id = %s",
            (uuid4(), slot_id),
        )
        yield connection


@pytest.mark.parametrize("legacy", [False, True], ids=["late", "older"])
async def test_a_payment_whose_person_is_being_taken_for_another_slot_is_refunded(till, legacy):
    slot_id, overlapping = till.slots(24, 24.5, kind="person")
    if legacy:
        session_id = older_order(till, slot_id)
    else:
        session_id = (await freed_too_early(till, slot_id)).session_id
        till.stripe.pay(session_id)
    [completed] = till.told(session_id)
    with taking_a_persons_other_slot(till, overlapping) as rival:
        applying = asyncio.create_task(till.receive(completed))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while not till.query(waiting):
            assert not applying.done()
            await asyncio.sleep(0.01)
        rival.commit()
    assert await applying == ["legacy refund_due" if legacy else "refund_due"]
    assert till.statuses(slot_id)[1] == [("paid", "due")]
    [(payment_id,)] = till.query("SELECT id FROM payments WHERE session_id = %s", session_id)
    assert await settlement.refund(till.engine, payment_id) == "refunded"
    assert till.refunds(session_id) == [PRICE]


# -- time runs out ----------------------------------------------------------------------------------------------------


Ending = Callable[[Till, UUID], Awaitable[Any]]


async def expired_at_stripe_first(till: Till, payment_id: UUID) -> None:
    await settlement.close(till.engine, payment_id)


async def expired_here_first(till: Till, payment_id: UUID) -> None:
    """What `close` must not do: the places are free while somebody can still pay for them."""
    payment = await till.engine.payments.payment(payment_id)
    await end_here(till, payment_id)
    await asyncio.sleep(0.05)  # no more than a busy machine takes
    with contextlib.suppress(NotOpen):
        await till.engine.gateway.expire(payment.session_id)


async def assert_nobody_pays_for_what_others_get(till: Till, end: Ending, rounds: int) -> None:
    """Let a booking's time run out while it is paid, and others wait for the place: who pays, gets it."""
    rng = random.Random(41)
    paid_by = []
    for _ in range(rounds):
        slot_id = till.slot()
        first = await till.check_out(slot_id)
        ending, pay = end(till, till.payment_id(first)), try_to_pay(till, first.session_id or "")
        tasks = [asyncio.ensure_future(work) for work in ((ending, pay) if rng.random() < 0.5 else (pay, ending))]
        while not all(task.done() for task in tasks):
            try:
                other = await till.check_out(slot_id)
            except SlotUnavailable:
                await asyncio.sleep(0)
                continue
            await try_to_pay(till, other.session_id or "")
            await till.receive(*till.told(other.session_id or ""))
            break
        await asyncio.gather(*tasks)
        await till.receive(*till.told(first.session_id or ""))
        session = till.stripe.session(first.session_id or "")
        paid_by.append(session["payment_status"])
        _, payments = till.statuses(slot_id)
        if payments[0] == ("paid", "due"):
            await settlement.refund(till.engine, till.payment_id(first))
        assert payments[0] == (("paid", "none") if session["payment_status"] == "paid" else ("expired", "none"))
    assert set(paid_by) == {"paid", "unpaid"}, "the race had one winner only: it proves nothing"


async def test_running_out_of_time_while_paying_is_one_or_the_other(till):
    await assert_nobody_pays_for_what_others_get(till, expired_at_stripe_first, rounds=30)


async def test_without_telling_stripe_first_somebody_pays_for_what_others_get(till):
    with pytest.raises(AssertionError, match="due"):
        await assert_nobody_pays_for_what_others_get(till, expired_here_first, rounds=30)
    # What was paid twice goes back all the same: that is the second line.
    for (payment_id,) in till.query("SELECT id FROM payments WHERE refund_status = 'due'"):
        await settlement.refund(till.engine, payment_id)


async def test_a_payment_nobody_told_us_of_is_found_by_looking(till):
    slot_id = till.slot()
    started = await paid(till, slot_id)
    assert await settlement.look(till.engine, till.payment_id(started)) == "confirmed"
    assert till.statuses(slot_id) == CONFIRMED
    assert await settlement.look(till.engine, till.payment_id(started)) == "confirmed"  # and nothing happens again
    assert len(till.happened(slot_id, "checkout.completed")) == 1


async def test_a_deadline_asks_stripe_first_and_frees_the_places_then(till):
    slot_id = till.slot()
    started = await till.check_out(slot_id)
    till.stripe.fault("sessions.expire", "503", times=3)
    with pytest.raises(Unclear):
        await settlement.close(till.engine, till.payment_id(started))
    assert till.statuses(slot_id) == (["pending_payment"], [("open", "none")])  # who knows? It may be paid
    assert await settlement.close(till.engine, till.payment_id(started)) == "ended"
    assert till.statuses(slot_id) == EXPIRED
    assert till.stripe.session(started.session_id)["status"] == "expired"


async def test_unfinished_payments_are_handed_out_once_each_when_their_time_has_come(till):
    slot_id = till.slot(4)
    waiting, due, closing, creating = [till.payment_id(await till.check_out(slot_id)) for _ in range(3)] + [
        await pending(till, slot_id)
    ]
    ours = {waiting, due, closing, creating}

    async def handed_out() -> dict[UUID, str]:
        return {payment_id: what for payment_id, what in await till.engine.payments.unfinished() if payment_id in ours}

    assert await handed_out() == {}  # all was asked a moment ago
    till.query("UPDATE payments SET expires_at = clock_timestamp() WHERE id = %s RETURNING 1", due)
    # Asked a moment ago, however long all this takes.
    asked = "asked_at = clock_timestamp() + interval '1 minute'"
    till.query(f"UPDATE payments SET status = 'closing', {asked} WHERE id = %s RETURNING 1", closing)
    assert await handed_out() == {due: "close"}
    assert await handed_out() == {}
    ago = "UPDATE payments SET asked_at = clock_timestamp() - interval '10 seconds' WHERE id <> %s RETURNING 1"
    till.query(ago, due)
    assert await handed_out() == {closing: "close"}
    older = "UPDATE payments SET asked_at = clock_timestamp() - %s, created_at = clock_timestamp() - %s RETURNING 1"
    till.query(older, timedelta(seconds=50), timedelta(seconds=50))
    assert await handed_out() == {waiting: "look", due: "close", closing: "close"}
    till.query(older, timedelta(seconds=70), timedelta(seconds=70))
    assert await handed_out() == {waiting: "look", due: "close", closing: "close", creating: "look"}


async def test_a_session_that_stripe_does_not_know_cannot_be_paid(till):
    slot_id = till.slot()
    payment_id = await pending(till, slot_id)
    till.query("UPDATE payments SET session_id = 'cs_of_another_account', status = 'open' WHERE id = %s RETURNING 1",
               payment_id)  # fmt: skip
    assert await settlement.look(till.engine, payment_id) == "ended"
    assert till.statuses(slot_id) == EXPIRED


async def test_a_payment_that_nobody_looks_after_is_seen(till):
    started = await till.check_out(till.slot())
    payment_id = till.payment_id(started)
    over = "UPDATE payments SET expires_at = clock_timestamp() - %s * interval '1 minute' WHERE id = %s RETURNING 1"
    till.query(over, 30, payment_id)
    assert await till.engine.payments.mismatches() == 0
    till.query(over, 90, payment_id)
    assert await till.engine.payments.mismatches() == 1
    assert await settlement.close(till.engine, payment_id) == "ended"
    assert await till.engine.payments.mismatches() == 0


# -- half made --------------------------------------------------------------------------------------------------------


async def test_what_a_dead_process_left_before_stripe_is_called_by_the_worker(till):
    slot_id = till.slot()
    payment_id = await pending(till, slot_id, key := uuid4().hex)
    assert await settlement.look(till.engine, payment_id) == "waiting"
    assert till.statuses(slot_id) == (["pending_payment"], [("open", "none")])
    again = await till.check_out(slot_id, key=key)  # the customer comes back, and is told where to pay
    assert (again.booking.replayed, till.payment_id(again)) == (True, payment_id)


async def test_what_a_dead_process_left_is_taken_over_by_the_same_request(till):
    slot_id = till.slot()
    payment_id = await pending(till, slot_id, key := uuid4().hex)
    again = await till.check_out(slot_id, key=key)
    assert (again.booking.replayed, till.payment_id(again)) == (True, payment_id)
    assert till.statuses(slot_id) == (["pending_payment"], [("open", "none")])


async def test_what_was_left_too_long_ago_is_given_up_and_its_key_is_free(till):
    slot_id = till.slot()
    payment_id = await pending(till, slot_id, key := uuid4().hex)
    till.stripe.clock(10 * 60)  # a session has to live for half an hour from now: Stripe refuses
    assert await settlement.look(till.engine, payment_id) == "ended"
    assert (till.statuses(slot_id), till.state(slot_id)["free"]) == (([], [("failed", "none")]), [(1,)])
    till.stripe.clock(0)
    assert not (await till.check_out(slot_id, key=key)).booking.replayed
    assert till.statuses(slot_id) == (["pending_payment"], [("failed", "none"), ("open", "none")])


async def test_a_session_made_under_a_lost_reply_is_found_and_closed(till):
    slot_id = till.slot()
    payment_id = await pending(till, slot_id)
    params = await till.engine.payments.params(payment_id)
    made = await till.engine.gateway.create_session(params, str(payment_id))
    change = await till.engine.payments.fail(payment_id, maybe=True, why="the reply was lost")
    assert (change.word, change.counts.available_count) == ("failed", 1)
    await till.engine.mirror.sync_quietly([change.counts])
    other = await till.check_out(slot_id)  # the place is sold again
    assert await settlement.close(till.engine, payment_id) == "ended"
    assert till.stripe.session(made.id)["status"] == "expired"
    assert till.statuses(slot_id) == (["pending_payment"], [("failed", "none"), ("open", "none")])
    assert till.stripe.session(other.session_id)["status"] == "open"


async def test_an_error_that_stripe_has_stored_is_borne_until_the_time_is_up(till):
    slot_id = till.slot()
    till.stripe.fault("sessions.create", "500")
    with pytest.raises(PaymentFailed):
        await till.check_out(slot_id)
    [(payment_id,)] = till.query("SELECT id FROM payments WHERE slot_id = %s", slot_id)
    assert (till.statuses(slot_id), till.state(slot_id)["free"]) == (([], [("abandoned", "none")]), [(1,)])
    with pytest.raises(Unclear):
        await settlement.close(till.engine, payment_id)
    till.query("UPDATE payments SET expires_at = clock_timestamp() WHERE id = %s RETURNING 1", payment_id)
    assert await settlement.close(till.engine, payment_id) == "ended"
    assert till.statuses(slot_id) == ([], [("failed", "none")])


async def test_a_webhook_that_is_faster_than_the_answer_of_create(till, monkeypatch):
    slot_id, create = till.slot(), till.engine.gateway.create_session

    async def paid_at_once(params: Any, key: str) -> Session:
        made = await create(params, key)
        till.stripe.pay(made.id)
        assert await till.receive(*till.told(made.id)) == ["confirmed"]
        return made

    monkeypatch.setattr(till.engine.gateway, "create_session", paid_at_once)
    started = await till.check_out(slot_id)
    assert started.checkout_url is not None
    assert till.statuses(slot_id) == CONFIRMED


async def test_a_request_that_fails_does_not_take_away_what_another_with_its_key_has_opened(till, monkeypatch):
    slot_id, create = till.slot(), till.engine.gateway.create_session
    first, second, opened = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def fails_for_the_second(params: Any, key: str) -> Session:
        if not first.is_set():
            first.set()
            await second.wait()  # it is on its way to Stripe, too
            return await create(params, key)
        second.set()
        await opened.wait()
        raise Unclear("no answer")

    async def check_out() -> Started:
        try:
            return await till.check_out(slot_id, key=key)
        finally:
            opened.set()

    monkeypatch.setattr(till.engine.gateway, "create_session", fails_for_the_second)
    key = uuid4().hex
    one, two = await asyncio.gather(check_out(), check_out())
    assert (one.session_id, one.booking.id) == (two.session_id, two.booking.id)
    assert till.statuses(slot_id) == (["pending_payment"], [("open", "none")])


async def test_a_request_waits_for_another_with_its_key_that_stripe_is_busy_with(till, monkeypatch):
    slot_id, create, asked = till.slot(), till.engine.gateway.create_session, itertools.count()

    async def busy(params: Any, key: str) -> Session:
        if next(asked) in (1, 2):
            await asyncio.sleep(0.05)
            raise InProgress("idempotency_key_in_use")
        await asyncio.sleep(0.2)
        return await create(params, key)

    monkeypatch.setattr(till.engine.gateway, "create_session", busy)
    key = uuid4().hex
    one, two = await asyncio.gather(till.check_out(slot_id, key=key), till.check_out(slot_id, key=key))
    assert (one.session_id, one.booking.id) == (two.session_id, two.booking.id)
