"""Who used the processors: the workers, the stores, the driver, or somebody else on the machine.

Speed on a shared machine is partly the neighbours'. What a request costs in CPU is not, and how much the neighbours
took says how far to trust the rest. Linux only: elsewhere the figures are missing.
"""

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

PROC = Path("/proc")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process(msgspec.Struct, frozen=True):
    name: str
    parent: int
    own: float
    of_children: float  # those that ended


class Look(msgspec.Struct, frozen=True):
    """What was used up to now, in seconds."""

    at: float
    workers: tuple[float, ...]
    postgres: float
    redis: float
    ours: float  # all of it, with the driver and ourselves
    machine: float


class Used(msgspec.Struct, frozen=True):
    """What was used between two looks."""

    workers: tuple[float, ...]
    postgres: float
    redis: float
    #: What others had of the machine, 0 to 1.
    others: float


def look(workers: Collection[int]) -> Look | None:
    """Look at the processes that we started, the workers among them, and at the machine; None without a /proc."""
    if not (PROC / "self/stat").exists():
        return None
    now = time.monotonic()
    everybody = dict(_processes())
    ours = {pid: process for pid, process in everybody.items() if _is_ours(pid, everybody)}

    def of(name: str) -> float:
        return sum(p.own + p.of_children for p in ours.values() if p.name == name)

    return Look(
        at=now,
        workers=tuple(everybody[pid].own for pid in workers if pid in everybody),
        postgres=of("postgres"),
        redis=of("redis-server"),
        # Those whose parent ended them and waited for them, such as the driver, are counted in their parent.
        ours=sum(p.own + p.of_children for p in ours.values()),
        machine=_machine(),
    )


def between(before: Look | None, after: Look | None) -> Used | None:
    if before is None or after is None:
        return None
    capacity = max(1e-9, (after.at - before.at) * (os.cpu_count() or 1))
    others = (after.machine - before.machine) - (after.ours - before.ours)
    return Used(
        workers=tuple(end - begin for begin, end in zip(before.workers, after.workers, strict=True)),
        postgres=after.postgres - before.postgres,
        redis=after.redis - before.redis,
        others=min(1.0, max(0.0, others / capacity)),
    )


def _processes() -> list[tuple[int, Process]]:
    found = []
    for path in PROC.glob("[0-9]*/stat"):
        try:
            head, _, tail = path.read_text().rpartition(") ")
        except OSError:  # it ended meanwhile
            continue
        pid, _, name = head.partition(" (")
        fields = tail.split()
        own, of_children = (sum(map(int, fields[i : i + 2])) / TICKS_PER_SECOND for i in (11, 13))
        found.append((int(pid), Process(name, int(fields[1]), own, of_children)))
    return found


def _is_ours(pid: int, everybody: Mapping[int, Process]) -> bool:
    while pid in everybody:
        if pid == os.getpid():
            return True
        pid = everybody[pid].parent
    return False


def _machine() -> float:
    """All that was not idle: user, nice, system, interrupts, and what a host kept for its other guests."""
    fields = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[i]) for i in (0, 1, 2, 5, 6, 7)) / TICKS_PER_SECOND
