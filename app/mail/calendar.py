"""The calendar entry of a booking (RFC 5545), published rather than an invitation: nobody has to answer it."""

from datetime import datetime
from email.headerregistry import Address

from icalendar import Calendar, Event, vCalAddress

from app.mail.notice import Notice
from app.mail.text import one_line

PRODID = "-//Holdfast//Bookings//EN"


def calendar_entry(notice: Notice, organizer: Address, now: datetime) -> bytes:
    """Write the entry of a booking, or its removal.

    The UID is the booking's, so that a cancellation finds the entry that it ends. Times are UTC: a description of the
    zone would be longer than everything else, and old clients misread it. The customer's link stands nowhere in here,
    because calendars are shared.
    """
    event = Event()
    event.add("uid", f"{notice.booking_id}@holdfast")
    event.add("sequence", notice.sequence)
    event.add("dtstamp", now)
    event.add("dtstart", notice.starts_at)
    event.add("dtend", notice.ends_at)
    event.add("status", "CONFIRMED" if notice.kind in ("confirmed", "moved") else "CANCELLED")
    venue, what = one_line(notice.venue.name), one_line(notice.resource_name)
    event.add("summary", f"{what} · {venue}")
    event.add("location", venue)
    event.add("description", f"Places: {notice.quantity}\nBooking: {notice.booking_id}")
    # RFC 5546 asks for one with METHOD:PUBLISH. A parameter cannot hold a double quote, however it is written.
    published_by = vCalAddress(f"mailto:{organizer.addr_spec}")
    published_by.params["CN"] = venue.replace('"', "'")
    event["organizer"] = published_by
    calendar = Calendar()
    calendar.add("prodid", PRODID)
    calendar.add("version", "2.0")
    calendar.add("method", "PUBLISH")
    calendar.add_component(event)
    written: bytes = calendar.to_ical()
    return written
