"""For operators, by `Authorization: Bearer <operator key>`: what is sold, and what became of it."""

from collections.abc import Sequence
from uuid import UUID

import msgspec
from litestar import Response, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, SkipValidation

from app import domain, holding, records, schedules
from app.api import answers, wire, wire_operators
from app.api.docs import operator_security, problems
from app.api.public import IdempotencyKey
from app.api.strict import ApiRequest, keyed, operator_only, query
from app.errors import InvalidRequest
from app.records import BookingFilter, EventFilter
from app.telemetry import request_id

#: A thousand slots are more than the 16 KiB that other bodies may have.
MAX_SLOTS_BODY = 512 * 1024


# -- venues and resources ---------------------------------------------------------------------------------------------


@post("/v1/venues", guards=[operator_only], security=operator_security, responses=problems(401, 409, 422, body=True))
async def create_venue(
    request: ApiRequest, data: JSONBody[wire_operators.VenueWanted], key: IdempotencyKey = None
) -> Response[wire.Venue]:
    """Create a venue."""
    answer = await request.catalogue.create_venue(
        data.to_new(), keyed("venues", key, data), request_id(), lambda made: msgspec.json.encode(wire.venue(made))
    )
    return answers.created(answer.body, location=f"/v1/venues/{data.slug}", replayed=answer.replayed)


@get(
    "/v1/venues",
    opt={"query": wire_operators.VenueQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401),
)
async def list_venues(request: ApiRequest) -> Response[wire_operators.VenuePage]:
    """List the venues by slug."""
    asked = query(request, wire_operators.VenueQuery)
    found = await request.catalogue.venues(asked.cursor, asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, lambda last: last.slug)
    return answers.ok(wire_operators.VenuePage(data=[wire.venue(venue) for venue in shown], next_cursor=more))


@patch(
    "/v1/venues/{slug:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, body=True),
)
async def change_venue(
    request: ApiRequest, slug: FromPath[str], data: JSONBody[SkipValidation[wire_operators.VenueChanges]]
) -> Response[wire.Venue]:
    """Change a venue. Holds that live keep the times they were given."""
    changes = wire.changes(data)
    changed = await request.catalogue.change_venue(slug, changes, request_id())
    if "timezone" in changes:  # the same working hours are at other instants now
        await schedules.make_slots(request.engine, [resource.id for resource in changed.resources])
    return answers.ok(wire.venue(changed))


@post("/v1/resources", guards=[operator_only], security=operator_security, responses=problems(401, 404, 422, body=True))
async def create_resource(
    request: ApiRequest, data: JSONBody[wire_operators.ResourceWanted], key: IdempotencyKey = None
) -> Response[wire.Resource]:
    """Create a resource: a person or a place does one thing at a time, an event may run several slots at once."""
    answer = await request.catalogue.create_resource(
        data.to_new(),
        keyed("resources", key, data),
        request_id(),
        lambda made: msgspec.json.encode(wire.resource(made)),
    )
    # A resource has no page of its own: its venue's shows it.
    return answers.created(answer.body, location=f"/v1/venues/{data.venue}", replayed=answer.replayed)


# -- slots ------------------------------------------------------------------------------------------------------------


@post(
    "/v1/slots",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 422, body=True),
    request_max_body_size=MAX_SLOTS_BODY,
)
async def create_slots(
    request: ApiRequest,
    data: JSONBody[SkipValidation[wire_operators.SlotWanted | wire_operators.SlotsWanted]],
    key: IdempotencyKey = None,
) -> Response[wire.Slot | wire_operators.SlotsCreated]:
    """Create one slot, or up to 1,000 at once, all or none."""
    wanted = data.slots if isinstance(data, wire_operators.SlotsWanted) else [data]
    new: list[domain.Slot] = []

    def shown(made: Sequence[domain.Slot]) -> bytes:
        new.extend(made)
        return _all_slots(made) if isinstance(data, wire_operators.SlotsWanted) else _one_slot(made)

    answer = await request.catalogue.create_slots(
        [slot.to_new() for slot in wanted], keyed("slots", key, data), request_id(), shown
    )
    request.engine.holds.note_new((slot.resource_id, slot.id) for slot in new)
    location = None if isinstance(data, wire_operators.SlotsWanted) else f"/v1/slots/{_id_of(answer.body)}"
    return answers.created(answer.body, location=location, replayed=answer.replayed)


