"""The page on which customers book: with links and forms alone, and in a frame.

Most windows here have no JavaScript; what the widget does is in its own tests. Both stores are looked at afterwards.
"""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from email import message_from_string, policy
from typing import get_args

import httpx
import psycopg
import pytest
from playwright.sync_api import expect

from app import written
from app.domain import BookingStatus, RefundStatus
from app.pages import assets, language
from tests import factories
from tests.browser import PHONE, Windows, another_site, chromium, windows
from tests.salon import BERLIN, EVIL, at, booked, client, fields, fill, salon, shop
from tests.service import assert_slot_holds, eventually
from tests.shop import Shop

__all__ = ["chromium", "client", "shop", "windows"]


# -- without JavaScript -----------------------------------------------------------------------------------------------


def test_booking_with_links_and_a_form_alone(shop: Shop, windows: Windows) -> None:
    """And whatever people are called, it is text."""
    here = salon(shop.service, name=EVIL)
    window = windows(java_script_enabled=False)
    window.expects("400")
    page = window.page(here.url)
    expect(page.get_by_role("heading", level=1)).to_have_text(EVIL)
    page.get_by_role("link", name=f"Cut {EVIL}").click()
    page.get_by_role("link", name="Anyone").click()
    first = here.slots["Ben"][0]
    expect(page.locator(".times a")).to_have_count(3)  # each time once, whoever has it
    page.get_by_role("link", name=at(first)).click()
    fill(page, name=EVIL, email="ada@localhost")
    page.get_by_role("button", name="Book").click()
    expect(page.get_by_label("E-mail")).to_have_accessible_description(re.compile("name@example.com"))
    expect(page.get_by_label("Name")).to_have_value(EVIL)  # kept
    fill(page, name=EVIL)
    page.get_by_role("button", name="Book").click()
    expect(page.get_by_role("heading", name="Your booking is confirmed")).to_be_visible()
    [slot] = [each for each in (here.slots["Ben"][0], here.slots[f"Ada {EVIL}"][0]) if booked(shop.service, each)]
    [(booking_id, name, quantity)] = booked(shop.service, slot)
    assert (name, quantity) == (EVIL, 1)
    expect(page.get_by_text(str(booking_id))).to_be_visible()
    expect(page.get_by_text("To move or cancel it there, your browser needs JavaScript.")).to_be_visible()
    assert_slot_holds(shop.service, slot["id"], 1, 1)
    assert page.context.cookies() == []


def test_what_is_sold_without_a_service(shop: Shop, windows: Windows) -> None:
    """Such as a tour, with several places at once."""
    with factories.client(shop.service, operator=True) as operator:
        tour = factories.resource(operator, factories.venue(operator)["slug"], name="City walk")
        slot = factories.slot(operator, tour, capacity=10)
    page = windows(java_script_enabled=False, size=PHONE).page(f"{shop.service.url}/book/{tour['venue']}")
    page.get_by_role("link", name="City walk").click()
    page.get_by_role("link", name="10 places left").click()
    fill(page)
    page.get_by_label("Places").fill("4")
    page.get_by_role("button", name="Book").click()
    expect(page.get_by_role("heading", name="Your booking is confirmed")).to_be_visible()
    assert_slot_holds(shop.service, slot["id"], 10, 4)


def test_days_without_room_are_no_links_and_weeks_end(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service)
    path = f"/book/{here.slug}?service={here.haircut}&resource={here.people['Ben']}"
    days = ("2020-01-01", str(datetime.now(BERLIN).date()))
    long_ago, today = (client.get(f"{path}&from={day}").text for day in days)
    assert long_ago == today  # what was before is over
    assert ">Earlier<" not in today
    assert "Nothing is free on these days." in today  # but a week later
    day = datetime.fromisoformat(here.slots["Ben"][0]["starts_at"]).astimezone(BERLIN).date()
    week = client.get(f"{path}&from={day}").text
    assert week.count("nothing free") == 6
    assert ">Earlier<" in week
    assert ">Later<" not in week
    with factories.client(shop.service) as others:
        for slot in here.slots["Ben"]:
            factories.hold(others, slot["id"])
    assert "Nothing is free on this day." in client.get(f"{path}&from={day}").text  # all of it is held
    assert "Nothing is free in the coming weeks." in client.get(f"{path}&from={day + timedelta(days=365)}").text


