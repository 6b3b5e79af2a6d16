"""`holdfast waiting`: who waits for what, and what was offered to whom."""

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import rich_click as click

from app.cli.holds import confirm
from app.cli.paging import next_cursor, position
from app.cli.show import ago, emit, facts, out, print_table, say

if TYPE_CHECKING:
    from app.waiting import Entry, Status

STATUSES = ("waiting", "offered", "booked", "lapsed", "left", "expired")


@click.group()
def waiting() -> None:
    """Who waits for a slot or for a day, and what was offered to them."""


@waiting.command("list")
@click.option("--venue", metavar="SLUG", help="Only this venue's.")
@click.option("--slot", "slot_id", type=click.UUID, metavar="ID", help="Only those of this slot, or offered it.")
@click.option("--status", type=click.Choice(STATUSES), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", metavar="CURSOR", help="Go on: the next_cursor of the page before.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def list_command(
    *, venue: str | None, slot_id: UUID | None, status: "Status | None", limit: int, cursor: str | None, as_json: bool
) -> None:
    """List who waits and who has waited, in the order in which they came."""
    from app.cli.stores import with_engine
    from app.waiting import Filter, listed

    which, after = Filter(venue=venue, slot_id=slot_id, status=status), position(cursor)
    found = with_engine(lambda engine: listed(engine.ledger, which, after, limit + 1))
    shown = found[:limit]
    if len(found) > limit:
        say(f"There are more than {limit}: narrow it down, or raise --limit")
    if as_json:
        last: tuple[datetime, UUID] | None = (shown[-1].created_at, shown[-1].id) if len(found) > limit else None
        emit({"data": [describe(entry) for entry in shown], "next_cursor": next_cursor(last)})
        return
    between = "\n"  # ids side by side would be broken in a terminal
    rows = [
        (f"{one.id}\n{one.customer.name}\n{_wanted(one, between)}", str(one.quantity), ago(one.created_at), _state(one))
        for one in shown
    ]
    print_table(("#Entry, who, for what", ">Places", ">Since", "Status"), rows, empty="Nobody waits")


@waiting.command()
@click.argument("entry_id", type=click.UUID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def show(entry_id: UUID, as_json: bool) -> None:
    """Show who waits, for what, and what was offered."""
    from app.cli.stores import with_engine
    from app.waiting import read

    entry = with_engine(lambda engine: read(engine, entry_id, None))
    if as_json:
        emit(describe(entry))
        return
    lines = [
        ("Entry", str(entry.id)),
        ("Venue", entry.venue),
        ("For", _wanted(entry)),
        ("Places", str(entry.quantity)),
        ("Customer", f"{entry.customer.name}, {entry.customer.email}"),
        ("Status", _state(entry)),
        ("Since", f"{entry.created_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    if entry.offer is not None:
        lines.append(("Offered", f"hold {entry.offer.hold_id} of slot {entry.offer.slot_id}"))
    out().print(facts(*lines))


@waiting.command()
@click.argument("entry_id", type=click.UUID, metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(entry_id: UUID, yes: bool) -> None:
    """Take somebody off the list; an offer goes to the next one. A second time changes nothing."""
    from app.cli.stores import operator, with_engine
    from app.waiting import leave

    confirm(f"Take {entry_id} off the waiting list?", yes)
    with_engine(lambda engine: leave(engine, entry_id, None, caller=operator()))
    say("Removed")


def describe(entry: "Entry") -> dict[str, Any]:
    """What programs are told of an entry: the words of the API."""
    from app.api import wire_waiting

    told: dict[str, Any] = msgspec.to_builtins(wire_waiting.entry(entry))
    return told


def _wanted(entry: "Entry", between: str = ", ") -> str:
    if entry.slot_id is not None:
        return f"slot {entry.slot_id}"
    with_whom = [f"resource {entry.resource_id}"] if entry.resource_id else []
    return between.join([str(entry.day), f"service {entry.service_id}", *with_whom])


def _state(entry: "Entry") -> str:
    if entry.position is not None:
        return f"waiting, number {entry.position}"
    if entry.status == "offered" and entry.offer is not None:
        return f"offered until {entry.offer.until:%H:%M:%S} UTC"
    return entry.status
