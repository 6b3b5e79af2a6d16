"""The use cases of paying inside the test's own process, on real stores and with the Stripe simulator.

Nothing runs in the background: a test says when an event comes, when Stripe is asked, and what happens in between. The
fixtures are imported by name.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from app import booking, checkout, settlement
from app.booking import BookingRequest
from app.checkout import Started, Way
from app.domain import Booking, Caller, Customer
from app.engine import Engine, running
from app.settings import from_env
from tests.redis_servers import RedisServer
from tests.service import OPERATOR_KEY, SECRET, Postgres
from tests.shop import PRICE, assert_money_adds_up, event_of
from tests.stripe_simulator import KEY, WEBHOOK_SECRET, Simulator, running_simulator

ADA = Customer("Ada Lovelace", "ada@example.com", None)
NOWHERE = Way(None, None)
CUSTOMER, OPERATOR = Caller("customer", None), Caller("operator", None)
CONFIRMED = (["confirmed"], [("paid", "none")])


def environ(database_url: str, redis_url: str, stripe: Simulator) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "HOLDFAST_OPERATOR_KEY": OPERATOR_KEY,
        "HOLDFAST_SECRET": SECRET,
        "HOLDFAST_ENV": "test",
        "STRIPE_API_KEY": KEY,
        "STRIPE_API_BASE": stripe.url,
        "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
    }


@dataclass
class Till:
    engine: Engine
    stripe: Simulator
    database_url: str

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    # -- things to sell -----------------------------------------------------------------------------------------------

    def slots(self, *hours: float, capacity: int = 1, kind: str = "event", refund_hours: int = 0) -> list[UUID]:
        """Make slots of one resource, an hour long each, that begin so many hours from now."""
        venue_id, slot_ids = uuid4(), [uuid4() for _ in hours]
        with psycopg.connect(self.database_url) as connection:
            connection.execute(
                "INSERT INTO venues (id, slug, name, timezone, refund_hours) VALUES (%s, %s, 'Venue', 'UTC', %s)",
                (venue_id, f"v-{venue_id.hex[:16]}", refund_hours),
            )
            connection.execute(
                "INSERT INTO resources (id, venue_id, name, kind) VALUES (%s, %s, 'Tour', %s)",
                (uuid4(), venue_id, kind),
            )
            for slot_id, begin in zip(slot_ids, hours, strict=True):
                connection.execute(
                    "INSERT INTO slots (id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at,"
                    " capacity, price_amount, price_currency)"
                    " SELECT %s, venue_id, id, no, one_at_a_time, now() + %s, now() + %s, %s, %s, 'EUR'"
                    " FROM resources WHERE venue_id = %s",
                    (slot_id, timedelta(hours=begin), timedelta(hours=begin + 1), capacity, PRICE, venue_id),
                )
        return slot_ids

    def slot(self, capacity: int = 1, **fields: Any) -> UUID:
        return self.slots(24, capacity=capacity, **fields)[0]

    # -- what happens -------------------------------------------------------------------------------------------------

    async def check_out(self, slot_id: UUID, quantity: int = 1, key: str | None = None) -> Started:
        request = BookingRequest(slot_id=slot_id, quantity=quantity, customer=ADA, key=key)
        return await checkout.checkout(self.engine, request, NOWHERE, caller=CUSTOMER)

    async def cancel(self, booking_id: UUID, caller: Caller = OPERATOR) -> Booking:
        return await settlement.cancel(self.engine, booking_id, None, caller=caller)

    async def receive(self, *events: Mapping[str, Any]) -> list[str]:
        """Take these events in as the endpoint does, and apply each as a worker does; returns the outcomes."""
        outcomes = []
        for event in events:
            kept = settlement.needed(event["type"], event["data"]["object"])
            await self.engine.payments.keep_event(event["id"], event["type"], kept)
            outcomes.append(await settlement.apply_event(self.engine, event["id"]))
        return outcomes

    def told(self, session_id: str, books: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """List what Stripe would have told about a session and its money. `books`: read before, for many of them."""
        books = books or self.stripe.ledger()
        [intent] = [session["payment_intent"] for session in books["sessions"] if session["id"] == session_id]
        about = [session_id, intent or ""]
        return [
            event_of(event["type"], event["object"], event_id=event["id"])
            for event in books["events"]
            if event["object"]["id"] in about or event["object"].get("payment_intent") in about
        ]

    def forged(
        self, kind: str, session_id: str, books: Mapping[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Make an event about a session that says something else than is true, as an old one would."""
        books = books or self.stripe.ledger()
        [session] = [session for session in books["sessions"] if session["id"] == session_id]
        return event_of(f"checkout.session.{kind}", {**session, **fields})

    async def refund_due(self, payment_id: UUID) -> str:
        """Let the worker try a refund once more, as after its wait."""
        self.query("UPDATE payments SET asked_at = asked_at - interval '1 hour' WHERE id = %s RETURNING 1", payment_id)
        assert payment_id in await self.engine.payments.overdue_refunds()
        return await settlement.refund(self.engine, payment_id)

    # -- what is true afterwards --------------------------------------------------------------------------------------

    def payment_id(self, started: Started) -> UUID:
        [(payment_id,)] = self.query("SELECT id FROM payments WHERE session_id = %s", started.session_id)
        assert isinstance(payment_id, UUID)
        return payment_id

    def state(self, slot_id: UUID) -> dict[str, Any]:
        """Dump all that is known of a slot, without what differs between two of the same history."""
        return {
            "free": self.query("SELECT available_count FROM slots WHERE id = %s", slot_id),
            "bookings": self.query(
                "SELECT quantity, status, customer_email FROM bookings WHERE slot_id = %s ORDER BY created_at, id",
                slot_id,
            ),
            "payments": self.query(
                "SELECT quantity, amount, paid_amount, status, booking_id IS NULL, rebooked_id IS NULL, refund_status,"
                " refunded_amount, refund_reason FROM payments WHERE slot_id = %s ORDER BY created_at, id",
                slot_id,
            ),
            "events": self.query(
                "SELECT type, count(*) FROM events WHERE slot_id = %s GROUP BY type ORDER BY type", slot_id
            ),
        }

    def statuses(self, slot_id: UUID) -> tuple[list[str], list[tuple[str, str]]]:
        """Tell the statuses of a slot's bookings, and of their payments and refunds, oldest first."""
        bookings = self.query("SELECT status FROM bookings WHERE slot_id = %s ORDER BY created_at, id", slot_id)
        payments = "SELECT status, refund_status FROM payments WHERE slot_id = %s ORDER BY created_at, id"
        return [status for (status,) in bookings], self.query(payments, slot_id)  # type: ignore[return-value]

    def happened(self, slot_id: UUID, kind: str) -> list[dict[str, Any]]:
        rows = self.query("SELECT data FROM events WHERE slot_id = %s AND type = %s ORDER BY seq", slot_id, kind)
        return [data for (data,) in rows]

    def refunds(self, session_id: str | None) -> list[int]:
        """List the refunds of a session in Stripe's books."""
        books = self.stripe.ledger()
        [intent] = [session["payment_intent"] for session in books["sessions"] if session["id"] == session_id]
        return [refund["amount"] for refund in books["refunds"] if refund["payment_intent"] == intent]


