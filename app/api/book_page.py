"""The booking page of a venue: the widget, and for browsers without JavaScript the same in links and forms.

What was chosen stands in the address and what was typed in the form; nothing is kept between two requests, and no
cookie says who asks. So a form can do nothing for whoever made a browser send it, and its hidden key, an
Idempotency-Key, makes sending it twice harmless.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from app import booking, checkout
from app.api import pages, public, wire
from app.api.answers import Answer
from app.api.strict import FIRST_YEAR, LAST_YEAR, ApiRequest, not_too_often
from app.booking import BookingRequest
from app.catalogue import SlotFilter
from app.domain import Alternatives, Booking, Service, Venue
from app.errors import (
    AlreadyResolved,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    PaymentFailed,
    Problem,
    SlotNotFound,
    SlotUnavailable,
    Unavailable,
    UnsupportedMediaType,
)
from app.mail.money import money_text
from app.mail.notice import Money
from app.pages import language
from app.settings import STRIPE_API, Settings

#: Days that are shown side by side.
DAYS = 7
#: Pages of free times that are read of one day; nobody looks through more.
MOST_PAGES = 5
_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")
_FORM = "application/x-www-form-urlencoded"
#: Beside a field that is looked at alone, the others have to be right.
_ALL_RIGHT = {"name": "x", "email": "x@example.com"}
_AGAIN = (429, 503)


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename={"from_day": "from"}):
    """What an address says has been chosen so far."""

    service: UUID | None = None
    resource: UUID | None = None
    anybody: Literal["yes"] | None = None
    day: date | None = None
    from_day: date | None = None
    slot: UUID | None = None
    lang: str | None = None


class Typed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A form as it was sent."""

    slot: str = ""
    quantity: str = "1"
    name: str = ""
    email: str = ""
    phone: str = ""
    key: str = ""
    pay: str = ""
    #: The way back to the times.
    service: str = ""
    resource: str = ""
    anybody: str = ""


class Page(msgspec.Struct, frozen=True):
    """What all steps of one visit share."""

    request: ApiRequest
    venue: Venue
    language: str

    @property
    def words(self) -> Mapping[str, Any]:
        return language.words(self.language)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.venue.timezone)

    def href(self, **chosen: Any) -> str:
        """Address a step. The language stays the one that the address asked for."""
        given = {**chosen, "lang": self.request.query_params.get("lang")}
        query = urlencode({name: str(value) for name, value in given.items() if value})
        return f"/book/{self.venue.slug}{'?' if query else ''}{query}"

    def answer(self, template: str, *, status: int = 200, **values: Any) -> Answer:
        return pages.page(
            template,
            status=status,
            framed_by=pages.framed_by(self.venue),
            forms_to=_forms_to(self.request.engine.settings),
            w=self.words,
            lang=self.language,
            venue=self.venue,
            here=self.href(),
            **values,
        )

    def times(self, starts_at: datetime, ends_at: datetime) -> str:
        begins, ends = starts_at.astimezone(self.zone), ends_at.astimezone(self.zone)
        return f"{self.day(begins.date())}, {begins:%H:%M} \N{EN DASH} {ends:%H:%M}"

    def day(self, day: date) -> str:
        return language.day_text(self.language, day)


def language_of(request: ApiRequest) -> str:
    """Choose the language in which somebody is answered."""
    return language.choose(request.query_params.get("lang"), request.headers.get("accept-language", ""))


def _forms_to(settings: Settings) -> str:
    """Tell where forms may lead. Browsers ask the policy also about the page for paying that answers one, which may be
    on a domain of the venue's own.
    """
    if settings.stripe_api_base == STRIPE_API:
        return "'self' https:"
    simulator = urlsplit(settings.stripe_api_base)
    return f"'self' {simulator.scheme}://{simulator.hostname}:*"


# -- choosing ---------------------------------------------------------------------------------------------------------


async def show(request: ApiRequest, slug: str) -> Answer:
    """Show the step that comes after what the address says.

    Raises:
        NotFound: there is no such venue, service, person or slot. InvalidRequest: the address makes no sense.
    """
    page, asked = await _open(request, slug), _asked(request)
    if asked.slot is not None:
        typed = Typed(
            key=secrets.token_urlsafe(16),
            slot=str(asked.slot),
            service=str(asked.service or ""),
            resource=str(asked.resource or ""),
            anybody=asked.anybody or "",
        )
        return _form(page, await _slot(page, str(asked.slot)), typed)
    if asked.resource is not None or asked.anybody:
        return await _show_times(page, asked)
    if asked.service is not None:
        return await _show_people(page, asked, asked.service)
    return page.answer("book_what.html", offers=_offers(page))


