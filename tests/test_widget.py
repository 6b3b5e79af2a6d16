"""The booking widget as a visitor uses it, from the first click to the booking (CARD-6)."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Literal

import httpx
import pytest
from playwright.sync_api import Route, expect

from tests import factories
from tests.browser import DESKTOP, PHONE, Windows, assert_accessible, chromium, windows
from tests.redis_servers import RedisServer
from tests.service import Postgres, Service, assert_slot_holds, eventually
from tests.shop import Shop, running_shop
from tests.visitor import (
    DAY,
    Embed,
    book,
    bookings,
    day_button,
    detain,
    embed,
    fill_in,
    first_of,
    heard,
    is_booked,
    make_salon,
    make_tour,
    open_page,
    operator,
    time_of,
)

__all__ = ["chromium", "embed", "operator", "windows"]


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
    manage = page.get_by_role("link", name="Move or cancel").get_attribute("href") or ""
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


def test_a_late_answer_takes_back_nothing_that_was_told(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    """It was read before somebody booked, and comes after the page was told of that: nobody would say so again."""
    slot, *_, last = make_tour(operator)
    page = embed(windows(), slot["venue"])
    expect(time_of(page, last)).to_be_visible()
    reads = detain(page, re.compile(r"/v1/slots\?.*limit=100"), "GET")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    read = first_of(page, reads)
    answer = read.fetch()
    factories.booking(operator, slot["id"])
    expect(time_of(page, slot)).to_contain_text("Sold out")
    known = answer.json()
    read.fulfill(response=answer, json={**known, "data": known["data"][:-1]})
    expect(time_of(page, last)).to_have_count(0)  # by now it is shown
    expect(time_of(page, slot)).to_contain_text("Sold out")


def test_the_days_last_asked_for_are_marked(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    slot, *_ = make_tour(operator, times=1, capacity=2)
    factories.booking(operator, slot["id"])
    page = embed(windows(), slot["venue"])
    is_free = re.compile(r"\bfree\b")
    expect(day_button(page, DAY)).to_have_attribute("part", is_free)
    asked = detain(page, re.compile(r"/v1/days\?"), "GET")
    for name in ("One place more", "One place fewer"):
        page.get_by_role("button", name=name).click()
    eventually(lambda: bool(page.title()) and len(asked) == 2, "both requests")
    for each in reversed(asked):
        with page.expect_response(each.request.url):
            each.continue_()
    page.wait_for_timeout(200)  # what is wrong shows only afterwards
    expect(day_button(page, DAY)).to_have_attribute("part", is_free)


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
        page.get_by_role("button", name="Continue to payment").click()
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
    page.get_by_role("button", name="Book and pay on site").click()
    is_booked(page)
    assert_slot_holds(with_redis, slot["id"], 1, 1)
