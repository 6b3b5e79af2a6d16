"""A service that can be paid: HTTP workers, a job worker, the Stripe simulator and a mailbox, each a real process."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.simulator.delivery import signature
from tests import factories
from tests.faults import FaultProxy
from tests.redis_servers import RedisServer
from tests.service import (
    CUSTOMER,
    HOLDFAST,
    START_SECONDS,
    Service,
    eventually,
    free_port,
    is_ready,
    serving,
    store_environ,
)
from tests.stripe_simulator import KEY, WEBHOOK_SECRET, Simulator, running_simulator

Query = Callable[..., list[tuple[Any, ...]]]
#: How soon a webhook that was not received comes again.
RETRY_SECONDS = [0.2, 0.5] + [1.0] * 30
#: What a place costs, unless a test says otherwise.
PRICE = 2500


@dataclass
class Shop:
    """`worker` can be killed and started again: `with_worker`."""

    service: Service
    stripe: Simulator
    #: Between the service and Stripe.
    to_stripe: FaultProxy
    environ: dict[str, str]

    def with_worker(self, **environ: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Run a job worker until the block ends; it may have been killed by then."""
        return running_worker({**self.environ, **environ})

    def kill_http_workers(self) -> None:
        """Kill them all at one instant; others take their place."""
        parent = self.service.process.pid
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)

    def wait_ready(self) -> None:
        eventually(lambda: is_ready(self.service.url), "the service to be ready again", seconds=START_SECONDS)

    def forget_dead_workers(self) -> None:
        """Let it be long ago that any job worker was heard of. After a kill: who lives says so every few seconds."""
        self.service.query(
            "UPDATE jobs.procrastinate_workers SET last_heartbeat = last_heartbeat - interval '1 hour' RETURNING 1"
        )

    def hurry(self) -> None:
        """Let whatever waits for its next try have waited long enough."""
        options = "-c search_path=public,jobs"  # the triggers of the queue name its types without their schema
        with psycopg.connect(self.service.database_url, autocommit=True, options=options) as connection:
            connection.execute(
                "UPDATE payments SET asked_at = asked_at - interval '1 hour' WHERE refund_status = 'due'"
                " OR status = 'closing' OR status = 'open' AND expires_at <= clock_timestamp()"
            )
            connection.execute(
                "UPDATE procrastinate_jobs SET scheduled_at = now() WHERE status = 'todo' AND scheduled_at > now()"
            )

    def jobs(self) -> list[tuple[Any, ...]]:
        return self.service.query("SELECT task_name, status::text FROM jobs.procrastinate_jobs ORDER BY id")

    # -- things to sell -----------------------------------------------------------------------------------------------

    def slot(self, capacity: int = 1, price: int | None = PRICE, **venue: Any) -> str:
        """Make a slot at a venue of its own."""
        priced = {} if price is None else {"price": {"amount": price, "currency": "EUR"}}
        with factories.client(self.service, operator=True) as operator:
            of = factories.resource(operator, factories.venue(operator, **venue)["slug"])
            return str(factories.slot(operator, of, capacity=capacity, **priced)["id"])

    # -- what a customer does -----------------------------------------------------------------------------------------

    def check_out(self, slot_id: str, quantity: int = 1, *, key: str | None = None, **fields: Any) -> httpx.Response:
        return httpx.post(
            f"{self.service.url}/v1/checkout",
            json={"slot_id": slot_id, "quantity": quantity, "customer": CUSTOMER, **fields},
            headers={"Idempotency-Key": key} if key else {},
            timeout=30,
        )

    def checked_out(self, slot_id: str, quantity: int = 1, **fields: Any) -> dict[str, Any]:
        answer = self.check_out(slot_id, quantity, **fields)
        assert answer.status_code == 201, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def paid(self, slot_id: str, quantity: int = 1) -> dict[str, Any]:
        """Check out, pay, and wait until it is confirmed."""
        started = self.checked_out(slot_id, quantity)
        self.stripe.pay(started["session_id"])
        self.wait_for(started["booking"]["id"], "confirmed")
        return started

    def cancel(self, started: Mapping[str, Any], *, operator: bool = False) -> httpx.Response:
        booking = started["booking"]
        headers = self.service.operator if operator else {"Manage-Token": booking["manage_token"]}
        return httpx.post(f"{self.service.url}/v1/bookings/{booking['id']}/cancel", headers=headers, timeout=30)

    def booking(self, booking_id: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.service.url}/v1/bookings/{booking_id}", headers=self.service.operator, timeout=30)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def wait_for(self, booking_id: str, status: str, refund: str | None = None) -> dict[str, Any]:
        """Wait until a booking, and the refund of its payment, have a status."""
        seen: list[dict[str, Any]] = []

        def there() -> bool:
            seen[:] = [self.booking(booking_id)]
            payment = seen[0].get("payment") or {}
            return seen[0]["status"] == status and refund in (None, payment.get("refund_status"))

        eventually(there, f"booking {booking_id} to be {status}, refund {refund}; it is {seen}")
        return seen[0]

    def letters(self, booking_id: str, count: int = 1) -> list[str]:
        """Wait for e-mails about a booking; returns their sources, the first one first."""
        found: list[str] = []

        def there() -> bool:
            listed = httpx.get(f"{self.stripe.url}/mailbox.json", timeout=30).json()["data"]
            found[:] = [letter["id"] for letter in listed if booking_id in letter["message_id"]][::-1]
            return len(found) >= count

        eventually(there, f"{count} e-mails about {booking_id}")
        return [httpx.get(f"{self.stripe.url}/mailbox/{letter}/source", timeout=30).text for letter in found]

    def available(self, slot_id: str) -> tuple[int, int]:
        """Read what Postgres and what the mirror say can be taken."""
        slot = httpx.get(f"{self.service.url}/v1/slots/{slot_id}", timeout=30).json()
        return slot["available_count"], slot["available"]

    def events(self, **which: str) -> list[dict[str, Any]]:
        answer = httpx.get(
            f"{self.service.url}/v1/events", params={"limit": "100", **which}, headers=self.service.operator, timeout=30
        )
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    def lapse(self, booking_id: str) -> None:
        """Let the time of a booking that waits for payment be over in a moment, instead of in half an hour."""
        for table, column in (("bookings", "id"), ("payments", "booking_id")):
            self.service.query(
                f"UPDATE {table} SET expires_at = clock_timestamp() + interval '1 second' WHERE {column} = %s"
                " AND expires_at IS NOT NULL RETURNING 1",
                uuid.UUID(booking_id),
            )

    # -- what Stripe says ---------------------------------------------------------------------------------------------

    def post_event(self, body: bytes, header: str | None) -> httpx.Response:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if header is not None:
            headers["Stripe-Signature"] = header
        return httpx.post(f"{self.service.url}/v1/webhooks/stripe", content=body, headers=headers, timeout=30)

    def tell(self, kind: str, about: Mapping[str, Any], *, event_id: str | None = None, **fields: Any) -> str:
        """Send an event that Stripe's simulator knows nothing of, signed as Stripe signs; returns its id."""
        event = event_of(kind, about, event_id=event_id, **fields)
        body = json.dumps(event).encode()
        answer = self.post_event(body, signature(body, [WEBHOOK_SECRET], int(time.time())))
        assert answer.status_code == 200, answer.text
        return str(event["id"])

    def inbox(self, event_id: str) -> list[tuple[Any, ...]]:
        return self.service.query("SELECT outcome FROM webhook_inbox WHERE event_id = %s", event_id)

    def wait_applied(self, event_ids: Sequence[str] | None = None) -> None:
        """Wait until these events, by default all that came, have had their effect."""
        which = "" if event_ids is None else " AND event_id = ANY (%s)"
        values = [] if event_ids is None else [list(event_ids)]
        waiting = f"SELECT event_id, type FROM webhook_inbox WHERE applied_at IS NULL{which}"
        eventually(lambda: not self.service.query(waiting, *values), "Stripe's events to be applied")

    def wait_told(self) -> None:
        """Wait until nothing that Stripe has to tell is under way: it would come in the middle of the next test."""
        eventually(
            lambda: all(event["delivery"] != "pending" for event in self.stripe.events()), "Stripe's events to be told"
        )

    def look_now(self, booking_id: str) -> None:
        """Let the worker believe that it is long ago that it asked Stripe about a booking's payment."""
        self.service.query(
            "UPDATE payments SET asked_at = asked_at - interval '1 hour', created_at = created_at - interval '1 hour'"
            " WHERE booking_id = %s RETURNING 1",
            uuid.UUID(booking_id),
        )

    # -- what is true afterwards --------------------------------------------------------------------------------------

    def payment(self, booking_id: str, *columns: str) -> tuple[Any, ...]:
        """Read the last payment of a booking."""
        return self.service.query(
            f"SELECT {', '.join(columns)} FROM payments WHERE %s IN (booking_id, rebooked_id) ORDER BY created_at",
            uuid.UUID(booking_id),
        )[-1]

    def assert_places(self, slot_id: str, capacity: int, taken: int) -> None:
        """Both stores say that so many places are taken, at this moment; no count is below 0 anywhere (S0-11)."""
        assert self.service.query("SELECT id FROM slots WHERE available_count < 0") == []
        live = "status IN ('held', 'pending_payment', 'confirmed')"
        [(sold,)] = self.service.query(
            f"SELECT coalesce(sum(quantity), 0) FROM bookings WHERE slot_id = %s AND {live}", uuid.UUID(slot_id)
        )
        assert (sold, self.available(slot_id)) == (taken, (capacity - taken, capacity - taken))

    def settle(self) -> None:
        """Let Stripe be well again, and all that is under way come to its end; then the money must add up."""
        self.to_stripe.heal()
        self.stripe.no_faults()
        self.stripe.delivery(retry_seconds=RETRY_SECONDS)
        self.wait_told()
        self.wait_applied()
        owed = "SELECT id FROM payments WHERE refund_status = 'due'"

        def refunded() -> bool:
            self.hurry()
            return not self.service.query(owed)

        eventually(refunded, "all refunds to be made")
        self.wait_told()
        self.wait_applied()
        self.assert_money_adds_up()

    def assert_money_adds_up(self) -> None:
        """The money query is empty, and Stripe's books say the same as ours (I8)."""
        assert_money_adds_up(self.service.query, self.stripe)


