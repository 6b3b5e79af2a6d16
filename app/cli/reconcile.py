"""`holdfast reconcile`: compare what Redis mirrors with Postgres, and repair it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich_click as click

from app.cli.failing import CONFLICT, DONE
from app.cli.show import emit, number, print_table, say

if TYPE_CHECKING:
    from app.engine import Engine
    from app.mirror import Reconciled


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell; repair nothing.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
@click.pass_context
def reconcile(ctx: click.Context, dry_run: bool, as_json: bool) -> None:
    """Compare every slot that has not ended in both stores, and repair Redis. Exits 4 when there was drift."""
    from app.cli.stores import with_engine

    async def compare(engine: "Engine") -> "Reconciled":
        with _progress() as progress:
            return await engine.mirror.reconcile(repair=not dry_run, progress=progress)

    done = with_engine(compare)
    if as_json:
        emit({"slots": done.slots, "mirrored": done.mirrored, "repaired": not dry_run, "drift": done.drift})
    else:
        if done.drift:
            rows = [(str(d.slot_id), d.field, str(d.mirrored), str(d.actual)) for d in done.drift]
            print_table(("#Slot", "What", ">Redis", ">Postgres"), rows, empty="")
        repaired = "" if dry_run else ", repaired"
        found = number(len(done.drift), "difference") + repaired if done.drift else "no drift"
        print(f"{number(done.slots, 'slot')} compared, {done.mirrored} of them mirrored: {found}")
    ctx.exit(CONFLICT if done.drift else DONE)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Count the compared slots on a terminal's stderr; the answer on stdout stays clean."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    compared = 0

    def count(slots: int) -> None:
        nonlocal compared
        compared += slots
        print(f"\r{compared} slots compared", end="", file=sys.stderr, flush=True)

    yield count
    say("")
