"""/_control: what tests do to the simulator. JSON, with the same key as the API."""

import secrets
from typing import Annotated, Any, Literal

from litestar import Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct, field

from app.simulator import objects
from app.simulator.delivery import Manner
from app.simulator.exchange import Asking, simulator_of, with_key
from app.simulator.faults import Fault
from app.simulator.ledger import DEFAULT_METHODS, MAX_LIFE_SECONDS, Method, check_url
from app.simulator.params import RefundParams
from app.simulator.state import LineItem, Session

Count = Annotated[int, Meta(ge=1, le=1000)]


@post("/_control/faults", status_code=200, guards=[with_key])
async def add_fault(request: Asking, data: JSONBody[Fault]) -> Response[Any]:
    """Have something go wrong with the next requests of an operation."""
    simulator_of(request).faults.waiting.append(data)
    return _ok(faults=simulator_of(request).faults.waiting)


@delete("/_control/faults", status_code=200, guards=[with_key])
async def clear_faults(request: Asking) -> Response[Any]:
    """Forget the faults that still wait, and end the pauses that are under way."""
    simulator_of(request).faults.clear()
    return _ok(faults=[])


@post("/_control/delivery", status_code=200, guards=[with_key])
async def set_delivery(request: Asking, data: JSONBody[Manner]) -> Response[Any]:
    """Choose how events are delivered from now on. Those that are held stay so."""
    simulator_of(request).delivery.manner = data
    return _ok(delivery=data)


class Shots(Struct, forbid_unknown_fields=True):
    #: In this order; null are those that are held.
    event_ids: list[str] | None = None
    times: Count = 1
    concurrently: bool = False


@post("/_control/deliver", status_code=200, guards=[with_key])
async def deliver(request: Asking, data: JSONBody[Shots]) -> Response[Any]:
    """Deliver events now, each attempt once, and answer when all were made."""
    told = await simulator_of(request).delivery.deliver(data.event_ids, data.times, concurrently=data.concurrently)
    return _ok(delivered=told)


@get("/_control/ledger", guards=[with_key])
async def read_ledger(request: Asking) -> Response[Any]:
    """Read everything: what was bought, what was paid and refunded, who was told, who asked how often."""
    simulator = simulator_of(request)
    state = simulator.books.state
    return _ok(
        now=simulator.books.now(),
        sessions=[objects.session(session, simulator.ledger.public_url) for session in state.sessions.values()],
        payments=[
            {
                "id": payment.id,
                "charge": payment.charge,
                "session": payment.session,
                "amount": payment.amount,
                "refunded": payment.refunded,
                # What the seller has: the figure that bookings must explain.
                "kept": payment.amount - payment.refunded if payment.status == "succeeded" else 0,
                "currency": payment.currency,
                "status": payment.status,
                "metadata": payment.metadata,
            }
            for payment in state.payments.values()
        ],
        refunds=[objects.refund(refund) for refund in state.refunds.values()],
        events=[
            {
                "id": event.id,
                "type": event.type,
                "delivery": event.delivery,
                "attempts": event.attempts,
                "object": event.object,
            }
            for event in state.events.values()
        ],
        requests=state.requests,
        idempotency_keys=state.keys,
    )


class Paying(Struct, forbid_unknown_fields=True):
    method: Method = "card"
    name: str | None = None
    email: str | None = None
    phone: str | None = None


@post("/_control/sessions/{session_id:str}/pay", status_code=200, guards=[with_key])
async def pay(request: Asking, session_id: FromPath[str], data: JSONBody[Paying]) -> Response[Any]:
    """Pay as a customer would on the page."""
    ledger = simulator_of(request).ledger
    session = ledger.pay(session_id, data.method, name=data.name, email=data.email, phone=data.phone)
    return Response(objects.session(session, ledger.public_url))


class Settling(Struct, forbid_unknown_fields=True):
    succeed: bool = True


@post("/_control/sessions/{session_id:str}/settle", status_code=200, guards=[with_key])
async def settle(request: Asking, session_id: FromPath[str], data: JSONBody[Settling]) -> Response[Any]:
    """Have the money of a delayed method arrive, or not."""
    ledger = simulator_of(request).ledger
    return Response(objects.session(ledger.settle(session_id, succeed=data.succeed), ledger.public_url))


class OldSession(Struct, forbid_unknown_fields=True):
    """A session as another system may have made it: any metadata, or none."""

    metadata: dict[str, str] = {}
    payment_metadata: dict[str, str] = {}
    client_reference_id: str | None = None
    amount_total: Annotated[int, Meta(ge=0)] = 1000
    currency: str = "eur"
    name: str = "A booking of an older system"
    quantity: Count = 1
    success_url: str | None = "http://127.0.0.1/success"
    cancel_url: str | None = None
    customer_email: str | None = None
    payment_method_types: list[str] = field(default_factory=DEFAULT_METHODS.copy)
    #: From now on; a negative one expires at once.
    life_seconds: int = MAX_LIFE_SECONDS


@post("/_control/sessions", status_code=200, guards=[with_key])
async def make_session(request: Asking, data: JSONBody[OldSession]) -> Response[Any]:
    """Make a session that our service never asked for."""
    simulator = simulator_of(request)
    check_url(data.success_url, "success_url")
    check_url(data.cancel_url, "cancel_url")
    now = int(simulator.books.now())
    session = Session(
        id=f"cs_test_{secrets.token_hex(28)}",
        created=now,
        expires_at=now + data.life_seconds,
        amount_total=data.amount_total,
        currency=data.currency,
        line_items=[LineItem(name=data.name, quantity=data.quantity, unit_amount=data.amount_total // data.quantity)],
        payment_method_types=data.payment_method_types,
        client_reference_id=data.client_reference_id,
        metadata=data.metadata,
        payment_metadata=data.payment_metadata,
        success_url=data.success_url,
        cancel_url=data.cancel_url,
        customer_email=data.customer_email,
    )
    simulator.ledger.add(session)
    return Response(objects.session(session, simulator.ledger.public_url))


@post("/_control/refund", status_code=200, guards=[with_key])
async def refund(request: Asking, data: JSONBody[RefundParams]) -> Response[Any]:
    """Refund as somebody would in Stripe's Dashboard."""
    return Response(objects.refund(simulator_of(request).ledger.refund(data)))


class Failing(Struct, forbid_unknown_fields=True):
    status: Literal["failed", "canceled"] = "failed"


@post("/_control/refunds/{refund_id:str}/fail", status_code=200, guards=[with_key])
async def fail_refund(request: Asking, refund_id: FromPath[str], data: JSONBody[Failing]) -> Response[Any]:
    """Have a refund come back that had been made."""
    return Response(objects.refund(simulator_of(request).ledger.fail_refund(refund_id, data.status)))


class Clock(Struct, forbid_unknown_fields=True):
    offset_seconds: float


@post("/_control/clock", status_code=200, guards=[with_key])
async def set_clock(request: Asking, data: JSONBody[Clock]) -> Response[Any]:
    """Set the clock so far before the real one. What became due happens before the answer."""
    simulator = simulator_of(request)
    simulator.books.set_clock(data.offset_seconds)
    simulator.ledger.expire_due()
    return _ok(now=simulator.books.now())


def _ok(**told: Any) -> Response[Any]:
    return Response({"simulator": objects.NO_MONEY, **told})


ROUTES: list[HTTPRouteHandler] = [
    add_fault,
    clear_faults,
    set_delivery,
    deliver,
    read_ledger,
    pay,
    settle,
    make_session,
    refund,
    fail_refund,
    set_clock,
]
