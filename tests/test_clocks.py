"""Pages reckon with the venue's clocks, whatever the browser's: also on the days on which those are changed.

Whoever reads a day must ask from its first moment to the next one's, or a time is shown on the wrong day, or on none.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, Page

from app.pages import assets
from tests.browser import Window, chromium
from tests.service import Service

__all__ = ["chromium"]

#: Midnight is left out, the first; it comes twice, the second; and days on which nothing happens, or only at night.
DAYS = [
    ("America/Santiago", "2026-09-06", "2026-09-06T04:00:00.000Z"),
    ("America/Havana", "2026-03-08", "2026-03-08T05:00:00.000Z"),
    ("Atlantic/Azores", "2026-03-29", "2026-03-29T01:00:00.000Z"),
    ("America/Havana", "2026-11-01", "2026-11-01T04:00:00.000Z"),
    ("Atlantic/Azores", "2026-10-25", "2026-10-25T00:00:00.000Z"),
    ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00:00.000Z"),
    ("Europe/Berlin", "2026-03-30", "2026-03-29T22:00:00.000Z"),
    ("Europe/Berlin", "2026-10-25", "2026-10-24T22:00:00.000Z"),
    ("Europe/Berlin", "2026-10-26", "2026-10-25T23:00:00.000Z"),
    ("Pacific/Kiritimati", "2026-06-01", "2026-05-31T10:00:00.000Z"),
    ("Pacific/Pago_Pago", "2026-06-01", "2026-06-01T11:00:00.000Z"),
    ("Australia/Lord_Howe", "2026-10-04", "2026-10-03T13:30:00.000Z"),
]
TIMES = [
    ("Europe/Berlin", "2026-10-25T01:30:00", "2026-10-24T23:30:00.000Z"),
    ("Europe/Berlin", "2026-10-25T02:30:00", "2026-10-25T00:30:00.000Z"),  # comes twice: the first
    ("Europe/Berlin", "2026-10-25T03:00:00", "2026-10-25T02:00:00.000Z"),
    ("America/New_York", "2026-03-08T01:59:59", "2026-03-08T06:59:59.000Z"),
    ("America/New_York", "2026-03-08T02:30:00", "2026-03-08T07:30:00.000Z"),  # left out: 03:30
    ("America/New_York", "2026-03-08T03:00:00", "2026-03-08T07:00:00.000Z"),
    ("America/New_York", "2026-11-01T01:30:00", "2026-11-01T05:30:00.000Z"),
]


@pytest.fixture(scope="module")
def page(with_redis: Service, chromium: Browser) -> Iterator[Page]:
    """A page of the service, where its modules can be asked; its own clock is somewhere else altogether."""
    window = Window(chromium.new_context(timezone_id="Asia/Kathmandu"))
    yield window.page(with_redis.url)
    window.context.close()
    window.check()


def ask(page: Page, module: str, asked: str, *given: Any) -> Any:
    calling = f"async ([url, given]) => (({{ beginOf, instantOf }}) => {asked})(await import(url))"
    return page.evaluate(calling, [assets.url(module), list(given)])


@pytest.mark.parametrize(("zone", "day", "begins"), DAYS)
def test_a_day_begins_when_the_zone_says_so(page: Page, zone: str, day: str, begins: str) -> None:
    assert ask(page, "widget/time.js", "beginOf(...given).toISOString()", day, zone) == begins


@pytest.mark.parametrize(("zone", "wall", "instant"), TIMES)
def test_of_a_time_that_comes_twice_or_never_one_is_meant(page: Page, zone: str, wall: str, instant: str) -> None:
    """As Python means it too, of whose times the service makes slots."""
    assert ask(page, "zone.js", "instantOf(...given)", wall, zone) == instant
    meant = datetime.fromisoformat(wall).replace(tzinfo=ZoneInfo(zone))
    assert meant.timestamp() == datetime.fromisoformat(instant).timestamp()
