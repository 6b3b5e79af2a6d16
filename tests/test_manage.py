"""The customers' pages behind a link with a token: managing a booking, an offer of the waiting list; and what holds for
every page.

Both stores are looked at afterwards.
"""

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
import icalendar
import pytest
from playwright.sync_api import Page, Route, expect

from tests import factories
from tests.browser import DESKTOP, PHONE, Windows, assert_accessible, chromium, windows
from tests.salon import MORNING, at, booked, client, fields, fill, managed, salon, shop
from tests.service import CUSTOMER, eventually
from tests.shop import Shop

__all__ = ["chromium", "client", "shop", "windows"]


# -- managing ---------------------------------------------------------------------------------------------------------


def test_a_customer_moves_and_cancels(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service)
    before, after = here.slots["Ben"][0], here.slots["Ben"][1]
    _, url = managed(here, before)
    page = windows(size=PHONE).page(url)
    expect(page.get_by_text("Confirmed")).to_be_visible()
    page.get_by_role("button", name="Move to another time").click()
    page.get_by_role("button", name=at(after)).first.click()
    page.get_by_role("button", name="Not this one").click()  # a tap beside the wanted time moves nothing
    assert (shop.available(before["id"]), shop.available(after["id"])) == ((0, 0), (1, 1))
    page.get_by_role("button", name=at(after)).first.click()
    asked = page.get_by_role("dialog")
    expect(asked).to_contain_text(at(after))
    expect(asked).to_contain_text(at(before))
    confirm_move(page)
    assert_slot_holds_moved(shop, before, after)
    page.get_by_role("button", name="Cancel the booking").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Cancel the booking").click()
    expect(page.get_by_role("dialog")).to_contain_text(at(after))
    region = page.get_by_role("status").element_handle()
    page.get_by_role("button", name="Yes, cancel it").click()
    expect(page.get_by_role("status")).to_have_text("The booking is cancelled.")
    assert region.text_content() == "The booking is cancelled."  # it was there before, or no screen reader told it
    expect(page.get_by_role("heading", name="Your booking")).to_be_focused()
    expect(page.get_by_text("to be paid on site")).to_have_count(0)
    expect(page.get_by_role("link", name="Book something else")).to_have_attribute("href", f"/book/{after['venue']}")
    expect(page.get_by_role("button", name="Move to another time")).to_have_count(0)
    assert shop.available(after["id"]) == (1, 1)


def confirm_move(page: Page) -> None:
    """Say yes to the move that was chosen, and hear that it was made."""
    page.get_by_role("button", name="Yes, move it").click()
    expect(page.get_by_role("status")).to_contain_text("Moved. It was")


def assert_slot_holds_moved(shop: Shop, before: dict[str, Any], after: dict[str, Any]) -> None:
    eventually(
        lambda: (shop.available(before["id"]), shop.available(after["id"])) == ((1, 1), (0, 0)),
        "both stores to have moved the booking",
    )


def test_what_only_the_booking_itself_is_in_the_way_of_is_offered(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service)
    before = here.slots["Ben"][0]
    with factories.client(shop.service, operator=True) as operator:
        of = {"id": before["resource"]["id"], "venue": here.slug}
        after = factories.slot(operator, of, hours=MORNING + 0.5, service_id=here.haircut)
    made, url = managed(here, before)
    page = windows(size=PHONE).page(url)
    page.get_by_role("button", name="Move to another time").click()
    page.get_by_role("button", name=at(after)).first.click()
    confirm_move(page)
    assert shop.booking(made["id"])["slot_id"] == after["id"]
    both = (after["id"], before["id"])  # the old time, too, is in the way of the new one
    eventually(lambda: [shop.available(each) for each in both] == [(0, 0), (1, 0)], "both stores to agree")


def test_a_move_that_loses_keeps_the_old_time_and_offers_others(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service)
    before, wanted = here.slots["Ben"][0], here.slots["Ben"][1]
    made, url = managed(here, before)
    window = windows()
    window.expects("409")
    page = window.page(url)
    page.get_by_role("button", name="Move to another time").click()
    offered = page.get_by_role("button", name=at(wanted)).first
    expect(offered).to_be_visible()
    with factories.client(shop.service) as rival:
        factories.booking(rival, wanted["id"])
    offered.click()
    page.get_by_role("button", name="Yes, move it").click()
    expect(page.get_by_role("alert")).to_contain_text("Your booking stays as it is")
    assert shop.booking(made["id"])["slot_id"] == before["id"]
    page.get_by_role("button", name=at(here.slots["Ben"][2])).first.click()
    confirm_move(page)
    assert shop.booking(made["id"])["slot_id"] == here.slots["Ben"][2]["id"]


