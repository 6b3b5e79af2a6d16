"""The browser's Back, Forward and reload on the page whose history is the widget's: /book/{slug}."""

import re
import uuid
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests import factories
from tests.browser import PHONE, Windows, another_site, chromium, windows
from tests.salon import at, shop
from tests.salon import salon as salon_that_is_paid
from tests.service import Service, eventually
from tests.shop import Shop
from tests.visitor import (
    Embed,
    book,
    bookings,
    detain,
    embed,
    fill_in,
    first_of,
    is_booked,
    make_salon,
    make_tour,
    operator,
    time_of,
)

__all__ = ["chromium", "embed", "operator", "shop", "windows"]


@pytest.fixture
def start(with_redis: Service, windows: Windows) -> Any:
    """Open the page of a venue as somebody does who comes from somewhere else: Back could lead there."""

    def open_page(venue: str, *expected: str) -> Page:
        window = windows(size=PHONE)
        window.expects(*expected)
        page = window.page(f"{with_redis.url}/checkout/thanks")
        page.goto(f"{with_redis.url}/book/{venue}")
        return page

    return open_page


def shows(page: Page, heading: str) -> None:
    expect(page.locator(".stage h2")).to_have_text(heading)


def is_free(operator: httpx.Client, slot: dict[str, Any]) -> None:
    path = f"/v1/slots/{slot['id']}"
    eventually(lambda: operator.get(path).json()["available"] == slot["capacity"], "the hold to be given back")


def test_back_goes_one_step_back_and_gives_the_hold_back(operator: httpx.Client, start: Any) -> None:
    salon = make_salon(operator)
    beard = {"venue": salon.slug, "name": "Beard", "duration_minutes": 30, "resource_ids": [salon.people[0]["id"]]}
    factories.made(operator.post("/v1/services", json=beard))
    page = start(salon.slug)
    page.get_by_role("button", name="Haircut").click()
    page.get_by_role("button", name="Ben").click()
    page.get_by_role("button", name=re.compile("^10:00")).click()
    shows(page, "Your details")
    held = {"venue": salon.slug}
    assert len(operator.get("/v1/holds", params=held).json()["data"]) == 1
    page.go_back()
    shows(page, "When?")
    expect(page.locator(".chosen")).to_have_text("Haircut · Ben")
    eventually(lambda: operator.get("/v1/holds", params=held).json()["data"] == [], "the hold to be given back")
    page.go_back()
    shows(page, "With whom?")
    page.go_back()
    shows(page, "What would you like to book?")
    page.go_forward()
    shows(page, "With whom?")
    page.go_forward()
    shows(page, "When?")
    expect(page.locator(".chosen")).to_have_text("Haircut · Ben")
    page.go_forward()  # to what was held and is no more
    expect(page.get_by_role("button", name=re.compile("^10:00"))).to_be_visible()
    shows(page, "When?")
    for heading in ("With whom?", "What would you like to book?"):
        page.go_back()
        shows(page, heading)
    page.go_back()
    page.wait_for_url("**/checkout/thanks")


def test_the_widgets_own_back_is_the_browsers(operator: httpx.Client, start: Any) -> None:
    page = start(make_salon(operator).slug)
    page.get_by_role("button", name="Anyone").click()
    page.get_by_role("button", name=re.compile("^10:00")).click()
    shows(page, "Your details")
    page.get_by_role("button", name="Back").click()
    shows(page, "When?")
    page.get_by_role("button", name="Back").click()
    shows(page, "With whom?")
    page.go_back()
    page.wait_for_url("**/checkout/thanks")


def test_a_reload_stays_where_the_choice_was(operator: httpx.Client, start: Any) -> None:
    slot, *_ = make_tour(operator, capacity=5)
    page = start(slot["venue"])
    time_of(page, slot).click()
    shows(page, "Your details")
    page.reload()
    shows(page, "When?")
    is_free(operator, slot)
    day = page.locator("#day-title").inner_text()
    page.get_by_role("button", name="One place more").click()
    time_of(page, slot).click()
    shows(page, "Your details")
    page.go_back()
    expect(page.locator("output")).to_have_text("2")
    page.reload()
    expect(page.locator("output")).to_have_text("2")
    expect(page.locator("#day-title")).to_have_text(day)
    time_of(page, slot).click()
    fill_in(page)
    book(page)
    is_booked(page)
    assert [each["quantity"] for each in bookings(operator, slot["id"])] == [2]


