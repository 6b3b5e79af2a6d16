"""The booking widget as a visitor uses it, on pages of ours and of others (CARD-6, S2-5, S2-6, S4-8)."""

import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

import httpx
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from app.pages import assets
from tests import factories
from tests.browser import DESKTOP, PHONE, Window, Windows, another_site, assert_accessible, chromium, windows
from tests.redis_servers import RedisServer, running_redis
from tests.service import Postgres, Service, assert_slot_holds, eventually, serving
from tests.shop import Shop, running_shop

__all__ = ["chromium", "windows"]

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


# -- the whole way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_an_appointment_is_booked(
    with_redis: Service,
    operator: httpx.Client,
    windows: Windows,
    embed: Embed,
    size: dict[str, int],
    scheme: Literal["light", "dark"],
) -> None:
    salon = make_salon(operator)
    another = {
        "venue": salon.slug,
        "name": "Beard trim",
        "duration_minutes": 15,
        "resource_ids": [salon.people[0]["id"]],
    }
    factories.made(operator.post("/v1/services", json=another))
    window = windows(size=size, scheme=scheme)
    page = embed(window, salon.slug)
    expect(page.get_by_role("heading", name="What would you like to book?")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="Haircut").click()
    assert_accessible(page)
    page.get_by_role("button", name="Anyone").click()
    expect(page.get_by_role("button", name="11:30")).to_be_visible()
    expect(page.locator("calendar-month")).to_be_visible()
    expect(page.get_by_text("Times in Europe/Berlin")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="10:00").click()
    expect(page.get_by_text("Held for you")).to_be_visible()
    assert_accessible(page)
    book(page)
    expect(page.get_by_text("Please enter your name")).to_be_visible()
    expect(page.get_by_label("Name")).to_be_focused()
    assert_accessible(page)
    fill_in(page)
    book(page)
    is_booked(page)
    assert_accessible(page)
    [confirmed] = heard(page, "booking-confirmed")
    assert confirmed["slot"]["service"]["name"] == "Haircut"
    assert len(heard(page, "slot-held")) == 1
    assert len(heard(page, "availability-loaded")) == 1
    assert_slot_holds(with_redis, confirmed["slot"]["id"], 1, 1)
    [booking] = bookings(operator, confirmed["slot"]["id"])
    assert (booking["id"], booking["customer"]["email"]) == (confirmed["booking_id"], "ada@example.com")
    expect(page.get_by_text(booking["id"])).to_be_visible()
    assert window.context.cookies() == []
    manage = page.get_by_role("link", name="Change or cancel").get_attribute("href") or ""
    at, _, token = manage.partition("#")
    assert at == f"{with_redis.url}/manage/{booking['id']}"
    assert (
        httpx.get(f"{with_redis.url}/v1/bookings/{booking['id']}", headers={"Manage-Token": token}).status_code == 200
    )


