"""Calendars as iCalendar (RFC 5545, RFC 7986) writes them. Imports icalendar, which takes a third of a second."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache

import msgspec
from icalendar import Calendar, Event
from icalendar import __version__ as icalendar_version

from app.calendars.bookings import Entry
from app.calendars.feeds import Subject
from app.mail.calendar import PRODID
from app.mail.text import one_line

#: How often whoever subscribed should look.
REFRESH = timedelta(minutes=15)
#: Grows when the same bookings are written in another way: part of the ETag.
FORM = 1
#: An event takes half a millisecond to write. Whatever else the process has to do goes on between two such pieces.
PIECE_SECONDS = 0.005
#: Events that a process remembers as they were written: of a feed that is asked for again, nearly all are the same.
REMEMBERED = 10_000

_STATUS = {"confirmed": "CONFIRMED", "pending_payment": "TENTATIVE", "cancelled": "CANCELLED"}
_END = b"END:VCALENDAR\r\n"


def etag(subject: Subject, entries: Sequence[Entry]) -> str:
    """Name the content of a calendar without writing it: it follows from nothing else than what is hashed here."""
    told = msgspec.msgpack.encode((FORM, icalendar_version, subject, entries))
    return f'"{hashlib.sha256(told).hexdigest()[:32]}"'


async def calendar(subject: Subject, entries: Sequence[Entry]) -> bytes:
    """Write a calendar, piece by piece: thousands of events take seconds, in which nobody else shall wait."""
    venue = one_line(subject.venue_name)
    whole: bytes = _frame(subject).to_ical()
    pieces, since = [whole.removesuffix(_END)], time.monotonic()
    for entry in entries:
        pieces.append(_event(entry, venue))
        if time.monotonic() - since > PIECE_SECONDS:
            await asyncio.sleep(0)
            since = time.monotonic()
    return b"".join([*pieces, _END])


def _frame(subject: Subject) -> Calendar:
    names = [subject.venue_name] if subject.resource_name is None else [subject.resource_name, subject.venue_name]
    name = " · ".join(one_line(each) for each in names)
    made = Calendar()
    made.add("prodid", PRODID)
    made.add("version", "2.0")
    made.add("name", name)
    made.add("x-wr-calname", name)  # what clients read that are older than RFC 7986
    made.add("refresh-interval", REFRESH, parameters={"VALUE": "DURATION"})
    made.add("x-published-ttl", f"PT{REFRESH // timedelta(minutes=1)}M")
    return made


@lru_cache(maxsize=REMEMBERED)
def _event(entry: Entry, venue: str) -> bytes:
    """Write a booking. Times are UTC, and every name passes through `one_line` first, as in e-mails."""
    event = Event()
    event.add("uid", f"{entry.booking_id}@holdfast")  # as in e-mails
    event.add("sequence", entry.sequence)
    # The last change, not the moment of writing: what did not change is the same, byte by byte.
    event.add("dtstamp", entry.changed_at)
    event.add("last-modified", entry.changed_at)
    event.add("dtstart", entry.starts_at)
    event.add("dtend", entry.ends_at)
    event.add("status", _STATUS[entry.status])
    event.add("transp", "TRANSPARENT" if entry.status == "cancelled" else "OPAQUE")
    event.add("summary", _summary(entry))
    event.add("description", f"{_said(entry)}Places: {entry.quantity}\nBooking: {entry.booking_id}")
    event.add("location", venue)
    written: bytes = event.to_ical()
    return written


def _summary(entry: Entry) -> str:
    """Say who comes for what. Many clients show no status: a cancelled booking says so by itself."""
    what = [one_line(name) for name in (entry.service_name, entry.resource_name) if name is not None]
    told = f"{one_line(entry.customer_name)} · {entry.quantity} \N{MULTIPLICATION SIGN} {' · '.join(what)}"
    return f"Cancelled: {told}" if entry.status == "cancelled" else told


def _said(entry: Entry) -> str:
    return "Waiting for payment\n" if entry.status == "pending_payment" else ""
