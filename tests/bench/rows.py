"""What is measured, what it is compared with, and what is expected of it. Only facts; `measure.py` carries them out."""

import json
from typing import Literal

import msgspec

BOOKING = json.dumps(
    {"slot_id": "%s", "quantity": 1, "customer": {"name": "Ada Lovelace", "email": "ada@example.com"}},
    separators=(",", ":"),
)
HOLD = '{"slot_id":"%s","quantity":1}'

#: Of the slots that `seeded` makes. A hot row gets a new slot for each round, so that none runs out of places.
Use = Literal["sold_out", "big", "hot", "spread", "held"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of request under load."""

    name: str
    title: str
    path: str
    slots: Use
    body: str = BOOKING
    status: str = "201"  # of every answer: any other voids the run
    keyed: bool = False
    connections: int = 64


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """One store driven without the service, for the distance to it."""

    name: str
    title: str


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A row compared with another one of the same group. `figure` grows with speed or with slowness."""

    row: str
    against: str
    bound: float
    figure: Literal["per_second", "p99_ms"] = "per_second"

    @property
    def at_least(self) -> bool:
        return self.figure == "per_second"


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that are measured in turns, each round all of them: what is compared is measured side by side."""

    name: str
    rows: tuple[Row | Tool, ...]
    goals: tuple[Goal, ...] = ()
    #: Redis alone is to answer nearly all of it: what reaches Postgres is counted.
    spares_postgres: bool = False


def _noop(name: str = "noop", connections: int = 64, slots: Use = "spread") -> Row:
    title = "no-op" + ("" if connections == 64 else f", {connections} connections")
    return Row(name=name, title=title, path="/bench/noop", slots=slots, connections=connections)


_REFUSE = Row(name="refuse", title="refuse, slot sold out", path="/v1/bookings", slots="sold_out", status="409")
_BOOK = Row(name="book_hot", title="book, one hot slot", path="/v1/bookings", slots="hot")

GROUPS = (
    Group(
        name="refuse",
        spares_postgres=True,
        rows=(
            _noop("noop_refuse", slots="sold_out"),
            _REFUSE,
            msgspec.structs.replace(_REFUSE, name="refuse_keyed", title="refuse, Idempotency-Key", keyed=True),
        ),
        goals=(
            Goal(row="refuse", against="noop_refuse", bound=0.80),
            Goal(row="refuse_keyed", against="noop_refuse", bound=0.80),
        ),
    ),
    Group(
        name="raw",
        rows=(
            Tool(name="redis_refuse", title="Redis alone, hold.lua refuses"),
            Tool(name="redis_hold", title="Redis alone, hold.lua holds"),
        ),
    ),
    Group(
        name="hold",
        rows=(
            Row(name="noop_hold", title="no-op, a hold's body", path="/bench/noop-hold", slots="big", body=HOLD),
            Row(name="hold", title="hold, over 1,000 slots", path="/v1/holds", slots="big", body=HOLD),
        ),
        goals=(Goal(row="hold", against="noop_hold", bound=0.60),),
    ),
    Group(
        name="book_hot",
        rows=(
            _noop("noop_hot"),
            _BOOK,
            Row(name="textbook_hot", title="textbook, one hot slot", path="/bench/textbook", slots="hot"),
            Tool(name="pgbench", title="Postgres alone, pgbench"),
        ),
        goals=(
            Goal(row="book_hot", against="noop_hot", bound=0.50),
            Goal(row="book_hot", against="pgbench", bound=1.0),
            Goal(row="book_hot", against="textbook_hot", bound=5.0),
        ),
    ),
    Group(
        name="book_spread",
        rows=(
            _noop("noop_spread"),
            Row(name="book_spread", title="book, over 20,000 slots", path="/v1/bookings", slots="spread"),
            Row(name="textbook_spread", title="textbook, over 20,000 slots", path="/bench/textbook", slots="spread"),
        ),
        goals=(
            Goal(row="book_spread", against="noop_spread", bound=0.45),
            Goal(row="book_spread", against="textbook_spread", bound=3.0),
        ),
    ),
    Group(
        name="latency",
        rows=(
            _noop("noop_100", connections=100),
            msgspec.structs.replace(_REFUSE, name="refuse_100", title="refuse, 100 connections", connections=100),
            msgspec.structs.replace(_BOOK, name="book_100", title="book, 100 connections", connections=100),
        ),
        goals=(
            Goal(row="refuse_100", against="noop_100", bound=2.0, figure="p99_ms"),
            Goal(row="book_100", against="noop_100", bound=3.0, figure="p99_ms"),
        ),
    ),
)


def chosen(only: frozenset[str]) -> list[Group]:
    """Keep the rows that were asked for by name, and the no-op that each of them is compared with. Empty: all.

    Raises:
        KeyError: there is no such row.
    """
    known = {row.name for group in GROUPS for row in group.rows}
    if unknown := only - known:
        there = sorted(name for name in known if not name.startswith("noop"))
        raise KeyError(f"no row is called {', '.join(sorted(unknown))}; there are {', '.join(there)} and million")
    if not only:
        return list(GROUPS)
    found = []
    for group in GROUPS:
        wanted = {name for name in only if any(row.name == name for row in group.rows)}
        wanted |= {row.name for row in group.rows if wanted and row.name.startswith("noop")}
        if wanted:
            rows = tuple(row for row in group.rows if row.name in wanted)
            goals = tuple(goal for goal in group.goals if {goal.row, goal.against} <= wanted)
            found.append(msgspec.structs.replace(group, rows=rows, goals=goals))
    return found
