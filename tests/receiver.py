"""A receiver of webhooks on loopback, and a venue whose events are sent to it.

What the worker does with the log is called here in the test's own process, on a database of the test's own. The
fixtures are imported by name.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from standardwebhooks import Webhook

from app import webhooks
from app.ledger import Ledger
from app.webhooks import Outcome, endpoints
from app.webhooks.endpoints import Endpoint, NewEndpoint
from tests.service import Postgres

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def status(code: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} Told", "Content-Length: 0", *headers, "", ""]).encode()


# -- a receiver -------------------------------------------------------------------------------------------------------


@dataclass
class Received:
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)
        return told

    def verified(self, secret: str) -> dict[str, Any]:
        """Verify as a receiver does, with the library of the standard."""
        told: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return told


Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """Remembers what it got. `answers` are those to the next requests, bytes or what writes them; then it is 200."""

    port: int
    received: list[Received] = field(default_factory=list)
    answers: list[bytes | Handler] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks?of=venue"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.received.append(Received(head[0], headers, body))
            answer = self.answers.pop(0) if self.answers else OK
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(0)
    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(receiver.serve(reader, writer)))

    async with await asyncio.start_server(begin, "127.0.0.1", 0, ssl=tls) as server:
        receiver.port = server.sockets[0].getsockname()[1]
        yield receiver
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


# -- a venue ----------------------------------------------------------------------------------------------------------


@dataclass
class Venue:
    """Venues in a database of the test's own, and what the worker does with their events."""

    ledger: Ledger
    database_url: str
    ids: dict[str, UUID] = field(default_factory=dict)

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def open(self, slug: str = "salon") -> UUID:
        self.ids[slug] = uuid4()
        self.query("INSERT INTO venues (id, slug, name, timezone) VALUES (%s, %s, 'V', 'UTC')", self.ids[slug], slug)
        return self.ids[slug]

    async def endpoint(self, url: str, *types: str, venue: str = "salon") -> Endpoint:
        new = NewEndpoint(venue=venue, url=url, types=list(types) or None)
        made, _ = await endpoints.create(self.ledger, new, None, None, allow_private=True)
        return made

    def happens(self, kind: str = "booking.confirmed", venue: str = "salon", **data: Any) -> int:
        [(seq,)] = self.query(
            "INSERT INTO events (type, actor, venue_id, slot_id, booking_id, data)"
            " VALUES (%s, 'customer', %s, %s, %s, %s) RETURNING seq",
            kind, self.ids[venue], uuid4(), uuid4(), json.dumps({"quantity": 2, **data}),
        )  # fmt: skip
        return int(seq)

    async def enqueue(self, *seqs: int) -> list[UUID]:
        async with (
            await psycopg.AsyncConnection.connect(self.database_url) as connection,
            connection.transaction(),
        ):
            return await webhooks.enqueue(connection, seqs)

    async def queued(self, kind: str = "booking.confirmed", **data: Any) -> UUID:
        """Let something happen for which there is one endpoint."""
        [delivery_id] = await self.enqueue(self.happens(kind, **data))
        return delivery_id

    async def deliver(self, delivery_id: UUID, **how: Any) -> Outcome:
        return await webhooks.deliver(self.ledger, delivery_id, **{"allow_private": True, **how})

    def row(self, delivery_id: UUID) -> tuple[Any, ...]:
        [row] = self.query(
            "SELECT status, attempts, answer_status, error FROM webhook_deliveries WHERE id = %s", delivery_id
        )
        return row

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [data for (data,) in self.query("SELECT data FROM events WHERE type = %s ORDER BY seq", kind)]

    def pass_time(self) -> None:
        """Let every wait be over."""
        self.query("UPDATE webhook_deliveries SET next_at = now(), leased_until = NULL WHERE status = 'pending'")


@pytest.fixture
async def venue(postgres: Postgres) -> AsyncIterator[Venue]:
    url = postgres.fresh()
    ledger = Ledger(url)
    await ledger.pool.open()
    found = Venue(ledger, url)
    found.open()
    try:
        yield found
    finally:
        await ledger.pool.close()
