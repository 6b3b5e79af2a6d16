"""The owner's calendar in a browser: what others do appears by itself, and what is done here is done in the service."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests import factories
from tests.browser import DESKTOP, PHONE, Window, Windows, assert_accessible, chromium, sign_in, windows
from tests.service import OPERATOR_KEY, Service, eventually

__all__ = ["chromium", "windows"]

ZONE = ZoneInfo("Europe/Berlin")
#: A browser elsewhere: what it shows is the venue's time all the same.
ELSEWHERE = "America/New_York"
DAY = (datetime.now(ZONE) + timedelta(days=7)).date()
XSS = "<img src=x onerror=alert(1)> <b>Eve</b>"


@dataclass
class Salon:
    """Two people who cut hair on the hour from 9 to 17, on one day."""

    service: Service
    operator: httpx.Client
    venue: str
    anna: str
    ben: str
    #: The slots by person and hour.
    slots: dict[tuple[str, int], dict[str, Any]]

    def book(self, person: str, hour: int, name: str = "Ada Lovelace", **more: Any) -> dict[str, Any]:
        customer = {"name": name, "email": "ada@example.com", "phone": "+49 30 123456"}
        body = {"slot_id": self.slots[person, hour]["id"], "customer": customer, **more}
        with factories.client(self.service) as somebody:
            return factories.made(somebody.post("/v1/bookings", json=body))

    def slot_of(self, booking: dict[str, Any]) -> dict[str, Any]:
        now = self.operator.get(f"/v1/bookings/{booking['id']}").json()
        return next(slot for slot in self.slots.values() if slot["id"] == now["slot_id"])

    def status_of(self, person: str, hour: int) -> str:
        status: str = self.operator.get(f"/v1/slots/{self.slots[person, hour]['id']}").json()["status"]
        return status


@pytest.fixture(scope="module")
def make_salon(with_redis: Service) -> Iterator[Callable[..., Salon]]:
    with factories.client(with_redis, operator=True) as operator:

        def make(service: Service = with_redis, operator: httpx.Client = operator) -> Salon:
            venue = factories.venue(operator, name="Salon <i>", timezone=ZONE.key)["slug"]
            anna, ben = (
                factories.resource(operator, venue, name=name, kind="person")["id"] for name in ("Anna", "Ben")
            )
            cut = factories.made(
                operator.post("/v1/services", json={
                    "venue": venue, "name": "Haircut", "duration_minutes": 60, "resource_ids": [anna, ben],
                    "price": {"amount": 3500, "currency": "EUR"},
                })
            )  # fmt: skip
            keys = [(person, hour) for person in (anna, ben) for hour in range(9, 17)]
            bodies = [
                {
                    "venue": venue, "resource_id": person, "service_id": cut["id"], "capacity": 1,
                    "starts_at": at(hour).isoformat(), "ends_at": at(hour + 1).isoformat(),
                    "price": {"amount": 3500, "currency": "EUR"},
                }
                for person, hour in keys
            ]  # fmt: skip
            made = factories.made(operator.post("/v1/slots", json={"slots": bodies}))["data"]
            return Salon(service, operator, venue, anna, ben, dict(zip(keys, made, strict=True)))

        yield make


@pytest.fixture
def salon(make_salon: Callable[..., Salon]) -> Salon:
    return make_salon()


@pytest.fixture
def window(windows: Windows) -> Window:
    return windows(timezone_id=ELSEWHERE)


def at(hour: int) -> datetime:
    return datetime.combine(DAY, time(hour), ZONE)


def open_calendar(window: Window, salon: Salon, view: str | None = "people") -> Page:
    chosen = f"&view={view}" if view else ""
    page = window.page(f"{salon.service.url}/calendar?venue={salon.venue}&date={DAY}{chosen}")
    sign_in(page)
    expect(page.get_by_role("button", name="Block time…")).to_be_visible()
    expect(page.locator("#live")).to_have_text("Live")
    return page


def entry(page: Page, name: str | re.Pattern[str]) -> Locator:
    return page.locator("#calendar").get_by_role("button", name=name)


def sheet(page: Page) -> Locator:
    return page.get_by_role("dialog")


def point(page: Page, person: str, hour: float) -> tuple[float, float]:
    """Find where an hour of a person is on the screen, by an entry's place and the grid's measure: 72 px an hour."""
    column = page.locator(".ec-header .ec-col-head", has_text=person).bounding_box()
    label = page.locator(".ec-body .ec-sidebar time", has_text="12:00").bounding_box()
    assert column is not None
    assert label is not None
    noon = label["y"] + label["height"] / 2
    return column["x"] + column["width"] / 2, noon + (hour - 12) * 72


def drag(page: Page, begin: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*begin)
    page.mouse.down()
    page.mouse.move((begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2, steps=4)
    page.mouse.move(*end, steps=4)
    page.mouse.up()


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_who_is_not_signed_in_is_asked_to(salon: Salon, window: Window) -> None:
    page = window.page(f"{salon.service.url}/calendar?venue={salon.venue}")
    expect(page.get_by_label("Operator key")).to_be_visible()
    assert OPERATOR_KEY not in page.content()
    assert page.locator("#calendar").count() == 0


def test_a_booking_of_somebody_else_appears_by_itself(salon: Salon, window: Window) -> None:
    page = open_calendar(window, salon)
    expect(entry(page, "Ada")).to_have_count(0)
    booked = salon.book(salon.anna, 10)
    expect(entry(page, re.compile("10:00.*Ada Lovelace.*Haircut"))).to_be_visible()  # Berlin's time, seen from New York
    salon.operator.post(f"/v1/bookings/{booked['id']}/cancel")
    expect(entry(page, "Ada")).to_have_count(0)


def test_a_week_is_readable_on_a_phone(salon: Salon, windows: Windows) -> None:
    """It is scrolled sideways, beside the hours, and begins with the chosen day."""
    salon.book(salon.anna, 10)
    page = open_calendar(windows(size=PHONE), salon, "week")
    shown = entry(page, re.compile("Ada Lovelace"))
    expect(shown).to_be_in_viewport(ratio=0.9)
    assert (shown.bounding_box() or {"width": 0})["width"] > 90
    hour = page.locator(".ec-body .ec-sidebar time").filter(has_text="10:00")
    expect(hour).to_be_in_viewport()
    page.locator(".ec-main").evaluate("each => { each.scrollLeft = 0 }")
    expect(page.get_by_text(re.compile("^Mon"))).to_be_in_viewport()
    expect(hour).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hours_can_be_told_apart_where_time_is_free(
    salon: Salon, windows: Windows, scheme: Literal["light", "dark"]
) -> None:
    """WCAG 1.4.11, of which axe-core knows nothing."""
    page = open_calendar(windows(scheme=scheme), salon)
    expect(page.locator(".ec-bg-event").first).to_be_visible()
    lines = page.locator(".ec-body .ec-events").evaluate("each => getComputedStyle(each, '::after').backgroundImage")
    colour = "each => getComputedStyle(each).backgroundColor"
    for surface in (".ec-bg-event", ".ec-body .ec-day"):
        assert contrast(lines, page.locator(surface).first.evaluate(colour)) >= 3
    free, shut = (page.locator(each).first.evaluate(colour) for each in (".ec-bg-event", ".ec-body .ec-day"))
    assert contrast(free, shut) >= 1.2  # also without the lines


def contrast(one: str, other: str) -> float:
    """Tell that of two colours, each the first `rgb()` in a text, as WCAG 2 defines it."""

    def luminance(text: str) -> float:
        found = re.search(r"rgba?\((\d+), (\d+), (\d+)", text)
        assert found, text
        parts = [int(part) / 255 for part in found.groups()]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_it_opens_on_the_venues_today(salon: Salon, windows: Windows) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):  # between them it is never the same day
        venue = factories.venue(salon.operator, timezone=zone)["slug"]
        page = windows(timezone_id=ELSEWHERE).page(f"{salon.service.url}/calendar?venue={venue}")
        sign_in(page)
        expect(page.get_by_text(f"Times in {zone}")).to_be_visible()
        assert (
            page.get_by_label("Day", exact=True).input_value()
            == f"{datetime.now(UTC).astimezone(ZoneInfo(zone)):%Y-%m-%d}"
        )


def test_what_people_typed_stays_text(salon: Salon, window: Window) -> None:
    salon.book(salon.anna, 9, XSS, metadata={"<script>alert(2)</script>": XSS})
    page = open_calendar(window, salon)
    for view in ("Day", "Week", "List", "People"):
        page.get_by_role("button", name=view, exact=True).click()
        expect(entry(page, XSS)).to_be_visible()
    entry(page, XSS).click()
    expect(sheet(page).get_by_role("heading", name=XSS)).to_be_visible()
    expect(sheet(page).get_by_text("<script>alert(2)</script>")).to_be_visible()
    assert page.locator("img[src=x], #calendar b, dialog b").count() == 0


def test_a_hold_is_shown_until_it_is_released(salon: Salon, window: Window) -> None:
    page = open_calendar(window, salon)
    with factories.client(salon.service) as somebody:
        factories.hold(somebody, salon.slots[salon.ben, 11]["id"])
    held = entry(page, re.compile("11:00.*Held until"))
    held.click()
    sheet(page).get_by_role("button", name="Release").click()
    expect(page.get_by_text("The hold was released.")).to_be_visible()
    expect(held).to_have_count(0)
    assert salon.status_of(salon.ben, 11) == "available"


def test_a_tour_is_one_entry_with_all_who_come(salon: Salon, window: Window) -> None:
    tour = factories.resource(salon.operator, salon.venue, name="City walk")
    when = {"starts_at": at(10).isoformat(), "ends_at": at(12).isoformat()}
    slot = factories.slot(salon.operator, tour, capacity=10, **when)
    for quantity in (2, 3):
        factories.booking(salon.operator, slot["id"], quantity)
    page = open_calendar(window, salon)
    entry(page, "5 of 10 booked").click()
    expect(sheet(page).get_by_role("listitem")).to_have_count(2)
    sheet(page).get_by_role("listitem").filter(has_text="3 places").get_by_role("button").click()
    expect(sheet(page).get_by_text("Confirmed")).to_be_visible()


def test_who_still_pays_for_a_tour_has_not_booked_it(salon: Salon, window: Window) -> None:
    tour = factories.resource(salon.operator, salon.venue, name="City walk")
    slot = factories.slot(salon.operator, tour, capacity=10, starts_at=at(10).isoformat(), ends_at=at(12).isoformat())
    factories.booking(salon.operator, slot["id"], 2)
    salon.service.query(
        "INSERT INTO bookings (id, venue_id, slot_id, exclusive, quantity, status, customer_name, customer_email,"
        " available_after, expires_at) SELECT gen_random_uuid(), venue_id, id, false, 3, 'pending_payment', 'Grace',"
        " 'grace@example.com', 5, now() + interval '1 hour' FROM slots WHERE id = %s RETURNING 1",
        slot["id"],
    )
    page = open_calendar(window, salon)
    entry(page, "2 of 10 booked, 3 not paid yet").click()
    expect(sheet(page).get_by_role("listitem").filter(has_text="3 places, not paid yet")).to_have_count(1)


# -- what is done -----------------------------------------------------------------------------------------------------


def test_a_booking_is_looked_at_and_cancelled(salon: Salon, window: Window) -> None:
    booked = salon.book(salon.anna, 14, metadata={"note": "first visit", "language": "de"})
    page = open_calendar(window, salon)
    entry(page, "Ada").click()
    for text in ("ada@example.com", "+49 30 123456", "€35.00, to be paid on site", "first visit", booked["id"]):
        expect(sheet(page).get_by_text(text)).to_be_visible()
    expect(sheet(page).get_by_text("language")).to_have_count(0)  # which our own pages note, and is no note of theirs
    sheet(page).get_by_role("button", name="Cancel booking…").click()
    expect(sheet(page).get_by_text("Nothing was paid online")).to_be_visible()
    sheet(page).get_by_role("button", name="Keep it").click()
    sheet(page).get_by_role("button", name="Cancel booking…").click()
    sheet(page).get_by_role("button", name="Cancel booking", exact=True).click()
    expect(page.get_by_text("was cancelled.")).to_be_visible()
    expect(entry(page, "Ada")).to_have_count(0)
    assert salon.operator.get(f"/v1/bookings/{booked['id']}").json()["status"] == "cancelled"


def test_what_has_ended_meanwhile_cannot_be_cancelled(salon: Salon, window: Window) -> None:
    """Its entry stays a moment longer than its booking."""
    booked = salon.book(salon.anna, 14)
    page = open_calendar(window, salon)

    def expired(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "status": "expired"})

    page.route(f"**/v1/bookings/{booked['id']}", expired)
    entry(page, "Ada").click()
    expect(sheet(page).get_by_text("Expired", exact=True)).to_be_visible()
    expect(sheet(page).locator(".actions").get_by_role("button")).to_have_count(0)


def test_a_booking_is_dragged_to_another_person_and_time(salon: Salon, window: Window) -> None:
    booked = salon.book(salon.anna, 10)
    page = open_calendar(window, salon)
    expect(entry(page, "Ada")).to_be_visible()
    drag(page, point(page, "Anna", 10.4), point(page, "Ben", 13.4))
    expect(page.get_by_text("was moved to 13:00")).to_be_visible()
    assert salon.slot_of(booked) == salon.slots[salon.ben, 13]
    expect(entry(page, re.compile("13:00.*Ada"))).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("was moved to 10:00")).to_be_visible()
    assert salon.slot_of(booked) == salon.slots[salon.anna, 10]
    expect(entry(page, re.compile("10:00.*Ada"))).to_be_visible()


def test_where_there_is_no_such_time_it_snaps_back(salon: Salon, window: Window) -> None:
    booked = salon.book(salon.anna, 10)
    page = open_calendar(window, salon)
    before = entry(page, "Ada").bounding_box()
    drag(page, point(page, "Anna", 10.4), point(page, "Anna", 12.9))
    told = page.get_by_role("alert").filter(has_text="cannot begin at 12:30")
    expect(told).to_be_visible()
    assert entry(page, "Ada").bounding_box() == before
    assert salon.slot_of(booked) == salon.slots[salon.anna, 10]
    told.get_by_role("button", name="13:00").click()  # what is near and free is offered
    expect(page.get_by_text("was moved to 13:00")).to_be_visible()
    assert salon.slot_of(booked) == salon.slots[salon.anna, 13]


def test_who_came_first_keeps_the_time(salon: Salon, window: Window) -> None:
    """Ben's time is taken in the moment in which the entry is dropped on it: the page does not know yet."""
    window.expects("409")
    booked = salon.book(salon.anna, 10)
    page = open_calendar(window, salon)
    before = entry(page, "Ada").bounding_box()

    def taken_meanwhile(route: Any) -> None:
        salon.book(salon.ben, 12, "Grace Hopper")
        route.continue_()

    page.route("**/reschedule", taken_meanwhile, times=1)
    drag(page, point(page, "Anna", 10.4), point(page, "Ben", 12.4))
    expect(page.get_by_role("alert").filter(has_text="no longer available")).to_be_visible()
    expect(page.get_by_role("alert").get_by_role("button", name=re.compile(r"^1[13]:00 Ben"))).to_have_count(2)
    assert entry(page, "Ada").bounding_box() == before
    expect(entry(page, re.compile("12:00.*Grace Hopper"))).to_be_visible()
    assert salon.slot_of(booked) == salon.slots[salon.anna, 10]


