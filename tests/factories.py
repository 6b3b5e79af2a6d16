"""Things to sell, made as an operator makes them, with defaults: a test states only what matters to it."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from tests.service import CLIENT_SECONDS, CUSTOMER, Service

_numbers = itertools.count(1)
#: Slots begin here unless a test says otherwise: never in the past, and the same instant for a whole session.
START = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=7)


def client(service: Service, *, operator: bool = False) -> httpx.Client:
    return httpx.Client(
        base_url=service.url, timeout=CLIENT_SECONDS, headers=service.operator if operator else None, trust_env=False
    )


def unique(prefix: str) -> str:
    return f"{prefix}-{START.timestamp():.0f}-{next(_numbers)}"


def made(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def venue(operator: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"slug": unique("venue"), "name": "Boats & more", "timezone": "Europe/Berlin", **fields}
    return made(operator.post("/v1/venues", json=body))


def resource(operator: httpx.Client, venue_slug: str, **fields: Any) -> dict[str, Any]:
    return made(operator.post("/v1/resources", json={"venue": venue_slug, "name": "Ada", "kind": "event", **fields}))


def slot_body(of: dict[str, Any], *, hours: float = 0, lasting: float = 1, **fields: Any) -> dict[str, Any]:
    """Describe a slot of a resource that begins so many hours after `START`."""
    begin = START + timedelta(hours=hours)
    return {
        "venue": of["venue"],
        "resource_id": of["id"],
        "starts_at": begin.isoformat(),
        "ends_at": (begin + timedelta(hours=lasting)).isoformat(),
        "capacity": 1,
        **fields,
    }


def slot(operator: httpx.Client, of: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    of = of or resource(operator, venue(operator)["slug"])
    return made(operator.post("/v1/slots", json=slot_body(of, **fields)))


def booking_body(slot_id: str, quantity: int = 1, **fields: Any) -> dict[str, Any]:
    return {"slot_id": slot_id, "quantity": quantity, "customer": CUSTOMER, **fields}


def booking(everyone: httpx.Client, slot_id: str, quantity: int = 1) -> dict[str, Any]:
    return made(everyone.post("/v1/bookings", json=booking_body(slot_id, quantity)))


def hold(everyone: httpx.Client, slot_id: str, quantity: int = 1) -> dict[str, Any]:
    return made(everyone.post("/v1/holds", json={"slot_id": slot_id, "quantity": quantity}))
