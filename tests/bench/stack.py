"""What is measured: real stores in a directory of their own, and the service on them. Ends everything it started.

The stores are the bundled ones of `make run`, with their settings: Postgres waits for its disk at each COMMIT, Redis
keeps its append-only file. The service is `http_worker` with the routes of `worker.py` beside its own.
"""

import http.client
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import msgspec
import psycopg
import redis
from prometheus_client.parser import text_string_to_metric_families

from app import embedded
from app.cli.sockets import for_workers, listen, url_of
from app.cli.workers import metrics_dir
from app.migrate import upgrade
from tests.bench import textbook

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
GRACE_SECONDS = 5
#: Who looks for signs of life of a worker: they go to its standard input, the null device.
NOBODY = "0"
STOP_SECONDS = 15.0
#: Requests in flight when the driver leaves are still answered; after this long without a change all of them are.
SETTLE_SECONDS = 0.1
MAX_SETTLE_SECONDS = 15.0

#: (route, status) -> answers
Answers = Counter[tuple[str, str]]


class BenchFailed(Exception):
    """The benchmark could not be carried out; one line for people."""


class Stores(msgspec.Struct, frozen=True):
    redis_url: str
    database_url: str


@contextmanager
def stores(home: Path) -> Iterator[Stores]:
    """Run Redis and a migrated Postgres with empty tables, those of the baseline among them."""
    with embedded.running(home) as servers:
        assert servers.redis_url is not None
        assert servers.database_url is not None
        migrate(servers.database_url)
        yield Stores(servers.redis_url, servers.database_url)


def migrate(database_url: str) -> None:
    """Bring a new database to the newest schema, with the tables of the baseline."""
    upgrade(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(textbook.TABLES)


def versions(stores: Stores) -> dict[str, str]:
    with psycopg.connect(stores.database_url, autocommit=True) as connection:
        [postgres] = connection.execute("SHOW server_version").fetchall()
        [fsync] = connection.execute("SHOW fsync").fetchall()
    with redis.Redis.from_url(stores.redis_url) as client:
        its_version = client.info("server")["redis_version"]
    return {"redis": its_version, "postgres": postgres[0], "fsync": fsync[0]}


class Server:
    """The running service."""

    def __init__(self, url: str, stores: Stores, workers: list[subprocess.Popen[bytes]], log: Path) -> None:
        self.url, self.stores, self.log = url, stores, log
        self._workers = workers
        self._address = urlsplit(url).netloc

    def get(self, path: str) -> tuple[int, bytes]:
        return self._ask("GET", path, None)

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        return self._ask("POST", path, body, {"Content-Type": "application/json", **headers})

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def answers(self) -> Answers:
        """Tell how many answers were given so far, by route and status."""
        found: Answers = Counter()
        for name, labels, value in self._samples():
            if name == "holdfast_http_request_seconds_count" and labels["route"] not in ("/metrics", "/readyz"):
                found[labels["route"], labels["status"]] += int(value)
        return found

    def settled_answers(self) -> Answers:
        """The same, once nothing is in flight any more."""
        deadline = time.monotonic() + MAX_SETTLE_SECONDS
        before = self.answers()
        while True:
            time.sleep(SETTLE_SECONDS)
            after = self.answers()
            if after == before:
                return after
            if time.monotonic() > deadline:
                raise BenchFailed(f"requests still end {MAX_SETTLE_SECONDS:.0f} s after the last one was sent")
            before = after

    def _samples(self) -> list[tuple[str, dict[str, str], float]]:
        status, text = self.get("/metrics")
        if status != 200:
            raise BenchFailed(f"/metrics answered {status}")
        families = text_string_to_metric_families(text.decode())
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]

    @property
    def workers(self) -> int:
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def check_alive(self) -> None:
        if any(worker.poll() is not None for worker in self._workers):
            raise BenchFailed(f"a worker ended: {self.last_words()}")

    def last_words(self) -> str:
        """What the workers logged last, beside the lines of their requests."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join([line for line in lines if '"event":"request"' not in line][-3:])[-1000:]

    def forget_log(self) -> None:
        """A line per request is part of the service; gigabytes of them are not part of the benchmark."""
        os.truncate(self.log, 0)


@contextmanager
def serving(stores: Stores, workers: int, home: Path) -> Iterator[Server]:
    """Run the service with so many worker processes until the context ends."""
    home.mkdir(parents=True, exist_ok=True)
    listener = for_workers(listen("127.0.0.1", 0), workers)
    reader, writer = os.pipe()  # the workers end when nobody can write to it any more: see http_worker
    started: list[subprocess.Popen[bytes]] = []
    log = home / "http.log"
    with metrics_dir(workers, home), log.open("ab") as output:
        try:
            for _ in range(workers):
                started.append(_start(stores, listener.fileno(), reader, output))  # noqa: PERF401 stopped below, also the first
            server = Server(url_of(listener), stores, started, log)
            _wait_until_ready(server, workers)
            yield server
        finally:
            listener.close()
            _stop(started)
            os.close(reader)
            os.close(writer)


def _start(stores: Stores, listener: int, pipe: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.worker", str(listener), str(pipe), NOBODY, str(GRACE_SECONDS)],
        cwd=ROOT,
        env=_environment(stores),
        pass_fds=(listener, pipe),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,  # Ctrl-C reaches us alone
    )


def _environment(stores: Stores) -> dict[str, str]:
    ours = {
        "REDIS_URL": stores.redis_url,
        "DATABASE_URL": stores.database_url,
        "HOLDFAST_OPERATOR_KEY": secrets.token_hex(16),
        "HOLDFAST_SECRET": secrets.token_hex(32),
        "PYTHONPATH": str(ROOT),
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return {**others, **ours}


def _wait_until_ready(server: Server, workers: int) -> None:
    """Wait until every worker runs its application, not only the first one that happens to answer."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        server.check_alive()
        with suppress(OSError, http.client.HTTPException):
            ready = server.get("/readyz")[0] == 200
            if ready and server.log.read_text(errors="replace").count("Application startup complete") >= workers:
                return
        if time.monotonic() > deadline:
            raise BenchFailed(f"the service was not ready within {START_SECONDS:.0f} s: {server.last_words()}")
        time.sleep(0.1)


def _stop(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
