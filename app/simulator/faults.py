"""What goes wrong on demand: faults wait for the next requests of an operation, in the order they were asked for."""

import asyncio
import contextlib
from typing import Literal

from msgspec import Struct

from app.simulator.forms import StripeError

#: Before execution nothing happened and nothing is kept; whoever repeats the request may succeed.
#: `timeout` executes after a pause, `late_reply` before it; `reply_lost` executes and hangs up.
Outside = Literal["reset_before", "429", "503", "400", "timeout", "late_reply", "reply_lost"]
#: These are results of an execution: kept under the key, so that whoever repeats the request gets them again.
#: `500` did nothing; `500_after` did all of it; `402` is a refused card.
Inside = Literal["500", "500_after", "402"]
Kind = Literal[Outside, Inside]

INSIDE: tuple[Kind, ...] = ("500", "500_after", "402")
Operation = Literal[
    "sessions.create",
    "sessions.retrieve",
    "sessions.list",
    "sessions.expire",
    "refunds.create",
    "refunds.retrieve",
    "refunds.list",
    "payment_intents.retrieve",
    "events.list",
    "events.retrieve",
]


class Fault(Struct, forbid_unknown_fields=True):
    operation: Operation
    fault: Kind
    #: How many requests it meets.
    times: int = 1
    #: The pause of `timeout` and `late_reply`.
    seconds: float = 0.0


class Faults:
    """The faults that still wait for a request."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []
        self._ended = asyncio.Event()

    def take(self, operation: str, *, executing: bool) -> Fault | None:
        """Return the fault that this request meets, if any: at most one each.

        A repeated request that gets its first answer again is not executed, and leaves the faults of executions alone.
        """
        found = next((fault for fault in self.waiting if fault.operation == operation), None)
        if found is None or (found.fault in INSIDE) is not executing:
            return None
        found.times -= 1
        self.waiting = [fault for fault in self.waiting if fault.times > 0]
        return found

    async def pause(self, seconds: float) -> None:
        """Pause a request, until somebody clears the faults at the latest."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ended.wait()

    def clear(self) -> None:
        """Forget the faults that wait, and end the pauses that are under way."""
        self.waiting.clear()
        self._ended.set()
        self._ended = asyncio.Event()


def refuse(kind: Kind) -> None:
    """Raise the error that a fault answers with, if it does.

    Raises:
        StripeError
    """
    match kind:
        case "429":
            raise StripeError(429, "Too many requests hit the API too quickly.", code="rate_limit")
        case "503":
            raise StripeError(503, "Stripe is temporarily unavailable (a simulated fault).", kind="api_error")
        case "400":
            raise StripeError(400, "Invalid request (a simulated fault).", code="parameter_invalid_empty")
        case "402":
            raise StripeError(402, "Your card was declined.", kind="card_error", code="card_declined")
        case "500" | "500_after":
            raise StripeError(500, "An unknown error occurred (a simulated fault).", kind="api_error")
