"""How a task that would run for ever is brought to its end."""

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

log = structlog.get_logger()

#: How often a task is cancelled, and how long it may take each time: psycopg asks its server first to stop as well.
TRIES = 10
TRY_SECONDS = 1.0


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended. What they raise is nobody's business any more.

    Once is not enough on Python 3.11: `asyncio.wait_for`, by which psycopg's pool and redis-py wait, forgets a
    cancellation that arrives together with what it waited for (github.com/python/cpython/issues/86296). The loop goes
    on then, and its process would never stop. One that never ends is left, and logged, after about ten seconds.
    """
    pending = set(tasks)
    for task in pending:
        task.add_done_callback(_drop_error)
    for _ in range(TRIES):
        pending = {task for task in pending if not task.done()}
        if not pending:
            return
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=TRY_SECONDS)
    for task in pending:
        if not task.done():
            log.error("task_not_ended", task=repr(task.get_coro()))


def _drop_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # or asyncio would report that nobody asked for it
