"""The way to Redis: bounded waiting, the breaker, one own retry, and every kind of Redis that does not serve.

On real servers behind a proxy that fails on demand. That nobody waits for a Redis that is away is shown by counting
what reaches it, not by a stopwatch.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import fakeredis
import pytest
import redis

from app import pipelines
from app.breaker import FAILURES_TO_OPEN, RedisAway, past_the_breaker
from app.domain import Room, SlotFacts
from app.holds import Extended, Full, Holds, Taken, slot_keys
from app.ledger import Ledger
from app.mirror import Mirror
from app.pipelines import MAX_CONNECTIONS, WAIT_SLICE_SECONDS, WAIT_SLICES, bounded, connect
from tests.faults import FaultProxy
from tests.redis_servers import (
    START_SECONDS,
    RedisServer,
    bundled_redis,
    running_cluster,
    running_redis,
    system_redis,
    wait_until,
)
from tests.slots import assert_adds_up, counts_of, some_facts

pytestmark = pytest.mark.anyio

TTL = 60_000


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both loops: the application runs on uvloop, whose timers and sockets take turns differently."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.path) as proxy:
        yield proxy


@asynccontextmanager
async def holds_at(url: str) -> AsyncIterator[Holds]:
    holds = Holds(connect(url))
    try:
        yield holds
    finally:
        await holds.client.aclose()


@pytest.fixture
async def direct(server: RedisServer, anyio_backend: Any) -> AsyncIterator[Holds]:
    async with holds_at(server.url) as holds:
        yield holds


@pytest.fixture
async def holds(proxy: FaultProxy, anyio_backend: Any) -> AsyncIterator[Holds]:
    """Through the proxy, with a connection made and the scripts loaded."""
    async with holds_at(f"redis://127.0.0.1:{proxy.port}") as holds:
        facts = some_facts()
        await holds.sync([counts_of(facts)])
        hold_id = uuid4()
        await holds.take(facts, hold_id, 1, TTL)
        await holds.extend(facts, hold_id, TTL, 0)
        await holds.release(facts, hold_id, has_token=False)
        yield holds


async def synced(holds: Holds, **counts: Any) -> SlotFacts:
    facts = some_facts()
    await holds.sync([counts_of(facts, **counts)])
    return facts


async def away(call: Awaitable[Any]) -> str:
    with pytest.raises(RedisAway) as caught:
        await call
    return str(caught.value)


def every_call(holds: Holds, facts: SlotFacts) -> list[Callable[[], Awaitable[Any]]]:
    pair = [(facts.resource_id, facts.id)]
    return [
        lambda: holds.take(facts, uuid4(), 1, TTL),
        lambda: holds.extend(facts, uuid4(), TTL, 0),
        lambda: holds.release(facts, uuid4(), has_token=True),
        lambda: holds.settle(counts_of(facts), uuid4(), remember=True),
        lambda: holds.sync([counts_of(facts)]),
        lambda: holds.rooms(pair),
        lambda: holds.inspect(pair),
        lambda: holds.active_slots([facts.resource_id]),
        lambda: holds.claim_key(uuid4(), "asked"),
    ]


# -- away -------------------------------------------------------------------------------------------------------------


async def test_a_paused_redis_is_given_up_and_the_breaker_opens_at_the_third_failure(
    holds: Holds, server: RedisServer, proxy: FaultProxy
) -> None:
    facts = await synced(holds)
    server.pause()
    for failures in range(1, FAILURES_TO_OPEN + 1):
        assert not holds.breaker.is_open
        await away(holds.take(facts, uuid4(), 1, TTL))
        assert holds.breaker.failures == failures
    assert holds.breaker.is_open
    assert holds.breaker.opened.is_set()

    connections, received = proxy.connections, len(proxy.received)
    for call in every_call(holds, facts):
        assert await away(call()) == "the breaker is open"
    assert (proxy.connections, len(proxy.received)) == (connections, received)
    server.resume()


async def test_a_call_waits_a_bounded_number_of_slices() -> None:
    """A bound with much slack: redis-py's own would be seconds, and its retries would multiply them."""
    waited = []
    for _ in range(3):  # the machine may stand still meanwhile, but not each time
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await bounded(asyncio.Event().wait())
        waited.append(time.monotonic() - started)
    assert WAIT_SLICES * WAIT_SLICE_SECONDS * 0.9 <= min(waited) < 1.0


