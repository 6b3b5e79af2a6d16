"""`holdfast race`: the concurrency test for a running service, over real connections, counted exactly (S1-1)."""

import asyncio
import os
import ssl
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import rich_click as click

from app.cli.failing import DONE, FAILED, NOT_FOUND, USAGE, Failed
from app.cli.home import Api, find_api, home_dir, read_run
from app.cli.show import emit, facts, out
from app.domain import RACE_VENUE

if TYPE_CHECKING:
    import httpx

#: One request at most; a service that needs longer has failed the race anyway.
TIMEOUT_SECONDS = 30.0
MAX_REQUESTS = 2_000
Lane = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Round(msgspec.Struct, frozen=True):
    """One race and what it must have come to."""

    iteration: int
    slot_id: UUID
    total: int
    successful: int
    conflicts: int
    errors: int
    #: What the errors were, with how many of each.
    error_kinds: dict[str, int]
    latency_ms_p50: float
    latency_ms_p95: float
    latency_ms_max: float
    expected: int
    available_count: int
    expected_available_count: int
    passed: bool


@click.command()
@click.option("--url", metavar="URL", help="The service  [env: API_URL]")
@click.option(
    "--requests", type=click.IntRange(1, MAX_REQUESTS), metavar="N", help="[env: CONCURRENT_REQUESTS; default 10]"
)
@click.option("--iterations", type=click.IntRange(1, 1000), metavar="N", help="[env: TEST_ITERATIONS; default 1]")
@click.option(
    "--capacity",
    type=click.IntRange(1, 100_000),
    metavar="N",
    default=1,
    show_default=True,
    help="How many must succeed: the places of an own slot.",
)
@click.option(
    "--slot", "slot_id", type=click.UUID, metavar="ID", help="Race for this slot's places, not for an own slot."
)
@click.option("--operator-key", metavar="KEY", help="To make own slots  [env: HOLDFAST_OPERATOR_KEY]")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
@click.pass_context
def race(
    ctx: click.Context,
    *,
    url: str | None,
    requests: int | None,
    iterations: int | None,
    capacity: int,
    slot_id: UUID | None,
    operator_key: str | None,
    as_json: bool,
) -> None:
    """Let many buyers ask for the same places at one instant.

    Exits 1 unless exactly --capacity of them succeed, all others get a 409, and the slot's count agrees. Fewer
    requests than that cannot pass.
    """
    api = find_api(url, operator_key)
    if not api.operator_key and slot_id is None:
        wanted = "Making slots needs the operator key (--operator-key, HOLDFAST_OPERATOR_KEY); or give --slot"
        raise Failed(wanted if read_run(home_dir()) else f"{wanted}. No demo runs in {home_dir()}", USAGE)
    buyers = requests or _number("CONCURRENT_REQUESTS", 10)
    count = iterations or _number("TEST_ITERATIONS", 1)
    rounds = asyncio.run(_race(api, buyers, count, capacity, slot_id))
    passed = all(one.passed for one in rounds)
    if as_json:
        emit({"url": api.url, "requests": buyers, "iterations": count, "passed": passed, "data": rounds})
    else:
        _print(api.url, rounds, passed)
    ctx.exit(DONE if passed else FAILED)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= MAX_REQUESTS:
        raise Failed(f"{name} must be a number between 1 and {MAX_REQUESTS}, not {text!r}", USAGE)
    return int(text)


async def _race(api: Api, buyers: int, iterations: int, capacity: int, slot_id: UUID | None) -> list[Round]:
    import httpx

    async with httpx.AsyncClient(base_url=api.url, timeout=TIMEOUT_SECONDS) as client:
        key = api.operator_key or ""
        track = {} if slot_id else await _find_track(client, key)
        rounds = []
        for iteration in range(1, iterations + 1):
            raced = slot_id or await _make_slot(client, key, track, capacity, iteration)
            rounds.append(await _run(client, iteration, raced, buyers, capacity))
        return rounds


async def _find_track(client: "httpx.AsyncClient", key: str) -> dict[str, str]:
    """Find the venue of all races, or make it with the first, so that no real slot is touched."""
    shown = await client.get(f"/v1/venues/{RACE_VENUE}")
    tracks = shown.json()["resources"] if shown.status_code == 200 else []
    if shown.status_code == 404:
        await _once(client, key, "/v1/venues", {"slug": RACE_VENUE, "name": "Race", "timezone": "UTC"})
    if not tracks:
        tracks = [await _once(client, key, "/v1/resources", {"venue": RACE_VENUE, "name": "Track", "kind": "event"})]
    return {"venue": RACE_VENUE, "resource_id": tracks[0]["id"]}


