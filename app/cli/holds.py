"""`holdfast holds`: who holds what, why a slot is full, and the operator's hand on a hold."""

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import rich_click as click

from app.cli.failing import CONFLICT, USAGE, Failed
from app.cli.show import ago, emit, local, local_short, number, out, print_table, span

if TYPE_CHECKING:
    from app.domain import Hold, Slot
    from app.engine import Engine

Shown = tuple["Hold", "Slot"]


@click.group()
def holds() -> None:
    """Temporary claims on places: in Redis, or in Postgres while Redis is away."""


@holds.command("list")
@click.option("--venue", metavar="SLUG", help="Only this venue's.")
@click.option("--slot", "slot_id", type=click.UUID, metavar="ID", help="Only this slot's.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def list_command(venue: str | None, slot_id: UUID | None, as_json: bool) -> None:
    """List live holds, those that end first first."""
    from app.cli.stores import require_redis, with_engine

    async def read(engine: "Engine") -> None:
        shown = await read_holds(engine, venue, slot_id)
        if as_json:
            emit({"data": [describe(*one) for one in shown], "next_cursor": None})
        else:
            rows = [_row(hold, slot) for hold, slot in shown]
            print_table(("#Hold", "Slot", ">Places", ">Ends in", "Store"), rows, empty="No live holds")
        # Told after what is known: an operator needs that most while Redis is away.
        require_redis(engine, "holds that only it knows are not shown")

    with_engine(read)


@holds.command()
@click.argument("hold_id", type=click.UUID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def show(hold_id: UUID, as_json: bool) -> None:
    """Show a live hold."""
    from app.cli.stores import with_engine

    hold, slot = with_engine(lambda engine: find_hold(engine, hold_id))
    _print_one(hold, slot, as_json)


@holds.command()
@click.argument("slot_id", type=click.UUID, metavar="SLOT")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def why(slot_id: UUID, as_json: bool) -> None:
    """Explain every taken place of a slot, and check that they add up to its capacity.

    Exits 4 when they do not.
    """
    from app.cli.stores import require_redis, with_engine
    from app.cli.why import explain, show_table

    async def read(engine: "Engine") -> None:
        explained = await explain(engine, slot_id)
        if as_json:
            emit(explained)
        else:
            show_table(explained)
        require_redis(engine, "holds that only it knows are not counted")
        if explained.problems:
            raise Failed("The places do not add up", CONFLICT)

    with_engine(read)


@holds.command()
@click.option("--venue", metavar="SLUG", help="Only this venue's.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--for", "seconds", type=click.FloatRange(0.1), metavar="SECONDS", help="Stop after this long.")
@click.option("--jsonl", is_flag=True, help="One object per change, for programs.")
@click.option("--json", "as_json", is_flag=True, hidden=True)
def watch(*, venue: str | None, interval: float, seconds: float | None, jsonl: bool, as_json: bool) -> None:
    """Watch holds come and go: a live table on a terminal, else one line per change."""
    from app.cli.stores import with_engine
    from app.cli.watch import follow, live

    if as_json:  # which all other commands have: whoever tries it here is told what there is
        raise Failed("A watch is no single object: say --jsonl for one object per change", USAGE)
    if jsonl or not sys.stdout.isatty():
        with_engine(lambda engine: follow(engine, venue, interval, seconds, jsonl=jsonl))
    else:
        with_engine(lambda engine: live(engine, venue, interval, seconds))


@holds.command()
@click.argument("hold_id", type=click.UUID, metavar="ID")
@click.option("--seconds", type=click.IntRange(1, 86_400), required=True, help="How much later it shall end.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def extend(hold_id: UUID, seconds: int, as_json: bool) -> None:
    """Let a hold end later, also beyond its venue's longest."""
    from app.cli.stores import with_engine
    from app.holding import operator_extend_hold

    async def change(engine: "Engine") -> Shown:
        _, slot = await find_hold(engine, hold_id)
        return await operator_extend_hold(engine, hold_id, seconds * 1000), slot

    hold, slot = with_engine(change)
    _print_one(hold, slot, as_json)


@holds.command()
@click.argument("hold_id", type=click.UUID, metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs: the hold as it was.")
def release(hold_id: UUID, yes: bool, as_json: bool) -> None:
    """Take a hold away from whoever has it. What became a booking is not touched."""
    from app.cli.stores import operator, with_engine
    from app.holding import operator_release_hold

    async def change(engine: "Engine") -> None:
        hold, slot = await find_hold(engine, hold_id)
        confirm(f"Release {number(hold.quantity, 'place')} of {slot.what}, {_when(slot)}?", yes)
        await operator_release_hold(engine, hold_id, caller=operator())
        if as_json:
            emit({**describe(hold, slot), "status": "released"})
        else:
            print(f"Released {number(hold.quantity, 'place')} of {slot.what}, {_when(slot)}")

    with_engine(change)


def confirm(question: str, yes: bool) -> None:
    """Ask the person at the terminal; a program says --yes.

    Raises:
        Failed: nobody can be asked. click.Abort: the answer was no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failed("Nobody can be asked here: say --yes", USAGE)
    click.confirm(question, abort=True, err=True)


async def read_holds(engine: "Engine", venue: str | None, slot_id: UUID | None) -> list[Shown]:
    """Read live holds with the slots they are of."""
    from app.holding import list_holds

    found = await list_holds(engine, venue, slot_id)
    slots = {slot.id: slot for slot in await engine.ledger.slots(sorted({hold.slot_id for hold in found}))}
    return [(hold, slots[hold.slot_id]) for hold in found if hold.slot_id in slots]


async def find_hold(engine: "Engine", hold_id: UUID) -> Shown:
    """Find a live hold by its id.

    Raises:
        Failed: it became a booking. HoldNotFound: it is not there (any more). RedisAway: that cannot be told.
    """
    from app.cli.stores import require_redis
    from app.errors import HoldNotFound

    for hold, slot in await read_holds(engine, None, None):
        if hold.id == hold_id:
            return hold, slot
    stored = await engine.ledger.booking(hold_id)
    if stored and stored.booking.customer:
        status = stored.booking.status
        raise Failed(f"It became a booking, which is {status}: see `holdfast bookings show {hold_id}`", CONFLICT)
    require_redis(engine, "whether it has this hold is not known")
    raise HoldNotFound


def describe(hold: "Hold", slot: "Slot") -> dict[str, Any]:
    """What programs are told of a hold."""
    return {
        "id": hold.id,
        "slot_id": hold.slot_id,
        "venue": slot.venue,
        "resource": slot.resource_name,
        "starts_at": slot.starts_at,
        "quantity": hold.quantity,
        "since": hold.since,
        "expires_at": hold.expires_at,
        "ttl_seconds": max(0, (hold.expires_at - hold.now) // timedelta(seconds=1)),
        "store": store_of(hold),
        "degraded": hold.degraded,
    }


def store_of(hold: "Hold") -> str:
    return "postgres" if hold.degraded else "redis"


def _row(hold: "Hold", slot: "Slot") -> tuple[str, ...]:
    left = span(hold.expires_at - hold.now)
    what = f"{slot.what}\n{local_short(slot.starts_at, slot.timezone)}"
    return str(hold.id), what, str(hold.quantity), left, store_of(hold)


def _print_one(hold: "Hold", slot: "Slot", as_json: bool) -> None:
    from app.cli.show import facts

    if as_json:
        emit(describe(hold, slot))
        return
    out().print(
        facts(
            ("Hold", str(hold.id)),
            ("Slot", f"{slot.what}, {_when(slot)}, venue {slot.venue}"),
            ("", str(slot.id)),
            ("Places", str(hold.quantity)),
            ("Held for", ago(hold.since, hold.now)),
            ("Ends in", f"{span(hold.expires_at - hold.now)}, at {hold.expires_at:%H:%M:%S} UTC"),
            ("Store", store_of(hold) + (" (taken while Redis was away)" if hold.degraded else "")),
        )
    )


def _when(slot: "Slot") -> str:
    return local(slot.starts_at, slot.timezone)
