"""`holdfast bookings`: list, look at and cancel bookings."""

from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

import rich_click as click

from app.cli.holds import confirm
from app.cli.paging import next_cursor, position
from app.cli.show import emit, facts, local, local_short, out, print_table, say
from app.cli.slots import INSTANT, aware
from app.domain import BookingStatus

if TYPE_CHECKING:
    from app.database import Database
    from app.domain import Booking, Payment, Slot
    from app.engine import Engine

Shown = tuple["Booking", "Slot"]


@click.group()
def bookings() -> None:
    """Durable rows in Postgres."""


@bookings.command("list")
@click.option("--venue", metavar="SLUG", help="Only this venue's.")
@click.option("--slot", "slot_id", type=click.UUID, metavar="ID", help="Only this slot's.")
@click.option("--status", type=click.Choice(get_args(BookingStatus)), help="Only these.")
@click.option("--from", "starts_from", type=INSTANT, metavar="TIME", help="Of slots that start then or later.")
@click.option("--to", "starts_before", type=INSTANT, metavar="TIME", help="Of slots that start before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", metavar="CURSOR", help="Go on: the next_cursor of the page before.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def list_command(
    *,
    venue: str | None,
    slot_id: UUID | None,
    status: str | None,
    starts_from: datetime | None,
    starts_before: datetime | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """List bookings in the order in which they were made."""
    from app.cli.stores import with_database
    from app.records import BookingFilter, list_bookings

    which = BookingFilter(
        venue=venue,
        slot_id=slot_id,
        status=status,
        starts_from=aware(starts_from),
        starts_before=aware(starts_before),
    )

    after = position(cursor)

    async def read(engine: "Engine", database: "Database") -> list[Shown]:
        found = await list_bookings(database, which, after, limit + 1)
        slots = {slot.id: slot for slot in await engine.ledger.slots(sorted({b.slot_id for b in found}))}
        return [(booking, slots[booking.slot_id]) for booking in found]

    found = with_database(read)
    if len(found) > limit:
        say(f"There are more than {limit}: narrow it down, or raise --limit")
    if as_json:
        shown = found[:limit]
        last = (shown[-1][0].created_at, shown[-1][0].id) if len(found) > limit else None
        emit({"data": [describe(*one) for one in shown], "next_cursor": next_cursor(last)})
        return
    rows = [
        (f"{booking.id}\n{_name(booking)}", _short(slot), str(booking.quantity), booking.status)
        for booking, slot in found[:limit]
    ]
    print_table(("#Booking", "Slot", ">Places", "Status"), rows, empty="No bookings")


@bookings.command()
@click.argument("booking_id", type=click.UUID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def show(booking_id: UUID, as_json: bool) -> None:
    """Show a booking."""
    from app.cli.stores import with_engine

    async def read(engine: "Engine") -> tuple[Shown, "Payment | None"]:
        return await _read(engine, booking_id), await engine.payments.of_booking(booking_id)

    _print_one(*with_engine(read), as_json=as_json)


@bookings.command()
@click.argument("booking_id", type=click.UUID, metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def cancel(booking_id: UUID, yes: bool, as_json: bool) -> None:
    """Cancel a booking and give its places back. A second time changes nothing."""
    from app import booking as use_cases
    from app.cli.stores import operator, with_engine

    async def change(engine: "Engine") -> tuple[bool, Shown]:
        booking, slot = await _read(engine, booking_id)
        is_over = booking.status == "cancelled"
        if not is_over:
            confirm(f"Cancel {booking.quantity} of {_name(booking)}, {_what(slot)}?", yes)
        return is_over, (await use_cases.cancel(engine, booking_id, None, caller=operator()), slot)

    was_over, shown = with_engine(change)
    booked = f"Cancelled; {shown[0].available_count} of the slot's {shown[1].capacity} places are not booked now"
    say("It was cancelled before; nothing changed" if was_over else booked)
    _print_one(shown, None, as_json=as_json)


async def _read(engine: "Engine", booking_id: UUID) -> Shown:
    from app.booking import read_booking

    booking = await read_booking(engine, booking_id, None)
    return booking, (await engine.ledger.slots([booking.slot_id]))[0]


def describe(booking: "Booking", slot: "Slot") -> dict[str, Any]:
    """What programs are told of a booking: the words of the API, and of its slot what people ask first."""
    return {
        "id": booking.id,
        "slot_id": booking.slot_id,
        "venue": slot.venue,
        "resource": slot.resource_name,
        "starts_at": slot.starts_at,
        "quantity": booking.quantity,
        "status": booking.status,
        "customer": booking.customer,
        "metadata": booking.metadata,
        "expires_at": booking.expires_at,
        "created_at": booking.created_at,
        "confirmed_at": booking.confirmed_at,
        "cancelled_at": booking.cancelled_at,
        "available_count": booking.available_count,
    }


def _name(booking: "Booking") -> str:
    return booking.customer.name if booking.customer else "(a hold)"


def _what(slot: "Slot") -> str:
    return f"{slot.what}, {local(slot.starts_at, slot.timezone)}"


def _short(slot: "Slot") -> str:
    return f"{slot.what}\n{local_short(slot.starts_at, slot.timezone)}"


def _print_one(shown: Shown, payment: "Payment | None", *, as_json: bool) -> None:
    from app.cli import payments

    booking, slot = shown
    if as_json:
        paid = {"payment": payments.describe(payment)} if payment else {}
        emit(describe(booking, slot) | paid)
        return
    customer = booking.customer
    lines = [
        ("Booking", str(booking.id)),
        ("Status", booking.status),
        ("Slot", _what(slot)),
        ("", str(slot.id)),
        ("Places", str(booking.quantity)),
        ("Customer", _name(booking)),
        *([("", customer.email), ("", customer.phone or "")] if customer else []),
    ]
    for name, at in (("Made", booking.created_at), ("Ends", booking.expires_at), ("Cancelled", booking.cancelled_at)):
        if at:
            lines.append((name, f"{at:%Y-%m-%d %H:%M:%S} UTC"))
    if payment:
        lines += payments.lines(payment)
    out().print(facts(*[line for line in lines if line[1]]))
