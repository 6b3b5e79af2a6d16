"""The service as its users meet it: `holdfast serve` with several worker processes, on stores of the test's own.

Owns the databases (cloned from a migrated template) and the service processes, and ends them by pid. The fixtures are
imported by name.
"""

import asyncio
import contextlib
import http.client
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import httpx
import psycopg
import pytest
from psycopg import sql

from app import embedded, engine
from app.engine import Engine
from app.migrate import upgrade
from app.settings import from_env
from tests.redis_servers import RedisServer, free_port, running_redis

HOLDFAST = Path(sys.executable).parent / "holdfast"
OPERATOR_KEY = secrets.token_hex(16)
SECRET = secrets.token_hex(32)
#: How long a process may take to start or to end: on a machine that many share, a second's work takes a minute.
START_SECONDS = 180.0
#: How long is waited for what must come. Shorter than the time after which the service looks by itself (`payments`):
#: what was lost and made up for must not be taken for what was told.
PATIENCE_SECONDS = 40.0
#: A client's patience: far above anything measured, so that only a hang shows.
CLIENT_SECONDS = 30.0
CUSTOMER = {"name": "Ada Lovelace", "email": "ada@example.com"}


@dataclass
class Postgres:
    """One server with a migrated template; `fresh` gives each test a database of its own."""

    url: str
    names: list[str] = field(default_factory=list)

    def fresh(self) -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.names.append(name)
        with psycopg.connect(self.of("postgres"), autocommit=True) as connection:
            clone = sql.SQL("CREATE DATABASE {} TEMPLATE holdfast_template")
            connection.execute(clone.format(sql.Identifier(name)))
        return self.of(name)

    def of(self, database: str) -> str:
        return self.url.replace("/holdfast?", f"/{database}?")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    home = tmp_path_factory.mktemp("stores")
    with embedded.running(home, redis=False, fsync=False) as servers:
        assert servers.database_url is not None
        server = Postgres(servers.database_url)
        with psycopg.connect(server.of("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE holdfast_template")
        upgrade(server.of("holdfast_template"))
        yield server


@pytest.fixture(scope="session")
def bundled_redis_server() -> Iterator[RedisServer]:
    with running_redis("--maxmemory-policy", "noeviction") as server:
        yield server


@dataclass
class Service:
    """A running service and the stores behind it; `redis` is None when layer 1 is off."""

    url: str
    database_url: str
    redis: RedisServer | None
    process: subprocess.Popen[bytes]

    @property
    def operator(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {OPERATOR_KEY}"}

    @asynccontextmanager
    async def client(self, connections: int = 100) -> AsyncIterator[httpx.AsyncClient]:
        # Kept as long as the service does: on another connection another of its processes might answer.
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=None)
        async with httpx.AsyncClient(base_url=self.url, limits=limits, timeout=CLIENT_SECONDS) as client:
            yield client

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def metric(self, name: str, **labels: str) -> float:
        """Sum a metric's samples whose labels include these, over all workers."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics", timeout=CLIENT_SECONDS).text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.split("{")[0] == name and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total


def store_environ(database_url: str, redis_url: str) -> dict[str, str]:
    """What every process of a service needs to know."""
    return {
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "HOLDFAST_OPERATOR_KEY": OPERATOR_KEY,
        "HOLDFAST_SECRET": SECRET,
        "HOLDFAST_ENV": "test",
    }


@asynccontextmanager
async def engine_on(database_url: str, redis_url: str) -> AsyncIterator[Engine]:
    """Run an engine of the test's own on the stores of a service, as one of its processes would."""
    async with engine.running(from_env(store_environ(database_url, redis_url))) as running:
        yield running


@contextmanager
def serving(
    database_url: str,
    redis_url: str,
    *,
    redis: RedisServer | None = None,
    workers: int = 2,
    port: int | None = None,
    **environ: str,
) -> Iterator[Service]:
    """Run `holdfast serve`, wait until it is ready, and stop it as an operator would."""
    url = f"http://127.0.0.1:{(port := port or free_port())}"
    settings = {**store_environ(database_url, redis_url), **environ}
    command = [str(HOLDFAST), "serve", "--port", str(port), "--workers", str(workers)]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed below; a line per request, read after a failed start only
    process = subprocess.Popen(
        command, env={**os.environ, **settings}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    try:
        eventually(lambda: _started(url, process, log), "the service to be ready", seconds=START_SECONDS)
        yield Service(url, database_url, redis, process)
    finally:
        process.terminate()
        try:
            process.wait(timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            log.close()


def _started(url: str, process: subprocess.Popen[bytes], log: IO[str]) -> bool:
    said = os.pread(log.fileno(), 1 << 20, 0).decode(errors="replace")  # a seek would move where the service writes
    if process.poll() is not None:
        pytest.fail(f"the service ended while it started:\n{said[-3000:]}")
    # Its parent knows it as well, who takes a worker that dies before for one that cannot start.
    return "Holdfast serves on" in said and is_ready(url)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    return False


def eventually(true: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def with_redis(postgres: Postgres, bundled_redis_server: RedisServer) -> Iterator[Service]:
    redis = bundled_redis_server
    with serving(postgres.fresh(), redis.url, redis=redis) as service:
        yield service


@pytest.fixture(scope="session")
def without_redis(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    nobody = tmp_path_factory.mktemp("nobody") / "redis.sock"
    with serving(postgres.fresh(), f"unix://{nobody}") as service:
        yield service


@pytest.fixture(params=["with_redis", "without_redis"])
def service(request: pytest.FixtureRequest) -> Service:
    """Both modes: every promise but the exclusivity of holds is the same without Redis (design 7)."""
    found: Service = request.getfixturevalue(request.param)
    return found


# -- things to sell ---------------------------------------------------------------------------------------------------


async def make_slots(
    service: Service,
    client: httpx.AsyncClient,
    *capacities: int,
    kind: str = "event",
    hours_apart: float = 2.0,
    price: int | None = None,
    **venue: Any,
) -> list[str]:
    """Make a venue with one resource and a slot for each capacity, from tomorrow on; returns the slot ids."""
    slug = f"v-{uuid.uuid4().hex[:16]}"
    priced = {} if price is None else {"price": {"amount": price, "currency": "EUR"}}
    for path, body in (
        ("/v1/venues", {"slug": slug, "name": "Venue", "timezone": "Europe/Berlin", **venue}),
        ("/v1/resources", {"venue": slug, "name": "Resource", "kind": kind}),
    ):
        made = await client.post(path, json=body, headers=service.operator)
        assert made.status_code == 201, made.text
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    slots = []
    for number, capacity in enumerate(capacities):
        begin = start + timedelta(hours=hours_apart * number)
        times = {"starts_at": begin.isoformat(), "ends_at": (begin + timedelta(hours=1)).isoformat()}
        slots.append({"venue": slug, "resource_id": made.json()["id"], **times, "capacity": capacity, **priced})
    made = await client.post("/v1/slots", json={"slots": slots}, headers=service.operator)
    assert made.status_code == 201, made.text
    return [slot["id"] for slot in made.json()["data"]]


async def make_slot(service: Service, client: httpx.AsyncClient, capacity: int) -> str:
    return (await make_slots(service, client, capacity))[0]


def booking_body(slot_id: str, quantity: int = 1) -> dict[str, Any]:
    return {"slot_id": slot_id, "quantity": quantity, "customer": CUSTOMER}


# -- everybody at once ------------------------------------------------------------------------------------------------


async def all_at_once(client: httpx.AsyncClient, requests: Sequence[httpx.Request]) -> list[httpx.Response]:
    """Send all requests at one instant, each over a connection that is open already.

    Over plain sockets: httpx needs tens of milliseconds of our own CPU for each request, so that its rivals come one
    after the other and race nobody. In a thread: the test's loop goes on.
    """
    livez = client.build_request("GET", "/livez")
    try:
        return await asyncio.to_thread(_open_and_send, livez, requests)
    except (OSError, http.client.HTTPException) as error:
        raise httpx.TransportError(repr(error)) from error


def _open_and_send(livez: httpx.Request, requests: Sequence[httpx.Request]) -> list[httpx.Response]:
    with contextlib.ExitStack() as opened:
        connections = []
        for _ in requests:
            connection = socket.create_connection((livez.url.host, livez.url.port), CLIENT_SECONDS)
            connections.append(opened.enter_context(connection))
            # Answered before the next one is opened: a worker that accepts many at a time would get nearly all.
            [alive] = _send_together([connection], [livez])
            assert alive.status_code == 200
        return _send_together(connections, requests)


def _send_together(connections: Sequence[socket.socket], requests: Sequence[httpx.Request]) -> list[httpx.Response]:
    shots = [(connection.send, _bytes(request)) for connection, request in zip(connections, requests, strict=True)]
    for connection in connections:
        connection.setblocking(False)
    # Nothing else in this loop, or the first is answered before the last is sent.
    sent = [send(data) for send, data in shots]
    assert sent == [len(data) for _, data in shots]  # an idle connection takes a small request whole
    # One after the other will do: answers wait in their sockets.
    return [_answer(connection, request) for connection, request in zip(connections, requests, strict=True)]


def _bytes(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", request.content])


def _answer(connection: socket.socket, request: httpx.Request) -> httpx.Response:
    connection.settimeout(CLIENT_SECONDS)
    with http.client.HTTPResponse(connection, method=request.method) as answer:
        answer.begin()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read(), request=request)


async def race(client: httpx.AsyncClient, slot_id: str, parties: Sequence[int]) -> list[httpx.Response]:
    """Have every party try to book the slot at the same instant."""
    requests = [client.build_request("POST", "/v1/bookings", json=booking_body(slot_id, party)) for party in parties]
    return await all_at_once(client, requests)


# -- what is true afterwards ------------------------------------------------------------------------------------------


def sold_places(answers: Sequence[httpx.Response]) -> int:
    """Sum the places that were promised, and insist that every other answer is a true, complete refusal."""
    for answer in answers:
        assert answer.status_code in (201, 409), answer.text
        if answer.status_code == 409:
            problem = answer.json()
            assert problem["code"] == "slot_unavailable"
            assert problem["reason"] in ("held", "booked")
            assert problem["available"] < problem["requested"]
    return sum(answer.json()["quantity"] for answer in answers if answer.status_code == 201)


def assert_slot_holds(service: Service, slot_id: str, capacity: int, sold: int) -> None:
    """Check both stores, the audit log and the API: they agree on exactly this many places sold."""
    [(count, negative)] = service.query(
        "SELECT available_count, (SELECT count(*) FROM slots WHERE available_count < 0) FROM slots WHERE id = %s",
        slot_id,
    )
    assert (count, negative) == (capacity - sold, 0)  # S0-11
    live = "status IN ('held', 'pending_payment', 'confirmed')"
    [(booked,)] = service.query(
        f"SELECT coalesce(sum(quantity), 0) FROM bookings WHERE slot_id = %s AND {live}", slot_id
    )
    assert booked == sold
    [(audited,)] = service.query(
        "SELECT coalesce(sum((data->>'quantity')::int * CASE WHEN type IN ('booking.confirmed') THEN 1 ELSE -1 END), 0)"
        " FROM events WHERE slot_id = %s AND type IN ('booking.confirmed', 'booking.cancelled')",
        slot_id,
    )
    assert audited == sold
    if service.redis is not None:
        eventually(lambda: mirrored(service, slot_id) == (capacity, sold, 0), f"the mirror to say {capacity, sold, 0}")
    answer = httpx.get(f"{service.url}/v1/slots/{slot_id}", timeout=CLIENT_SECONDS).json()
    assert (answer["available_count"], answer["available"], answer["held"]) == (capacity - sold, capacity - sold, 0)


def resource_of(service: Service, slot_id: str) -> str:
    [(resource_id,)] = service.query("SELECT resource_id FROM slots WHERE id = %s", slot_id)
    return str(resource_id)


def mirrored(service: Service, slot_id: str, resource_id: str | None = None) -> tuple[int, int, int] | None:
    """Read (capacity, booked, held) of the mirror, and insist that `held` is what the holds sum up to."""
    assert service.redis is not None
    key = f"hf:{{{resource_id or resource_of(service, slot_id)}}}:{slot_id}"
    with service.redis.admin() as redis, redis.pipeline(transaction=True) as pipe:
        pipe.hmget(f"{key}:mirror", "cap", "booked", "held").hvals(f"{key}:parties").zcard(f"{key}:holds")
        counts, parties, holds = pipe.execute()
    assert holds == len(parties)
    if counts[0] is None:
        return None
    assert int(counts[2]) == sum(int(party.split(":")[0]) for party in parties)
    return int(counts[0]), int(counts[1]), int(counts[2])
