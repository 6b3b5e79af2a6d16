"""A salon that customers book at, and the pages they do it on. The fixtures are imported by name."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.sync_api import Page

from app import written
from tests import factories
from tests.redis_servers import RedisServer
from tests.service import CUSTOMER, Postgres, Service
from tests.shop import Shop, running_shop
from tests.visitor import DAY

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
    return written.clock("en", datetime.fromisoformat(slot["starts_at"]).astimezone(BERLIN))


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


def managed(here: Salon, slot: dict[str, Any]) -> tuple[dict[str, Any], str]:
    with factories.client(here.service) as everyone:
        made = factories.booking(everyone, slot["id"])
    return made, f"{here.service.url}/manage/{made['id']}#{made['manage_token']}"
