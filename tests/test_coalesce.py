"""Gathering calls: every caller gets its own answer exactly once, or its own error, whatever the others do."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.coalesce import Coalescer
from app.errors import Overloaded

pytestmark = pytest.mark.anyio


class Poison(Exception):
    """What a store says to a call that it cannot stomach."""


class Store:
    """Answers a call with its own name, when it is let to. Calls below zero are poison: they spoil their batch."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.alone: list[int] = []
        self.in_flight: list[tuple[list[int], asyncio.Future[None]]] = []

    async def together(self, calls: Sequence[int]) -> list[str | Exception]:
        batch = list(calls)
        self.sent.append(batch)
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.in_flight.append((batch, gate))
        await gate
        if any(call < 0 for call in batch):
            raise Poison("one of you")
        return [f"answer {call}" for call in batch]

    async def alone_after(self, call: int, error: Exception) -> str:
        await asyncio.sleep(0)
        self.alone.append(call)
        if call < 0 or not isinstance(error, Poison):
            raise Poison(f"you, {call}") if call < 0 else error
        return f"answer {call}"

    def land(self, which: int = 0, error: Exception | None = None) -> None:
        _, gate = self.in_flight.pop(which % len(self.in_flight))
        if error:
            gate.set_exception(error)
        else:
            gate.set_result(None)

    def coalescer(
        self,
        most_together: int = 100,
        most_waiting: int = 1000,
        longest_wait: float = 60.0,
        most_flights: int = 1,
        lanes: int = 1,
        slow: float = math.inf,
        named: Callable[[int], object] = id,
    ) -> Coalescer[int, str]:
        return Coalescer(
            self.together,
            self.alone_after,
            most_together=most_together,
            most_waiting=most_waiting,
            longest_wait_seconds=longest_wait,
            lanes=lanes,
            most_flights=most_flights,
            slow_seconds=slow,
            named=named,  # type: ignore[arg-type]
        )