# -- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stripe() -> Iterator[Simulator]:
    with running_simulator(None) as simulator:
        yield simulator


@asynccontextmanager
async def opened(database_url: str, redis: RedisServer, stripe: Simulator) -> AsyncIterator[Till]:
    async with running(from_env(environ(database_url, redis.url, stripe))) as engine:
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


# -- what is done at a till -------------------------------------------------------------------------------------------


async def paid(till: Till, slot_id: UUID, quantity: int = 1) -> Started:
    """Check out and pay; Stripe's news of it come when the test says so."""
    started = await till.check_out(slot_id, quantity)
    till.stripe.pay(started.session_id or "")
    return started


async def confirmed(till: Till, slot_id: UUID, quantity: int = 1) -> Started:
    started = await paid(till, slot_id, quantity)
    assert await till.receive(*till.told(started.session_id or "")) == ["confirmed"]
    return started


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


def older_order(till: Till, slot_id: UUID | str, quantity: int = 1, **fields: Any) -> str:
    """Have an older system sell places: its sessions say no slots_reserved (S0-8)."""
    metadata = {"slot_id": str(slot_id), "quantity": str(quantity)}
    session_id = till.stripe.older_session(metadata=metadata, amount_total=PRICE * quantity, **fields)["id"]
    till.stripe.pay(session_id, name="Grace Hopper", email="grace@example.com")
    return str(session_id)


async def try_to_pay(till: Till, session_id: str) -> None:
    with contextlib.suppress(AssertionError):  # the page says that it is too late
        await asyncio.to_thread(till.stripe.pay, session_id)


def several_times(events: Sequence[Mapping[str, Any]], rng: random.Random) -> list[Mapping[str, Any]]:
    """Repeat each event one to five times, later ones in between: what is delivered again comes when it likes."""
    told: list[Mapping[str, Any]] = []
    for event in events:
        told.append(event)
        told += rng.choices(told, k=rng.randrange(3))
    again = [event for event in events for _ in range(rng.randrange(3))]
    rng.shuffle(again)
    return told + again
