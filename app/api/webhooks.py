"""For operators: where a venue's events are sent, and what became of each of them."""

from uuid import UUID

import msgspec
from litestar import Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody

from app.api import answers, wire, wire_webhooks
from app.api.docs import operator_security, problems
from app.api.public import IdempotencyKey
from app.api.strict import ApiRequest, idempotency_key, keyed, operator_only, query
from app.telemetry import request_id
from app.webhooks import deliveries, endpoints


@post(
    "/v1/webhook-endpoints",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, 422, body=True),
)
async def create_webhook_endpoint(
    request: ApiRequest, data: JSONBody[wire_webhooks.WebhookEndpointWanted], key: IdempotencyKey = None
) -> Response[wire_webhooks.WebhookEndpoint]:
    """Have a venue's events sent to a URL, signed by Standard Webhooks. The secret is told here, once."""
    made, replayed = await endpoints.create(
        request.engine.ledger,
        data.to_new(),
        idempotency_key(key),
        request_id(),
        allow_private=not request.engine.settings.production,
    )
    body = wire_webhooks.endpoint(made, with_secret=True)
    return answers.created(body, location=f"/v1/webhook-endpoints/{made.id}", replayed=replayed)


@get(
    "/v1/webhook-endpoints",
    opt={"query": wire_webhooks.WebhookEndpointQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_webhook_endpoints(request: ApiRequest) -> Response[wire_webhooks.WebhookEndpointPage]:
    """List endpoints in the order in which they were made, without their secrets."""
    asked = query(request, wire_webhooks.WebhookEndpointQuery)
    after = wire.position(asked.cursor)
    found = await endpoints.listed(request.engine.ledger, asked.venue, after, asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, wire.behind)
    data = [wire_webhooks.endpoint(each) for each in shown]
    return answers.ok(wire_webhooks.WebhookEndpointPage(data=data, next_cursor=more))


@delete(
    "/v1/webhook-endpoints/{endpoint_id:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def remove_webhook_endpoint(request: ApiRequest, endpoint_id: FromPath[UUID]) -> Response[None]:
    """Send nothing there any more. What was not delivered yet never will be."""
    await endpoints.remove(request.engine.ledger, endpoint_id, request_id())
    return answers.nothing()


@post(
    "/v1/webhook-endpoints/{endpoint_id:str}/rotate",
    status_code=200,
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 422),
)
async def rotate_webhook_secret(
    request: ApiRequest, endpoint_id: FromPath[UUID], key: IdempotencyKey = None
) -> Response[wire_webhooks.WebhookEndpoint]:
    """Give an endpoint a new secret, told here, once. For 24 hours the one before signs as well."""
    ledger, this = request.engine.ledger, keyed(f"rotate:{endpoint_id}", key, None)
    if this and await request.database.first_answer(this):
        found = await endpoints.read(ledger, endpoint_id)
        return answers.again(msgspec.json.encode(wire_webhooks.endpoint(found, with_secret=True)), replayed=True)
    rotated = await endpoints.rotate(
        ledger, endpoint_id, request_id(), derived_from=request.engine.settings.secrets, key=this.key if this else None
    )
    if this:  # that it was done is kept, not the secret
        await request.database.keep_answer(this, msgspec.json.encode(wire_webhooks.endpoint(rotated)))
    return answers.again(msgspec.json.encode(wire_webhooks.endpoint(rotated, with_secret=True)), replayed=False)


@get(
    "/v1/webhook-deliveries",
    opt={"query": wire_webhooks.WebhookDeliveryQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_webhook_deliveries(request: ApiRequest) -> Response[wire_webhooks.WebhookDeliveryPage]:
    """List deliveries, the newest first; `status=dead` are those that were given up."""
    asked = query(request, wire_webhooks.WebhookDeliveryQuery)
    which = deliveries.DeliveryFilter(venue=asked.venue, status=asked.status)
    found = await deliveries.listed(request.engine.ledger, which, wire.position(asked.cursor), asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, wire.behind)
    data = [wire_webhooks.delivery(each) for each in shown]
    return answers.ok(wire_webhooks.WebhookDeliveryPage(data=data, next_cursor=more))


@post(
    "/v1/webhook-deliveries/{delivery_id:str}/redeliver",
    status_code=200,
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, 422),
)
async def redeliver_webhook(
    request: ApiRequest, delivery_id: FromPath[UUID], key: IdempotencyKey = None
) -> Response[wire_webhooks.WebhookDelivery]:
    """Send a delivery again, whatever became of it, and from then on as if it were new; the `webhook-id` stays."""
    this = keyed(f"redeliver:{delivery_id}", key, None)
    if this and (first := await request.database.first_answer(this)):
        return answers.again(first, replayed=True)
    again = await deliveries.redeliver(request.engine.ledger, delivery_id, request_id())
    body = msgspec.json.encode(wire_webhooks.delivery(again))
    if this:
        body = await request.database.keep_answer(this, body)
    return answers.again(body, replayed=False)


ROUTES: list[HTTPRouteHandler] = [
    create_webhook_endpoint, list_webhook_endpoints, remove_webhook_endpoint, rotate_webhook_secret,
    list_webhook_deliveries, redeliver_webhook,
]  # fmt: skip
