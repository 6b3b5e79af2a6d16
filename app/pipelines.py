"""The way to Redis: scripts gathered into pipelines, every wait bounded, the breaker told what failed.

Every script may run twice (a lost reply is asked again). Whatever is wrong with Redis arrives as `RedisAway`, in at
most about 150 ms of a responsive event loop from when it was sent, and at once while the breaker is open. What is asked
meanwhile waits for one such pipeline at most: what it fails for all on board opens the breaker, unless they were fewer
than three. Of the scripts it knows which may wait, are large or only read; what keys, arguments and replies mean, it
must not know.
"""

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import hiredis
import msgspec
import redis.asyncio as aioredis
import structlog
from redis import exceptions as redis_errors
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.breaker import Breaker, BrokenKeys, RedisAway, repairing
from app.coalesce import Coalescer
from app.paths import lua_dir
from app.telemetry import GATHERED

log = structlog.get_logger()
T = TypeVar("T")
Reply = list[Any]
Client = aioredis.Redis | RedisCluster

#: A call is given up after this many slices of waiting. Slices, because a process that was busy for 200 ms finds its
#: timers due before it has looked at its sockets: it must not take its own lag for a dead Redis (design 5).
WAIT_SLICES = 6
WAIT_SLICE_SECONDS = 0.025
#: Scripts that also a Redis runs which takes no writes.
READING_SCRIPTS = frozenset({"room", "clash", "inspect"})
#: Connections per process. More would only make Redis, which has one core, take turns more often.
MAX_CONNECTIONS = 16
#: Scripts of one pipeline: a fraction of a second of Redis at the very worst, and most of what gathering can save.
MOST_TOGETHER = 200
#: More scripts than this of one caller are work in bulk, sent in pipelines of so many, beside those of the customers.
FEW, BULK = 10, 100
#: … and so is a script that tells all there is of a slot.
LARGE_SCRIPTS = frozenset({"inspect"})
#: Requests that may wait for the next pipeline, and for how long: beyond it they are told to come back.
MAX_WAITING = 2_000
MAX_WAITING_SECONDS = 2.0
#: Scripts that give places back or tell what was committed: they wait as long as it takes, for nobody would ask again.
PATIENT_SCRIPTS = frozenset({"release", "settle", "sync"})

#: What a Redis says that is there but does not serve (reliability.md 4.1). Anything else is a bug worth a look.
_NOT_SERVING = (
    "READONLY", "NOREPLICAS", "OOM", "MISCONF", "BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOAUTH",
    "NOPERM", "WRONGPASS", "UNBLOCKED",
)  # fmt: skip

#: RedisClusterException is no RedisError.
AWAY = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError, TimeoutError)
_NOT_SERVING_ERRORS = (redis_errors.ReadOnlyError, redis_errors.OutOfMemoryError, redis_errors.NoPermissionError)


class NotTogether(Exception):
    """A pipeline that was not sent because of what is in it."""


class Script(msgspec.Struct, frozen=True):
    text: str
    sha: str


class Call(msgspec.Struct, frozen=True):
    """One script call, ready to be sent alone or with others."""

    script: str
    keys: tuple[str, ...]
    args: tuple[str | int, ...]


def read_scripts() -> dict[str, Script]:
    texts = {path.stem: path.read_text() for path in lua_dir().glob("*.lua")}
    return {
        name: Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
        for name, text in texts.items()
    }


def connect(url: str) -> Client:
    """Make a client without connecting. `redis+cluster://` and `rediss+cluster://` address a Redis Cluster.

    No retries: redis-py's default of ten would run a script eleven times (reliability.md, finding 1). Its own timeout
    is only the backstop of ours. Two connections are spare: the probe takes no turn.
    """
    limits: dict[str, Any] = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
    if "+cluster://" in url:
        return RedisCluster.from_url(
            url.replace("+cluster", "", 1), max_connections=MAX_CONNECTIONS + 2, decode_responses=True, **limits
        )
    pool = aioredis.BlockingConnectionPool.from_url(
        url, max_connections=MAX_CONNECTIONS + 2, timeout=1, decode_responses=True, **limits
    )
    return aioredis.Redis.from_pool(pool)


