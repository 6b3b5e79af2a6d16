"""`holdfast holds watch`: a table with countdowns on a terminal, one line per change for everything else."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from app.cli.holds import Shown, describe, read_holds, store_of
from app.cli.show import emit, local, local_short, number, out, say, span, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from app.engine import Engine

#: Countdowns move this often; the stores are asked less often.
FRAME_SECONDS = 0.25
BAR_WIDTH = 12


async def follow(engine: "Engine", venue: str | None, interval: float, seconds: float | None, *, jsonl: bool) -> None:
    """Tell every change as a line until the time is up."""
    known: dict[UUID, Shown] = {}
    until = _until(seconds)
    away = False
    while True:
        now_held = {hold.id: (hold, slot) for hold, slot in await read_holds(engine, venue, None)}
        away = await _told_away(engine, away)
        for hold_id, shown in now_held.items():
            if hold_id not in known:
                _tell("held", shown, jsonl)
            elif shown[0].expires_at > known[hold_id][0].expires_at:
                _tell("extended", shown, jsonl)
        # While Redis is away its holds are not gone, only out of sight.
        gone = [shown for hold_id, shown in known.items() if hold_id not in now_held]
        for shown in gone if not away else []:
            _tell(await _ending(engine, shown), shown, jsonl)
        known = {**known, **now_held} if away else now_held
        left = until - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(min(interval, left))


def _tell(change: str, shown: Shown, jsonl: bool) -> None:
    hold, slot = shown
    at = datetime.now(UTC)
    if jsonl:
        emit({"at": at, "change": change, "hold": describe(hold, slot)}, indent=False)
        return
    left = f", {span(hold.expires_at - hold.now)} left" if change in ("held", "extended") else ""
    when = local(slot.starts_at, slot.timezone)
    print(f"{at:%H:%M:%S} {change:<8} {hold.id} {hold.quantity} of {slot.what} {when}{left}", flush=True)


async def _ending(engine: "Engine", shown: Shown) -> str:
    """Tell what became of a hold: booked, released, or lapsed."""
    hold, _ = shown
    if (stored := await engine.ledger.booking(hold.id)) and stored.booking.customer:
        return "booked"
    # Clocks of two machines: half a second before its end counts as its end.
    unseen = datetime.now(UTC) - hold.now
    return "lapsed" if hold.now + unseen >= hold.expires_at - timedelta(seconds=0.5) else "released"


async def live(engine: "Engine", venue: str | None, interval: float, seconds: float | None) -> None:
    """Redraw a table until the time is up or Ctrl-C."""
    from rich.live import Live

    until = _until(seconds)
    with Live(console=out(), auto_refresh=False, vertical_overflow="crop") as screen:
        while (now := time.monotonic()) < until:
            shown = await read_holds(engine, venue, None)
            away = engine.holds.breaker.failures > 0
            if away and await engine.holds.pipelines.probe():
                engine.holds.breaker.close()
            while time.monotonic() < min(now + interval, until):
                passed = timedelta(seconds=time.monotonic() - now)
                screen.update(_picture(shown, passed, away=away), refresh=True)
                await asyncio.sleep(FRAME_SECONDS)


def _picture(shown: list[Shown], passed: timedelta, *, away: bool) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    room = max(3, out().height - 6)
    # Two lines each; what does not fit is counted below.
    rows = table("#Hold", "Slot", ">Places", "Ends in")
    for hold, slot in shown[: room // 2]:
        left = max(timedelta(), hold.expires_at - hold.now - passed)
        share = left / max(hold.expires_at - hold.since, timedelta(seconds=1))
        full = round(share * BAR_WIDTH)
        colour = "green" if share > 0.5 else "yellow" if share > 0.2 else "red"
        bar = Text.assemble((span(left), "bold"), "\n", ("━" * full, colour), ("━" * (BAR_WIDTH - full), "dim"))
        what = f"{slot.what}\n{local_short(slot.starts_at, slot.timezone)}"
        store = "" if store_of(hold) == "redis" else "\npostgres"
        rows.add_row(str(hold.id), what, f"{hold.quantity}{store}", bar)
    places = sum(hold.quantity for hold, _ in shown)
    told = f"{number(len(shown), 'hold')}, {number(places, 'place')}. Ctrl-C ends"
    if away:
        told = f"Redis cannot be reached: only what Postgres keeps is shown. {told}"
    return Group(rows, Text(told, style="red" if away else "dim"))


async def _told_away(engine: "Engine", before: bool) -> bool:
    """Tell once that Redis went away, and once that it is back."""
    away = engine.holds.breaker.failures > 0
    if away and await engine.holds.pipelines.probe():
        engine.holds.breaker.close()
    if away != before:
        say("Redis cannot be reached: only what Postgres keeps is told" if away else "Redis is back")
    return away


def _until(seconds: float | None) -> float:
    return time.monotonic() + (seconds if seconds is not None else float("inf"))
