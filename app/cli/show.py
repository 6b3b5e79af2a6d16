"""Output: tables for people, JSON for programs, both to stdout; messages to stderr."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UUID_WIDTH = 36


@cache
def out() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def say(message: str) -> None:
    """Tell the person at the terminal something that is not the answer."""
    print(message, file=sys.stderr)


def emit(value: Any, *, indent: bool = True) -> None:
    """Write one JSON object: over several lines, or in one for streams."""
    import msgspec

    encoded = msgspec.json.encode(value)
    sys.stdout.write((msgspec.json.format(encoded, indent=2) if indent else encoded).decode() + "\n")
    sys.stdout.flush()


def table(*headers: str) -> "Table":
    """A table for terminals of 80 columns and more. A header with > is of numbers, one with # of ids."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for header in headers:
        numbers, ids = header.startswith(">"), header.startswith("#")
        # An id is copied into the next command: it stays whole in one line where the terminal has room for it.
        whole = ids and out().width >= 2 * UUID_WIDTH
        justify: Literal["left", "right"] = "right" if numbers else "left"
        made.add_column(header.lstrip(">#"), justify=justify, overflow="fold", no_wrap=whole)
    return made


def facts(*pairs: tuple[str, str]) -> "Table":
    """One thing, a line for each fact."""
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, value)
    return made


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    made = table(*headers)
    for row in rows:
        made.add_row(*row)
    if made.row_count:
        out().print(made)
    else:
        say(empty)


def number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def local(instant: datetime, zone: str = "UTC") -> str:
    """Tell a time as the venue's people say it."""
    return f"{instant.astimezone(ZoneInfo(zone)):%a %Y-%m-%d %H:%M}"


def local_short(instant: datetime, zone: str) -> str:
    """The same for a column of a table."""
    return f"{instant.astimezone(ZoneInfo(zone)):%a %d %b %H:%M}"


def ago(since: datetime, now: datetime | None = None) -> str:
    return span((now or datetime.now(UTC)) - since)


def span(duration: Any) -> str:
    """Tell a duration in its two largest units."""
    seconds = max(0, round(duration.total_seconds()))
    for size, unit, part, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // part:02}{small}"
    return f"{seconds}s"
