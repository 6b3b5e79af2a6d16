"""`make bench`: measure the service against its own framework, its own stores, and the textbook, on this machine.

Exits 0 when the figures are true, whatever they are; 1 when any answer was wrong, which makes all of them void; 2 on
wrong use.
"""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import rich_click as click
from rich.console import Console

from tests.bench import report
from tests.bench.load import LoadFailed
from tests.bench.measure import Bench, Plan, verdicts
from tests.bench.rows import Group, chosen
from tests.bench.seed import Seeder
from tests.bench.stack import BenchFailed, serving, stores

#: Of the table, where no terminal says how wide it is.
WIDTH = 130
#: Rounds and seconds of each, by default and with --quick.
DEFAULT, QUICK = (4, 3), (3, 1)


@click.command()
@click.option("--quick", is_flag=True, help="Shorter rounds: for work on the code, not for publication")
@click.option("--only", metavar="ROW,…", default="", help="Only these rows, with the no-op beside them")
@click.option("--workers", metavar="N,…", default="1,2", show_default=True, help="Worker processes, one run for each")
@click.option("--rounds", type=click.IntRange(1, 100), help=f"Rounds  [default: {DEFAULT[0]}; quick: {QUICK[0]}]")
@click.option("--seconds", type=click.IntRange(1, 60), help=f"Of each  [default: {DEFAULT[1]}; quick: {QUICK[1]}]")
@click.option("--without-million", is_flag=True, help="Leave out the part with a million slots and holds")
@click.option("--json", "path", type=click.Path(path_type=Path), default=Path("reports/bench.json"), show_default=True)
def main(
    quick: bool,
    only: str,
    workers: str,
    rounds: int | None,
    seconds: int | None,
    without_million: bool,
    path: Path,
) -> None:
    """Measure, print a table, and leave the same as JSON."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    try:
        groups = chosen(frozenset(filter(None, only.split(","))))
        counts = [int(count) for count in workers.split(",")]
    except (KeyError, ValueError) as error:
        raise click.UsageError(str(error.args[0])) from None
    plan = Plan(rounds or (QUICK if quick else DEFAULT)[0], seconds or (QUICK if quick else DEFAULT)[1])
    try:
        with _stoppable():
            result = _run(console, groups, counts, plan)
    except (BenchFailed, LoadFailed) as error:
        raise click.ClickException(str(error)) from None
    report.show(console, result)
    report.write(path, result)
    console.print(f"The same as JSON: {path}")
    sys.exit(1 if result.wrongs else 0)


def _run(console: Console, groups: Sequence[Group], counts: Sequence[int], plan: Plan) -> report.Report:
    parts, wrongs = [], list[str]()
    about = report.about(plan)
    with console.status("starting") as status:
        for workers in counts:
            bench = _measured(groups, workers, plan, lambda what, n=workers: status.update(f"{_processes(n)}: {what}"))
            parts.append(report.part(workers, groups, bench.samples, verdicts(groups, bench.samples)))
            wrongs += bench.wrongs
    return report.Report(about, parts, wrongs)


def _measured(groups: Sequence[Group], workers: int, plan: Plan, tell: Callable[[str], None]) -> Bench:
    """Measure all rows on stores and workers of their own, so that every number of workers begins alike."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        home = Path(directory)
        tell("starting the stores")
        with stores(home / "stores") as running:
            tell("making slots")
            seeder = Seeder(running.database_url, home / "slots")
            slots = seeder.all()
            with serving(running, workers, home / "service") as server:
                bench = Bench(server, seeder, slots, plan, tell)
                for group in groups:
                    bench.run(group)
                bench.check_books()
                return bench


def _processes(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}"


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM and a closed terminal end the run like Ctrl-C: the service and the stores stop cleanly."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    main(prog_name="make bench")
