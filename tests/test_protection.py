"""What keeps others out of the way: whose pages may call, how often, and how much one client may hold."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from app.api import edge, strict, wire
from app.errors import DatabaseUnavailable, InvalidRequest
from tests import factories
from tests.redis_servers import running_redis
from tests.service import (
    Postgres,
    Service,
    bundled_redis_server,  # noqa: F401 fixture
    eventually,
    postgres,  # noqa: F401 fixture
    serving,
)

SALON = "https://salon.example"


@pytest.fixture(scope="module")
def shielded(postgres: Postgres) -> Iterator[Service]:  # noqa: F811 fixture
    with (
        running_redis("--maxmemory-policy", "noeviction") as redis,
        serving(postgres.fresh(), redis.url, redis=redis) as service,
    ):
        yield service


@pytest.fixture(scope="module")
def operator(shielded: Service) -> Iterator[httpx.Client]:
    with factories.client(shielded, operator=True) as client:
        yield client


@pytest.fixture
def everyone(shielded: Service) -> Iterator[httpx.Client]:
    with factories.client(shielded) as client:
        yield client


@pytest.fixture(scope="module")
def venue(operator: httpx.Client) -> dict[str, Any]:
    """A venue that is embedded in its owner's site."""
    return factories.venue(operator, origins=[SALON, "http://localhost:8080"])


@pytest.fixture(scope="module")
def slot(operator: httpx.Client, venue: dict[str, Any]) -> dict[str, Any]:
    return factories.slot(operator, factories.resource(operator, venue["slug"]), capacity=1000)


# -- the origins of a venue -------------------------------------------------------------------------------------------


def venue_with(origins: object) -> wire.VenueWanted:
    wanted = {"slug": "salon", "name": "Salon", "timezone": "Europe/Berlin", "origins": origins}
    decoded: wire.VenueWanted = strict.decode(msgspec.json.encode(wanted), wire.VenueWanted)
    return decoded


