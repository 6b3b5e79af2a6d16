"""What keeps others out of the way: whose pages may call, how often, and how much one client may hold."""

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from app import claims, holding
from app.api import edge, strict, who, wire_operators
from app.domain import Caller
from app.errors import DatabaseUnavailable, HeldTooMuch, InvalidRequest
from app.limits import SIGN_IN, Limit
from app.settings import Rate, from_env
from tests import factories
from tests.redis_servers import RedisServer, running_redis
from tests.service import (
    Postgres,
    Service,
    booking_body,
    engine_on,
    eventually,
    serving,
    store_environ,
)

SALON = "https://salon.example"
T = TypeVar("T")


@pytest.fixture(scope="module")
def shielded(postgres: Postgres) -> Iterator[Service]:
    with (
        running_redis("--maxmemory-policy", "noeviction") as redis,
        serving(
            postgres.fresh(),
            redis.url,
            redis=redis,
            HOLDFAST_TRUSTED_PROXIES="127.0.0.1",
            HOLDFAST_RATE_LIMIT="5/h",
            HOLDFAST_PUBLIC_URL="https://book.example",
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def operator(shielded: Service) -> Iterator[httpx.Client]:
    with factories.client(shielded, operator=True) as client:
        yield client


#: Addresses that nobody has had yet.
_addresses = map(str, ipaddress.ip_network("10.0.0.0/16").hosts())


@pytest.fixture
def everyone(shielded: Service) -> Iterator[httpx.Client]:
    """A client behind the proxy, with an address of its own."""
    with factories.client(shielded) as client:
        client.headers["X-Forwarded-For"] = next(_addresses)
        yield client


@pytest.fixture(scope="module")
def venue(operator: httpx.Client) -> dict[str, Any]:
    """A venue that is embedded in its owner's site."""
    return factories.venue(operator, origins=[SALON, "http://localhost:8080"])


@pytest.fixture(scope="module")
def slot(operator: httpx.Client, venue: dict[str, Any]) -> dict[str, Any]:
    return factories.slot(operator, factories.resource(operator, venue["slug"]), capacity=1000)


# -- the origins of a venue -------------------------------------------------------------------------------------------


def venue_with(origins: object) -> wire_operators.VenueWanted:
    wanted = {"slug": "salon", "name": "Salon", "timezone": "Europe/Berlin", "origins": origins}
    decoded: wire_operators.VenueWanted = strict.decode(msgspec.json.encode(wanted), wire_operators.VenueWanted)
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


def headers_of_customers(document: dict[str, Any]) -> set[str]:
    """Find the headers that the document of the API has for what customers call."""
    paths = ((method, path) for method, paths in edge.CUSTOMERS.items() for path in paths)
    operations = (document["paths"][path][method.lower()] for method, path in paths)
    parameters = (each for operation in operations for each in operation.get("parameters", ()))
    return {each["name"] for each in parameters if each["in"] == "header"}


def test_a_page_of_the_venues_origin_holds_books_and_reads(everyone: httpx.Client, slot: dict[str, Any]) -> None:
    asked = preflight(everyone, "/v1/holds")
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == SALON
    assert asked.headers["access-control-max-age"] == "600"
    assert asked.headers["vary"] == "Origin"
    allowed = set(asked.headers["access-control-allow-headers"].split(", "))
    assert allowed == {"Content-Type", *headers_of_customers(everyone.get("/schema/openapi.json").json())}
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
            assert edge.template(method.upper(), address) == (path if customers else None)
            answer = preflight(everyone, address, method=method.upper())
            assert (cors(answer) != set()) == customers, (method, path)
    for path in ("/v1/bookings", "/v1/venues", "/v1/holds", "/livez", "/metrics", "/schema", "/session", "/ops"):
        assert cors(operator.get(path, headers={"Origin": SALON})) == set(), path


def test_a_form_of_another_site_changes_nothing(shielded: Service, slot: dict[str, Any]) -> None:
    """What a browser sends without asking first, a form and text, does nothing: also with an operator's cookie."""
    with httpx.Client(base_url=shielded.url) as browser:
        key = shielded.operator["Authorization"].removeprefix("Bearer ")
        browser.headers["X-Forwarded-For"] = next(_addresses)
        signed_in = browser.post("/session", json={"key": key})
        browser.headers["Cookie"] = signed_in.headers["set-cookie"].partition(";")[0]
        assert browser.get("/v1/venues", headers={"Holdfast-Page": "1"}).status_code == 200
        before = browser.get(f"/v1/slots/{slot['id']}").json()
        body = msgspec.json.encode({"slot_id": slot["id"], "customer": {"name": "E", "email": "e@example.com"}})
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"):
            headers = {"Origin": "https://evil.example", "Content-Type": kind}
            for path in ("/v1/holds", "/v1/bookings", "/v1/checkout", "/session"):
                assert browser.post(path, content=body, headers=headers).status_code == 415, (path, kind)
            made = browser.post("/v1/venues", content=b'{"slug":"evil"}', headers=headers)
            assert made.status_code == 401
        assert browser.get(f"/v1/slots/{slot['id']}").json() == before


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://evil.book.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://book.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://book.example.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://book.example"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "https://book.example"}, 200),
        ({"Origin": "http://localhost:8123", "Host": "localhost:8123"}, 200),
        ({}, 200),
    ],
)
def test_only_our_own_pages_form_books(
    shielded: Service,
    operator: httpx.Client,
    sent: dict[str, str],
    status: int,
) -> None:
    bookable = factories.slot(operator)
    typed = {"slot": bookable["id"], "quantity": "1", "name": "Ada", "email": "ada@example.com", "key": uuid4().hex}
    with httpx.Client(base_url=shielded.url, headers={"X-Forwarded-For": next(_addresses)}) as browser:
        answer = browser.post(f"/book/{bookable['venue']}", data=typed, headers=sent)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert ("Another site sent this form" in answer.text) == (status == 403)
        left = browser.get(f"/v1/slots/{bookable['id']}").json()["available_count"]
        assert left == (0 if status == 200 else 1)