async def _open(request: ApiRequest, slug: str) -> Page:
    return Page(request, await request.catalogue.venue(slug), language_of(request))


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
    if service.price_amount:
        told.append(_money(service.price_amount, service.price_currency))
    return " · ".join(told)


def _money(amount: int, currency: str | None) -> str:
    return money_text(Money(amount, currency or ""))


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
                "weekday": language.weekday_text(page.language, day),
                "date": language.date_text(page.language, day),
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
    """Tell on which day the first free time is, None: there is none."""
    found = await public.page_of_slots(page.request, msgspec.structs.replace(wanted, limit=1))
    return found.data[0].starts_at.astimezone(page.zone).date() if found.data else None


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
            "text": f"{slot.starts_at.astimezone(page.zone):%H:%M}",
            "note": _note(page, slot, anybody=bool(asked.anybody)),
        }
        for slot in found.values()
    ]


def _note(page: Page, slot: wire.Slot, *, anybody: bool) -> str:
    left = page.words["one_left" if slot.available == 1 else "left"].format(n=slot.available)
    notes = [slot.resource.name] * anybody + [left] * (slot.capacity > 1)
    return " · ".join(notes)


# -- the form ---------------------------------------------------------------------------------------------------------


async def _slot(page: Page, slot_id: str) -> wire.Slot:
    try:
        slot = await public.slot_now(page.request, UUID(slot_id))
    except ValueError:
        raise SlotNotFound from None
    if slot.venue != page.venue.slug:
        raise SlotNotFound
    return slot


def _form(
    page: Page,
    slot: wire.Slot,
    typed: Typed,
    *,
    status: int = 200,
    note: str = "",
    errors: Mapping[str, str] | None = None,
    options: Sequence[Mapping[str, str]] = (),
) -> Answer:
    """Show the form with what was typed. `options`: other times to choose from, when this one cannot be had."""
    back = {"service": typed.service, "resource": typed.resource, "anybody": typed.anybody}
    if not (typed.resource or typed.anybody):
        back["resource"] = str(slot.resource.id)
    priced = slot.price is not None and slot.price.amount > 0
    return page.answer(
        "book_form.html",
        status=status,
        slot=slot,
        what=" · ".join(each.name for each in (slot.service, slot.resource) if each),
        when=page.times(slot.starts_at, slot.ends_at),
        price=_money(slot.price.amount, slot.price.currency) if slot.price and priced else "",
        typed=typed,
        note=note,
        errors=errors or {},
        options=options,
        buttons=_buttons(page, priced=priced),
        back=page.href(**back, day=slot.starts_at.astimezone(page.zone).date()),
        # Stripe lets no page show it in a frame.
        out_of_frame=priced and page.request.headers.get("sec-fetch-dest") == "iframe",
    )


def _buttons(page: Page, *, priced: bool) -> list[tuple[str, str]]:
    words = page.words
    if priced and page.venue.payment == "required":
        return [("", words["pay"])]
    if priced and page.request.engine.gateway is not None:
        return [("", words["book_pay_there"]), ("now", words["pay_now"])]
    return [("", words["book"])]


