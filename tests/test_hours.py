"""Starts from working hours: the rules, and what they come to where clocks change."""

import itertools
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import hours
from app.domain import Deviation, Hours
from app.hours import Lasting, Timetable
from tests.timetables import BERLIN, CUT, DAY, MINUTE, a_timetable, clock

# -- the rules --------------------------------------------------------------------------------------------------------


def off(day: date, span: str | None = None, to: date | None = None) -> Deviation:
    opens, closes = (clock(each) for each in span.split("-")) if span else (None, None)
    return Deviation(kind="off", from_date=day, to_date=to or day, opens=opens, closes=closes)


def extra(day: date, span: str) -> Deviation:
    opens, closes = (clock(each) for each in span.split("-"))
    return Deviation(kind="extra", from_date=day, to_date=day, opens=opens, closes=closes)


def on(day: date, timetable: Timetable, zone: ZoneInfo = BERLIN) -> list[str]:
    """List what a day offers as people read it: the wall times, the first of two marked by nothing."""
    found = list(hours.starts(timetable, zone, day, day + DAY))
    return [start.at.astimezone(zone).strftime("%H:%M") for start in found]


MONDAY = date(2030, 6, 3)


def test_starts_are_on_the_grid_and_end_by_closing_time():
    assert on(MONDAY, a_timetable("09:00-10:45")) == ["09:00", "09:30", "10:00"]
    assert on(MONDAY, a_timetable("09:10-10:10", step_minutes=15)) == ["09:10", "09:25", "09:40"]
    assert on(MONDAY, a_timetable("09:00-09:29")) == []
    assert on(MONDAY, a_timetable("09:00-17:00", services=[])) == []


def test_the_buffer_may_pass_closing_time():
    assert on(MONDAY, a_timetable("09:00-10:00", services=[Lasting(UUID(int=1), 30, 60)])) == ["09:00", "09:30"]


def test_each_service_fits_by_its_own_length():
    two = [CUT, Lasting(UUID(int=2), 60, 0)]
    found = hours.starts(a_timetable("09:00-10:00", services=two), BERLIN, MONDAY, MONDAY + DAY)
    assert [(start.at.astimezone(BERLIN).hour, start.at.minute, start.service.id.int) for start in found] == [
        (9, 0, 1), (9, 0, 2), (9, 30, 1),
    ]  # fmt: skip


def test_hours_that_touch_are_one_and_their_grids_both_count():
    day = a_timetable("09:00-09:45", "09:45-10:30", services=[Lasting(UUID(int=1), 60, 0)], step_minutes=15)
    assert on(MONDAY, day) == ["09:00", "09:15", "09:30"]
    assert on(MONDAY, a_timetable("09:00-10:00", "10:10-11:00")) == ["09:00", "09:30", "10:10"]


def test_a_night_is_one_stretch_across_midnight():
    night = a_timetable("22:00-24:00", "00:00-02:00", services=[Lasting(UUID(int=1), 120, 0)], step_minutes=60)
    assert on(MONDAY, night) == ["00:00", "22:00", "23:00"]


def test_a_service_of_days_needs_days_without_a_gap():
    week = a_timetable("00:00-24:00", services=[Lasting(UUID(int=1), 3 * 1440, 0)], step_minutes=1440)
    assert on(MONDAY, week) == ["00:00"]
    gap = a_timetable(
        "00:00-24:00",
        services=week.services,
        step_minutes=1440,
        deviations=[off(MONDAY + 2 * DAY, "12:00-12:30")],
    )
    assert [on(MONDAY + n * DAY, gap) for n in range(-1, 4)] == [["00:00"], [], [], [], ["00:00"]]


def test_weekdays_and_dates_bound_a_schedule():
    workdays = [Hours(weekday, 540, 600) for weekday in range(1, 6)]
    table = a_timetable(hours=workdays, from_date=MONDAY, to_date=MONDAY + 6 * DAY)
    found = hours.starts(table, BERLIN, MONDAY - 7 * DAY, MONDAY + 14 * DAY)
    assert sorted({start.at.date() for start in found}) == [MONDAY + n * DAY for n in range(5)]
    assert hours.last_day(table, MONDAY) == MONDAY + 6 * DAY
    assert hours.last_day(a_timetable(), MONDAY) == MONDAY + 14 * DAY


def test_a_day_off_extra_hours_and_both():
    def day(*deviations: Deviation) -> list[str]:
        return on(MONDAY, a_timetable("09:00-11:00", deviations=list(deviations)))

    assert day(off(MONDAY)) == []
    assert day(off(MONDAY - DAY, to=MONDAY + DAY)) == []
    assert day(off(MONDAY + DAY)) == ["09:00", "09:30", "10:00", "10:30"]
    # What is left keeps its grid: nobody's afternoon moves because of a free quarter of an hour.
    assert day(off(MONDAY, "09:15-09:50")) == ["10:00", "10:30"]
    assert day(extra(MONDAY, "18:10-19:10")) == ["09:00", "09:30", "10:00", "10:30", "18:10", "18:40"]
    assert day(off(MONDAY), extra(MONDAY, "10:00-11:00")) == ["10:00", "10:30"]


