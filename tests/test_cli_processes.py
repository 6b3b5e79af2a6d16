"""The commands as processes: how fast they start, how the service starts and stops, and the whole demo."""

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from app.cli import workers
from app.cli.sockets import for_workers, listen, one_more, url_of
from tests.redis_servers import RedisServer
from tests.service import (
    CLIENT_SECONDS,
    HOLDFAST,
    OPERATOR_KEY,
    SECRET,
    START_SECONDS,
    Postgres,
    eventually,
    free_port,
    serving,
    store_environ,
)

#: Of packages that take long to import. No command needs them just to say how it is used.
HEAVY = {"litestar", "sqlalchemy", "alembic", "uvicorn", "httpx", "redis", "psycopg", "prometheus_client", "structlog"}


def clean(**environ: str) -> dict[str, str]:
    """The environment of somebody who has set nothing."""
    ours = {"REDIS_URL", "DATABASE_URL", "API_URL"}
    kept = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("HOLDFAST_")}
    return {**kept, **environ}


def run(
    *arguments: Any, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [str(HOLDFAST), *(str(argument) for argument in arguments)]
    return subprocess.run(
        command,
        env=env or clean(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


# -- imports ----------------------------------------------------------------------------------------------------------


def imported_by(*arguments: str, **environ: str) -> set[str]:
    """Run a command and tell the top-level packages that it imported."""
    command = [sys.executable, "-X", "importtime", "-c", "from app.cli import main; main()", *arguments]
    done = subprocess.run(command, env=clean(**environ), capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("command", [(), ("holds",), ("holds", "list"), ("serve",), ("race",), ("events", "tail")])
def test_help_imports_nothing_heavy(command):
    assert not imported_by(*command, "--help") & HEAVY


def test_holds_commands_import_the_two_stores_only(postgres, bundled_redis_server):
    stores = {"REDIS_URL": bundled_redis_server.url, "DATABASE_URL": postgres.fresh()}
    for command in (("holds", "list"), ("holds", "watch", "--for", "0.1"), ("reconcile",)):
        assert not imported_by(*command, **stores) & {"litestar", "sqlalchemy", "alembic", "uvicorn", "httpx"}


# -- serve ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(postgres: Postgres, bundled_redis_server: RedisServer) -> dict[str, str]:
    return clean(
        REDIS_URL=bundled_redis_server.url,
        DATABASE_URL=postgres.fresh(),
        HOLDFAST_OPERATOR_KEY=OPERATOR_KEY,
        HOLDFAST_SECRET=SECRET,
        HOLDFAST_ENV="test",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("REDIS_URL", ""), ("DATABASE_URL", "mysql://x"), ("HOLDFAST_SECRET", "short"), ("HOLDFAST_WORKERS", "many")],
)
def test_a_wrong_setting_stops_the_start_with_one_line_that_names_it(settings, name, value):
    done = run("serve", env={**settings, name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(name)
    assert done.stderr.count("\n") == 1


def test_a_taken_port_is_one_line(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", port, env=settings)
    assert done.returncode == 1
    assert done.stderr == f"Cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_missing_schema_is_one_line_and_upgrade_makes_it(settings, postgres):
    empty = postgres.of("empty_for_cli")
    with psycopg.connect(postgres.of("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty_for_cli")
    env = {**settings, "DATABASE_URL": empty}
    done = run("serve", "--port", free_port(), env=env)
    assert (done.returncode, done.stderr) == (1, "The database has no schema yet: run `holdfast db upgrade`\n")
    for _ in range(2):
        done = run("db", "upgrade", env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"The schema is at \d+\n", done.stdout)


def children(pid: int) -> list[int]:
    """List the processes below one, at any depth. One that ends while it is looked at has none."""
    try:
        found = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return found + [below for child in found for below in children(child)]


def gone(pids: Sequence[int]) -> bool:
    """Zombies are gone: in a container nobody may be there to reap them."""
    return not any(_command_line(pid) for pid in pids)


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):  # it may end at any moment
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_a_dead_worker_is_replaced(settings):
    with serving(settings["DATABASE_URL"], settings["REDIS_URL"], workers=2) as service:
        before = children(service.process.pid)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: gone(before[:1]), "the worker to die")
        eventually(lambda: len(set(children(service.process.pid)) - set(before)) == 1, "another worker")
        assert httpx.get(f"{service.url}/readyz", timeout=CLIENT_SECONDS).status_code == 200


#: Tells of each worker's first sign of life as well: until then its parent is more patient.
HURRIED = """
import sys
from app.cli import main, workers
workers.SILENT_SECONDS = 3.0
look, alive = workers.Child.end_if_it_hangs, set()
def look_and_tell(child):
    look(child)
    if child._patience_seconds == workers.SILENT_SECONDS and child.process.pid not in alive:
        alive.add(child.process.pid)
        print(child.process.pid, "is alive", file=sys.stderr, flush=True)
workers.Child.end_if_it_hangs = look_and_tell
main()
"""


def test_a_worker_that_hangs_is_replaced(settings):
    """With a socket of its own it would keep its share of the customers waiting for ever."""
    port = free_port()
    environ = {**os.environ, **settings, "HOLDFAST_PORT": str(port), "HOLDFAST_HOST": "127.0.0.1"}
    command = [sys.executable, "-c", HURRIED, "serve", "--workers", "2"]
    with tempfile.NamedTemporaryFile("w+") as log:
        parent = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(lambda: listening(port) == 2, "both workers to listen", seconds=START_SECONDS)
            stuck, other = children(parent.pid)
            eventually(lambda: f"{stuck} is alive" in Path(log.name).read_text(), "its first sign of life")
            os.kill(stuck, signal.SIGSTOP)
            # Not only dead but waited for: it has no sockets any more.
            eventually(lambda: stuck not in children(parent.pid), "the worker that hangs to be ended")
            eventually(lambda: listening(port) == 2, "another one to listen", seconds=START_SECONDS)
            for _ in range(20):
                assert httpx.get(f"http://127.0.0.1:{port}/livez", timeout=CLIENT_SECONDS).status_code == 200
            os.kill(other, signal.SIGUSR2)  # as the parent asks at first, which one that is stopped cannot answer
            eventually(lambda: "most recent call first" in Path(log.name).read_text(), "the worker to tell where it is")
        finally:
            parent.terminate()
            parent.wait(timeout=START_SECONDS)
        told = Path(log.name).read_text()
    assert f"HTTP worker {stuck} hangs: ending it" in told


#: A program that hangs, after a first sign of life or before it.
HANGS = """
import faulthandler, os, signal, sys, time
faulthandler.register(signal.SIGUSR2, all_threads=True)
if sys.argv[2] == "alive":
    os.write(int(sys.argv[1]), b".")
def stuck():
    print("as far as it gets", flush=True)
    time.sleep(600)
stuck()
"""


@pytest.mark.parametrize(("begins", "bound"), [("alive", "SILENT_SECONDS"), ("never", "READY_SECONDS")])
def test_what_hangs_tells_where_and_is_killed(tmp_path, monkeypatch, capfd, begins, bound):
    """Also one that never came to life, for which its parent is more patient."""
    (tmp_path / "hangs.py").write_text(HANGS)
    for name in ("SILENT_SECONDS", "READY_SECONDS"):
        monkeypatch.setattr(workers, name, 5.0 if name == bound else 1e6)
    pipe, keeps_it = os.pipe()
    program = workers.Program("Program", "hangs", (workers.PULSE, begins), environ={"PYTHONPATH": str(tmp_path)})
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = workers.Child(program, pipe, output)

    def told() -> bool:
        child.end_if_it_hangs()
        return child._silent_seconds >= child._patience_seconds

    def has_ended() -> bool:
        child.end_if_it_hangs()
        return child.has_ended()

    try:
        # Nobody looks while the machine may let it do nothing: neither before it hangs, nor once it is asked.
        eventually(lambda: "as far as it gets" in log.read_text(), "it to hang", seconds=START_SECONDS)
        eventually(told, "it to be asked where it is")
        eventually(lambda: "in stuck" in log.read_text(), "it to tell where it is", seconds=START_SECONDS)
        eventually(has_ended, "it to be killed", seconds=START_SECONDS)
    finally:
        child.process.kill()
        child.process.wait()
        child.forget()
        os.close(pipe)
        os.close(keeps_it)
    assert child.process.returncode == -signal.SIGKILL
    assert capfd.readouterr().err == f"Program {child.process.pid} hangs: ending it\n"


def test_without_room_for_another_process_the_others_go_on(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(workers, "REPLACE_SECONDS", 0.0)
    pipe, keeps_it = os.pipe()
    dead = workers.Child(workers.Program("Program", "this", ()), pipe, None)
    dead.process.wait()

    def no_room(_: workers.Program) -> workers.Child:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    assert workers._replace(dead, no_room, []) is dead
    assert "Program cannot be started now: Resource temporarily unavailable\n" in capfd.readouterr().err
    another = workers._replace(dead, lambda program: workers.Child(program, pipe, None), [])
    assert another is not dead
    another.process.wait()
    another.forget()
    os.close(pipe)
    os.close(keeps_it)


def listening(port: int) -> int:
    """Count the sockets that listen at a port."""
    return len(listeners(port))


def listeners(port: int) -> set[str]:
    """Name the sockets that listen at a port, as the kernel does: by their inodes."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}


def test_each_of_several_workers_listens_for_itself(settings):
    """So the kernel gives each its share, and none to one that is not there."""
    with serving(settings["DATABASE_URL"], settings["REDIS_URL"], workers=2) as service:
        port = int(service.url.rpartition(":")[2])
        eventually(lambda: listening(port) == 2, "both workers to listen")
        done = run("serve", "--port", port, env=settings)
        assert (done.returncode, done.stderr) == (1, f"Cannot listen on 127.0.0.1:{port}: Address already in use\n")
        victim, before = children(service.process.pid)[0], listeners(port)
        os.kill(victim, signal.SIGKILL)
        # Its own, whoever listens in its place by the time that we look.
        eventually(lambda: len(before & listeners(port)) == 1, "its socket to be gone")
        for _ in range(20):
            assert httpx.get(f"{service.url}/livez", timeout=CLIENT_SECONDS).status_code == 200
        eventually(lambda: listening(port) == 2, "another worker to listen")


def test_nobody_else_gets_the_address_before_the_workers_listen():
    with for_workers(listen("127.0.0.1", 0), 2) as kept:
        port = kept.getsockname()[1]
        assert listening(port) == 0
        assert not is_free(port)
        with one_more(kept) as first, one_more(kept) as second:
            first.listen()
            second.listen()
            assert listening(port) == 2
        assert not is_free(port)
        one_more(kept).close()


def test_workers_end_with_a_killed_parent_and_free_the_port(settings):
    with serving(settings["DATABASE_URL"], settings["REDIS_URL"], workers=2) as service:
        workers = children(service.process.pid)
        assert len(workers) == 2
        service.process.kill()
        eventually(lambda: gone(workers), "the workers to end")
        port = int(service.url.rpartition(":")[2])
        # A process that ends has lost its command line a moment before its sockets.
        eventually(lambda: is_free(port), "the port to be free")


def test_a_terminated_service_ends_cleanly_with_its_workers(settings):
    with serving(settings["DATABASE_URL"], settings["REDIS_URL"], workers=2) as service:
        workers = children(service.process.pid)
        service.process.terminate()
        assert service.process.wait(timeout=START_SECONDS) == 0
        assert gone(workers)


# -- demo -------------------------------------------------------------------------------------------------------------


@contextmanager
def demo(where: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the demo in a directory, as somebody who has set nothing; yields it with what it printed."""
    command = [str(HOLDFAST), "demo", "--port", str(port), "--workers", "2"]
    with subprocess.Popen(
        command, cwd=where, env=clean(COLUMNS="80"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            printed = ""
            for line in process.stdout:
                printed += line
                if line.startswith("curl"):
                    break
            assert "curl" in printed, printed
            yield process, printed
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def book_as_printed(printed: str) -> dict[str, Any]:
    """Do what a reader does: paste the line."""
    [line] = [line for line in printed.splitlines() if line.startswith("curl ")]
    if shutil.which("curl"):
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=True)  # noqa: S602
        return dict(json.loads(done.stdout))
    words = shlex.split(line)
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(words[2], content=words[words.index("-d") + 1], headers=headers, timeout=CLIENT_SECONDS)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_demo_from_nothing_to_a_booking_through_a_kill_and_back(tmp_path):
    port = free_port()
    # Given an empty directory, If the demo is started and its line is pasted, Expect a booking.
    with demo(tmp_path, port) as (process, printed):
        assert f"http://127.0.0.1:{port}" in printed
        for word in ("Operator key", "/schema", "/readyz", "/metrics", "holds watch", "race"):
            assert word in printed
        booked = book_as_printed(printed)
        assert booked["status"] == "confirmed"

        # Expect the other commands to find it from the same directory, without any setting.
        [listed] = json.loads(run("bookings", "list", "--json", cwd=tmp_path).stdout)["data"]
        assert listed["id"] == booked["id"]
        why = json.loads(run("holds", "why", booked["slot_id"], "--json", cwd=tmp_path).stdout)
        assert (why["adds_up"], why["booked"]) == (True, 1)
        assert run("race", cwd=tmp_path).returncode == 0
        assert run("doctor", cwd=tmp_path).returncode == 0
        for private in ("run.json", "keys.json"):
            assert (tmp_path / ".holdfast" / private).stat().st_mode & 0o777 == 0o600

        # Expect a second demo of the same home to say who has it, in one line after what it was about to do.
        second = run("demo", "--port", free_port(), cwd=tmp_path)
        assert second.returncode == 1
        assert second.stderr.count("\n") == 2
        assert f"in use by process {process.pid}" in second.stderr
        busy = run("demo", "--port", port, cwd=tmp_path)
        assert (busy.returncode, "Address already in use" in busy.stderr) == (1, True)

        # If it is killed, Expect everything it started to end.
        below = children(process.pid)
        assert len(below) >= 4
        process.kill()
        process.wait()
        eventually(lambda: gone(below), "the demo's processes to end")
    assert run("holds", "list", cwd=tmp_path).returncode == 2  # run.json is stale, and known to be

    # Expect the next start to have the same port, the same data and no second demo venue.
    with demo(tmp_path, port) as (process, printed):
        [listed] = json.loads(run("bookings", "list", "--venue", "demo", "--json", cwd=tmp_path).stdout)["data"]
        assert listed["id"] == booked["id"]
        [city_walk] = [
            one
            for one in httpx.get(f"http://127.0.0.1:{port}/v1/venues/demo", timeout=CLIENT_SECONDS).json()["resources"]
            if one["name"] == "City walk"
        ]  # fmt: skip
        assert city_walk["kind"] == "event"
        assert book_as_printed(printed)["status"] == "confirmed"
        below = children(process.pid)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=START_SECONDS) == 0
        assert time.monotonic() - started < 15
        assert gone(below)
    assert not (tmp_path / ".holdfast" / "run.json").exists()


def test_demo_that_is_stopped_while_it_starts_leaves_nothing(tmp_path):
    home = tmp_path / ".holdfast"
    command = [str(HOLDFAST), "demo", "--port", str(free_port())]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        eventually((home / "postgres" / "postmaster.pid").exists, "Postgres to start", seconds=START_SECONDS)
        below = children(process.pid)
        process.terminate()
        process.wait(timeout=START_SECONDS)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    eventually(lambda: gone(below), "the servers to end")
    assert not (home / "run.json").exists()


def test_a_worker_that_is_stopped_while_it_starts_ends_cleanly():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        postgres = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/holdfast?sslmode=disable&gssencmode=disable"
        env = clean(**store_environ(postgres, "unix:///nonexistent/redis.sock"))
        with subprocess.Popen([str(HOLDFAST), "worker"], env=env, stdin=subprocess.DEVNULL) as process:
            silent.settimeout(60)
            with silent.accept()[0]:  # it waits for the look at its database to be answered
                process.terminate()
                assert process.wait(timeout=START_SECONDS) == 0


def test_demo_takes_the_next_port_unless_one_was_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with listen("127.0.0.1", port, next_free=True) as found:
            assert found.getsockname()[1] > port
            assert url_of(found) == f"http://127.0.0.1:{found.getsockname()[1]}"
