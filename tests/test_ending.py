"""What ends a task that runs for ever, whatever swallows its cancellation."""

import asyncio
import gc
import sys

import pytest
from structlog.testing import capture_logs

from app import ending
from app.ending import end

pytestmark = pytest.mark.anyio


async def loses(pool: list[asyncio.Future[None]]) -> None:
    """A loop that waits as psycopg's pool does."""
    while True:
        pool.append(asyncio.get_running_loop().create_future())
        await asyncio.wait_for(pool[-1], 60)  # noqa: TID251 the very fault


async def a_turn_of_the_loop() -> None:
    await asyncio.sleep(0)


async def test_a_task_that_forgot_that_it_was_cancelled_ends_all_the_same(monkeypatch):
    monkeypatch.setattr(ending, "TRY_SECONDS", 0.01)
    pool: list[asyncio.Future[None]] = []
    task = asyncio.create_task(loses(pool))
    await a_turn_of_the_loop()
    pool[0].set_result(None)
    async with asyncio.timeout(30):
        await end([task])
    assert task.cancelled()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="mended there")
async def test_a_cancellation_alone_is_lost():
    """The control: without trying again, this is what it comes to."""
    pool: list[asyncio.Future[None]] = []
    task = asyncio.create_task(loses(pool))
    await a_turn_of_the_loop()
    pool[0].set_result(None)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.2)
    assert (done, len(pool)) == (set(), 2)
    await end([task])
    assert task.cancelled()


async def test_a_task_that_never_ends_is_left_and_told(monkeypatch):
    monkeypatch.setattr(ending, "TRY_SECONDS", 0.01)
    enough = asyncio.Event()

    async def stubborn() -> None:
        while not enough.is_set():
            try:
                await enough.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(stubborn())
    await a_turn_of_the_loop()
    with capture_logs() as told:
        await end([task])
    assert [(each["event"], each["log_level"]) for each in told] == [("task_not_ended", "error")]
    enough.set()
    await task


async def test_what_tasks_raise_at_their_end_is_nobodys():
    """Else asyncio would report an error of which nobody asked, and fail this test."""

    async def fails() -> None:
        raise ValueError

    failed = asyncio.create_task(fails())
    ended = asyncio.create_task(asyncio.sleep(0))
    await a_turn_of_the_loop()
    await a_turn_of_the_loop()
    await end([failed, ended])
    await end([])
    del failed
    await a_turn_of_the_loop()  # in which the task is looked at
    gc.collect()
