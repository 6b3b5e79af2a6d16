"""`holdfast events`: the audit log, as it was written."""

import asyncio
import sys
import time
from shutil import get_terminal_size
from textwrap import indent, wrap
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
import rich_click as click

from app.cli.failing import USAGE, Failed
from app.cli.show import emit

if TYPE_CHECKING:
    from app.database import Database
    from app.domain import Event
    from app.engine import Engine

#: How often the log is asked for more, and how much of it at a time.
FOLLOW_SECONDS = 0.5
PAGE = 200


@click.group()
def events() -> None:
    """The audit log: written in the transaction of each change, never rewritten."""


@events.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens.")
@click.option("--type", "type_", metavar="TYPE", help="Such as booking.confirmed.")
@click.option("--slot", "slot_id", type=click.UUID, metavar="ID", help="Only of this slot.")
@click.option("--booking", "booking_id", type=click.UUID, metavar="ID", help="Only of this booking or hold.")
@click.option(
    "--after", type=click.IntRange(0), metavar="SEQ", help="All that follows this event; 0: from the beginning."
)
@click.option(
    "--count", type=click.IntRange(0, 10_000), default=20, show_default=True, help="Without --after: the last …"
)
@click.option(
    "--for", "seconds", type=click.FloatRange(0.1), metavar="SECONDS", help="With --follow: stop after this long."
)
@click.option("--json", "as_json", is_flag=True, help="One object for programs; its next_cursor is the next --after.")
@click.option("--jsonl", is_flag=True, help="One object per event, for programs.")
def tail(
    *,
    follow: bool,
    type_: str | None,
    slot_id: UUID | None,
    booking_id: UUID | None,
    after: int | None,
    count: int,
    seconds: float | None,
    as_json: bool,
    jsonl: bool,
) -> None:
    """Tell the last events, in the order in which they became visible, without gaps.

    `--after` with the last seq that was seen goes on exactly there.
    """
    from app.cli.stores import with_database
    from app.records import EventFilter, follow_events

    if as_json and (follow or jsonl):
        raise Failed("--json is one object, told at the end: with --follow say --jsonl instead", USAGE)
    which = EventFilter(type=type_, slot_id=slot_id, booking_id=booking_id)
    until = time.monotonic() + (seconds if seconds is not None else float("inf"))

    async def read(engine: "Engine", database: "Database") -> None:
        told: list[Event] = []
        seen = after
        if seen is None:
            seen = await engine.ledger.event_before_last(count, type_, slot_id, booking_id)
        while True:
            page = await follow_events(database, which, seen, PAGE)
            for event in page:
                if as_json:
                    told.append(event)
                else:
                    _tell(event, jsonl)
                seen = event.seq
            if len(page) == PAGE:
                continue
            left = until - time.monotonic()
            if not follow or left <= 0:
                break
            await asyncio.sleep(min(FOLLOW_SECONDS, left))
        if as_json:
            emit({"data": told, "next_cursor": str(told[-1].seq) if told else None})

    with_database(read)


def _tell(event: "Event", jsonl: bool) -> None:
    if jsonl:
        emit(event, indent=False)
        return
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    print(*lines(event, width), sep="\n", flush=True)


def lines(event: "Event", width: int | None) -> list[str]:
    """Tell an event: in one line, which is what `grep` wants, or in lines that a terminal need not break."""
    at = f"{event.at:%Y-%m-%d %H:%M:%S}"
    ids = [f"{name} {value}" for name, value in (("booking", event.booking_id), ("slot", event.slot_id)) if value]
    told = [f"{event.seq} {at} {event.type} by {event.actor}", *ids]
    data = msgspec.json.encode(event.data) if event.data else b""
    whole = " ".join([*told, data.decode()]).rstrip()
    if width is None or len(whole) <= width:
        return [whole]
    spaced = msgspec.json.format(data, indent=0).decode() if data else ""
    return [told[0], *(indent(each, "  ") for each in ids), *_wrapped(spaced, width)]


def _wrapped(data: str, width: int) -> list[str]:
    return wrap(data, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