def test_a_hold_in_the_way_of_the_next_times_hides_no_later_ones(shop: Shop, client: httpx.Client) -> None:
    """An hour's appointment may begin every quarter: one hold is then in the way of seven."""
    with factories.client(shop.service, operator=True) as operator:
        slug = factories.venue(operator)["slug"]
        ada = factories.resource(operator, slug, kind="person")
        body = {"venue": slug, "name": "Cut", "duration_minutes": 60, "resource_ids": [ada["id"]]}
        cut = factories.made(operator.post("/v1/services", json=body))["id"]
        wanted = [factories.slot_body(ada, hours=14 * 24 + n / 4, service_id=cut) for n in range(120)]
        slots = factories.made(operator.post("/v1/slots", json={"slots": wanted}))["data"]
    path = f"/book/{slug}?service={cut}"
    day = datetime.fromisoformat(slots[0]["starts_at"]).astimezone(BERLIN).date()
    with factories.client(shop.service) as others:
        factories.hold(others, slots[3]["id"])
    free = client.get(path)
    assert at(slots[7]) in free.text
    assert "Nothing is free" not in free.text
    with factories.client(shop.service) as others:
        for slot in slots[7:-4:7]:
            factories.hold(others, slot["id"])
    weeks_before = day - timedelta(days=7)
    week = client.get(f"{path}&from={weeks_before}").text
    assert ">Later<" in week  # though hardly anything is left, and that far away


def test_sending_a_form_twice_books_once(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service)
    slot = here.slots["Ben"][0]
    sent = fields(here, slot)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post(f"/book/{here.slug}", data=sent), range(4)))
    answers.append(client.post(f"/book/{here.slug}", data=sent))  # a reload
    [(booking_id, *_)] = booked(shop.service, slot)
    assert [each.status_code for each in answers] == [200] * 5
    assert all(str(booking_id) in each.text for each in answers)
    other = client.post(f"/book/{here.slug}", data={**sent, "name": "Somebody else"})
    assert (other.status_code, "another booking before" in other.text) == (422, True)
    assert_slot_holds(shop.service, slot["id"], 1, 1)


def test_who_loses_the_race_keeps_what_was_typed_and_is_offered_more(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service)
    slot = here.slots["Ben"][1]
    window = windows(java_script_enabled=False)
    window.expects("409")
    page = window.page(here.form(slot))
    fill(page, name="Grace Hopper", email="grace@example.com")
    with factories.client(shop.service) as rival:
        factories.booking(rival, slot["id"])
    page.get_by_role("button", name="Book").click()
    expect(page.get_by_role("alert")).to_contain_text("Somebody was faster. Nothing was booked.")
    expect(page.get_by_label("Name")).to_have_value("Grace Hopper")
    expect(page.get_by_label("E-mail")).to_have_value("grace@example.com")
    starts = {each["id"]: each["starts_at"] for of in here.slots.values() for each in of}
    offered = [starts[each.get_attribute("value") or ""] for each in page.get_by_role("radio").all()]
    assert offered == sorted(offered)
    nearest = page.get_by_role("radio", checked=True).get_attribute("value")
    assert nearest in [each["id"] for each in here.slots["Ben"]]  # though Ada has an earlier time
    page.get_by_role("radio", name=at(here.slots["Ben"][2])).check()
    page.get_by_role("button", name="Book").click()
    expect(page.get_by_role("heading", name="Your booking is confirmed")).to_be_visible()
    assert [name for _, name, _ in booked(shop.service, here.slots["Ben"][2])] == ["Grace Hopper"]
    assert_slot_holds(shop.service, slot["id"], 1, 1)


