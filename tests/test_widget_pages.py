"""The booking widget for whoever it is, and wherever it stands: languages, looks, and other people's pages."""

import re
import uuid
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from app.pages import assets
from tests import factories
from tests.browser import PHONE, Windows, another_site, assert_accessible, chromium, windows
from tests.service import Service, assert_slot_holds
from tests.visitor import (
    DAY,
    POLICY,
    Embed,
    book,
    bookings,
    day_button,
    embed,
    embedding,
    fill_in,
    heard,
    is_booked,
    make_salon,
    make_tour,
    operator,
    time_of,
)

__all__ = ["chromium", "embed", "operator", "windows"]


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


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_today_is_the_venues(operator: httpx.Client, windows: Windows, embed: Embed, zone: str) -> None:
    """Between these two it is never the same day, so that it is not the browser's in one of them."""
    [slot] = make_tour(operator, times=1, timezone=zone)
    factories.booking(operator, slot["id"])
    page = embed(windows(timezone_id="UTC"), slot["venue"])
    expect(page.get_by_text("Nothing is free any more")).to_be_visible()
    today = day_button(page, datetime.now(ZoneInfo(zone)))
    expect(today).to_have_attribute("aria-current", "date")
    expect(today).to_be_enabled()


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


def test_whoever_forgets_the_venue_is_told(windows: Windows, embed: Embed) -> None:
    window = windows()
    window.expects("the attribute venue is missing")
    expect(embed(window, "").locator("holdfast-booking")).to_have_text(
        "holdfast-booking: the attribute venue is missing"
    )


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
    assert [each["metadata"] for each in bookings(operator, slot["id"])] == [{"language": "en"}]


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