def test_who_sends_forms_too_often_keeps_what_was_typed(everyone: httpx.Client) -> None:
    for _ in range(100):
        answer = everyone.post("/book/nobody", data={"name": "Grace <Hopper>"})
        if answer.status_code == 429:
            break
        assert answer.status_code == 404
    assert (answer.status_code, answer.headers["content-type"]) == (429, "text/html; charset=utf-8")
    assert int(answer.headers["retry-after"]) > 0
    assert "very often in a short time" in answer.text
    assert answer.headers["content-security-policy"].endswith("frame-ancestors *")  # also in a venue's frame
    assert 'name="name" value="Grace &lt;Hopper&gt;"' in answer.text


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
    for nobody in (everyone.get(path, headers={"Origin": "null"}), preflight(everyone, "/v1/holds", "null")):
        assert cors(nobody) == set()
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


# -- what every answer is sent with -----------------------------------------------------------------------------------


def test_every_answer_is_shown_nowhere_kept_nowhere_and_names_us_nowhere(
    everyone: httpx.Client, operator: httpx.Client
) -> None:
    paths = [path.replace("{", "").replace("}", "") for path in everyone.get("/schema/openapi.json").json()["paths"]]
    answers = [
        each.request(method, path)
        for each in (everyone, operator)
        for path in (
            *paths,
            "/",
            "/nothing",
            "/schema",
            "/livez",
            "/metrics",
            "/problems/busy",
            "/session",
            "/calendar",
        )
        for method in ("GET", "PUT", "OPTIONS")
        if path != "/v1/live"
    ]
    answers += [everyone.post("/v1/holds", content=b"{"), everyone.post("/v1/holds", content=b"a" * 20_000)]
    assert {each.status_code for each in answers} >= {200, 204, 400, 401, 404, 405, 413}
    for answer in answers:
        told, where = answer.headers, (answer.request.method, answer.request.url.path)
        assert told.get_list("x-content-type-options") == ["nosniff"], where
        assert told.get_list("strict-transport-security") == ["max-age=31536000"], where
        assert told["referrer-policy"] in ("no-referrer", "same-origin"), where
        assert "no-store" in told["cache-control"] or "etag" in told, where
        assert "default-src 'none'" in told["content-security-policy"], where
        assert "frame-ancestors" in told["content-security-policy"] or where[1] == "/schema", where
        assert len(told.get_list("content-security-policy")) == 1, where
        assert "server" not in told, where


