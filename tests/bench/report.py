"""The table for people and the file for programs; both say on what machine and with what versions."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.judge import Fact, Sample, Verdict, middle
from tests.bench.load import version_of
from tests.bench.measure import Plan
from tests.bench.stack import ROOT

#: Above it, somebody else's work shows in the figures.
NOISY = 0.1
PACKAGES = ("litestar", "uvicorn", "msgspec", "uvloop", "httptools", "psycopg", "redis-py", "sqlalchemy")


class Line(msgspec.Struct, frozen=True):
    """One row of the table: its medians, and every round."""

    name: str
    title: str
    median: Sample
    rounds: list[Sample]
    verdicts: list[Verdict]


class Part(msgspec.Struct, frozen=True):
    """One table."""

    title: str
    lines: list[Line]
    facts: list[Fact]


class Report(msgspec.Struct):
    about: dict[str, Any]
    parts: list[Part]
    #: Not empty: the answers were not all true, and the figures mean nothing.
    wrongs: list[str]
    #: Why the run ended before its time, if it did: what it has measured until then is true all the same.
    unfinished: str = ""


def part(
    title: str,
    titles: Mapping[str, str],
    samples: Mapping[str, Sequence[Sample]],
    judged: Sequence[Verdict],
    facts: Sequence[Fact],
) -> Part:
    """Put together what was measured; `titles` names the rows in the order of the table."""
    lines = [
        Line(name, its_title, middle(samples[name]), list(samples[name]), [v for v in judged if v.row == name])
        for name, its_title in titles.items()
    ]
    return Part(title, lines, list(facts))


def about(plan: Plan) -> dict[str, Any]:
    """Tell of the machine, the code and the run; what the stores say of themselves comes later."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "rounds": f"{plan.rounds} of {plan.seconds} s",
        plan.driver: version_of(plan.driver),
        "python": platform.python_version(),
        **{package: version(package.removesuffix("-py")) for package in PACKAGES},
    }


def _commit() -> str:
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"


def show(console: Console, report: Report) -> None:
    console.print(", ".join(f"{name} {value}" for name, value in report.about.items()), style="dim", highlight=False)
    for part in report.parts:
        console.print(_table(part))
        for fact in part.facts:
            console.print(f"  {_told(fact)}", highlight=False)
        if (others := _others(part)) > NOISY:
            console.print(f"  [yellow]others had {others:.0%} of this machine meanwhile: not for publication[/]\n")
    for wrong in report.wrongs:
        console.print(f"[red]✗[/] {escape(wrong)}", highlight=False)
    if report.wrongs:
        console.print("[red bold]VOID: not all answers were true, so the figures mean nothing[/]")
    if report.unfinished:
        console.print(f"[red]INCOMPLETE: {escape(report.unfinished)}[/]", highlight=False)


def _table(part: Part) -> Table:
    table = Table(title=part.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("row", no_wrap=True)
    columns = ("req/s", "p50 ms", "p99 ms", "app µs", "pg µs", "redis µs", "ratio", "rounds", "goal")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("to", no_wrap=True)
    for line in part.lines:
        middle = line.median
        times = [_number(figure, 1) for figure in (middle.p50_ms, middle.p99_ms)]
        costs = [_number(figure, 0) for figure in (middle.app_us, middle.postgres_us, middle.redis_us)]
        cells = [line.title, _number(middle.per_second, 0), *times, *costs]
        for number, verdict in enumerate(line.verdicts or [None]):
            table.add_row(*(cells if number == 0 else [""] * len(cells)), *_judged(verdict))
    return table


def _told(fact: Fact) -> str:
    value = f"{fact.value:.2%}" if fact.unit == "share" else f"{fact.value:,.0f} {fact.unit}"
    if fact.at_most is None:
        return f"{fact.title}: {value}"
    colour, mark = ("green", "✓") if fact.hit else ("red", "✗")
    most = f"{fact.at_most:.0%}" if fact.unit == "share" else f"{fact.at_most:,.0f}"
    return f"{fact.title}: [{colour}]{value}[/], at most {most} [{colour}]{mark}[/]"


def _others(part: Part) -> float:
    return max((line.median.others or 0 for line in part.lines), default=0)


def _judged(verdict: Verdict | None) -> tuple[str, ...]:
    if verdict is None:
        return ()
    colour, mark = ("green", "✓") if verdict.hit else ("red", "✗")
    sign = "≥" if verdict.at_least else "≤"
    return (
        f"[{colour}]{verdict.ratio:.2f}[/]",
        f"{verdict.lowest:.2f}-{verdict.highest:.2f}",
        f"{sign} {verdict.bound:g} [{colour}]{mark}[/]",
        _short(verdict.against) + (" p99" if verdict.figure == "p99_ms" else ""),
    )


def _short(row: str) -> str:
    return "1k" if row.endswith("_1k") else row.split("_", maxsplit=1)[0]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def make_room(path: Path) -> None:
    """Find out that the report cannot be left there before anything is measured.

    Raises:
        OSError
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
    if not path.stat().st_size:
        path.unlink()


def write(path: Path, report: Report) -> None:
    """Leave the same for programs, with every round."""
    path.write_text(json.dumps(msgspec.to_builtins(report), indent=2, ensure_ascii=False) + "\n")
