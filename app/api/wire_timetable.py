"""What goes over the wire about services and working hours, in addition to `wire`: the same rules, another subject."""

import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app import domain
from app.api import wire
from app.api.strict import FIRST_YEAR, LAST_YEAR, said, whole
from app.domain import DeviationKind
from app.timetable import NewException, NewSchedule, NewService

Minutes = Annotated[int, Meta(ge=1, le=44_640)]
Buffer = Annotated[int, Meta(ge=0, le=1_440, description="minutes after each in which nothing else can begin")]
Step = Annotated[int, Meta(ge=5, le=1_440, description="minutes from one start to the next")]
Notice = Annotated[int, Meta(ge=0, le=525_600, description="minutes before the start from which on it is too late")]
Horizon = Annotated[int, Meta(ge=1, le=366, description="there are slots for so many days after today")]
ResourceIds = Annotated[list[UUID], Meta(max_length=200)]
ServiceIds = Annotated[list[UUID], Meta(min_length=1, max_length=50)]
Weekday = Annotated[int, Meta(ge=1, le=7, description="1 is Monday")]
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = said(whole(_CLOCK), "Not a time, such as 09:30")
_END = said(whole(f"({_CLOCK}|24:00)"), "Not a time, such as 18:00 or 24:00")
Clock = Annotated[str, Meta(pattern=_TIME, description="on the wall of the venue")]
ClockOrMidnight = Annotated[str, Meta(pattern=_END, description="on the wall of the venue")]
Day = Annotated[datetime.date, Meta(description="in the venue's time zone")]


# -- services ---------------------------------------------------------------------------------------------------------


class ServiceWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug
    name: wire.Text200
    duration_minutes: Minutes
    capacity: wire.Quantity = 1
    price: wire.Price | None = None
    buffer_minutes: Buffer = 0
    #: Who offers it; a schedule adds its resource by itself.
    resource_ids: ResourceIds = []

    def to_new(self) -> NewService:
        return NewService(
            venue=self.venue,
            name=self.name,
            duration_minutes=self.duration_minutes,
            buffer_minutes=self.buffer_minutes,
            capacity=self.capacity,
            price_amount=self.price.amount if self.price else None,
            price_currency=self.price.currency if self.price else None,
            resource_ids=self.resource_ids,
        )


class ServiceChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is booked stays as it was sold; slots that nobody booked follow."""

    name: wire.Text200 | UnsetType = UNSET
    duration_minutes: Minutes | UnsetType = UNSET
    capacity: wire.Quantity | UnsetType = UNSET
    price: wire.Price | UnsetType | None = UNSET
    buffer_minutes: Buffer | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    resource_ids: ResourceIds | UnsetType = UNSET

    def columns(self) -> dict[str, Any]:
        """List what a PATCH changes in the service itself."""
        found = wire.changes(self)
        found.pop("resource_ids", None)
        if "price" in found:
            price = found.pop("price")
            found |= {
                "price_amount": price.amount if price else None,
                "price_currency": price.currency if price else None,
            }
        return found


# -- schedules --------------------------------------------------------------------------------------------------------


class WeeklyHours(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hours of one weekday. Those that touch, also at midnight, are one."""

    weekday: Weekday
    opens: Clock = msgspec.field(name="from")
    closes: ClockOrMidnight = msgspec.field(name="to")

    def __post_init__(self) -> None:
        _require_order(self.opens, self.closes)

    def known(self) -> domain.Hours:
        return domain.Hours(self.weekday, _minutes(self.opens), _minutes(self.closes))


Weekly = Annotated[list[WeeklyHours], Meta(max_length=70)]


class ScheduleWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    resource_id: UUID
    service_ids: ServiceIds
    weekly: Weekly
    step_minutes: Step
    from_date: Day
    #: The last day; null: for ever.
    to_date: Day | None = None
    notice_minutes: Notice = 0
    horizon_days: Horizon = 60

    def __post_init__(self) -> None:
        _require_days("from_date", self.from_date, self.to_date)

    def to_new(self) -> NewSchedule:
        return NewSchedule(
            resource_id=self.resource_id,
            service_ids=self.service_ids,
            hours=[each.known() for each in self.weekly],
            step_minutes=self.step_minutes,
            from_date=self.from_date,
            to_date=self.to_date,
            notice_minutes=self.notice_minutes,
            horizon_days=self.horizon_days,
        )


