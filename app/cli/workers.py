"""The worker processes: started, watched, replaced and stopped by one parent that serves nothing itself.

A single one listens by the parent's socket, and what comes while it is replaced waits there; several each by one of
their own. They end with the parent: a pipe that only it can write to is closed by the kernel however it dies, and each
worker waits for that in `http_worker`.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from app.cli.failing import Failed

Worker = subprocess.Popen[bytes]

#: How often the parent looks at its workers and at what it was told.
TICK_SECONDS = 0.1
#: A worker that died is replaced after this long: one that cannot start must not spin.
REPLACE_SECONDS = 1.0
#: Until the first worker answers. Imports take a second or two, on a busy machine several times that.
READY_SECONDS = 120.0
#: What a stopping worker may need on top of its grace: work after replies, closing the pools.
CLOSE_SECONDS = 8.0
#: Connections that may wait to be accepted: a burst of clients must not be refused while the workers are busy.
BACKLOG = 4096


def listen(host: str, port: int, *, next_free: bool = False) -> socket.socket:
    """Listen, at the next free port if allowed.

    Raises:
        Failed: the port is taken, or the host is not ours.
    """
    for candidate in range(port, min(port + 100, 65_536)) if next_free else [port]:
        try:
            found = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return socket.create_server(found[0][4][:2], family=found[0][0], backlog=BACKLOG)
        except OSError as error:
            # strerror of create_server repeats the address; errno's own text is enough.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    raise Failed(f"Cannot listen on {host}:{port}: {reason}")


def url_of(listener: socket.socket) -> str:
    """Name the service for people on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{host}:{port}"


@contextmanager
def metrics_dir(processes: int, home: Path | None = None) -> Iterator[None]:
    """Several processes add up their metrics in a directory, which must be new and known before they start."""
    if processes == 1:
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        yield
        return
    if home:
        directory = home / "metrics"
        shutil.rmtree(directory, ignore_errors=True)  # a killed run left its own
        directory.mkdir()
    else:
        directory = Path(tempfile.mkdtemp(prefix="holdfast-metrics-"))
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Program(msgspec.Struct, frozen=True):
    """What a child process runs: a module with arguments, which is given the parent's pipe where it says PIPE."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    #: Sockets that it is given, beside the pipe.
    fds: tuple[int, ...] = ()
    environ: Mapping[str, str] = {}


#: Stands for the number of the pipe that ends with the parent.
PIPE = "{pipe}"


def supervise(
    listener: socket.socket,
    count: int,
    *,
    grace_seconds: int,
    ready: Callable[[], None],
    log: Path | None = None,
    beside: Sequence[Program] = (),
) -> None:
    """Run HTTP workers at the address of `listener`, and the programs `beside` them, until a signal asks to stop; then
    stop them within about `grace_seconds` and return. Whichever ends by itself is started again.

    They write to stderr, or to `log`.

    Raises:
        Failed: one of them could not start.
    """
    reader, writer = os.pipe()
    asked: list[int] = []
    output = log.open("ab") if log else None
    listener = for_workers(listener, count)
    arguments = (str(listener.fileno()), PIPE, str(grace_seconds))
    http_worker = Program("HTTP worker", "app.cli.http_worker", arguments, fds=(listener.fileno(),))

    def start(program: Program) -> Worker:
        given = [str(reader) if argument == PIPE else argument for argument in program.arguments]
        # A group of its own: Ctrl-C in a terminal reaches the parent alone, which then asks the workers once.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", program.module, *given],
            env={**os.environ, **program.environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(*program.fds, reader),
            process_group=0,
        )

    with _told_by(asked):
        programs = [*beside, *[http_worker] * count]
        workers = [start(program) for program in programs]
        try:
            if _become_ready(listener, workers, asked, log):
                ready()
            while not asked:
                time.sleep(TICK_SECONDS)
                for number, program in enumerate(programs):
                    if workers[number].poll() is not None:
                        workers[number] = _replace(program, workers[number], start, asked)
        finally:
            listener.close()
            _stop(workers, asked, grace_seconds + CLOSE_SECONDS)
            os.close(reader)
            os.close(writer)
            if output:
                output.close()


def for_workers(listener: socket.socket, count: int) -> socket.socket:
    """Make of a listening socket what so many workers are given: for a single one itself, for several one that only
    keeps the address for their own (`one_more`).
    """
    if count == 1 or sys.platform != "linux":  # elsewhere one of several sockets would get all connections
        return listener
    address = listener.getsockname()
    listener.close()
    try:
        kept = _bound(listener, address)
    except OSError as error:
        raise Failed(f"Cannot listen on {address[0]}:{address[1]}: {os.strerror(error.errno or 0)}") from error
    # Before any worker listens, somebody else who asks for the address must be refused as well.
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return kept


def one_more(kept: socket.socket) -> socket.socket:
    """Make a worker's own socket at an address that is kept for it, to listen by when it is ready.

    The kernel gives each such socket its share of all connections. Of one that all workers share, whoever is awake
    takes what comes: of a hundred at once, one of two had up to 84. A worker that dies takes its socket with it, and
    what waited there; the others get whatever comes from then on.
    """
    return _bound(kept, kept.getsockname())


def _bound(like: socket.socket, address: Any) -> socket.socket:
    one = socket.socket(like.family, like.type)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # the kernel lets only the same user do that
    if like.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as `create_server` does
    one.bind(address)
    return one


@contextmanager
def _told_by(asked: list[int]) -> Iterator[None]:
    """Only note the signals that ask to stop: the loop acts on them where it is safe."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda told, _: asked.append(told)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _become_ready(listener: socket.socket, workers: Sequence[Worker], asked: list[int], log: Path | None) -> bool:
    """Wait until the service answers; False when it was asked to stop first."""
    deadline = time.monotonic() + READY_SECONDS
    address = url_of(listener).removeprefix("http://")
    while not asked:
        for worker in workers:
            if (code := worker.poll()) is not None:
                # 2: a wrong setting, of which the worker has said the name.
                told = f": {_last_line(log)} (log: {log})" if log else ""
                raise Failed(f"The workers could not start{told}", code=2 if code == 2 else 1)
        if _answers(address):
            return True
        if time.monotonic() > deadline:
            raise Failed(f"The service did not answer within {READY_SECONDS:.0f} s")
        time.sleep(TICK_SECONDS)
    return False


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["they said nothing"])[-1]


def _answers(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=1)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _replace(program: Program, dead: Worker, start: Callable[[Program], Worker], asked: list[int]) -> Worker:
    print(f"{program.name} {dead.pid} ended with {dead.returncode}: starting another one", file=sys.stderr)
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(dead.pid)  # type: ignore[no-untyped-call]  # or its gauges would be told for ever
    time.sleep(REPLACE_SECONDS)
    return dead if asked else start(program)


def _stop(workers: Sequence[Worker], asked: list[int], seconds: float) -> None:
    """Ask every worker once; kill what is there after `seconds`, or at the next Ctrl-C."""
    told = len(asked)
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + seconds
    while any(worker.poll() is None for worker in workers):
        if time.monotonic() > deadline or len(asked) > max(told, 1):
            for worker in workers:
                with suppress(ProcessLookupError):
                    worker.kill()
        time.sleep(TICK_SECONDS / 2)
