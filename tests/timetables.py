"""Working hours for the tests, written as people say them."""

from datetime import date, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from app.domain import Hours
from app.hours import Lasting, Timetable

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
CUT = Lasting(UUID(int=1), 30, 0)


def clock(text: str) -> int:
    hour, minute = text.split(":")
    return 60 * int(hour) + int(minute)


def every_day(*spans: str) -> list[Hours]:
    """Read "09:00-17:00" as hours of each weekday."""
    return [Hours(weekday, *(clock(each) for each in span.split("-"))) for weekday in range(1, 8) for span in spans]


def a_timetable(*spans: str, **fields: Any) -> Timetable:
    given = {
        "services": [CUT], "hours": every_day(*spans), "step_minutes": 30, "from_date": date(1970, 1, 1),
        "to_date": None, "notice_minutes": 0, "horizon_days": 14, **fields,
    }  # fmt: skip
    return Timetable(**given)