async def test_nobody_in_a_crowd_waits_long_for_a_redis_that_swallows_everything(
    holds: Holds, proxy: FaultProxy
) -> None:
    """More callers than connections: those who get none are given up like the others."""
    facts = await synced(holds)
    proxy.arm("blackhole")
    started = time.monotonic()
    answers = await asyncio.gather(
        *(holds.take(facts, uuid4(), 1, TTL) for _ in range(4 * MAX_CONNECTIONS)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {RedisAway}
    assert time.monotonic() - started < 2.0
    assert proxy.connections <= 2 * MAX_CONNECTIONS + 1  # those given up, and at most as many who came after
    assert holds.breaker.is_open


@pytest.mark.parametrize("blocks", [0.3, 0.05])
async def test_the_processs_own_lag_is_not_taken_for_a_dead_redis(direct: Holds, blocks: float) -> None:
    """The loop is blocked again and again while calls wait: Redis is healthy, so every one gets its answer."""
    facts = await synced(direct, capacity=100)

    async def lag() -> None:
        for _ in range(4):
            time.sleep(blocks)  # noqa: ASYNC251 the point
            await asyncio.sleep(0)

    for _ in range(3):
        rivals = [direct.take(facts, uuid4(), 1, TTL) for _ in range(20)]
        *answers, _ = await asyncio.gather(*rivals, lag())
        assert {type(answer) for answer in answers} == {Taken}
    assert direct.breaker.failures == 0
    assert (await direct.rooms([(facts.resource_id, facts.id)]))[facts.id] == (Room(100, 0, 60, open=True), 1)


async def test_one_success_forgets_the_failures(holds: Holds, proxy: FaultProxy) -> None:
    facts = await synced(holds)
    for _ in range(3):
        proxy.arm("blackhole")
        for _ in range(FAILURES_TO_OPEN - 1):
            await away(holds.take(facts, uuid4(), 1, TTL))
        proxy.heal()
        assert isinstance(await holds.take(facts, uuid4(), 1, TTL), Taken)
    assert not holds.breaker.is_open


async def test_an_abandoned_reply_reaches_nobody_else(holds: Holds, proxy: FaultProxy) -> None:
    """A late answer must not be read by the next caller of its connection."""
    slots = [await synced(holds, capacity=10 + number) for number in range(4)]
    proxy.arm("delay", b"EVALSHA", delay=60, times=2)
    late = await asyncio.gather(*(holds.take(facts, uuid4(), 20, TTL) for facts in slots[:2]), return_exceptions=True)
    assert {type(answer) for answer in late} == {RedisAway}
    proxy.heal()
    for _ in range(3):  # before it comes, and after
        for facts, capacity in zip(slots, range(10, 14), strict=True):
            refused = await holds.take(facts, uuid4(), 20, TTL)
            assert isinstance(refused, Full)
            assert refused.capacity == capacity
        await proxy.let_go()


async def test_a_refused_connection_is_away_and_not_an_error(holds: Holds, proxy: FaultProxy) -> None:
    facts = await synced(holds)
    proxy.arm("refuse")
    for call in every_call(holds, facts)[:FAILURES_TO_OPEN]:
        await away(call())
    assert holds.breaker.is_open


async def test_a_redis_that_was_never_there_is_away() -> None:
    async with holds_at("unix:///nonexistent/redis.sock") as holds:
        for _ in range(FAILURES_TO_OPEN):
            await away(holds.take(some_facts(), uuid4(), 1, TTL))
        assert holds.breaker.is_open
        assert await holds.pipelines.probe() is False
        assert await holds.pipelines.evicts() is False


# -- lost replies -----------------------------------------------------------------------------------------------------


async def test_a_lost_reply_is_asked_again_and_holds_once(holds: Holds, proxy: FaultProxy) -> None:
    facts = await synced(holds, capacity=5)
    proxy.arm("cut_after", b"EVALSHA")
    hold_id = uuid4()
    answer = await holds.take(facts, hold_id, 2, TTL)
    assert proxy.hits == 1
    assert isinstance(answer, Taken)
    assert answer.again  # the first call held, the own retry found it
    assert (await holds.rooms([(facts.resource_id, facts.id)]))[facts.id] == (Room(5, 0, 2, open=True), 1)


async def test_two_lost_replies_are_away_and_the_hold_is_there_once(holds: Holds, proxy: FaultProxy) -> None:
    facts = await synced(holds, capacity=5)
    proxy.arm("cut_after", b"EVALSHA", times=2)
    hold_id = uuid4()
    await away(holds.take(facts, hold_id, 2, TTL))
    assert proxy.hits == 2
    answer = await holds.take(facts, hold_id, 2, TTL)
    assert isinstance(answer, Taken)
    assert answer.again
    await assert_adds_up(holds.client, facts)


async def test_a_lost_request_is_sent_again(holds: Holds, proxy: FaultProxy) -> None:
    facts = await synced(holds)
    proxy.arm("cut_before", b"EVALSHA")
    answer = await holds.take(facts, uuid4(), 1, TTL)
    assert isinstance(answer, Taken)
    assert not answer.again


@pytest.mark.parametrize("mode", ["cut_after", "cut_before"])
async def test_a_lost_pipeline_is_sent_again(holds: Holds, proxy: FaultProxy, mode: Any) -> None:
    slots = [await synced(holds) for _ in range(3)]
    hold_ids = [uuid4() for _ in slots]
    for facts, hold_id in zip(slots, hold_ids, strict=True):
        await holds.take(facts, hold_id, 1, TTL)
    proxy.arm(mode, b"EVALSHA")
    calls = [
        holds.settle_call(counts_of(facts, booked=1, version=2), hold_id, remember=True)
        for facts, hold_id in zip(slots, hold_ids, strict=True)
    ]
    assert await holds.pipelines.run_many(calls) == [["settled"]] * 3
    assert proxy.hits == 1
    for facts in slots:
        assert (await holds.rooms([(facts.resource_id, facts.id)]))[facts.id] == (Room(3, 1, 0, open=True), 2)


async def test_a_timed_out_call_is_not_repeated_by_anybody(holds: Holds, proxy: FaultProxy) -> None:
    """redis-py's default would send it eleven times."""
    facts = await synced(holds)
    proxy.arm("blackhole", b"EVALSHA")
    before = proxy.commands(b"EVALSHA")
    await away(holds.take(facts, uuid4(), 1, TTL))
    await asyncio.sleep(0.3)
    assert proxy.commands(b"EVALSHA") == before + 1


async def test_a_call_that_took_too_long_may_have_held_and_says_so_when_asked_again(
    holds: Holds, proxy: FaultProxy
) -> None:
    facts = await synced(holds)
    proxy.arm("delay", b"EVALSHA", delay=60, times=1)
    hold_id = uuid4()
    await away(holds.take(facts, hold_id, 3, TTL))
    await proxy.let_go()
    answer = await holds.take(facts, hold_id, 3, TTL)
    assert isinstance(answer, Taken)
    assert (await holds.rooms([(facts.resource_id, facts.id)]))[facts.id] == (Room(3, 0, 3, open=True), 1)


# -- lost scripts -----------------------------------------------------------------------------------------------------


async def test_lost_scripts_are_given_again_in_the_middle_of_a_pipeline(direct: Holds, server: RedisServer) -> None:
    slots = [some_facts() for _ in range(450)]  # three pipelines
    with server.admin() as admin:
        for _ in range(3):
            admin.script_flush()
            await direct.sync([counts_of(facts) for facts in slots])
            admin.script_flush()
            rooms = await direct.rooms([(facts.resource_id, facts.id) for facts in slots])
            assert set(rooms.values()) == {(Room(3, 0, 0, open=True), 1)}
    assert direct.breaker.failures == 0


async def test_scripts_that_are_lost_all_the_time_are_never_noticed(direct: Holds, server: RedisServer) -> None:
    facts = await synced(direct, capacity=200)
    done = asyncio.Event()

    async def flush() -> None:
        with server.admin() as admin:
            while not done.is_set():
                await asyncio.to_thread(admin.script_flush)

    async def hold_and_release() -> None:
        for _ in range(20):
            hold_id = uuid4()
            assert isinstance(await direct.take(facts, hold_id, 1, TTL), Taken)
            assert isinstance(await direct.extend(facts, hold_id, TTL, 0), Extended)
            assert await direct.release(facts, hold_id, has_token=True)

    flushing = asyncio.create_task(flush())
    try:
        await asyncio.gather(*(hold_and_release() for _ in range(8)))
    finally:
        done.set()
        await flushing
    await assert_adds_up(direct.client, facts)


# -- there, but not serving -------------------------------------------------------------------------------------------


@pytest.fixture(params=["6.2", "7.0"])
def either(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Both versions: they word the refusal of a write inside a script differently."""
    with running_redis(binary=bundled_redis() if request.param == "6.2" else system_redis()) as server:
        yield server


async def assert_not_serving(holds: Holds, call: Callable[[], Awaitable[Any]], says: str) -> None:
    """The breaker opens, and the probe does not take an answer for a service."""
    for _ in range(FAILURES_TO_OPEN):
        assert not holds.breaker.is_open
        with pytest.raises(RedisAway) as caught:
            await call()
        assert re.search(says, str(caught.value.__cause__))
    assert holds.breaker.is_open
    assert await holds.pipelines.probe() is False


NOT_SERVING = {
    "is a read-only replica": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read only replica"),
    "is full": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "maxmemory"),
    "lost its replicas": (
        "CONFIG SET min-replicas-to-write 1",
        "CONFIG SET min-replicas-to-write 0",
        "Not enough good replicas",
    ),
    "forbids scripts": ("ACL SETUSER default -evalsha -eval -set", "ACL SETUSER default +@all", "no permissions"),
}


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("fault", NOT_SERVING)
async def test_away_is_a_redis_that(either: RedisServer, fault: str, piped: bool) -> None:
    breaks, heals, says = NOT_SERVING[fault]
    async with holds_at(either.url) as holds:
        facts = await synced(holds)
        assert await holds.pipelines.probe() is True
        with either.admin() as admin:
            admin.execute_command(*breaks.split())
            if piped:
                await assert_not_serving(holds, lambda: holds.sync([counts_of(facts)]), says)
            else:
                await assert_not_serving(holds, lambda: holds.take(facts, uuid4(), 1, TTL), says)
            admin.execute_command(*heals.split())
        assert await holds.pipelines.probe() is True
        holds.breaker.close()
        assert isinstance(await holds.take(facts, uuid4(), 1, TTL), Taken)


async def test_a_redis_busy_with_somebody_elses_script_is_away(direct: Holds, server: RedisServer) -> None:
    facts = await synced(direct)
    with server.admin() as admin, server.admin() as killer:
        admin.config_set("lua-time-limit", "50")
        endless = asyncio.create_task(asyncio.to_thread(_run_until_killed, admin))
        try:
            await asyncio.to_thread(wait_until, lambda: _is_busy(killer), "the script to run for too long")
            await assert_not_serving(direct, lambda: direct.take(facts, uuid4(), 1, TTL), "BUSY")
        finally:
            killer.script_kill()
            await endless
    assert await direct.pipelines.probe() is True


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        assert "BUSY" in str(error)  # noqa: PT017 what else it says is a failure
        return True
    return False


def _run_until_killed(client: redis.Redis) -> None:
    with pytest.raises(redis.ResponseError, match=r"(?i)killed"):
        client.eval("while true do end", 0)


async def test_a_redis_that_is_still_loading_is_away(server: RedisServer, direct: Holds) -> None:
    with server.admin() as admin:
        admin.config_set("rdbcompression", "no")
        admin.eval("for i = 1, 60 do redis.call('SET', 'filler:' .. i, string.rep('x', 1000000)) end", 0)
        admin.save()
    server.kill()
    server.options = ("--key-load-delay", "10000")  # microseconds; it looks at its sockets every 2 MB
    server.launch()
    deadline = time.monotonic() + START_SECONDS
    while not await _is_told_that_it_loads(direct):  # at first nobody listens
        assert time.monotonic() < deadline
        if direct.breaker.failures == 0:  # it has loaded, while this process stood still: once more
            server.kill()
            server.launch()
        direct.breaker.close()
        await asyncio.sleep(0.01)


async def _is_told_that_it_loads(holds: Holds) -> bool:
    try:
        await holds.take(some_facts(), uuid4(), 1, TTL)
    except RedisAway as error:
        return "loading" in str(error).lower() and not await holds.pipelines.probe()
    return False


async def test_a_failing_script_is_logged_and_leaves_the_answer_to_postgres(
    direct: Holds, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = await synced(direct)
    await direct.client.set(f"hf:{{{facts.resource_id}}}:{facts.id}:holds", "not a sorted set")
    for _ in range(FAILURES_TO_OPEN + 1):
        await away(direct.take(facts, uuid4(), 1, TTL))
    assert "redis_error" in capsys.readouterr().out
    assert not direct.breaker.is_open  # one slot's broken keys are no reason to leave Redis for all others
    assert not isinstance(await direct.take(await synced(direct), uuid4(), 1, TTL), str)


async def test_reads_do_not_hide_that_redis_takes_no_writes(direct: Holds) -> None:
    facts = await synced(direct)
    await direct.client.replicaof("127.0.0.1", "1")
    for _ in range(FAILURES_TO_OPEN):
        assert not direct.breaker.is_open
        await away(direct.take(facts, uuid4(), 1, TTL))
        with suppress(RedisAway):
            await direct.rooms([(facts.resource_id, facts.id)])
    assert direct.breaker.is_open


@pytest.mark.parametrize(("policy", "evicts"), [("noeviction", False), ("allkeys-lru", True), ("volatile-ttl", True)])
async def test_a_redis_that_may_evict_holds_is_told_apart(
    direct: Holds, server: RedisServer, policy: str, evicts: bool
) -> None:
    with server.admin() as admin:
        admin.config_set("maxmemory-policy", policy)
    assert await direct.pipelines.evicts() is evicts


async def test_a_hosted_redis_that_forbids_config_is_not_refused(direct: Holds, server: RedisServer) -> None:
    with server.admin() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.execute_command("ACL", "SETUSER", "default", "-config")
    assert await direct.pipelines.evicts() is False


# -- coming back ------------------------------------------------------------------------------------------------------


async def test_after_a_restart_the_next_call_works(direct: Holds, server: RedisServer) -> None:
    """Every pooled connection is dead, and the scripts and the data are gone: one own retry is enough."""
    facts = await synced(direct, capacity=50)
    await asyncio.gather(*(direct.take(facts, uuid4(), 1, TTL) for _ in range(10)))
    for _ in range(3):
        server.kill()
        server.start()
        assert await direct.take(facts, uuid4(), 1, TTL) == "missing"
        await direct.sync([counts_of(facts)])
        assert isinstance(await direct.take(facts, uuid4(), 1, TTL), Taken)
    assert direct.breaker.failures == 0


async def test_after_a_restart_a_crowd_of_calls_works(direct: Holds, server: RedisServer) -> None:
    facts = await synced(direct, capacity=50)
    await asyncio.gather(*(direct.take(facts, uuid4(), 1, TTL) for _ in range(20)))
    server.kill()
    server.start()
    answers = await asyncio.gather(*(direct.take(facts, uuid4(), 1, TTL) for _ in range(20)), return_exceptions=True)
    assert answers == ["missing"] * 20


async def test_an_open_breaker_lets_only_repairs_through(holds: Holds, proxy: FaultProxy) -> None:
    facts = await synced(holds)
    for _ in range(FAILURES_TO_OPEN):
        holds.breaker.failed()
    assert holds.breaker.open_since is not None
    assert await holds.pipelines.probe() is True

    async def customer() -> str:
        return await away(holds.take(facts, uuid4(), 1, TTL))

    with past_the_breaker():
        await holds.sync([counts_of(facts, booked=1, version=2)])
        # Another request's task, started before or beside the repair, is not part of it.
    assert await asyncio.create_task(customer()) == "the breaker is open"
    assert holds.breaker.is_open
    holds.breaker.close()
    assert isinstance(await holds.take(facts, uuid4(), 2, TTL), Taken)
    assert not holds.breaker.opened.is_set()


async def test_a_breaker_opens_once_however_many_fail_at_once(holds: Holds, server: RedisServer) -> None:
    facts = await synced(holds)
    server.pause()
    await asyncio.gather(*(holds.take(facts, uuid4(), 1, TTL) for _ in range(12)), return_exceptions=True)
    opened = holds.breaker.open_since
    assert opened is not None
    await away(holds.take(facts, uuid4(), 1, TTL))
    assert holds.breaker.open_since == opened
    server.resume()


async def test_a_probe_does_not_wait_for_a_paused_redis(holds: Holds, server: RedisServer) -> None:
    server.pause()
    assert await holds.pipelines.probe() is False
    server.resume()
    assert await holds.pipelines.probe() is True
    assert holds.breaker.failures == 0  # it asks for itself


async def test_cancelling_a_caller_leaves_the_connections_usable(holds: Holds, proxy: FaultProxy) -> None:
    """A client that hangs up in the middle of a call."""
    facts = await synced(holds, capacity=9)
    for _ in range(2 * MAX_CONNECTIONS):
        caller = asyncio.create_task(holds.take(facts, uuid4(), 20, TTL))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    refused = await holds.take(facts, uuid4(), 20, TTL)
    assert isinstance(refused, Full)
    assert refused.capacity == 9
    assert holds.breaker.failures == 0


async def test_one_slots_broken_keys_hold_up_no_others_release(direct: Holds) -> None:
    mirror = Mirror(direct, Ledger("postgresql://unused"))
    broken, facts = await synced(direct), await synced(direct, capacity=3)
    hold_id = uuid4()
    assert isinstance(await direct.take(facts, hold_id, 1, TTL), Taken)
    await direct.client.delete(slot_keys(broken.resource_id, broken.id)["mirror"])
    await direct.client.set(slot_keys(broken.resource_id, broken.id)["holds"], "no sorted set")
    mirror.give_back_later(broken, uuid4(), has_token=True)
    mirror.give_back_later(facts, hold_id, has_token=True)
    await mirror.release_unheard()
    assert mirror.unheard == {}
    assert (await direct.rooms([(facts.resource_id, facts.id)]))[facts.id] == (Room(3, 0, 0, open=True), 1)
    assert not direct.breaker.is_open


async def test_work_in_bulk_does_not_stand_in_the_customers_way(direct: Holds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd's bound is for the crowd: what recovery or a list sends neither fills the queue nor is turned away."""
    monkeypatch.setattr(pipelines, "MAX_WAITING", 5)
    facts = await synced(direct, capacity=50)
    slots = [counts_of(some_facts()) for _ in range(300)]
    bulk = asyncio.create_task(direct.sync(slots))
    listed = asyncio.create_task(direct.inspect([(counts.resource_id, counts.slot_id) for counts in slots]))
    await asyncio.sleep(0)
    answers = await asyncio.gather(*(direct.take(facts, uuid4(), 1, TTL) for _ in range(5)))
    assert {type(answer) for answer in answers} == {Taken}
    await bulk
    assert len(await listed) == 300


# -- fakeredis, where an outage is a flag -----------------------------------------------------------------------------


async def test_an_outage_of_fakeredis_is_one_of_ours_too() -> None:
    """What other tests rely on when they take Redis away."""
    server = fakeredis.FakeServer()
    client = fakeredis.FakeAsyncRedis(server=server, decode_responses=True)
    holds = Holds(client)
    facts = await synced(holds)
    server.connected = False
    for _ in range(FAILURES_TO_OPEN):
        await away(holds.take(facts, uuid4(), 1, TTL))
    assert holds.breaker.is_open
    server.connected = True
    assert await holds.pipelines.probe() is True
    await client.aclose()


# -- a cluster --------------------------------------------------------------------------------------------------------


async def test_a_cluster_that_loses_a_shard_serves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_cluster(bundled_redis()) as nodes:
        for node in nodes:
            with node.admin() as admin:
                admin.config_set("cluster-require-full-coverage", "no")
        async with holds_at(f"redis+cluster://127.0.0.1:{nodes[0].port}") as holds:
            monkeypatch.setattr(pipelines, "WAIT_SLICES", 400)
            slots = [some_facts() for _ in range(12)]
            await holds.sync([counts_of(facts) for facts in slots])
            monkeypatch.undo()
            nodes[2].pause()
            answers = await asyncio.gather(
                *(_outcome(holds, facts) for facts in slots),
            )
            nodes[2].resume()
        lost = {UUID(answer) for answer in answers if answer}
        assert 0 < len(lost) < len(slots)


async def _outcome(holds: Holds, facts: SlotFacts) -> str | None:
    """The slot's id when Redis was away for it. The breaker is per process: here each call is seen by itself."""
    holds.breaker.succeeded()
    try:
        assert isinstance(await holds.take(facts, uuid4(), 1, TTL), Taken)
    except RedisAway:
        return str(facts.id)
    return None