def test_fewer_places_than_wanted_are_told_and_can_be_had(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service, capacity=3)
    slot = here.slots["Ben"][0]
    with factories.client(shop.service) as rival:
        factories.booking(rival, slot["id"], 2)
    sent = fields(here, slot, quantity="3")
    refused = client.post(f"/book/{here.slug}", data=sent)
    assert refused.status_code == 409
    assert "Only 1 of the 3 places are left." in refused.text
    assert f'value="{slot["id"]}" checked' in refused.text
    assert client.post(f"/book/{here.slug}", data={**sent, "quantity": "1"}).status_code == 200
    assert_slot_holds(shop.service, slot["id"], 3, 3)


def test_busy_offers_to_send_the_same_again(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service)
    slot = here.slots["Ben"][0]
    window = windows(java_script_enabled=False)
    window.expects("503")
    page = window.page(here.form(slot))
    fill(page)
    with psycopg.connect(shop.service.database_url) as somebody:
        somebody.execute("SELECT id FROM slots WHERE id = %s FOR UPDATE", (slot["id"],))
        page.get_by_role("button", name="Book").click()
        expect(page.get_by_role("heading", name="One moment, please")).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", name="Your booking is confirmed")).to_be_visible()
    assert_slot_holds(shop.service, slot["id"], 1, 1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": " "}, "enter your name"),
        ({"name": "a\0b"}, "enter your name"),
        ({"email": "ada@"}, "name@example.com"),
        ({"phone": "1" * 41}, "At most 40 characters"),
        ({"quantity": "0"}, "whole number from 1 to 1"),
        ({"quantity": "two"}, "whole number from 1 to 1"),
        ({"key": ""}, "The form was not complete"),
    ],
)
def test_what_is_wrong_stands_beside_its_field(
    shop: Shop, client: httpx.Client, changed: dict[str, str], said: str
) -> None:
    here = salon(shop.service)
    answer = client.post(f"/book/{here.slug}", data={**fields(here, here.slots["Ben"][0]), **changed})
    assert (answer.status_code, said in answer.text) == (400, True)
    assert booked(shop.service, here.slots["Ben"][0]) == []


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ("UPDATE venues SET payment = 'required' WHERE slug = %(venue)s", 402, "This has to be paid for now"),
        ("UPDATE slots SET capacity = 2 WHERE id = %(id)s", 400, "whole number from 1 to 2"),
    ],
    ids=["payment", "capacity"],
)
def test_what_the_venue_changes_meanwhile_costs_nothing_typed(
    shop: Shop, client: httpx.Client, change: str, status: int, said: str
) -> None:
    """The venue changes it while the form waits for its slot."""
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    def send() -> httpx.Response:
        here = salon(shop.service, capacity=3, price=2500)
        slot = here.slots["Ben"][0]
        sent = fields(here, slot, quantity="3", name="Grace")
        with psycopg.connect(shop.service.database_url) as venue, ThreadPoolExecutor(1) as pool:
            venue.execute("SELECT id FROM slots WHERE id = %s FOR UPDATE", (slot["id"],))
            answer = pool.submit(client.post, f"/book/{here.slug}", data=sent)
            eventually(lambda: shop.service.query(waiting) != [] or answer.done(), "the form to wait for its slot")
            venue.execute(change, slot)
            venue.commit()
            return answer.result()

    # On a busy machine the form may have waited for too long.
    answer = next(each for each in (send() for _ in range(10)) if each.status_code != 503)
    assert (answer.status_code, said in answer.text, 'value="Grace"' in answer.text) == (status, True, True)


def test_who_holds_too_much_keeps_what_was_typed(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service, price=2500, payment="required", holds_per_client=1)
    first, second = here.slots["Ben"][0], here.slots["Ben"][2]
    sent = fields(here, second, name="Grace")
    with factories.client(shop.service) as visitor:
        held = factories.hold(visitor, first["id"])
        refused = visitor.post(f"/book/{here.slug}", data=sent)
        assert (refused.status_code, "You hold as many places" in refused.text) == (409, True)
        assert 'value="Grace"' in refused.text
        assert f'name="key" value="{sent["key"]}"' in refused.text
        visitor.delete(f"/v1/holds/{held['id']}", headers={"Hold-Token": held["token"]})
        assert visitor.post(f"/book/{here.slug}", data=sent).status_code == 303


