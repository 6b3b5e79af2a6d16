"""A service that can be paid: HTTP workers, a job worker, the Stripe simulator and a mailbox, each a real process."""

import contextlib
import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.redis_servers import RedisServer
from tests.service import CUSTOMER, HOLDFAST, Postgres, Service, eventually, free_port, serving, store_environ
from tests.stripe_simulator import KEY, WEBHOOK_SECRET, Simulator, running_simulator


@dataclass
class Shop:
    """`worker` can be killed and started again: `with_worker`."""

    service: Service
    stripe: Simulator
    environ: dict[str, str]

    @contextmanager
    def with_worker(self, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a job worker until the block ends; it may have been killed by then."""
        with tempfile.TemporaryFile("w+") as log:
            worker = subprocess.Popen(
                [str(HOLDFAST), "worker"],
                env={**os.environ, **self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                yield worker
            finally:
                worker.terminate()
                try:
                    code = worker.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()
                    raise
                log.seek(0)
                told = log.read()
                if code not in (0, -9):
                    pytest.fail(f"the worker ended with {code}:\n{told[-3000:]}")

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

        eventually(there, f"booking {booking_id} to be {status}, refund {refund}; it is {seen}", seconds=30)
        return seen[0]

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

    def assert_money_adds_up(self) -> None:
        """The money query is empty, and Stripe's books say the same as ours (I8)."""
        assert self.service.query("SELECT payment_id, booking_id, what FROM money_mismatches") == []
        ours = {
            intent: (amount, refunded)
            for intent, amount, refunded in self.service.query(
                "SELECT payment_intent, amount, refunded_amount FROM payments"
                " WHERE status IN ('paid', 'mismatched') AND payment_intent IS NOT NULL"
            )
        }
        theirs = {
            payment["id"]: (payment["amount"], payment["amount"] - payment["kept"])
            for payment in self.stripe.ledger()["payments"]
            if payment["id"] in ours
        }
        assert ours == theirs


@contextmanager
def running_shop(
    postgres: Postgres, redis: RedisServer, tmp: Path, *, workers: int = 2, **environ: str
) -> Iterator[Shop]:
    port = free_port()
    webhooks = f"http://127.0.0.1:{port}/v1/webhooks/stripe"
    with contextlib.ExitStack() as stack:
        stripe = stack.enter_context(running_simulator(webhooks, HOLDFAST_SIMULATOR_MAIL_DIR=str(tmp / "mail")))
        database_url = postgres.fresh()
        paying = {
            "STRIPE_API_KEY": KEY,
            "STRIPE_API_BASE": stripe.url,
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            **environ,
        }
        service = stack.enter_context(
            serving(database_url, redis.url, redis=redis, workers=workers, port=port, **paying)
        )
        yield Shop(service, stripe, {**store_environ(database_url, redis.url), **paying})
