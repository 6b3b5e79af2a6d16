"""How the books look in Stripe's JSON. Fields that Stripe has and nobody here could fill are left out or null."""

from collections.abc import Sequence
from typing import Any

from app.simulator.forms import StripeError
from app.simulator.state import Event, Payment, Refund, Session, State

#: The version that the SDK of this release speaks; a test compares them.
API_VERSION = "2026-10-28.endive"
#: In words, wherever Stripe leaves room for some.
NO_MONEY = "Simulated by Holdfast's Stripe simulator: no money moves."

Json = dict[str, Any]


def session(session: Session, public_url: str) -> Json:
    """Render a Checkout Session."""
    # Stripe has a page only for those that can still be paid.
    url = f"{public_url}/pay/{session.id}" if session.status == "open" else None
    details = {"name": session.name, "email": session.email or session.customer_email, "phone": session.phone}
    return {
        "id": session.id,
        "object": "checkout.session",
        "amount_subtotal": session.amount_total,
        "amount_total": session.amount_total,
        "cancel_url": session.cancel_url,
        "client_reference_id": session.client_reference_id,
        "created": session.created,
        "currency": session.currency,
        "custom_text": {"submit": {"message": NO_MONEY}},
        "customer": None,
        "customer_details": details if any(details.values()) else None,
        "customer_email": session.customer_email,
        "expires_at": session.expires_at,
        "livemode": False,
        "metadata": session.metadata,
        "mode": "payment",
        "payment_intent": session.payment_intent,
        "payment_method_types": session.payment_method_types,
        "payment_status": session.paid,
        "status": session.status,
        "success_url": session.success_url,
        "ui_mode": "hosted_page",
        "url": url,
    }


def line_items(session: Session) -> Json:
    """Render what a session sells."""
    items = [
        {
            "id": f"li_{session.id.removeprefix('cs_test_')[:20]}{number}",
            "object": "item",
            "amount_total": item.quantity * item.unit_amount,
            "currency": session.currency,
            "description": item.name,
            "quantity": item.quantity,
        }
        for number, item in enumerate(session.line_items)
    ]
    return listed(items, f"/v1/checkout/sessions/{session.id}/line_items", has_more=False)


def payment_intent(payment: Payment) -> Json:
    """Render a payment intent."""
    return {
        "id": payment.id,
        "object": "payment_intent",
        "amount": payment.amount,
        "amount_received": payment.amount if payment.status == "succeeded" else 0,
        "created": payment.created,
        "currency": payment.currency,
        "description": NO_MONEY,
        "latest_charge": payment.charge,
        "livemode": False,
        "metadata": payment.metadata,
        "status": payment.status,
    }


def charge(payment: Payment) -> Json:
    """Render the charge of a payment. Its metadata are copies of the payment intent's, as at Stripe."""
    status = {"processing": "pending", "succeeded": "succeeded", "requires_payment_method": "failed"}[payment.status]
    return {
        "id": payment.charge,
        "object": "charge",
        "amount": payment.amount,
        "amount_captured": payment.amount if status == "succeeded" else 0,
        "amount_refunded": payment.refunded,
        "billing_details": {"name": payment.name, "email": payment.email, "phone": payment.phone},
        "captured": status == "succeeded",
        "created": payment.created,
        "currency": payment.currency,
        "description": NO_MONEY,
        "livemode": False,
        "metadata": payment.metadata,
        "paid": status == "succeeded",
        "payment_intent": payment.id,
        "refunded": payment.refunded == payment.amount,
        "status": status,
    }


def refund(refund: Refund) -> Json:
    """Render a refund."""
    return {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "charge": refund.charge,
        "created": refund.created,
        "currency": refund.currency,
        "metadata": refund.metadata,
        "payment_intent": refund.payment_intent,
        "reason": refund.reason,
        "status": refund.status,
    }


def event(event: Event) -> Json:
    """Render an event, the same for the list and for a webhook."""
    return {
        "id": event.id,
        "object": "event",
        "api_version": API_VERSION,
        "created": event.created,
        "data": {"object": event.object},
        "livemode": False,
        "pending_webhooks": int(event.delivery in ("pending", "held")),
        "request": {"id": None, "idempotency_key": None},
        "type": event.type,
    }


def listed(data: Sequence[Json], url: str, *, has_more: bool) -> Json:
    """Render a page of a list."""
    return {"object": "list", "data": list(data), "has_more": has_more, "url": url}


def expand(shown: Any, paths: Sequence[str], state: State) -> Any:
    """Replace ids by what they name, for `expand[]`.

    Raises:
        StripeError: there is nothing to expand.
    """
    for path in paths:
        _expand(shown, path.split("."), path, state)
    return shown


def _expand(shown: Any, steps: list[str], path: str, state: State) -> None:
    if isinstance(shown, list):
        for one in shown:
            _expand(one, steps, path, state)
        return
    if not steps or shown is None:
        return
    field, *rest = steps
    if field == "line_items" and shown.get("object") == "checkout.session":
        shown[field] = line_items(state.sessions[shown["id"]])
    if field not in shown:
        raise StripeError(400, f"This property cannot be expanded ({path}).", param="expand")
    if isinstance(shown[field], str):
        shown[field] = _named(shown[field], path, state)
    _expand(shown[field], rest, path, state)


def _named(identifier: str, path: str, state: State) -> Json:
    if identifier in state.payments:
        return payment_intent(state.payments[identifier])
    for payment in state.payments.values():
        if payment.charge == identifier:
            return charge(payment)
    raise StripeError(400, f"This property cannot be expanded ({path}).", param="expand")