def _one_slot(made: Sequence[domain.Slot]) -> bytes:
    return msgspec.json.encode(wire.slot(made[0]))


def _all_slots(made: Sequence[domain.Slot]) -> bytes:
    return msgspec.json.encode(wire_operators.SlotsCreated(data=[wire.slot(slot) for slot in made]))


class _Identified(msgspec.Struct):
    id: UUID


def _id_of(body: bytes) -> UUID:
    return msgspec.json.decode(body, type=_Identified).id


@patch(
    "/v1/slots/{slot_id:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, body=True),
)
async def change_slot(
    request: ApiRequest, slot_id: FromPath[UUID], data: JSONBody[SkipValidation[wire_operators.SlotChanges]]
) -> Response[wire.Slot]:
    """Change a slot's capacity, or close and open it. What is booked stays booked."""
    changed = await request.catalogue.change_slot(slot_id, wire.changes(data), request_id())
    await request.engine.mirror.slots_changed([slot_id])
    rooms = await request.engine.mirror.rooms([changed])
    return answers.ok(wire.slot(changed, rooms.get(slot_id)))


# -- what became of it ------------------------------------------------------------------------------------------------


@get(
    "/v1/holds",
    opt={"query": wire_operators.HoldQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_holds(request: ApiRequest) -> Response[wire_operators.HoldPage]:
    """List live holds, those that end first first."""
    asked = query(request, wire_operators.HoldQuery)
    holds = await holding.list_holds(request.engine, asked.venue, asked.slot_id)
    slots = {slot.id: slot for slot in await request.engine.ledger.slots(sorted({hold.slot_id for hold in holds}))}
    return answers.ok(
        wire_operators.HoldPage(data=[wire_operators.live_hold(hold, slots.get(hold.slot_id)) for hold in holds])
    )


@get(
    "/v1/bookings",
    opt={"query": wire_operators.BookingQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_bookings(request: ApiRequest) -> Response[wire_operators.BookingPage]:
    """List bookings in the order they were made; `from` and `to` are about when their slots begin."""
    asked = query(request, wire_operators.BookingQuery)
    which = BookingFilter(
        venue=asked.venue,
        slot_id=asked.slot_id,
        status=asked.status,
        starts_from=asked.starts_from,
        starts_before=asked.starts_before,
    )
    found = await records.list_bookings(request.database, which, wire.position(asked.cursor), asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, wire.behind)
    paid = await request.engine.payments.of_bookings([each.id for each in shown])
    data = [wire.booking(each, payment=paid.get(each.id)) for each in shown]
    return answers.ok(wire_operators.BookingPage(data=data, next_cursor=more))


@get(
    "/v1/events",
    opt={"query": wire_operators.EventQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401),
)
async def list_events(request: ApiRequest) -> Response[wire_operators.EventPage]:
    """Read the audit log; with `after`, follow it: then `next_cursor` is the next `after`, else the next `cursor`.

    With `last` instead, it begins so many events before its end, in the same order as `after`.
    """
    asked = query(request, wire_operators.EventQuery)
    which = EventFilter(type=asked.type, slot_id=asked.slot_id, booking_id=asked.booking_id)
    after = asked.after
    if asked.last is not None:
        if after is not None or asked.cursor is not None:
            raise InvalidRequest("last", "Goes with neither after nor cursor")
        ledger = request.engine.ledger
        after = await ledger.event_before_last(asked.last, asked.type, asked.slot_id, asked.booking_id)
    if after is not None:
        found = await records.follow_events(request.database, which, after, (asked.last or asked.limit) + 1)
    else:
        found = await records.list_events(request.database, which, asked.cursor, asked.limit + 1)
    shown, more = wire.page_of(found, asked.last or asked.limit, lambda last: str(last.seq))
    return answers.ok(wire_operators.EventPage(data=[wire_operators.event(each) for each in shown], next_cursor=more))


ROUTES: list[HTTPRouteHandler] = [
    create_venue, list_venues, change_venue, create_resource, create_slots, change_slot, list_holds, list_bookings,
    list_events,
]  # fmt: skip