def test_who_lost_a_place_is_one_step_from_where_the_choice_was(operator: httpx.Client, start: Any) -> None:
    salon = make_salon(operator, names=("Anna", "Ben"))
    page = start(salon.slug, "409")
    page.get_by_role("button", name="Ben").click()
    page.get_by_role("button", name=re.compile("^10:00")).click()
    fill_in(page)
    refusal = {"code": "slot_unavailable", "detail": "No", "reason": "booked", "available": 0, "alternatives": []}
    page.route("**/v1/bookings", lambda route: route.fulfill(status=409, json=refusal))
    book(page)
    expect(page.get_by_role("alert")).to_contain_text("Somebody was faster")
    page.go_back()
    shows(page, "With whom?")


def test_after_a_booking_nothing_is_sent_again(with_redis: Service, operator: httpx.Client, start: Any) -> None:
    slot, other, *_ = make_tour(operator)
    page = start(slot["venue"])
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    time_of(page, slot).click()
    fill_in(page)
    book(page)
    is_booked(page)
    assert [url.rpartition("/")[2] for url in sent] == ["holds", "bookings"]
    page.go_back()
    shows(page, "When?")
    expect(time_of(page, slot)).to_contain_text("Sold out")
    page.go_forward()
    is_booked(page)
    page.go_back()
    shows(page, "When?")
    page.go_forward()
    page.reload()  # what stands in its place is the page that manages it
    page.wait_for_url("**/manage/**")
    expect(page.get_by_text("Confirmed")).to_be_visible()
    assert len(sent) == 2
    page.goto(f"{with_redis.url}/book/{slot['venue']}")
    expect(time_of(page, slot)).to_contain_text("Sold out")
    time_of(page, other).click()
    fill_in(page)
    book(page)
    is_booked(page)
    page.get_by_role("button", name="Book something else").click()
    shows(page, "When?")
    assert [len(bookings(operator, each["id"])) for each in (slot, other)] == [1, 1]


def test_there_is_no_way_back_from_a_booking_under_way(operator: httpx.Client, start: Any) -> None:
    slot, *_ = make_tour(operator)
    page = start(slot["venue"])
    time_of(page, slot).click()
    fill_in(page)
    detained = detain(page, "**/v1/bookings", "POST")
    book(page)
    request = first_of(page, detained)
    page.go_back()
    shows(page, "Your details")
    request.continue_()
    is_booked(page)
    page.go_back()
    shows(page, "When?")
    assert len(bookings(operator, slot["id"])) == 1


def test_in_a_frame_the_history_is_that_of_the_page_around_it(
    with_redis: Service, operator: httpx.Client, windows: Windows
) -> None:
    """The browser has one history for both: a step back of the widget's would be one of that page, too."""
    with another_site() as (origin, pages):
        salon = make_salon(operator, origins=[origin])
        frame = f'<iframe title="Booking" src="{with_redis.url}/book/{salon.slug}"></iframe>'
        pages["/"] = f"<!doctype html><link rel=icon href=data:,><a href=#faq>FAQ</a>{frame}"
        page = windows().page(f"{with_redis.url}/checkout/thanks")
        page.goto(origin)
        before = page.evaluate("history.length")
        inside = page.frame_locator("iframe")
        inside.get_by_role("button", name="Anyone").click()
        expect(inside.get_by_role("heading", name="When?")).to_be_visible()
        assert page.evaluate("history.length") == before
        page.get_by_text("FAQ").click()
        inside.get_by_role("button", name="Back").click()
        expect(inside.get_by_role("heading", name="With whom?")).to_be_visible()
        assert page.evaluate("location.hash") == "#faq"


