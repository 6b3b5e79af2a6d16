"""Carries the rows out, and checks that the answers that were counted are true."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import msgspec
import psycopg

from tests.bench import load, raw
from tests.bench.load import Shot
from tests.bench.rows import Goal, Group, Row, Tool
from tests.bench.seed import BIG, Seeder, Slots
from tests.bench.stack import Server

_OFF_COUNT = """
SELECT count(*) FROM slots AS s
LEFT JOIN (SELECT slot_id, sum(quantity) AS places FROM bookings
           WHERE status IN ('held', 'pending_payment', 'confirmed') GROUP BY slot_id) AS b ON b.slot_id = s.id
WHERE s.available_count <> s.capacity - coalesce(b.places, 0)
"""
_OFF_COUNT_TEXTBOOK = """
SELECT count(*) FROM slots_textbook AS s
LEFT JOIN (SELECT slot_id, sum(quantity) AS places FROM bookings_textbook GROUP BY slot_id) AS b ON b.slot_id = s.id
WHERE s.available_count <> s.capacity - coalesce(b.places, 0)
"""


class Sample(msgspec.Struct, frozen=True):
    """One row in one round."""

    per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    requests: int = 0
    #: CPU of the workers for each request, µs: steadier than speed on a machine that others use too.
    cpu_us: float | None = None
    #: What the busiest worker had of it. With two workers, 0.5 is even.
    busiest_share: float | None = None


class Plan(msgspec.Struct, frozen=True):
    rounds: int
    seconds: int
    warm_seconds: int = 1


class Verdict(msgspec.Struct, frozen=True):
    """A goal with what was measured."""

    row: str
    against: str
    figure: str
    ratio: float
    lowest: float
    highest: float
    bound: float
    at_least: bool
    hit: bool


class Bench:
    """One server under all rows: takes samples, and keeps the books that must balance at the end."""

    def __init__(
        self, server: Server, seeder: Seeder, slots: Mapping[str, Slots], plan: Plan, tell: Callable[[str], None]
    ) -> None:
        self.server, self.seeder, self.plan, self.tell = server, seeder, plan, tell
        self.samples: dict[str, list[Sample]] = {}
        self.wrongs: list[str] = []
        self.refusals_in_postgres: float | None = None
        self._slots = slots
        self._hot = 0
        self._by_tool = 0  # bookings that pgbench made
        self._booked_before = self._one("SELECT count(*) FROM bookings")
        self._answers_before = server.answers()

    # -- samples ----------------------------------------------------------------------------------------------------

    def run(self, group: Group) -> None:
        """Warm every row up, then measure them in turns; every second round backwards, against a drift."""
        for row in group.rows:
            if isinstance(row, Row):
                self.tell(f"{row.title}: warming up")
                self._shoot(row, self.plan.warm_seconds)
        for number in range(self.plan.rounds):
            for row in group.rows if number % 2 == 0 else reversed(group.rows):
                self.tell(f"{row.title}: round {number + 1} of {self.plan.rounds}")
                sample = self._shoot(row, self.plan.seconds) if isinstance(row, Row) else self._drive(row)
                self.samples.setdefault(row.name, []).append(sample)

    def _shoot(self, row: Row, seconds: int) -> Sample:
        slots = self._slots_for(row)
        before, cpu_before = self.server.settled_answers(), self.server.cpu_seconds()
        shot = Shot(row.path, row.body, slots.file, row.keyed, row.connections)
        got = load.send(self.server.url, shot, seconds)
        self.server.check_alive()
        after, cpu_after = self.server.settled_answers(), self.server.cpu_seconds()
        given = after - before
        self._check(row, got, given)
        self.server.forget_log()
        used = [end - begin for begin, end in zip(cpu_before, cpu_after, strict=True)]
        answered = max(1, given.total())
        return Sample(
            per_second=got.per_second,
            p50_ms=got.p50_ms,
            p99_ms=got.p99_ms,
            requests=got.requests,
            cpu_us=sum(used) / answered * 1e6,
            busiest_share=max(used) / max(sum(used), 1e-9),
        )

    def _check(self, row: Row, got: load.Load, given: Mapping[tuple[str, str], int]) -> None:
        """Every answer is the one that this row is about, and the driver saw no other."""
        right = given.get((row.path, row.status), 0)
        # When its time is up, the driver hangs up on requests that are still answered; 400 where a body was cut off.
        cut_off = given.get((row.path, "400"), 0)
        others = {
            " ".join(key): n for key, n in given.items() if key not in {(row.path, row.status), (row.path, "400")}
        }
        if others:
            self.wrongs.append(f"{row.title}: other answers than {row.status}: {others} {self.server.last_words()}")
        if got.broken:
            self.wrongs.append(f"{row.title}: {got.broken} connections broke or timed out")
        if got.not_2xx != (0 if row.status.startswith("2") else got.requests):
            self.wrongs.append(f"{row.title}: {got.not_2xx} of {got.requests} answers were no success")
        if not got.requests <= right <= right + cut_off <= got.requests + row.connections:
            self.wrongs.append(f"{row.title}: the driver saw {got.requests} answers, the service gave {dict(given)}")

    def _drive(self, tool: Tool) -> Sample:
        slots = self._new_hot_slot()
        done, per_second, average_ms = raw.pgbench(
            self.server.stores.database_url, slots.ids[0], self.seeder.venue, self.plan.seconds
        )
        self._by_tool += done
        return Sample(per_second, p50_ms=average_ms, requests=done)

    def _slots_for(self, row: Row) -> Slots:
        return self._new_hot_slot() if row.slots == "hot" else self._slots[row.slots]

    def _new_hot_slot(self) -> Slots:
        self._hot += 1
        return self.seeder.slots(f"hot-{self._hot}", 1, BIG, textbook=True)

    # -- what is true afterwards ------------------------------------------------------------------------------------

    def check_books(self) -> None:
        """Compare what was promised over HTTP with what Postgres has, slot by slot, and with what the service tells."""
        given = self.server.settled_answers() - self._answers_before
        if broken := {key: n for key, n in given.items() if key[1].startswith("5")}:
            self.wrongs.append(f"answers of 500 and above: {broken}")
        booked = self._one("SELECT count(*) FROM bookings") - self._booked_before
        promised = given["/v1/bookings", "201"] + self._by_tool
        if booked != promised:
            self.wrongs.append(f"{promised} bookings were promised, Postgres has {booked}")
        textbook = self._one("SELECT count(*) FROM bookings_textbook")
        if textbook < given["/bench/textbook", "201"]:
            self.wrongs.append(f"textbook: {given['/bench/textbook', '201']} were promised, Postgres has {textbook}")
        if off := self._one(_OFF_COUNT) + self._one(_OFF_COUNT_TEXTBOOK):
            self.wrongs.append(f"available_count is wrong in {off} slots")

    def _one(self, query: str) -> int:
        with psycopg.connect(self.server.stores.database_url, autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])


def verdicts(groups: Sequence[Group], samples: Mapping[str, Sequence[Sample]]) -> list[Verdict]:
    """Judge every goal: the ratio of medians, and the ratios of single rounds as its spread."""
    return [_verdict(goal, samples[goal.row], samples[goal.against]) for group in groups for goal in group.goals]


def _verdict(goal: Goal, ours: Sequence[Sample], theirs: Sequence[Sample]) -> Verdict:
    pairs = [
        (getattr(mine, goal.figure), getattr(their, goal.figure)) for mine, their in zip(ours, theirs, strict=True)
    ]
    ratio = statistics.median(mine for mine, _ in pairs) / statistics.median(their for _, their in pairs)
    each = [mine / their for mine, their in pairs]
    hit = ratio >= goal.bound if goal.at_least else ratio <= goal.bound
    return Verdict(goal.row, goal.against, goal.figure, ratio, min(each), max(each), goal.bound, goal.at_least, hit)


def middle(samples: Sequence[Sample]) -> Sample:
    """The median of each figure by itself."""
    columns = {name: [getattr(sample, name) for sample in samples] for name in Sample.__struct_fields__}
    return Sample(**{name: None if None in column else statistics.median(column) for name, column in columns.items()})
