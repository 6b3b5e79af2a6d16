"""The worker process: an engine, the queue, and the loops of `jobs`, until it is told to stop."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import procrastinate
import structlog
from procrastinate import exceptions
from procrastinate.worker import Worker

from app import engine, jobs
from app.ending import end
from app.engine import Engine
from app.settings import Settings

log = structlog.get_logger()

#: How long jobs that run at a stop may go on; those that do not end are done again by the next worker.
GRACE_SECONDS = 10.0
#: … and what it may take after that to write down what became of them.
CLOSE_SECONDS = 10.0
#: A store that is away at the start is asked again after this long.
AGAIN_SECONDS = 2.0


async def work(settings: Settings, concurrency: int, *, ready: Callable[[], None] = lambda: None) -> None:
    """Work until SIGTERM or SIGINT, also through times when a store is away."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log.info("worker_started", concurrency=concurrency)
    async with engine.running(settings) as running:
        while not stop.is_set():
            try:
                await running.ledger.ping()  # the queue's own pool would wait for half a minute, deaf to `stop`
                async with _queue(running) as waiting:
                    ready()
                    await _until(stop, running, waiting, concurrency)
            except (exceptions.ConnectorException, *jobs.PASSING) as error:
                log.warning("worker_without_postgres", reason=type(error).__name__)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_SECONDS):
                        await stop.wait()


@asynccontextmanager
async def _queue(running: Engine) -> AsyncIterator[procrastinate.App]:
    waiting = jobs.queue(running)
    async with waiting.open_async():
        yield waiting


async def _until(stop: asyncio.Event, running: Engine, waiting: procrastinate.App, concurrency: int) -> None:
    """Run the loops and the worker side by side; return when told to stop, raise when one of them cannot go on."""
    loops = [
        asyncio.create_task(jobs.relaying(running, waiting)),
        asyncio.create_task(jobs.repairing(running, waiting)),
    ]
    worker = Worker(
        waiting,
        concurrency=concurrency,
        install_signal_handlers=False,
        delete_jobs="successful",
        shutdown_graceful_timeout=GRACE_SECONDS,
        update_heartbeat_interval=jobs.HEARTBEAT_SECONDS,
        stalled_worker_timeout=jobs.STALLED_SECONDS,
        # Jobs are told of by NOTIFY, but not those that waited for another of the same booking to end.
        fetch_job_polling_interval=jobs.TURN_SECONDS,
    )
    working = asyncio.create_task(worker.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.stop()  # not cancelled: while it starts, that could be lost (see `end`), and later it cuts jobs short
        await asyncio.gather(end((*loops, stopping)), asyncio.wait({working}, timeout=GRACE_SECONDS + CLOSE_SECONDS))
        await end((working,))
    if not stop.is_set() and (error := working.exception()):
        raise error
