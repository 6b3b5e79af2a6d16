"""Pages that listen: open so many live streams, read them, open each again when it ends. A process of its own.

python -m tests.bench.listeners <host> <port> <path> <streams>

Says "open" when all of them are, and, when its input ends, how many events came, and what share of the machine's
processors it took to read them.
"""

import asyncio
import os
import sys
import time
from typing import Any

import uvloop


class Listener(asyncio.Protocol):
    """One stream after the other. Reads as cheaply as it can: the processors are those of the service."""

    def __init__(self, request: bytes, began: asyncio.Event, ended: asyncio.Event, counts: list[int]) -> None:
        self._request, self._began, self._ended, self._counts = request, began, ended, counts

    def connection_made(self, transport: Any) -> None:  # uvloop's is none of asyncio's types
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._began.is_set():
            if not data.startswith(b"HTTP/1.1 200"):
                sys.exit(f"no stream: {data[:300]!r}")
            self._began.set()
        self._counts[0] += data.count(b"event: slot")

    def connection_lost(self, _: Exception | None) -> None:
        self._ended.set()


async def listen(host: str, port: int, request: bytes, began: asyncio.Event, counts: list[int]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ended = asyncio.Event()
        this = began if not began.is_set() else asyncio.Event()
        await loop.create_connection(lambda this=this, ended=ended: Listener(request, this, ended, counts), host, port)  # type: ignore[misc]
        await ended.wait()
        await asyncio.sleep(1)


async def main(host: str, port: int, path: str, streams: int) -> None:
    # Closed after its stream, so that the next one may come to another worker.
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    counts, listening = [0], []
    for _ in range(streams):
        began = asyncio.Event()
        listening.append(asyncio.create_task(listen(host, port, request, began, counts)))
        await began.wait()
    print("open", flush=True)
    began_at, used = time.monotonic(), time.process_time()
    await asyncio.to_thread(sys.stdin.read)
    share = (time.process_time() - used) / (time.monotonic() - began_at) / (os.cpu_count() or 1)
    print(counts[0], share, flush=True)
    for task in listening:
        task.cancel()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
