"""For operators: services, and the working hours that slots are made from.

What changes is committed first; its slots follow at once as far as a moment goes, and the worker makes the rest.
"""

from collections.abc import Sequence
from uuid import UUID

import msgspec
from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, SkipValidation

from app import schedules, timetable
from app.api import answers, wire, wire_timetable
from app.api.docs import operator_security, problems
from app.api.public import IdempotencyKey
from app.api.strict import ApiRequest, keyed, operator_only, query
from app.telemetry import request_id


async def _make_slots(request: ApiRequest, resource_ids: Sequence[UUID]) -> None:
    await schedules.make_slots(request.engine, resource_ids)


# -- services ---------------------------------------------------------------------------------------------------------


@post("/v1/services", guards=[operator_only], security=operator_security, responses=problems(401, 404, 422, body=True))
async def create_service(
    request: ApiRequest, data: JSONBody[wire_timetable.ServiceWanted], key: IdempotencyKey = None
) -> Response[wire.Service]:
    """Create a service: what is sold, how long it takes, and who offers it."""
    answer = await timetable.create_service(
        request.database,
        data.to_new(),
        keyed("services", key, data),
        request_id(),
        lambda made: msgspec.json.encode(wire.service(made)),
    )
    # A service has no page of its own: its venue's shows it.
    return answers.created(answer.body, location=f"/v1/venues/{data.venue}", replayed=answer.replayed)


@get(
    "/v1/services",
    opt={"query": wire_timetable.ServiceQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_services(request: ApiRequest) -> Response[wire_timetable.ServicePage]:
    """List services in the order they were made, also those that are not offered any more."""
    asked = query(request, wire_timetable.ServiceQuery)
    after = wire.position(asked.cursor)
    found = await timetable.list_services(request.database, asked.venue, after, asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, wire.behind)
    return answers.ok(wire_timetable.ServicePage(data=[wire.service(each) for each in shown], next_cursor=more))


@patch(
    "/v1/services/{service_id:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, body=True),
)
async def change_service(
    request: ApiRequest, service_id: FromPath[UUID], data: JSONBody[SkipValidation[wire_timetable.ServiceChanges]]
) -> Response[wire.Service]:
    """Change a service. What is booked stays as it was sold; slots made from schedules that nobody booked follow."""
    offered_by = wire.changes(data).get("resource_ids")
    changed, due = await timetable.change_service(
        request.database, service_id, data.columns(), offered_by, request_id()
    )
    await _make_slots(request, due)
    return answers.ok(wire.service(changed))


# -- schedules --------------------------------------------------------------------------------------------------------


@post(
    "/v1/schedules",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, 422, body=True),
)
async def create_schedule(
    request: ApiRequest, data: JSONBody[wire_timetable.ScheduleWanted], key: IdempotencyKey = None
) -> Response[wire_timetable.Schedule]:
    """Create a schedule; its resource offers the services from then on. Slots are made from it up to its horizon.

    A start at a wall time that the clock skips is left out; one that comes twice is offered once, the first time.
    """
    answer = await timetable.create_schedule(
        request.database,
        data.to_new(),
        keyed("schedules", key, data),
        request_id(),
        lambda made: msgspec.json.encode(wire_timetable.schedule(made)),
    )
    await _make_slots(request, [data.resource_id])
    made = msgspec.json.decode(answer.body, type=wire_timetable.Schedule)
    return answers.created(answer.body, location=f"/v1/schedules/{made.id}", replayed=answer.replayed)


@get(
    "/v1/schedules",
    opt={"query": wire_timetable.ScheduleQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_schedules(request: ApiRequest) -> Response[wire_timetable.SchedulePage]:
    """List schedules in the order they were made."""
    asked = query(request, wire_timetable.ScheduleQuery)
    after = wire.position(asked.cursor)
    found = await timetable.list_schedules(request.database, asked.venue, asked.resource_id, after, asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, wire.behind)
    data = [wire_timetable.schedule(each) for each in shown]
    return answers.ok(wire_timetable.SchedulePage(data=data, next_cursor=more))


@get(
    "/v1/schedules/{schedule_id:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def read_schedule(request: ApiRequest, schedule_id: FromPath[UUID]) -> Response[wire_timetable.Schedule]:
    """Read a schedule with its exceptions."""
    return answers.ok(wire_timetable.schedule(await timetable.read_schedule(request.database, schedule_id)))


@patch(
    "/v1/schedules/{schedule_id:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, body=True),
)
async def change_schedule(
    request: ApiRequest, schedule_id: FromPath[UUID], data: JSONBody[SkipValidation[wire_timetable.ScheduleChanges]]
) -> Response[wire_timetable.Schedule]:
    """Change a schedule. Slots that it does not want any more are closed, but for those that somebody booked."""
    lists = wire.changes(data)
    changed = await timetable.change_schedule(
        request.database,
        schedule_id,
        data.columns(),
        service_ids=lists.get("service_ids"),
        hours=[each.known() for each in lists["weekly"]] if "weekly" in lists else None,
        request_id=request_id(),
    )
    await _make_slots(request, [changed.resource_id])
    return answers.ok(wire_timetable.schedule(changed))


@delete(
    "/v1/schedules/{schedule_id:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def delete_schedule(request: ApiRequest, schedule_id: FromPath[UUID]) -> Response[None]:
    """Delete a schedule and its exceptions. Its slots are closed, but for those that somebody booked."""
    await _make_slots(request, [await timetable.delete_schedule(request.database, schedule_id, request_id())])
    return answers.nothing()


@post(
    "/v1/schedules/{schedule_id:str}/exceptions",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, 422, body=True),
)
async def create_exception(
    request: ApiRequest,
    schedule_id: FromPath[UUID],
    data: JSONBody[wire_timetable.ExceptionWanted],
    key: IdempotencyKey = None,
) -> Response[wire_timetable.ScheduleException]:
    """Add days that are not like the others: a day off, a holiday, extra hours."""
    answer, resource_id = await timetable.create_exception(
        request.database,
        schedule_id,
        data.to_new(),
        keyed=keyed(f"exceptions:{schedule_id}", key, data),
        request_id=request_id(),
        render=lambda made: msgspec.json.encode(wire_timetable.exception(made)),
    )
    await _make_slots(request, [resource_id])
    return answers.created(answer.body, location=f"/v1/schedules/{schedule_id}", replayed=answer.replayed)


@delete(
    "/v1/schedules/{schedule_id:str}/exceptions/{exception_id:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def delete_exception(
    request: ApiRequest, schedule_id: FromPath[UUID], exception_id: FromPath[UUID]
) -> Response[None]:
    """Take an exception back: the days are as the week says again."""
    due = await timetable.delete_exception(request.database, schedule_id, exception_id, request_id())
    await _make_slots(request, [due])
    return answers.nothing()


ROUTES: list[HTTPRouteHandler] = [
    create_service, list_services, change_service, create_schedule, list_schedules, read_schedule, change_schedule,
    delete_schedule, create_exception, delete_exception,
]  # fmt: skip
