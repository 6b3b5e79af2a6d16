"""How times and amounts are written for people, in their language.

Just as browsers' `Intl` has it, which the pages' scripts ask (`static/written.js`): so a page says the same with and
without JavaScript, and so do the e-mails after it. The process's locale is the server's, and of no use here.

Not Babel, of which 36 MB would be installed for four languages: its skeletons shorten weekdays (`MMMMEEEEd` gives
`Sat, November 28`), its currencies stand without a space (`KWD12.345`), and Spanish thousands get a point. Browsers
write none of it so.
"""

from collections.abc import Mapping
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

#: Stripe counts these in whole units. ISK and UGX have no minor unit either, and yet Stripe counts them in hundredths.
ZERO_DECIMAL = frozenset(
    ("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF")
)
THREE_DECIMAL = frozenset(("BHD", "JOD", "KWD", "OMR", "TND"))
#: The first is for everybody whose language is not there.
LANGUAGES = ("en", "de", "es", "fr")
_TO = " \N{EN DASH} "


class _Way(msgspec.Struct, frozen=True):
    """How a language writes: names, and the orders that they stand in."""

    weekdays: list[str]
    months: list[str]
    short_weekdays: list[str]
    short_months: list[str]
    date: str
    day: str
    day_of_year: str
    short_day: str
    moment: str
    twelve_hours: bool
    point: str
    thousands: str
    #: Shorter numbers are written without `thousands`.
    grouped_from: int
    money: str
    #: Currencies without one go by their code.
    symbols: dict[str, str]


@cache
def _ways() -> dict[str, _Way]:
    return msgspec.json.decode(Path(__file__).with_name("written.json").read_bytes(), type=dict[str, _Way])


def language_of(metadata: Mapping[str, Any]) -> str:
    """Tell in which language somebody booked: our pages say so in the booking's metadata, others may."""
    said = metadata.get("language")
    return said if said in LANGUAGES else LANGUAGES[0]


# -- times, by the clocks of the zone that they are given in ----------------------------------------------------------


def clock(language: str, at: datetime) -> str:
    """Tell what a clock shows: `9:30 AM`, `09:30`."""
    if _ways()[language].twelve_hours:
        return f"{at.hour % 12 or 12}:{at:%M} {'AM' if at.hour < 12 else 'PM'}"
    return f"{at:%H:%M}"


def weekday(language: str, at: date) -> str:
    return _ways()[language].weekdays[at.weekday()]


def day_of_month(language: str, at: date) -> str:
    """Tell a date: `November 28`, `28. November`."""
    way = _ways()[language]
    return way.date.format(day=at.day, month=way.months[at.month - 1])


def day(language: str, at: date, *, year: bool = False) -> str:
    """Tell a day: `Saturday, November 28`, `samedi 28 novembre`."""
    way = _ways()[language]
    form = way.day_of_year if year else way.day
    return form.format(weekday=weekday(language, at), day=at.day, month=way.months[at.month - 1], year=at.year)


def moment(language: str, at: datetime, *, year: bool = False) -> str:
    """Tell a day and a time: `Saturday, November 28 at 9:30 AM`."""
    return _ways()[language].moment.format(day=day(language, at, year=year), clock=clock(language, at))


def short_moment(language: str, at: datetime) -> str:
    """Tell it where there is little room, such as in a subject: `Sat, Nov 28, 2026, 9:30 AM`."""
    way = _ways()[language]
    names = {"weekday": way.short_weekdays[at.weekday()], "month": way.short_months[at.month - 1]}
    return f"{way.short_day.format(**names, day=at.day, year=at.year)}, {clock(language, at)}"


def span(language: str, starts_at: datetime, ends_at: datetime) -> str:
    """Tell from when to when: `Saturday, November 28 at 9:30 AM - 11:00 AM`."""
    same_day = starts_at.date() == ends_at.date()
    return moment(language, starts_at) + _TO + (clock if same_day else moment)(language, ends_at)


def span_in_zone(language: str, starts_at: datetime, ends_at: datetime, timezone: str) -> str:
    """Tell it to somebody far from the venue, and long before: with the year, and by whose clocks."""
    start, end = (at.astimezone(ZoneInfo(timezone)) for at in (starts_at, ends_at))
    first, last = moment(language, start, year=True), clock(language, end)
    if start.utcoffset() != end.utcoffset():
        # A clock is put forward or back in between: 02:30 alone would not say which.
        first = f"{first} {_zone(start)}"
    if start.date() != end.date():
        last = moment(language, end, year=True)
    return f"{first}{_TO}{last} {_zone(end)} ({timezone})"


def _zone(at: datetime) -> str:
    name = at.tzname() or ""
    # Zones without a name of their own are called by their offset: +03 alone reads like a number.
    return f"UTC{name}" if name.startswith(("+", "-")) else name


# -- amounts ----------------------------------------------------------------------------------------------------------


def money(language: str, amount: int, currency: str) -> str:
    """Tell an amount in minor units, as Stripe counts them: `€12.50`, `12,50 €`."""
    way, currency = _ways()[language], currency.upper()
    decimals = 0 if currency in ZERO_DECIMAL else 3 if currency in THREE_DECIMAL else 2
    # Digits, never floats: an amount is exact.
    digits = f"{abs(amount):0{decimals + 1}}"
    whole, part = (digits[:-decimals], digits[-decimals:]) if decimals else (digits, "")
    if len(whole) >= way.grouped_from:
        whole = f"{int(whole):,}".replace(",", way.thousands)
    symbol = way.symbols.get(currency, currency)
    if way.money.startswith("{symbol}") and symbol[-1].isalpha():
        symbol += "\N{NO-BREAK SPACE}"  # letters do not touch the number
    sign = "-" if amount < 0 else ""
    return sign + way.money.format(symbol=symbol, number=f"{whole}{way.point if part else ''}{part}")
