"""One request and its answer, whatever it asks for: whose key it has, its first answer again, and what goes wrong on
demand. Knows no route.
"""

import base64
import binascii
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from app.settings import SIMULATOR_KEY_PREFIX
from app.simulator import faults, forms, objects
from app.simulator.delivery import Delivery
from app.simulator.faults import Fault, Faults
from app.simulator.forms import StripeError
from app.simulator.idempotency import Idempotency, fingerprint
from app.simulator.ledger import Ledger
from app.simulator.state import Books

Asking = Request[Any, Any, Any]
#: Done after the parameters were found good: what of it fails is a result, and kept like one.
Execute = Callable[[], Any]

#: In the scope of a request whose connection is to be cut instead of answered; `server.py` does it.
CUT = "simulator.cut"


@dataclass
class Simulator:
    """What the routes work with: `app.state.simulator`."""

    books: Books
    ledger: Ledger
    idempotency: Idempotency
    delivery: Delivery
    faults: Faults = field(default_factory=Faults)


def simulator_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Simulator:
    """Find the simulator behind a request."""
    found: Simulator = connection.app.state.simulator
    return found


def with_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler | None = None) -> None:
    """Let only keys of simulators pass, as bearer token or as the user of Basic authentication.

    Raises:
        StripeError: the text never repeats the key, which may be a real one that came here by mistake.
    """
    scheme, _space, given = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            given = ""
    if not given:
        raise StripeError(401, "You did not provide an API key. You need to provide it in the Authorization header.")
    if not given.strip().startswith(SIMULATOR_KEY_PREFIX):
        only = f"this is a simulator, and takes only keys that begin with {SIMULATOR_KEY_PREFIX}"
        raise StripeError(401, f"Invalid API Key provided: {only}")


# -- one request ------------------------------------------------------------------------------------------------------


async def answered(
    request: Asking, operation: str, prepare: Callable[[Simulator, dict[str, Any]], Execute]
) -> Response[bytes]:
    """Answer a request. `prepare` checks its parameters and returns what then executes it."""
    simulator = simulator_of(request)
    key = request.headers.get("idempotency-key") or None if request.method == "POST" else None
    headers = {"Request-Id": f"req_{secrets.token_hex(7)}", "Stripe-Version": objects.API_VERSION}
    try:
        with_key(request)
        encoded = await _encoded(request)
        _count(simulator, operation, key)
        fault = simulator.faults.take(operation, executing=False)
        if fault and fault.fault == "reset_before":
            request.scope[CUT] = True  # type: ignore[literal-required]
            return Response(b"")
        if fault:
            faults.refuse(fault.fault)
        params = forms.decode(encoded)
        call = Call(operation, key, fingerprint(request.url.path, params), fault)
        answer = await _carry_out(simulator, call, lambda: prepare(simulator, params))
    except StripeError as error:
        return _response(error.status, msgspec.json.encode(error.body), headers)
    if key:
        headers["Idempotency-Key"] = key
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    if answer.status >= 500 and key:
        # It would only be replayed. The SDK listens to this.
        headers["Stripe-Should-Retry"] = "false"
    if fault and fault.fault == "reply_lost":
        request.scope[CUT] = True  # type: ignore[literal-required]
    return _response(answer.status, answer.body, headers)


@dataclass(frozen=True)
class Call:
    """A request that may be executed."""

    operation: str
    key: str | None
    asked: str
    fault: Fault | None

    @property
    def pause(self) -> float:
        """How long a fault has it wait."""
        return self.fault.seconds if self.fault else 0.0


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    replayed: bool = False


async def _carry_out(simulator: Simulator, call: Call, prepare: Callable[[], Execute]) -> Answer:
    """Execute a request, or find its first answer."""
    idempotency = simulator.idempotency
    saved = idempotency.first_answer(call.key, call.asked)
    if saved is not None:
        await simulator.faults.pause(call.pause)
        return Answer(saved.status, saved.body.encode(), replayed=True)
    execute = prepare()
    with idempotency.running(call.key, call.asked):
        if call.fault and call.fault.fault == "timeout":
            await simulator.faults.pause(call.pause)
        idempotency.count(call.key, call.operation, executed=True)
        # A request meets one fault at most.
        inner = None if call.fault else simulator.faults.take(call.operation, executing=True)
        status, body = _executed(simulator, inner, execute)
        idempotency.keep(call.key, call.asked, status, body)
    if call.fault and call.fault.fault == "late_reply":
        simulator.books.save()  # whoever asks meanwhile finds it done
        await simulator.faults.pause(call.pause)
    return Answer(status, body)


def _executed(simulator: Simulator, fault: Fault | None, execute: Execute) -> tuple[int, bytes]:
    try:
        if fault and fault.fault != "500_after":
            faults.refuse(fault.fault)
        simulator.ledger.expire_due()  # the time may have come during a pause
        done = execute()
        if fault:
            faults.refuse(fault.fault)
    except StripeError as error:
        return error.status, msgspec.json.encode(error.body)
    return 200, msgspec.json.encode(done)


async def _encoded(request: Asking) -> str:
    if request.method == "GET":
        return request.scope["query_string"].decode("latin-1")
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError:
        raise StripeError(400, "Invalid request (the body is not UTF-8)") from None


def _count(simulator: Simulator, operation: str, key: str | None) -> None:
    counts = simulator.books.state.requests
    counts[operation] = counts.get(operation, 0) + 1
    simulator.idempotency.count(key, operation, executed=False)
    simulator.books.changed()


def _response(status: int, body: bytes, headers: dict[str, str]) -> Response[bytes]:
    return Response(body, status_code=status, headers={**headers, "Content-Type": "application/json"})
