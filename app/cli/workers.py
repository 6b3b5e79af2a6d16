"""The worker processes: started, watched, replaced and stopped by one parent that serves nothing itself.

A single one listens by the parent's socket, and what comes while it is replaced waits there; several each by one of
their own (`sockets`). They end with the parent: a pipe that only it can write to is closed by the kernel however it
dies, and each worker waits for that in `http_worker`. One that hangs is ended by the parent: its event loop writes to
another pipe as long as it turns.
"""

import http.client
import math
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
from typing import IO

import msgspec

from app.cli.failing import Failed
from app.cli.sockets import for_workers, url_of

Worker = subprocess.Popen[bytes]

#: How often the parent looks at its workers and at what it was told.
TICK_SECONDS = 0.1
#: A worker that died is replaced after this long: one that cannot start must not spin.
REPLACE_SECONDS = 1.0
#: Until the first worker answers. Imports take a second or two, on a busy machine several times that.
READY_SECONDS = 120.0
#: What a stopping worker may need on top of its grace: work after replies, closing the pools.
CLOSE_SECONDS = 8.0
#: An HTTP worker whose event loop has not turned for so long hangs: it is asked where, and killed a little later. It
#: turns ten times a second; what a machine that is far too busy does to it, it does to the parent that counts, too.
SILENT_SECONDS = 15.0
TELL_SECONDS = 2.0


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
#: Stands for the number of the pipe that the program writes to every second, as soon as it has started.
PULSE = "{pulse}"


class Child:
    """A program's process, and for how long it has shown no sign of life."""

    def __init__(self, program: Program, pipe: int, output: IO[bytes] | None) -> None:
        """Start it in a group of its own: Ctrl-C in a terminal reaches the parent alone, which then asks it once.

        Raises:
            OSError: this machine has no room for it.
        """
        self.program = program
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)  # a parent that does not look stops nobody
        numbers = {PIPE: str(pipe), PULSE: str(writer)}
        try:
            self.process: Worker = subprocess.Popen(
                [sys.executable, "-P", "-m", program.module, *(numbers.get(each, each) for each in program.arguments)],
                env={**os.environ, **program.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(*program.fds, pipe, writer),
                process_group=0,
            )
        except OSError:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)
        self._silent_seconds = 0.0
        self._patience_seconds = READY_SECONDS if PULSE in program.arguments else math.inf

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def end_if_it_hangs(self) -> None:
        """Look for a sign of life. Silence is counted in looks: a machine that slept let nobody look either."""
        with suppress(BlockingIOError):
            if os.read(self._reader, 4096):
                self._silent_seconds, self._patience_seconds = 0.0, SILENT_SECONDS
        before, self._silent_seconds = self._silent_seconds, self._silent_seconds + TICK_SECONDS
        if before < self._patience_seconds <= self._silent_seconds:
            print(f"{self.program.name} {self.process.pid} hangs: ending it", file=sys.stderr)
            self.process.send_signal(signal.SIGUSR2)  # it writes down where
        if self._silent_seconds >= self._patience_seconds + TELL_SECONDS:
            self.process.kill()

    def forget(self) -> None:
        os.close(self._reader)


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
    arguments = (str(listener.fileno()), PIPE, PULSE, str(grace_seconds))
    http_worker = Program("HTTP worker", "app.cli.http_worker", arguments, fds=(listener.fileno(),))

    def start(program: Program) -> Child:
        return Child(program, reader, output)

    with _told_by(asked):
        children = [start(program) for program in (*beside, *[http_worker] * count)]
        try:
            if _become_ready(listener, children, asked, log):
                ready()
            while not asked:
                time.sleep(TICK_SECONDS)
                for number, child in enumerate(children):
                    child.end_if_it_hangs()
                    if child.has_ended():
                        children[number] = _replace(child, start, asked)
        finally:
            listener.close()
            _stop([child.process for child in children], asked, grace_seconds + CLOSE_SECONDS)
            for child in children:
                child.forget()
            os.close(reader)
            os.close(writer)
            if output:
                output.close()


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


def _become_ready(listener: socket.socket, children: Sequence[Child], asked: list[int], log: Path | None) -> bool:
    """Wait until the service answers; False when it was asked to stop first."""
    deadline = time.monotonic() + READY_SECONDS
    address = url_of(listener).removeprefix("http://")
    while not asked:
        for child in children:
            if (code := child.process.poll()) is not None:
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


def _replace(dead: Child, start: Callable[[Program], Child], asked: list[int]) -> Child:
    """Start another one, unless we are asked to stop meanwhile. Where there is no room for it, the others go on."""
    name, pid = dead.program.name, dead.process.pid
    print(f"{name} {pid} ended with {dead.process.returncode}: starting another one", file=sys.stderr)
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]  # or its gauges would be told for ever
    time.sleep(REPLACE_SECONDS)
    if asked:
        return dead
    try:
        another = start(dead.program)
    except OSError as error:
        print(f"{name} cannot be started now: {error.strerror}", file=sys.stderr)
        return dead
    dead.forget()
    return another


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
