"""Carries the rows out: one kind of request after the other, for a while each, and what came of it."""

import time
from collections.abc import Callable, Mapping

import msgspec

from app.engine import SWEEP_SECONDS
from tests.bench import cpu, load, raw
from tests.bench.books import Books
from tests.bench.judge import Fact, Sample, fact
from tests.bench.load import Shot
from tests.bench.rows import BOOKING, Group, Row, Tool
from tests.bench.seed import BIG, SMALL, Seeder, Slots
from tests.bench.stack import BenchFailed, Server

#: Postgres' backends tell what they did when they have been idle for ten seconds, at the latest.
STATISTICS_SECONDS = 10.5
#: Of the refusals, so many may cost Postgres something: neighbours and counts are looked at again every few seconds.
MOST_REFUSALS_IN_POSTGRES = 0.01


#: Redis alone is steady: no need to watch it for long.
REDIS_SECONDS = 0.5


class Plan(msgspec.Struct, frozen=True):
    rounds: int
    seconds: int
    driver: str
    warm_seconds: int = 1


class Bench:
    """One server under all rows. Takes samples, and has the books kept that must balance at the end."""

    def __init__(
        self, server: Server, seeder: Seeder, slots: Mapping[str, Slots], plan: Plan, tell: Callable[[str], None]
    ) -> None:
        self.server, self.seeder, self.plan, self.tell = server, seeder, plan, tell
        self.books = Books(server)
        self.samples: dict[str, list[Sample]] = {}
        self.facts: list[Fact] = []
        self._slots = slots
        self._hot = 0
        self._answers = server.settled_answers()

    def run(self, group: Group) -> None:
        """Warm every row up, then measure them in turns; every second round backwards, against a drift."""
        transactions, began = self.books.transactions(), time.monotonic()
        refused = self.books.refused()
        for row in group.rows:
            self.tell(f"{row.title}: warming up")
            self.warm(row)
        for number in range(self.plan.rounds):
            for row in group.rows if number % 2 == 0 else reversed(group.rows):
                self.tell(f"{row.title}: round {number + 1} of {self.plan.rounds}")
                self.take(row)
        if group.spares_postgres:
            self.tell("waiting for the statistics of Postgres")
            time.sleep(STATISTICS_SECONDS)
            swept = (time.monotonic() - began) / SWEEP_SECONDS * self.server.workers
            cost = max(0.0, self.books.transactions() - transactions - swept)
            share = cost / max(1, self.books.refused() - refused)
            self.facts.append(fact("refusals that reached Postgres", share, "share", MOST_REFUSALS_IN_POSTGRES))

    def warm(self, row: Row | Tool) -> None:
        """Have the row run once without counting its speed; its answers count all the same."""
        self._answers = self.server.settled_answers()  # whatever was asked for other reasons
        if isinstance(row, Row):
            self._shoot(row, self.plan.warm_seconds)

    def take(self, row: Row | Tool) -> None:
        """Take one sample of a row."""
        sample = self._shoot(row, self.plan.seconds) if isinstance(row, Row) else self._drive(row)
        self.samples.setdefault(row.name, []).append(sample)

    def _shoot(self, row: Row, seconds: int) -> Sample:
        slots = self._new_hot_slot() if row.slots == "hot" else self._slots[row.slots]
        shot = Shot(row.path, row.body, slots.file, row.keyed, row.connections)
        before, cpu_before = self._answers, cpu.look(self.server.pids)
        got = load.send(self.plan.driver, self.server.url, shot, seconds)
        self.server.check_alive()
        self._answers = self.server.settled_answers()
        given, used = self._answers - before, cpu.between(cpu_before, cpu.look(self.server.pids))
        self.books.check(row, got, given)
        if row.slots == "hot":
            self.books.remember(slots.ids[0])
        self.server.forget_log()
        times = Sample(got.per_second, p50_ms=got.p50_ms, p99_ms=got.p99_ms, requests=got.requests)
        return _with_cpu(times, used, given.total())

    def _drive(self, tool: Tool) -> Sample:
        """Drive a store by itself, on a slot of its own."""
        slots = self._new_hot_slot() if tool.name != "redis_refuse" else self._slots["sold_out"]
        cpu_before = cpu.look(self.server.pids)
        if tool.name == "pgbench":
            got = raw.pgbench(self.server.stores.database_url, slots.ids[0], self.seeder.venue, self.plan.seconds)
            self.books.booked_by_tool(got.calls)
        else:
            got = raw.hold(self.server.stores.redis_url, slots.resources[0], slots.ids[0], REDIS_SECONDS)
        sample = Sample(got.per_second, p50_ms=got.average_ms, requests=got.calls)
        return _with_cpu(sample, cpu.between(cpu_before, cpu.look(self.server.pids)), got.calls)

    def _new_hot_slot(self) -> Slots:
        self._hot += 1
        slots = self.seeder.slots(f"hot-{self._hot}", 1, BIG, textbook=True)
        # Every round begins alike: the slot is known to Redis, as it is to a service that runs.
        raw.mirror(self.server.stores.redis_url, self.server.stores.database_url, slots.ids)
        return slots


def sell_out(server: Server, slots: Slots) -> None:
    """Sell the first slot and every fourth neighbour over HTTP: Redis then knows of it as of any slot that was sold.

    Raises:
        BenchFailed: or the refusals that follow would not be the ones to measure.
    """
    body = BOOKING.replace('"quantity":1', f'"quantity":{SMALL}')
    for slot_id in slots.ids[::4]:
        status, said = server.post("/v1/bookings", body.replace("%s", str(slot_id)).encode())
        if status != 201:
            raise BenchFailed(f"the slots could not be sold out: {status} {said[:200]!r}")
    status, said = server.post("/v1/bookings", BOOKING.replace("%s", str(slots.ids[0])).encode())
    if status != 409 or not msgspec.json.decode(said)["alternatives"]:
        raise BenchFailed(f"no refusal with alternatives: {status} {said[:200]!r}")


def _with_cpu(sample: Sample, used: cpu.Used | None, requests: int) -> Sample:
    if used is None or requests == 0:
        return sample
    of_workers = sum(used.workers)
    return msgspec.structs.replace(
        sample,
        app_us=of_workers / requests * 1e6,
        postgres_us=used.postgres / requests * 1e6,
        redis_us=used.redis / requests * 1e6,
        busiest=max(used.workers) / of_workers if of_workers else None,
        others=used.others,
    )
