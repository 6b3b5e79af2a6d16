"""The salon's page: one route, in the words and the form of errors that its programs know (S4-1, S4-2)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from litestar import Response, post
from litestar.connection import Request
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from app.api import answers, problems, wire_appointments
from app.api.answers import Answer
from app.api.public import IdempotencyKey
from app.api.strict import ApiRequest, idempotency_key
from app.appointments import Appointments, Taken, Wanted
from app.domain import Caller
from app.errors import InvalidRequest, Problem

JSON = b"application/json"

#: The words of this route for what the others call by other names.
_CODES: Mapping[str, str] = {
    "invalid_request": "VALIDATION_ERROR",
    "not_found": "NOT_FOUND",
    "venue_not_found": "NOT_FOUND",
    "slot_not_found": "NOT_FOUND",
    "busy": "UNAVAILABLE",
    "overloaded": "UNAVAILABLE",
    "database_unavailable": "UNAVAILABLE",
}


def render(_: Request[Any, Any, Any] | None, problem: Problem) -> Answer:
    """Render a refusal in the words of this route."""
    field = problem.fields["errors"][0]["field"] if isinstance(problem, InvalidRequest) else ""
    code = _CODES.get(problem.code, problem.code.upper())
    return _error(problem.status, code, problem.detail, field=field or UNSET, headers=problem.headers)


def _taken(taken: Taken) -> Answer:
    shown = [
        wire_appointments.AppointmentOffer(
            start_time=slot.starts_at, end_time=slot.ends_at, staff_id=slot.resource_id, slot_id=slot.id
        )
        for slot in taken.alternatives
    ]
    return _error(400, "TIME_CONFLICT", "This time is no longer available", alternatives=shown)


def _http(request: Request[Any, Any, Any], error: HTTPException) -> Answer:
    """Retell what Litestar refused in the words of this route."""
    if isinstance(error, ValidationException):
        told = msgspec.json.decode(problems.render_validation(request, error).body)
    else:
        told = msgspec.json.decode(problems.render_http(request, error).body)
    return _error(told["status"], _CODES.get(told["code"], told["code"].upper()), told["detail"])


def render_bug(request: Request[Any, Any, Any] | None, error: Exception) -> Answer:
    """Render what nobody foresaw."""
    problems.render_bug(request, error)
    return _error(500, "INTERNAL_ERROR", "Something went wrong on our side")


def _error(
    status: int,
    code: str,
    message: str,
    *,
    field: str | UnsetType = UNSET,
    headers: Mapping[str, str] = MappingProxyType({}),
    alternatives: list[wire_appointments.AppointmentOffer] | UnsetType = UNSET,
) -> Answer:
    failure = wire_appointments.AppointmentFailure(code=code, message=message, field=field)
    body = wire_appointments.AppointmentError(error=failure, alternatives=alternatives)
    return Answer(status, msgspec.json.encode(body), JSON, headers)


def _documented(*statuses: int) -> dict[int, ResponseSpec]:
    return {
        status: ResponseSpec(
            wire_appointments.AppointmentError, generate_examples=False, description="`error.code` tells what"
        )
        for status in statuses
    }


@post(
    "/api/v1/public/{slug:str}/book",
    exception_handlers={Problem: render, HTTPException: _http, Exception: render_bug},
    responses=_documented(400, 402, 404, 413, 415, 422, 429, 500, 503),
)
async def book_appointment(
    request: ApiRequest,
    slug: FromPath[str],
    data: JSONBody[wire_appointments.AppointmentWanted],
    key: IdempotencyKey = None,
) -> Response[wire_appointments.Appointment]:
    """Book a service with a person at a time. Taken: 400 `TIME_CONFLICT`, with free times of the same service."""
    return await book_time(request.app.state.appointments, request.caller, slug, data, key)


async def book_time(
    appointments: Appointments, caller: Caller, slug: str, asked: wire_appointments.AppointmentWanted, key: str | None
) -> Answer:
    wanted = Wanted(
        slug=slug,
        service_id=asked.service_id,
        staff_id=asked.staff_id,
        starts_at=asked.starts_at(),
        customer=asked.customer(),
        key=idempotency_key(key),
    )
    try:
        made, slot, token = await appointments.book(wanted, caller=caller)
    except Taken as taken:
        return _taken(taken)
    body = wire_appointments.Appointment(
        id=made.id,
        status=made.status,
        service_id=asked.service_id,
        staff_id=slot.resource_id,
        slot_id=slot.id,
        start_time=slot.starts_at,
        end_time=slot.ends_at,
        manage_token=token,
        created_at=made.created_at,
    )
    return answers.created(body, location=f"/v1/bookings/{made.id}", replayed=made.replayed)


ROUTES: list[HTTPRouteHandler] = [book_appointment]