async def turns(count: int = 6) -> None:
    """Let everything happen that can happen without the store."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_idle_lane_sends_at_once_and_those_of_one_moment_together() -> None:
    store = Store()
    lane = store.coalescer()
    first = asyncio.gather(*(lane.ask(n) for n in range(3)))
    await turns()
    assert store.sent == [[0, 1, 2]]
    late = asyncio.gather(*(lane.ask(n) for n in (3, 4)))
    await turns()
    assert store.sent == [[0, 1, 2]]  # gathered while the first flight is under way
    store.land()
    await turns()
    assert store.sent == [[0, 1, 2], [3, 4]]
    store.land()
    assert await first == ["answer 0", "answer 1", "answer 2"]
    assert await late == ["answer 3", "answer 4"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(-2, 40)),
        st.tuples(st.just("post"), st.integers(-2, 40)),
        st.tuples(st.just("land"), st.integers(0, 3)),
        st.tuples(st.just("fail"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 60)),
        st.tuples(st.just("turn"), st.integers(1, 3)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, most_together=st.integers(1, 5), lanes=st.integers(1, 2), most_flights=st.integers(1, 3))
def test_every_caller_gets_its_own_answer_exactly_once_or_its_own_error(
    steps: list[tuple[str, int]], most_together: int, lanes: int, most_flights: int
) -> None:
    async def play() -> None:
        store = Store()
        lane = store.coalescer(most_together, lanes=lanes, most_flights=most_flights, slow=0.0, named=lambda call: call)
        asked: list[tuple[int, asyncio.Future[str]]] = []
        for step, value in steps:
            if step == "ask":
                asked.append((value, asyncio.ensure_future(lane.ask(value))))
            elif step == "post":
                asked.append((value, lane.post(value)))
            elif step == "cancel" and asked:
                asked[value % len(asked)][1].cancel()
            elif step in ("land", "fail") and store.in_flight:
                store.land(value, OSError("the line is dead") if step == "fail" else None)
            elif step == "turn":
                await turns(value)
            assert len(store.in_flight) <= most_flights
        await turns()
        drained = asyncio.create_task(lane.drain())
        while not drained.done():
            await turns()
            while store.in_flight:
                store.land()
        await turns()

        for call, answer in asked:
            assert answer.done(), "somebody was forgotten"
            if answer.cancelled():
                continue
            error = answer.exception()
            if error is None:
                assert answer.result() == f"answer {call}"
            elif isinstance(error, Poison):
                assert call < 0
                assert str(error) == f"you, {call}"
            else:
                assert isinstance(error, OSError)
        for batch in store.sent:
            assert 1 <= len(batch) <= most_together
            assert len(set(batch)) == len(batch)  # no two of one name
        sent_together = sum(map(len, store.sent))
        assert sent_together + sum(answer.cancelled() for _, answer in asked) >= len(asked)
        assert sent_together <= len(asked), "something was sent twice"
        assert len(store.alone) <= sent_together
        assert lane.waiting == 0

    asyncio.run(play())


async def test_one_poisoned_call_fails_none_of_its_neighbours() -> None:
    store = Store()
    lane = store.coalescer()
    calls = asyncio.gather(*(lane.ask(n) for n in (1, -1, 2)), return_exceptions=True)
    await turns()
    store.land()
    one, poisoned, two = await calls
    assert (one, two) == ("answer 1", "answer 2")
    assert isinstance(poisoned, Poison)
    assert str(poisoned) == "you, -1"
    assert sorted(store.alone) == [-1, 1, 2]


async def test_a_caller_that_goes_away_takes_back_what_was_not_sent_and_disturbs_nobody() -> None:
    store = Store()
    lane = store.coalescer()
    flying = [asyncio.create_task(lane.ask(n)) for n in (1, 2)]
    await turns()
    waiting = [asyncio.create_task(lane.ask(n)) for n in (3, 4)]
    await turns()
    flying[0].cancel()
    waiting[0].cancel()
    await turns()
    store.land()
    await turns()
    assert store.sent == [[1, 2], [4]]
    store.land()
    assert await flying[1] == "answer 2"
    assert await waiting[1] == "answer 4"


async def test_too_many_are_turned_away_but_what_nobody_would_repeat_is_not() -> None:
    store = Store()
    lane = store.coalescer(most_waiting=2)
    flying = asyncio.create_task(lane.ask(0))
    await turns()
    waiting = [asyncio.create_task(lane.ask(n)) for n in (1, 2)]
    await turns()
    with pytest.raises(Overloaded):
        await lane.ask(3)
    patient = asyncio.create_task(lane.ask(4, patient=True))
    await turns()
    store.land()
    await turns()
    store.land()
    assert await asyncio.gather(flying, *waiting, patient) == [f"answer {n}" for n in (0, 1, 2, 4)]
    assert store.sent == [[0], [1, 2, 4]]


async def test_who_has_waited_too_long_is_told_so_and_never_sent() -> None:
    store = Store()
    lane = store.coalescer(longest_wait=0.01)
    flying = asyncio.create_task(lane.ask(0))  # sent at once: the bound is on waiting, the store has its own
    await turns()
    late = asyncio.create_task(lane.ask(1))
    patient = lane.post(2)
    with pytest.raises(Overloaded):
        await late
    later = asyncio.create_task(lane.ask(3))
    with pytest.raises(Overloaded):
        await later
    store.land()
    assert await flying == "answer 0"
    await turns()
    assert store.sent == [[0], [2]]
    store.land()
    assert await patient == "answer 2"


async def test_a_process_that_was_busy_itself_turns_nobody_away_for_it() -> None:
    store = Store()
    lane = store.coalescer(longest_wait=0.2)
    flying = asyncio.create_task(lane.ask(0))
    await turns()
    waiting = [asyncio.create_task(lane.ask(n)) for n in (1, 2)]
    await turns()
    time.sleep(0.5)  # noqa: ASYNC251 on purpose: meanwhile nobody could look whether the store has answered
    await turns()
    store.land()
    await turns()
    assert store.sent == [[0], [1, 2]]
    store.land()
    assert await asyncio.gather(flying, *waiting) == ["answer 0", "answer 1", "answer 2"]


async def test_a_slow_flight_holds_up_only_those_on_board_and_flights_are_bounded() -> None:
    async def its_time() -> None:
        await asyncio.sleep(0.01)
        await turns()  # of which there may have been none: a process that stood still finds all its timers due at once

    store = Store()
    lane = store.coalescer(slow=0.0, most_flights=2)
    calls = [asyncio.create_task(lane.ask(0))]
    await its_time()
    assert store.sent == [[0]]
    calls.append(asyncio.create_task(lane.ask(1)))
    await its_time()
    assert store.sent == [[0], [1]]
    calls.append(asyncio.create_task(lane.ask(2)))
    await its_time()
    assert store.sent == [[0], [1]]  # two are under way, however slow they are
    store.land(1)
    assert await calls[1] == "answer 1"
    await its_time()
    assert store.sent == [[0], [1], [2]]
    store.land()
    store.land()
    assert [await call for call in calls] == ["answer 0", "answer 1", "answer 2"]


async def test_as_many_flights_as_there_are_lanes_go_side_by_side() -> None:
    store = Store()
    way = store.coalescer(most_together=2, lanes=2, most_flights=3)
    calls = asyncio.gather(*(way.ask(n) for n in range(6)))
    await turns()
    assert store.sent == [[0, 1], [2, 3]]
    store.land(1)
    await turns()
    assert store.sent == [[0, 1], [2, 3], [4, 5]]
    store.land()
    store.land()
    assert await calls == [f"answer {n}" for n in range(6)]


async def test_two_of_one_name_go_one_after_the_other() -> None:
    store = Store()
    lane = store.coalescer(named=lambda call: call % 10)
    calls = asyncio.gather(*(lane.ask(n) for n in (1, 11, 2, 21)))
    for expected in ([1, 2], [11], [21]):
        await turns()
        assert store.sent[-1] == expected
        store.land()
    assert await calls == ["answer 1", "answer 11", "answer 2", "answer 21"]


async def test_a_store_that_answers_too_little_is_a_bug_that_every_caller_hears_of() -> None:
    async def forgetful(calls: Sequence[int]) -> list[str | Exception]:
        return ["answer"] * (len(calls) - 1)

    async def alone(_: int, error: Exception) -> str:
        raise error

    lane: Coalescer[int, str] = Coalescer(forgetful, alone, most_together=9, most_waiting=9, longest_wait_seconds=1)
    answers = await asyncio.gather(lane.ask(1), lane.ask(2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [AssertionError, AssertionError]