# -- who a client is --------------------------------------------------------------------------------------------------


def test_a_client_is_an_address_and_of_ipv6_a_household() -> None:
    chosen = from_env(store_environ("postgresql://localhost/x", "redis://localhost"))

    def client(address: str | None) -> str:
        return who.client(chosen, {"headers": [], "client": None if address is None else (address, 1234)})

    assert client("192.0.2.1") == client("::ffff:192.0.2.1") != client("192.0.2.2")
    assert client("2001:db8:0:1::1") == client("2001:db8:0:1:ffff::2") != client("2001:db8:0:2::1")
    assert client("no address") != client(None)
    assert "192" not in client("192.0.2.1")


def test_a_proxy_that_nobody_named_is_told_of_once() -> None:
    environ = store_environ("postgresql://localhost/x", "redis://localhost")
    forwarded = {"headers": [(b"x-forwarded-for", b"192.0.2.1")], "client": ("10.0.0.1", 1234)}
    who._tell_of_a_proxy.cache_clear()
    with capture_logs() as told:
        who.client(from_env({**environ, "HOLDFAST_TRUSTED_PROXIES": "none"}), forwarded)
        who.client(from_env(environ), {**forwarded, "headers": []})
        assert told == []
        for _ in range(2):
            who.client(from_env(environ), forwarded)
    assert [(each["event"], each["log_level"]) for each in told] == [("proxy_not_named", "warning")]


def test_what_was_set_applies_to_each_peer_where_nobody_named_a_proxy(
    postgres: Postgres,
    bundled_redis_server: RedisServer,
) -> None:
    """Only the defaults wait for it. What somebody not trusted says in X-Forwarded-For makes nobody another client."""
    limits = {"HOLDFAST_RATE_LIMIT": "5/h", "HOLDFAST_HOLDS_PER_CLIENT": "2"}
    with serving(postgres.fresh(), bundled_redis_server.url, workers=1, **limits) as unnamed:
        slots = slots_of(unnamed)
        with factories.client(unnamed) as client:
            answers = [
                client.post(
                    "/v1/holds", json={"slot_id": slots[0]["id"]}, headers={"X-Forwarded-For": next(_addresses)}
                )
                for _ in range(BURST + 1)
            ]
    assert [each.status_code for each in answers] == [201] * 2 + [409] * (BURST - 2) + [429]


# -- how often --------------------------------------------------------------------------------------------------------

#: What five an hour may do at once.
BURST = 20


async def flood(of: Service, requests: int, headers: Callable[[], dict[str, str]]) -> Counter[int]:
    """Ask for holds at once, with a body that is refused as soon as it is read; returns the statuses."""
    async with of.client(requests) as client:

        async def ask() -> int:
            answer = await client.post("/v1/holds", json={}, headers=headers())
            if answer.status_code == 429:
                assert_limited(answer, "requests")
            return answer.status_code

        return Counter(await asyncio.gather(*(ask() for _ in range(requests))))


def assert_limited(answer: httpx.Response, name: str) -> None:
    assert answer.status_code == 429
    problem = answer.json()
    assert (problem["code"], problem["status"]) == ("rate_limited", 429)
    seconds = int(answer.headers["retry-after"])
    assert seconds >= 1
    assert answer.headers["ratelimit"] == f'"{name}";r=0;t={seconds}'
    assert answer.headers["ratelimit-policy"].startswith(f'"{name}";q=')


@pytest.mark.anyio
async def test_as_many_pass_as_may_at_once_over_all_processes(shielded: Service) -> None:
    address = next(_addresses)
    assert await flood(shielded, 3 * BURST, lambda: {"X-Forwarded-For": address}) == {400: BURST, 429: 2 * BURST}
    assert (await flood(shielded, 1, lambda: {"X-Forwarded-For": next(_addresses)}))[429] == 0


