"""What do pages cost that watch? Bookings while nobody listens, and while hundreds of streams are told of each of them.

The listeners are a process of their own, and on a small machine take their share of it: what they need themselves is
part of the difference. That the service's own share is small is shown by the CPU time of a booking.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from urllib.parse import urlsplit

import msgspec

from tests.bench import judge, report
from tests.bench.measure import Bench, Plan, sell_out
from tests.bench.rows import GROUPS, Goal, Row
from tests.bench.seed import Seeder
from tests.bench.stack import ROOT, BenchFailed, serving, stores, versions

STREAMS = 500
#: Events that came, and the share of all processors that the listeners took to read them.
Heard = tuple[int, float]
#: Of the bookings without streams, so many must remain.
BOUND = 0.95
_KNOWN = {row.name: row for group in GROUPS for row in group.rows if isinstance(row, Row)}


def measure(home: Path, workers: int, plan: Plan, tell: Callable[[str], None], result: report.Report) -> None:
    """Measure in turns with and without streams, and add the table and what was wrong to the result."""
    with stores(home / "stores") as running:
        result.about.update(versions(running))
        tell("live: making slots")
        seeder = Seeder(running.database_url, home / "slots")
        slots = seeder.all()
        with serving(running, workers, home / "service") as server:
            sell_out(server, slots["sold_out"])
            bench = Bench(server, seeder, slots, plan, tell)
            pairs = [
                (_row("book_hot", 0), _row("book_hot", STREAMS)),
                (_row("book_spread", 0), _row("book_spread", STREAMS)),
            ]
            heard = [each for pair in pairs for each in _take_in_turns(bench, server.url, seeder, *pair)]
            bench.books.close()
    rows = [row for pair in pairs for row in pair]
    goals = [Goal(row=with_streams.name, against=without.name, bound=BOUND) for without, with_streams in pairs]
    judged = [judge.verdict(goal, bench.samples[goal.row], bench.samples[goal.against]) for goal in goals]
    title = f"With {STREAMS} live streams of the same venue, and without; {workers} worker{'s' * (workers > 1)}"
    told = sum(events for events, _ in heard)
    facts = [
        judge.fact("events that the streams were told", told, "events"),
        judge.fact("what the listeners took of all processors", mean(share for _, share in heard), "share"),
    ]
    result.parts.append(report.part(title, {row.name: row.title for row in rows}, bench.samples, judged, facts))
    result.wrongs.extend(f"live: {wrong}" for wrong in bench.books.wrongs)
    if not told:
        result.wrongs.append("live: the streams were told nothing")


def _row(name: str, streams: int) -> Row:
    row = _KNOWN[name]
    return msgspec.structs.replace(row, name=f"{name}_{streams}", title=f"{row.title}, {streams} streams")


def _take_in_turns(bench: Bench, url: str, seeder: Seeder, without: Row, with_streams: Row) -> list[Heard]:
    heard = []
    bench.warm(without)
    for number in range(bench.plan.rounds):
        for row in (without, with_streams) if number % 2 == 0 else (with_streams, without):
            bench.tell(f"{row.title}: round {number + 1} of {bench.plan.rounds}")
            if row is without:
                bench.take(row)
            else:
                with listening(url, f"/v1/live?venue={seeder.slug}") as said:
                    bench.take(row)
                heard.append(said())
    return heard


@contextmanager
def listening(url: str, path: str) -> Iterator[Callable[[], Heard]]:
    """Keep the streams open until the context ends; then the function tells what was heard."""
    where = urlsplit(url)
    command = [sys.executable, "-m", "tests.bench.listeners", str(where.hostname), str(where.port), path, str(STREAMS)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = (0, 0.0)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "open\n":
            raise BenchFailed("the live streams could not be opened")
        yield lambda: said
        events, share = process.communicate(timeout=30)[0].split()
        said = int(events), float(share)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
