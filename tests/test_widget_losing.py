"""The booking widget when things go wrong: others are faster, time runs out, no answer comes (S2-5, S2-6, S4-8)."""

import json
import uuid
from datetime import datetime
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests import factories
from tests.browser import DESKTOP, PHONE, Windows, assert_accessible, chromium, windows
from tests.redis_servers import running_redis
from tests.service import Postgres, Service, assert_slot_holds, eventually, serving
from tests.visitor import (
    Embed,
    book,
    bookings,
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


# -- losing gracefully ------------------------------------------------------------------------------------------------


def test_s2_5_the_second_window_sees_the_last_place_go(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed
) -> None:
    slot, *_ = make_tour(operator)
    first, second = (embed(windows(size=size), slot["venue"]) for size in (DESKTOP, PHONE))
    second.evaluate("window.neverLeft = true")
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
    assert second.evaluate("window.neverLeft")  # it was not loaded anew to see all this
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


def test_what_is_free_instead_stands_in_order_of_time(operator: httpx.Client, windows: Windows, embed: Embed) -> None:
    slots = make_tour(operator)
    window = windows()
    window.expects("409")
    page = embed(window, slots[0]["venue"])
    snatch(page, operator, slots[2])
    time_of(page, slots[2]).click()
    alternatives = page.get_by_role("group", name="These are still free").get_by_role("button")
    expect(alternatives).to_have_count(3)
    [conflict] = heard(page, "slot-conflict")
    assert conflict["alternatives"][0]["id"] != slots[0]["id"]  # the service tells the nearest first
    alternatives.first.click()
    expect(page.get_by_text("Held for you")).to_be_visible()
    assert heard(page, "slot-held")[0]["slot"]["id"] == slots[0]["id"]


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
    # Long enough to fill in the form, and to book when it is taken again, also on a machine that many share.
    [slot] = make_tour(operator, times=1, hold_ttl_seconds=12)
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
    refuse(page, "/v1/holds/*/extend", 1_000, [])
    page.get_by_role("button", name="I need more time").click()
    expect(page.get_by_text("Very busy just now")).to_be_visible()
    page.unroute("**/v1/holds/*/extend")
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
    back = page.get_by_role("button", name="Back")  # one and no more
    expect(back).to_be_focused()
    back.click()
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


def an_hour_later(page: Page) -> None:
    """Let a page take it to be later by so much: every hold that it knows has ended for it."""
    page.evaluate("{ const now = performance.now(); performance.now = () => now + 3_600_000 }")


@pytest.mark.parametrize("is_known_as_the_same", [True, False], ids=["same request", "another request"])
def test_what_is_booked_unknowingly_is_not_booked_again(
    with_redis: Service, operator: httpx.Client, windows: Windows, embed: Embed, is_known_as_the_same: bool
) -> None:
    """Until there is an answer nothing but the same request can be made; and what was booked all the same is told."""
    [slot] = make_tour(operator, times=1, capacity=3)
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
    an_hour_later(page)
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
    refuse(page, "/v1/holds", 1_000, [])
    time_of(page, slot).click()
    expect(page.get_by_text("Very busy just now")).to_be_visible()
    an_hour_later(page)
    page.unroute("**/v1/holds")
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