@pytest.mark.anyio
async def test_what_a_client_says_of_itself_makes_it_nobody_else(shielded: Service) -> None:
    """The proxy writes the address it sees behind whatever was sent: that one counts."""
    address = next(_addresses)
    spoofed = await flood(shielded, 2 * BURST, lambda: {"X-Forwarded-For": f"{next(_addresses)}, {address}"})
    assert spoofed == {400: BURST, 429: BURST}


def test_operators_are_not_limited_but_whoever_only_says_so_is(
    everyone: httpx.Client, operator: httpx.Client, slot: dict[str, Any]
) -> None:
    everyone.headers["Authorization"] = "Basic of-a-proxy"
    statuses = [everyone.delete(f"/v1/holds/{uuid4()}").status_code for _ in range(BURST + 1)]
    assert statuses == [401] * BURST + [429]
    assert everyone.get(f"/v1/slots/{slot['id']}").status_code == 200  # reading is not limited
    everyone.headers["Authorization"] = operator.headers["Authorization"]
    for _ in range(3):
        assert everyone.delete(f"/v1/holds/{uuid4()}").status_code == 204


def test_a_page_may_read_that_it_asks_too_often(everyone: httpx.Client, venue: dict[str, Any]) -> None:
    answers = [everyone.post("/v1/holds", content=b"x", headers={"Origin": SALON}) for _ in range(BURST + 1)]
    assert answers[-1].headers["access-control-allow-origin"] == SALON
    assert_limited(answers[-1], "requests")
    old = everyone.post(f"/api/v1/public/{venue['slug']}/book", json={})
    assert (old.status_code, old.json()["error"]["code"]) == (429, "RATE_LIMITED")
    assert everyone.post("/v1/h%6Flds", content=b"x").status_code == 429  # written in another way
    assert everyone.delete(f"/v1/holds/{uuid4()}").status_code == 429
    assert everyone.post("/v1/holds%2F", content=b"x").status_code == 404


def before_one_more_may(everyone: httpx.Client, act: Callable[[], T]) -> T:
    """Do something that takes less time than until one more guess may be made; from another address, when it took
    longer on a machine that was held up.
    """
    for _ in range(5):
        began = time.monotonic()
        done = act()
        if time.monotonic() - began < SIGN_IN.interval:
            return done
        everyone.headers["X-Forwarded-For"] = next(_addresses)
    raise AssertionError(f"it takes longer than {SIGN_IN.interval} s each time")


def test_nobody_tries_one_key_after_the_other(shielded: Service, everyone: httpx.Client) -> None:
    right = {"key": shielded.operator["Authorization"].removeprefix("Bearer ")}

    def guess() -> tuple[list[httpx.Response], list[httpx.Response]]:
        return (
            [everyone.post("/session", json={"key": f"guess number {n}"}) for n in range(12)],
            [everyone.post("/session", json=right)],
        )

    guesses, others = before_one_more_may(everyone, guess)
    assert [each.status_code for each in guesses] == [401] * 10 + [429] * 2
    assert_limited(guesses[-1], "sign-in")
    assert [each.status_code for each in others] == [429]  # or a guess would be told from the right one
    everyone.headers["X-Forwarded-For"] = next(_addresses)
    assert {everyone.post("/session", json=right).status_code for _ in range(15)} == {204}


def test_nobody_tries_one_bearer_after_the_other(shielded: Service, everyone: httpx.Client) -> None:
    """Wherever it is shown: for operators, for customers, for both, by a page."""
    right = {"Authorization": shielded.operator["Authorization"]}
    ways = [("GET", "/v1/bookings"), ("DELETE", f"/v1/holds/{uuid4()}"), ("GET", f"/v1/bookings/{uuid4()}")]

    def guess() -> tuple[list[httpx.Response], list[httpx.Response]]:
        guesses = [
            everyone.request(*ways[n % 3], headers={"Authorization": f"bearer guess-{n}", "Origin": SALON})
            for n in range(12)
        ]
        return guesses, [
            everyone.get("/v1/venues", headers=right),  # or a guess would be told from the right one
            everyone.post("/session", json={"key": "guess"}),
            everyone.get("/v1/slots", params={"venue": "nobody"}),  # who guesses nothing is served
        ]

    guesses, others = before_one_more_may(everyone, guess)
    assert [each.status_code for each in guesses] == [401] * 10 + [429] * 2
    assert_limited(guesses[-1], "sign-in")
    assert [each.status_code for each in others] == [429, 429, 404]
    everyone.headers["X-Forwarded-For"] = next(_addresses)
    assert {everyone.get("/v1/venues", headers=right).status_code for _ in range(15)} == {200}


