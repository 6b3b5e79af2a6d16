"""Paying: where a customer checks out, and where Stripe tells us what became of it."""

from collections.abc import Mapping
from typing import Any

import structlog
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody, SkipValidation

from app import checkout, settlement
from app.api import answers, wire, wire_payments
from app.api.docs import operator_security, problems
from app.api.public import IdempotencyKey, wanted
from app.api.strict import ApiRequest, idempotency_key, operator_only, query
from app.errors import InvalidRequest, NotFound
from app.gateway import BadSignature, verified
from app.telemetry import outcomes

log = structlog.get_logger()

#: Stripe's events hold whole objects: more than any request of ours.
MAX_EVENT_BYTES = 256 * 1024


@post("/v1/checkout", responses=problems(404, 409, 410, 422, 429, 502, body=True))
async def create_checkout(
    request: ApiRequest,
    data: JSONBody[SkipValidation[wire_payments.CheckoutOfSlot | wire_payments.CheckoutOfHold]],
    key: IdempotencyKey = None,
) -> Response[wire_payments.Checkout]:
    """Take places and pay for them: the booking waits for the payment of the session at `checkout_url`."""
    way = checkout.Way(data.success_url, data.cancel_url)
    asked = wanted(data, idempotency_key(key))
    started = await checkout.checkout(request.engine, asked, way, caller=request.caller)
    made = started.booking
    body = wire_payments.Checkout(
        booking=wire.booking(made, started.manage_token),
        checkout_url=started.checkout_url,
        session_id=started.session_id,
        expires_at=started.expires_at,
    )
    return answers.created(body, location=f"/v1/bookings/{made.id}", replayed=made.replayed)


@get(
    "/v1/payments",
    opt={"query": wire_payments.PaymentQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401),
)
async def list_payments(request: ApiRequest) -> Response[wire_payments.PaymentPage]:
    """List payments, the newest first. `status=mismatched`, `refund_status=failed`, long `due`: need a person."""
    asked = query(request, wire_payments.PaymentQuery)
    payments, after = request.engine.payments, wire.position(asked.cursor)
    found = await payments.listed(asked.status, asked.refund_status, asked.limit + 1, after)
    shown, more = wire.page_of(found, asked.limit, wire.behind)
    return answers.ok(wire_payments.PaymentPage(data=[wire_payments.payment(each) for each in shown], next_cursor=more))


@post("/v1/webhooks/stripe", status_code=200, request_max_body_size=MAX_EVENT_BYTES, responses=problems(404, 413))
async def receive_stripe_event(request: ApiRequest) -> Response[Any]:
    """Take an event of Stripe: verified by its `Stripe-Signature`, stored once, and answered; the worker acts on it."""
    settings = request.engine.settings
    if not settings.stripe_webhook_secrets:
        raise NotFound
    try:
        event = verified(
            await request.body(), request.headers.get("stripe-signature", ""), settings.stripe_webhook_secrets
        )
    except BadSignature as error:
        outcomes("webhook", "bad_signature").inc()
        raise InvalidRequest("", "The signature or the body is not right") from error
    about = (event.get("data") or {}).get("object") if isinstance(event.get("data"), Mapping) else None
    live = event.get("livemode")
    if event["type"] not in settlement.EVENTS:
        outcomes("webhook", "ignored").inc()
    elif not isinstance(about, Mapping) or not isinstance(about.get("id"), str):
        raise InvalidRequest("", "The event is about nothing")
    elif isinstance(live, bool) and live != settings.stripe_is_live:
        # Of the other mode of the same account: a secret in the wrong place. Stripe need not send it again.
        log.warning("stripe_event_of_the_other_mode", type=event["type"], live=live)
        outcomes("webhook", "wrong_mode").inc()
    else:
        await request.engine.payments.keep_event(event["id"], event["type"], settlement.needed(event["type"], about))
    return answers.ok({"received": True})


ROUTES: list[HTTPRouteHandler] = [create_checkout, list_payments, receive_stripe_event]