def test_the_calendar_file_names_the_booking(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [slot] = make_tour(operator, times=1, name="Müller; Söhne, & Co")
    page = embed(windows(), slot["venue"])
    time_of(page, slot).click()
    fill_in(page)
    book(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Add to calendar").click()
    assert download.value.suggested_filename == "booking.ics"
    text = download.value.path().read_text().replace("\r\n ", "")
    [booking] = bookings(operator, slot["id"])
    assert f"UID:{booking['id']}@holdfast" in text
    assert "SUMMARY:City walk · Müller\\; Söhne\\, & Co" in text
    assert f"DTSTART:{re.sub('[-:]', '', slot['starts_at'])}" in text


def test_several_places_of_an_event(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    slots = make_tour(operator, capacity=5, times=2)
    factories.booking(operator, slots[0]["id"], 3)
    page = embed(windows(size=PHONE), slots[0]["venue"])
    expect(time_of(page, slots[0])).to_contain_text("2 places left")
    expect(time_of(page, slots[1])).to_contain_text("5 places left")
    more = page.get_by_role("button", name="One place more")
    more.click()
    more.click()
    expect(time_of(page, slots[0])).to_have_attribute("aria-disabled", "true")
    time_of(page, slots[1]).click()
    expect(page.get_by_text("Places: 3")).to_be_visible()
    fill_in(page)
    book(page)
    is_booked(page)
    assert_slot_holds(with_redis, slots[1]["id"], 5, 3)


def test_the_month_tells_on_which_days_something_is_free(
    operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    slot, *_ = make_tour(operator, times=1, capacity=2)
    page = embed(windows(), slot["venue"])
    next_day = DAY + timedelta(days=1)
    neighbour = next_day if next_day.month == DAY.month else DAY - timedelta(days=1)
    free, other = (day_button(page, day) for day in (DAY, neighbour))
    is_free = re.compile(r"\bfree\b")
    expect(free).to_have_attribute("part", is_free)
    expect(other).not_to_have_attribute("part", is_free)
    factories.booking(operator, slot["id"])
    page.get_by_role("button", name="One place more").click()
    expect(free).not_to_have_attribute("part", is_free)
    other.click()
    expect(page.get_by_text("Nothing is free on this day")).to_be_visible()
    page.get_by_role("button", name="One place fewer").click()
    expect(free).to_have_attribute("part", is_free)


def test_a_day_that_is_sold_out_has_its_waiting_list(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [slot] = make_tour(operator, times=1)
    factories.booking(operator, slot["id"])
    page = embed(windows(), slot["venue"])
    expect(page.get_by_text("Nothing is free any more")).to_be_visible()
    expect(page.locator("calendar-month")).to_be_visible()
    if not day_button(page, DAY).is_visible():
        page.get_by_role("button", name="Next month").click()
    day_button(page, DAY).click()
    time_of(page, slot).click()
    expect(page.get_by_role("heading", name="Waiting list")).to_be_visible()


def day_button(page: Page, day: datetime) -> Locator:
    """Find a day of the month that is shown."""
    return page.locator("calendar-month").get_by_role("button", name=f"{day:%B} {day.day}", exact=True)


def test_an_update_swallows_no_click(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    """The button that is pressed stays, whatever changes around it; and so does the focus on it."""
    slots = make_tour(operator, capacity=3)
    page = embed(windows(), slots[0]["venue"])
    pressed = time_of(page, slots[1])
    pressed.hover()
    page.mouse.down()
    for slot in slots:
        factories.booking(operator, slot["id"])
        expect(time_of(page, slot)).to_contain_text("2 places left")
    expect(pressed).to_be_focused()
    page.mouse.up()
    expect(page.get_by_text("Held for you")).to_be_visible()
    [held] = heard(page, "slot-held")
    assert held["slot"]["id"] == slots[1]["id"]


def test_what_the_visitor_chooses_is_not_overridden(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    """The first free day is found after another one was chosen; and the way to it stays where it is in an update."""
    slot, *_ = make_tour(operator)
    window = windows()
    finding = detain(window.context, re.compile(r"/v1/slots\?(?!.*from=).*limit=1(&|$)"), "GET")
    page = embed(window, slot["venue"])
    first = first_of(page, finding)
    page.locator("calendar-month button[part~=today]").click()
    way = page.get_by_role("button", name="Next free day")
    way.focus()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response(first.request.url):
        first.continue_()
    with page.expect_response(re.compile(r"/v1/slots\?.*limit=100")):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(way).to_be_focused()
    expect(page.get_by_text("Nothing is free on this day")).to_be_visible()
    assert [url for url in asked if re.search("limit=1(&|$)", url)] == []


def test_who_gave_up_reading_can_read_again(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    slot, *_ = make_tour(operator)
    window = windows()
    window.expects("503")
    window.context.route("**/v1/slots?**", lambda each: each.fulfill(status=503, body="{}"))
    page = embed(window, slot["venue"])
    page.get_by_role("button", name="Stop trying").click()
    again = page.get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    window.context.unroute("**/v1/slots?**")
    again.click()
    expect(time_of(page, slot)).to_be_visible()


def test_a_waiting_list_that_ends_in_a_refusal_can_be_joined_again(
    operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    """The slot is free by now, but this visitor may hold no more."""
    slot, *_ = make_tour(operator)
    factories.booking(operator, slot["id"])
    window = windows()
    window.expects("409")
    page = embed(window, slot["venue"])
    for path, code in (("waiting-list", "slot_available"), ("holds", "hold_limit")):
        body = json.dumps({"code": code, "detail": "No"})
        page.route(f"**/v1/{path}", partial(Route.fulfill, status=409, body=body, content_type="application/json"))
    time_of(page, slot).click()
    fill_in(page)
    join = page.get_by_role("button", name="Put me on the list")
    join.click()
    expect(page.get_by_role("alert")).to_contain_text("holding several places already")
    expect(join).to_be_enabled()
    expect(join).to_be_focused()


def test_as_a_button_with_a_dialog(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [slot] = make_tour(operator, times=1)
    page = embed(windows(), slot["venue"], 'mode="button" prefill=\'{"name": "Grace", "email": "grace@example.com"}\'')
    page.get_by_role("button", name="Book").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    time_of(page, slot).click()
    assert_accessible(page)
    expect(page.get_by_label("Name")).to_have_value("Grace")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    eventually(lambda: operator.get(f"/v1/slots/{slot['id']}").json()["available"] == 1, "the hold to be given back")
    page.get_by_role("button", name="Book").click()
    time_of(page, slot).click()
    book(page)
    is_booked(page)


# -- losing gracefully ------------------------------------------------------------------------------------------------


def test_s2_5_the_second_window_sees_the_last_place_go(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    slot, *_ = make_tour(operator)
    first, second = (embed(windows(size=size), slot["venue"]) for size in (DESKTOP, PHONE))
    expect(time_of(second, slot)).not_to_have_attribute("aria-disabled", "true")
    time_of(first, slot).click()
    expect(time_of(second, slot)).to_contain_text("Held")
    assert_accessible(second)
    first.get_by_role("button", name="Back").click()
    expect(time_of(second, slot)).not_to_contain_text("Held")
    time_of(first, slot).click()
    fill_in(first)
    book(first)
    is_booked(first)
    expect(time_of(second, slot)).to_contain_text("Sold out")
    assert_accessible(second)
    assert second.evaluate("performance.getEntriesByType('navigation').length") == 1
    assert_slot_holds(with_redis, slot["id"], 1, 1)


def snatch(page: Page, operator: httpx.Client, slot: dict[str, Any]) -> None:
    """Let somebody else book a slot in the very moment in which this page asks to hold it."""

    def before(route: Route) -> None:
        if slot["id"] in (route.request.post_data or "") and not bookings(operator, slot["id"]):
            factories.booking(operator, slot["id"])
        route.continue_()

    page.route("**/v1/holds", before)


def test_s4_8_whoever_was_slower_gets_alternatives_and_keeps_his_details(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    slots = make_tour(operator)
    window = windows(size=PHONE, scheme="dark")
    window.expects("409")
    page = embed(window, slots[0]["venue"])
    time_of(page, slots[3]).click()
    fill_in(page, "Grace Hopper")
    page.get_by_role("button", name="Back").click()
    snatch(page, operator, slots[0])
    time_of(page, slots[0]).click()
    expect(page.get_by_role("alert")).to_contain_text("Somebody was faster")
    expect(page.get_by_role("alert")).to_be_in_viewport()
    expect(time_of(page, slots[0])).to_contain_text("Sold out")
    alternatives = page.get_by_role("group", name="These are still free").get_by_role("button")
    expect(alternatives).to_have_count(3)
    expect(alternatives.first).to_be_focused()
    assert_accessible(page)
    [conflict] = heard(page, "slot-conflict")
    assert (conflict["slot"]["id"], conflict["reason"]) == (slots[0]["id"], "booked")
    alternatives.first.click()
    expect(page.get_by_label("Name")).to_have_value("Grace Hopper")
    expect(page.get_by_role("alert")).to_be_empty()
    book(page)
    is_booked(page)
    [confirmed] = heard(page, "booking-confirmed")
    assert confirmed["slot"]["id"] == conflict["alternatives"][0]["id"]
    assert_slot_holds(with_redis, slots[0]["id"], 1, 1)
    assert_slot_holds(with_redis, confirmed["slot"]["id"], 1, 1)


def test_to_whom_anyone_will_do_a_colleague_is_as_good(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    salon = make_salon(operator)
    window = windows()
    window.expects("409")
    page = embed(window, salon.slug)
    asked: list[str] = []

    def before(route: Route) -> None:
        asked.append(json.loads(route.request.post_data or "{}")["slot_id"])
        if len(asked) == 1:
            factories.booking(operator, asked[0])
        route.continue_()

    page.route("**/v1/holds", before)
    page.get_by_role("button", name="Anyone").click()
    page.get_by_role("button", name="10:00").click()
    expect(page.get_by_text("Held for you")).to_be_visible()
    assert len(set(asked)) == 2
    assert heard(page, "slot-conflict") == []


def test_a_hold_that_was_lost_is_told_when_booking(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    """An operator gives the hold to somebody else, as it may happen when a store loses its memory."""
    slots = make_tour(operator)
    window = windows()
    window.expects("409|410|404")
    page = embed(window, slots[0]["venue"])
    time_of(page, slots[0]).click()
    fill_in(page)
    [held] = heard(page, "slot-held")
    assert operator.delete(f"/v1/holds/{held['hold_id']}").status_code == 204
    factories.booking(operator, slots[0]["id"])
    book(page)
    page.get_by_role("button", name="Hold it again").click()
    alternatives = page.get_by_role("group", name="These are still free")
    alternatives.get_by_role("button").first.click()
    expect(page.get_by_label("Name")).to_have_value("Ada Lovelace")
    book(page)
    is_booked(page)


def test_an_expired_hold_is_taken_again(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    [slot] = make_tour(operator, times=1, hold_ttl_seconds=6)
    page = embed(windows(size=PHONE), slot["venue"])
    time_of(page, slot).click()
    fill_in(page)
    again = page.get_by_role("button", name="Hold it again")
    expect(again).to_be_focused()
    expect(page.get_by_role("alert").filter(has_text="Your time is up")).to_be_visible()
    assert_accessible(page)
    [expired] = heard(page, "hold-expired")
    assert expired["slot"]["id"] == slot["id"]
    again.click()
    book(page)
    is_booked(page)
    assert_slot_holds(with_redis, slot["id"], 1, 1)


def test_more_time_until_there_is_no_more(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [patient], [strict] = (
        make_tour(operator, times=1, hold_ttl_seconds=50, hold_max_seconds=most) for most in (1_800, 50)
    )
    window = windows()
    window.expects("409")
    window.expects("503")
    page = embed(window, patient["venue"])
    time_of(page, patient).click()
    expect(page.get_by_text("Held for you")).to_be_visible()
    refuse(page, "/v1/holds/*/extend", 1, [])
    page.get_by_role("button", name="I need more time").click()
    expect(page.get_by_text("Very busy just now")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="You have more time")).to_be_attached()
    expect(page.locator("[part=hold]")).to_be_focused()
    [before] = heard(page, "slot-held")
    [after] = operator.get("/v1/holds", params={"venue": patient["venue"]}).json()["data"]
    assert datetime.fromisoformat(after["expires_at"]) > datetime.fromisoformat(before["expires_at"])
    page = embed(window, strict["venue"])
    time_of(page, strict).click()
    more = page.get_by_role("button", name="I need more time")
    more.click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be held any longer")
    expect(more).to_be_hidden()
    expect(page.locator("[part=hold]")).to_be_focused()


def test_more_time_for_a_hold_that_is_gone(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [slot] = make_tour(operator, times=1, hold_ttl_seconds=50)
    window = windows()
    window.expects("404|409|410")
    page = embed(window, slot["venue"])
    time_of(page, slot).click()
    more = page.get_by_role("button", name="I need more time")
    expect(more).to_be_visible()
    [held] = heard(page, "slot-held")
    assert operator.delete(f"/v1/holds/{held['hold_id']}").status_code == 204
    more.click()
    expect(page.get_by_role("button", name="Hold it again")).to_be_focused()


def test_ones_own_hold_is_never_in_the_way(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    slot, *_ = make_tour(operator)
    page = embed(windows(), slot["venue"])
    for _ in range(3):
        time_of(page, slot).click()
        expect(page.get_by_text("Held for you")).to_be_visible()
        page.get_by_role("button", name="Back").click()
    expect(time_of(page, slot)).not_to_have_attribute("aria-disabled", "true")
    time_of(page, slot).click()
    fill_in(page)
    book(page)
    is_booked(page)
    assert heard(page, "slot-conflict") == []
    assert_slot_holds(with_redis, slot["id"], 1, 1)


def test_who_presses_twice_holds_once(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    slots = make_tour(operator, capacity=5)
    page = embed(windows(), slots[0]["venue"])
    asked = detain(page, "**/v1/holds", "POST")
    for slot in (slots[0], slots[0], slots[1]):
        time_of(page, slot).click()
    first_of(page, asked).continue_()
    expect(page.get_by_text("Held for you")).to_be_visible()
    assert len(heard(page, "slot-held")) == 1
    held = operator.get("/v1/holds", params={"venue": slots[0]["venue"]}).json()["data"]
    assert [each["slot_id"] for each in held] == [slots[0]["id"]]


def test_what_stands_inside_is_seen_where_the_widget_does_not_load(
    operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    [slot] = make_tour(operator, times=1)
    window = windows()
    window.expects("Failed to load resource", "dynamically imported module")
    window.context.route("**/widget/words/**", lambda route: route.abort())
    page = embed(window, slot["venue"], inside="<a href='/book'>Book by link</a>")
    expect(page.get_by_role("link", name="Book by link")).to_be_visible()


def test_closing_the_page_gives_the_hold_back(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [slot] = make_tour(operator, times=1)
    page = embed(windows(), slot["venue"])
    time_of(page, slot).click()
    expect(page.get_by_text("Held for you")).to_be_visible()
    assert operator.get(f"/v1/slots/{slot['id']}").json()["available"] == 0
    page.close(run_before_unload=True)
    eventually(lambda: operator.get(f"/v1/slots/{slot['id']}").json()["available"] == 1, "the hold to be given back")


def test_what_is_sold_out_is_waited_for(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    slot, other, *_ = make_tour(operator)
    for each in (slot, other):
        factories.booking(operator, each["id"])
    window = windows(size=PHONE, scheme="dark")
    window.expects("409")
    page = embed(window, slot["venue"])
    time_of(page, slot).click()
    expect(page.get_by_role("heading", name="Waiting list")).to_be_focused()
    join = page.get_by_role("button", name="Put me on the list")
    join.click()
    expect(page.get_by_label("Name")).to_be_focused()
    fill_in(page)
    assert_accessible(page)
    join.click()
    expect(page.get_by_role("status").filter(has_text="You are number 1 in line")).to_be_visible()
    assert_accessible(page)
    waiting = operator.get("/v1/waiting-list", params={"slot_id": slot["id"]}).json()["data"]
    assert [each["customer"]["email"] for each in waiting] == ["ada@example.com"]
    [joined] = heard(page, "waiting-list-joined")
    assert (joined["slot"]["id"], joined["position"]) == (slot["id"], 1)
    page.get_by_role("button", name="Back").last.click()
    time_of(page, other).click()
    [booking] = bookings(operator, other["id"])
    assert operator.post(f"/v1/bookings/{booking['id']}/cancel").status_code == 200
    join.click()  # it is free by now
    expect(page.get_by_text("Held for you")).to_be_visible()


# -- patience ---------------------------------------------------------------------------------------------------------


def refuse(page: Page, path: str, times: int, keys: list[str], status: int = 503) -> None:
    """Answer so many requests as a service does that is busy; the others reach it."""

    def answer(route: Route) -> None:
        keys.append(route.request.headers.get("idempotency-key", ""))
        if len(keys) > times:
            return route.continue_()
        body = json.dumps({"code": "busy", "detail": "Busy", "effect": "none"})
        return route.fulfill(status=status, body=body, headers={"Retry-After": "1", "Content-Type": "application/json"})

    page.route(f"**{path}", answer)


@pytest.mark.parametrize("status", [503, 429])
def test_busy_is_tried_again_with_the_same_key(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed, status: int
) -> None:
    [slot] = make_tour(operator, times=1)
    window = windows()
    window.expects(str(status))
    page = embed(window, slot["venue"])
    keys: list[str] = []
    time_of(page, slot).click()
    fill_in(page)
    refuse(page, "/v1/bookings", 2, keys, status)
    book(page)
    expect(page.get_by_role("status").filter(has_text="Very busy just now")).to_be_visible()
    expect(page.get_by_role("button", name="Back")).to_be_hidden()
    assert_accessible(page)
    is_booked(page)
    expect(page.get_by_text("Very busy just now")).to_be_hidden()
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert_slot_holds(with_redis, slot["id"], 1, 1)


def test_an_answer_that_was_lost_is_asked_for_again(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    """The booking is made, its answer never comes: the same key gets it."""
    [slot] = make_tour(operator, times=1)
    window = windows()
    window.expects("Failed to load resource")
    page = embed(window, slot["venue"])
    time_of(page, slot).click()
    fill_in(page)
    lost = lose_answers(page, 1)
    book(page)
    is_booked(page)
    assert lost == [201]
    assert_slot_holds(with_redis, slot["id"], 1, 1)


def lose_answers(page: Page, times: int) -> list[int]:
    """Let so many requests to book reach the service, whose answers never come; returns their statuses as they go."""
    lost: list[int] = []

    def lose(route: Route) -> None:
        if len(lost) == times:
            return route.continue_()
        lost.append(route.fetch().status)
        return route.abort()

    page.route("**/v1/bookings", lose)
    return lost


@pytest.mark.parametrize("is_known_as_the_same", [True, False], ids=["same request", "another request"])
def test_what_is_booked_unknowingly_is_not_booked_again(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed, is_known_as_the_same: bool
) -> None:
    """Until there is an answer nothing but the same request can be made; and what was booked all the same is told."""
    [slot] = make_tour(operator, times=1, capacity=3, hold_ttl_seconds=6)
    window = windows()
    window.expects("Failed to load resource")
    page = embed(window, slot["venue"])
    time_of(page, slot).click()
    fill_in(page)
    lost = lose_answers(page, 1_000)
    book(page)
    page.get_by_role("button", name="Stop trying").click()
    expect(page.get_by_role("alert")).to_contain_text("you will not be booked twice")
    expect(page.get_by_label("Name")).not_to_be_editable()
    expect(page.get_by_role("button", name="Back")).to_be_hidden()
    expect(page.get_by_text("Held for you")).to_be_hidden()
    assert_accessible(page)
    assert lost[0] == 201
    page.unroute("**/v1/bookings")
    if not is_known_as_the_same:
        as_another = {"idempotency-key": uuid.uuid4().hex}
        page.route("**/v1/bookings", lambda each: each.continue_(headers={**each.request.headers, **as_another}))
    book(page)
    is_booked(page)
    told = "Booked for Ada Lovelace" if is_known_as_the_same else "The e-mail to ada@example.com"
    expect(page.get_by_text(told)).to_be_visible()
    assert_accessible(page)
    [booking] = bookings(operator, slot["id"])
    assert [each["booking_id"] for each in heard(page, "booking-confirmed")] == [booking["id"]]
    assert heard(page, "hold-expired") == []
    assert_slot_holds(with_redis, slot["id"], 3, 1)


def test_a_dialog_closed_while_booking_shows_what_became_of_it(
    operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    [slot] = make_tour(operator, times=1)
    page = embed(windows(), slot["venue"], 'mode="button"')
    page.get_by_role("button", name="Book").click()
    time_of(page, slot).click()
    fill_in(page)
    asked = detain(page, "**/v1/bookings", "POST")
    book(page)
    first = first_of(page, asked)
    methods: list[str] = []
    page.on("request", lambda request: methods.append(request.method))
    page.keyboard.press("Escape")
    first.continue_()
    eventually(lambda: heard(page, "booking-confirmed") != [], "the booking")
    assert "DELETE" not in methods  # what may be booked by now is not given back
    page.get_by_role("button", name="Book").click()
    is_booked(page)


def test_a_late_look_at_a_hold_does_not_end_the_next(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    slots = make_tour(operator)
    window = windows()
    window.expects("404")
    page = embed(window, slots[0]["venue"])
    time_of(page, slots[0]).click()
    expect(page.get_by_text("Held for you")).to_be_visible()
    [held] = heard(page, "slot-held")
    looks = detain(page, f"**/v1/holds/{held['hold_id']}", "GET")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    look = first_of(page, looks)
    page.get_by_role("button", name="Back").click()
    time_of(page, slots[1]).click()
    fill_in(page)
    with page.expect_response(f"**/v1/holds/{held['hold_id']}"):
        look.fulfill(status=404, body="{}")
    book(page)
    is_booked(page)
    assert heard(page, "hold-expired") == []


def test_a_hold_that_was_long_in_coming_lives_from_its_answer(
    operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    [slot] = make_tour(operator, times=1)
    window = windows()
    window.expects("503")
    page = embed(window, slot["venue"])
    refuse(page, "/v1/holds", 1, [])
    time_of(page, slot).click()
    expect(page.get_by_text("Very busy just now")).to_be_visible()
    page.evaluate("{ const now = performance.now(); performance.now = () => now + 3_600_000 }")
    expect(page.get_by_role("timer")).not_to_have_text("0:00 left")
    fill_in(page)
    book(page)
    is_booked(page)
    assert heard(page, "hold-expired") == []


def test_nothing_is_followed_for_an_element_that_is_gone(
    operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    [slot] = make_tour(operator, times=1)
    window = windows()
    venue = f"**/v1/venues/{slot['venue']}"
    reads = detain(window.context, venue, "GET")
    page = embed(window, slot["venue"])
    streams: list[str] = []
    page.on("request", lambda request: streams.append(request.url) if "/v1/live" in request.url else None)
    read = first_of(page, reads)
    page.evaluate("window.gone = document.querySelector('holdfast-booking'); gone.remove()")
    with page.expect_response(venue):
        read.continue_()
    window.context.unroute(venue)
    page.evaluate("document.querySelector('main').append(gone)")
    expect(time_of(page, slot)).to_be_visible()
    assert len(streams) == 1


def test_trying_again_can_be_stopped(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    [slot] = make_tour(operator, times=1)
    window = windows()
    window.expects("503")
    page = embed(window, slot["venue"])
    time_of(page, slot).click()
    fill_in(page)
    keys: list[str] = []
    refuse(page, "/v1/bookings", 1_000, keys)
    book(page)
    page.get_by_role("button", name="Stop trying").click()
    expect(page.get_by_role("alert")).to_contain_text("you will not be booked twice")
    page.unroute("**/v1/bookings")
    book(page)
    is_booked(page)
    assert_slot_holds(with_redis, slot["id"], 1, 1)


def test_s2_6_without_live_updates_it_asks(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    slot, *_ = make_tour(operator)
    window = windows()
    window.expects("503")
    window.context.route("**/v1/live?**", lambda route: route.fulfill(status=503, body="{}"))
    page = embed(window, slot["venue"])
    expect(time_of(page, slot)).to_be_visible()
    factories.booking(operator, slot["id"])
    expect(time_of(page, slot)).to_contain_text("Sold out")


def test_redis_may_go_while_a_page_is_open(postgres: Postgres, windows: Windows) -> None:
    """No live updates, and holds that Postgres keeps: the visitor sees what others book, and books himself."""
    with (
        running_redis("--maxmemory-policy", "noeviction") as redis,
        serving(postgres.fresh(), redis.url, redis=redis, workers=1) as service,
        factories.client(service, operator=True) as operator,
    ):
        mine, others, *_ = make_tour(operator)
        window = windows()
        window.expects("503", "ERR_INCOMPLETE_CHUNKED_ENCODING")
        page = open_page(service.url, window, mine["venue"])
        expect(time_of(page, mine)).to_be_visible()
        redis.kill()
        factories.booking(operator, others["id"])
        expect(time_of(page, others)).to_contain_text("Sold out")
        time_of(page, mine).click()
        fill_in(page)
        book(page)
        is_booked(page)
        [(count,)] = service.query("SELECT available_count FROM slots WHERE id = %s", mine["id"])
        assert count == 0
        page.close()


def test_too_many_holds_are_told_as_such(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [slot] = make_tour(operator, times=1)
    window = windows()
    window.expects("409")
    body = json.dumps({"code": "hold_limit", "detail": "Too many"})
    window.context.route("**/v1/holds", lambda r: r.fulfill(status=409, body=body, content_type="application/json"))
    page = embed(window, slot["venue"])
    time_of(page, slot).click()
    expect(page.get_by_role("alert")).to_contain_text("holding several places already")


# -- paying -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(
    postgres: Postgres, bundled_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    with (
        running_shop(postgres.fresh(), bundled_redis_server, tmp_path_factory.mktemp("shop"), workers=1) as shop,
        shop.with_worker(),
    ):
        yield shop


def test_what_has_to_be_paid_is_booked_when_it_is_paid(shop: Shop, windows: Windows) -> None:
    with factories.client(shop.service, operator=True) as operator:
        slot_id = shop.slot(capacity=2, payment="required")
        slot = operator.get(f"/v1/slots/{slot_id}").json()
        page = open_page(shop.service.url, windows(size=PHONE), slot["venue"])
        time_of(page, slot).click()
        fill_in(page)
        page.get_by_role("button", name="Pay now").click()
        pay = page.get_by_role("link", name="Go to the payment page")
        expect(pay).to_be_visible()
        assert_accessible(page)
        [started] = heard(page, "checkout-started")
        assert pay.get_attribute("href") == started["checkout_url"]
        assert heard(page, "booking-confirmed") == []
        shop.stripe.pay(started["checkout_url"].rpartition("/")[2])
        is_booked(page)
        assert [each["booking_id"] for each in heard(page, "booking-confirmed")] == [started["booking_id"]]
        assert_slot_holds(shop.service, slot_id, 2, 1)


def test_online_payment_that_cannot_begin_leaves_the_other_way(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    """No payment is set up: the places come back, and can be booked to be paid there."""
    [slot] = make_tour(operator, times=1, price={"amount": 2500, "currency": "EUR"})
    window = windows()
    window.expects("502")
    page = embed(window, slot["venue"])
    time_of(page, slot).click()
    expect(page.get_by_text("€25.00")).to_be_visible()
    fill_in(page)
    page.get_by_role("button", name="Book and pay online").click()
    expect(page.get_by_role("alert")).to_contain_text("The payment could not be started")
    page.get_by_role("button", name="Book now, pay there").click()
    is_booked(page)
    assert_slot_holds(with_redis, slot["id"], 1, 1)


# -- whoever it is, and wherever --------------------------------------------------------------------------------------


def tab_to(page: Page, target: Locator) -> None:
    for _ in range(80):
        if target.evaluate("each => each.getRootNode().activeElement === each"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"the keyboard does not reach {target}")


def test_with_the_keyboard_alone(with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    salon = make_salon(operator)
    page = embed(windows(), salon.slug)
    person = page.get_by_role("button", name="Ben")
    expect(person).to_be_visible()
    tab_to(page, person)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="When?")).to_be_focused()
    month = page.locator("calendar-month")
    expect(month).to_be_visible()
    wanted = page.get_by_role("button", name="9:30")
    expect(wanted).to_be_visible()
    day = page.locator("h3#day-title").inner_text()
    while not month.evaluate("each => each.shadowRoot.activeElement !== null"):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("h3#day-title")).not_to_have_text(day)
    expect(wanted).to_be_visible()
    tab_to(page, wanted)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Your details")).to_be_focused()
    tab_to(page, page.get_by_label("Name"))
    page.keyboard.type("Ada Lovelace")
    page.keyboard.press("Tab")
    page.keyboard.type("ada@example.com")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Booked")).to_be_focused()
    [confirmed] = heard(page, "booking-confirmed")
    assert confirmed["slot"]["resource"]["name"] == "Ben"


@pytest.mark.parametrize(
    ("attribute", "page_lang", "locale", "title"),
    [
        ('lang="de-AT"', "en", "en-US", "Wann?"),
        ("", "fr", "en-US", "Quand ?"),
        ("", "it", "es-ES", "¿Cuándo?"),
        ("", "it", "pl-PL", "When?"),
    ],
)
def test_the_language_is_the_widgets_the_pages_or_the_browsers(
    operator: httpx.Client, windows: Windows, embed: Embed, attribute: str, page_lang: str, locale: str, title: str
) -> None:
    [slot] = make_tour(operator, times=1)
    page = embed(windows(locale=locale), slot["venue"], attribute, lang=page_lang)
    expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()


def test_all_languages_say_all(operator: httpx.Client) -> None:
    said = {
        path: re.findall(r"^(\w+):", asset.body.decode(), re.MULTILINE)
        for path, asset in assets.all_assets().items()
        if path.startswith("widget/words/")
    }
    assert len(said) == 4
    assert len(said["widget/words/en.js"]) > 50
    assert all(words == said["widget/words/en.js"] for words in said.values())


def test_times_by_the_visitors_clock(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [slot] = make_tour(operator, times=1)
    page = embed(windows(timezone_id="America/New_York", locale="en-GB"), slot["venue"], lang="en-GB")
    expect(page.get_by_text("Times in Europe/Berlin")).to_be_visible()
    there = time_of(page, slot).inner_text()
    page.get_by_role("button", name="Show my time (America/New York)").click()
    expect(page.get_by_text("Times in America/New York")).to_be_visible()
    expect(time_of(page, slot)).not_to_have_text(there)
    named = embed(windows(), slot["venue"], 'timezone="Asia/Tokyo"')
    expect(named.get_by_text("Times in Asia/Tokyo")).to_be_visible()


def test_a_page_gives_it_its_own_colours(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    [slot] = make_tour(operator, times=1)
    style = "holdfast-booking { --holdfast-accent: rgb(120, 0, 80); --holdfast-on-accent: rgb(255, 255, 255) }"
    style += "holdfast-booking::part(heading) { color: rgb(1, 2, 3) }"
    page = embed(windows(), slot["venue"], style=style)
    time_of(page, slot).click()
    expect(page.get_by_role("button", name="Book now")).to_have_css("background-color", "rgb(120, 0, 80)")
    expect(page.get_by_role("heading", name="Your details")).to_have_css("color", "rgb(1, 2, 3)")


def test_names_are_text(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    evil = "<img src=x onerror=window.hurt=1>"
    salon = make_salon(operator, names=(f"{evil}A", f"{evil}B"))
    operator.patch(f"/v1/venues/{salon.slug}", json={"name": evil})
    named = {"venue": salon.slug, "name": f"{evil}S", "duration_minutes": 30, "resource_ids": [salon.people[0]["id"]]}
    factories.made(operator.post("/v1/services", json=named))
    page = embed(windows(), salon.slug)
    expect(page.get_by_role("button", name=f"{evil}S")).to_be_visible()
    page.get_by_role("button", name="Haircut").click()
    page.get_by_role("button", name=f"{evil}A").click()
    page.get_by_role("button", name="10:00").click()
    expect(page.get_by_text(f"Haircut · {evil}A")).to_be_visible()
    fill_in(page, evil)
    book(page)
    is_booked(page)
    expect(page.get_by_text(f"Booked for {evil}")).to_be_visible()
    assert page.evaluate("window.hurt") is None
    assert page.locator("holdfast-booking img").count() == 0


def test_no_such_venue(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    window = windows()
    window.expects("404")
    page = embed(window, f"nobody-{uuid.uuid4().hex[:8]}")
    expect(page.get_by_role("alert").filter(has_text="no such place")).to_be_visible()


def test_a_clock_that_is_ahead_hides_no_free_day(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    slot, *_ = make_tour(operator)
    window = windows()
    window.context.clock.set_fixed_time(datetime.now(UTC) + timedelta(days=400))
    page = embed(window, slot["venue"])
    expect(time_of(page, slot)).to_be_visible()
    day = day_button(page, DAY)
    expect(day).to_be_enabled()
    expect(day).not_to_have_attribute("aria-disabled", "true")


def test_without_the_month_picker_there_is_the_browsers_own(
    operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    slot, *_ = make_tour(operator)
    window = windows()
    window.expects("Failed to load resource")
    window.context.route("**/vendor/cally/**", lambda route: route.abort())
    page = embed(window, slot["venue"])
    expect(time_of(page, slot)).to_be_visible()
    assert_accessible(page)
    page.get_by_label("Choose a day").fill((DAY - timedelta(days=1)).date().isoformat())
    expect(page.get_by_text("Nothing is free on this day")).to_be_visible()
    page.get_by_role("button", name="Next free day").click()
    expect(time_of(page, slot)).to_be_visible()


def test_it_is_small() -> None:
    """What a page loads: the widget and the words of one language; the vendored month picker is not counted."""
    loaded = [assets.all_assets()[path] for path in (assets.WIDGET, "widget/words/fr.js")]
    assert all(asset.gzipped for asset in loaded)
    assert sum(len(asset.gzipped or b"") for asset in loaded) < 20_000
    assert not re.search(rb"^ *(//|import |export )|/\*\*", loaded[0].body, re.MULTILINE)


# -- on other people's pages ------------------------------------------------------------------------------------------


def test_it_stands_on_another_site(with_redis: Service, operator: httpx.Client, windows: Windows) -> None:
    slot, *_ = make_tour(operator)
    policy = POLICY.format(service=with_redis.url)
    with another_site(policy) as (origin, pages):
        pages["/"] = embedding(with_redis.url, slot["venue"], "")
        assert operator.patch(f"/v1/venues/{slot['venue']}", json={"origins": [origin]}).status_code == 200
        window = windows()
        window.expects("CORS", "Failed to load resource")  # until the origins are read again, the widget tries again
        page = window.page(origin)
        expect(time_of(page, slot)).to_be_visible()
        other = factories.hold(operator, slot["id"])
        expect(time_of(page, slot)).to_contain_text("Held")  # its stream is open, too
        operator.delete(f"/v1/holds/{other['id']}")
        expect(time_of(page, slot)).not_to_contain_text("Held")
        time_of(page, slot).click()
        fill_in(page)
        page.get_by_role("button", name="Back").click()
        time_of(page, slot).click()
        book(page)
        is_booked(page)
        assert window.context.cookies() == []
    assert_slot_holds(with_redis, slot["id"], 1, 1)


def test_on_the_services_own_page(operator: httpx.Client, windows: Windows, with_redis: Service) -> None:
    slot, *_ = make_tour(operator, name="Müller & Söhne")
    page = windows(size=PHONE, scheme="dark").page(f"{with_redis.url}/book/{slot['venue']}")
    expect(page.get_by_role("heading", name="Müller & Söhne")).to_be_visible()
    time_of(page, slot).click()
    fill_in(page)
    assert_accessible(page)
    book(page)
    is_booked(page)
    assert_accessible(page)
    assert_slot_holds(with_redis, slot["id"], 1, 1)


def test_on_a_site_that_the_venue_does_not_name_it_reads_nothing(
    with_redis: Service, operator: httpx.Client, windows: Windows
) -> None:
    [slot] = make_tour(operator, times=1)
    policy = POLICY.format(service=with_redis.url)
    with another_site(policy) as (origin, pages):
        pages["/"] = embedding(with_redis.url, slot["venue"], "")
        window = windows()
        window.expects("CORS", "Failed to load resource")
        page = window.page(origin)
        expect(page.get_by_role("status").filter(has_text="No connection just now")).to_be_visible()
        expect(time_of(page, slot)).to_be_hidden()
