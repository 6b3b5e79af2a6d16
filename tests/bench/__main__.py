"""`make bench`: measure the service against its own framework, its own stores, and the textbook, on this machine.

Exits 0 when the figures are true, whatever they are; 1 when any answer was wrong, which makes all of them void; 2 on
wrong use.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rich_click as click
from rich.console import Console

from app.cli.demo import stoppable
from app.embedded import EmbeddedError
from tests.bench import live, million, report
from tests.bench.judge import verdicts
from tests.bench.load import LoadFailed, find_driver
from tests.bench.measure import Bench, Plan, sell_out
from tests.bench.rows import Group, chosen
from tests.bench.seed import Seeder
from tests.bench.stack import BenchFailed, serving, stores, versions

#: What the tables need: a narrower terminal breaks their lines, which is better than leaving figures out.
WIDTH = 136
#: Between two lines of progress where there is no terminal.
TELL_SECONDS = 5.0
#: The names, for --only, of the parts that are no rows.
MILLION, LIVE = "million", "live"
#: Rounds and seconds of each, by default and with --quick.
DEFAULT, QUICK = (5, 2), (2, 1)


@click.command()
@click.option("--quick", is_flag=True, help="Shorter rounds: for work on the code, not for publication")
@click.option("--only", metavar="ROW,…", default="", help="Only these rows, with the no-op beside them")
@click.option("--workers", metavar="N,…", default="1,2", show_default=True, help="Worker processes, one run for each")
@click.option("--rounds", type=click.IntRange(1, 100), help=f"Rounds  [default: {DEFAULT[0]}; quick: {QUICK[0]}]")
@click.option("--seconds", type=click.IntRange(1, 60), help=f"Of each  [default: {DEFAULT[1]}; quick: {QUICK[1]}]")
@click.option("--driver", type=click.Choice(["wrk", "k6"]), help="Who asks  [default: wrk where there is one]")
@click.option("--without-million", is_flag=True, help="Leave out the part with a million slots and holds")
@click.option("--json", "path", type=click.Path(path_type=Path), default=Path("reports/bench.json"), show_default=True)
def main(
    quick: bool,
    only: str,
    workers: str,
    rounds: int | None,
    seconds: int | None,
    driver: str | None,
    without_million: bool,
    path: Path,
) -> None:
    """Measure, print tables, and leave the same as JSON.

    With `live` or `million` among the rows of --only, or without --only, also with hundreds of live streams, and beside
    a million slots and holds.
    """
    console = Console()
    console.width = max(console.width, WIDTH)
    default = QUICK if quick else DEFAULT
    names = frozenset(filter(None, (name.strip() for name in only.split(","))))
    if without_million and MILLION in names:
        raise click.UsageError(f"--without-million and --only {MILLION} contradict each other")
    try:
        groups = chosen(names - {MILLION, LIVE}) if not names or names - {MILLION, LIVE} else []
        counts = _numbers(workers)
        plan = Plan(rounds or default[0], seconds or default[1], driver or find_driver())
        report.make_room(path)
    except (KeyError, ValueError, LoadFailed) as error:
        raise click.UsageError(str(error.args[0])) from None
    except OSError as error:
        raise click.UsageError(f"--json {path}: {error.strerror}") from None
    result = report.Report(report.about(plan), [], [])
    with_million = MILLION in names or not (names or without_million)
    try:
        with stoppable(), _telling(console) as tell:
            with_live = LIVE in names or not names
            _run(groups, counts, plan, with_live=with_live, with_million=with_million, tell=tell, result=result)
    except (BenchFailed, LoadFailed, EmbeddedError, KeyboardInterrupt) as error:
        result.unfinished = str(error) or "interrupted"  # what was finished is shown all the same
    report.show(console, result)
    if result.parts:  # else what an earlier run left is worth more
        report.write(path, result)
        console.print(f"The same as JSON: {path}")
    sys.exit(1 if result.wrongs or result.unfinished else 0)


def _numbers(workers: str) -> list[int]:
    counts = [int(count) if count.strip().isdigit() else 0 for count in workers.split(",")]
    if not all(1 <= count <= 64 for count in counts):
        raise ValueError("--workers takes numbers from 1 to 64, such as 1,2")
    return counts


def _run(
    groups: Sequence[Group],
    counts: Sequence[int],
    plan: Plan,
    *,
    with_live: bool,
    with_million: bool,
    tell: Callable[[str], None],
    result: report.Report,
) -> None:
    for count in counts if groups else ():
        _measure(groups, count, plan, tell, result)
    for count in counts if with_live else ():
        with _scratch() as home:
            live.measure(home, count, plan, tell, result)
    if with_million:
        with _scratch() as home:
            million.measure(home, plan, tell, result)


def _measure(
    groups: Sequence[Group], workers: int, plan: Plan, tell: Callable[[str], None], result: report.Report
) -> None:
    """Measure all rows on stores and workers of their own, so that every number of workers begins alike."""
    name = f"{workers} worker{'s' if workers > 1 else ''}"
    tell(f"{name}: starting the stores")
    with _scratch() as home, stores(home / "stores") as running:
        result.about.update(versions(running))
        tell(f"{name}: making slots")
        seeder = Seeder(running.database_url, home / "slots")
        slots = seeder.all()
        with serving(running, workers, home / "service") as server:
            sell_out(server, slots["sold_out"])
            bench = Bench(server, seeder, slots, plan, lambda what: tell(f"{name}: {what}"))
            for group in groups:
                bench.run(group)
            tell(f"{name}: are the counts right?")
            bench.books.close()
    titles = {row.name: row.title for group in groups for row in group.rows}
    judged = verdicts(groups, bench.samples)
    result.parts.append(report.part(name, titles, bench.samples, judged, bench.facts))
    result.wrongs.extend(f"{name}: {wrong}" for wrong in bench.books.wrongs)


@contextmanager
def _telling(console: Console) -> Iterator[Callable[[str], None]]:
    """Say what is being done: on one line of a terminal; elsewhere, such as in a log, a line every few seconds."""
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    began = time.monotonic()
    last = began - TELL_SECONDS

    def tell(what: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= TELL_SECONDS:
            last = now
            print(f"{now - began:5.0f} s  {what}", file=sys.stderr, flush=True)

    yield tell


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        yield Path(directory)


if __name__ == "__main__":
    main(prog_name="make bench")
