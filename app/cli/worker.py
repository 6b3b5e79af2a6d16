"""`holdfast worker`: what happens after the answer: e-mail, refunds, deadlines, webhooks."""

import os
import signal
import sys
import threading

import rich_click as click

from app.cli.failing import Failed


@click.command()
@click.option("--concurrency", type=click.IntRange(1, 100), default=10, show_default=True, help="Jobs side by side")
@click.option(
    "--metrics-port", type=click.IntRange(1, 65_535), help="Tell this worker's own metrics there, on HOLDFAST_HOST"
)
@click.option("--parent", type=int, hidden=True, help="A pipe that ends when whoever started this does")
def worker(concurrency: int, metrics_port: int | None, parent: int | None) -> None:
    """Do the jobs that follow from bookings and payments, until stopped. Any number may run.

    Needs DATABASE_URL and REDIS_URL as `holdfast serve` does; STRIPE_API_KEY to be paid, HOLDFAST_SMTP_URL for e-mail.
    Killed at any moment, it loses nothing: another one, or the next, does its jobs again.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_at_once)
    if parent is not None:
        threading.Thread(target=_die_with_parent, args=(parent,), daemon=True).start()
    import asyncio

    from app.cli.serve import check_stores
    from app.settings import from_env
    from app.telemetry import configure_logging, serve_metrics
    from app.worker import work

    settings = from_env()
    check_stores(settings)
    configure_logging()
    if metrics_port:
        try:
            serve_metrics(settings.host, metrics_port)
        except OSError as error:
            raise Failed(f"Cannot listen on {settings.host}:{metrics_port}: {error.strerror}") from error
    asyncio.run(work(settings, concurrency, ready=lambda: print("Holdfast works on its jobs", file=sys.stderr)))


def _end_at_once(*_: object) -> None:
    """End cleanly before anything is opened: to a supervisor, a stop during the start is a stop like any other."""
    os._exit(0)


def _die_with_parent(pipe: int) -> None:
    """End when nobody is left who could write to the pipe."""
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGKILL)
