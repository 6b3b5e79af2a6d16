"""An owner's days, for operators and their calendar page: who comes when, and time that is blocked."""

from datetime import UTC, datetime
from uuid import UUID

from litestar import Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody

from app import blocks, holding
from app.api import answers, wire, wire_agenda
from app.api.docs import operator_security, problems
from app.api.public import IdempotencyKey
from app.api.strict import ApiRequest, idempotency_key, operator_only, query
from app.calendars import agenda


@get(
    "/v1/calendar",
    opt={"query": wire_agenda.CalendarQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def read_agenda(request: ApiRequest) -> Response[wire_agenda.Calendar]:
    """Read a venue's days: bookings, holds, blocked time, and what is free. Cancelled bookings are not among them."""
    asked = query(request, wire_agenda.CalendarQuery)
    engine = request.engine
    subject = await agenda.find(engine.ledger, asked.venue, None)
    # Holds first: what becomes a booking meanwhile is then found as both, and told as the booking.
    holds = await holding.list_holds(engine, subject.venue, None)
    degraded = engine.holds.breaker.failures > 0
    seen = await agenda.look(engine.ledger, subject, asked.since, asked.until)
    now = datetime.now(UTC)
    lines = agenda.lines(agenda.with_holds(seen, holds), asked.since, asked.until, now)
    return answers.ok(
        wire_agenda.Calendar(
            venue=subject.venue,
            timezone=subject.timezone,
            server_time=now,
            resources=[wire.Named(id=each.id, name=each.name) for each in subject.resources],
            degraded=degraded,
            complete=seen.complete,
            data=[wire_agenda.entry(line) for line in lines],
        )
    )


@post(
    "/v1/blocks", guards=[operator_only], security=operator_security, responses=problems(401, 404, 409, 422, body=True)
)
async def create_block(
    request: ApiRequest, data: JSONBody[wire_agenda.BlockWanted], key: IdempotencyKey = None
) -> Response[wire_agenda.Block]:
    """Block time of a person or a place: nobody can hold or book it. 409 when something is booked or held then."""
    made, replayed = await blocks.block(request.engine, data.to_wish(idempotency_key(key)), caller=request.caller)
    # It has no page of its own: its venue's list shows it.
    location = f"/v1/blocks?venue={made.venue}"
    return answers.created(wire_agenda.block(made), location=location, replayed=replayed)


@get(
    "/v1/blocks",
    opt={"query": wire_agenda.BlockQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_blocks(request: ApiRequest) -> Response[wire_agenda.BlockPage]:
    """List a venue's blocked time in the order in which it begins."""
    asked = query(request, wire_agenda.BlockQuery)
    which = blocks.Filter(venue=asked.venue, since=asked.since, until=asked.until)
    found = await blocks.listed(request.engine.ledger, which, wire.position(asked.cursor), asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, lambda last: wire.cursor(last.starts_at, last.id))
    return answers.ok(wire_agenda.BlockPage(data=[wire_agenda.block(each) for each in shown], next_cursor=more))


@delete("/v1/blocks/{block_id:str}", guards=[operator_only], security=operator_security, responses=problems(401, 404))
async def remove_block(request: ApiRequest, block_id: FromPath[UUID]) -> Response[None]:
    """Give blocked time back; 204 also when that was done before. Whoever waits for it is offered it."""
    await blocks.unblock(request.engine, block_id, caller=request.caller)
    return answers.nothing()


ROUTES: list[HTTPRouteHandler] = [read_agenda, create_block, list_blocks, remove_block]
