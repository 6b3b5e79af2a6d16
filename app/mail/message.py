"""How an e-mail reads: one set of words for its text and its HTML, the calendar entry beside them."""

import re
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from app import written
from app.mail.calendar import calendar_entry
from app.mail.notice import MailRefused, Money, Notice
from app.mail.text import one_line

#: Longer names are cut in the subject: a list of mails shows no more, and the body has all of it.
SUBJECT_NAME = 60

#: The form that the API takes. The standard library's own parser lets more pass than one address, and in some versions
#: fails with errors of its own.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ADDRESS = re.compile(rf"{_ATOM}(\.{_ATOM})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


class Words(msgspec.Struct, frozen=True):
    """All that a template says."""

    subject: str
    heading: str
    venue: str
    greeting: str
    sentences: list[str]
    facts: list[tuple[str, str]]
    link: str | None
    link_text: str


def render(notice: Notice, sender: str, now: datetime | None = None) -> EmailMessage:
    """Write the e-mail of a notice. The same notice has the same Message-ID whenever it is rendered.

    Raises:
        MailRefused: the customer's address is none.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
    author, words = author_of(sender), _words(notice)
    message = EmailMessage(policy=SMTP)
    message["From"] = author
    # The address alone. A name would add nothing for its bearer, and would be a header that strangers write.
    message["To"] = _recipient(notice)
    message["Subject"] = _header(words.subject)
    message["Date"] = format_datetime(now)
    message["Message-ID"] = f"<{notice.booking_id}.{notice.kind}.{notice.sequence}@{author.domain}>"
    message["Auto-Submitted"] = "auto-generated"
    # Quoted-printable passes every server, also those of seven bits and of short lines.
    message.set_content(_template("notice.txt", words), cte="quoted-printable")
    message.add_alternative(_template("notice.html", words), subtype="html", cte="quoted-printable")
    # What was never booked stands in no calendar: a removal would put a crossed-out entry there.
    if notice.kind not in ("refunded", "place_free"):
        message.add_attachment(
            calendar_entry(notice, author, now).decode(),
            subtype="calendar",
            filename="booking.ics",
            params={"method": "PUBLISH"},
            cte="base64",
        )
    message["Content-Language"] = "en"  # of the whole: earlier, it would have gone into the first part
    return message


def author_of(sender: str) -> Address:
    """Read who sends, such as `Salon <hello@salon.example>`."""
    name, address = parseaddr(sender)
    return Address(_header(name), addr_spec=address)


def _recipient(notice: Notice) -> Address:
    text = notice.customer.email
    if len(text) > 254 or not _ADDRESS.fullmatch(text):
        raise MailRefused("the customer's e-mail address is none")
    username, _, domain = text.rpartition("@")
    return Address(username=username, domain=domain)


def _header(text: str) -> str:
    """Make a text fit for a header's value.

    The standard library decodes what looks encoded, such as `=?utf-8?q?=0D=0ABcc:_…?=`, and some versions then write
    the line break out as one: whoever types that as a name writes headers.
    """
    return one_line(text).replace("=?", "= ?")


def _words(notice: Notice) -> Words:
    what = one_line(notice.resource_name)
    return Words(
        subject=f"{_SUBJECTS[notice.kind]}: {one_line(what, SUBJECT_NAME)}, {_short(notice, notice.starts_at)}",
        heading=_HEADINGS[notice.kind],
        venue=one_line(notice.venue.name),
        greeting=f"Hello {one_line(notice.customer.name) or 'there'},",
        sentences=_sentences(notice),
        facts=[
            ("What", what),
            ("Where", one_line(notice.venue.name)),
            ("When", written.span_in_zone("en", notice.starts_at, notice.ends_at, notice.venue.timezone)),
            ("Places", str(notice.quantity)),
            *([("Price", _money(notice.price))] if notice.price else []),
            *_reference(notice),
        ],
        link=notice.link,
        link_text=_LINKS[notice.kind],
    )


def _reference(notice: Notice) -> list[tuple[str, str]]:
    if notice.held_until is None:
        return [("Booking", str(notice.booking_id))]
    return [("Until", _short(notice, notice.held_until))]


def _short(notice: Notice, at: datetime) -> str:
    return written.short_moment("en", at.astimezone(ZoneInfo(notice.venue.timezone)))


def _money(money: Money) -> str:
    return written.money("en", money.amount, money.currency)


_SUBJECTS = {
    "confirmed": "Confirmed",
    "moved": "Changed",
    "cancelled": "Cancelled",
    "refunded": "Not booked, money returned",
    "place_free": "Free for you",
}
_HEADINGS = {
    "confirmed": "Your booking is confirmed",
    "moved": "Your booking has changed",
    "cancelled": "Your booking is cancelled",
    "refunded": "Your payment came too late",
    "place_free": "What you wait for is free",
}
_LINKS = {
    "confirmed": "View, move or cancel the booking",
    "moved": "View, move or cancel the booking",
    "cancelled": "View the booking",
    "refunded": "View the booking",
    "place_free": "Take it, or leave it to the next one",
}


def _sentences(notice: Notice) -> list[str]:
    places = "Your place is" if notice.quantity == 1 else f"Your {notice.quantity} places are"
    match notice.kind:
        case "confirmed":
            return [f"{places} booked. The attached file puts the booking into your calendar."]
        case "moved":
            return ["This is when and what you have booked now. The attached file corrects your calendar."]
        case "cancelled":
            return [
                "The booking below has been cancelled. The attached file takes it out of your calendar.",
                *_money_back(notice),
            ]
        case "refunded":
            return [
                "Your payment arrived when these places could no longer be booked. Nothing is booked.",
                *_money_back(notice),
            ]
        case "place_free":
            return [
                f"{places} free again, and kept for you until the time below. Nothing is booked yet.",
                "Book with the link below. After that time, the next in line is asked.",
            ]


def _money_back(notice: Notice) -> list[str]:
    if not notice.refund:
        return []
    if notice.refund.status == "waived":
        return ["Under the venue's cancellation policy, the price is not refunded."]
    money = _money(notice.refund.money)
    return [f"You get {money} back, the same way as you paid. Banks can take up to ten days to show it."]


def _template(name: str, words: Words) -> str:
    return _environment().get_template(name).render(words=words)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