class Pipelines:
    """The one way of this process to Redis. `note` is told of every script that ran, and of its reply."""

    def __init__(self, client: Client, note: Callable[[Call, Reply], None]) -> None:
        self.client = client
        # Asked once: this class is slow to tell what is one of it.
        self._cluster = client if isinstance(client, RedisCluster) else None
        self.breaker = Breaker()
        self.scripts = read_scripts()
        self._note = note
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._lanes: dict[str, Coalescer[Call, Reply]] = {}

    async def run(self, call: Call) -> Reply:
        """Run one script, in one pipeline with all that are asked of its server meanwhile.

        Raises:
            RedisAway: also when only this slot's keys are broken.
            Overloaded: too many are waiting, or this one has waited too long. Nothing was sent.
        """
        self.breaker.refuse_while_open()
        if repairing.get():  # a lane is nobody's, and would find the breaker open
            [reply] = await self._directly([call])
            if isinstance(reply, Exception):
                raise reply
            return reply
        return await self._lane(call).ask(call, patient=call.script in PATIENT_SCRIPTS)

    async def run_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Run scripts: a few together with those of all requests, many or large ones in pipelines of their own.

        A slot whose keys are broken answers with an empty reply, and is logged: the others are served all the same.

        Raises:
            RedisAway, Overloaded
        """
        self.breaker.refuse_while_open()
        replies: list[Reply | BaseException] = []
        if len(calls) > FEW or repairing.get() or any(call.script in LARGE_SCRIPTS for call in calls):
            # Not in the lane of the customers, who would wait behind all of it, or be turned away for it.
            for start in range(0, len(calls), BULK):
                replies += await self._directly(calls[start : start + BULK])
        else:
            replies += await asyncio.gather(*map(self.run, calls), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, BrokenKeys):
                raise reply
        return [[] if isinstance(reply, BaseException) else reply for reply in replies]

    async def later(self, call: Call) -> None:
        """Have a script run without waiting for it, unless very many are waiting already."""
        if self.breaker.is_open:
            return
        lane = self._lane(call)
        done = lane.post(call)
        done.add_done_callback(_consume)
        if lane.waiting > MAX_WAITING:
            await asyncio.wait([done])

    async def drain(self) -> None:
        """Wait until everything that was asked of Redis is answered."""
        for lane in list(self._lanes.values()):
            await lane.drain()

    async def _directly(self, calls: Sequence[Call]) -> list[Reply | Exception]:
        try:
            return await self._together(calls, as_one=True)
        except NotTogether as error:
            raise RedisAway(str(error)) from error

    def _lane(self, call: Call) -> Coalescer[Call, Reply]:
        """Choose the lane of a call: one for each server, so that a dead shard of a cluster holds up its own only."""
        server = ""
        if self._cluster is not None:
            # Before the first answer of a cluster, or while nobody serves a slot, there is no server to name.
            with contextlib.suppress(*AWAY):
                node = self._cluster.get_node_from_key(call.keys[0])
                server = str(node.name) if node else ""
        lane = self._lanes.get(server)
        if lane is None:
            lane = self._lanes[server] = Coalescer(
                self._together,
                self._not_together,
                most_together=MOST_TOGETHER,
                most_waiting=MAX_WAITING,
                longest_wait_seconds=MAX_WAITING_SECONDS,
                observe_size=GATHERED.labels("redis").observe,
            )
        return lane

    async def _together(self, calls: Sequence[Call], *, as_one: bool = False) -> list[Reply | Exception]:
        """Send one pipeline; a Redis that lost its scripts is given them again, per reply.

        Raises:
            RedisAway: it did not answer. That counts as a failure of each: so many were let down by one server. Of a
                shard, or of work in bulk (`as_one`), it counts once: it says little about what the others get.
        """
        times = 1 if as_one or self._cluster is not None else len(calls)
        replies = await self.guarded(partial(self._pipelined, calls), times=times)
        if lost := [n for n, reply in enumerate(replies) if isinstance(reply, redis_errors.NoScriptError)]:
            whole = [calls[n] for n in lost]
            again = await self.guarded(partial(self._pipelined, whole, with_text=True), times=times)
            for n, reply in zip(lost, again, strict=True):
                replies[n] = reply
        failed, wrote = 0, False
        for n, (call, reply) in enumerate(zip(calls, replies, strict=True)):
            if not isinstance(reply, Exception):
                wrote = wrote or call.script not in READING_SCRIPTS
                self._note(call, reply)
            elif _is_bug(reply):
                # One slot's keys are broken: Postgres answers for it, the others go on, but a person must look.
                log.error("redis_error", error=str(reply), script=call.script, key=call.keys[0])
                replies[n] = BrokenKeys(str(reply)).with_cause(reply)
            else:
                failed += 1
                replies[n] = RedisAway(str(reply)).with_cause(reply)
        if failed:
            self.breaker.failed(times=failed)
        elif wrote:  # reading is no success: a read-only Redis does that as well
            self.breaker.succeeded()
        return replies

    async def _not_together(self, call: Call, error: Exception) -> Reply:
        """Answer one of a pipeline that failed: when Redis was away it is for all, else the call is sent alone."""
        if isinstance(error, RedisAway):
            raise type(error)(str(error)) from error
        script = self.scripts[call.script]
        reply: Reply = await self.guarded(lambda: self.client.eval(script.text, len(call.keys), *call.keys, *call.args))
        self._note(call, reply)
        return reply

    async def _pipelined(self, calls: Sequence[Call], *, with_text: bool = False) -> list[Any]:
        commands = [self._command(call, with_text=with_text) for call in calls]
        if self._cluster is not None:
            pipe = self._cluster.pipeline(transaction=False)  # each script is atomic by itself, on whatever shard
            for command in commands:
                pipe.execute_command(*command)
            try:
                return await pipe.execute(raise_on_error=False)
            except redis_errors.RedisClusterException as error:  # refused by the client: one may have spoilt it for all
                raise NotTogether from error
        pool: aioredis.ConnectionPool = self.client.connection_pool  # type: ignore[union-attr]
        return await _sent(pool, commands)

    def _command(self, call: Call, *, with_text: bool) -> tuple[Any, ...]:
        script = self.scripts[call.script]
        command, program = ("EVAL", script.text) if with_text else ("EVALSHA", script.sha)
        return (command, program, len(call.keys), *call.keys, *call.args)

    async def guarded(self, operation: Callable[[], Awaitable[T]], *, times: int = 1) -> T:
        """Run one operation behind the breaker, bounded, on one of a bounded number of connections."""
        self.breaker.refuse_while_open()
        async with self._turns:
            self.breaker.refuse_while_open()  # it may have opened while we waited
            try:
                return await self._asked_twice(operation)
            except AWAY as error:
                self.breaker.failed(times=times)
                raise RedisAway(str(error) or type(error).__name__) from error

    async def _asked_twice(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Ask a second time when a connection was dead: after a restart all pooled ones are."""
        try:
            return await bounded(operation())
        except redis_errors.ConnectionError as error:
            if isinstance(error, redis_errors.BusyLoadingError | redis_errors.AuthenticationError):
                raise
            await self._drop_idle_connections()
            return await bounded(operation())

    async def _drop_idle_connections(self) -> None:
        """After a restart every pooled connection is dead: a retry must not draw the next dead one."""
        if isinstance(self.client, aioredis.Redis):
            await self.client.connection_pool.disconnect(inuse_connections=False)

    async def probe(self) -> bool:
        """Ask for a write, past the breaker: a read-only or full Redis answers PING, but cannot hold."""
        try:
            await bounded(self.client.set("hf:probe", "1", px=1000))
        except AWAY:
            with contextlib.suppress(Exception):
                await self._drop_idle_connections()
            return False
        return True

    async def evicts(self) -> bool:
        """Tell whether this Redis may delete holds to make room (reliability.md, finding 8)."""
        with contextlib.suppress(*AWAY):
            policy = await bounded(self.client.config_get("maxmemory-policy"))
            return bool(policy.get("maxmemory-policy", "noeviction") != "noeviction")
        return False  # hosted Redis often forbids CONFIG: nothing was learned


