"""`holdfast calendar`: a day or a week of a person or venue, with bookings, holds and free time."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
import rich_click as click

from app.cli.failing import USAGE, Failed
from app.cli.show import emit, number, out, say, span
from app.mail.text import one_line

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from app.calendars.agenda import Line, Look, Subject
    from app.engine import Engine

#: From so many columns on a week has one for each day, with room for the time and a short name.
WIDE = 130
STYLES = {"booking": "", "hold": "yellow", "block": "magenta", "free": "green", "closed": "dim"}
TODAY, TOMORROW = "today", "tomorrow"


class Window(msgspec.Struct, frozen=True):
    """The days to tell of, in the venue's zone; the first one's midnight, the last one's, and now."""

    days: list[date]
    zone: ZoneInfo
    since: datetime
    until: datetime
    now: datetime

    def day_of(self, line: "Line") -> date:
        """Tell under which day a line stands: what began before stands under the first."""
        return max(line.starts_at.astimezone(self.zone).date(), self.days[0])


@click.command()
@click.option("--venue", metavar="SLUG", help="All of a venue. Default: the only one there is.")
@click.option("--resource", metavar="NAME|ID", help="One person, place or event.")
@click.option("--day", metavar="DATE", help="2026-11-21, today (the default) or tomorrow, in the venue's zone.")
@click.option(
    "--week", metavar="DATE", is_flag=False, flag_value=TODAY, help="The week of that date; alone: this week."
)
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def calendar(venue: str | None, resource: str | None, day: str | None, week: str | None, as_json: bool) -> None:
    """Show a day or a week: bookings, holds and free time."""
    from app.calendars import agenda
    from app.cli.stores import with_engine

    if day is not None and week is not None:
        raise Failed("Say --day or --week, not both", USAGE)

    async def read(engine: "Engine") -> tuple["Subject", Window, "Look", bool]:
        subject = await agenda.find(engine.ledger, venue, resource)
        window = _window(day, week, ZoneInfo(subject.timezone))
        seen = await _look(engine, subject, window)
        return subject, window, seen, engine.holds.breaker.failures > 0

    subject, window, seen, redis_away = with_engine(read)
    lines = agenda.lines(seen, window.since, window.until, window.now)
    if as_json:
        emit({**describe(subject, window, lines), "degraded": redis_away})
    elif week is not None and out().width >= WIDE:
        _print_columns(subject, window, lines)
    else:
        _print_days(subject, window, lines)


async def _look(engine: "Engine", subject: "Subject", window: Window) -> "Look":
    from app.calendars import agenda
    from app.holding import list_holds

    # Holds first: what becomes a booking meanwhile is then found as both, and told as the booking.
    holds = await list_holds(engine, subject.venue, None)
    if engine.holds.breaker.failures:
        say("Redis cannot be reached: holds that only it knows are not shown, and their places look free")
    seen = await agenda.look(engine.ledger, subject, window.since, window.until)
    if not seen.complete:
        say("There is more than can be shown: narrow it down with --resource or --day")
    return agenda.with_holds(seen, holds)


def _window(day: str | None, week: str | None, zone: ZoneInfo) -> Window:
    now = datetime.now(UTC)
    first = _date(week or day or TODAY, now.astimezone(zone).date())
    if week is not None:
        first -= timedelta(days=first.weekday())
    days = [first + timedelta(days=n) for n in range(7 if week is not None else 1)]
    since, until = (
        datetime.combine(at, time.min, zone).astimezone(UTC) for at in (days[0], days[-1] + timedelta(days=1))
    )
    return Window(days, zone, since, until, now)


def _date(text: str, today: date) -> date:
    if text in (TODAY, TOMORROW):
        return today + timedelta(days=text == TOMORROW)
    try:
        found = date.fromisoformat(text)
    except ValueError:
        raise Failed(f"{text!r} is no date: say 2026-11-21, {TODAY} or {TOMORROW}", USAGE) from None
    if not 1970 <= found.year <= 2200:  # as on the wire
        raise Failed("Only the years 1970 to 2200 are kept", USAGE)
    return found


def describe(subject: "Subject", window: Window, lines: "Sequence[Line]") -> dict[str, Any]:
    """What programs are told; `data` as every list."""
    return {
        "venue": subject.venue,
        "resource": subject.resource,
        "timezone": subject.timezone,
        "from": window.since,
        "to": window.until,
        "data": [_described(line) for line in lines],
        "next_cursor": None,
    }


