"""Calendars: feeds for whoever knows the secret in their address, and for operators who gives that away."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, delete, get, post, route
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, HeaderParameter, JSONBody, PathParameter

from app import booking
from app.api import answers, wire, wire_calendars
from app.api.docs import operator_security, problems, token_or_operator
from app.api.public import IdempotencyKey, ManageToken, proof
from app.api.strict import ApiRequest, idempotency_key, operator_only, query, whole
from app.calendars import bookings, feeds
from app.calendars.feeds import Feed
from app.errors import Busy, NotFound
from app.telemetry import request_id

MEDIA_TYPE = "text/calendar"
SUFFIX = ".ics"
#: Calendars are asked for by programs that come back by themselves. One at a time in each process: the connections to
#: Postgres and the time of the loop are for those who book. Who waits longer than this is told to come back.
WAIT_SECONDS = 5.0

Calendar = Annotated[
    str,
    PathParameter(
        description="the secret that the feed's `url` holds, and `.ics`",
        schema_extra={"pattern": whole(feeds.ENCODED + r"\.ics")},
    ),
]
IfNoneMatch = Annotated[str | None, HeaderParameter(name="If-None-Match", description="the `ETag` of what is known")]


# -- for operators ----------------------------------------------------------------------------------------------------


@post(
    "/v1/calendar-feeds",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409, 422, body=True),
)
async def create_calendar_feed(
    request: ApiRequest, data: JSONBody[wire_calendars.CalendarFeedWanted], key: IdempotencyKey = None
) -> Response[wire_calendars.CalendarFeed]:
    """Let a venue's or a resource's calendar be subscribed to. Its `url` is a secret, and told here, once."""
    settings = request.engine.settings
    made, replayed = await feeds.create(
        request.engine.ledger,
        data.venue,
        data.resource_id,
        request_id(),
        derived_from=settings.secrets,
        key=idempotency_key(key),
    )
    body = wire_calendars.feed(made, _url(settings.public_url, made))
    return answers.created(body, location="/v1/calendar-feeds", replayed=replayed)  # a list: it has no page of its own


@get(
    "/v1/calendar-feeds",
    opt={"query": wire_calendars.CalendarFeedQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_calendar_feeds(request: ApiRequest) -> Response[wire_calendars.CalendarFeedPage]:
    """List calendar feeds in the order in which they were made, without their addresses."""
    asked = query(request, wire_calendars.CalendarFeedQuery)
    found = await feeds.listed(request.engine.ledger, asked.venue, wire.position(asked.cursor), asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, wire.behind)
    data = [wire_calendars.feed(feed) for feed in shown]
    return answers.ok(wire_calendars.CalendarFeedPage(data=data, next_cursor=more))


@post(
    "/v1/calendar-feeds/{feed_id:str}/rotate",
    status_code=200,
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404, 409),
)
async def rotate_calendar_feed(
    request: ApiRequest, feed_id: FromPath[UUID], key: IdempotencyKey = None
) -> Response[wire_calendars.CalendarFeed]:
    """Give a calendar feed a new `url`, told here, once. The one before answers 404 from now on."""
    settings = request.engine.settings
    rotated, replayed = await feeds.rotate(
        request.engine.ledger, feed_id, request_id(), derived_from=settings.secrets, key=idempotency_key(key)
    )
    body = wire_calendars.feed(rotated, _url(settings.public_url, rotated))
    return answers.again(msgspec.json.encode(body), replayed=replayed)


@delete(
    "/v1/calendar-feeds/{feed_id:str}",
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def remove_calendar_feed(request: ApiRequest, feed_id: FromPath[UUID]) -> Response[None]:
    """Close a calendar feed: its `url` answers 404 from now on."""
    await feeds.remove(request.engine.ledger, feed_id, request_id())
    return answers.nothing()


def _url(public_url: str, feed: Feed) -> str:
    return f"{public_url}/v1/calendars/{feed.secret}{SUFFIX}"


# -- for everyone who knows the secret --------------------------------------------------------------------------------


@get(
    "/v1/calendars/{calendar:str}",
    responses={
        200: ResponseSpec(str, generate_examples=False, media_type=MEDIA_TYPE, description="The calendar"),
        304: ResponseSpec(None, generate_examples=False, description="It is still the one that `If-None-Match` names"),
        **problems(404),
    },
)
async def read_calendar(request: ApiRequest, calendar: Calendar, known: IfNoneMatch = None) -> Response[Any]:
    """Read the bookings of a calendar feed as iCalendar: 30 days back and a year ahead, cancelled ones included."""
    return await _answer(request, calendar, known)


@route("/v1/calendars/{calendar:str}", http_method=["HEAD"], include_in_schema=False)
async def look_at_calendar(request: ApiRequest, calendar: FromPath[str], known: IfNoneMatch = None) -> Response[Any]:
    """Answer as to GET, without the body."""
    return await _answer(request, calendar, known)


async def _answer(request: ApiRequest, name: str, known: str | None) -> Response[bytes]:
    turn: asyncio.Lock = _turn(request)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await turn.acquire()
    except TimeoutError:
        raise Busy from None
    try:
        return await _calendar(request, name, known)
    finally:
        turn.release()


def _turn(request: ApiRequest) -> asyncio.Lock:
    """The lock of this application: made by the first who asks."""
    state = request.app.state
    if "calendar_turn" not in state:
        state.calendar_turn = asyncio.Lock()
    turn: asyncio.Lock = state.calendar_turn
    return turn


async def _calendar(request: ApiRequest, name: str, known: str | None) -> Response[bytes]:
    ledger = request.engine.ledger
    if not name.endswith(SUFFIX):
        raise NotFound("Calendar not found")
    subject = await feeds.opened_by(ledger, name.removesuffix(SUFFIX))
    entries = await bookings.read(ledger, subject, datetime.now(UTC))
    from app.calendars import ical  # noqa: PLC0415 a third of a second, for those who serve a calendar at all

    tag = ical.etag(subject, entries)
    headers = {
        "ETag": tag,
        # Kept by whoever asked, who asks whether it is still so each time.
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if _matches(known, tag):
        return Response(b"", status_code=304, headers=headers)
    body = await ical.calendar(subject, entries)
    # Named, because a browser would save it under the last part of its address, which is the secret.
    saved_as = 'inline; filename="calendar.ics"'
    headers |= {"Content-Type": f"{MEDIA_TYPE}; charset=utf-8", "Content-Disposition": saved_as}
    return Response(body, headers=headers)


def _matches(header: str | None, tag: str) -> bool:
    """Compare as RFC 9110 has it for reading: weakly, with any of the list, or with `*`."""
    if header is None:
        return False
    given = [each.strip().removeprefix("W/") for each in header.split(",")]
    return tag in given or given == ["*"]


# -- for customers ----------------------------------------------------------------------------------------------------


@get(
    "/v1/bookings/{booking_id:str}/calendar",
    security=token_or_operator,
    responses={
        **problems(401, 404, 409),
        200: ResponseSpec(bytes, generate_examples=False, media_type=MEDIA_TYPE, description="the booking's entry"),
    },
)
async def read_booking_calendar(
    request: ApiRequest, booking_id: FromPath[UUID], token: ManageToken = None
) -> Response[bytes]:
    """Download the calendar entry of a booking, by its manage token or as an operator: the one its e-mails bring."""
    await booking.read_booking(request.engine, booking_id, proof(request, token))
    from app import notices  # noqa: PLC0415 as above

    body = await notices.calendar(request.engine, booking_id)
    headers = {
        **answers.SAFE_HEADERS,
        "Content-Type": f"{MEDIA_TYPE}; charset=utf-8",
        "Content-Disposition": 'attachment; filename="booking.ics"',
    }
    return Response(body, headers=headers)


ROUTES: list[HTTPRouteHandler] = [
    create_calendar_feed, list_calendar_feeds, rotate_calendar_feed, remove_calendar_feed, read_calendar,
    look_at_calendar, read_booking_calendar,
]  # fmt: skip