def test_an_exception_is_only_of_its_schedules_days():
    table = a_timetable("09:00-10:00", to_date=MONDAY, deviations=[extra(MONDAY + DAY, "09:00-10:00")])
    assert on(MONDAY + DAY, table) == []


# -- where clocks change ----------------------------------------------------------------------------------------------


def test_spring_in_berlin_skips_what_never_is():
    """02:00 becomes 03:00."""
    assert on(date(2030, 3, 31), a_timetable("01:00-04:00")) == ["01:00", "01:30", "03:00", "03:30"]
    # An hour that begins at half past one ends at half past three, and lasts an hour.
    hour = a_timetable("01:30-03:30", services=[Lasting(UUID(int=1), 60, 0)])
    assert on(date(2030, 3, 31), hour) == ["01:30"]


def test_autumn_in_berlin_offers_each_wall_time_once():
    """03:00 becomes 02:00."""
    found = [
        start.at for start in hours.starts(a_timetable("01:00-04:00"), BERLIN, date(2030, 10, 27), date(2030, 10, 28))
    ]
    assert [at.strftime("%H:%M") for at in found] == ["23:00", "23:30", "00:00", "00:30", "02:00", "02:30"]
    # Closing at half past two is the first half past two.
    assert on(date(2030, 10, 27), a_timetable("01:30-02:30")) == ["01:30", "02:00"]


def test_closing_at_a_time_that_is_skipped_is_closing_at_the_jump():
    assert on(date(2030, 3, 31), a_timetable("01:00-02:30")) == ["01:00", "01:30"]
    assert hours.moment(datetime(2030, 3, 31, 2, 30), BERLIN) == datetime(2030, 3, 31, 1, tzinfo=UTC)  # noqa: DTZ001


def test_a_day_that_never_was_offers_nothing():
    apia = ZoneInfo("Pacific/Apia")
    assert on(date(2011, 12, 30), a_timetable("00:00-24:00"), apia) == []
    assert hours.moment(datetime(2011, 12, 30, 12), apia) == datetime(2011, 12, 30, 10, tzinfo=UTC)  # noqa: DTZ001


#: Half an hour, a quarter of one for good, at midnight, with the moon; and the years in which clocks changed.
ZONES = {
    "Europe/Berlin": range(1980, 2041), "America/New_York": range(1970, 2041), "Australia/Lord_Howe": range(1981, 2041),
    "Africa/Casablanca": range(2008, 2041), "America/Sao_Paulo": range(1985, 2020), "Asia/Kathmandu": range(1985, 1987),
}  # fmt: skip


