"""Where the stores and the service are: flags, else the environment, else the demo that runs in this home.

A running demo leaves `run.json` in its home, so that every command works in a second terminal without any setting.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from app.settings import MIN_OPERATOR_KEY_LENGTH, MIN_SECRET_LENGTH, Settings, SettingsError, from_env

#: People type one for another, and a demo tells only one of them.
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


class Run(msgspec.Struct, frozen=True):
    """What a running demo tells of itself. It holds a key: readable by its owner only."""

    redis_url: str
    database_url: str
    api_url: str
    operator_key: str
    pid: int


class Keys(msgspec.Struct, frozen=True):
    """Made once and kept with the demo's data: tokens of yesterday still open what they opened."""

    operator_key: str
    secret: str


class Api(msgspec.Struct, frozen=True):
    url: str
    operator_key: str | None


def home_dir() -> Path:
    return Path(os.environ.get("HOLDFAST_HOME") or ".holdfast").resolve()


def read_run(home: Path) -> Run | None:
    """Find the demo that runs in this home; None when none does, also when it was killed.

    Raises:
        SettingsError: somebody else left word of it.
    """
    try:
        run = msgspec.json.decode(_read_own(home / "run.json"), type=Run)
        os.kill(run.pid, 0)
    except PermissionError:
        return None  # of another user: its servers would not let us in either
    except (OSError, msgspec.DecodeError):
        return None
    return run


@contextmanager
def published(home: Path, run: Run) -> Iterator[None]:
    """Tell the other commands where this demo is, as long as it runs."""
    path = home / "run.json"
    _write_private(path, msgspec.json.encode(run))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def keep_keys(home: Path) -> Keys:
    path = home / "keys.json"
    with suppress(FileNotFoundError):
        return msgspec.json.decode(_read_own(path), type=Keys)
    keys = Keys(operator_key=secrets.token_urlsafe(24), secret=secrets.token_urlsafe(48))
    _write_private(path, msgspec.json.encode(keys))
    return keys


def _read_own(path: Path) -> bytes:
    """Read a file of ours. One that another user has put there could name a service that collects keys.

    Raises:
        SettingsError: it is another's.
    """
    if path.stat().st_uid != os.geteuid():
        raise SettingsError(f"{path} belongs to another user: set HOLDFAST_HOME to a folder of your own")
    return path.read_bytes()


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        new.unlink()
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    new.replace(path)


def store_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings for commands that talk to the stores: these sign nothing, and need neither key nor secret.

    Raises:
        SettingsError: nobody says where the stores are.
    """
    return from_env({**placeholders(), **_urls(environ, ("REDIS_URL", "DATABASE_URL"))})


def placeholders(*urls: str) -> dict[str, str]:
    """Stand in for settings that must be there and will not be used."""
    known = {"REDIS_URL": "redis://-", "DATABASE_URL": "postgresql://-"}
    return {
        "HOLDFAST_OPERATOR_KEY": "-" * MIN_OPERATOR_KEY_LENGTH,
        "HOLDFAST_SECRET": "-" * MIN_SECRET_LENGTH,
        "HOLDFAST_ENV": "development",
        **{name: known[name] for name in urls},
    }


def database_url(environ: Mapping[str, str] = os.environ) -> str:
    """Tell where Postgres is, for commands that need nothing else."""
    return from_env({**placeholders("REDIS_URL"), **_urls(environ, ("DATABASE_URL",))}).database_url


def _urls(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    found = {name: environ[name] for name in names if environ.get(name)}
    home = home_dir()
    if len(found) < len(names) and (run := read_run(home)):
        running = {"REDIS_URL": run.redis_url, "DATABASE_URL": run.database_url}
        # Half of one service and half of another would be compared with each other, and "repaired".
        for name, value in found.items():
            if value != running[name]:
                raise SettingsError(f"{name} is not the one of the demo in {home}: set the other URL too")
        found = running
    for name in names:
        if name not in found:
            raise SettingsError(f"{name} is not set, and no demo runs in {home}")
    return found


def find_api(url: str | None, operator_key: str | None, environ: Mapping[str, str] = os.environ) -> Api:
    """Find the service and the operator's key. The key of a demo goes to that demo's port only.

    Raises:
        SettingsError: the URL is none.
    """
    run = read_run(home_dir())
    default = run.api_url if run else f"http://127.0.0.1:{environ.get('HOLDFAST_PORT') or 8000}"
    url = (url or environ.get("API_URL") or default).rstrip("/")
    key = operator_key or environ.get("HOLDFAST_OPERATOR_KEY")
    place = _place(url)
    if not key and run and _place(run.api_url) == place:
        key = run.operator_key
    return Api(url, key)


def _place(url: str) -> tuple[str, str, int | None, str]:
    """Tell what of a URL decides which service answers."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # of a port that is no number, and of half a bracket
        host = port = None
    if not host or parts.scheme not in ("http", "https"):
        raise SettingsError(f"API_URL (--url) must be like http://127.0.0.1:8000, not {url!r}")
    return parts.scheme, "localhost" if host in THIS_MACHINE else host, port, parts.path
