"""The Stripe simulator for tests: in a process of its own, reached over real sockets.

    with running_simulator(webhook_url, "whsec_…") as stripe:
        ...                                      # have the service create a session; base address `stripe.url`
        stripe.fault("sessions.create", "reply_lost")
        stripe.pay(session_id)                   # as the customer; the webhook follows
        assert stripe.ledger()["payments"][0]["kept"] == 2500

`Receiver` is a small server for webhooks that remembers what it got and answers what it is told to.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from tests.service import START_SECONDS, eventually

#: For tests that call the SDK themselves: it hands text to httpx in a way that httpx calls outdated, and our tests take
#: every warning for an error.
SDK_WARNING = "ignore:Use 'content=:DeprecationWarning"
KEY = "sk_simulator_of_the_tests"
WEBHOOK_SECRET = "whsec_of_the_tests"
ROOT = Path(__file__).parent.parent
CLIENT_SECONDS = 30.0


@dataclass(frozen=True)
class Simulator:
    """A running simulator. `key` opens its API and its control; `secret` verifies its webhooks."""

    url: str
    key: str
    secret: str
    process: subprocess.Popen[bytes]
    http: httpx.Client
    #: It ends, and at once, when this is closed.
    lifeline: IO[bytes]

    # -- the customer -------------------------------------------------------------------------------------------------

    def pay(self, session_id: str, method: str = "card", **customer: str) -> dict[str, Any]:
        """Pay; `method="delayed"` completes the session unpaid. `name`, `email` and `phone` are the customer's."""
        return self.control("POST", f"sessions/{session_id}/pay", {"method": method, **customer})

    def settle(self, session_id: str, *, succeed: bool) -> dict[str, Any]:
        """Have the money of a delayed payment arrive, or not."""
        return self.control("POST", f"sessions/{session_id}/settle", {"succeed": succeed})

    # -- the others ---------------------------------------------------------------------------------------------------

    def dashboard_refund(self, payment_intent: str, amount: int | None = None) -> dict[str, Any]:
        """Refund as somebody would in Stripe's Dashboard: the service hears of it by webhook only."""
        return self.control("POST", "refund", {"payment_intent": payment_intent, "amount": amount})

    def fail_refund(self, refund_id: str, status: str = "failed") -> dict[str, Any]:
        """Have a refund come back, days after it was made as it seems: `failed`, or `canceled`."""
        return self.control("POST", f"refunds/{refund_id}/fail", {"status": status})

    def older_session(self, **fields: Any) -> dict[str, Any]:
        """Make a session that the service never asked for: `metadata`, `amount_total`, `client_reference_id`, …"""
        return self.control("POST", "sessions", fields)

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def fault(self, operation: str, fault: str, times: int = 1, seconds: float = 0.0) -> None:
        """Have the next requests of an operation fail: see app/simulator/faults.py for operations and faults."""
        self.control("POST", "faults", {"operation": operation, "fault": fault, "times": times, "seconds": seconds})

    def no_faults(self) -> None:
        """Forget the faults that still wait, and end pauses: `fault(…, "timeout", seconds=60)` lasts until here."""
        self.control("DELETE", "faults")

    def delivery(self, mode: str = "normal", **manner: Any) -> None:
        """Choose how webhooks come: `normal`, `hold`, `drop`; `duplicates`, `delay_seconds`, `retry_seconds`."""
        self.control("POST", "delivery", {"mode": mode, **manner})

    def deliver(
        self, event_ids: Sequence[str] | None = None, *, times: int = 1, concurrently: bool = False
    ) -> list[dict[str, Any]]:
        """Send events now, in this order or all at once; by default those that are held. Returns when all were sent."""
        asked = {"event_ids": event_ids, "times": times, "concurrently": concurrently}
        sent: list[dict[str, Any]] = self.control("POST", "deliver", asked)["delivered"]
        return sent

    def clock(self, offset_seconds: float) -> None:
        """Set its clock so far before the real one; what is due by then has happened when this returns."""
        self.control("POST", "clock", {"offset_seconds": offset_seconds})

    # -- what is true -------------------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, Any]:
        """Read the books: sessions, payments, refunds, events with their attempts, requests, idempotency_keys."""
        return self.control("GET", "ledger")

    def session(self, session_id: str) -> dict[str, Any]:
        """Find a session in the books."""
        [found] = [session for session in self.ledger()["sessions"] if session["id"] == session_id]
        return dict(found)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """List events in the order in which they happened, of one type or all."""
        return [event for event in self.ledger()["events"] if kind in (None, event["type"])]

    def wait_delivered(self, kind: str, count: int = 1) -> None:
        """Wait until so many events of a type were received with a 2xx."""

        def received() -> bool:
            return sum(event["delivery"] == "delivered" for event in self.events(kind)) >= count

        eventually(received, f"{count} {kind} to be received")

    def control(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Call a route under /_control."""
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = self.http.request(method, f"{self.url}/_control/{path}", headers=headers, json=body)
        assert answer.status_code == 200, f"{method} {path}: {answer.text}"
        told: dict[str, Any] = answer.json()
        return told


@contextmanager
def running_simulator(
    webhook_url: str | None,
    webhook_secret: str = WEBHOOK_SECRET,
    *,
    port: int = 0,
    smtp: socket.socket | None = None,
    **environ: str,
) -> Iterator[Simulator]:
    """Run a simulator until the block ends, e-mails at the socket `smtp` included if there is one.

    A webhook that is not received is repeated after a second, then after two: `delivery(retry_seconds=…)` for less.
    """
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    reader, writer = os.pipe()
    lifeline = os.fdopen(writer, "wb")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = {"HOLDFAST_ENV": "test", "STRIPE_WEBHOOK_SECRET": webhook_secret, **environ}
    if webhook_url:
        settings["HOLDFAST_SIMULATOR_WEBHOOK_URL"] = webhook_url
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_SIMULATOR_")}
    handed_on = [listener.fileno(), reader, *([smtp.fileno()] if smtp else [])]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.simulator", *(str(number) for number in handed_on)],
            env={**inherited, **settings},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=handed_on,
        )
        listener.close()
        os.close(reader)
        try:
            eventually(lambda: _answers(url, process, log), "the simulator to answer", seconds=START_SECONDS)
            with httpx.Client(timeout=CLIENT_SECONDS, trust_env=False) as http:
                yield Simulator(url, KEY, webhook_secret, process, http, lifeline)
        finally:
            process.terminate()
            try:
                process.wait(timeout=START_SECONDS)
            finally:
                lifeline.close()  # it ends with that, whatever holds it up


def _answers(url: str, process: subprocess.Popen[bytes], log: Any) -> bool:
    if process.poll() is not None:
        log.seek(0)
        pytest.fail(f"the simulator ended while it started:\n{log.read().decode()[-3000:]}")
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/livez", timeout=2, trust_env=False).status_code == 200
    return False


# -- whoever looks at it ----------------------------------------------------------------------------------------------


def see(url: str, **options: Any) -> httpx.Response:
    """Look at a page or an address, as another program."""
    return httpx.get(url, timeout=CLIENT_SECONDS, verify=False, **options)  # noqa: S501 not https, and faster so


def refused_control(simulator: Simulator, path: str, body: Any) -> int:
    headers = {"Authorization": f"Bearer {simulator.key}"}
    return httpx.post(
        f"{simulator.url}/_control/{path}", json=body, headers=headers, timeout=CLIENT_SECONDS
    ).status_code


def of_session(simulator: Simulator, session_id: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in simulator.events(kind) if event["object"]["id"] == session_id]


# -- whoever gets the webhooks ----------------------------------------------------------------------------------------


@dataclass
class Received:
    body: bytes
    signature: str

    @property
    def event(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)
        return told


@dataclass
class Receiver:
    """A server that remembers the webhooks it got. `answers` are the statuses of the next ones, then always 200."""

    url: str
    received: list[Received] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def types(self) -> list[str]:
        return [one.event["type"] for one in self.received]

    def wait_for(self, count: int) -> list[Received]:
        eventually(lambda: len(self.received) >= count, f"{count} webhooks")
        return self.received


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Receive webhooks until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                receiver.received.append(Received(body, self.headers["Stripe-Signature"]))
                status = receiver.answers.pop(0) if receiver.answers else 200
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    lock = threading.Lock()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}/webhooks")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