def test_what_is_answered_at_the_edge_is_named_in_the_metrics(shielded: Service, everyone: httpx.Client) -> None:
    def answered(method: str, route: str, status: int) -> float:
        name = "holdfast_http_request_seconds_count"
        return shielded.metric(name, method=method, route=route, status=str(status))

    name, path = "/v1/holds/{hold_id}", f"/v1/holds/{uuid4()}"
    before = answered("OPTIONS", name, 204), answered("DELETE", name, 429)
    assert preflight(everyone, path, method="DELETE").status_code == 204
    statuses = [everyone.delete(path).status_code for _ in range(BURST + 1)]
    assert statuses == [404] * BURST + [429]
    assert (answered("OPTIONS", name, 204), answered("DELETE", name, 429)) == (before[0] + 1, before[1] + 1)
    assert answered("DELETE", name, 404) >= BURST  # as those are that were let pass


# -- how much one client holds: with Redis and without ----------------------------------------------------------------

MOST = 7
CONNECTIONS = 25
#: Postgres takes one after the other of those that one client asks for.
ATTEMPTS = {True: 1000, False: 200}


def slots_of(of: Service, **venue: Any) -> list[dict[str, Any]]:
    """Slots of three resources of one venue."""
    with factories.client(of, operator=True) as client:
        slug = factories.venue(client, **venue)["slug"]
        return [factories.slot(client, factories.resource(client, slug), capacity=500) for _ in range(3)]


def held_of(of: Service, slots: list[dict[str, Any]]) -> int:
    with factories.client(of) as client:
        return sum(client.get(f"/v1/slots/{slot['id']}").json()["held"] for slot in slots)


async def grab(of: Service, slots: list[dict[str, Any]], attempts: int) -> list[httpx.Response]:
    """Hold all there is, as one client that calls itself many."""
    numbers = iter(range(attempts))
    answers: list[httpx.Response] = []
    async with of.client(CONNECTIONS) as client:

        async def go_on() -> None:
            for n in numbers:
                headers = {"X-Forwarded-For": f"10.1.{n // 250}.{n % 250}"}
                body = {"slot_id": slots[n % len(slots)]["id"]}
                answers.append(await client.post("/v1/holds", json=body, headers=headers))

        await asyncio.gather(*(go_on() for _ in range(CONNECTIONS)))
    return answers


@pytest.mark.anyio
async def test_one_client_occupies_what_it_may_however_often_it_tries(service: Service) -> None:
    slots = slots_of(service, holds_per_client=MOST)
    answers = await grab(service, slots, ATTEMPTS[service.redis is not None])
    assert held_of(service, slots) == MOST
    statuses = Counter(each.status_code for each in answers)
    assert statuses[201] == MOST
    assert set(statuses) <= {201, 409, 503}
    refused = next(each for each in answers if each.status_code == 409).json()
    assert (refused["code"], refused["limit"], refused["held"]) == ("hold_limit", MOST, MOST)
    assert refused["may_free_at"]
    assert f"{MOST} places" in refused["detail"]
    with factories.client(service, operator=True) as client:  # the venue's own back end is no client
        factories.hold(client, slots[0]["id"], 50)


@pytest.mark.anyio
async def test_control_where_nobody_limits_it_one_client_occupies_more(service: Service) -> None:
    slots = slots_of(service, holds_per_client=0)
    await grab(service, slots, 5 * MOST)
    assert held_of(service, slots) == 5 * MOST