async def bounded(awaitable: Awaitable[T]) -> T:
    """Wait for at most about 150 ms during which this process was able to look at its sockets.

    Raises:
        TimeoutError: no answer. The operation was given up, its connection with it; it may still take effect.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        for _ in range(WAIT_SLICES):
            done, _pending = await asyncio.wait({task}, timeout=WAIT_SLICE_SECONDS)
            if done:
                return task.result()
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_consume)
    raise TimeoutError("no answer from Redis")


async def _sent(pool: aioredis.ConnectionPool, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands over one connection and read as many replies: what redis-py's pipeline does, but packed by hiredis,
    and without a timer for every reply (`bounded` has one for all).
    """
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_packed_command(b"".join(map(hiredis.pack_command, commands)), check_health=False)
        return [await _reply(connection) for _ in commands]
    except BaseException:
        await connection.disconnect(nowait=True)  # or the next would read these replies as its own
        raise
    finally:
        await pool.release(connection)


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response(timeout=math.inf)
    except redis_errors.ResponseError as error:  # of this command; what is wrong with the connection is no such error
        return error


def _is_bug(error: BaseException) -> bool:
    """Tell a script that failed from a Redis that does not serve. In a script its word is not the first:
    "Error running script …: -READONLY You can't write against a read only replica".
    """
    if not isinstance(error, redis_errors.ResponseError) or isinstance(error, _NOT_SERVING_ERRORS):
        return False
    return not any(word in str(error) for word in _NOT_SERVING)


def _consume(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