async def read_form(request: ApiRequest) -> Typed:
    """Read a form: what a browser sends of ours, and nothing else.

    Raises:
        UnsupportedMediaType. InvalidRequest.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise UnsupportedMediaType(f"Send Content-Type: {_FORM}")
    try:
        text = (await request.body()).decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=20)
        given = dict(pairs)
        if len(given) != len(pairs):
            raise InvalidRequest("", "The same field stands twice in the form")
        return msgspec.convert(given, Typed)
    except (ValueError, msgspec.ValidationError):
        raise InvalidRequest("", "This is not the form of this page") from None


async def submit(request: ApiRequest, slug: str) -> Answer:
    """Book what a form asks for. Whatever prevents it, what was typed is kept.

    Raises:
        NotFound, InvalidRequest, UnsupportedMediaType: it is no form of this page.
    """
    typed, page = await read_form(request), None
    try:
        await not_too_often(request)
        page = await _open(request, slug)
        return await _submit(page, typed)
    except Problem as problem:
        if problem.status not in _AGAIN:
            raise
        return _again(request, page, typed, problem)


async def _submit(page: Page, typed: Typed) -> Answer:
    words, slot = page.words, await _slot(page, typed.slot)
    if not _KEY.fullmatch(typed.key):
        fresh = msgspec.structs.replace(typed, key=secrets.token_urlsafe(16))
        return _form(page, slot, fresh, status=400, note=words["form_broken"])
    errors = _mistakes(page, typed, slot)
    if errors:
        return _form(page, slot, typed, status=400, note=words["check"], errors=errors)
    try:
        return await _book(page, slot, typed)
    except SlotUnavailable as refusal:
        note, options = _refused(page, slot, refusal)
        return _form(page, slot, typed, status=409, note=note, options=options)
    except (IdempotencyKeyReused, AlreadyResolved):
        return _form(page, slot, typed, status=422, note=words["key_used"])
    except PaymentFailed:
        return _form(page, slot, typed, status=502, note=words["payment_failed"])


def _mistakes(page: Page, typed: Typed, slot: wire.Slot) -> dict[str, str]:
    """Tell of each field what is wrong with it; the API's own rules are asked, field by field."""
    found = {}
    for name in ("name", "email", "phone"):
        value = getattr(typed, name)
        if name == "phone" and not value:
            continue
        try:
            msgspec.convert({**_ALL_RIGHT, name: value}, wire.CustomerDetails)
            right = "\0" not in value
        except msgspec.ValidationError:
            right = False
        if not right:
            found[name] = page.words[f"wrong_{name}"]
    if not re.fullmatch("[0-9]{1,6}", typed.quantity) or not 1 <= int(typed.quantity) <= slot.capacity:
        found["quantity"] = page.words["wrong_quantity"].format(n=slot.capacity)
    return found


async def _book(page: Page, slot: wire.Slot, typed: Typed) -> Answer:
    engine, caller = page.request.engine, page.request.caller
    details = wire.CustomerDetails(name=typed.name, email=typed.email, phone=typed.phone or None)
    wanted = BookingRequest(slot_id=slot.id, quantity=int(typed.quantity), customer=details.normalised(), key=typed.key)
    if page.venue.payment == "required" or typed.pay == "now":
        started = await checkout.checkout(engine, wanted, checkout.Way(None, None), caller=caller)
        if started.checkout_url is not None:
            return Answer(303, b"", pages.HTML, {"Location": started.checkout_url})
        return _done(page, slot, started.booking, started.manage_token)
    made, token = await booking.book(engine, wanted, caller=caller)
    return _done(page, slot, made, token)


def _done(page: Page, slot: wire.Slot, made: Booking, token: str) -> Answer:
    return page.answer(
        "book_done.html",
        what=" · ".join(each.name for each in (slot.service, slot.resource) if each),
        when=page.times(slot.starts_at, slot.ends_at),
        made=made,
        # Behind the `#`, which no browser sends: so no log ever holds it.
        manage=f"/manage/{made.id}#{token}",
    )


def _refused(page: Page, slot: wire.Slot, refusal: SlotUnavailable) -> tuple[str, list[dict[str, str]]]:
    """Say why it cannot be had, and what can: the same time for fewer, then what the refusal offers."""
    words, fields = page.words, refusal.fields
    left, others = fields["available"], fields["alternatives"]
    options = [{"id": str(slot.id), "text": page.times(slot.starts_at, slot.ends_at)}] if left else []
    for other, _ in others if isinstance(others, Alternatives) else ():
        when = other.starts_at.astimezone(page.zone)
        text = f"{page.day(when.date())}, {when:%H:%M} · {other.resource_name}"
        options.append({"id": str(other.id), "text": text})
    if fields["reason"] in ("closed", "past"):
        return words["over"], options
    if left:
        return words["too_few"].format(n=left, wanted=fields["requested"]), options
    return words["held" if fields["reason"] == "held" else "taken"], options


def _again(request: ApiRequest, page: Page | None, typed: Typed, problem: Problem) -> Answer:
    """Offer to send the same form again: its key sees to it that nothing is done twice."""
    chosen = language_of(request)
    words = language.words(chosen)
    in_doubt = isinstance(problem, Unavailable) and not problem.effect_none
    said = "too_often" if problem.status == 429 else "in_doubt" if in_doubt else "busy"
    answer = pages.page(
        "book_again.html",
        status=problem.status,
        framed_by=pages.framed_by(page.venue) if page else "'self'",
        forms_to=_forms_to(request.engine.settings),
        w=words,
        lang=chosen,
        text=words[said],
        action=request.scope["path"] + (f"?lang={chosen}" if "lang" in request.query_params else ""),
        typed=msgspec.structs.asdict(typed),
    )
    answer.headers |= problem.headers
    return answer