async def _once(client: "httpx.AsyncClient", key: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Make what another first race may be making at this moment: both get the same."""
    return await _post(client, key, path, body, {"Idempotency-Key": RACE_VENUE})


async def _make_slot(
    client: "httpx.AsyncClient", key: str, track: dict[str, str], capacity: int, iteration: int
) -> UUID:
    starts_at = (datetime.now(UTC) + timedelta(days=1, hours=iteration)).replace(minute=0, second=0, microsecond=0)
    times = {"starts_at": starts_at.isoformat(), "ends_at": (starts_at + timedelta(hours=1)).isoformat()}
    return UUID((await _post(client, key, "/v1/slots", {**track, **times, "capacity": capacity}))["id"])


async def _post(
    client: "httpx.AsyncClient", key: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> dict[str, Any]:
    response = await client.post(path, json=body, headers={"Authorization": f"Bearer {key}", **(headers or {})})
    if response.status_code != 201:
        raise Failed(f"POST {path} answered {response.status_code}: {response.text[:200]}")
    answer: dict[str, Any] = response.json()
    return answer


async def _run(client: "httpx.AsyncClient", iteration: int, slot_id: UUID, buyers: int, expected: int) -> Round:
    before = await _read_slot(client, slot_id)
    livez = client.build_request("GET", "/livez")
    answers = await shoot(livez, [_shot(client, slot_id, number) for number in range(buyers)])
    words = Counter(word for word, _ in answers)
    successful, conflicts = words.pop("201", 0), words.pop("409", 0)
    latencies = sorted(ms for _, ms in answers)
    after = await _read_slot(client, slot_id)
    count, expected_count = after["available_count"], before["available_count"] - expected
    return Round(
        iteration, slot_id, buyers, successful, conflicts, words.total(), dict(words),
        _percentile(latencies, 0.5), _percentile(latencies, 0.95), latencies[-1], expected, count, expected_count,
        passed=successful == expected and not words and count == expected_count,
    )  # fmt: skip


def _shot(client: "httpx.AsyncClient", slot_id: UUID, number: int) -> "httpx.Request":
    body = {"slot_id": str(slot_id), "customer": {"name": f"Buyer {number}", "email": f"buyer{number}@example.com"}}
    return client.build_request("POST", "/v1/bookings", json=body)


async def shoot(livez: "httpx.Request", shots: list["httpx.Request"]) -> list[tuple[str, float]]:
    """Send all at one instant; answer with each status, or the name of what went wrong, and ms.

    Over plain connections: httpx needs tens of milliseconds of our own CPU for each request, so that the buyers would
    come one after the other and race nobody.
    """
    lanes: list[Lane] = []
    try:
        # Every buyer opens a connection first: the race is about places, not about handshakes.
        await asyncio.gather(*(_open(livez, lanes) for _ in shots))
        ready = [(writer, _bytes(shot)) for (_, writer), shot in zip(lanes, shots, strict=True)]
        # Nothing else in this loop, or the first is answered before the last is sent.
        started = []
        for writer, data in ready:
            started.append(time.perf_counter())
            writer.write(data)
        return await asyncio.gather(*(_hit(*one) for one in zip((reader for reader, _ in lanes), started, strict=True)))
    finally:
        for _, writer in lanes:
            writer.transport.abort()


async def _open(livez: "httpx.Request", lanes: list[Lane]) -> None:
    """Open a connection and have it answer once: then a worker has accepted it."""
    import httpx

    url = livez.url
    secure = url.scheme == "https"
    tls = _tls() if secure else None
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            lane = await asyncio.open_connection(url.host, url.port or (443 if secure else 80), ssl=tls)
            lanes.append(lane)
            lane[1].write(_bytes(livez))
            await _status(lane[0])
    except OSError as error:
        raise httpx.ConnectError(str(error) or type(error).__name__) from error


@cache
def _tls() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()


async def _hit(reader: asyncio.StreamReader, started: float) -> tuple[str, float]:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            word = str(await _status(reader))
    except OSError as error:
        word = type(error).__name__
    return word, _ms_since(started)


def _bytes(request: "httpx.Request") -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", request.content])


class _Answer:
    """What the parser calls."""

    complete = False

    def on_message_complete(self) -> None:
        self.complete = True


async def _status(reader: asyncio.StreamReader) -> int:
    """Read one whole answer.

    Raises:
        OSError: the connection broke, or what came is no HTTP.
    """
    import httptools

    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.complete:
        data = await reader.read(65_536)
        if not data:
            raise ConnectionResetError("The connection was closed before the answer")
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionError("The answer is no HTTP") from error
    return parser.get_status_code()


async def _read_slot(client: "httpx.AsyncClient", slot_id: UUID) -> dict[str, Any]:
    response = await client.get(f"/v1/slots/{slot_id}")
    if response.status_code != 200:
        code = NOT_FOUND if response.status_code == 404 else FAILED
        raise Failed(f"GET /v1/slots/{slot_id} answered {response.status_code}: {response.text[:200]}", code)
    answer: dict[str, Any] = response.json()
    return answer


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def _print(url: str, rounds: list[Round], passed: bool) -> None:
    console = out()
    for one in rounds:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in one.error_kinds.items())  # noqa: RUF001
        count = f"{one.available_count}" + (
            "" if one.available_count == one.expected_available_count else f", should be {one.expected_available_count}"
        )
        console.print(f"[bold]Iteration {one.iteration}[/] of {len(rounds)}, slot {one.slot_id}")
        console.print(
            facts(
                ("Total", str(one.total)),
                ("Successful (201)", f"{one.successful}, expected {one.expected}"),
                ("Conflicts (409)", str(one.conflicts)),
                ("Errors (other)", f"{one.errors} {kinds}".rstrip()),
                ("Latency", f"p50 {one.latency_ms_p50} ms, p95 {one.latency_ms_p95} ms, max {one.latency_ms_max} ms"),
                ("available_count", count),
            )
        )
        console.print("[green]✓ passed[/]" if one.passed else "[red]✗ failed[/]")
    if len(rounds) > 1:
        won = sum(one.passed for one in rounds)
        console.print(f"{won} of {len(rounds)} iterations passed against {url}", style="green" if passed else "red")