def _described(line: "Line") -> dict[str, Any]:
    told = msgspec.structs.asdict(line)
    left = told.pop("left")
    return {**told, "ttl_seconds": None if left is None else max(0, left // timedelta(seconds=1))}


# -- day after day ----------------------------------------------------------------------------------------------------


def _print_days(subject: "Subject", window: Window, lines: "Sequence[Line]") -> None:
    from rich.text import Text

    a_week = len(window.days) > 1
    out().print(_title(subject, window))
    for day in window.days:
        of_day = [line for line in lines if window.day_of(line) == day]
        if a_week:
            out().print(
                Text.assemble("\n" if of_day else "", (f"{day:%A %d %B}", "bold"), "" if of_day else ": nothing")
            )
        if _clocks_change(window, day):
            out().print(Text("The clocks change on this day", "yellow"))
        if of_day:
            out().print(_day_table(subject, window, day, of_day))
            missing = [one_line(each.name) for each in subject.resources if all(each != x.resource for x in of_day)]
            if missing:
                out().print(Text(f"Nothing: {', '.join(missing)}", "dim"))
        elif not a_week:
            out().print(Text("Nothing: no bookings, and no slots that could be booked", "dim"))
    _print_sum(lines)


def _title(subject: "Subject", window: Window) -> "Text":
    from rich.text import Text

    name = subject.resource.name if subject.resource else subject.venue_name
    first, last = window.days[0], window.days[-1]
    when = f"{first:%A %d %B %Y}" if first == last else f"{first:%d %B} to {last:%d %B %Y}"
    return Text.assemble((one_line(name), "bold"), f", {when}", (f"  {subject.timezone}", "dim"))


def _day_table(subject: "Subject", window: Window, day: date, lines: "Sequence[Line]") -> "Table":
    from rich.text import Text

    from app.cli.show import table

    made = table("Time", "What", "Who", ">Places", "Status")
    made.columns[0].no_wrap = made.columns[3].no_wrap = True
    now_told = day != window.now.astimezone(window.zone).date()
    for line in lines:
        if not now_told and line.starts_at > window.now:
            made.add_row(Text(f"{window.now.astimezone(window.zone):%H:%M} now", "cyan"))
            now_told = True
        style = "dim" if line.ends_at <= window.now else STYLES[line.kind]
        cells = (_times(window, day, line), _what(subject, line), _who(line), _places(line), _status(line))
        made.add_row(*(Text(cell, style) for cell in cells))
    return made


def _times(window: Window, day: date, line: "Line") -> str:
    """Tell from when to when: with the day where it is another one, with the zone where 02:30 may be twice."""
    begin, end = (at.astimezone(window.zone) for at in (line.starts_at, line.ends_at))
    form = "%H:%M %Z" if _clocks_change(window, day) else "%H:%M"
    first = begin.strftime(form if begin.date() == day else f"%a {form}")
    # Midnight ends a day as well as it begins the next.
    ends_here = end.date() == day or (end.time() == time.min and end.date() == day + timedelta(days=1))
    last = end.strftime(form if ends_here else f"%a {form}")
    return f"{first}\N{EN DASH}{'24:00' if ends_here and last == '00:00' else last}"


def _clocks_change(window: Window, day: date) -> bool:
    first, last = (datetime.combine(at, time.min, window.zone) for at in (day, day + timedelta(days=1)))
    return first.utcoffset() != last.utcoffset()


def _what(subject: "Subject", line: "Line") -> str:
    """Name what of a venue it is; of one person only the service, if there is one."""
    names = [None if subject.resource and line.service else line.resource.name, line.service]
    return " · ".join(one_line(name) for name in names if name)


def _who(line: "Line") -> str:
    return one_line(line.customer or line.note or "")


def _places(line: "Line") -> str:
    if line.kind == "free" and line.quantity is not None:
        return f"{line.quantity} of {line.capacity}"
    return "" if line.quantity is None else str(line.quantity)


def _status(line: "Line") -> str:
    word = {"pending_payment": "not paid yet"}.get(line.status, line.status)
    return word if line.left is None else f"{word}, {span(line.left)} left"


def _print_sum(lines: "Sequence[Line]") -> None:
    from rich.text import Text

    told = [
        number(sum(line.kind == kind for line in lines), noun) + f" ({number(places, 'place')})"
        for kind, noun in (("booking", "booking"), ("hold", "hold"))
        if (places := sum(line.quantity or 0 for line in lines if line.kind == kind))
    ]
    if told:
        out().print(Text(", ".join(told), "dim"))


# -- a column per day -------------------------------------------------------------------------------------------------


def _print_columns(subject: "Subject", window: Window, lines: "Sequence[Line]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    today = window.now.astimezone(window.zone).date()
    # The line between columns is a space already. Emoji may be wider than told: two columns are left for them.
    made = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, width=out().width - 2)
    for day in window.days:
        style = "bold cyan" if day == today else "bold"
        made.add_column(Text(f"{day:%a %d %b}", style), ratio=1, no_wrap=True, overflow="ellipsis")
    cells = []
    for day in window.days:
        of_day = [line for line in lines if window.day_of(line) == day]
        cells.append(Text("\n").join(_entries(subject, window, day, of_day)) if of_day else Text("nothing", "dim"))
    made.add_row(*cells)
    out().print(_title(subject, window))
    out().print(made)
    _print_sum(lines)


def _entries(subject: "Subject", window: Window, day: date, lines: "Sequence[Line]") -> "list[Text]":
    """Tell a day in a narrow column: two short lines for each, and one entry for all who come to one class."""
    from rich.text import Text

    entries = []
    for group in _grouped(lines):
        first = group[0]
        times, told = _times(window, day, first), _brief(first, group)
        if subject.resource is None:
            text = f"{times} {one_line(first.resource.name)}\n {told}"
        elif first.slot_id is None:
            text = f"{times} {told}"  # free or closed: it fits beside the time
        else:
            text = f"{times}\n {told}"
        entries.append(Text(text, "dim" if first.ends_at <= window.now else STYLES[first.kind]))
    return entries


def _grouped(lines: "Sequence[Line]") -> "list[list[Line]]":
    """Put the lines of one slot with several places together, where the first of them stands."""
    groups: dict[Any, list[Line]] = {}
    for n, line in enumerate(lines):
        several = line.slot_id is not None and (line.capacity or 1) > 1
        groups.setdefault(line.slot_id if several else n, []).append(line)
    return list(groups.values())


def _brief(first: "Line", group: "Sequence[Line]") -> str:
    if (first.capacity or 1) > 1 and first.kind != "closed":
        booked, held = (sum(line.quantity or 0 for line in group if line.kind == kind) for kind in ("booking", "hold"))
        return f"{booked}/{first.capacity} booked{f' +{held} held' if held else ''}"
    return _who(first) if first.kind == "booking" else _status(first).removesuffix(" left")
