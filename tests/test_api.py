"""The contract, route by route, against a running service, with Redis and without (design 7)."""

import base64
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests import factories
from tests.factories import START, booking_body, slot_body
from tests.service import CUSTOMER, Service, eventually

SLOT_FIELDS = {
    "id", "venue", "resource", "service", "starts_at", "ends_at", "timezone", "capacity", "available", "held",
    "available_count", "status", "price",
}  # fmt: skip
BOOKING_FIELDS = {
    "id", "slot_id", "quantity", "status", "customer", "metadata", "expires_at", "created_at", "confirmed_at",
    "cancelled_at", "available_count", "version",
}  # fmt: skip
HOLD_FIELDS = {"id", "slot_id", "quantity", "status", "expires_at", "ttl_seconds", "server_time", "degraded"}
EVENT_FIELDS = {"seq", "at", "type", "actor", "booking_id", "slot_id", "data"}


@pytest.fixture
def operator(service: Service) -> Iterator[httpx.Client]:
    with factories.client(service, operator=True) as client:
        yield client


@pytest.fixture
def everyone(service: Service) -> Iterator[httpx.Client]:
    with factories.client(service) as client:
        yield client


def at(text: str) -> datetime:
    assert text.endswith("Z"), text
    return datetime.fromisoformat(text)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check the one form of every refusal; returns its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    problem: dict[str, Any] = answer.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "code", "request_id"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"/problems/{code}"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    return problem


# -- venues and resources ---------------------------------------------------------------------------------------------


def test_a_venue_is_made_read_listed_and_changed(operator: httpx.Client, everyone: httpx.Client) -> None:
    slug = factories.unique("venue")
    answer = operator.post("/v1/venues", json={"slug": slug, "name": "Boats", "timezone": "Europe/Berlin"})
    made = factories.made(answer)
    assert answer.headers["location"] == f"/v1/venues/{slug}"
    assert made == {
        "id": made["id"], "slug": slug, "name": "Boats", "timezone": "Europe/Berlin", "payment": "on_site",
        "hold_ttl_seconds": None, "hold_max_seconds": 1800, "refund_hours": 0, "return_origins": None, "origins": [],
        "holds_per_client": None,
        "waiting_offer_minutes": 15, "resources": [], "services": [],
    }  # fmt: skip

    ada = factories.resource(operator, slug, name="Ada", kind="person")
    assert everyone.get(f"/v1/venues/{slug}").json() == {**made, "resources": [ada]}
    assert ada == {"id": ada["id"], "venue": slug, "name": "Ada", "kind": "person"}

    changed = operator.patch(f"/v1/venues/{slug}", json={"name": "Ships", "hold_ttl_seconds": 60})
    assert changed.json() == {**made, "name": "Ships", "hold_ttl_seconds": 60, "resources": [ada]}
    assert operator.patch(f"/v1/venues/{slug}", json={"hold_ttl_seconds": None}).json()["hold_ttl_seconds"] is None
    assert operator.patch(f"/v1/venues/{slug}", json={}).json()["name"] == "Ships"

    listed = [venue["slug"] for venue in pages(operator, "/v1/venues?limit=100")]
    assert slug in listed
    assert listed == sorted(listed)
    types = [event["type"] for event in pages(operator, "/v1/events?limit=1000")]
    assert types.count("venue.updated") >= 2


def test_a_slug_is_given_once(operator: httpx.Client) -> None:
    slug = factories.venue(operator)["slug"]
    again = operator.post("/v1/venues", json={"slug": slug, "name": "Other", "timezone": "UTC"})
    assert_problem(again, 409, "conflict")


def test_what_is_unknown_is_not_found(operator: httpx.Client, everyone: httpx.Client) -> None:
    nothing = uuid4()
    assert_problem(everyone.get("/v1/venues/nowhere"), 404, "venue_not_found")
    assert_problem(everyone.get("/v1/venues/No%00where"), 404, "venue_not_found")
    assert_problem(operator.patch("/v1/venues/nowhere", json={"name": "x"}), 404, "venue_not_found")
    assert_problem(operator.patch("/v1/venues/No%00where", json={"name": "x"}), 404, "venue_not_found")
    assert_problem(everyone.get("/v1/slots", params={"venue": "nowhere"}), 404, "venue_not_found")
    assert_problem(operator.get("/v1/bookings", params={"venue": "nowhere"}), 404, "venue_not_found")
    slot_missing = assert_problem(everyone.get(f"/v1/slots/{nothing}"), 404, "slot_not_found")
    assert slot_missing["detail"] == "Slot not found"
    assert_problem(operator.patch(f"/v1/slots/{nothing}", json={"capacity": 2}), 404, "slot_not_found")
    assert_problem(everyone.post("/v1/holds", json={"slot_id": str(nothing)}), 404, "slot_not_found")
    assert_problem(everyone.post("/v1/bookings", json=booking_body(str(nothing))), 404, "slot_not_found")
    assert_problem(operator.get(f"/v1/bookings/{nothing}"), 404, "booking_not_found")
    assert_problem(operator.post(f"/v1/bookings/{nothing}/cancel"), 404, "booking_not_found")
    assert operator.delete(f"/v1/holds/{nothing}").status_code == 204  # gone is what was asked for
    resource = {"venue": "nowhere", "name": "Ada", "kind": "person"}
    assert_problem(operator.post("/v1/resources", json=resource), 404, "venue_not_found")
    assert_problem(everyone.get("/v1/nothing"), 404, "not_found")