def test_who_acts_on_an_old_view_is_told(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service)
    made, url = managed(here, here.slots["Ben"][0])
    window = windows()
    window.expects("409")
    page = window.page(url)
    page.get_by_role("button", name="Move to another time").click()
    offered = page.get_by_role("button", name=at(here.slots["Ben"][1])).first
    expect(offered).to_be_visible()
    moved = httpx.post(
        f"{shop.service.url}/v1/bookings/{made['id']}/reschedule",
        json={"slot_id": here.slots["Ben"][2]["id"]},
        headers=shop.service.operator,
    )
    assert moved.status_code == 200
    offered.click()
    page.get_by_role("button", name="Yes, move it").click()
    expect(page.get_by_role("alert")).to_contain_text("changed elsewhere meanwhile")
    expect(page.get_by_text(at(here.slots["Ben"][2])).first).to_be_visible()
    assert shop.booking(made["id"])["slot_id"] == here.slots["Ben"][2]["id"]


@pytest.mark.parametrize("wrong", [timedelta(days=400), timedelta(hours=25), timedelta(days=-400)], ids=str)
def test_a_wrong_clock_takes_nothing_from_a_customer(
    shop: Shop, windows: Windows, client: httpx.Client, wrong: timedelta
) -> None:
    """What time it is the service says, and not somebody's telephone."""
    here = salon(shop.service)
    before, after = here.slots["Ben"][:2]
    _, url = managed(here, before)
    window = windows()
    window.context.clock.set_fixed_time(datetime.now(UTC) + wrong)
    page = window.page(url)
    page.get_by_role("button", name="Move to another time").click()
    page.get_by_role("button", name=at(after)).first.click()
    confirm_move(page)
    grace = {"name": "Grace Hopper", "email": "grace@example.com"}
    entry = factories.made(client.post("/v1/waiting-list", json={"slot_id": after["id"], "customer": grace}))
    page.get_by_role("button", name="Cancel the booking").click()
    page.get_by_role("button", name="Yes, cancel it").click()
    expect(page.get_by_role("status")).to_have_text("The booking is cancelled.")
    offer = window.page(f"{shop.service.url}/offer/{entry['id']}#{entry['token']}")
    expect(offer.get_by_text("Kept for you until")).to_be_visible()
    offer.get_by_role("button", name="Book it").click()
    expect(offer.get_by_role("link", name="View, move or cancel the booking")).to_be_visible()


