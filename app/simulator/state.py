"""What the simulator remembers, its clock, and the file it is kept in."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

Metadata = dict[str, str]
SessionStatus = Literal["open", "complete", "expired"]
PaymentStatus = Literal["processing", "succeeded", "requires_payment_method"]
RefundStatus = Literal["succeeded", "failed", "canceled"]
#: What became of telling an event: nobody listens; not yet; kept back; thrown away; a 2xx came; it was given up.
Delivered = Literal["none", "pending", "held", "dropped", "delivered", "failed"]


class LineItem(msgspec.Struct, kw_only=True):
    name: str
    description: str | None = None
    quantity: int
    unit_amount: int


class Session(msgspec.Struct, kw_only=True):
    """A Checkout Session."""

    id: str
    created: int
    expires_at: int
    status: SessionStatus = "open"
    paid: Literal["unpaid", "paid", "no_payment_required"] = "unpaid"
    amount_total: int
    currency: str
    line_items: list[LineItem]
    payment_method_types: list[str]
    client_reference_id: str | None = None
    metadata: Metadata = {}
    payment_metadata: Metadata = {}
    success_url: str | None = None
    cancel_url: str | None = None
    customer_email: str | None = None
    #: What the customer gave on the pay page.
    name: str | None = None
    email: str | None = None
    phone: str | None = None
    #: Null until somebody pays.
    payment_intent: str | None = None


class Payment(msgspec.Struct, kw_only=True):
    """A payment intent and its only charge."""

    id: str
    charge: str
    session: str
    created: int
    amount: int
    refunded: int = 0
    currency: str
    status: PaymentStatus
    metadata: Metadata
    name: str | None = None
    email: str | None = None
    phone: str | None = None


class Refund(msgspec.Struct, kw_only=True):
    id: str
    payment_intent: str
    charge: str
    created: int
    amount: int
    currency: str
    reason: str | None = None
    metadata: Metadata = {}
    status: RefundStatus = "succeeded"


class Attempt(msgspec.Struct, kw_only=True):
    """One try to deliver an event: what the receiver answered, or why there was no answer."""

    at: float
    status: int | None = None
    error: str | None = None


class Event(msgspec.Struct, kw_only=True):
    id: str
    type: str
    created: int
    #: The object as it was at that moment.
    object: dict[str, Any]
    delivery: Delivered
    attempts: list[Attempt] = []


class Saved(msgspec.Struct, kw_only=True):
    """The first answer under an idempotency key."""

    fingerprint: str
    at: float
    status: int
    body: str


class KeyUse(msgspec.Struct, kw_only=True):
    operation: str
    requests: int = 0
    executions: int = 0


class State(msgspec.Struct, kw_only=True):
    """Everything that a restart must not forget."""

    sessions: dict[str, Session] = {}
    payments: dict[str, Payment] = {}
    refunds: dict[str, Refund] = {}
    events: dict[str, Event] = {}
    saved: dict[str, Saved] = {}
    requests: dict[str, int] = {}
    keys: dict[str, KeyUse] = {}
    offset_seconds: float = 0.0


class Books:
    """The state, its clock and its file. One event loop reads and writes it: no step awaits in the middle."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._dirty = False
        self.state = msgspec.json.decode(path.read_bytes(), type=State) if path and path.exists() else State()
        #: Set when something may be due earlier than it was.
        self.moved = asyncio.Event()
        #: Whom to tell of a new event.
        self.listener: Callable[[Event], None] = lambda _: None

    def now(self) -> float:
        """Tell the time of the simulator, which tests set forward."""
        return time.time() + self.state.offset_seconds

    def set_clock(self, offset_seconds: float) -> None:
        """Set the clock so many seconds before the real one, or behind it."""
        self.state.offset_seconds = offset_seconds
        self.changed()
        self.moved.set()

    def changed(self) -> None:
        """Note that the file is behind."""
        self._dirty = True

    def save(self) -> None:
        """Bring the file up to date, whole or not at all. Done before anybody is told what changed."""
        if not self._dirty or self._path is None:
            return
        self._dirty = False
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(self.state))
        draft.replace(self._path)