class ScheduleChanges(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A list that is given takes the place of the old one."""

    service_ids: ServiceIds | UnsetType = UNSET
    weekly: Weekly | UnsetType = UNSET
    step_minutes: Step | UnsetType = UNSET
    from_date: Day | UnsetType = UNSET
    to_date: Day | UnsetType | None = UNSET
    notice_minutes: Notice | UnsetType = UNSET
    horizon_days: Horizon | UnsetType = UNSET

    def __post_init__(self) -> None:
        for name, day in (("from_date", self.from_date), ("to_date", self.to_date)):
            if isinstance(day, datetime.date):
                _require_year(name, day)

    def columns(self) -> dict[str, Any]:
        """List what a PATCH changes in the schedule itself."""
        return {name: value for name, value in wire.changes(self).items() if name not in ("service_ids", "weekly")}


class ExceptionWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Days that differ: `off` takes hours away (the whole day, if none are given), `extra` adds some."""

    date: Day
    #: The last of several days; null: it is one day.
    to_date: Day | None = None
    kind: DeviationKind
    opens: Clock | None = msgspec.field(default=None, name="from")
    closes: ClockOrMidnight | None = msgspec.field(default=None, name="to")
    note: wire.Text200 | None = None

    def __post_init__(self) -> None:
        _require_days("date", self.date, self.to_date)
        if self.to_date is not None and self.to_date - self.date > datetime.timedelta(days=366):
            raise ValueError("to_date must be at most 366 days after date")
        if (self.opens is None) != (self.closes is None) or (self.opens is None and self.kind == "extra"):
            raise ValueError("from must come with to; extra hours need both")
        if self.opens is not None and self.closes is not None:
            _require_order(self.opens, self.closes)

    def to_new(self) -> NewException:
        return NewException(
            kind=self.kind,
            from_date=self.date,
            to_date=self.to_date or self.date,
            opens=None if self.opens is None else _minutes(self.opens),
            closes=None if self.closes is None else _minutes(self.closes),
            note=self.note,
        )


def _require_order(opens: str, closes: str) -> None:
    if opens >= closes:
        raise ValueError("to must be later than from")


def _require_days(name: str, first: datetime.date, last: datetime.date | None) -> None:
    _require_year(name, first)
    if last is not None:
        _require_year("to_date", last)
        if last < first:
            raise ValueError(f"to_date must not be before {name}")


def _require_year(name: str, day: datetime.date) -> None:
    if not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise ValueError(f"{name} must be between the years {FIRST_YEAR} and {LAST_YEAR}")


def _minutes(clock: str) -> int:
    hours, _, minutes = clock.partition(":")
    return 60 * int(hours) + int(minutes)


# -- query strings ----------------------------------------------------------------------------------------------------


class ServiceQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug | None = None
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None


class ScheduleQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug | None = None
    resource_id: UUID | None = None
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None


# -- answers ----------------------------------------------------------------------------------------------------------


class ScheduleException(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    date: datetime.date
    to_date: datetime.date
    kind: DeviationKind
    opens: str | None = msgspec.field(name="from")
    closes: str | None = msgspec.field(name="to")
    note: str | None


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """When a resource can be booked for some services. `exceptions` are in the order of their days."""

    id: UUID
    resource_id: UUID
    service_ids: list[UUID]
    weekly: list[WeeklyHours]
    step_minutes: int
    from_date: datetime.date
    to_date: datetime.date | None
    notice_minutes: int
    horizon_days: int
    exceptions: list[ScheduleException]


class ServicePage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[wire.Service]
    next_cursor: str | None = None


class SchedulePage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Schedule]
    next_cursor: str | None = None


# -- values to answers ------------------------------------------------------------------------------------------------


def schedule(known: domain.Schedule) -> Schedule:
    return Schedule(
        id=known.id,
        resource_id=known.resource_id,
        service_ids=known.service_ids,
        weekly=[
            WeeklyHours(weekday=each.weekday, opens=_clock(each.opens), closes=_clock(each.closes))
            for each in known.hours
        ],
        step_minutes=known.step_minutes,
        from_date=known.from_date,
        to_date=known.to_date,
        notice_minutes=known.notice_minutes,
        horizon_days=known.horizon_days,
        exceptions=[exception(each) for each in known.exceptions],
    )


def exception(known: domain.ScheduleException) -> ScheduleException:
    return ScheduleException(
        id=known.id,
        date=known.from_date,
        to_date=known.to_date,
        kind=known.kind,
        opens=None if known.opens is None else _clock(known.opens),
        closes=None if known.closes is None else _clock(known.closes),
        note=known.note,
    )


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