def transitions(name: str) -> Iterator[datetime]:
    """List the instants at which the clocks of a zone change, found by looking at each hour, then each minute."""
    zone, at = ZoneInfo(name), datetime(ZONES[name].start, 1, 1, tzinfo=UTC)
    end = datetime(ZONES[name].stop, 1, 1, tzinfo=UTC)
    while at < end:
        if at.astimezone(zone).utcoffset() == (at + DAY).astimezone(zone).utcoffset():
            at += DAY
            continue
        low, high = at, at + DAY
        while high - low > MINUTE:
            middle = low + ((high - low) // 2).total_seconds() // 60 * MINUTE
            same = middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset()
            low, high = (middle, high) if same else (low, middle)
        yield high
        at += DAY


def shown(zone: ZoneInfo, first: date, days: int) -> dict[datetime, datetime]:
    """Watch the clock on the wall minute by minute: what it showed, and when for the first time."""
    at = datetime.combine(first, time(), UTC) - DAY
    seen: dict[datetime, datetime] = {}
    for _ in range((days + 2) * hours.MINUTES_A_DAY):
        seen.setdefault(at.astimezone(zone).replace(tzinfo=None), at)
        at += MINUTE
    return seen


def offered_by_watching(timetable: Timetable, zone: ZoneInfo, day: date) -> list[tuple[datetime, UUID]]:
    """Follow the stated rules by watching a clock, instead of calculating."""
    wall_clock = shown(zone, day, 3)
    found = []
    for each in timetable.hours:
        if each.weekday != day.isoweekday():
            continue
        midnight = datetime.combine(day, time())
        closes = midnight + each.closes * MINUTE
        closes_at = min(at for wall, at in wall_clock.items() if wall >= closes)
        for minutes in range(each.opens, each.closes, timetable.step_minutes):
            at = wall_clock.get(midnight + minutes * MINUTE)
            found += [
                (at, service.id)
                for service in timetable.services
                if at is not None and at + service.duration_minutes * MINUTE <= closes_at
            ]
    return found


@pytest.mark.parametrize("name", ZONES)
def test_around_every_transition_the_starts_are_those_that_a_watched_clock_shows(name: str):
    zone = ZoneInfo(name)
    changes = list(transitions(name))
    assert len(changes) >= 1
    table = a_timetable(
        hours=[Hours(weekday, 0, 1440) for weekday in range(1, 8)],
        services=[Lasting(UUID(int=1), 15, 0), Lasting(UUID(int=2), 240, 0)],
        step_minutes=15,
    )
    for change in changes:
        for day in (change.astimezone(zone).date() + n * DAY for n in (-1, 0)):
            starts = list(hours.starts(table, zone, day, day + DAY))
            walls = [start.at.astimezone(zone).replace(tzinfo=None) for start in starts]
            assert all(wall.date() == day for wall in walls)
            assert all(start.at.astimezone(zone).fold == 0 for start in starts)
            assert walls == sorted(walls)
            assert [start.at for start in starts] == sorted(start.at for start in starts)
            of_one = [start.at for start in starts if start.service.id.int == 1]
            assert len(set(of_one)) == len(of_one)
            # Every quarter of an hour that there is, and no other.
            there = {
                wall for wall in (datetime.combine(day, time()) + n * 15 * MINUTE for n in range(96))
                if wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wall
            }  # fmt: skip
            assert set(walls) == there


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_hours_the_starts_are_those_that_a_watched_clock_shows(data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(ZONES)))
    zone = ZoneInfo(name)
    change = data.draw(st.sampled_from(list(transitions(name))))
    day = change.astimezone(zone).date() + data.draw(st.sampled_from([-1, 0, 1])) * DAY
    opens = data.draw(st.integers(0, 1439))
    span = data.draw(st.integers(1, 1440 - opens))
    table = a_timetable(
        hours=[Hours(day.isoweekday(), opens, opens + span)],
        services=[Lasting(UUID(int=n), data.draw(st.integers(1, 300)), 0) for n in range(2)],
        step_minutes=data.draw(st.integers(5, 120)),
    )
    starts = [(start.at, start.service.id) for start in hours.starts(table, zone, day, day + DAY)]
    assert starts == offered_by_watching(table, zone, day)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_off_hours_only_take_away_and_extra_hours_only_add(data: st.DataObject):
    def some_hours() -> tuple[int, int]:
        opens = data.draw(st.integers(0, 1439))
        return opens, data.draw(st.integers(opens + 1, 1440))

    table = a_timetable(hours=[Hours(weekday, *some_hours()) for weekday in range(1, 8)], step_minutes=20)
    opens, closes = some_hours()
    kind = data.draw(st.sampled_from(["off", "extra"]))
    differs = Deviation(kind=kind, from_date=MONDAY, to_date=MONDAY + DAY, opens=opens, closes=closes)
    before = set(hours.starts(table, BERLIN, MONDAY - 7 * DAY, MONDAY + 7 * DAY))
    table = a_timetable(hours=table.hours, step_minutes=20, deviations=[differs])
    after = set(hours.starts(table, BERLIN, MONDAY - 7 * DAY, MONDAY + 7 * DAY))
    assert after <= before if kind == "off" else after >= before
    days = {start.at.astimezone(BERLIN).date() for start in after ^ before}
    # An appointment of the evening before may have ended in the hours that are off now.
    assert days <= {MONDAY - DAY, MONDAY, MONDAY + DAY}
    for start in after if kind == "off" else ():
        end = (start.at + start.service.duration_minutes * MINUTE).astimezone(BERLIN).replace(tzinfo=None)
        begin = start.at.astimezone(BERLIN).replace(tzinfo=None)
        for day in (MONDAY, MONDAY + DAY):
            midnight = datetime.combine(day, time())
            assert end <= midnight + opens * MINUTE or begin >= midnight + closes * MINUTE


def test_days_cut_anywhere_offer_the_same():
    table = a_timetable("22:00-24:00", "00:00-03:00", services=[CUT, Lasting(UUID(int=2), 120, 0)], step_minutes=20)
    first, days = date(2030, 3, 25), 14
    whole = list(hours.starts(table, BERLIN, first, first + days * DAY))
    pieces = [list(hours.starts(table, BERLIN, first + n * DAY, first + (n + 1) * DAY)) for n in range(days)]
    assert list(itertools.chain.from_iterable(pieces)) == whole


def test_the_name_of_a_slot_says_what_it_is():
    person, at = uuid4(), datetime(2030, 6, 3, 9, tzinfo=UTC)
    named = hours.slot_id(person, CUT, at)
    assert named == hours.slot_id(person, Lasting(CUT.id, 30, 0), at.astimezone(BERLIN))
    others = {
        hours.slot_id(uuid4(), CUT, at),
        hours.slot_id(person, Lasting(uuid4(), 30, 0), at),
        hours.slot_id(person, Lasting(CUT.id, 45, 0), at),
        hours.slot_id(person, Lasting(CUT.id, 30, 5), at),
        hours.slot_id(person, CUT, at + MINUTE),
    }
    assert len(others | {named}) == 6
    assert (named.version, named.variant) == (8, "specified in RFC 4122")
