"""The OpenAPI document, and the page that shows it. What Litestar derives is corrected where it knows less than we.

The Structs of `wire` are described by msgspec, which decodes by them: exact bounds, and `additionalProperties: false`.
"""

from functools import cache
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Request, Router
from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException
from litestar.handlers.base import BaseRouteHandler
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from app.api import (
    pages,
    wire,
    wire_agenda,
    wire_appointments,
    wire_calendars,
    wire_jobs,
    wire_operators,
    wire_payments,
    wire_timetable,
    wire_waiting,
    wire_webhooks,
)
from app.pages import render
from app.webhooks.sending import WebhookMessage

PROBLEM = "application/problem+json"
TITLE = "Holdfast"
#: Where the Structs are that the document describes.
_WIRE = (
    wire,
    wire_agenda,
    wire_appointments,
    wire_calendars,
    wire_jobs,
    wire_operators,
    wire_payments,
    wire_timetable,
    wire_waiting,
    wire_webhooks,
)
_COMPONENT = "#/components/schemas/{name}"

_LOCATION = {"Location": {"description": "where it is, when it is one thing", "schema": {"type": "string"}}}
_REPLAYED = {
    "Idempotency-Replayed": {"description": "this is the first answer again", "schema": {"const": "true"}},
}
_ETAG = {"ETag": {"description": "names this very answer", "schema": {"type": "string"}}}
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}

operator_security: list[dict[str, list[str]]] = [{"operator": []}]
#: A token in its own header will do as well.
token_or_operator: list[dict[str, list[str]]] = [{}, {"operator": []}]

_SAID = {
    400: "What was sent makes no sense; `errors` names the field",
    401: "The operator key is missing or wrong",
    404: "There is no such thing, or the token is not its own",
    409: "In conflict with what is true now; `code` says how",
    410: "The hold has expired",
    413: "The body is too large",
    415: "The body is not `application/json`",
    402: "The venue takes payment first: use `POST /v1/checkout`",
    422: "The Idempotency-Key was used for another request",
    429: "Too many requests from one address: try again after `Retry-After`",
    500: "A bug",
    502: "Stripe could not start the payment; the places are free again",
    503: 'Try again after `Retry-After`; with `"effect": "none"` nothing was done',
}


def problems(*statuses: int, body: bool = False) -> dict[int, ResponseSpec]:
    """Document what a route may answer besides success."""
    own = {400, 500, 503, *statuses, *((413, 415) if body else ())}
    return {
        status: ResponseSpec(
            wire.Problem,
            generate_examples=False,
            media_type=PROBLEM,
            description=_SAID[status],
        )
        for status in sorted(own)
    }


#: What a route answers to somebody who has the answer already.
unchanged = {304: ResponseSpec(None, generate_examples=False, description="It is still as `If-None-Match` knows it")}


def config() -> OpenAPIConfig:
    return OpenAPIConfig(
        title=TITLE,
        version="1",
        description="Reservations: holds in Redis, bookings in Postgres, never oversold.",
        create_examples=False,
        use_handler_docstrings=True,
        components=Components(
            security_schemes={"operator": SecurityScheme(type="http", scheme="bearer", description="The operator key")}
        ),
        render_plugins=[Page(path="/"), Document(path="/openapi.json", media_type=MediaType.JSON)],
        openapi_router=Router(
            "/schema",
            route_handlers=[],
            include_in_schema=False,
            guards=[_only_known],
            response_headers={"Content-Security-Policy": pages.policy(), "X-Content-Type-Options": "nosniff"},
        ),
        operation_id_creator=lambda handler, _method, _path: handler.fn.__name__,
    )


