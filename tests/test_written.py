"""Times and amounts as people read them: the server writes them just as the pages' scripts do."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser

from app import written
from app.pages import assets, language
from tests.browser import chromium

__all__ = ["chromium"]

DASH = "\N{EN DASH}"
#: Every weekday and month, both halves of a day, and hours of one digit and of two.
MOMENTS = [
    datetime(2026, 1 + n % 12, 1 + 2 * n % 28, hour, 5 * n % 60, tzinfo=UTC)
    for n, hour in enumerate((0, 1, 9, 10, 11, 12, 13, 21, 22, 23, 8, 7, 6, 5))
]
AMOUNTS = (0, 5, 150, 2500, -150, 99_999, 123_456, 1_234_567, 123_456_789)
#: What browsers of several years agree on, those that `Intl` shows without their coins among them.
CURRENCIES = ("EUR", "USD", "GBP", "CHF", "SEK", "PLN", "JPY", "KWD", "ISK", "HUF", "COP", "MGA", "CAD", "AUD", "INR")
READ = """
async ([script, language, moments, prices]) => {
  const { formats } = await import(script);
  const { time, moment, day, minutes, money } = formats(language, "UTC");
  const days = moments.map((at) => day(at.slice(0, 10)));
  return [moments.map(time), moments.map(moment), days, minutes(30), prices.map(money)];
}
"""


@pytest.mark.parametrize("of", written.LANGUAGES)
def test_the_server_writes_as_browsers_do(chromium: Browser, of: str) -> None:
    page = chromium.new_page()
    script = assets.all_assets()["written.js"].body.decode()
    page.route("**/*", lambda route: route.fulfill(body="<p>"))
    page.route("**/written.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    page.goto("http://written.example/")
    prices = [{"amount": amount, "currency": currency} for currency in CURRENCIES for amount in AMOUNTS]
    told = page.evaluate(READ, ["/written.js", of, [at.isoformat() for at in MOMENTS], prices])
    page.close()
    assert told == [
        [written.clock(of, at) for at in MOMENTS],
        [written.moment(of, at) for at in MOMENTS],
        [written.day(of, at) for at in MOMENTS],
        language.words(of)["minutes"].format(n=30),
        [written.money(of, **price) for price in prices],
    ]


def test_both_know_the_same_coins() -> None:
    script = assets.all_assets()["written.js"].body.decode()
    for name, currencies in (("NO_MINOR", written.ZERO_DECIMAL), ("THREE_DIGITS", written.THREE_DECIMAL)):
        assert f"{name} = /{'|'.join(sorted(currencies))}/" in script


@pytest.mark.parametrize(
    ("of", "full", "short"),
    [
        ("en", "Saturday, November 28, 2026 at 9:30 AM - 1:00 PM CET (Europe/Berlin)", "Sat, Nov 28, 2026, 9:30 AM"),
        ("de", "Samstag, 28. November 2026 um 09:30 - 13:00 CET (Europe/Berlin)", "Sa., 28. Nov. 2026, 09:30"),
        ("es", "sábado, 28 de noviembre de 2026, 09:30 - 13:00 CET (Europe/Berlin)", "sáb, 28 nov 2026, 09:30"),
        ("fr", "samedi 28 novembre 2026 à 09:30 - 13:00 CET (Europe/Berlin)", "sam. 28 nov. 2026, 09:30"),
    ],
)
def test_with_the_year(of: str, full: str, short: str) -> None:
    starts_at = datetime(2026, 11, 28, 8, 30, tzinfo=UTC)
    told = written.span_in_zone(of, starts_at, starts_at + timedelta(hours=3.5), "Europe/Berlin")
    assert told.replace(DASH, "-") == full
    assert written.short_moment(of, starts_at.astimezone(ZoneInfo("Europe/Berlin"))) == short


@pytest.mark.parametrize(
    ("start", "hours", "zone", "said"),
    [
        ("2026-10-25T00:30", 1, "Europe/Berlin", "October 25, 2026 at 2:30 AM CEST - 2:30 AM CET (Europe/Berlin)"),
        ("2026-10-25T01:30", 1, "Europe/Berlin", "October 25, 2026 at 2:30 AM - 3:30 AM CET (Europe/Berlin)"),
        ("2026-03-29T00:30", 1, "Europe/Berlin", "March 29, 2026 at 1:30 AM CET - 3:30 AM CEST (Europe/Berlin)"),
        ("2026-07-01T22:00", 3, "America/New_York", "July 1, 2026 at 6:00 PM - 9:00 PM EDT (America/New_York)"),
        ("2026-07-01T02:00", 3, "America/New_York",
         "June 30, 2026 at 10:00 PM - Wednesday, July 1, 2026 at 1:00 AM EDT (America/New_York)"),
        ("2026-07-01T02:00", 1, "Asia/Kathmandu", "July 1, 2026 at 7:45 AM - 8:45 AM UTC+0545 (Asia/Kathmandu)"),
        ("2026-07-01T02:00", 1, "UTC", "July 1, 2026 at 2:00 AM - 3:00 AM UTC (UTC)"),
    ],
)  # fmt: skip
def test_it_is_told_by_whose_clocks(start: str, hours: int, zone: str, said: str) -> None:
    starts_at = datetime.fromisoformat(start).replace(tzinfo=UTC)
    told = written.span_in_zone("en", starts_at, starts_at + timedelta(hours=hours), zone)
    assert told.replace(DASH, "-").endswith(said)


@pytest.mark.parametrize(
    ("amount", "currency", "said"),
    [
        (5, "usd", "$0.05"),
        (-150, "EUR", "-€1.50"),
        (1200, "JPY", "¥1,200"),
        (12345, "KWD", "KWD\N{NO-BREAK SPACE}12.345"),
        (7, "BHD", "BHD\N{NO-BREAK SPACE}0.007"),
        (500, "ISK", "ISK\N{NO-BREAK SPACE}5.00"),
        (100_000_000_000_000, "EUR", "€1,000,000,000,000.00"),
    ],
)
def test_amounts_have_the_decimals_of_their_currency(amount: int, currency: str, said: str) -> None:
    assert written.money("en", amount, currency) == said
