"""Words that others have typed, made fit for one line; and times as a venue's people say them."""

import unicodedata
from datetime import datetime
from zoneinfo import ZoneInfo

#: Invisible, and still part of how some scripts and emoji are spelt.
_JOINERS = {"\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"}
_GAPS = {"Cc", "Zl", "Zp", "Zs"}
#: Format characters, such as those that turn the direction of a whole line, and halves of characters.
_DROPPED = {"Cf", "Cs"}


def one_line(text: str, limit: int = 200) -> str:
    """Make one visible line of a text: no line breaks, control characters or turned directions.

    Every name passes through here before it stands in a header, a body, a calendar or a terminal: whoever types a
    line break into a name shall not write headers, and nobody shall turn the rest of a line around.
    """
    line = " ".join(visible(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def visible(text: str) -> str:
    """Leave what can be seen: line breaks and control characters become spaces, what turns directions goes."""
    return "".join(
        " " if kind in _GAPS else character
        for character in text
        if (kind := unicodedata.category(character)) not in _DROPPED or character in _JOINERS
    )


def when(starts_at: datetime, ends_at: datetime, timezone: str) -> str:
    """Tell a span of time in its zone: `Sat 21 Nov 2026, 10:00 - 11:30 CET (Europe/Berlin)`."""
    start, end = (at.astimezone(ZoneInfo(timezone)) for at in (starts_at, ends_at))
    first, last = f"{day(start)}, {start:%H:%M}", f"{end:%H:%M} {_zone(end)}"
    if start.utcoffset() != end.utcoffset():
        # A clock is put forward or back in between: 02:30 alone would not say which.
        first = f"{first} {_zone(start)}"
    if start.date() != end.date():
        last = f"{day(end)}, {last}"
    return f"{first} \N{EN DASH} {last} ({timezone})"


def day(at: datetime) -> str:
    """Tell a date. English by itself: `strftime` would follow the process's locale."""
    weekday = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[at.weekday()]
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[at.month - 1]
    return f"{weekday} {at.day} {month} {at.year}"


def short_when(starts_at: datetime, timezone: str) -> str:
    """Tell the beginning alone, for a subject."""
    start = starts_at.astimezone(ZoneInfo(timezone))
    return f"{day(start)}, {start:%H:%M}"


def _zone(at: datetime) -> str:
    name = at.tzname() or ""
    # Zones without a name of their own are called by their offset: +03 alone reads like a number.
    return f"UTC{name}" if name.startswith(("+", "-")) else name
