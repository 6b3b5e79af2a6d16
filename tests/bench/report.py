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
from rich.table import Table

from tests.bench.load import driver
from tests.bench.measure import Plan, Sample, Verdict, middle
from tests.bench.rows import Group
from tests.bench.stack import ROOT

PACKAGES = ("litestar", "uvicorn", "msgspec", "uvloop", "httptools", "psycopg", "redis", "sqlalchemy")


class Line(msgspec.Struct, frozen=True):
    """One row of the table: its medians, and every round."""

    name: str
    title: str
    median: Sample
    rounds: list[Sample]
    verdicts: list[Verdict]


class Part(msgspec.Struct, frozen=True):
    workers: int
    lines: list[Line]


class Report(msgspec.Struct, frozen=True):
    about: dict[str, Any]
    parts: list[Part]
    wrongs: list[str]


def part(
    workers: int, groups: Sequence[Group], samples: Mapping[str, Sequence[Sample]], judged: Sequence[Verdict]
) -> Part:
    lines = [
        Line(
            row.name,
            row.title,
            middle(samples[row.name]),
            list(samples[row.name]),
            [verdict for verdict in judged if verdict.row == row.name],
        )
        for group in groups
        for row in group.rows
    ]
    return Part(workers, lines)


def about(plan: Plan) -> dict[str, Any]:
    name, its_version = driver()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "driver": f"{name} {its_version}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "rounds": plan.rounds,
        "seconds": plan.seconds,
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
    for wrong in report.wrongs:
        console.print(f"[red]✗[/] {wrong}", highlight=False)
    if report.wrongs:
        console.print("[red bold]VOID: the answers were not all true, so the figures mean nothing[/]")


def _table(part: Part) -> Table:
    title = f"{part.workers} worker{'s' if part.workers > 1 else ''}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("row", no_wrap=True)
    for name in ("requests/s", "p50 ms", "p99 ms", "CPU µs", "ratio", "rounds", "goal"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("to", no_wrap=True)
    for line in part.lines:
        middle = line.median
        figures = (_number(middle.per_second, 0), *(_number(f, 1) for f in (middle.p50_ms, middle.p99_ms)))
        cells = [line.title, *figures, _number(middle.cpu_us, 0)]
        for number, verdict in enumerate(line.verdicts or [None]):
            table.add_row(*(cells if number == 0 else [""] * 5), *_judged(verdict))
    return table


def _judged(verdict: Verdict | None) -> tuple[str, ...]:
    if verdict is None:
        return ()
    colour, mark = ("green", "✓") if verdict.hit else ("red", "✗")
    sign = "≥" if verdict.at_least else "≤"
    return (
        f"[{colour}]{verdict.ratio:.2f}[/]",
        f"{verdict.lowest:.2f} to {verdict.highest:.2f}",
        f"{sign} {verdict.bound:g} [{colour}]{mark}[/]",
        verdict.against + (" p99" if verdict.figure == "p99_ms" else ""),
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def write(path: Path, report: Report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(msgspec.to_builtins(report), indent=2, ensure_ascii=False) + "\n")