def test_who_goes_back_while_a_hold_is_asked_for_stays_there(operator: httpx.Client, start: Any) -> None:
    salon = make_salon(operator)
    page = start(salon.slug)
    page.get_by_role("button", name="Anyone").click()
    detained = detain(page, "**/v1/holds", "POST")
    page.get_by_role("button", name=re.compile("^10:00")).click()
    request = first_of(page, detained)
    page.go_back()
    shows(page, "With whom?")
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        request.continue_()
    shows(page, "With whom?")
    assert operator.get("/v1/holds", params={"venue": salon.slug}).json()["data"] == []


def test_who_presses_twice_after_going_back_wants_it_once(operator: httpx.Client, start: Any) -> None:
    """Also when what was asked for before going back is answered in between."""
    page = start(make_salon(operator).slug)
    page.get_by_role("button", name="Anyone").click()
    detained = detain(page, "**/v1/holds", "POST")
    page.get_by_role("button", name=re.compile("^10:00")).click()
    first = first_of(page, detained)
    page.get_by_role("button", name="Back").click()
    page.get_by_role("button", name="Anyone").click()
    another = page.get_by_role("button", name=re.compile("^11:00"))
    another.click()
    eventually(lambda: bool(page.title()) and len(detained) == 2, "the second request")
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        first.continue_()
    another.click()
    page.wait_for_timeout(300)
    assert len(detained) == 2
    detained[1].continue_()
    shows(page, "Your details")


def test_a_reload_does_not_lose_the_way_to_pay(shop: Shop, windows: Windows) -> None:
    here = salon_that_is_paid(shop.service, payment="required", price=2500)
    slot = here.slots["Ben"][0]
    page = windows(size=PHONE).page(f"{here.url}?lang=en")
    page.get_by_role("button", name="Ben").click()
    page.get_by_role("button", name=at(slot)).click()
    fill_in(page)
    page.get_by_role("button", name="Continue to payment").click()
    pay = page.get_by_role("link", name="Go to the payment page")
    where = pay.get_attribute("href")
    page.reload()
    expect(pay).to_have_attribute("href", where or "")
    [(session,)] = shop.service.query("SELECT session_id FROM payments WHERE slot_id = %s", uuid.UUID(slot["id"]))
    shop.stripe.pay(session)
    is_booked(page)


def from_the_history(page: Page, **chosen: Any) -> None:
    """Come back to the page with something else in its history, as days later, or when somebody has left."""
    change = "(c) => { const s = history.state; Object.assign(s.holdfast.chosen, c); history.replaceState(s, '') }"
    page.evaluate(change, chosen)
    page.reload()


def test_what_is_not_there_any_more_is_not_shown(operator: httpx.Client, start: Any) -> None:
    page = start(make_salon(operator, names=("Anna", "Ben")).slug)
    page.get_by_role("button", name="Ben").click()
    expect(page.get_by_role("button", name=re.compile("^10:00"))).to_be_visible()
    day = page.locator("#day-title").inner_text()
    from_the_history(page, day="2020-01-01")
    expect(page.locator("#day-title")).to_have_text(day)
    from_the_history(page, resource=str(uuid.uuid4()))
    shows(page, "With whom?")


def test_a_reload_keeps_the_zone_of_the_times(operator: httpx.Client, start: Any) -> None:
    slot, *_ = make_tour(operator, timezone="Pacific/Kiritimati")
    page = start(slot["venue"])
    page.get_by_role("button", name=re.compile("^Show my time")).click()
    expect(page.locator("button.time").first).to_be_visible()
    shown = page.locator("#day-title").inner_text()
    page.reload()
    expect(page.get_by_role("button", name=re.compile("Kiritimati"))).to_be_visible()
    expect(page.locator("#day-title")).to_have_text(shown)


def test_on_somebodys_page_the_history_is_theirs(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    salon = make_salon(operator)
    page = embed(windows(), salon.slug)
    before = page.evaluate("history.length")
    page.get_by_role("button", name="Anyone").click()
    page.get_by_role("button", name=re.compile("^10:00")).click()
    shows(page, "Your details")
    page.get_by_role("button", name="Back").click()
    shows(page, "When?")
    assert page.evaluate("[history.length, history.state]") == [before, None]
