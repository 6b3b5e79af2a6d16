"""For everyone: what a widget, a load test and a customer's back end call. A token speaks for a hold or a booking."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Example
from litestar.params import FromPath, HeaderParameter, JSONBody, SkipValidation

from app import booking, domain, holding, reschedule, settlement, several
from app.api import answers, wire
from app.api.answers import Answer
from app.api.docs import problems, token_or_operator, unchanged
from app.api.strict import IDEMPOTENCY_KEY_PATTERN, ApiRequest, idempotency_key, keyed, query
from app.catalogue import SlotFilter
from app.domain import Caller, Room, Slot
from app.engine import Engine
from app.errors import BookingNotFound, HoldNotFound
from app.tokens import HoldGrant, sign_hold
from app.tokens import read_hold as read_grant

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="1 to 255 printable ASCII characters; a repeated request gets the first answer again",
        examples=[Example(value="order-4711")],
        schema_extra={"pattern": IDEMPOTENCY_KEY_PATTERN},
    ),
]
IfNoneMatch = Annotated[str | None, HeaderParameter(name="If-None-Match", description="the `ETag` of what is known")]
HoldToken = Annotated[str | None, HeaderParameter(name="Hold-Token", description="the token of the hold")]
ManageToken = Annotated[
    str | None,
    HeaderParameter(name="Manage-Token", description="the manage token of the booking; operators need none"),
]

BookingWanted = wire.BookingOfSlot | wire.BookingOfHold
BookingsWanted = BookingWanted | wire.BookingOfItems
HoldsWanted = wire.HoldWanted | wire.HoldsWanted

#: A page of slots with room is filled up at most so often: others may hold all of a page's places.
MAX_REFILLS = 5


@get("/v1/venues/{slug:str}", responses=problems(404))
async def read_venue(request: ApiRequest, slug: FromPath[str]) -> Response[wire.Venue]:
    """Read a venue with its resources and services."""
    return answers.ok(wire.venue(await request.catalogue.venue(slug)))


@get("/v1/slots", opt={"query": wire.SlotQuery}, responses={**problems(404), **unchanged})
async def list_slots(request: ApiRequest, known: IfNoneMatch = None) -> Response[wire.SlotPage]:
    """List slots in the order of their start; with `quantity` only those that have room for so many now.

    A slot is `closed` also when it is later than its schedule's notice allows. The ETag is of the page as it is
    answered, holds included.
    """
    return answers.unless_known(await page_of_slots(request, query(request, wire.SlotQuery)), known)


async def page_of_slots(request: ApiRequest, asked: wire.SlotQuery) -> wire.SlotPage:
    """Fill a page. Only Redis knows the holds, so what Postgres lists may be too full, and more is asked for."""
    which = SlotFilter(
        venue=asked.venue,
        resource_id=asked.resource_id,
        service_id=asked.service_id,
        starts_from=asked.starts_from,
        starts_before=asked.starts_before,
        room_for=asked.quantity,
    )
    after = wire.position(asked.cursor)
    shown: list[wire.Slot] = []
    for _ in range(MAX_REFILLS):
        found = await request.catalogue.slots(which, after, asked.limit - len(shown) + 1)
        more = len(found) > asked.limit - len(shown)
        found = found[: asked.limit - len(shown)]
        shown += [slot for slot in await _with_rooms(request, found) if slot.available >= (asked.quantity or 0)]
        if found:
            after = (found[-1].starts_at, found[-1].id)
        if not more or len(shown) == asked.limit:
            break
    return wire.SlotPage(data=shown, next_cursor=wire.cursor(*after) if more and after else None)


async def _with_rooms(request: ApiRequest, slots: Sequence[Slot]) -> list[wire.Slot]:
    rooms: dict[UUID, Room] = await request.engine.mirror.rooms(slots) if slots else {}
    return [wire.slot(slot, rooms.get(slot.id)) for slot in slots]


@get("/v1/slots/{slot_id:str}", responses=problems(404))
async def read_slot(request: ApiRequest, slot_id: FromPath[UUID]) -> Response[wire.Slot]:
    """Read a slot and what can be taken of it now."""
    return answers.ok(await slot_now(request, slot_id))


async def slot_now(request: ApiRequest, slot_id: UUID) -> wire.Slot:
    slot = await request.catalogue.slot(slot_id)
    return (await _with_rooms(request, [slot]))[0]


@get("/v1/days", opt={"query": wire.DayQuery}, responses={**problems(404), **unchanged})
async def list_days(request: ApiRequest, known: IfNoneMatch = None) -> Response[wire.Days]:
    """List the days on which something can be booked, for a calendar to show. It knows what is booked, not what is
    held: `GET /v1/slots` of a day knows both.
    """
    asked = query(request, wire.DayQuery)
    which = SlotFilter(
        venue=asked.venue, resource_id=asked.resource_id, service_id=asked.service_id, room_for=asked.quantity
    )
    zone = asked.timezone or (await request.catalogue.venue(asked.venue)).timezone
    found = await request.catalogue.free_days(which, asked.first, asked.last, zone)
    return answers.unless_known(wire.Days(data=found), known)


# -- holds ------------------------------------------------------------------------------------------------------------


@post("/v1/holds", responses=problems(404, 409, 422, 429, body=True))
async def take_hold(
    request: ApiRequest, data: JSONBody[SkipValidation[HoldsWanted]], key: IdempotencyKey = None
) -> Response[wire.Hold | wire.Holds]:
    """Hold places of a slot for a while; or of several slots, all or none."""
    return await hold_places(request.engine, request.caller, data, key)


async def hold_places(engine: Engine, caller: Caller, asked: HoldsWanted, key: str | None) -> Answer:
    if isinstance(asked, wire.HoldsWanted):
        held = await several.hold(engine, _items(asked), key=idempotency_key(key), caller=caller)
        body = wire.Holds(data=[wire.hold(*each) for each in held])
        return answers.created(body, replayed=all(hold.replayed for hold, _ in held))
    hold, token = await holding.take_hold(
        engine, asked.slot_id, asked.quantity, key=idempotency_key(key), caller=caller
    )
    return answers.created(wire.hold(hold, token), location=f"/v1/holds/{hold.id}", replayed=hold.replayed)


@get("/v1/holds/{hold_id:str}", responses=problems(404, 409, 410))
async def read_hold(request: ApiRequest, hold_id: FromPath[UUID], token: HoldToken = None) -> Response[wire.Hold]:
    """Read a hold by its token."""
    return answers.ok(wire.hold(await holding.get_hold(request.engine, hold_id, token or "")))


@post("/v1/holds/{hold_id:str}/extend", status_code=200, responses=problems(404, 409, 410, 422, 429))
async def extend_hold(
    request: ApiRequest, hold_id: FromPath[UUID], token: HoldToken = None, key: IdempotencyKey = None
) -> Response[wire.Hold]:
    """Prolong a hold; its old token stays good until it would have ended."""
    _require_hold_token(request, hold_id, token)  # the key alone proves nothing
    this = keyed(f"extend:{hold_id}", key, None)
    if this and (first := await request.database.first_answer(this)):
        return answers.again(_hold_body(request, first), replayed=True)
    hold, _ = await holding.extend_hold(request.engine, hold_id, token or "", caller=request.caller)
    kept = msgspec.json.encode(hold)
    if this:
        kept = await request.database.keep_answer(this, kept)
    return answers.again(_hold_body(request, kept), replayed=False)


def _require_hold_token(request: ApiRequest, hold_id: UUID, token: str | None) -> None:
    grant = read_grant(request.engine.settings.secrets, token or "")
    if grant is None or grant.hold_id != hold_id:
        raise HoldNotFound


def _hold_body(request: ApiRequest, kept: bytes) -> bytes:
    """Render a kept hold. Its token is signed anew, so that none is ever stored."""
    hold = msgspec.json.decode(kept, type=domain.Hold)
    grant = HoldGrant(hold.id, hold.slot_id, hold.quantity, round(hold.expires_at.timestamp() * 1000))
    return msgspec.json.encode(wire.hold(hold, sign_hold(request.engine.settings.secrets, grant)))


@delete("/v1/holds/{hold_id:str}", security=token_or_operator, responses=problems(401, 404, 429))
async def release_hold(request: ApiRequest, hold_id: FromPath[UUID], token: HoldToken = None) -> Response[None]:
    """Give a hold up, by its token or as an operator. Harmless when it was gone."""
    if request.is_operator:
        with suppress(HoldNotFound):  # gone is what was asked for
            await holding.operator_release_hold(request.engine, hold_id, caller=request.caller)
    else:
        await holding.release_hold(request.engine, hold_id, token or "", caller=request.caller)
    return answers.nothing()


# -- bookings ---------------------------------------------------------------------------------------------------------


@post("/v1/bookings", responses=problems(402, 404, 409, 410, 422, 429, body=True))
async def create_booking(
    request: ApiRequest, data: JSONBody[SkipValidation[BookingsWanted]], key: IdempotencyKey = None
) -> Response[wire.Booking | wire.Bookings]:
    """Book places of a slot, or those of a hold; or of several slots, all or none."""
    return await book_places(request.engine, request.caller, data, key)


async def book_places(engine: Engine, caller: Caller, asked: BookingsWanted, key: str | None) -> Answer:
    if isinstance(asked, wire.BookingOfItems):
        return await _book_several(engine, caller, asked, idempotency_key(key))
    made, token = await booking.book(engine, wanted(asked, idempotency_key(key)), caller=caller)
    return answers.created(wire.booking(made, token), location=f"/v1/bookings/{made.id}", replayed=made.replayed)


async def _book_several(engine: Engine, caller: Caller, asked: wire.BookingOfItems, key: str | None) -> Answer:
    order = several.Order(items=_items(asked), customer=asked.customer.normalised(), metadata=asked.metadata, key=key)
    made = await several.book(engine, order, caller=caller)
    body = wire.Bookings(data=[wire.booking(*each) for each in made])
    return answers.created(body, replayed=all(each.replayed for each, _ in made))


def _items(asked: wire.HoldsWanted | wire.BookingOfItems) -> list[several.Item]:
    return [several.Item(item.slot_id, item.quantity) for item in asked.items]


def wanted(data: BookingWanted, key: str | None) -> booking.BookingRequest:
    """Read what a body asks for: places of a slot, or those of a hold."""
    common: dict[str, Any] = {"customer": data.customer.normalised(), "metadata": data.metadata, "key": key}
    if isinstance(data, wire.BookingOfHold):
        return booking.BookingRequest(hold_token=data.hold_token, **common)
    return booking.BookingRequest(slot_id=data.slot_id, quantity=data.quantity, **common)


@get("/v1/bookings/{booking_id:str}", security=token_or_operator, responses=problems(401, 404))
async def read_booking(
    request: ApiRequest, booking_id: FromPath[UUID], token: ManageToken = None
) -> Response[wire.Booking]:
    """Read a booking by its manage token, or as an operator."""
    found = await booking.read_booking(request.engine, booking_id, proof(request, token))
    return answers.ok(wire.booking(found, payment=await request.engine.payments.of_booking(booking_id)))


@post(
    "/v1/bookings/{booking_id:str}/cancel",
    status_code=200,
    security=token_or_operator,
    responses=problems(401, 404, 409, 422, 429),
)
async def cancel_booking(
    request: ApiRequest, booking_id: FromPath[UUID], token: ManageToken = None, key: IdempotencyKey = None
) -> Response[wire.Booking]:
    """Cancel a booking, by its manage token or as an operator. Its places are free at once, and what was paid for it
    goes back as the venue's policy says.
    """
    shown = proof(request, token)
    this = keyed(f"cancel:{booking_id}", key, None)
    if this:
        await booking.read_booking(request.engine, booking_id, shown)  # the key alone proves nothing
        if first := await request.database.first_answer(this):
            return answers.again(first, replayed=True)
    cancelled = await settlement.cancel(request.engine, booking_id, shown, caller=request.caller)
    body = msgspec.json.encode(wire.booking(cancelled))
    if this:
        body = await request.database.keep_answer(this, body)
    return answers.again(body, replayed=False)


@post(
    "/v1/bookings/{booking_id:str}/reschedule",
    status_code=200,
    security=token_or_operator,
    responses=problems(401, 402, 404, 409, 422, 429, body=True),
)
async def reschedule_booking(
    request: ApiRequest,
    booking_id: FromPath[UUID],
    data: JSONBody[wire.Reschedule],
    token: ManageToken = None,
    key: IdempotencyKey = None,
) -> Response[wire.Booking]:
    """Move a booking to another slot of its venue in one step, by its manage token or as an operator. Refused, it stays
    where it is.
    """
    shown = proof(request, token)
    this = keyed(f"reschedule:{booking_id}", key, data)
    if this:
        await booking.read_booking(request.engine, booking_id, shown)  # the key alone proves nothing
        if first := await request.database.first_answer(this):
            return answers.again(first, replayed=True)
    wish = reschedule.Wish(data.slot_id, data.quantity, data.version)
    moved = await reschedule.reschedule(request.engine, booking_id, shown, wish, caller=request.caller)
    body = msgspec.json.encode(wire.booking(moved))
    if this:
        body = await request.database.keep_answer(this, body)
    return answers.again(body, replayed=False)


def proof(request: ApiRequest, token: str | None) -> str | None:
    """Tell by what right a booking is asked for: None for operators, else the token that was shown.

    Raises:
        BookingNotFound: none at all.
    """
    if request.is_operator:
        return None
    if not token:
        raise BookingNotFound
    return token


ROUTES: list[HTTPRouteHandler] = [
    read_venue, list_slots, list_days, read_slot, take_hold, read_hold, extend_hold, release_hold, create_booking,
    read_booking, cancel_booking, reschedule_booking,
]  # fmt: skip

#: What a crowd asks for, with what is in the body: see `direct`.
CROWDED: Mapping[str, tuple[Callable[[Engine, Caller, Any, str | None], Awaitable[Answer]], Any]] = {
    "/v1/holds": (hold_places, HoldsWanted),
    "/v1/bookings": (book_places, BookingsWanted),
}
