"""The rivals of the tests, and of `holdfast race`, are rivals: if they came one by one, every race would pass."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from app.cli.race import shoot
from tests.service import all_at_once

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Word: yes\r\n\r\nok"


@dataclass
class Sink:
    """A server that keeps every request for a while, and counts how many it has at the same time."""

    keep_seconds: float = 0.25
    inside: int = 0
    most: int = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /break"):
                    break
                if not head.startswith(b"GET /livez"):
                    self.inside += 1
                    self.most = max(self.most, self.inside)
                    await asyncio.sleep(self.keep_seconds)
                    self.inside -= 1
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError):  # the client is done
            pass
        finally:
            writer.close()


@asynccontextmanager
async def sinking() -> AsyncIterator[tuple[Sink, httpx.AsyncClient]]:
    sink = Sink()
    async with await asyncio.start_server(sink.accept, "127.0.0.1", 0, backlog=200) as server:
        host, port = server.sockets[0].getsockname()
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            yield sink, client


async def test_a_hundred_rivals_are_there_together():
    async with sinking() as (sink, client):
        answers = await all_at_once(client, [client.build_request("GET", "/") for _ in range(100)])
        assert sink.most == 100
    assert {(answer.status_code, answer.text, answer.headers["x-word"]) for answer in answers} == {(200, "ok", "yes")}


async def test_the_sink_can_tell_who_comes_alone():
    async with sinking() as (sink, client):
        for _ in range(3):
            await all_at_once(client, [client.build_request("GET", "/")])
        assert sink.most == 1


async def test_a_connection_that_breaks_is_an_error_and_no_answer():
    async with sinking() as (_, client):
        requests = [client.build_request("GET", path) for path in ("/", "/break", "/")]
        with pytest.raises(httpx.TransportError):
            await all_at_once(client, requests)
    with pytest.raises(httpx.TransportError):
        await all_at_once(client, requests)


async def test_the_buyers_of_holdfast_race_are_there_together():
    async with sinking() as (sink, client):
        livez, shot = client.build_request("GET", "/livez"), client.build_request("GET", "/")
        answers = await shoot(livez, [shot] * 100)
        assert sink.most == 100
        assert [word for word, _ in answers] == ["200"] * 100


async def test_holdfast_race_names_what_went_wrong():
    async with sinking() as (_, client):
        livez = client.build_request("GET", "/livez")
        answers = await shoot(livez, [client.build_request("GET", path) for path in ("/", "/break")])
        assert [word for word, _ in answers] == ["200", "ConnectionResetError"]
    with pytest.raises(httpx.ConnectError):
        await shoot(livez, [livez])
