"""The one place where a failure becomes an answer: `application/problem+json` (RFC 9457), whoever raised it."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import structlog
from litestar import Response, route
from litestar.connection import Request
from litestar.exceptions import HTTPException, NotFoundException, ValidationException
from litestar.params import FromPath

from app.api import pages, wire
from app.api.answers import Answer
from app.domain import Alternatives
from app.errors import BookingNotFound, HoldNotFound, InvalidRequest, NotFound, Problem, SlotNotFound
from app.telemetry import request_id

log = structlog.get_logger()

MEDIA_TYPE = b"application/problem+json"

#: What Litestar itself refuses: code and title by status.
_REFUSED_BY_LITESTAR = {
    400: ("invalid_request", InvalidRequest.title),
    404: ("not_found", "Not found"),
    405: ("method_not_allowed", "Method not allowed"),
    413: ("too_large", "Too large"),
}
_DETAILS = {
    400: "The request is not valid HTTP for this service",
    404: "There is nothing here",
    405: "This path does not take that method",
    413: "The body is larger than this path takes",
}


_THINGS = {
    "slot_id": SlotNotFound,
    "hold_id": HoldNotFound,
    "booking_id": BookingNotFound,
    "endpoint_id": NotFound,
    "delivery_id": NotFound,
    "feed_id": NotFound,
    "entry_id": NotFound,
    "job_id": NotFound,
}


def render(_: Request[Any, Any, Any] | None, problem: Problem) -> Answer:
    """Render one of ours, with the members of its type."""
    fields = {name: _shown(value) for name, value in problem.fields.items()}
    return _response(problem.status, problem.code, problem.title, problem.detail, problem.headers, **fields)


def render_validation(request: Request[Any, Any, Any], error: ValidationException) -> Answer:
    """Render what Litestar found wrong with a path or a header: only its name, for the sentence may quote the input.

    A thing whose id is no id is a thing that is not there.
    """
    first = error.extra[0] if isinstance(error.extra, list) and error.extra else {}
    name = first.get("key", "") if isinstance(first, dict) else ""
    if name in _THINGS:
        return render(request, _THINGS[name]())
    return render(request, InvalidRequest(str(name)[:64], "Not a valid value"))


def render_http(request: Request[Any, Any, Any], error: HTTPException) -> Answer:
    """Render what Litestar refuses before a handler is asked."""
    if error.status_code >= 500:
        return render_bug(request, error)
    status = error.status_code if error.status_code in _REFUSED_BY_LITESTAR else 400
    code, title = _REFUSED_BY_LITESTAR[status]
    headers = dict(error.headers or {})
    if status == 413:
        headers["Connection"] = "close"  # the rest of the body is not read
    return _response(status, code, title, _DETAILS[status], headers)


def render_bug(_: Request[Any, Any, Any] | None, error: Exception) -> Answer:
    """Render what nobody foresaw: the log is told everything, the caller nothing but the request's id."""
    log.error("unforeseen", exc_info=error)
    return _response(500, "internal_error", "Internal error", "Something went wrong on our side", {})


#: From most to least special; Litestar looks along the exception's ancestors.
HANDLERS: dict[Any, Any] = {
    Problem: render,
    ValidationException: render_validation,
    HTTPException: render_http,
    Exception: render_bug,
}


def _response(status: int, code: str, title: str, detail: str, headers: Mapping[str, str], **fields: Any) -> Answer:
    body = {
        "type": f"/problems/{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id(),
        **fields,
    }
    return Answer(status, msgspec.json.encode(body), MEDIA_TYPE, headers)


def _shown(value: Any) -> Any:
    if not isinstance(value, Alternatives):
        return value
    if value.rendered is None:
        value.rendered = msgspec.json.encode([wire.slot(slot, room) for slot, room in value])
    return msgspec.Raw(value.rendered)


# -- the pages behind `type` ------------------------------------------------------------------------------------------


def _all_problems(kind: type[Problem] = Problem) -> Iterator[type[Problem]]:
    for child in kind.__subclasses__():
        if hasattr(child, "code"):
            yield child
        yield from _all_problems(child)


def titles() -> dict[str, tuple[int, str]]:
    """List every code that this service answers with, its status and title."""
    ours = {kind.code: (kind.status, kind.title) for kind in reversed(list(_all_problems()))}
    litestars = {code: (status, title) for status, (code, title) in _REFUSED_BY_LITESTAR.items()}
    return {"internal_error": (500, "Internal error"), **litestars, **ours}


@route("/problems/{code:str}", http_method=["GET", "HEAD"], include_in_schema=False, sync_to_thread=False)
def describe(code: FromPath[str]) -> Response[Any]:
    """Tell in a sentence what a problem's `type` means."""
    if code not in titles():
        raise NotFoundException
    status, title = titles()[code]
    return pages.page("problem.html", title=title, answered_with=status, code=code)
