"""Choosing what, with whom and when: a link for each choice, until the form is all that is left."""

import secrets
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from uuid import UUID

import msgspec

from app import written
from app.api import book_form, public, wire
from app.api.answers import Answer
from app.api.book_page import Page, open_page
from app.api.strict import FIRST_YEAR, LAST_YEAR, ApiRequest
from app.catalogue import SlotFilter
from app.domain import Service
from app.errors import InvalidRequest, NotFound

#: Days that are shown side by side.
DAYS = 7
#: Pages of free times that are read of one day; nobody looks through more.
MOST_PAGES = 5
#: Times that are looked at together for the first free one: more than one hold is usually in the way of.
FIRST_LOOK = 20


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename={"from_day": "from"}):
    """What an address says has been chosen so far."""

    service: UUID | None = None
    resource: UUID | None = None
    anybody: Literal["yes"] | None = None
    day: date | None = None
    from_day: date | None = None
    slot: UUID | None = None


async def show(request: ApiRequest, slug: str) -> Answer:
    """Show the step that comes after what the address says.

    Raises:
        NotFound: there is no such venue, service, person or slot. InvalidRequest: the address makes no sense.
    """
    page, asked = await open_page(request, slug), _asked(request)
    if asked.slot is not None:
        typed = book_form.Typed(
            key=secrets.token_urlsafe(16),
            slot=str(asked.slot),
            service=str(asked.service or ""),
            resource=str(asked.resource or ""),
            anybody=asked.anybody or "",
        )
        return book_form.form(page, await book_form.find_slot(page, str(asked.slot)), typed)
    if asked.resource is not None or asked.anybody:
        return await _show_times(page, asked)
    if asked.service is not None:
        return await _show_people(page, asked, asked.service)
    return page.answer("book_what.html", offers=_offers(page))


def _asked(request: ApiRequest) -> Asked:
    """Read the address. What else stands there, links from elsewhere have added: that is no mistake."""
    names = {field.encode_name for field in msgspec.structs.fields(Asked)}
    given = {name: value for name, value in request.query_params.items() if name in names and value}
    try:
        asked = msgspec.convert(given, Asked, strict=True)
    except msgspec.ValidationError:
        raise InvalidRequest("", "This address makes no sense") from None
    for day in (asked.day, asked.from_day):
        if day is not None and not FIRST_YEAR < day.year < LAST_YEAR:
            raise InvalidRequest("day", "Nobody books so far away")
    return asked


def _offers(page: Page) -> list[dict[str, str]]:
    """List what can be chosen: the services, and what is sold by itself, such as a tour."""
    serving = {resource_id for service in page.venue.services for resource_id in service.resource_ids}
    return [
        {"href": page.href(service=service.id), "text": service.name, "note": _about(page, service)}
        for service in page.venue.services
        if service.resource_ids
    ] + [
        {"href": page.href(resource=resource.id), "text": resource.name, "note": ""}
        for resource in page.venue.resources
        if resource.id not in serving
    ]


def _about(page: Page, service: Service) -> str:
    told = [page.words["minutes"].format(n=service.duration_minutes)]
    if service.price_amount and service.price_currency:
        told.append(page.money(service.price_amount, service.price_currency))
    return " · ".join(told)


async def _show_people(page: Page, asked: Asked, service_id: UUID) -> Answer:
    service = next((each for each in page.venue.services if each.id == service_id), None)
    if service is None:
        raise NotFound("Service not found")
    people = [each for each in page.venue.resources if each.id in service.resource_ids]
    if len(people) == 1:
        return await _show_times(page, msgspec.structs.replace(asked, resource=people[0].id))
    choices = [{"href": page.href(service=service_id, anybody="yes"), "text": page.words["anybody"]}]
    choices += [{"href": page.href(service=service_id, resource=each.id), "text": each.name} for each in people]
    return page.answer("book_who.html", what=service.name, choices=choices)