def event_of(kind: str, about: Mapping[str, Any], *, event_id: str | None = None, **fields: Any) -> dict[str, Any]:
    event_id = event_id or f"evt_{secrets.token_hex(12)}"
    return {
        "id": event_id, "object": "event", "type": kind, "livemode": False, "data": {"object": dict(about)}, **fields
    }  # fmt: skip


def assert_money_adds_up(query: Query, stripe: Simulator) -> None:
    """The money query is empty; every payment that one side knows of, the other does, with the same sums (I8)."""
    assert query("SELECT payment_id, booking_id, what FROM money_mismatches") == []
    ours = {
        intent: (amount, refunded)
        for intent, amount, refunded in query(
            "SELECT payment_intent, paid_amount, refunded_amount FROM payments WHERE payment_intent IS NOT NULL"
        )
    }
    theirs = {
        payment["id"]: (payment["amount"], payment["amount"] - payment["kept"])
        for payment in stripe.ledger()["payments"]
        if payment["status"] == "succeeded" and not _is_nobodys(payment)
    }
    assert ours == theirs


def _is_nobodys(payment: Mapping[str, Any]) -> bool:
    """An order for a slot that there is not: reported as an orphan, and left to its owner."""
    return bool(payment["metadata"].get("nobodys"))


@contextmanager
def running_worker(environ: Mapping[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a job worker of the service with these settings until the block ends; it may have been killed by then."""
    with tempfile.TemporaryFile("w+") as log:
        worker = subprocess.Popen(
            [str(HOLDFAST), "worker", *arguments],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield worker
        finally:
            wait_stoppable(worker)
            worker.terminate()
            try:
                code = worker.wait(timeout=START_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
                raise
            log.seek(0)
            told = log.read()
            if code not in (0, -signal.SIGKILL):
                pytest.fail(f"the worker ended with {code}:\n{told[-3000:]}")


def wait_stoppable(worker: subprocess.Popen[bytes]) -> None:
    """Wait until a worker has got as far as to end cleanly when it is told to. It says so: which signals a process
    catches tells nothing, since to measure coverage is to catch SIGTERM from the first line on.
    """

    def says_so() -> bool:
        if worker.poll() is not None:
            return True
        with contextlib.suppress(OSError):  # it ended just now
            return "worker_started" in Path(f"/proc/{worker.pid}/fd/2").read_text()
        return False

    eventually(says_so, "the worker to start", seconds=START_SECONDS)


@contextmanager
def running_shop(
    database_url: str, redis: RedisServer, tmp: Path, *, workers: int = 2, **environ: str
) -> Iterator[Shop]:
    """Run all but the job worker until the block ends; e-mails go to the simulator's mailbox."""
    port = free_port()
    webhooks = f"http://127.0.0.1:{port}/v1/webhooks/stripe"
    with contextlib.ExitStack() as stack:
        smtp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stripe = stack.enter_context(
            running_simulator(webhooks, smtp=smtp, HOLDFAST_SIMULATOR_MAIL_DIR=str(tmp / "mail"))
        )
        stripe.delivery(retry_seconds=RETRY_SECONDS)
        to_stripe = stack.enter_context(FaultProxy(("127.0.0.1", int(stripe.url.rpartition(":")[2]))))
        paying = {
            "STRIPE_API_KEY": KEY,
            "STRIPE_API_BASE": f"http://127.0.0.1:{to_stripe.port}",
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "HOLDFAST_SMTP_URL": f"smtp://127.0.0.1:{smtp.getsockname()[1]}",
            **environ,
        }
        service = stack.enter_context(
            serving(database_url, redis.url, redis=redis, workers=workers, port=port, **paying)
        )
        yield Shop(service, stripe, to_stripe, {**store_environ(database_url, redis.url), **paying})
