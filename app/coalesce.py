"""Gathers concurrent calls of a store: while one is in flight, later ones wait, and go together in the next (design 6).

Under load the stores are not slow, the round trips are: a hundred callers cost one pipeline, or one COMMIT. Knows no
store: how calls are sent together, and what becomes of each when that fails, is told by two functions.
"""

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar

from app.errors import Overloaded

#: Waiting is counted in slices: a process that was busy for a second has not looked at its sockets for a second, and
#: must not turn a crowd away because of its own lag (design 5 says so of Redis).
WAIT_SLICE_SECONDS = 0.05

Call = TypeVar("Call")
Answer = TypeVar("Answer")


class _Waiting(Generic[Call, Answer]):
    """A call and who waits for its answer. `deadline` is when, of the lane's own time, it is too late to send it."""

    __slots__ = ("answer", "call", "deadline")

    def __init__(self, call: Call, answer: asyncio.Future[Answer], deadline: float) -> None:
        self.call, self.answer, self.deadline = call, answer, deadline

    def tell(self, answer: Answer | Exception) -> None:
        if self.answer.done():  # the caller went away
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Coalescer(Generic[Call, Answer]):
    """The way to a store. Every caller gets the answer to its own call, or its own error, exactly once.

    `together` sends a list and returns an answer or an exception for each, in order. When it raises, each member is
    given to `alone` with that exception, so that one poisoned call fails nobody else: it repeats the call, settles
    what became of it, or raises. No two calls of one `name` (as `named` tells) go together.
    """

    def __init__(
        self,
        together: Callable[[Sequence[Call]], Awaitable[Sequence[Answer | Exception]]],
        alone: Callable[[Call, Exception], Awaitable[Answer]],
        *,
        most_together: int,
        most_waiting: int,
        longest_wait_seconds: float,
        lanes: int = 1,
        slow_seconds: float = math.inf,
        most_flights: int = 1,
        named: Callable[[Call], Hashable] = id,
        observe_size: Callable[[int], object] = lambda _: None,
    ) -> None:
        """So many flights as there are `lanes` go side by side. Those that take longer than `slow_seconds` hold up
        nobody: the next starts beside them, up to `most_flights` in all. `observe_size` is told how many calls go
        together.
        """
        self._together, self._alone, self._named, self._observe_size = together, alone, named, observe_size
        self._most_together, self._most_waiting = most_together, most_waiting
        self._longest_wait, self._slow = longest_wait_seconds, slow_seconds
        self._lanes, self._most_flights = lanes, most_flights
        self._queue: deque[_Waiting[Call, Answer]] = deque()
        self._flights = 0
        self._slow_flights = 0  # those of them that hold up nobody any more
        self._starting = False
        self._watching: asyncio.TimerHandle | None = None
        self._slice = min(longest_wait_seconds, WAIT_SLICE_SECONDS)
        self._waited = 0.0  # the lane's own time, as of when it was looked at: it goes on while somebody is watching
        self._looked_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        # A flight serves many requests: it runs in nobody's context, or its log lines would name one of them.
        self._context = contextvars.Context()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def ask(self, call: Call, *, patient: bool = False) -> Answer:
        """Send a call, with others if there are any, and return its own answer. Idle, it is sent at once.

        A caller that is cancelled takes back what was not sent yet, and disturbs nobody.

        Raises:
            Overloaded: too many are waiting, or this one has waited too long (never one that is `patient`). It was not
                sent.
        """
        if len(self._queue) >= self._most_waiting and not patient:
            raise Overloaded
        return await self.post(call, patient=patient)

    def post(self, call: Call, *, patient: bool = True) -> asyncio.Future[Answer]:
        """Send a call for which nobody needs to wait; returns the answer to come."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        deadline = math.inf if patient else self._own_time(loop) + self._longest_wait
        self._queue.append(_Waiting(call, answer, deadline))
        self._start_soon(loop)
        if not patient and self._watching is None:
            self._watch(loop)
        return answer

    async def drain(self) -> None:
        """Wait until everything that was asked so far, or meanwhile, has its answer."""
        while self._queue or self._tasks:
            if self._tasks:
                await asyncio.wait(self._tasks)
            await asyncio.sleep(0)  # a flight may be about to start, a finished task about to be struck off

    def _start_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        in_the_way = self._flights - self._slow_flights
        held_up = in_the_way >= self._lanes or self._flights >= self._most_flights
        if self._queue and not self._starting and not held_up:
            self._starting = True
            # Not now: those who call in the same turn of the loop go along.
            loop.call_soon(self._start, context=self._context)

    def _start(self) -> None:
        self._starting = False
        if batch := self._next_batch():
            self._flights += 1
            self._keep(self._fly(batch))
            self._start_soon(asyncio.get_running_loop())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> list[_Waiting[Call, Answer]]:
        batch: dict[Hashable, _Waiting[Call, Answer]] = {}
        postponed: list[_Waiting[Call, Answer]] = []
        while self._queue and len(batch) < self._most_together:
            waiting = self._queue.popleft()
            if waiting.answer.done():
                continue  # cancelled, or turned away
            if batch.setdefault(self._named(waiting.call), waiting) is not waiting:
                postponed.append(waiting)
        self._queue.extendleft(reversed(postponed))
        return list(batch.values())

    async def _fly(self, batch: list[_Waiting[Call, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        is_slow = False

        def hold_up_nobody() -> None:
            nonlocal is_slow
            is_slow = True
            self._slow_flights += 1
            self._start_soon(loop)

        timer = loop.call_later(self._slow, hold_up_nobody) if self._slow < math.inf else None
        try:
            self._observe_size(len(batch))
            answers = await self._together([waiting.call for waiting in batch])
            if len(answers) != len(batch):
                raise AssertionError(f"{len(answers)} answers to {len(batch)} calls")
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.tell(answer)
        except Exception as error:
            for waiting in batch:
                self._keep(self._repeat(waiting, error))
        except BaseException:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        finally:
            if timer:
                timer.cancel()
            self._flights -= 1
            self._slow_flights -= is_slow
            self._start_soon(loop)

    async def _repeat(self, waiting: _Waiting[Call, Answer], error: Exception) -> None:
        if waiting.answer.done():
            return
        try:
            waiting.tell(await self._alone(waiting.call, error))
        except Exception as own_error:
            waiting.tell(own_error)
        except BaseException:
            waiting.answer.cancel()
            raise

    def _own_time(self, loop: asyncio.AbstractEventLoop) -> float:
        if self._watching is None:
            return self._waited
        return self._waited + min(loop.time() - self._looked_at, self._slice)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looked_at = loop.time()
        self._watching = loop.call_later(self._slice, self._turn_away_late, context=self._context)

    def _turn_away_late(self) -> None:
        """Tell those who have waited too long that they were not sent."""
        loop = asyncio.get_running_loop()
        self._waited = self._own_time(loop)
        self._watching = None
        for waiting in self._queue:
            if waiting.deadline <= self._waited:
                waiting.tell(Overloaded())
        self._queue = deque(waiting for waiting in self._queue if not waiting.answer.done())
        if any(waiting.deadline < math.inf for waiting in self._queue):
            self._watch(loop)
