"""Paid means booked, or refunded exactly once: whatever Stripe says, in whatever order, however often (I7, I8).

In the test's own process, on real stores and with Stripe's SDK against the simulator, so that each step can be put
before or after any other. After each test the money query is empty, and Stripe's books say the same as ours.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors as pg

from app import booking, checkout, settlement
from app import engine as engine_module
from app.booking import BookingRequest
from app.checkout import Started
from app.errors import AlreadyResolved, PaymentFailed, PaymentRequired, SlotUnavailable
from app.gateway import InProgress, NotOpen, Refused, Session, Unclear
from app.reschedule import Wish, reschedule
from app.settings import from_env
from tests.redis_servers import RedisServer
from tests.service import Postgres
from tests.shop import PRICE, assert_money_adds_up, event_of
from tests.stripe_simulator import SDK_WARNING, Simulator, running_simulator
from tests.till import ADA, CUSTOMER, NOWHERE, OPERATOR, Till, environ, several_times

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings(SDK_WARNING)]
CONFIRMED = (["confirmed"], [("paid", "none")])
EXPIRED = (["expired"], [("expired", "none")])


@pytest.fixture(scope="module")
def stripe() -> Iterator[Simulator]:
    with running_simulator(None) as simulator:
        yield simulator


@asynccontextmanager
async def opened(database_url: str, redis: RedisServer, stripe: Simulator) -> AsyncIterator[Till]:
    async with engine_module.running(from_env(environ(database_url, redis.url, stripe))) as engine:
        yield Till(engine, stripe, database_url)


@pytest.fixture(scope="module")
async def one_till(postgres: Postgres, bundled_redis_server: RedisServer, stripe: Simulator) -> AsyncIterator[Till]:
    async with opened(postgres.fresh(), bundled_redis_server, stripe) as till:
        yield till


@pytest.fixture
def till(one_till: Till) -> Iterator[Till]:
    yield one_till
    one_till.stripe.no_faults()
    one_till.stripe.clock(0)
    assert_money_adds_up(one_till.query, one_till.stripe)
    assert one_till.query("SELECT id FROM slots WHERE available_count < 0") == []


async def paid(till: Till, slot_id: UUID, quantity: int = 1) -> Started:
    """Check out and pay; Stripe's news of it come when the test says so."""
    started = await till.check_out(slot_id, quantity)
    till.stripe.pay(started.session_id or "")
    return started


async def freed_too_early(till: Till, slot_id: UUID) -> Started:
    """Bring a booking's time to an end without asking Stripe, as must never happen: its session can still be paid."""
    started = await till.check_out(slot_id)
    await end_here(till, till.payment_id(started))
    return started


async def end_here(till: Till, payment_id: UUID) -> None:
    change = await till.engine.payments.end(payment_id, "expired")
    await till.engine.mirror.sync_quietly([change.counts])
    assert change.word == "ended"


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


async def pending(till: Till, slot_id: UUID, key: str | None = None) -> UUID:
    """Take places for a payment, and die before Stripe is called; returns the payment's id."""
    request = BookingRequest(slot_id=slot_id, customer=ADA, key=key)
    order = await checkout._order(till.engine, request)
    request = BookingRequest(
        slot_id=slot_id,
        customer=ADA,
        key=key,
        booking_id=order.booking_id,
        asked=("checkout", None, None),
        payment=checkout._new_payment(till.engine, request, order, NOWHERE),
        ttl_ms=checkout.SESSION_MINUTES * 60_000,
    )
    made, _ = await booking.book(till.engine, request, caller=CUSTOMER)
    [(payment_id,)] = till.query("SELECT id FROM payments WHERE booking_id = %s", made.id)
    assert isinstance(payment_id, UUID)
    return payment_id


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


# -- orders of an older system ----------------------------------------------------------------------------------------


def older_order(till: Till, slot_id: UUID | str, quantity: int = 1, **fields: Any) -> str:
    """Have an older system sell places: its sessions say no slots_reserved (S0-8)."""
    metadata = {"slot_id": str(slot_id), "quantity": str(quantity)}
    session_id = till.stripe.older_session(metadata=metadata, amount_total=PRICE * quantity, **fields)["id"]
    till.stripe.pay(session_id, name="Grace Hopper", email="grace@example.com")
    return str(session_id)


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


# -- too late ---------------------------------------------------------------------------------------------------------


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
        ending, pay = end(till, till.payment_id(first)), _pay(till, first.session_id or "")
        tasks = [asyncio.ensure_future(work) for work in ((ending, pay) if rng.random() < 0.5 else (pay, ending))]
        while not all(task.done() for task in tasks):
            try:
                other = await till.check_out(slot_id)
            except SlotUnavailable:
                await asyncio.sleep(0)
                continue
            await _pay(till, other.session_id or "")
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


async def _pay(till: Till, session_id: str) -> None:
    with contextlib.suppress(AssertionError):  # the page says that it is too late
        await asyncio.to_thread(till.stripe.pay, session_id)


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
    till.query("UPDATE payments SET status = 'closing' WHERE id = %s RETURNING 1", closing)
    assert await handed_out() == {due: "close"}
    assert await handed_out() == {}
    till.query("UPDATE payments SET asked_at = asked_at - interval '10 seconds' WHERE id <> %s RETURNING 1", due)
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
    slot_id, create, first = till.slot(), till.engine.gateway.create_session, asyncio.Event()

    async def fails_for_the_second(params: Any, key: str) -> Session:
        if not first.is_set():
            first.set()
            await asyncio.sleep(0.1)  # until the second is on its way to Stripe, too
            return await create(params, key)
        await asyncio.sleep(0.3)
        raise Unclear("no answer")

    monkeypatch.setattr(till.engine.gateway, "create_session", fails_for_the_second)
    key = uuid4().hex
    one, two = await asyncio.gather(till.check_out(slot_id, key=key), till.check_out(slot_id, key=key))
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


# -- money back -------------------------------------------------------------------------------------------------------


async def confirmed(till: Till, slot_id: UUID, quantity: int = 1) -> Started:
    started = await paid(till, slot_id, quantity)
    assert await till.receive(*till.told(started.session_id or "")) == ["confirmed"]
    return started


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
        await asyncio.gather(till.cancel(started.booking.id, CUSTOMER), _pay(till, started.session_id))
        await till.receive(*till.told(started.session_id))
        [(_, refund)] = till.statuses(slot_id)[1]
        if refund == "due":
            assert await settlement.refund(till.engine, till.payment_id(started)) == "refunded"
        [session] = [till.stripe.session(started.session_id)]
        assert till.statuses(slot_id)[0] == ["cancelled"]
        assert till.refunds(started.session_id) == ([PRICE] if session["payment_status"] == "paid" else [])


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
