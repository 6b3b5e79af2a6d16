"""The customers' pages: booking with links and forms alone, in a frame, and managing what was booked.

Most windows here have no JavaScript; what the widget does is in its own tests. Both stores are looked at afterwards.
"""

import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_string, policy
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

import httpx
import icalendar
import psycopg
import pytest
from playwright.sync_api import Page, Route, expect

from app.domain import BookingStatus, RefundStatus
from app.pages import language
from tests import factories
from tests.browser import DESKTOP, PHONE, Windows, another_site, assert_accessible, chromium, windows
from tests.redis_servers import RedisServer
from tests.service import CUSTOMER, Postgres, Service, assert_slot_holds, eventually
from tests.shop import Shop, running_shop
from tests.visitor import DAY

__all__ = ["chromium", "windows"]

#: What somebody may type as a name; as markup it would be seen at once.
EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
BERLIN = ZoneInfo("Europe/Berlin")
#: In hours after the usual start: far from midnight, by the clocks of the venues too.
MORNING = (DAY - factories.START) / timedelta(hours=1)
#: One client is told from another, and limited only where a venue says so.
LIMITS = {
    "HOLDFAST_TRUSTED_PROXIES": "127.0.0.1",
    "HOLDFAST_RATE_LIMIT": "off",
    "HOLDFAST_HOLDS_PER_CLIENT": "off",
}


@pytest.fixture(scope="module")
def shop(
    postgres: Postgres, bundled_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    with (
        running_shop(
            postgres.fresh(), bundled_redis_server, tmp_path_factory.mktemp("shop"), workers=1, **LIMITS
        ) as shop,
        shop.with_worker(),
    ):
        yield shop


@pytest.fixture
def client(shop: Shop) -> Iterator[httpx.Client]:
    with factories.client(shop.service) as client:
        yield client


@dataclass
class Salon:
    """A venue with a service that two people offer, and slots of both on one day."""

    service: Service
    slug: str
    haircut: str
    people: dict[str, str]
    #: By person, in the order of their start.
    slots: dict[str, list[dict[str, Any]]]

    @property
    def url(self) -> str:
        return f"{self.service.url}/book/{self.slug}"

    def form(self, slot: dict[str, Any], **asked: str) -> str:
        return str(httpx.URL(self.url, params={"service": self.haircut, "anybody": "yes", "slot": slot["id"], **asked}))


def salon(service: Service, *, name: str = "Salon", capacity: int = 1, price: int = 0, **venue: Any) -> Salon:
    with factories.client(service, operator=True) as operator:
        slug = factories.venue(operator, name=name, **venue)["slug"]
        people = {
            person: factories.resource(operator, slug, name=person, kind="person") for person in (f"Ada {name}", "Ben")
        }
        ids = [each["id"] for each in people.values()]
        body = {"venue": slug, "name": f"Cut {name}", "duration_minutes": 60, "resource_ids": ids}
        haircut = factories.made(operator.post("/v1/services", json={**body, "capacity": capacity}))["id"]
        priced = {"price": {"amount": price, "currency": "EUR"}} if price else {}
        slots = {
            person: [
                factories.slot(operator, of, hours=hours, service_id=haircut, capacity=capacity, **priced)
                for hours in (MORNING, MORNING + 1, MORNING + 2)
            ]
            for person, of in people.items()
        }
    return Salon(service, slug, haircut, {person: of["id"] for person, of in people.items()}, slots)


def at(slot: dict[str, Any]) -> str:
    return f"{datetime.fromisoformat(slot['starts_at']).astimezone(BERLIN):%H:%M}"


def fill(page: Page, name: str = "Ada Lovelace", email: str = "ada@example.com") -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("E-mail").fill(email)


def fields(of: Salon, slot: dict[str, Any], **typed: str) -> dict[str, str]:
    """What a browser sends of the form."""
    key = uuid.uuid4().hex
    return {
        "slot": slot["id"],
        "quantity": "1",
        "key": key,
        "anybody": "yes",
        "service": of.haircut,
        **CUSTOMER,
        **typed,
    }


def booked(service: Service, slot: dict[str, Any]) -> list[tuple[Any, ...]]:
    return service.query(
        "SELECT id, customer_name, quantity FROM bookings WHERE slot_id = %s AND status = 'confirmed'", slot["id"]
    )


# -- without JavaScript -----------------------------------------------------------------------------------------------


def test_booking_with_links_and_a_form_alone(shop: Shop, windows: Windows) -> None:
    """And whatever people are called, it is text."""
    here = salon(shop.service, name=EVIL)
    window = windows(java_script_enabled=False)
    window.expects("400")
    page = window.page(here.url)
    expect(page.get_by_role("heading", level=1)).to_have_text(EVIL)
    page.get_by_role("link", name=f"Cut {EVIL}").click()
    page.get_by_role("link", name="Anybody who is free").click()
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
    slot = here.slots["Ben"][0]
    window = windows(java_script_enabled=False)
    window.expects("409")
    page = window.page(here.form(slot))
    fill(page, name="Grace Hopper", email="grace@example.com")
    with factories.client(shop.service) as rival:
        factories.booking(rival, slot["id"])
    page.get_by_role("button", name="Book").click()
    expect(page.get_by_role("alert")).to_contain_text("Somebody else was faster. Nothing was booked.")
    expect(page.get_by_label("Name")).to_have_value("Grace Hopper")
    expect(page.get_by_label("E-mail")).to_have_value("grace@example.com")
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


@pytest.mark.parametrize("of", language.LANGUAGES)
def test_all_languages_say_the_same(of: str) -> None:
    def places(text: object) -> list[str]:
        return sorted(set(re.findall(r"\{\w+\}", str(text))))

    english, other = language.words("en"), language.words(of)
    assert list(other) == list(english)
    assert {name: places(text) for name, text in other.items()} == {n: places(t) for n, t in english.items()}
    assert (len(other["weekdays"]), len(other["months"])) == (7, 12)


@pytest.mark.parametrize("of", language.LANGUAGES)
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


# -- managing ---------------------------------------------------------------------------------------------------------


def managed(here: Salon, slot: dict[str, Any]) -> tuple[dict[str, Any], str]:
    with factories.client(here.service) as everyone:
        made = factories.booking(everyone, slot["id"])
    return made, f"{here.service.url}/manage/{made['id']}#{made['manage_token']}"


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
    expect(page.get_by_text("to be paid there")).to_have_count(0)
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
    here = salon(shop.service)
    slot = here.slots["Ben"][0]
    made, _ = managed(here, slot)
    grace = {"name": "Grace Hopper", "email": "grace@example.com"}
    entry = factories.made(client.post("/v1/waiting-list", json={"slot_id": slot["id"], "customer": grace}))
    page = windows().page(f"{shop.service.url}/offer/{entry['id']}#{entry['token']}")
    expect(page.get_by_text("Your place in the line: 1.")).to_be_visible()
    client.post(f"/v1/bookings/{made['id']}/cancel", headers={"Manage-Token": made["manage_token"]})
    page.reload()
    expect(page.get_by_text("Kept for you until")).to_be_visible()
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
    next_one = client.get(f"/v1/waiting-list/{second['id']}", headers={"Waiting-Token": second["token"]}).json()
    assert next_one["status"] == "offered"


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
    page.get_by_role("button", name="Book and pay there").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert_accessible(page)
    with factories.client(shop.service) as rival:
        factories.booking(rival, taken["id"])
    fill(page)
    page.get_by_role("button", name="Book and pay there").click()
    expect(page.get_by_role("radio").first).to_be_visible()
    assert_accessible(page)
    page.get_by_role("button", name="Book and pay there").click()
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
