"""`holdfast slots`: list, look at and create slots."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import rich_click as click

from app.cli.failing import NOT_FOUND, Failed
from app.cli.paging import next_cursor, position
from app.cli.show import emit, facts, local, local_short, out, print_table, say

if TYPE_CHECKING:
    from app.catalogue import Catalogue, NewSlot
    from app.database import Database
    from app.domain import Room, Slot, Venue
    from app.engine import Engine

#: Instants as people type them; without an offset they are the venue's (slots create) or UTC.
INSTANT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M:%S%z"])


@click.group()
def slots() -> None:
    """Bookable intervals of a resource."""


@slots.command("list")
@click.option("--venue", metavar="SLUG", help="Only this venue's.")
@click.option("--resource", "resource_id", type=click.UUID, metavar="ID", help="Only this resource's.")
@click.option("--from", "starts_from", type=INSTANT, metavar="TIME", help="Default: now.")
@click.option("--to", "starts_before", type=INSTANT, metavar="TIME", help="Only those that start before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", metavar="CURSOR", help="Go on: the next_cursor of the page before.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def list_command(
    *,
    venue: str | None,
    resource_id: UUID | None,
    starts_from: datetime | None,
    starts_before: datetime | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """List slots in the order of their start."""
    from app.catalogue import Catalogue, SlotFilter
    from app.cli.stores import with_database

    which = SlotFilter(
        venue=venue,
        resource_id=resource_id,
        starts_from=aware(starts_from) or datetime.now(UTC),
        starts_before=aware(starts_before),
    )

    after = position(cursor)

    async def read(engine: "Engine", database: "Database") -> list[dict[str, Any]]:
        return await _described(engine, await Catalogue(database).slots(which, after, limit + 1))

    found = with_database(read)
    if len(found) > limit:
        say(f"There are more than {limit}: narrow it down, or raise --limit")
    if as_json:
        last = (found[limit - 1]["starts_at"], found[limit - 1]["id"]) if len(found) > limit else None
        emit({"data": found[:limit], "next_cursor": next_cursor(last)})
        return
    rows = [
        (str(slot["id"]), _what(slot), f"{slot['available']}/{slot['capacity']}", str(slot["held"]), slot["status"])
        for slot in found[:limit]
    ]
    print_table(("#Slot", "What", ">Room", ">Held", "Status"), rows, empty="No slots")


@slots.command()
@click.argument("slot_id", type=click.UUID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def show(slot_id: UUID, as_json: bool) -> None:
    """Show a slot and what can be taken of it now."""
    from app.catalogue import Catalogue
    from app.cli.stores import with_database

    async def read(engine: "Engine", database: "Database") -> dict[str, Any]:
        return (await _described(engine, [await Catalogue(database).slot(slot_id)]))[0]

    _print_one(with_database(read), as_json)


@slots.command()
@click.option("--venue", required=True, metavar="SLUG")
@click.option("--resource", required=True, metavar="NAME|ID", help="Of this venue.")
@click.option("--starts-at", required=True, type=INSTANT, metavar="TIME", help="The venue's time, or with an offset.")
@click.option("--minutes", type=click.IntRange(1, 44_640), default=60, show_default=True)
@click.option("--capacity", type=click.IntRange(1, 100_000), default=1, show_default=True)
@click.option("--price", "price_amount", type=click.IntRange(0), metavar="CENTS", help="In minor units.")
@click.option("--currency", default="EUR", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def create(
    *,
    venue: str,
    resource: str,
    starts_at: datetime,
    minutes: int,
    capacity: int,
    price_amount: int | None,
    currency: str,
    as_json: bool,
) -> None:
    """Create a slot."""
    from app.catalogue import Catalogue, NewSlot
    from app.cli.stores import with_database

    async def make(engine: "Engine", database: "Database") -> dict[str, Any]:
        catalogue = Catalogue(database)
        of_venue = await catalogue.venue(venue)
        at = starts_at if starts_at.tzinfo else starts_at.replace(tzinfo=ZoneInfo(of_venue.timezone))
        new = NewSlot(
            venue=venue,
            resource_id=_resource_id(of_venue, resource),
            starts_at=at.astimezone(UTC),
            ends_at=at.astimezone(UTC) + timedelta(minutes=minutes),
            capacity=capacity,
            price_amount=price_amount,
            price_currency=None if price_amount is None else currency.upper(),
        )
        return (await _described(engine, [await _create(engine, catalogue, new)]))[0]

    _print_one(with_database(make), as_json)


async def _create(engine: "Engine", catalogue: "Catalogue", new: "NewSlot") -> "Slot":
    made: list[Slot] = []

    def note(created: "list[Slot]") -> bytes:
        made.extend(created)
        return b""

    await catalogue.create_slots([new], None, None, note)
    await engine.mirror.slots_changed([slot.id for slot in made])
    return made[0]


def _resource_id(venue: "Venue", name_or_id: str) -> UUID:
    for resource in venue.resources:
        if name_or_id in (resource.name, str(resource.id)):
            return resource.id
    names = ", ".join(resource.name for resource in venue.resources) or "none"
    raise Failed(f"No resource {name_or_id!r} in {venue.slug}; it has: {names}", NOT_FOUND)


async def _described(engine: "Engine", found: "list[Slot]") -> list[dict[str, Any]]:
    of_slots = await engine.mirror.rooms(found) if found else {}
    if engine.holds.breaker.failures:
        say("Redis cannot be reached: holds that only it knows are not counted")
    return [describe(slot, of_slots[slot.id]) for slot in found]


def describe(slot: "Slot", room: "Room") -> dict[str, Any]:
    """What programs are told of a slot: the words of the API."""
    blocked = "booked" if slot.blocked else room.blocked
    available = 0 if blocked else max(0, slot.available_count - room.held)
    held = room.held + slot.held_rows
    price = None if slot.price_amount is None else {"amount": slot.price_amount, "currency": slot.price_currency}
    return {
        "id": slot.id,
        "venue": slot.venue,
        "resource": {"id": slot.resource_id, "name": slot.resource_name},
        "service": {"id": slot.service_id, "name": slot.service_name} if slot.service_id else None,
        "starts_at": slot.starts_at,
        "ends_at": slot.ends_at,
        "timezone": slot.timezone,
        "capacity": slot.capacity,
        "available": available,
        "held": held,
        "available_count": slot.available_count,
        "status": _status(slot, available, may_free=blocked == "held" or (not blocked and held > 0)),
        "price": price,
    }


def _status(slot: "Slot", available: int, *, may_free: bool) -> str:
    if not slot.open:
        return "closed"
    if slot.starts_at <= datetime.now(UTC):
        return "past"
    if available:
        return "available"
    return "held" if may_free else "sold_out"


def _what(slot: dict[str, Any]) -> str:
    service = f"{slot['service']['name']} · " if slot["service"] else ""
    return f"{service}{slot['resource']['name']}\n{local_short(slot['starts_at'], slot['timezone'])}"


def _print_one(slot: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(slot)
        return
    price = slot["price"]
    out().print(
        facts(
            ("Slot", str(slot["id"])),
            ("What", f"{slot['resource']['name']}, venue {slot['venue']}"),
            ("When", f"{local(slot['starts_at'], slot['timezone'])} to {local(slot['ends_at'], slot['timezone'])}"),
            ("", slot["timezone"]),
            ("Status", slot["status"]),
            ("Room", f"{slot['available']} of {slot['capacity']} places, {slot['held']} held"),
            ("Price", f"{price['amount'] / 100:.2f} {price['currency']}" if price else "free"),
            ("Why", f"holdfast holds why {slot['id']}"),
        )
    )


def aware(instant: datetime | None) -> datetime | None:
    """Read a time without an offset as UTC."""
    return instant if instant is None or instant.tzinfo else instant.replace(tzinfo=UTC)
