"""Why a slot is as full as it is: every taken place with who has it, and a check of both stores' sums."""

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import msgspec

from app.breaker import RedisAway
from app.cli.show import ago, local, out, span, table
from app.errors import SlotNotFound
from app.holds import Mirrored

if TYPE_CHECKING:
    from app.domain import Slot
    from app.engine import Engine
    from app.ledger import StoredBooking

#: The stores are read one after the other: a sum that is wrong because somebody booked in between is right a moment
#: later. What stays wrong for this many looks is told.
LOOKS = 4
LOOK_AGAIN_SECONDS = 0.25


class Taken(msgspec.Struct, frozen=True):
    """Places that are not free, and who has them. `customer` is known of bookings only."""

    kind: Literal["booking", "hold"]
    id: UUID
    customer: str | None
    quantity: int
    since: datetime
    until: datetime | None
    status: str
    store: Literal["postgres", "redis"]


class Explained(msgspec.Struct, frozen=True):
    slot_id: UUID
    venue: str
    timezone: str
    resource: str
    starts_at: datetime
    open: bool
    #: The person or place does something else at that time.
    blocked: bool
    capacity: int
    booked: int
    held: int
    free: int
    adds_up: bool
    problems: list[str]
    taken: list[Taken]


async def explain(engine: "Engine", slot_id: UUID) -> Explained:
    """Explain a slot.

    Raises:
        SlotNotFound
    """
    explained = await _look(engine, slot_id)
    for _ in range(LOOKS - 1):
        if explained.adds_up:
            break
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
        explained = await _look(engine, slot_id)
    return explained


async def _look(engine: "Engine", slot_id: UUID) -> Explained:
    found = await engine.ledger.slots([slot_id])
    if not found:
        raise SlotNotFound
    slot = found[0]
    mirrored = await _mirrored(engine, slot)
    rows = await engine.ledger.live_in_slot(slot_id)
    # A booking's id is its hold's: a hold that became a row since, or just now, is one claim and not two.
    settled = await engine.ledger.settled_among([hold.id for hold in mirrored.holds])
    taken = [_of_row(stored) for stored in rows]
    taken += [
        Taken("hold", hold.id, None, hold.quantity, hold.since, hold.expires_at, "held", "redis")
        for hold in mirrored.holds
        if hold.id not in settled
    ]
    in_rows = sum(one.quantity for one in taken if one.store == "postgres")
    in_redis = sum(one.quantity for one in taken if one.store == "redis")
    problems = _problems(slot, mirrored, in_rows, in_redis)
    # A row may only be held: taken while Redis was away, or offered to whoever waited.
    held = sum(one.quantity for one in taken if one.status == "held")
    booked = in_rows + in_redis - held
    return Explained(
        slot_id, slot.venue, slot.timezone, slot.resource_name, slot.starts_at, slot.open, slot.blocked, slot.capacity,
        booked, held, slot.capacity - booked - held, not problems, problems, taken,
    )  # fmt: skip


async def _mirrored(engine: "Engine", slot: "Slot") -> Mirrored:
    """What Redis knows, its count of the held places freed of what lapsed."""
    pair = (slot.resource_id, slot.id)
    try:
        [mirrored] = await engine.holds.inspect([pair])
        exact = (await engine.holds.rooms([pair]))[slot.id]
    except RedisAway:
        return Mirrored(None, -1, [])
    return msgspec.structs.replace(mirrored, room=exact[0] if exact else None)


def _of_row(stored: "StoredBooking") -> Taken:
    booking = stored.booking
    return Taken(
        "hold" if booking.status == "held" else "booking",
        booking.id,
        booking.customer.name if booking.customer else None,
        booking.quantity,
        booking.created_at,
        booking.expires_at,
        booking.status,
        "postgres",
    )


def _problems(slot: "Slot", mirrored: Mirrored, in_rows: int, in_redis: int) -> list[str]:
    """Compare every sum with what the stores say of themselves."""
    problems = []
    counted = slot.capacity - slot.available_count
    if in_rows != counted:
        problems.append(f"Postgres counts {counted} taken places, its rows take {in_rows}")
    if room := mirrored.room:
        if (room.capacity, room.booked) != (slot.capacity, counted):
            problems.append(
                f"Redis believes in {room.booked} of {room.capacity} places booked, Postgres says {counted} of"
                f" {slot.capacity}: run `holdfast reconcile`"
            )
        in_holds = sum(hold.quantity for hold in mirrored.holds)
        if room.held != in_holds:
            problems.append(
                f"Redis counts {room.held} held places, its holds take {in_holds}: run `holdfast reconcile`"
            )
        if in_holds != in_redis:
            problems.append(f"{in_holds - in_redis} places are booked and still held: run `holdfast reconcile`")
    if in_rows + in_redis > slot.capacity:
        problems.append(
            f"{in_rows + in_redis - slot.capacity} more places are promised than there are: holders will be refused"
        )
    return problems


def show_table(explained: Explained) -> None:
    console = out()
    state = ("" if explained.open else ", closed") + (", busy with another slot" if explained.blocked else "")
    console.print(f"[bold]{explained.resource}[/], {local(explained.starts_at, explained.timezone)}{state}")
    console.print(f"Venue {explained.venue}, slot {explained.slot_id}", style="dim")
    rows = table("#Who", ">Places", ">Since", "Until", "Store")
    now = datetime.now(UTC)
    for one in explained.taken:
        who = f"{one.id}\n{one.customer or '(a hold)'}"
        until = one.status if one.until is None else f"{one.status}, {span(one.until - now)} left"
        rows.add_row(who, str(one.quantity), ago(one.since, now), until, one.store)
    if explained.taken:
        console.print(rows)
    total = f"{explained.capacity} places = {explained.booked} booked + {explained.held} held + {explained.free} free"
    console.print(total, style="bold")
    for problem in explained.problems:
        console.print(f"✗ {problem}", style="red")
    if explained.adds_up:
        console.print("✓ It adds up in both stores", style="green")