@cache
def document(app: Litestar) -> bytes:
    """Make the document of an application; it does not change while the process lives."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(app.openapi_schema.to_schema()))
    _describe_structs(found)
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            item = found["paths"].get(route.path_format, {})
            for method in getattr(handler, "http_methods", ()):
                operation = item.get(method.lower())
                if operation is not None:
                    _correct(operation, handler.opt.get("query"))
    return msgspec.json.encode(found)


def _describe_structs(found: dict[str, Any]) -> None:
    names = found["components"]["schemas"]
    structs = [
        WebhookMessage,
        *(getattr(of, name) for name in names for of in _WIRE if hasattr(of, name)),
    ]
    (message, *_), described = msgspec.json.schema_components(structs, ref_template=_COMPONENT)
    found["components"]["schemas"] = described
    found["webhooks"] = {"event": {"post": _webhook(message)}}


def _webhook(message: dict[str, Any]) -> dict[str, Any]:
    """Describe what we send to the URLs of `POST /v1/webhook-endpoints`."""
    headers = {
        "webhook-id": "names the delivery: the same when it is repeated",
        "webhook-timestamp": "seconds since 1970, of this attempt",
        "webhook-signature": "one or several of v1,<base64>, separated by spaces; any that is right will do",
    }
    return {
        "summary": "An event of a venue",
        "description": "Signed by Standard Webhooks. Sent at least once and not always in order, until it is answered "
        "with 2xx within 5 seconds; repeated for about two days. Redirects are not followed.",
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": told, "schema": {"type": "string"}}
            for name, told in headers.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": message}}},
        "responses": {
            "2XX": {"description": "Taken"},
            "410": {"description": "The endpoint wants no more, and is disabled"},
            "default": {"description": "Try again later"},
        },
    }


def _correct(operation: dict[str, Any], query: type[msgspec.Struct] | None) -> None:
    parameters = [*operation.pop("parameters", ()), *(_parameters(query) if query else ())]
    for parameter in parameters:
        parameter["schema"] = _without_null(parameter["schema"])
    if parameters:
        operation["parameters"] = parameters
    responses = operation["responses"]
    for status in ("204", "304"):
        responses.get(status, {}).pop("content", None)
    if "304" in responses:
        responses["200"]["headers"] = responses["304"]["headers"] = _ETAG
    if "201" in responses:
        responses["201"]["headers"] = {**_LOCATION, **_REPLAYED}
    for status in ("503", "429"):
        if status in responses:
            responses[status]["headers"] = _RETRY_AFTER


def _parameters(query: type[msgspec.Struct]) -> list[dict[str, Any]]:
    (_,), components = msgspec.json.schema_components([query], ref_template=_COMPONENT)
    described = components[query.__name__]
    return [
        {"name": name, "in": "query", "required": name in described.get("required", ()), "schema": schema}
        for name, schema in described["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Describe a parameter: it is there or it is not, but neither a query string nor a header has a null."""
    choices = schema.get("anyOf") or schema.get("oneOf") or [{}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
    for choice in choices:
        if choice != {"type": "null"}:
            rest |= choice
    if rest.get("default", ...) is None:
        del rest["default"]
    if "enum" in rest:
        rest["enum"] = [value for value in rest["enum"] if value is not None]
    return rest


# -- the page ---------------------------------------------------------------------------------------------------------


class Document(OpenAPIRenderPlugin):
    """The document itself."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return document(request.app)


class Page(OpenAPIRenderPlugin):
    """Every operation on one page that needs nothing else."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return _page(request.app)


def _only_known(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Litestar adds a page of its own for everything else below, in HTML: ours tells that as everywhere."""
    if connection.scope["path_template"] not in ("/schema", "/schema/openapi.json"):
        raise NotFoundException


@cache
def _page(app: Litestar) -> bytes:
    found = msgspec.json.decode(document(app))
    calls = [
        {
            "method": method.upper(),
            "path": path,
            "guarded": operation.get("security") == operator_security,
            "told": operation.get("description") or operation.get("summary") or "",
        }
        for path, item in found["paths"].items()
        for method, operation in item.items()
    ]
    return render.html("schema.html", title=TITLE, description=found["info"]["description"], calls=calls)