def test_what_is_over_has_no_buttons(shop: Shop, windows: Windows) -> None:
    """Though a clock that is late says that it is still to come."""
    here = salon(shop.service)
    slot = here.slots["Ben"][0]
    _, url = managed(here, slot)
    window = windows()
    window.context.clock.set_fixed_time(datetime.now(UTC) - timedelta(days=400))
    window.context.route("**/v1/slots/*", _answer_as_begun)
    page = window.page(url)
    expect(page.get_by_role("button", name="Add to calendar")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel the booking")).to_have_count(0)
    expect(page.get_by_role("button", name="Move to another time")).to_have_count(0)


def _answer_as_begun(route: Route) -> None:
    answer = route.fetch()
    begun = datetime.now(UTC) - timedelta(minutes=1)
    route.fulfill(response=answer, json={**answer.json(), "starts_at": begun.isoformat(), "status": "past"})


def test_a_payment_is_waited_for_also_when_nobody_answers_for_a_while(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service, payment="required", price=2500)
    with factories.client(shop.service) as everyone:
        hold = factories.hold(everyone, here.slots["Ben"][0]["id"])
        body = {"hold_token": hold["token"], "customer": CUSTOMER}
        made = factories.made(everyone.post("/v1/checkout", json=body))["booking"]
    window = windows()
    window.expects("ERR_FAILED")
    window.context.clock.install()
    page = window.page(f"{shop.service.url}/manage/{made['id']}#{made['manage_token']}")
    expect(page.get_by_text("Waiting for the payment")).to_be_visible()
    path = f"**/v1/bookings/{made['id']}"
    page.route(path, lambda route: route.abort())
    page.clock.fast_forward(3_000)
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.unroute(path)
    [(session,)] = shop.service.query("SELECT session_id FROM payments WHERE booking_id = %s", made["id"])
    shop.stripe.pay(session)
    shop.wait_for(made["id"], "confirmed")
    page.clock.fast_forward(6_000)
    expect(page.get_by_text("€25.00, paid")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_who_has_not_paid_need_not_wait_until_it_is_too_late(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service, payment="required", price=2500)
    slot = here.slots["Ben"][0]
    with factories.client(shop.service) as everyone:
        hold = factories.hold(everyone, slot["id"])
        made = factories.made(everyone.post("/v1/checkout", json={"hold_token": hold["token"], "customer": CUSTOMER}))
    booking = made["booking"]
    page = windows(size=PHONE).page(f"{shop.service.url}/manage/{booking['id']}#{booking['manage_token']}")
    expect(page.get_by_text("Waiting for the payment")).to_be_visible()
    expect(page.get_by_text("€25.00", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Move to another time")).to_have_count(0)
    page.get_by_role("button", name="Cancel the booking").click()
    page.get_by_role("button", name="Yes, cancel it").click()
    expect(page.get_by_text("The booking is cancelled.")).to_be_visible()
    shop.wait_for(booking["id"], "cancelled")
    eventually(lambda: shop.available(slot["id"]) == (1, 1), "the place to be free in both stores")
    [(session,)] = shop.service.query("SELECT session_id FROM payments WHERE booking_id = %s", booking["id"])
    assert shop.stripe.session(session)["status"] == "expired"


def test_a_wrong_link_opens_nothing(shop: Shop, windows: Windows) -> None:
    made, url = managed(here := salon(shop.service), here.slots["Ben"][0])
    window = windows()
    window.expects("404")
    another = "y" if url.endswith("x") else "x"
    for wrong in (url[:-1] + another, url.partition("#")[0], url.replace(made["id"], str(uuid.uuid4())), f"{url}é"):
        page = window.page(wrong)
        expect(page.get_by_role("heading", name="This link opens no booking")).to_be_visible()
        page.close()


def test_the_entry_for_a_calendar(shop: Shop, windows: Windows, client: httpx.Client) -> None:
    here = salon(shop.service)
    slot = here.slots["Ben"][0]
    made, url = managed(here, slot)
    page = windows().page(url)
    with page.expect_download() as download:
        page.get_by_role("button", name="Add to calendar").click()
    assert download.value.suggested_filename == "booking.ics"
    [event] = icalendar.Calendar.from_ical(download.value.path().read_bytes()).walk("VEVENT")
    assert (event["UID"], event["STATUS"]) == (f"{made['id']}@holdfast", "CONFIRMED")
    assert event.start == datetime.fromisoformat(slot["starts_at"])
    path, shown = f"/v1/bookings/{made['id']}/calendar", {"Manage-Token": made["manage_token"]}
    assert client.get(path).status_code == client.get(path, headers={"Manage-Token": "no"}).status_code == 404
    assert client.get(path, headers=shop.service.operator).headers["content-type"] == "text/calendar; charset=utf-8"
    client.post(f"/v1/bookings/{made['id']}/cancel", headers=shown)
    assert "STATUS:CANCELLED" in client.get(path, headers=shown).text


def test_a_place_that_was_waited_for_is_taken(shop: Shop, windows: Windows, client: httpx.Client) -> None:
    here = salon(shop.service, price=2500)
    slot = here.slots["Ben"][0]
    made, _ = managed(here, slot)
    grace = {"name": "Grace Hopper", "email": "grace@example.com"}
    entry = factories.made(client.post("/v1/waiting-list", json={"slot_id": slot["id"], "customer": grace}))
    page = windows().page(f"{shop.service.url}/offer/{entry['id']}#{entry['token']}")
    expect(page.get_by_text("Your place in the line: 1.")).to_be_visible()
    expect(page.get_by_text("€25.00, to be paid on site")).to_be_visible()
    client.post(f"/v1/bookings/{made['id']}/cancel", headers={"Manage-Token": made["manage_token"]})
    page.reload()
    expect(page.get_by_text("Kept for you until")).to_be_visible()
    expect(page.get_by_text("€25.00, to be paid on site")).to_be_visible()
    page.get_by_role("button", name="Book it").click()
    expect(page.get_by_role("link", name="View, move or cancel the booking")).to_be_visible()
    assert [name for _, name, _ in booked(shop.service, slot)] == ["Grace Hopper"]


def test_a_place_that_was_waited_for_is_left_to_the_next_one(
    shop: Shop, windows: Windows, client: httpx.Client
) -> None:
    here = salon(shop.service)
    slot = here.slots["Ben"][0]
    made, _ = managed(here, slot)
    first, second = (
        factories.made(
            client.post(
                "/v1/waiting-list",
                json={"slot_id": slot["id"], "customer": {"name": name, "email": f"{name}@example.com"}},
            )
        )
        for name in ("Grace", "Mary")
    )
    client.post(f"/v1/bookings/{made['id']}/cancel", headers={"Manage-Token": made["manage_token"]})
    page = windows().page(f"{shop.service.url}/offer/{first['id']}#{first['token']}")
    page.get_by_role("button", name="Leave it to the next one").click()
    expect(page.get_by_text("The next one is asked.")).to_be_visible()
    expect(page.get_by_role("link", name="Book something else")).to_have_attribute("href", f"/book/{here.slug}")
    page.reload()
    expect(page.get_by_role("link", name="Book something else")).to_be_visible()
    next_one = client.get(f"/v1/waiting-list/{second['id']}", headers={"Waiting-Token": second["token"]}).json()
    assert next_one["status"] == "offered"


def test_every_page_leads_on(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service, name="Anna & Ben")
    for path in ("/checkout/thanks", "/checkout/cancelled"):
        told = client.get(path, params={"venue": here.slug}).text
        assert f'href="/book/{here.slug}"' in told
        assert "Back to Anna &amp; Ben" in told
        for unknown in ("", "nobody", "\0", "x" * 500):
            answer = client.get(path, params={"venue": unknown})
            assert (answer.status_code, 'href="/"' in answer.text) == (200, True)
    assert 'href="/"' in client.get("/book/nobody").text
    paid = salon(shop.service, payment="required", price=2500)
    sent = client.post(f"/book/{paid.slug}", data=fields(paid, paid.slots["Ben"][0]))
    session = shop.stripe.session(sent.headers["location"].rpartition("/")[2])
    assert session["success_url"].endswith(f"/checkout/thanks?venue={paid.slug}&lang=en")
    assert session["cancel_url"].endswith(f"/checkout/cancelled?venue={paid.slug}&lang=en")
    german = client.get("/checkout/thanks", params={"venue": here.slug, "lang": "de"}).text
    assert f'href="/book/{here.slug}?lang=de"' in german
    assert "Zurück zu" in german


# -- every page -------------------------------------------------------------------------------------------------------


def test_every_page_has_a_strict_policy(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service, origins=["https://salon.example"])
    slot = here.slots["Ben"][0]
    chosen = f"{here.url}?service={here.haircut}"
    of_venue = (here.url, here.form(slot), chosen, f"{chosen}&anybody=yes")
    others = ("/", "/manage/x", "/offer/x", "/checkout/thanks", "/checkout/cancelled", "/problems/busy", "/book/nobody")
    for path in (*of_venue, *others):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';"), path
        # In no frame but where somebody embeds it: a page around it could have its buttons pressed unseen. A page that
        # only tells has nothing to press, and may stand in any.
        only_tells = path.startswith("/checkout/") or answer.status_code == 404
        framed = "'self' https://salon.example" if path in of_venue else "*" if only_tells else "'none'"
        assert policy.endswith(f"; frame-ancestors {framed}"), path
        assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)|\son\w+=", answer.text), path
        assert client.head(path).status_code == answer.status_code


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_everybody_can_use_them(
    shop: Shop, windows: Windows, size: dict[str, int], scheme: Literal["light", "dark"]
) -> None:
    here = salon(shop.service, price=2500)
    slot, taken = here.slots["Ben"][0], here.slots["Ben"][1]
    _, url = managed(here, slot)
    window = windows(size=size, scheme=scheme)
    window.expects("404", "409", "400")
    page = window.page(f"{here.url}?service={here.haircut}")
    assert_accessible(page)
    page.goto(f"{here.url}?service={here.haircut}&anybody=yes")
    assert_accessible(page)
    page.goto(here.form(taken))
    fill(page, email="ada@localhost")
    page.get_by_role("button", name="Book and pay on site").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert_accessible(page)
    with factories.client(shop.service) as rival:
        factories.booking(rival, taken["id"])
    fill(page)
    page.get_by_role("button", name="Book and pay on site").click()
    expect(page.get_by_role("radio").first).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="Book and pay on site").click()
    expect(page.get_by_role("heading", name="Your booking is confirmed")).to_be_visible()
    assert_accessible(page)
    page.goto(url)
    page.get_by_role("button", name="Move to another time").click()
    expect(page.locator(".times button").first).to_be_visible()
    assert_accessible(page)
    page.locator(".times button").first.click()
    assert_accessible(page)
    page.get_by_role("button", name="Not this one").click()
    page.get_by_role("button", name="Cancel the booking").click()
    assert_accessible(page)
    for path in ("/", "/checkout/thanks", "/problems/busy", "/book/nobody"):
        page.goto(f"{shop.service.url}{path}")
        assert_accessible(page)
