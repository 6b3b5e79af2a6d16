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

_CATALOGUES = Path(__file__).parent / "languages"

#: The form that the API takes. The standard library's own parser lets more pass than one address, and in some versions
#: fails with errors of its own.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ADDRESS = re.compile(rf"{_ATOM}(\.{_ATOM})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


class Words(msgspec.Struct, frozen=True):
    """All that a template says."""

    language: str
    subject: str
    heading: str
    venue: str
    greeting: str
    sentences: list[str]
    facts: list[tuple[str, str]]
    link: str | None
    link_text: str
    colon: str
    secret: str
    no_answers: str


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
    message["Content-Language"] = notice.language  # of the whole: earlier, it would have gone into the first part
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
    said, language, zone = _catalogue(notice.language), notice.language, ZoneInfo(notice.venue.timezone)
    of_kind: _OfKind = getattr(said, notice.kind)
    what, name = one_line(notice.resource_name), one_line(notice.customer.name)
    begins = written.short_moment(language, notice.starts_at.astimezone(zone))
    return Words(
        language=language,
        subject=f"{of_kind.subject}: {one_line(what, SUBJECT_NAME)}, {begins}",
        heading=of_kind.heading,
        venue=one_line(notice.venue.name),
        greeting=said.hello.format(name=name) if name else said.hello_there,
        sentences=[*_sentences(of_kind, notice.quantity), *_money_back(said, notice)],
        facts=[
            (said.what, what),
            (said.where, one_line(notice.venue.name)),
            (said.when, written.span_in_zone(language, notice.starts_at, notice.ends_at, notice.venue.timezone)),
            (said.places, str(notice.quantity)),
            *([(said.price, _money(language, notice.price))] if notice.price else []),
            (said.until, written.short_moment(language, notice.held_until.astimezone(zone)))
            if notice.held_until
            else (said.booking, str(notice.booking_id)),
        ],
        link=notice.link,
        link_text=of_kind.link,
        colon=said.colon,
        secret=said.secret,
        no_answers=said.no_answers,
    )


def _sentences(of_kind: "_OfKind", quantity: int) -> list[str]:
    said = of_kind.several if of_kind.several and quantity > 1 else of_kind.one
    return [sentence.format(n=quantity) for sentence in said]


def _money_back(said: "_Catalogue", notice: Notice) -> list[str]:
    if not notice.refund or notice.kind not in ("cancelled", "refunded"):
        return []
    if notice.refund.status == "waived":
        return [said.waived]
    return [said.due.format(money=_money(notice.language, notice.refund.money))]


def _money(language: str, money: Money) -> str:
    return written.money(language, money.amount, money.currency)


class _OfKind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is said in one kind of notice. `several`: of more places than one, where that is said otherwise."""

    subject: str
    heading: str
    link: str
    one: list[str]
    several: list[str] = []


class _Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What e-mails say in a language."""

    confirmed: _OfKind
    moved: _OfKind
    cancelled: _OfKind
    refunded: _OfKind
    place_free: _OfKind
    hello: str
    hello_there: str
    #: What stands between a name and what it is of.
    colon: str
    what: str
    where: str
    when: str
    places: str
    price: str
    booking: str
    until: str
    due: str
    waived: str
    secret: str
    no_answers: str


@cache
def _catalogue(language: str) -> _Catalogue:
    return msgspec.json.decode((_CATALOGUES / f"{language}.json").read_bytes(), type=_Catalogue)


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