def test_by_keyboard_alone_a_booking_is_moved(salon: Salon, window: Window) -> None:
    booked = salon.book(salon.anna, 10)
    salon.book(salon.ben, 9, "Grace Hopper")
    page = open_calendar(window, salon)
    entry(page, "Ada").focus()
    page.keyboard.press("Enter")
    expect(sheet(page).get_by_role("heading", name="Ada Lovelace")).to_be_focused()
    move = sheet(page).get_by_role("button", name="Move…")
    for _ in range(8):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
        if move.evaluate("button => button === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(sheet(page).get_by_label("Time").locator("option")).to_have_count(7)  # Anna's others
    sheet(page).get_by_label("With").focus()
    page.keyboard.type("Ben")
    expect(sheet(page).get_by_label("Time").locator("option").first).to_have_text("10:00")  # at nine he is taken
    sheet(page).get_by_label("Time").focus()
    page.keyboard.type("15")
    sheet(page).get_by_role("button", name="Move", exact=True).focus()
    page.keyboard.press("Enter")
    expect(sheet(page)).to_have_count(0)
    expect(entry(page, re.compile("15:00.*Ada"))).to_be_visible()
    assert salon.slot_of(booked) == salon.slots[salon.ben, 15]


def test_what_cannot_be_moved_is_not_sent(salon: Salon, window: Window) -> None:
    """Where nothing is free, or nobody knows, there is no time to move to."""
    window.expects("ERR_FAILED")
    salon.book(salon.anna, 10)
    page = open_calendar(window, salon)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/reschedule") else None)
    entry(page, "Ada").click()
    sheet(page).get_by_role("button", name="Move…").click()
    move, day = sheet(page).get_by_role("button", name="Move", exact=True), sheet(page).get_by_label("Day")
    expect(move).to_be_enabled()
    day.fill(str(DAY + timedelta(days=1)))
    expect(sheet(page).get_by_text("Nothing is free on that day.")).to_be_visible()
    expect(move).to_be_disabled()
    page.route("**/v1/slots?**", lambda route: route.abort(), times=1)
    day.fill(str(DAY))
    expect(sheet(page).get_by_role("alert")).to_be_visible()
    expect(sheet(page).get_by_role("button", name="Back")).to_be_enabled()
    expect(move).to_be_disabled()
    day.press("Enter")
    sheet(page).get_by_label("With").select_option("Ben")
    expect(move).to_be_enabled()
    assert sent == []


def test_time_is_blocked_by_hand_and_given_back(salon: Salon, window: Window) -> None:
    page = open_calendar(window, salon)
    drag(page, point(page, "Ben", 14.02), point(page, "Ben", 15.98))
    expect(sheet(page).get_by_label("Who")).to_have_value(salon.ben)
    assert sheet(page).get_by_label("From").input_value() == f"{DAY}T14:00"
    assert sheet(page).get_by_label("To", exact=True).input_value() == f"{DAY}T16:00"
    sheet(page).get_by_label("Reason").fill(XSS)
    sheet(page).get_by_role("button", name="Block time").click()
    blocked = entry(page, f"14:00 {XSS} Blocked")
    expect(blocked).to_be_visible()
    assert [salon.status_of(salon.ben, hour) for hour in (13, 14, 15, 16)] == [
        "available", "sold_out", "sold_out", "available"
    ]  # fmt: skip
    blocked.click()
    sheet(page).get_by_role("button", name="Remove block").click()
    expect(blocked).to_have_count(0)
    assert salon.status_of(salon.ben, 14) == "available"


def test_a_block_made_elsewhere_appears_by_itself(salon: Salon, window: Window) -> None:
    page = open_calendar(window, salon)
    wanted = {"resource_id": salon.ben, "starts_at": at(14).isoformat(), "ends_at": at(16).isoformat()}
    with factories.client(salon.service, operator=True) as elsewhere:
        factories.made(elsewhere.post("/v1/blocks", json={**wanted, "reason": "Away"}))
    expect(entry(page, "14:00 Away Blocked")).to_be_visible()


def test_booked_time_is_not_blocked(salon: Salon, window: Window) -> None:
    window.expects("409")
    salon.book(salon.anna, 12)
    page = open_calendar(window, salon)
    page.get_by_role("button", name="Block time…").click()
    sheet(page).get_by_label("From").fill(f"{DAY}T12:30")
    sheet(page).get_by_label("To", exact=True).fill(f"{DAY}T13:30")
    sheet(page).get_by_role("button", name="Block time").click()
    expect(sheet(page).get_by_role("alert")).to_contain_text("Something is booked, held or blocked")
    sheet(page).get_by_label("From").fill(f"{DAY}T13:00")
    sheet(page).get_by_role("button", name="Block time").click()
    expect(entry(page, "Blocked")).to_be_visible()


# -- another venue ----------------------------------------------------------------------------------------------------

#: Keeps all streams that the page opens, to be looked at.
STREAMS = """
streams = [];
EventSource = class extends EventSource {
  constructor(url) { super(url); streams.push(this); }
};
"""


def open_streams(page: Page) -> list[str]:
    """Tell of which venues a page hears."""
    venue = "new URL(each.url).searchParams.get('venue')"
    found: list[str] = page.evaluate(f"streams.filter((each) => each.readyState !== 2).map((each) => {venue})")
    return found


def hears_of(page: Page, salon: Salon) -> None:
    """Its venue, and never another: where live updates are away for a moment, its stream is opened anew."""
    assert set(open_streams(page)) <= {salon.venue}
    eventually(lambda: open_streams(page) == [salon.venue], "the stream of the venue")


def test_the_last_venue_chosen_is_shown_and_followed(make_salon: Callable[..., Salon], window: Window) -> None:
    """However long the one before needs to be read."""
    first, slow, last = make_salon(), make_salon(), make_salon()
    window.context.add_init_script(STREAMS)
    page = open_calendar(window, first)
    waiting: list[Route] = []

    def wait(route: Route) -> None:
        waiting.append(route)

    page.route(f"**/v1/venues/{slow.venue}", wait)
    page.get_by_label("Venue").select_option(slow.venue)
    page.get_by_label("Venue").select_option(last.venue)
    expect(page).to_have_url(re.compile(f"venue={last.venue}&"))
    with page.expect_response(f"**/v1/venues/{slow.venue}"):
        waiting[0].continue_()
    page.get_by_role("button", name="Today").click()  # by now it was read
    expect(page).to_have_url(re.compile(f"venue={last.venue}&"))
    hears_of(page, last)


def test_a_venue_that_cannot_be_read_leaves_the_one_before(make_salon: Callable[..., Salon], window: Window) -> None:
    window.expects("ERR_FAILED")
    before, another = make_salon(), make_salon()
    window.context.add_init_script(STREAMS)
    page = open_calendar(window, before)
    page.route(f"**/v1/venues/{another.venue}", lambda route: route.abort())
    page.get_by_label("Venue").select_option(another.venue)
    expect(page.locator("#trouble")).to_contain_text("cannot be reached")
    expect(page.get_by_label("Venue")).to_have_value(before.venue)
    hears_of(page, before)
    before.book(before.anna, 10)
    expect(entry(page, "Ada")).to_be_visible()  # it is still told of


# -- everywhere -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_use_it(
    salon: Salon, windows: Windows, size: dict[str, int], scheme: Literal["light", "dark"]
) -> None:
    salon.book(salon.anna, 10, "Ada Lovelace")
    salon.book(salon.ben, 10, "Grace Hopper")
    with factories.client(salon.service) as somebody:
        factories.hold(somebody, salon.slots[salon.ben, 13]["id"])
    when = {"starts_at": at(14).isoformat(), "ends_at": at(16).isoformat(), "reason": "Dentist"}
    factories.made(salon.operator.post("/v1/blocks", json={"resource_id": salon.anna, **when}))
    # Another one of those that can be chosen: the choice is as wide as the screen allows, and no wider.
    factories.venue(salon.operator, name="The garage with the longest name of all in the street " * 3)
    page = open_calendar(windows(size=size, scheme=scheme, timezone_id=ELSEWHERE), salon, view=None)
    expect(page.get_by_role("button", name="List" if size is PHONE else "People")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    buttons = page.locator("#tools button:visible")
    sizes = buttons.evaluate_all("all => all.map((each) => Math.min(each.offsetWidth, each.offsetHeight))")
    assert min(sizes) >= 44  # what a finger finds
    for view in ("Day", "Week", "List", "People"):
        page.get_by_role("button", name=view, exact=True).click()
        expect(entry(page, "Dentist")).to_be_visible()
        assert_accessible(page)
    page.get_by_role("button", name="List", exact=True).click()
    entry(page, "Ada").click()
    expect(sheet(page).get_by_role("button", name="Move…")).to_be_visible()
    if size is PHONE:
        box = sheet(page).bounding_box()
        assert box is not None
        assert box["width"] == PHONE["width"]
    for name in ("Move…", "Back", "Cancel booking…"):
        assert_accessible(page)
        sheet(page).get_by_role("button", name=name).click()
    assert_accessible(page)
    page.keyboard.press("Escape")
    expect(sheet(page)).to_have_count(0)
    page.get_by_role("button", name="Block time…").click()
    assert_accessible(page)


def test_without_redis_it_asks_again_and_again(
    make_salon: Callable[..., Salon], without_redis: Service, windows: Windows
) -> None:
    window = windows(timezone_id=ELSEWHERE)
    with factories.client(without_redis, operator=True) as operator:
        salon = make_salon(without_redis, operator)
        page = window.page(f"{without_redis.url}/calendar?venue={salon.venue}&date={DAY}&view=people")
        sign_in(page)
        expect(page.get_by_text("Not live: read every few seconds")).to_be_visible()
        salon.book(salon.anna, 10)
        expect(entry(page, "Ada")).to_be_visible()
