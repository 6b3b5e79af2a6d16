"""Does it stay as fast when there is a lot of everything? The same requests beside a thousand slots and live holds, and
beside a million of both.

Two services run side by side, on a database and a Redis each; only the one that is asked works. The requests go to the
same number of slots in both, so that what differs is what else is stored.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psycopg
import redis

from app import embedded
from app.holds import slot_keys
from tests.bench import judge, raw, report
from tests.bench.measure import Bench, Plan, sell_out
from tests.bench.rows import GROUPS, HOLD, Goal, Row
from tests.bench.seed import BIG, Seeder, Slots
from tests.bench.stack import BenchFailed, Stores, migrate, serving, stores, versions

MANY, FEW = 1_000_000, 1_000
HOLDS_EACH = 10
#: Room for the holds that are there and for those of the run.
CAPACITY = 100
MOST_BYTES_PER_HOLD = 250
#: Of the memory that the service itself takes for such a slot: what was filled in must look the same.
SAME = 0.05
SLOTS_PER_COMMAND = 20_000

_KNOWN = {row.name: row for group in GROUPS for row in group.rows if isinstance(row, Row)}
_WIDE = Row(name="hold_wide", title="hold, over 100,000 slots", path="/v1/holds", slots="held", body=HOLD)
#: And whether the row is compared: there are no 100,000 slots where there are a thousand.
_ROWS = ((_KNOWN["refuse"], True), (_KNOWN["hold"], True), (_WIDE, False))


class Side(msgspec.Struct, frozen=True):
    """One of the two services under the same requests."""

    name: str
    bench: Bench
    slots: dict[str, Slots]


def measure(home: Path, plan: Plan, tell: Callable[[str], None], result: report.Report) -> None:
    """Fill both, measure in turns, and add the table and what was wrong to the result."""
    with _two_stores(home) as (few, many):
        result.about.update(versions(few))
        tell(f"making {FEW:,} slots and holds")
        few_seeder, few_slots, _ = _filled(few, FEW, home / "few", tell)
        tell(f"making {MANY:,} slots")
        many_seeder, many_slots, facts = _filled(many, MANY, home / "many", tell)
        with serving(few, 1, home / "few") as one, serving(many, 1, home / "many") as other:
            sell_out(one, few_slots["sold_out"])
            sell_out(other, many_slots["sold_out"])
            sides = [
                Side("1k", Bench(one, few_seeder, few_slots, plan, tell), few_slots),
                Side("1m", Bench(other, many_seeder, many_slots, plan, tell), many_slots),
            ]
            result.wrongs.extend(wrong for side in sides for wrong in _compare_with_service(side))
            _measure_in_turns(sides, plan, tell)
            for side in sides:
                side.bench.books.close()
                result.wrongs.extend(f"beside {side.name}: {wrong}" for wrong in side.bench.books.wrongs)
    result.parts.append(_part(sides, facts))


@contextmanager
def _two_stores(home: Path) -> Iterator[tuple[Stores, Stores]]:
    """One Postgres with two databases, and two of Redis, which has but one core for all its keys."""
    with stores(home / "few-stores") as few, embedded.running(home / "many-stores", postgres=False) as second:
        assert second.redis_url is not None
        with psycopg.connect(few.database_url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE million")
        many = Stores(second.redis_url, few.database_url.replace("/holdfast?", "/million?"))
        migrate(many.database_url)
        yield few, many


def _filled(
    where: Stores, count: int, directory: Path, tell: Callable[[str], None]
) -> tuple[Seeder, dict[str, Slots], list[judge.Fact]]:
    """Make slots and as many holds, ten on every tenth of the slots; tell what they take in Redis."""
    seeder = Seeder(where.database_url, directory)
    slots = {
        "sold_out": seeder.neighbours("sold-out"),
        "big": seeder.slots("big", FEW, BIG),
        "held": seeder.slots("held", count // HOLDS_EACH, CAPACITY, per_resource=1_000),
    }
    if count > FEW:
        seeder.slots("rest", count - len(slots["held"].ids) - FEW, CAPACITY, per_resource=1_000)
    seeder.done()
    held = slots["held"]
    with redis.Redis.from_url(where.redis_url, socket_timeout=60) as client:
        with raw.connected(where.redis_url):
            empty = _used(client)
        for start in range(0, len(held.ids), SLOTS_PER_COMMAND):
            tell(f"mirroring slots: {start:,} of {len(held.ids):,}")
            raw.mirror(where.redis_url, where.database_url, held.ids[start : start + SLOTS_PER_COMMAND])
        mirrored = _used(client)
        _hold(where.redis_url, held, tell)
        full = _used(client)
    return seeder, slots, [
        judge.fact("Redis memory per live hold, with all keys of its slot", (full - empty) / count, "bytes",
                   MOST_BYTES_PER_HOLD),
        judge.fact("of that, what a hold adds to a mirrored slot", (full - mirrored) / count, "bytes"),
    ]  # fmt: skip


def _hold(redis_url: str, held: Slots, tell: Callable[[str], None]) -> None:
    with raw.connected(redis_url) as connection:
        total = len(held.ids) * HOLDS_EACH
        for start in range(0, len(held.ids), SLOTS_PER_COMMAND // HOLDS_EACH):
            tell(f"holding: {start * HOLDS_EACH:,} of {total:,}")
            part = slice(start, start + SLOTS_PER_COMMAND // HOLDS_EACH)
            makers = [raw.holding(*pair) for pair in zip(held.resources[part], held.ids[part], strict=True)]
            replies = raw.run(connection, (make() for make in makers for _ in range(HOLDS_EACH)))
            if any(reply[0] != b"held" for reply in replies):
                raise BenchFailed(f"hold.lua said {replies[-1]!r}")


def _used(client: redis.Redis) -> float:
    """What the data take: without the buffers of clients and of the append-only file, which come and go."""
    memory = client.info("memory")
    return float(memory["used_memory"] - memory["mem_aof_buffer"] - memory["mem_clients_normal"])


def _compare_with_service(side: Side) -> Iterator[str]:
    """What was filled in past the service must be what the service makes of the same holds, to the byte or nearly."""
    server, held = side.bench.server, side.slots["held"]
    by_us, by_service = held.ids[0], side.bench.seeder.slots("proof", 1, CAPACITY)
    for _ in range(HOLDS_EACH):
        server.post("/v1/holds", HOLD.replace("%s", str(by_service.ids[0])).encode())
    with redis.Redis.from_url(server.stores.redis_url) as client:
        ours = _bytes_of(client, slot_keys(held.resources[0], by_us))
        its = _bytes_of(client, slot_keys(by_service.resources[0], by_service.ids[0]))
    if abs(ours - its) > SAME * its:
        yield f"a slot with {HOLDS_EACH} holds takes {its} bytes of Redis, those that were filled in take {ours}"
    told = msgspec.json.decode(server.get(f"/v1/slots/{by_us}")[1])
    if told.get("held") != HOLDS_EACH:
        yield f"a slot was filled with {HOLDS_EACH} holds, the service tells {told.get('held')}"


def _bytes_of(client: redis.Redis, keys: Mapping[str, str]) -> int:
    return sum(int(client.memory_usage(key, samples=0) or 0) for name, key in keys.items() if name != "active")


def _measure_in_turns(sides: list[Side], plan: Plan, tell: Callable[[str], None]) -> None:
    for row, compared in _ROWS:
        asked = sides if compared else sides[-1:]
        for side in asked:
            tell(f"{row.title}, beside {side.name}: warming up")
            side.bench.warm(row)
        for number in range(plan.rounds):
            for side in asked if number % 2 == 0 else reversed(asked):
                tell(f"{row.title}, beside {side.name}: round {number + 1} of {plan.rounds}")
                side.bench.take(row)


def _part(sides: list[Side], facts: list[judge.Fact]) -> report.Part:
    samples, titles = {}, {}
    for row, compared in _ROWS:
        for side in sides if compared else sides[-1:]:
            name = f"{row.name}_{side.name}"
            samples[name], titles[name] = side.bench.samples[row.name], f"{row.title}, {side.name}"
    goals = [Goal(row=f"{name}_1m", against=f"{name}_1k", bound=0.90) for name in ("refuse", "hold")]
    judged = [judge.verdict(goal, samples[goal.row], samples[goal.against]) for goal in goals]
    title = "Beside 1,000 slots and live holds (1k), and beside 1,000,000 (1m); 1 worker"
    return report.part(title, titles, samples, judged, facts)