def test_nothing_but_its_own_form_is_taken(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service)
    sent, path = fields(here, here.slots["Ben"][0]), f"/book/{here.slug}"
    other = salon(shop.service).slots["Ben"][0]
    for answer, status in (
        (client.post(path, json=sent), 415),
        (client.post(path, data={**sent, "name": "x" * 9_000}), 413),
        (client.post(path, data={**sent, "admin": "1"}), 400),
        (
            client.post(path, content=b"slot=1&slot=2", headers={"Content-Type": "application/x-www-form-urlencoded"}),
            400,
        ),
        (client.post(path, content=b"name=%ff", headers={"Content-Type": "application/x-www-form-urlencoded"}), 400),
        (client.post(path, data={**sent, "slot": other["id"]}), 404),  # of another venue
        (client.get(path, params={"day": "yesterday"}), 400),
        (client.get(path, params={"service": str(uuid.uuid4())}), 404),
        (client.get("/book/nobody"), 404),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "set-cookie" not in answer.headers
    assert booked(shop.service, here.slots["Ben"][0]) == booked(shop.service, other) == []


def test_pages_speak_the_language_of_their_reader(shop: Shop, client: httpx.Client) -> None:
    path = f"/book/{salon(shop.service).slug}"
    german = client.get(path, headers={"Accept-Language": "tlh, de-AT;q=0.9, fr;q=0.8"}).text
    assert '<html lang="de">' in german
    assert "Was möchten Sie buchen?" in german
    french = client.get(path, params={"lang": "fr"}, headers={"Accept-Language": "de"}).text
    assert "Que souhaitez-vous réserver" in french
    assert "lang=fr" in french  # the way on stays French
    assert "What would you like to book?" in client.get(path, headers={"Accept-Language": "x;q=y,,"}).text


@pytest.mark.parametrize("of", written.LANGUAGES)
def test_all_languages_say_the_same(of: str) -> None:
    def places(text: object) -> list[str]:
        return sorted(set(re.findall(r"\{\w+\}", str(text))))

    english, other = language.words("en"), language.words(of)
    assert list(other) == list(english)
    assert {name: places(text) for name, text in other.items()} == {n: places(t) for n, t in english.items()}


#: What both ways to book say, by its name in the pages' words and in the widget's.
SAME = {
    "what": "choose_offer", "who": "choose_person", "when": "choose_time", "nothing_here": "nothing_offered",
    "anybody": "anyone", "places": "quantity", "name": "name", "email": "email", "phone": "phone",
    "optional": "optional", "details": "details", "book": "confirm", "book_pay_there": "confirm_unpaid", "pay": "pay",
    "pay_now": "pay_and_book", "number": "number", "another": "another", "none_that_day": "none_that_day",
    "next_free": "next_free", "instead": "alternatives", "again": "try_again", "add_to_calendar": "calendar_file",
    "cancel": "cancel_booking",
}  # fmt: skip


@pytest.mark.parametrize("of", written.LANGUAGES)
def test_with_and_without_javascript_the_same_is_called_the_same(of: str) -> None:
    script = assets.all_assets()[f"widget/words/{of}.js"].body.decode()
    widget = dict(re.findall(r'^(\w+): "(.*)",$', script, re.MULTILINE))
    words = language.words(of)
    assert {name: words[name] for name in SAME} == {name: widget[other] for name, other in SAME.items()}


@pytest.mark.parametrize("of", written.LANGUAGES)
def test_whatever_becomes_of_a_booking_there_is_a_word_for_it(of: str) -> None:
    """The page asks for it by name, and shows nothing at all where there is none."""
    states = [f"status_{status}" for status in get_args(BookingStatus)]
    refunds = [f"refund_{status}" for status in get_args(RefundStatus) if status != "none"]
    assert [name for name in (*states, *refunds) if name not in language.words(of)] == []


# -- paying, and the letters ------------------------------------------------------------------------------------------


def test_who_pays_first_gets_a_letter_whose_link_cancels(shop: Shop, windows: Windows) -> None:
    here = salon(shop.service, payment="required", price=2500, refund_hours=1)
    slot = here.slots["Ben"][0]
    page = windows(java_script_enabled=False).page(here.form(slot))
    fill(page)
    page.get_by_role("button", name="Continue to payment").click()
    page.wait_for_url(f"{shop.stripe.url}/**")  # so the policy lets the form lead there
    [(booking_id, session_id)] = shop.service.query(
        "SELECT b.id::text, p.session_id FROM bookings AS b JOIN payments AS p ON p.booking_id = b.id"
        " WHERE b.slot_id = %s AND b.status = 'pending_payment'",
        slot["id"],
    )
    shop.stripe.pay(session_id)
    shop.wait_for(booking_id, "confirmed")
    [source] = shop.letters(booking_id)
    body = message_from_string(source, policy=policy.default).get_body(("plain",))
    assert body is not None
    [link] = re.findall(r"http\S+(/manage/\S+#\S+)", body.get_content())
    managing = windows().page(f"{shop.service.url}{link}")
    expect(managing.get_by_text("€25.00, paid")).to_be_visible()
    managing.get_by_role("button", name="Cancel the booking").click()
    expect(managing.get_by_role("dialog")).to_contain_text("What was paid is refunded until")
    managing.get_by_role("button", name="Yes, cancel it").click()
    expect(managing.get_by_text(re.compile("€25.00 (goes back|was refunded)"))).to_be_visible()
    shop.wait_for(booking_id, "cancelled", refund="done")
    shop.settle()


def test_the_letter_is_in_the_language_that_was_booked_in(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service, price=2500)
    slot = here.slots["Ben"][0]
    answer = client.post(f"/book/{here.slug}", params={"lang": "de"}, data=fields(here, slot))
    assert answer.status_code == 200
    [(booking_id, *_)] = booked(shop.service, slot)
    [source] = shop.letters(str(booking_id))
    letter = message_from_string(source, policy=policy.default)
    assert letter["Content-Language"] == "de"
    assert letter["Subject"].startswith("Bestätigt: ")


def test_who_may_pay_there_may_pay_now(shop: Shop, client: httpx.Client) -> None:
    here = salon(shop.service, price=2500)
    first, second = here.slots["Ben"][:2]
    there = client.post(f"/book/{here.slug}", data=fields(here, first, pay=""))
    assert (there.status_code, len(booked(shop.service, first))) == (200, 1)
    now = client.post(f"/book/{here.slug}", data=fields(here, second, pay="now"))
    assert (now.status_code, now.headers["location"].startswith(shop.stripe.url)) == (303, True)
    assert "set-cookie" not in now.headers
    # Stripe's page shows itself in no frame: only there the form leaves it.
    framed, whole = (client.get(here.form(second), headers={"Sec-Fetch-Dest": dest}) for dest in ("iframe", "document"))
    assert ('target="_top"' in framed.text, 'target="_top"' in whole.text) == (True, False)


# -- in a frame -------------------------------------------------------------------------------------------------------


def framing(url: str) -> str:
    return f"""<!doctype html><link rel=icon href=data:,>
        <iframe title=Booking src="{url.replace("&", "&amp;")}"></iframe>
        <script>heard = []; onmessage = ({{ data }}) => heard.push(data)</script>"""


def test_a_frame_of_the_venues_origin_fits_and_others_stay_empty(shop: Shop, windows: Windows) -> None:
    with another_site() as (origin, pages):
        mine, others = salon(shop.service, origins=[origin]), salon(shop.service)
        pages["/mine"], pages["/others"] = (framing(f"{each.url}?service={each.haircut}") for each in (mine, others))
        window = windows()
        window.expects("frame-ancestors", "chrome-error")
        page = window.page(f"{origin}/mine")
        expect(page.frame_locator("iframe").get_by_role("heading", name="With whom?")).to_be_visible()
        page.wait_for_function("heard.length > 0")
        [told, *_] = page.evaluate("heard")
        assert told["type"] == "holdfast:height"
        assert 200 < told["height"] < 2_000
        page.goto(f"{origin}/others")
        eventually(lambda: any("frame-ancestors" in fault for fault in window.faults), "the frame to be refused")
