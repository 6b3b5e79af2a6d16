"""When people work: weekly hours and exceptions in a venue's wall time, and the starts that follow. Pure: no store, no
clock.

The rules, where the clocks change:

- A start at a wall time that the clock skips is not offered. One that comes twice is offered once, the first time.
- An appointment lasts its minutes as they pass, whatever the clock on the wall does meanwhile, and must end by the
  moment that closes its hours. A closing time that is skipped is the moment of the jump; of one that comes twice it is
  the first.

So starts are in the order of their wall times, and no two are at the same instant.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from app.domain import Deviation, DeviationKind, Hours
from app.tokens import derived_id

MINUTES_A_DAY = 24 * 60
_DAY, _MINUTE = timedelta(days=1), timedelta(minutes=1)

#: A stretch of wall time, without a zone: from its beginning to just before its end.
Stretch = tuple[datetime, datetime]


class Lasting(msgspec.Struct, frozen=True):
    """How long a service takes, and its person is busy after it."""

    id: UUID
    duration_minutes: int
    buffer_minutes: int


class Timetable(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule: whose hours they are is not known here."""

    services: list[Lasting]
    hours: list[Hours]
    deviations: list[Deviation] = []
    step_minutes: int
    from_date: date
    to_date: date | None
    notice_minutes: int
    horizon_days: int


class Start(msgspec.Struct, frozen=True):
    """A service can begin here."""

    service: Lasting
    at: datetime
    notice_minutes: int


def slot_id(resource_id: UUID, service: Lasting, starts_at: datetime) -> UUID:
    """Name the slot of a start (UUIDv8): whoever makes it again, makes the same one.

    How long it lasts belongs to the name, because a slot never moves: a service that takes longer has other slots.
    """
    lasts = f"{service.duration_minutes}+{service.buffer_minutes}"
    return derived_id(b"slot", resource_id.bytes, service.id.bytes, f"{starts_at.timestamp():.0f}/{lasts}".encode())


def starts(timetable: Timetable, zone: ZoneInfo, first: date, before: date) -> Iterator[Start]:
    """List what can begin on the days from `first` to the one before `before`, in order of time."""
    longest = max((service.duration_minutes for service in timetable.services), default=0)
    # Hours that touch at midnight are one: an appointment of the last day may end days later.
    open_times = _open(timetable, first - _DAY, before + timedelta(days=longest // MINUTES_A_DAY + 1))
    begins = [begin for begin, _ in open_times]
    for wall in _grid(timetable, first, before):
        place = bisect_right(begins, wall) - 1
        at = instant(wall, zone)
        if place < 0 or wall >= open_times[place][1] or at is None:
            continue
        closes_at = moment(open_times[place][1], zone)
        for service in timetable.services:
            if at + service.duration_minutes * _MINUTE <= closes_at:
                yield Start(service, at, timetable.notice_minutes)


def last_day(timetable: Timetable, today: date) -> date:
    """Tell the last day for which there are slots to be."""
    horizon = today + timedelta(days=timetable.horizon_days)
    return min(horizon, timetable.to_date) if timetable.to_date else horizon


# -- wall time --------------------------------------------------------------------------------------------------------


def instant(wall: datetime, zone: ZoneInfo) -> datetime | None:
    """Tell when the clock on the wall shows this first; None: it never does."""
    at = wall.replace(tzinfo=zone).astimezone(UTC)
    return at if at.astimezone(zone).replace(tzinfo=None) == wall else None


@lru_cache(maxsize=4096)
def moment(wall: datetime, zone: ZoneInfo) -> datetime:
    """Tell when the clock on the wall shows this first, or jumps over it."""
    at = instant(wall, zone)
    if at is not None:
        return at
    # Whole days were skipped where the date line moved, but clocks always change at a full minute.
    skipped_from = wall
    while (at := instant(skipped_from - _MINUTE, zone)) is None:
        skipped_from -= _MINUTE
    return at + _MINUTE


# -- the rules --------------------------------------------------------------------------------------------------------


def _grid(timetable: Timetable, first: date, before: date) -> list[datetime]:
    """List the wall times at which something could begin: every step from the beginning of each of the day's hours.

    What is off is not taken out here, so that a free hour at noon does not move the starts of the afternoon.
    """
    step = timetable.step_minutes * _MINUTE
    return sorted(
        {
            begin + n * step
            for day in _days(timetable, first, before)
            for begin, end in [*_weekly(timetable, day), *_deviating(timetable, day, "extra")]
            for n in range((end - begin - _MINUTE) // step + 1)
        }
    )


def _open(timetable: Timetable, first: date, before: date) -> list[Stretch]:
    """List the stretches in which there is work, those that touch made one."""
    found: list[Stretch] = []
    for day in _days(timetable, first, before):
        of_day = _weekly(timetable, day)
        for off in _deviating(timetable, day, "off"):
            of_day = [left for stretch in of_day for left in _without(stretch, off)]
        found += of_day + _deviating(timetable, day, "extra")
    merged: list[Stretch] = []
    for begin, end in sorted(found):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _days(timetable: Timetable, first: date, before: date) -> Iterator[date]:
    day = max(first, timetable.from_date)
    while day < before and (timetable.to_date is None or day <= timetable.to_date):
        yield day
        day += _DAY


def _weekly(timetable: Timetable, day: date) -> list[Stretch]:
    return [_stretch(day, h.opens, h.closes) for h in timetable.hours if h.weekday == day.isoweekday()]


def _deviating(timetable: Timetable, day: date, kind: DeviationKind) -> list[Stretch]:
    return [
        _stretch(day, d.opens or 0, MINUTES_A_DAY if d.closes is None else d.closes)
        for d in timetable.deviations
        if d.kind == kind and d.from_date <= day <= d.to_date
    ]


def _stretch(day: date, opens: int, closes: int) -> Stretch:
    midnight = datetime.combine(day, time())
    return midnight + opens * _MINUTE, midnight + closes * _MINUTE


def _without(stretch: Stretch, off: Stretch) -> Sequence[Stretch]:
    parts = (stretch[0], min(stretch[1], off[0])), (max(stretch[0], off[1]), stretch[1])
    return [part for part in parts if part[0] < part[1]]
