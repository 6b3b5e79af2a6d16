"""`GET /v1/days`: on which days of a calendar something can be booked."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests import factories
from tests.service import Service


@pytest.fixture
def operator(with_redis: Service) -> Iterator[httpx.Client]:
    with factories.client(with_redis, operator=True) as operator:
        yield operator


def slot(operator: httpx.Client, of: dict[str, Any], starts_at: str, ends_at: str, **fields: Any) -> dict[str, Any]:
    wanted = {"venue": of["venue"], "resource_id": of["id"], "starts_at": starts_at, "ends_at": ends_at, "capacity": 1}
    return factories.made(operator.post("/v1/slots", json={**wanted, **fields}))


def days(client: httpx.Client, of: dict[str, Any], **asked: Any) -> list[str]:
    params = {"venue": of["venue"], "from": "2030-03-25", "to": "2030-04-05", **asked}
    answer = client.get("/v1/days", params=params)
    assert answer.status_code == 200, answer.text
    assert answer.json()["next_cursor"] is None
    found: list[str] = answer.json()["data"]
    return found


def test_a_day_is_one_of_the_venues_calendar_or_of_another(operator: httpx.Client) -> None:
    """The clocks of Berlin change on 31 March 2030: that day has 23 hours."""
    of = factories.resource(operator, factories.venue(operator, timezone="Europe/Berlin")["slug"])
    slot(operator, of, "2030-03-30T22:30:00Z", "2030-03-30T23:30:00Z")  # 23:30 on the 30th
    assert days(operator, of) == ["2030-03-30"]
    slot(operator, of, "2030-03-31T21:59:00Z", "2030-03-31T23:00:00Z")  # 23:59 on the 31st
    slot(operator, of, "2030-04-01T22:00:00Z", "2030-04-01T23:00:00Z")  # midnight of the 2nd
    assert days(operator, of) == ["2030-03-30", "2030-03-31", "2030-04-02"]
    assert days(operator, of, timezone="UTC") == ["2030-03-30", "2030-03-31", "2030-04-01"]
    assert days(operator, of, **{"from": "2030-03-31", "to": "2030-03-31"}) == ["2030-03-31"]


def test_a_day_has_room_for_the_party_or_is_left_out(operator: httpx.Client) -> None:
    of = factories.resource(operator, factories.venue(operator)["slug"])
    small = slot(operator, of, "2030-03-26T10:00:00Z", "2030-03-26T11:00:00Z", capacity=2)
    slot(operator, of, "2030-03-27T10:00:00Z", "2030-03-27T11:00:00Z", capacity=3)
    closed = slot(operator, of, "2030-03-28T10:00:00Z", "2030-03-28T11:00:00Z", capacity=3)
    assert operator.patch(f"/v1/slots/{closed['id']}", json={"status": "closed"}).status_code == 200
    assert days(operator, of) == ["2030-03-26", "2030-03-27"]
    assert days(operator, of, quantity=3) == ["2030-03-27"]
    factories.booking(operator, small["id"], 2)
    assert days(operator, of) == ["2030-03-27"]


def test_days_of_a_service_and_of_a_person_who_may_be_busy(operator: httpx.Client) -> None:
    slug = factories.venue(operator)["slug"]
    ada, bob = (factories.resource(operator, slug, kind="person", name=name) for name in ("Ada", "Bob"))
    cut, wash = (
        factories.made(
            operator.post(
                "/v1/services",
                json={"venue": slug, "name": name, "duration_minutes": 60, "resource_ids": [ada["id"], bob["id"]]},
            )
        )
        for name in ("Cut", "Wash")
    )
    mine = slot(operator, ada, "2030-03-26T10:00:00Z", "2030-03-26T11:00:00Z", service_id=cut["id"])
    slot(operator, ada, "2030-03-26T10:30:00Z", "2030-03-26T11:30:00Z", service_id=wash["id"])
    slot(operator, bob, "2030-03-27T10:00:00Z", "2030-03-27T11:00:00Z", service_id=wash["id"])
    assert days(operator, ada, service_id=wash["id"]) == ["2030-03-26", "2030-03-27"]
    assert days(operator, ada, resource_id=ada["id"]) == ["2030-03-26"]
    factories.booking(operator, mine["id"])  # Ada washes nobody while she cuts
    assert days(operator, ada, service_id=wash["id"]) == ["2030-03-27"]
    assert days(operator, ada, resource_id=ada["id"]) == []


def test_who_knows_the_answer_gets_it_not_again(operator: httpx.Client) -> None:
    params = {"venue": factories.venue(operator)["slug"], "from": "2030-01-01", "to": "2030-01-31"}
    first = operator.get("/v1/days", params=params)
    again = operator.get("/v1/days", params=params, headers={"If-None-Match": first.headers["etag"]})
    assert (first.json()["data"], again.status_code) == ([], 304)


@pytest.mark.parametrize(
    "odd",
    [
        {"to": "2029-12-31"},
        {"to": "2030-03-04"},
        {"from": "soon"},
        {"from": "2030-01-01T00:00:00Z"},
        {"from": "0001-01-01", "to": "0001-01-02"},
        {"to": "9999-12-31"},
        {"quantity": "0"},
        {"timezone": "Europe/Nowhere"},
        {"timezone": "localtime"},
        {"timezone": "Factory"},
        {"timezone": ""},
        {"day": "2030-01-01"},
    ],
)
def test_what_is_no_question_is_refused(operator: httpx.Client, odd: dict[str, str]) -> None:
    asked = {"venue": factories.venue(operator)["slug"], "from": "2030-01-01", "to": "2030-01-31", **odd}
    answer = operator.get("/v1/days", params=asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text


def test_a_zone_that_only_python_knows_is_refused(with_redis: Service, operator: httpx.Client) -> None:
    """A database may be older than Python's time zones, also than those of a venue."""
    of = factories.resource(operator, factories.venue(operator)["slug"])
    slug = of["venue"]
    slot(operator, of, "2030-01-01T10:00:00Z", "2030-01-01T11:00:00Z")
    for zone in ("localtime", "GMT0", "EST5EDT"):
        answer = operator.patch(f"/v1/venues/{slug}", json={"timezone": zone})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "timezone"), zone
    with_redis.query("UPDATE venues SET timezone = 'Europe/Newtown' WHERE slug = %s RETURNING 1", slug)
    answer = operator.get("/v1/days", params={"venue": slug, "from": "2030-01-01", "to": "2030-01-02"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_no_such_venue_has_no_days(operator: httpx.Client, zone: str | None) -> None:
    asked = {"venue": "nobody-knows", "from": "2030-01-01", "to": "2030-01-31", **({"timezone": zone} if zone else {})}
    assert operator.get("/v1/days", params=asked).json()["code"] == "venue_not_found"