# -- slots ------------------------------------------------------------------------------------------------------------


def test_a_slot_is_made_and_read(operator: httpx.Client, everyone: httpx.Client) -> None:
    venue = factories.venue(operator)
    ada = factories.resource(operator, venue["slug"])
    price = {"amount": 4200, "currency": "EUR"}
    answer = operator.post("/v1/slots", json=slot_body(ada, capacity=3, price=price))
    made = factories.made(answer)
    assert made.keys() == SLOT_FIELDS
    assert answer.headers["location"] == f"/v1/slots/{made['id']}"
    assert made == {
        "id": made["id"], "venue": venue["slug"], "resource": {"id": ada["id"], "name": "Ada"}, "service": None,
        "starts_at": START.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "ends_at": (START + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "timezone": "Europe/Berlin", "capacity": 3, "available": 3, "held": 0, "available_count": 3,
        "status": "available", "price": price,
    }  # fmt: skip
    assert everyone.get(f"/v1/slots/{made['id']}").json() == made


def test_a_list_of_slots_comes_back_in_its_order(operator: httpx.Client) -> None:
    ada = factories.resource(operator, factories.venue(operator)["slug"])
    wanted = [slot_body(ada, hours=hours) for hours in (5, 1, 3)]
    answer = operator.post("/v1/slots", json={"slots": wanted})
    made = factories.made(answer)
    assert made.keys() == {"data"}
    assert "location" not in answer.headers
    assert [at(slot["starts_at"]) for slot in made["data"]] == [at_body(body) for body in wanted]


def at_body(body: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(body["starts_at"])


def test_a_thousand_slots_are_made_at_once(operator: httpx.Client) -> None:
    ada = factories.resource(operator, factories.venue(operator)["slug"])
    made = operator.post("/v1/slots", json={"slots": [slot_body(ada, hours=hours) for hours in range(1000)]})
    assert len(factories.made(made)["data"]) == 1000
    too_many = operator.post("/v1/slots", json={"slots": [slot_body(ada, hours=hours) for hours in range(1001)]})
    assert_problem(too_many, 400, "invalid_request")


def test_slots_belong_to_resources_of_their_venue(operator: httpx.Client) -> None:
    ada = factories.resource(operator, factories.venue(operator)["slug"])
    elsewhere = {**slot_body(ada), "venue": factories.venue(operator)["slug"]}
    assert_problem(operator.post("/v1/slots", json=elsewhere), 404, "not_found")
    assert_problem(operator.post("/v1/slots", json={**slot_body(ada), "venue": "nowhere"}), 404, "venue_not_found")
    with_service = slot_body(ada, service_id=str(uuid4()))
    assert_problem(operator.post("/v1/slots", json=with_service), 404, "not_found")


def pages(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    """Follow a list to its end."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        answer = client.get(httpx.URL(path).copy_merge_params({} if cursor is None else {"cursor": cursor}))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page.keys() == {"data", "next_cursor"}
        found += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_slots_are_listed_in_pages_by_time(operator: httpx.Client, everyone: httpx.Client) -> None:
    venue = factories.venue(operator)["slug"]
    ada, bob = (factories.resource(operator, venue, name=name) for name in ("Ada", "Bob"))
    wanted = [slot_body(of, hours=hours, capacity=2) for hours in range(4) for of in (ada, bob)]
    made = factories.made(operator.post("/v1/slots", json={"slots": wanted}))["data"]
    in_order = [slot["id"] for slot in sorted(made, key=lambda slot: (slot["starts_at"], slot["id"]))]

    def ids(**parameters: Any) -> list[str]:
        return [slot["id"] for slot in pages(everyone, str(httpx.URL("/v1/slots", params=parameters)))]

    assert ids(venue=venue) == in_order
    assert ids(venue=venue, limit=3) == in_order
    assert ids(venue=venue, limit=1) == in_order
    assert sorted(ids(resource_id=ada["id"])) == sorted(made[n]["id"] for n in range(0, 8, 2))
    assert sorted(ids(venue=venue, **{"from": made[2]["starts_at"], "to": made[6]["starts_at"]})) == sorted(
        made[n]["id"] for n in range(2, 6)
    )
    assert ids(venue=venue, service_id=str(uuid4())) == []
    assert ids(venue=factories.venue(operator)["slug"]) == []

    # With a party in mind, what has no room for it is left out, also when only holds fill it.
    factories.booking(everyone, made[0]["id"], 1)
    factories.hold(everyone, made[1]["id"], 2)
    full = {made[0]["id"], made[1]["id"]}
    assert ids(venue=venue, quantity=2, limit=1) == [slot for slot in in_order if slot not in full]
    assert made[0]["id"] in ids(venue=venue, quantity=1)
    assert set(ids(venue=venue)) == set(in_order)


def test_what_a_slot_says_follows_what_happens_to_it(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=3)

    def said() -> tuple[int, int, str]:
        found = everyone.get(f"/v1/slots/{slot['id']}").json()
        return found["available"], found["held"], found["status"]

    hold = factories.hold(everyone, slot["id"], 2)
    assert said() == (1, 2, "available")
    booking = factories.booking(everyone, slot["id"])
    eventually(lambda: said() == (0, 2, "held"), "the slot to be held")
    confirmed = everyone.post("/v1/bookings", json={"hold_token": hold["token"], "customer": CUSTOMER})
    assert confirmed.json()["available_count"] == 0
    eventually(lambda: said() == (0, 0, "sold_out"), "the slot to be sold out")
    everyone.post(f"/v1/bookings/{booking['id']}/cancel", headers={"Manage-Token": booking["manage_token"]})
    assert said() == (1, 0, "available")
    operator.patch(f"/v1/slots/{slot['id']}", json={"status": "closed"})
    assert said() == (1, 0, "closed")


def test_a_person_does_one_thing_at_a_time(operator: httpx.Client, everyone: httpx.Client) -> None:
    ada = factories.resource(operator, factories.venue(operator)["slug"], kind="person")
    first = factories.slot(operator, ada, hours=0)
    overlapping = factories.slot(operator, ada, hours=0.5)
    factories.booking(everyone, first["id"])
    found = everyone.get(f"/v1/slots/{overlapping['id']}").json()
    assert (found["available"], found["available_count"], found["status"]) == (0, 1, "sold_out")
    refused = everyone.post("/v1/bookings", json=booking_body(overlapping["id"]))
    assert assert_problem(refused, 409, "slot_unavailable")["reason"] == "booked"


def test_a_slot_is_changed_but_never_below_what_is_booked(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=3)
    factories.booking(everyone, slot["id"], 2)
    path = f"/v1/slots/{slot['id']}"
    assert_problem(operator.patch(path, json={"capacity": 1}), 409, "conflict")
    changed = operator.patch(path, json={"capacity": 4}).json()
    assert (changed["capacity"], changed["available_count"], changed["available"]) == (4, 2, 2)
    assert operator.patch(path, json={}).json() == changed
    assert operator.patch(path, json={"status": "closed"}).json()["status"] == "closed"
    refused = assert_problem(everyone.post("/v1/bookings", json=booking_body(slot["id"])), 409, "slot_unavailable")
    assert (refused["reason"], refused["available"]) == ("closed", 0)
    assert operator.patch(path, json={"status": "open"}).json()["status"] == "available"
    factories.booking(everyone, slot["id"], 2)
    assert_problem(everyone.post("/v1/bookings", json=booking_body(slot["id"])), 409, "slot_unavailable")


def test_the_past_is_not_for_sale(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, hours=-24 * 30)
    assert slot["status"] == "past"
    refused = assert_problem(everyone.post("/v1/bookings", json=booking_body(slot["id"])), 409, "slot_unavailable")
    assert refused["reason"] == "past"
    held = everyone.post("/v1/holds", json={"slot_id": slot["id"]})
    assert assert_problem(held, 409, "slot_unavailable")["reason"] == "past"


# -- holds ------------------------------------------------------------------------------------------------------------


def test_a_hold_is_taken_read_prolonged_and_given_up(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=2)
    answer = everyone.post("/v1/holds", json={"slot_id": slot["id"]})
    hold = factories.made(answer)
    assert hold.keys() == {*HOLD_FIELDS, "token"}
    assert answer.headers["location"] == f"/v1/holds/{hold['id']}"
    assert (hold["slot_id"], hold["quantity"], hold["status"]) == (slot["id"], 1, "active")
    assert hold["ttl_seconds"] == 300
    assert at(hold["expires_at"]) - at(hold["server_time"]) == timedelta(seconds=300)

    token = {"Hold-Token": hold["token"]}
    read = everyone.get(f"/v1/holds/{hold['id']}", headers=token).json()
    assert read.keys() == HOLD_FIELDS
    assert (read["id"], read["slot_id"], read["quantity"]) == (hold["id"], slot["id"], 1)

    longer = everyone.post(f"/v1/holds/{hold['id']}/extend", headers=token)
    assert longer.status_code == 200, longer.text
    assert longer.json().keys() == {*HOLD_FIELDS, "token"}
    assert at(longer.json()["expires_at"]) > at(hold["expires_at"])

    listed = operator.get("/v1/holds", params={"slot_id": slot["id"]}).json()
    assert [each["id"] for each in listed["data"]] == [hold["id"]]
    assert listed["data"][0].keys() == HOLD_FIELDS | {"created_at", "slot"}  # tokens are for their holders
    assert at(listed["data"][0]["created_at"]) <= at(listed["data"][0]["server_time"])
    assert listed["data"][0]["slot"] == {
        "venue": slot["venue"],
        "what": slot["resource"]["name"],
        "starts_at": slot["starts_at"],
        "timezone": slot["timezone"],
    }
    assert [each["id"] for each in operator.get("/v1/holds", params={"venue": slot["venue"]}).json()["data"]] == [
        hold["id"]
    ]

    for _ in range(2):  # a second time is harmless
        gone = everyone.delete(f"/v1/holds/{hold['id']}", headers=token)
        assert (gone.status_code, gone.content) == (204, b"")
    assert operator.get("/v1/holds", params={"slot_id": slot["id"]}).json()["data"] == []
    assert everyone.get(f"/v1/slots/{slot['id']}").json()["available"] == 2


def test_holds_are_narrowed_to_what_there_is(operator: httpx.Client, everyone: httpx.Client) -> None:
    """Who mistypes is not told that nobody holds anything; a venue and a slot of another one have nothing in common."""
    slot, elsewhere = factories.slot(operator), factories.slot(operator)
    hold = factories.hold(everyone, slot["id"])
    assert_problem(operator.get("/v1/holds", params={"venue": "nowhere"}), 404, "venue_not_found")
    assert_problem(operator.get("/v1/holds", params={"slot_id": hold["id"]}), 404, "slot_not_found")
    assert slot["venue"] != elsewhere["venue"]
    for venue, ids in ((slot["venue"], [hold["id"]]), (elsewhere["venue"], [])):
        both = operator.get("/v1/holds", params={"venue": venue, "slot_id": slot["id"]})
        assert [each["id"] for each in both.json()["data"]] == ids


def test_a_wrong_token_looks_like_a_missing_hold(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=5)
    hold, other = factories.hold(everyone, slot["id"]), factories.hold(everyone, slot["id"])
    raw = bytearray(base64.urlsafe_b64decode(hold["token"]))
    tampered = []
    for position in range(0, len(raw), 5):
        forged = raw.copy()
        forged[position] ^= 1
        tampered.append(base64.urlsafe_b64encode(forged).decode())
    for token in (None, "", "x", other["token"], hold["id"], "é", *tampered):
        headers = {} if token is None else {"Hold-Token": token.encode()}
        for method, path in (("GET", ""), ("POST", "/extend"), ("DELETE", "")):
            answer = everyone.request(method, f"/v1/holds/{hold['id']}{path}", headers=headers)
            assert_problem(answer, 404, "hold_not_found")
            keyed = everyone.request(
                method, f"/v1/holds/{hold['id']}{path}", headers={**headers, "Idempotency-Key": "k"}
            )
            assert_problem(keyed, 404, "hold_not_found")
    assert everyone.get(f"/v1/slots/{slot['id']}").json()["held"] == 2


def test_an_operator_ends_any_hold(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator)
    hold = factories.hold(everyone, slot["id"])
    wrong = everyone.delete(f"/v1/holds/{hold['id']}", headers={"Authorization": "Bearer wrong"})
    assert_problem(wrong, 401, "unauthorized")
    assert operator.delete(f"/v1/holds/{hold['id']}").status_code == 204
    assert everyone.get(f"/v1/slots/{slot['id']}").json()["available"] == 1


def test_venues_decide_how_long_a_hold_lives(operator: httpx.Client, everyone: httpx.Client) -> None:
    venue = factories.venue(operator, hold_ttl_seconds=5, hold_max_seconds=6)
    slot = factories.slot(operator, factories.resource(operator, venue["slug"]))
    hold = factories.hold(everyone, slot["id"])
    assert hold["ttl_seconds"] == 5
    token = {"Hold-Token": hold["token"]}
    time.sleep(1.2)  # now five more seconds would be beyond the sixth
    longest = everyone.post(f"/v1/holds/{hold['id']}/extend", headers=token).json()
    assert at(longest["expires_at"]) <= at(hold["server_time"]) + timedelta(seconds=6)
    assert_problem(everyone.post(f"/v1/holds/{hold['id']}/extend", headers=token), 409, "hold_limit")
    eventually(lambda: everyone.get(f"/v1/slots/{slot['id']}").json()["available"] == 1, "the hold to lapse")
    gone = everyone.get(f"/v1/holds/{hold['id']}", headers=token)
    expired = assert_problem(gone, 410, "hold_expired")
    assert at(expired["expired_at"])
    late = everyone.post("/v1/bookings", json={"hold_token": hold["token"], "customer": CUSTOMER})
    assert_problem(late, 410, "hold_expired")


# -- bookings ---------------------------------------------------------------------------------------------------------


def test_a_booking_is_made_read_and_cancelled(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=5)
    wanted = booking_body(slot["id"], 2, metadata={"b": [1, {"a": None}], "a": "ü"})
    wanted["customer"] = {"name": " Ada Lovelace ", "email": " Ada.L@EXAMPLE.com ", "phone": "+49 30 1"}
    answer = everyone.post("/v1/bookings", json=wanted)
    booking = factories.made(answer)
    assert booking.keys() == {*BOOKING_FIELDS, "manage_token"}
    assert answer.headers["location"] == f"/v1/bookings/{booking['id']}"
    assert (booking["slot_id"], booking["quantity"], booking["status"]) == (slot["id"], 2, "confirmed")
    assert booking["customer"] == {"name": "Ada Lovelace", "email": "Ada.L@example.com", "phone": "+49 30 1"}
    assert list(booking["metadata"]) == ["b", "a"]
    assert booking["metadata"] == wanted["metadata"]
    assert booking["available_count"] == 3
    assert booking["expires_at"] is None
    assert booking["cancelled_at"] is None
    assert at(booking["confirmed_at"])

    path, token = f"/v1/bookings/{booking['id']}", {"Manage-Token": booking.pop("manage_token")}
    assert everyone.get(path, headers=token).json() == booking
    assert operator.get(path).json() == booking

    cancelled = everyone.post(f"{path}/cancel", headers=token)
    assert cancelled.status_code == 200, cancelled.text
    assert cancelled.json() == {
        **booking, "status": "cancelled", "cancelled_at": cancelled.json()["cancelled_at"], "available_count": 5,
    }  # fmt: skip
    assert everyone.post(f"{path}/cancel", headers=token).json() == cancelled.json()  # a second time is harmless
    assert everyone.get(f"/v1/slots/{slot['id']}").json()["available"] == 5


def test_a_wrong_token_looks_like_a_missing_booking(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=2)
    booking, other = factories.booking(everyone, slot["id"]), factories.booking(everyone, slot["id"])
    path = f"/v1/bookings/{booking['id']}"
    for token in (None, "", "x", other["manage_token"], booking["id"], "é"):
        headers = {} if token is None else {"Manage-Token": token.encode()}
        assert_problem(everyone.get(path, headers=headers), 404, "booking_not_found")
        assert_problem(everyone.post(f"{path}/cancel", headers=headers), 404, "booking_not_found")
        keyed = {**headers, "Idempotency-Key": "k"}
        assert_problem(everyone.post(f"{path}/cancel", headers=keyed), 404, "booking_not_found")
    for given in ("Bearer wrong", "Bearer", "Bearer é"):
        headers = {"Authorization": given.encode()}
        assert_problem(everyone.get(path, headers=headers), 401, "unauthorized")
        assert_problem(everyone.post(f"{path}/cancel", headers=headers), 401, "unauthorized")
    assert operator.get(path).json()["status"] == "confirmed"


def test_a_full_slot_is_refused_with_alternatives(operator: httpx.Client, everyone: httpx.Client) -> None:
    ada = factories.resource(operator, factories.venue(operator)["slug"])
    bodies = [slot_body(ada, hours=hours, capacity=3) for hours in (0, 2, 4, 6)]
    full, near, later, closed = factories.made(operator.post("/v1/slots", json={"slots": bodies}))["data"]
    operator.patch(f"/v1/slots/{closed['id']}", json={"status": "closed"})
    factories.booking(everyone, full["id"], 3)
    for path, body in (
        ("/v1/bookings", booking_body(full["id"], 3)),
        ("/v1/holds", {"slot_id": full["id"], "quantity": 3}),
    ):
        refused = assert_problem(everyone.post(path, json=body), 409, "slot_unavailable")
        assert refused["detail"] == "Slot no longer available for 3 guests"
        assert (refused["reason"], refused["requested"], refused["available"]) == ("booked", 3, 0)
        assert refused["may_free_at"] is None
        assert [slot["id"] for slot in refused["alternatives"]] == [near["id"], later["id"]]
        assert all(slot.keys() == SLOT_FIELDS for slot in refused["alternatives"])
    single = assert_problem(everyone.post("/v1/bookings", json=booking_body(full["id"])), 409, "slot_unavailable")
    assert single["detail"] == "Slot no longer available for 1 guest"


def test_a_held_slot_says_when_it_may_be_free(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator)
    hold = factories.hold(everyone, slot["id"])
    refused = assert_problem(everyone.post("/v1/bookings", json=booking_body(slot["id"])), 409, "slot_unavailable")
    assert refused["reason"] == "held"
    assert refused["may_free_at"] == hold["expires_at"]


def test_more_than_there_are_places_in_all_makes_no_sense(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=2)
    for path, body in (
        ("/v1/bookings", booking_body(slot["id"], 3)),
        ("/v1/holds", {"slot_id": slot["id"], "quantity": 3}),
    ):
        refused = assert_problem(everyone.post(path, json=body), 400, "invalid_request")
        assert refused["errors"][0]["field"] == "quantity"


def test_a_hold_becomes_a_booking_once(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=2)
    hold = factories.hold(everyone, slot["id"], 2)
    wanted = {"hold_token": hold["token"], "customer": CUSTOMER}
    booking = factories.made(everyone.post("/v1/bookings", json=wanted))
    assert (booking["id"], booking["quantity"]) == (hold["id"], 2)
    resolved = assert_problem(everyone.post("/v1/bookings", json=wanted), 409, "already_resolved")
    assert (resolved["booking_id"], resolved["booking_status"]) == (booking["id"], "confirmed")
    assert at(resolved["resolved_at"])


def test_bookings_are_listed_for_operators(operator: httpx.Client, everyone: httpx.Client) -> None:
    ada = factories.resource(operator, factories.venue(operator)["slug"])
    today, tomorrow = (factories.slot(operator, ada, hours=hours, capacity=9) for hours in (0, 24))
    made = [factories.booking(everyone, slot["id"]) for slot in (today, tomorrow, today)]
    operator.post(f"/v1/bookings/{made[2]['id']}/cancel")
    factories.hold(everyone, today["id"])  # is no booking, wherever it is kept

    def ids(**parameters: Any) -> list[str]:
        path = str(httpx.URL("/v1/bookings", params={"venue": ada["venue"], **parameters}))
        found = pages(operator, path)
        assert all(booking.keys() == BOOKING_FIELDS for booking in found)
        return [booking["id"] for booking in found]

    first, second, third = (booking["id"] for booking in made)
    assert ids() == [first, second, third]
    assert ids(limit=1) == [first, second, third]
    assert ids(slot_id=today["id"]) == [first, third]
    assert ids(status="cancelled") == [third]
    assert ids(status="confirmed", **{"from": tomorrow["starts_at"]}) == [second]
    assert ids(to=tomorrow["starts_at"]) == [first, third]


# -- repeated requests ------------------------------------------------------------------------------------------------


def repeated(client: httpx.Client, path: str, status: int, **request: Any) -> httpx.Response:
    """Send a request twice with one key, once quoted; the second answer is the first one again."""
    key = factories.unique("key")
    headers = request.pop("headers", {})
    first = client.post(path, headers={**headers, "Idempotency-Key": key}, **request)
    again = client.post(path, headers={**headers, "Idempotency-Key": f'"{key}"'}, **request)
    assert (first.status_code, again.status_code) == (status, status), (first.text, again.text)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers.get("location") == first.headers.get("location")
    return again if again.content == first.content else pytest.fail(f"{first.text}\n{again.text}")


def test_every_creation_is_harmless_to_repeat(operator: httpx.Client, everyone: httpx.Client) -> None:
    slug = factories.unique("venue")
    repeated(operator, "/v1/venues", 201, json={"slug": slug, "name": "Boats", "timezone": "UTC"})
    resource = {"venue": slug, "name": "Ada", "kind": "event"}
    ada = repeated(operator, "/v1/resources", 201, json=resource).json()
    slot = repeated(operator, "/v1/slots", 201, json=slot_body(ada, capacity=5)).json()
    repeated(operator, "/v1/slots", 201, json={"slots": [slot_body(ada, hours=3), slot_body(ada, hours=4)]})
    assert len(pages(everyone, f"/v1/slots?venue={slug}")) == 3

    booking = repeated(everyone, "/v1/bookings", 201, json=booking_body(slot["id"], metadata={"b": 1, "a": 2})).json()
    token = {"Manage-Token": booking["manage_token"]}
    repeated(everyone, f"/v1/bookings/{booking['id']}/cancel", 200, headers=token)
    assert everyone.get(f"/v1/slots/{slot['id']}").json()["available_count"] == 5

    hold = factories.hold(everyone, slot["id"])
    extended = repeated(everyone, f"/v1/holds/{hold['id']}/extend", 200, headers={"Hold-Token": hold["token"]}).json()
    confirmed = everyone.post("/v1/bookings", json={"hold_token": extended["token"], "customer": CUSTOMER})
    assert confirmed.status_code == 201


def test_a_repeated_hold_is_the_same_hold(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=5)
    key = {"Idempotency-Key": factories.unique("hold")}
    body = {"slot_id": slot["id"], "quantity": 2}
    first, again = (everyone.post("/v1/holds", json=body, headers=key) for _ in range(2))
    assert again.status_code == 201
    assert again.headers["idempotency-replayed"] == "true"
    moving = {"server_time", "ttl_seconds"}  # the countdown goes on
    assert {k: v for k, v in again.json().items() if k not in moving} == {
        k: v for k, v in first.json().items() if k not in moving
    }
    assert everyone.get(f"/v1/slots/{slot['id']}").json()["held"] == 2
    other = everyone.post("/v1/holds", json={**body, "quantity": 1}, headers=key)
    assert_problem(other, 422, "idempotency_key_reused")


def test_one_key_is_for_one_request(operator: httpx.Client, everyone: httpx.Client) -> None:
    ada = factories.resource(operator, factories.venue(operator)["slug"])
    slot = factories.slot(operator, ada, capacity=5)
    key = {"Idempotency-Key": factories.unique("key")}
    assert everyone.post("/v1/bookings", json=booking_body(slot["id"]), headers=key).status_code == 201
    for other in (booking_body(slot["id"], 2), booking_body(slot["id"], metadata={"a": 1})):
        assert_problem(everyone.post("/v1/bookings", json=other, headers=key), 422, "idempotency_key_reused")
    assert operator.post("/v1/slots", json=slot_body(ada, hours=2), headers=key).status_code == 201
    again = operator.post("/v1/slots", json=slot_body(ada, hours=3), headers=key)
    assert_problem(again, 422, "idempotency_key_reused")


def test_a_key_is_about_what_was_asked_not_how_it_was_written(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=5)
    headers = {"Idempotency-Key": factories.unique("key"), "Content-Type": "application/json"}
    person = '{"name": "Ada", "email": "ada@example.com"}'
    turned = '{ "email":"ada@EXAMPLE.com", "name":"\\u0041da" }'
    first = everyone.post("/v1/bookings", content=f'{{"slot_id":"{slot["id"]}","customer":{person}}}', headers=headers)
    again = everyone.post(
        "/v1/bookings", content=f'{{"quantity":1,"customer":{turned},"slot_id":"{slot["id"]}"}}', headers=headers
    )
    assert (first.status_code, again.status_code) == (201, 201), again.text
    assert again.content == first.content


def test_a_refusal_stores_nothing(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator)
    booking = factories.booking(everyone, slot["id"])
    key = {"Idempotency-Key": factories.unique("key")}
    wanted = booking_body(slot["id"])
    assert_problem(everyone.post("/v1/bookings", json=wanted, headers=key), 409, "slot_unavailable")
    operator.post(f"/v1/bookings/{booking['id']}/cancel")
    later = everyone.post("/v1/bookings", json=wanted, headers=key)
    assert later.status_code == 201, later.text
    assert "idempotency-replayed" not in later.headers


# -- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_tells_what_happened(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator, capacity=2)
    booking = factories.booking(everyone, slot["id"])
    operator.post(f"/v1/bookings/{booking['id']}/cancel")
    told = operator.get("/v1/events", params={"slot_id": slot["id"]}).json()["data"]
    assert all(event.keys() == EVENT_FIELDS for event in told)
    assert [(event["type"], event["actor"]) for event in told] == [
        ("slot.created", "operator"), ("booking.confirmed", "customer"), ("booking.cancelled", "operator"),
    ]  # fmt: skip
    assert [event["booking_id"] for event in told] == [None, booking["id"], booking["id"]]
    of_booking = operator.get("/v1/events", params={"booking_id": booking["id"]}).json()["data"]
    assert of_booking == told[1:]
    confirmed = operator.get("/v1/events", params={"booking_id": booking["id"], "type": "booking.confirmed"}).json()
    assert confirmed == {"data": [told[1]], "next_cursor": None}


def test_the_log_is_followed_from_near_its_end(operator: httpx.Client) -> None:
    slot = factories.slot(operator)
    for capacity in range(2, 5):
        operator.patch(f"/v1/slots/{slot['id']}", json={"capacity": capacity})
    of_slot: dict[str, Any] = {"slot_id": slot["id"]}

    def told() -> bool:  # what is committed is shown when no older transaction is under way
        data = operator.get("/v1/events", params={**of_slot, "last": 2}).json()["data"]
        return [each["data"].get("capacity") for each in data] == [3, 4]

    eventually(told, "the log to be told")
    assert len(operator.get("/v1/events", params={**of_slot, "last": 9}).json()["data"]) == 4
    for beside in ({"after": 0}, {"cursor": 1}):
        assert_problem(operator.get("/v1/events", params={"last": 2, **beside}), 400, "invalid_request")


def test_the_log_is_followed(operator: httpx.Client) -> None:
    slot = factories.slot(operator)
    for capacity in range(2, 7):
        operator.patch(f"/v1/slots/{slot['id']}", json={"capacity": capacity})
    everything = operator.get("/v1/events", params={"slot_id": slot["id"], "limit": 1000}).json()["data"]
    seen: list[dict[str, Any]] = []

    def follow() -> bool:
        parameters: dict[str, Any] = {"slot_id": slot["id"], "limit": 2, "after": seen[-1]["seq"] if seen else 0}
        page = operator.get("/v1/events", params=parameters).json()
        seen.extend(page["data"])
        # At first there may be nothing: an older transaction, of whatever database, is under way.
        assert page["next_cursor"] in (None, str(seen[-1]["seq"]) if seen else None)
        return len(seen) == 6

    eventually(follow, "the log to be told")
    assert seen == everything
    assert not follow() or len(seen) == 6


# -- who may ----------------------------------------------------------------------------------------------------------

OPERATORS_ONLY = [
    ("GET", "/v1/venues"), ("POST", "/v1/venues"), ("PATCH", "/v1/venues/x"), ("POST", "/v1/resources"),
    ("POST", "/v1/slots"), ("PATCH", "/v1/slots/4bf92f35-77b3-4da6-a3ce-929d0e0e4736"), ("GET", "/v1/holds"),
    ("GET", "/v1/bookings"), ("GET", "/v1/events"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), OPERATORS_ONLY)
def test_operators_need_their_key(
    everyone: httpx.Client, operator: httpx.Client, service: Service, method: str, path: str
) -> None:
    key = service.operator["Authorization"]
    wrong = ["", "Bearer", "Bearer wrong", key[:-1], key + "x", key.replace("Bearer", "Basic"), "Bearer é"]
    assert_problem(everyone.request(method, path), 401, "unauthorized")
    for given in wrong:
        answer = everyone.request(method, path, headers={"Authorization": given.encode()})
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    cookie = everyone.request(method, path, headers={"Cookie": f"Authorization={key}"})
    assert_problem(cookie, 401, "unauthorized")
    assert operator.request(method, path).status_code != 401


# -- machines ---------------------------------------------------------------------------------------------------------


def test_health_is_told(everyone: httpx.Client, service: Service) -> None:
    for path in ("/livez", "/readyz"):
        head = everyone.head(path)
        assert (head.status_code, head.content) == (200, b"")
    assert everyone.get("/livez").json() == {"status": "ok"}
    redis = "ok" if service.redis else "degraded"
    assert everyone.get("/readyz").json() == {"postgres": "ok", "redis": redis}


def test_metrics_name_routes_and_nobody(operator: httpx.Client, everyone: httpx.Client, service: Service) -> None:
    slot = factories.slot(operator)
    booking = factories.booking(everyone, slot["id"])
    everyone.get(f"/v1/bookings/{booking['id']}?canary=1")
    everyone.get(f"/no/such/{uuid4()}")
    everyone.request("CANARY", "/v1/slots")
    text = everyone.get("/metrics").text
    for expected in (
        'holdfast_http_request_seconds_count{method="POST",route="/v1/bookings",status="201"}',
        'holdfast_outcomes_total{operation="book",outcome="booked"}',
        "holdfast_backstop_conflicts_total",
        "holdfast_degraded",
    ):
        assert expected in text
    assert 'route="unmatched"' in text
    for secret in (
        slot["id"],
        booking["id"],
        booking["manage_token"],
        "canary",
        "CANARY",
        CUSTOMER["email"],
        "/no/such",
    ):
        assert secret not in text
    assert (service.metric("holdfast_degraded") > 0) == (service.redis is None)


def test_request_ids_are_taken_when_they_are_sane(everyone: httpx.Client) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert everyone.get("/livez", headers={"X-Request-Id": "order-4711"}).headers["x-request-id"] == "order-4711"
    traced = everyone.get("/livez", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert traced.headers["x-request-id"] == trace
    odd_ones = (b"x", b"not sane", b"x" * 65, "é".encode() * 9)
    made = {everyone.get("/livez", headers={"X-Request-Id": odd}).headers["x-request-id"] for odd in odd_ones}
    assert len(made) == 4
    assert all(len(each) == 32 for each in made)


def test_every_answer_is_safe_to_show_and_not_to_keep(operator: httpx.Client, everyone: httpx.Client) -> None:
    slot = factories.slot(operator)
    for path in ("/livez", "/readyz", "/metrics", "/v1/slots", f"/v1/slots/{slot['id']}", "/nothing"):
        headers = everyone.get(path).headers
        # A list of slots may be kept by who asked, who then asks each time whether it is still so.
        kept = "private, no-cache" if path == "/v1/slots" else "no-store"
        assert (headers["cache-control"], headers["x-content-type-options"]) == (kept, "nosniff")
        assert "server" not in headers
    assert everyone.options("/v1/bookings").headers["allow"] == "GET, OPTIONS, POST"


def test_the_kinds_of_problem_have_pages(everyone: httpx.Client) -> None:
    page = everyone.get("/problems/slot_unavailable")
    assert page.headers["content-type"].startswith("text/html")
    assert "Slot unavailable" in page.text
    assert_problem(everyone.get("/problems/%3Cscript%3E"), 404, "not_found")
