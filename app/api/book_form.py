"""The form that books: read as strictly as JSON is, and answered so that nothing typed is ever lost."""

import re
import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import msgspec

from app import booking, checkout, written
from app.api import pages, public, wire
from app.api.answers import Answer
from app.api.book_page import Page, forms_to, language_of, open_page
from app.api.strict import ApiRequest, not_too_often
from app.booking import BookingRequest
from app.domain import Alternatives, Booking
from app.errors import (
    AlreadyResolved,
    HeldTooMuch,
    IdempotencyKeyReused,
    InvalidRequest,
    PaymentFailed,
    PaymentRequired,
    Problem,
    SlotNotFound,
    SlotUnavailable,
    Unavailable,
    UnsupportedMediaType,
)
from app.pages import language

_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")
_FORM = "application/x-www-form-urlencoded"
#: Beside a field that is looked at alone, the others have to be right.
_ALL_RIGHT = {"name": "x", "email": "x@example.com"}
_AGAIN = (429, 503)


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


async def find_slot(page: Page, slot_id: str) -> wire.Slot:
    try:
        slot = await public.slot_now(page.request, UUID(slot_id))
    except ValueError:
        raise SlotNotFound from None
    if slot.venue != page.venue.slug:
        raise SlotNotFound
    return slot


def form(
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
        price=page.money(slot.price.amount, slot.price.currency) if slot.price and priced else "",
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
    """List what can be pressed, what is usual first."""
    words = page.words
    if priced and page.venue.payment == "required":
        return [("", words["pay"])]
    if priced and page.request.engine.gateway is not None:
        return [("", words["book_pay_there"]), ("now", words["pay_now"])]
    return [("", words["book"])]


def is_foreign(request: ApiRequest) -> bool:
    """Tell whether another site's page had a browser send this form. Browsers say so themselves; older ones, and where
    there is no TLS, tell only the origin. What comes from no browser says neither, and may call the API as well.
    """
    site, origin = (request.headers.get(name) for name in ("sec-fetch-site", "origin"))
    if site is not None:
        return site not in ("same-origin", "none")
    ours = (request.headers.get("host"), urlsplit(request.engine.settings.public_url).netloc)
    return origin is not None and origin.partition("://")[2] not in ours


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
        page = await open_page(request, slug)
        return await _submit(page, typed)
    except Problem as problem:
        if problem.status not in _AGAIN:
            raise
        return _again(request, page, typed, problem)


async def _submit(page: Page, typed: Typed) -> Answer:
    words, slot = page.words, await find_slot(page, typed.slot)
    if not _KEY.fullmatch(typed.key):
        fresh = msgspec.structs.replace(typed, key=secrets.token_urlsafe(16))
        return form(page, slot, fresh, status=400, note=words["form_broken"])
    errors = _mistakes(page, typed, slot)
    if errors:
        return form(page, slot, typed, status=400, note=words["check"], errors=errors)
    try:
        return await _book(page, slot, typed)
    except SlotUnavailable as refusal:
        note, options = _refused(page, slot, refusal)
        return form(page, slot, typed, status=409, note=note, options=options)
    except HeldTooMuch:
        return form(page, slot, typed, status=409, note=words["held_too_much"])
    except (IdempotencyKeyReused, AlreadyResolved):
        return form(page, slot, typed, status=422, note=words["key_used"])
    except (PaymentRequired, InvalidRequest) as changed:
        return await _changed(page, typed, changed.status)
    except PaymentFailed:
        return form(page, slot, typed, status=502, note=words["payment_failed"])


async def _changed(page: Page, typed: Typed, status: int) -> Answer:
    """Show the form as it is now: the venue has changed what it asks for while this one was on its way."""
    page = await open_page(page.request, page.venue.slug)
    slot = await find_slot(page, typed.slot)
    errors = _mistakes(page, typed, slot)
    note = page.words["pay_first" if status == PaymentRequired.status else "check" if errors else "form_broken"]
    return form(page, slot, typed, status=status, note=note, errors=errors)


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
    wanted = BookingRequest(
        slot_id=slot.id,
        quantity=int(typed.quantity),
        customer=details.normalised(),
        metadata={"language": page.language},
        key=typed.key,
    )
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
    """Say why it cannot be had, and what can: the same time for fewer, then what the refusal offers, in order of time.
    Of those the nearest is chosen beforehand.
    """
    words, fields = page.words, refusal.fields
    left, others = fields["available"], fields["alternatives"]
    same = {"id": str(slot.id), "text": page.times(slot.starts_at, slot.ends_at), "checked": "checked"}
    nearest = [other for other, _ in others] if isinstance(others, Alternatives) else []
    options = [same] if left else []
    for other in sorted(nearest, key=lambda each: each.starts_at):
        when = written.moment(page.language, other.starts_at.astimezone(page.zone))
        checked = "checked" if other is nearest[0] and not left else ""
        options.append({"id": str(other.id), "text": f"{when} · {other.resource_name}", "checked": checked})
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
        # Whose frames may show it is not known yet: shown nowhere, the form would be lost.
        framed_by=pages.framed_by(page.venue) if page else "*",
        forms_to=forms_to(request.engine.settings),
        w=words,
        lang=chosen,
        text=words[said],
        action=request.scope["path"] + (f"?lang={chosen}" if "lang" in request.query_params else ""),
        typed=msgspec.structs.asdict(typed),
    )
    answer.headers |= problem.headers
    return answer