def test_what_is_released_booked_or_could_not_be_had_does_not_count(service: Service) -> None:
    slots = slots_of(service, holds_per_client=2)
    path, [first, second, third] = "/v1/holds", slots
    with factories.client(service) as client:
        one = factories.hold(client, first["id"], 2)
        assert client.post(path, json={"slot_id": second["id"]}).status_code == 409
        extended = client.post(f"{path}/{one['id']}/extend", headers={"Hold-Token": one["token"]})
        assert extended.status_code == 200  # it is counted already
        assert client.delete(f"{path}/{one['id']}", headers={"Hold-Token": one["token"]}).status_code == 204
        for _ in range(3):
            assert client.post(path, json={"slot_id": second["id"], "quantity": 501}).status_code in (400, 409)
        two = factories.hold(client, second["id"], 2)
        body = {"hold_token": two["token"], "customer": {"name": "Ada", "email": "ada@example.com"}}
        assert client.post("/v1/bookings", json=body).status_code == 201
        together = {"items": [{"slot_id": first["id"]}, {"slot_id": third["id"]}]}
        assert client.post(path, json=together).status_code == 201
        refused = client.post(path, json={"items": [{"slot_id": second["id"], "quantity": 2}]})
        assert refused.json()["code"] == "hold_limit"


def test_a_key_that_is_used_again_wins_no_place(service: Service) -> None:
    """Neither a repetition nor a misused key makes a claim smaller or go away."""
    slots = slots_of(service, holds_per_client=3)
    with factories.client(service) as client:
        key = {"Idempotency-Key": str(uuid4())}
        body = {"slot_id": slots[0]["id"], "quantity": 3}
        first, again = (client.post("/v1/holds", json=body, headers=key) for _ in range(2))
        assert (first.status_code, again.json()["id"]) == (201, first.json()["id"])
        for other in ({**body, "slot_id": slots[1]["id"]}, {**body, "quantity": 1}):
            assert client.post("/v1/holds", json=other, headers=key).status_code in (409, 422)
            assert client.post("/v1/holds", json={"slot_id": slots[2]["id"]}).json()["code"] == "hold_limit"


@pytest.mark.parametrize("items", [False, True], ids=["one slot", "several"])
def test_a_party_larger_than_the_limit_is_told_so(service: Service, items: bool) -> None:
    """No waiting makes it possible, whether anything is held or not; the slots themselves have room for it."""
    slots = slots_of(service, holds_per_client=2)
    wanted = [{"slot_id": slots[0]["id"], "quantity": 2}, {"slot_id": slots[1]["id"], "quantity": 1}]
    too_many = {"items": wanted} if items else {"slot_id": slots[0]["id"], "quantity": 3}
    with factories.client(service) as client:
        for _ in range(2):
            refused = client.post("/v1/holds", json=too_many)
            assert (refused.status_code, refused.json()["code"]) == (409, "hold_limit")
            assert (refused.json()["limit"], refused.json()["may_free_at"]) == (2, None)
            assert refused.json()["detail"] == "You may hold at most 2 places here at once"
        if not items:
            assert refused.json()["held"] == 0
        assert held_of(service, slots) == 0
        factories.hold(client, slots[1]["id"], 2)  # and a refusal counts for nothing
        assert client.post("/v1/holds", json=too_many).json()["may_free_at"] is None
        assert held_of(service, slots) == 2


def test_what_was_done_is_answered_again_also_at_the_limit(service: Service) -> None:
    """A repetition holds nothing more: its first request has been booked since, and other places are held."""
    slots = slots_of(service, holds_per_client=2)
    with factories.client(service) as client:
        key, body = {"Idempotency-Key": str(uuid4())}, {"slot_id": slots[0]["id"], "quantity": 2}
        held = client.post("/v1/holds", json=body, headers=key).json()
        customer = {"name": "Ada", "email": "ada@example.com"}
        booked = client.post("/v1/bookings", json={"hold_token": held["token"], "customer": customer})
        assert booked.status_code == 201
        factories.hold(client, slots[1]["id"], 2)
        again = client.post("/v1/holds", json=body, headers=key)
        assert (again.status_code, again.json()["code"]) == (409, "already_resolved")
        assert client.post("/v1/holds", json=body).json()["code"] == "hold_limit"