async def _show_times(page: Page, asked: Asked) -> Answer:
    """Show a week of days, and the free times of one of them."""
    now = datetime.now(UTC)
    today = now.astimezone(page.zone).date()
    wanted = wire.SlotQuery(
        venue=page.venue.slug, service_id=asked.service, resource_id=asked.resource, starts_from=now, quantity=1
    )
    begin = max(asked.from_day or await _first_day(page, wanted) or today, today)
    days = [begin + timedelta(days=n) for n in range(DAYS)]
    free = await _free_days(page, asked, days)
    chosen = asked.day if asked.day in days else next(iter(free), None)
    way = {"service": asked.service, "resource": asked.resource, "anybody": asked.anybody}
    after = await _first_day(page, _from(page, wanted, days[-1] + timedelta(days=1)))
    return page.answer(
        "book_when.html",
        what=_named(page, asked),
        days=[
            {
                "href": page.href(**way, **{"from": begin, "day": day}) if day in free else "",
                "weekday": written.weekday(page.language, day),
                "date": written.day_of_month(page.language, day),
                "chosen": day == chosen,
            }
            for day in days
        ],
        chosen=page.day(chosen) if chosen else "",
        times=await _times(page, asked, _on(page, wanted, chosen)) if chosen else [],
        earlier=page.href(**way, **{"from": max(begin - timedelta(days=DAYS), today)}) if begin > today else "",
        # Only as long as there is something: whoever follows all links, a search engine say, comes to an end.
        later={"href": page.href(**way, **{"from": after}), "text": page.day(after)} if after else None,
    )


def _named(page: Page, asked: Asked) -> str:
    """Tell what was chosen.

    Raises:
        NotFound: that is not to be had here.
    """
    service = next((each for each in page.venue.services if each.id == asked.service), None)
    resource = next((each for each in page.venue.resources if each.id == asked.resource), None)
    if (asked.service and service is None) or (asked.resource and resource is None) or not (service or resource):
        raise NotFound("There is no such thing here")
    return " · ".join(each.name for each in (service, resource) if each)


def _midnight(page: Page, day: date) -> datetime:
    return datetime.combine(day, time.min, page.zone).astimezone(UTC)


def _from(page: Page, wanted: wire.SlotQuery, day: date) -> wire.SlotQuery:
    begin = max(wanted.starts_from or _midnight(page, day), _midnight(page, day))
    return msgspec.structs.replace(wanted, starts_from=begin)


def _on(page: Page, wanted: wire.SlotQuery, day: date) -> wire.SlotQuery:
    end = _midnight(page, day + timedelta(days=1))
    return msgspec.structs.replace(_from(page, wanted, day), starts_before=end)


async def _free_days(page: Page, asked: Asked, days: Sequence[date]) -> list[date]:
    """Tell which days have something that is not booked; whether it is held, the times of a day say."""
    which = SlotFilter(venue=page.venue.slug, service_id=asked.service, resource_id=asked.resource, room_for=1)
    return await page.request.catalogue.free_days(which, days[0], days[-1], page.venue.timezone)


async def _first_day(page: Page, wanted: wire.SlotQuery) -> date | None:
    """Tell on which day the first free time is, None: there is none. A single hold may be in the way of a person's next
    dozens: where they go on for too long, the day is told up to which we have looked, for who wants to look on.
    """
    after, cursor = wanted.starts_from or datetime.now(UTC), None
    for _ in range(MOST_PAGES):
        asked = msgspec.structs.replace(wanted, limit=FIRST_LOOK, cursor=cursor)
        found = await public.page_of_slots(page.request, asked)
        if found.data:
            return found.data[0].starts_at.astimezone(page.zone).date()
        cursor = found.next_cursor
        if cursor is None:
            return None
        after = (wire.position(cursor) or (after,))[0]
    return after.astimezone(page.zone).date()


async def _times(page: Page, asked: Asked, wanted: wire.SlotQuery) -> list[dict[str, str]]:
    """List the free times of a day; with anybody each time once, at whoever comes first."""
    found: dict[Any, wire.Slot] = {}
    cursor = None
    for _ in range(MOST_PAGES):
        read = await public.page_of_slots(page.request, msgspec.structs.replace(wanted, limit=100, cursor=cursor))
        for slot in read.data:
            found.setdefault(slot.starts_at if asked.anybody else slot.id, slot)
        cursor = read.next_cursor
        if cursor is None:
            break
    return [
        {
            "href": page.href(service=asked.service, resource=asked.resource, anybody=asked.anybody, slot=slot.id),
            "text": written.clock(page.language, slot.starts_at.astimezone(page.zone)),
            "note": _note(page, slot, anybody=bool(asked.anybody)),
        }
        for slot in found.values()
    ]


def _note(page: Page, slot: wire.Slot, *, anybody: bool) -> str:
    left = page.words["one_left" if slot.available == 1 else "left"].format(n=slot.available)
    notes = [slot.resource.name] * anybody + [left] * (slot.capacity > 1)
    return " · ".join(notes)
