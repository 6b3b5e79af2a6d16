"""Webhooks: signed as Stripe signs them, and repeated until the receiver answers with a 2xx.

Like Stripe's they come in any order, more than once, late or never; tests choose which.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Literal

import httpx
from msgspec import Struct

from app.simulator import objects
from app.simulator.forms import StripeError
from app.simulator.state import Attempt, Books, Event

log = logging.getLogger("holdfast.simulator")

#: Pauses between attempts. Stripe's go on for three days: nobody waits so long for a simulator.
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 60.0, 60.0)
#: A receiver that takes longer has failed.
ANSWER_SECONDS = 10.0
#: Deliveries under way at once.
MAX_CONNECTIONS = 50


class Manner(Struct, forbid_unknown_fields=True):
    """How events are delivered from now on."""

    #: `hold` keeps events for `deliver`; `drop` loses them, and only the list of events knows.
    mode: Literal["normal", "hold", "drop"] = "normal"
    #: How often each event comes again after it was received.
    duplicates: int = 0
    #: How long before the first attempt.
    delay_seconds: float = 0.0
    retry_seconds: tuple[float, ...] = RETRY_SECONDS


def signature(body: bytes, secrets: Sequence[str], at: int) -> str:
    """Make the Stripe-Signature header: one `v1` for each secret, as while one is being replaced."""
    signed = str(at).encode() + b"." + body
    parts = [f"v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}" for secret in secrets]
    return ",".join([f"t={at}", *parts])


class Delivery:
    """Delivers the events of the books to one address."""

    def __init__(self, books: Books, url: str | None, secrets: Sequence[str]) -> None:
        self._books = books
        self._url = url
        self._secrets = secrets
        self._tasks: set[asyncio.Task[None]] = set()
        self._client = httpx.AsyncClient(
            timeout=ANSWER_SECONDS,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            follow_redirects=False,  # a redirect is a failure, as at Stripe
            trust_env=False,  # proxies lead away from this machine
        )
        self.manner = Manner()
        books.listener = self.take

    async def __aenter__(self) -> "Delivery":
        # What a former run did not bring to an end.
        for event in self._books.state.events.values():
            if event.delivery == "pending":
                self._start(self._until_received(event, self.manner))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def take(self, event: Event) -> None:
        """Begin to deliver a new event in the manner of the moment."""
        if self._url is None:
            return
        match self.manner.mode:
            case "hold":
                event.delivery = "held"
            case "drop":
                event.delivery = "dropped"
            case "normal":
                event.delivery = "pending"
                self._start(self._until_received(event, self.manner))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a delivery broke", exc_info=task.exception())

    async def _until_received(self, event: Event, manner: Manner) -> None:
        await asyncio.sleep(manner.delay_seconds)
        for pause in (*manner.retry_seconds, None):
            if await self._attempt(event):
                break
            if pause is None:
                event.delivery = "failed"
                self._note(event)
                return
            await asyncio.sleep(pause)
        for _ in range(manner.duplicates):
            await self._attempt(event)

    async def deliver(self, event_ids: Sequence[str] | None, times: int, *, concurrently: bool) -> list[dict[str, Any]]:
        """Deliver events now, each `times` times, in this order or all at once; by default those that are held.

        Raises:
            StripeError: there is no such event, or nobody to tell.
        """
        if self._url is None:
            raise StripeError(400, "This simulator has no webhook URL.")
        events = self._books.state.events
        if event_ids is None:
            event_ids = [event.id for event in events.values() if event.delivery == "held"]
        if unknown := [event_id for event_id in event_ids if event_id not in events]:
            raise StripeError(404, f"No such event: {', '.join(unknown)}", code="resource_missing")
        shots = [events[event_id] for event_id in event_ids for _ in range(times)]
        if concurrently:
            await asyncio.gather(*(self._attempt(event) for event in shots))
        else:
            for event in shots:
                await self._attempt(event)
        told = dict.fromkeys(event_ids)
        return [{"event": event_id, "delivery": events[event_id].delivery} for event_id in told]

    async def _attempt(self, event: Event) -> bool:
        """Send an event once; True when it was received."""
        body = json.dumps(objects.event(event), indent=2).encode()
        # The real time, whatever the simulator's clock says: the receiver compares it with its own.
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(body, self._secrets, int(time.time())),
            "User-Agent": "Stripe/1.0 (a simulator of Holdfast; no money moves)",
        }
        attempt = Attempt(at=time.time())
        try:
            answer = await self._client.post(self._url or "", content=body, headers=headers)
            attempt.status = answer.status_code
        except httpx.HTTPError as error:
            attempt.error = f"{type(error).__name__}: {error}"
        event.attempts.append(attempt)
        received = attempt.status is not None and 200 <= attempt.status < 300
        if received:
            event.delivery = "delivered"
        self._note(event)
        return received

    def _note(self, event: Event) -> None:
        last = event.attempts[-1]
        if event.delivery != "delivered":
            log.warning("%s %s was not received: %s", event.type, event.id, last.error or last.status)
        self._books.changed()
        self._books.save()
