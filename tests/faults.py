"""A proxy in front of a real server that fails on demand: for Redis and for Postgres, over TCP or a unix socket.

Owns one listener and a thread with an event loop of its own, so that a test that blocks its loop does not stop the
traffic. It sees plain bytes: connect with `sslmode=disable`, and not with `rediss://`.

    with FaultProxy(socket_path) as proxy:
        client = connect(f"redis://127.0.0.1:{proxy.port}")
        proxy.arm("cut_after", b"EVALSHA")   # the next EVALSHA runs, its reply is lost
"""

import asyncio
import contextlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

#: ok          everything passes
#: refuse      connections are reset: new ones at once, those that exist with their next request
#: blackhole   from a matching request on, nothing of its connection passes either way, and nobody is told
#: delay       a matching request reaches the server `delay` seconds later, or when it is let go
#: cut_before  a matching request never reaches the server; its connection is reset
#: cut_after   a matching request is answered by the server, and the connection reset in place of the reply
Mode = Literal["ok", "refuse", "blackhole", "delay", "cut_before", "cut_after"]
Upstream = Path | str | tuple[str, int]

EVERY = 1_000_000_000
QUIET_SECONDS = 0.05


class FaultProxy:
    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.port = 0
        self.mode: Mode = "ok"
        #: A request matches when it contains these bytes; none match every request.
        self.match = b""
        #: How many more requests the mode may fall upon.
        self.armed = 0
        self.delay = 0.0
        #: How often it did, and (`wait`) that it did since it was armed.
        self.hits = 0
        self._hit = threading.Event()
        #: What is delayed may go on (of the proxy's own loop), and was answered.
        self._let_go = asyncio.Event()
        self._answered = threading.Event()
        #: Connections accepted, and bytes that came from clients, whether or not they were passed on.
        self.connections = 0
        self.received = bytearray()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy")
        self._started = threading.Event()
        self._pairs: set[asyncio.Task[None]] = set()

    def arm(self, mode: Mode, match: bytes = b"", *, times: int = EVERY, delay: float = 0.0) -> None:
        """Fail from now on; the cuts once unless `times` says otherwise, the rest until `heal`."""
        self._hit.clear()
        self._answered.clear()
        self._let_go = asyncio.Event()
        self.match, self.delay = match, delay
        self.armed = 1 if times == EVERY and mode in ("cut_before", "cut_after") else times
        self.mode = mode  # last: the other thread reads it first

    def heal(self) -> None:
        """Let everything pass. Connections that were swallowed stay dead, as they do in life."""
        self.mode = "ok"

    async def hit(self) -> None:
        """Wait until the armed mode has fallen upon a request; for `cut_after`, until the server has answered it."""
        assert await asyncio.to_thread(self._hit.wait, 10), f"no request with {self.match!r} came"

    async def let_go(self) -> None:
        """Let what is delayed reach the server now, and wait until it was answered."""
        self._loop.call_soon_threadsafe(self._let_go.set)
        assert await asyncio.to_thread(self._answered.wait, 60), "what was delayed was not answered"

    def commands(self, word: bytes) -> int:
        """Tell how many requests naming `word` came since the start, answered or not."""
        return self.received.count(word)

    # -- the thread -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        # Again and again: a connection may still be on its way in, and must get its transport before it can be closed.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for pair in self._pairs:
                pair.cancel()
            await asyncio.wait(others, timeout=0.05)
        await asyncio.sleep(0)  # aborted transports close their sockets one turn later

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair = asyncio.current_task()
        assert pair is not None
        self._pairs.add(pair)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._pair(reader, writer)
        finally:
            self._pairs.discard(pair)
            writer.transport.abort()

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refuse":
            self._count()
            return
        server_reader, server_writer = await self._dial()
        try:
            await _Pair(self, reader, writer, server_reader, server_writer).run()
        finally:
            server_writer.transport.abort()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, tuple):
            return await asyncio.open_connection(*self.upstream)
        return await asyncio.open_unix_connection(self.upstream)

    def _count(self) -> None:
        self.armed -= 1
        self.hits += 1
        self._hit.set()


class _Pair:
    """One client's connection and its own connection to the server."""

    def __init__(
        self,
        proxy: FaultProxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self.proxy = proxy
        self.client, self.to_client, self.server, self.to_server = client, to_client, server, to_server
        self.swallowed = False
        self.cut_reply = False
        #: Of one that was delayed: the server has answered it.
        self.answered: asyncio.Event | None = None
        self.tail = b""

    async def run(self) -> None:
        pumps = [asyncio.create_task(self.requests()), asyncio.create_task(self.replies())]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        for pump in done:
            pump.result()

    async def requests(self) -> None:
        proxy = self.proxy
        while data := await self.client.read(65536):
            proxy.received += data
            mode = proxy.mode
            if mode != "ok" and proxy.armed > 0 and self.matches(data):
                if mode == "cut_after":
                    self.cut_reply = True  # counted when the server has answered
                else:
                    proxy._count()
                if mode in ("refuse", "cut_before"):
                    return
                if mode == "delay":
                    self.answered = asyncio.Event()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(proxy.delay):
                            await proxy._let_go.wait()
                if mode == "blackhole":
                    self.swallowed = True
            if not self.swallowed:
                self.to_server.write(data)
                await self.to_server.drain()
            if self.answered:  # or, if its client has gone meanwhile, nobody would know that the server had it
                async with asyncio.timeout(60):
                    await self.answered.wait()

    async def replies(self) -> None:
        while data := await self.server.read(65536):
            if self.cut_reply:
                # What came may answer an earlier request, as in a pipeline: the server is done when it is silent.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUIET_SECONDS) as patience:
                        while await self.server.read(65536):
                            patience.reschedule(asyncio.get_running_loop().time() + QUIET_SECONDS)
                self.proxy._count()
                return
            if self.answered:
                self.answered.set()
                self.proxy._answered.set()
            if not self.swallowed:
                self.to_client.write(data)
                await self.to_client.drain()

    def matches(self, data: bytes) -> bool:
        """Also a match that arrives in two reads, which a large request is."""
        match = self.proxy.match
        found = match in self.tail + data
        self.tail = (self.tail + data)[-(len(match) - 1) :] if len(match) > 1 else b""
        return found