def test_who_asks_again_from_elsewhere_has_what_it_had(shielded: Service) -> None:
    """Another address, which holds as much as it may, repeats a request whose answer was lost."""
    slots = slots_of(shielded, holds_per_client=2)
    one = {"slot_id": slots[0]["id"], "quantity": 2}
    several = {"items": [{"slot_id": slots[0]["id"]}, {"slot_id": slots[1]["id"]}]}
    with factories.client(shielded) as client:
        for body in (one, several):
            client.headers["X-Forwarded-For"] = next(_addresses)
            key = {"Idempotency-Key": str(uuid4())}
            first = client.post("/v1/holds", json=body, headers=key)
            client.headers["X-Forwarded-For"] = next(_addresses)
            factories.hold(client, slots[2]["id"], 2)
            before = held_of(shielded, slots)
            again = client.post("/v1/holds", json=body, headers=key)
            assert (first.status_code, again.status_code) == (201, 201)
            assert again.headers["idempotency-replayed"] == "true"
            assert held_of(shielded, slots) == before
            assert client.post("/v1/holds", json=body).json()["code"] == "hold_limit"


def test_a_hold_does_not_outlive_its_claim_however_often_its_booking_is_refused(
    with_redis: Service,
) -> None:
    slots = slots_of(with_redis, holds_per_client=2, hold_ttl_seconds=1)
    customer = {"name": "Ada", "email": "ada@example.com"}
    with factories.client(with_redis) as client:
        used = {"Idempotency-Key": str(uuid4())}
        assert client.post("/v1/bookings", json=booking_body(slots[2]["id"]), headers=used).status_code == 201

        def refused() -> httpx.Response:
            book, shown = {"hold_token": hold["token"], "customer": customer}, {"Hold-Token": hold["token"]}
            assert client.post("/v1/bookings", json=book, headers=used).json()["code"] == "idempotency_key_reused"
            return client.get(f"/v1/holds/{hold['id']}", headers=shown)

        for _ in range(10):
            hold = factories.hold(client, slots[0]["id"], 2)
            ends = datetime.fromisoformat(hold["expires_at"])
            if (alive := refused()).status_code == 200:
                break
            assert datetime.now(UTC) > ends, alive.text  # else the machine was held up for all of its second
        else:
            pytest.fail("it was held up ten times")
        eventually(lambda: datetime.now(UTC) > ends + timedelta(seconds=4), "the hold to have lapsed by itself")
        alive = refused()
        assert alive.status_code == 200, alive.text
        lives_until = datetime.fromisoformat(alive.json()["expires_at"])
        assert lives_until > ends
        refused = client.post("/v1/holds", json={"slot_id": slots[1]["id"]}).json()
        assert refused["code"] == "hold_limit"
        assert datetime.fromisoformat(refused["may_free_at"]) > lives_until


@pytest.mark.anyio
async def test_refusals_at_the_limit_do_not_each_ask_postgres(
    with_redis: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert with_redis.redis is not None
    monkeypatch.setattr(claims, "LOOKS", Limit("looks", Rate(1, 3600, 3)))
    slot_id = UUID(slots_of(with_redis, holds_per_client=1)[0]["id"])
    one = Caller("customer", None, uuid4().hex)
    async with engine_on(with_redis.database_url, with_redis.redis.url) as engine:
        looks = 0
        look = engine.ledger.resolved

        async def counted(ids: list[UUID]) -> list[UUID]:
            nonlocal looks
            looks += 1
            return await look(ids)

        monkeypatch.setattr(engine.ledger, "resolved", counted)
        await holding.take_hold(engine, slot_id, 1, key=None, caller=one)
        for _ in range(10):
            with pytest.raises(HeldTooMuch):
                await holding.take_hold(engine, slot_id, 1, key=None, caller=one)
        assert looks == 3


# -- last: this ends the Redis of the service above -------------------------------------------------------------------


@pytest.mark.anyio
async def test_limits_survive_the_loss_of_redis(shielded: Service) -> None:
    assert shielded.redis is not None
    shielded.redis.kill()
    address = next(_addresses)
    statuses = await flood(shielded, 6 * BURST, lambda: {"X-Forwarded-For": address})
    assert set(statuses) == {400, 429}
    assert BURST <= statuses[400] <= 2 * BURST  # each of the two processes counts for itself
