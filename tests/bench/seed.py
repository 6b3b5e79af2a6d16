"""The things to sell, written past the API: what is measured begins after them."""

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

import msgspec
import psycopg

from app.tokens import new_id

#: The most a slot can have (migrations): hot slots never run out.
BIG = 100_000
HOURS = dt.timedelta(hours=1)
#: Slots of one resource beside the one that is sold out; a quarter of them is sold out too, as in life.
NEIGHBOURS = 20
SMALL = 10


class Slots(msgspec.Struct, frozen=True):
    """Slots of one use: their ids, the resource of each, and a file that the drivers read."""

    ids: list[UUID]
    resources: list[UUID]
    file: Path


class Seeder:
    """Writes slots of one venue, and remembers where the next file of ids goes."""

    def __init__(self, database_url: str, directory: Path) -> None:
        self._url, self._directory = database_url, directory
        directory.mkdir(parents=True, exist_ok=True)
        self.venue = new_id()
        self.slug = f"bench-{self.venue.hex[-12:]}"
        with self._connect() as connection:
            connection.execute(
                "INSERT INTO venues (id, slug, name, timezone) VALUES (%s, %s, 'Bench', 'Europe/Berlin')",
                (self.venue, self.slug),
            )

    def slots(self, name: str, count: int, capacity: int, *, per_resource: int = 100, textbook: bool = False) -> Slots:
        """Make slots an hour apart on as many resources (events) as it takes, from tomorrow on."""
        resources = [new_id() for _ in range(-(-count // per_resource))]
        ids = [new_id() for _ in range(count)]
        of = [resources[number // per_resource] for number in range(count)]
        starts = [_tomorrow() + HOURS * (number % per_resource) for number in range(count)]
        with self._connect() as connection:
            numbers = self._resources(connection, resources)
            rows = (
                (
                    i,
                    self.venue,
                    resource,
                    numbers[resource],
                    False,
                    start,
                    start + HOURS,
                    capacity,
                    capacity,
                    capacity == 1,
                )
                for i, resource, start in zip(ids, of, starts, strict=True)
            )
            columns = "id, venue_id, resource_id, resource_no, one_at_a_time, starts_at, ends_at, capacity,"
            _copy(connection, f"slots ({columns} available_count, exclusive)", rows)
            if textbook:
                rows_textbook = (
                    (i, start, start + HOURS, capacity, capacity) for i, start in zip(ids, starts, strict=True)
                )
                _copy(connection, "slots_textbook (id, starts_at, ends_at, capacity, available_count)", rows_textbook)
        return Slots(ids, of, self._file(name, ids))

    def neighbours(self, name: str) -> Slots:
        """Make the slot that is to be sold out, first in the list, and its neighbours. The file names only that one."""
        around = self.slots(name, NEIGHBOURS + 1, SMALL, per_resource=NEIGHBOURS + 1)
        middle = [around.ids[NEIGHBOURS // 2]]
        ids = middle + [slot_id for slot_id in around.ids if slot_id not in middle]
        return Slots(ids, around.resources, self._file(name, middle))

    def all(self) -> dict[str, Slots]:
        """Make what every row but the hot ones needs, by the name of its use."""
        slots = {
            "sold_out": self.neighbours("sold-out"),
            "big": self.slots("big", 1_000, BIG),
            "spread": self.slots("spread", 20_000, 1_000, textbook=True),
        }
        self.done()
        return slots

    def done(self) -> None:
        """Leave nothing for later: statistics, and what a checkpoint would write in the middle of a round."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

    def _resources(self, connection: psycopg.Connection, resources: Sequence[UUID]) -> dict[UUID, int]:
        rows = ((resource, self.venue, f"Resource {n}", "event") for n, resource in enumerate(resources))
        _copy(connection, "resources (id, venue_id, name, kind)", rows)
        found = connection.execute("SELECT id, no FROM resources WHERE id = ANY (%s)", (list(resources),)).fetchall()
        return dict(found)

    def _file(self, name: str, ids: Sequence[UUID]) -> Path:
        path = self._directory / f"{name}.txt"
        path.write_text("".join(f"{i}\n" for i in ids))
        return path

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._url)


def _copy(connection: psycopg.Connection, target: str, rows: Iterator[tuple[object, ...]]) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _tomorrow() -> dt.datetime:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).replace(hour=9, minute=0, second=0, microsecond=0)
