"""A page with the booking widget on it, what a visitor does there, and what there is to book. The fixtures are imported
by name.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tests import factories
from tests.browser import Window
from tests.service import Service, eventually

#: Far from midnight, by the clocks of the venues too.
DAY = factories.START.replace(hour=8) + timedelta(days=1)
_numbers = itertools.count(1)
#: What the widget asks for with others' pages around it: docs/widget.md tells them so.
POLICY = "default-src 'none'; script-src {service}; connect-src {service}; img-src data:; form-action 'none'"
#: Keeps what the page around the widget hears, as a page's own script would.
LISTENER = """
window.heard = [];
for (const name of ["availability-loaded", "slot-held", "slot-conflict", "hold-expired", "booking-confirmed",
    "checkout-started", "waiting-list-joined"]) {
  addEventListener(name, (event) => window.heard.push([name, event.detail]));
}
"""


@pytest.fixture
def operator(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis, operator=True) as operator:
        yield operator


@dataclass
class Salon:
    """A venue with two people who both cut hair, from nine to noon every day."""

    slug: str
    people: list[dict[str, Any]]
    service: dict[str, Any]


def make_salon(operator: httpx.Client, *, names: tuple[str, ...] = ("Anna", "Ben"), **venue: Any) -> Salon:
    slug = factories.venue(operator, name="Salon", **venue)["slug"]
    people = [factories.resource(operator, slug, name=name, kind="person") for name in names]
    cut = {"venue": slug, "name": "Haircut", "duration_minutes": 30, "resource_ids": [each["id"] for each in people]}
    service = factories.made(operator.post("/v1/services", json=cut))
    hours = [{"weekday": day, "from": "09:00", "to": "12:00"} for day in range(1, 8)]
    for person in people:
        schedule = {"resource_id": person["id"], "service_ids": [service["id"]], "weekly": hours, "step_minutes": 30}
        factories.made(operator.post("/v1/schedules", json={**schedule, "from_date": tomorrow(), "horizon_days": 3}))
    return Salon(slug, people, service)


def tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).date().isoformat()


def make_tour(
    operator: httpx.Client, *, capacity: int = 1, times: int = 4, price: dict[str, Any] | None = None, **venue: Any
) -> list[dict[str, Any]]:
    """Make a venue with nothing but a tour, whose times follow each other on `DAY`; returns the slots."""
    of = factories.resource(operator, factories.venue(operator, **venue)["slug"], name="City walk")
    eight = (DAY - factories.START) / timedelta(hours=1)
    return [factories.slot(operator, of, hours=eight + 2 * n, capacity=capacity, price=price) for n in range(times)]


Embed = Callable[..., Page]


@pytest.fixture
def embed(with_redis: Service) -> Embed:
    """Open a page with nothing on it but the widget, of the service's own origin."""
    return partial(open_page, with_redis.url)


def open_page(
    service: str,
    window: Window,
    venue: str,
    attributes: str = "",
    *,
    lang: str = "en",
    style: str = "",
    inside: str = "",
) -> Page:
    url = f"{service}/embed/{next(_numbers)}"
    policy = POLICY.format(service=service)
    if style:
        policy += "; style-src 'unsafe-inline'"  # the page's own sheet
    html = embedding(service, venue, attributes, lang=lang, style=style, inside=inside)
    headers = {"Content-Security-Policy": policy}
    window.context.route(url, lambda route: route.fulfill(body=html, content_type="text/html", headers=headers))
    window.context.add_init_script(LISTENER)
    return window.page(url)


def embedding(service: str, venue: str, attributes: str, *, lang: str = "en", style: str = "", inside: str = "") -> str:
    return (
        f'<!doctype html><html lang="{lang}"><head><title>Somebody</title><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"{style and f'<style>{style}</style>'}"
        f'<script type="module" src="{service}/widget.js"></script></head><body><main><h1>Somebody</h1>'
        f'<holdfast-booking venue="{venue}" {attributes}>{inside}</holdfast-booking></main></body></html>'
    )


def detain(where: Page | BrowserContext, url: str, method: str) -> list[Route]:
    """Let requests of a method wait, until the test lets them go on."""
    detained: list[Route] = []

    def wait(route: Route) -> None:
        if route.request.method != method:
            return route.continue_()
        return detained.append(route)

    where.route(url, wait)
    return detained


def first_of(page: Page, detained: list[Route]) -> Route:
    eventually(lambda: bool(page.title() and detained), "the request")  # asking the page lets its requests be heard
    return detained[0]


def heard(page: Page, name: str) -> list[dict[str, Any]]:
    return [detail for each, detail in page.evaluate("window.heard") if each == name]


def time_of(page: Page, slot: dict[str, Any]) -> Locator:
    """Find the button of a slot."""
    return page.locator(f'button[data-at="{slot["starts_at"]}"]')


def fill_in(page: Page, name: str = "Ada Lovelace") -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("E-mail").fill("ada@example.com")


def book(page: Page) -> None:
    page.get_by_role("button", name="Book now").click()


def is_booked(page: Page) -> None:
    expect(page.get_by_role("heading", name="Booked")).to_be_visible()


def bookings(operator: httpx.Client, slot_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = operator.get("/v1/bookings", params={"slot_id": slot_id}).json()["data"]
    return found


def day_button(page: Page, day: datetime) -> Locator:
    """Find a day of the month that is shown."""
    return page.locator("calendar-month").get_by_role("button", name=f"{day:%B} {day.day}", exact=True)