@pytest.mark.parametrize(
    "origin",
    ["https://salon.example", "http://localhost:8080", "https://a.b.c-d.example:8443", "http://127.0.0.1", "*"],
)
def test_an_origin_is_as_browsers_send_it(origin: str) -> None:
    assert venue_with([origin]).origins == [origin]


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "salon.example", "//salon.example", "https://", "https://salon.example/", "https://salon.example/a",
        "HTTPS://salon.example", "https://Salon.example", "https://salon.example:443", "http://salon.example:80",
        "https://salon.example:0", "https://salon.example:65536", "https://ada@salon.example", "https://*.example",
        "ftp://salon.example", "javascript:alert(1)", "https://salon.example;", "https://salon.example 'self'",
        "https://salon.example\n", "https://sälon.example", "https://-a.example", "**",
        "https://a" + 300 * "a", 1, None,
    ],
)  # fmt: skip
def test_whatever_else_is_no_origin(origin: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        venue_with([origin])
    assert "origins" in caught.value.detail


def test_a_venue_names_twenty_origins_at_most() -> None:
    many = [f"https://{n}.example" for n in range(21)]
    assert len(venue_with(many[:20]).origins) == 20
    with pytest.raises(InvalidRequest):
        venue_with(many)


# -- pages of other origins -------------------------------------------------------------------------------------------


def cors(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


def preflight(client: httpx.Client, path: str, origin: str = SALON, method: str = "POST") -> httpx.Response:
    return client.options(path, headers={"Origin": origin, "Access-Control-Request-Method": method})


def test_a_page_of_the_venues_origin_holds_books_and_reads(everyone: httpx.Client, slot: dict[str, Any]) -> None:
    asked = preflight(everyone, "/v1/holds")
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == SALON
    assert asked.headers["access-control-max-age"] == "600"
    assert asked.headers["vary"] == "Origin"
    allowed = set(asked.headers["access-control-allow-headers"].split(", "))
    assert allowed == {
        "Content-Type", "Idempotency-Key", "Hold-Token", "Manage-Token", "Last-Event-ID", "If-None-Match"
    }  # fmt: skip
    assert set(asked.headers["access-control-allow-methods"].split(", ")) == {"GET", "POST", "DELETE"}

    here = {"Origin": SALON}
    held = everyone.post("/v1/holds", json={"slot_id": slot["id"]}, headers=here)  # the way of a crowd
    known = everyone.get("/v1/slots", params={"venue": slot["venue"]}, headers=here)
    lost = everyone.get(f"/v1/slots/{uuid4()}", headers=here)
    wrong = everyone.post("/v1/bookings", json={"slot_id": 1}, headers=here)
    gone = everyone.delete(f"/v1/holds/{held.json()['id']}", headers={**here, "Hold-Token": held.json()["token"]})
    assert [each.status_code for each in (held, known, lost, wrong, gone)] == [201, 200, 404, 400, 204]
    for each in (held, known, lost, wrong, gone):
        assert each.headers["access-control-allow-origin"] == SALON
        assert each.headers.get_list("vary") == ["Origin"]
        assert {"ETag", "Location", "Retry-After", "X-Request-Id", "RateLimit"} <= set(
            each.headers["access-control-expose-headers"].split(", ")
        )
        assert "access-control-allow-credentials" not in each.headers
    unchanged = everyone.get("/v1/slots", params={"venue": slot["venue"]}, headers={**here, "If-None-Match": "*"})
    assert (unchanged.status_code, unchanged.headers["access-control-allow-origin"]) == (304, SALON)


@pytest.mark.parametrize(
    "origin",
    [
        "null", "https://salon.example.evil.com", "https://evil.com", "http://salon.example", "https://Salon.example",
        "HTTPS://salon.example", "https://salon.example:443", "https://salon.example:8443", "https://salon.example/",
        "https://sub.salon.example", "https://salon.example, https://evil.com", "salon.example", "", "*",
        "https://salonXexample", "http://localhost", "http://localhost:80801",
    ],
)  # fmt: skip
def test_no_other_origin_is_let_in(everyone: httpx.Client, venue: dict[str, Any], origin: str) -> None:
    read = everyone.get(f"/v1/venues/{venue['slug']}", headers={"Origin": origin})
    asked = preflight(everyone, "/v1/holds", origin)
    assert read.status_code == 200
    assert cors(read) | cors(asked) == set()
    assert read.headers["vary"] == asked.headers["vary"] == "Origin"


def test_operators_and_machines_are_nobody_elses_to_read(
    everyone: httpx.Client, operator: httpx.Client, venue: dict[str, Any]
) -> None:
    """Whatever the document of the API says is for customers is in the table, and nothing else is."""
    document = everyone.get("/schema/openapi.json").json()
    for path, operations in document["paths"].items():
        address = path.replace("{slug}", venue["slug"]).replace("{", "").replace("}", "")
        for method, operation in operations.items():
            customers = operation.get("security") != [{"operator": []}] and path not in (
                "/v1/webhooks/stripe",  # Stripe's, which is no page
                "/v1/calendars/{calendar}",  # for calendar programs: its address is its secret
            )
            assert edge.is_customers(method.upper(), address) == customers, (method, path)
            answer = preflight(everyone, address, method=method.upper())
            assert (cors(answer) != set()) == customers, (method, path)
    for path in ("/v1/bookings", "/v1/venues", "/v1/holds", "/livez", "/metrics", "/schema", "/session", "/ops"):
        assert cors(operator.get(path, headers={"Origin": SALON})) == set(), path


def test_a_form_of_another_site_changes_nothing(shielded: Service, slot: dict[str, Any]) -> None:
    """What a browser sends without asking first, a form and text, does nothing: also with an operator's cookie."""
    with httpx.Client(base_url=shielded.url) as browser:
        key = shielded.operator["Authorization"].removeprefix("Bearer ")
        assert browser.post("/session", json={"key": key}).status_code == 204
        assert browser.cookies
        before = browser.get(f"/v1/slots/{slot['id']}").json()
        body = msgspec.json.encode({"slot_id": slot["id"], "customer": {"name": "E", "email": "e@example.com"}})
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"):
            headers = {"Origin": "https://evil.example", "Content-Type": kind}
            for path in ("/v1/holds", "/v1/bookings", "/v1/checkout", "/session"):
                assert browser.post(path, content=body, headers=headers).status_code == 415, (path, kind)
            made = browser.post("/v1/venues", content=b'{"slug":"evil"}', headers=headers)
            assert made.status_code == 401
        assert browser.get(f"/v1/slots/{slot['id']}").json() == before


def test_a_venue_that_everybody_may_embed(
    everyone: httpx.Client, operator: httpx.Client, venue: dict[str, Any]
) -> None:
    """Last of these tests: the origins of all venues are one list."""
    stranger = {"Origin": "https://anybody.example"}
    path = f"/v1/venues/{venue['slug']}"

    def is_let_in() -> bool:
        return "access-control-allow-origin" in everyone.get(path, headers=stranger).headers

    assert not is_let_in()
    open_to_all = factories.venue(operator, origins=["*"])
    eventually(is_let_in, "the new origin to be known")
    operator.patch(f"/v1/venues/{open_to_all['slug']}", json={"origins": []})
    eventually(lambda: not is_let_in(), "the origin to be forgotten")


@pytest.mark.anyio
async def test_what_was_known_of_the_origins_is_kept_while_postgres_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[list[str] | None] = [None, [SALON], None]

    async def read() -> list[str]:
        answer = answers.pop(0) if answers else None
        if answer is None:
            raise DatabaseUnavailable(effect_none=True)
        return answer

    monkeypatch.setattr(edge, "ORIGINS_SECONDS", 0.0)
    origins = edge.Origins(read)
    assert not await origins.include(SALON)  # nobody is let in on a guess
    assert await origins.include(SALON)
    assert await origins.include(SALON)
    for _ in range(10):
        await asyncio.sleep(0)
    assert answers == []
    assert await origins.include(SALON)
