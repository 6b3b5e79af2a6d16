"""Redis: the holds, and the mirror of the slots' counts. Layer 1 (CARD-3): early rejection, never the truth.

One function per script of `lua/`. Every script may run twice (a lost reply is asked again) and every caller must be
able to go on without it: whatever is wrong with Redis arrives as `RedisAway`, in at most about 150 ms of a responsive
event loop from when it was sent, and at once while the breaker is open. What is asked meanwhile waits for one such
pipeline at most: what it fails for all on board opens the breaker, unless they were fewer than three. Knows nothing of
Postgres.
"""

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from itertools import chain
from operator import itemgetter
from typing import Any, Literal, TypeVar
from uuid import UUID

import hiredis
import msgspec
import redis.asyncio as aioredis
import structlog
from msgspec import UNSET
from redis import exceptions as redis_errors
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.coalesce import Coalescer
from app.domain import Counts, Room, Slot, SlotFacts
from app.paths import lua_dir
from app.telemetry import DEGRADED, GATHERED
from app.tokens import from_ms

log = structlog.get_logger()
T = TypeVar("T")
Reply = list[Any]
Client = aioredis.Redis | RedisCluster

#: A call is given up after this many slices of waiting. Slices, because a process that was busy for 200 ms finds its
#: timers due before it has looked at its sockets: it must not take its own lag for a dead Redis (design 5).
WAIT_SLICES = 6
WAIT_SLICE_SECONDS = 0.025
#: Failures in a row that open the breaker: one may be a connection that a restart broke.
FAILURES_TO_OPEN = 3
#: How often an open breaker asks whether Redis takes writes again.
PROBE_SECONDS = 0.25
#: A "full" of counts older than this is verified in Postgres first: what a lost update can cost (reliability.md T-13).
FRESH_SECONDS = 5
#: How long a retry of a booking finds its record although the slot is full.
SETTLED_SECONDS = 86_400
#: What scripts say that changed what a slot shows: such slots are told of, see `feed`.
TOUCHING: Mapping[str, frozenset[str]] = {
    "hold": frozenset({"held"}),
    "release": frozenset({"released"}),
    "settle": frozenset({"settled", "older"}),  # of older counts: the hold has ended all the same
    "sync": frozenset({"synced"}),
}
#: Holds of one slot that are told to operators.
MOST_HOLDS = 1_000
#: Scripts that also a Redis runs which takes no writes.
READING_SCRIPTS = frozenset({"room", "clash", "inspect"})
#: Counts are forgotten this long after their slot has ended.
FORGET_AFTER = timedelta(days=1)
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
_AWAY = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError, TimeoutError)
_NOT_SERVING_ERRORS = (redis_errors.ReadOnlyError, redis_errors.OutOfMemoryError, redis_errors.NoPermissionError)

#: The keys that each script is given, in its order (its head says what they hold).
_KEYS_OF: Mapping[str, Callable[[Mapping[str, str]], tuple[str, ...]]] = {
    "hold": itemgetter("mirror", "holds", "parties", "settled", "active"),
    "extend": itemgetter("holds", "parties", "settled", "active"),
    "release": itemgetter("mirror", "holds", "parties", "settled"),
    "settle": itemgetter("mirror", "holds", "parties", "settled"),
    "sync": itemgetter("mirror", "holds", "parties"),
    "room": itemgetter("mirror", "holds", "parties"),
    "inspect": itemgetter("mirror", "holds", "parties", "doing"),
}
#: … and where the slot is a person's or a place's: with what is known of the others of theirs.
_KEYS_OF_BUSY: Mapping[str, Callable[[Mapping[str, str]], tuple[str, ...]]] = {
    "hold": itemgetter("mirror", "holds", "parties", "settled", "active", "busy", "doing"),
    "extend": itemgetter("holds", "parties", "settled", "active", "doing"),
    "release": itemgetter("mirror", "holds", "parties", "settled", "doing"),
    "settle": itemgetter("mirror", "holds", "parties", "settled", "busy", "doing"),
    "sync": itemgetter("mirror", "holds", "parties", "busy", "doing"),
    "clash": itemgetter("busy", "doing"),
}

_repairing: ContextVar[bool] = ContextVar("repairing", default=False)


class RedisAway(Exception):
    """Redis did not answer, or cannot do its work. The script may have run."""

    def with_cause(self, error: Exception) -> "RedisAway":
        self.__cause__ = error  # as `raise … from` does, for one that is handed over and not raised here
        return self


class NotAsked(RedisAway):
    """The breaker is open: nothing was sent, so no script can have run."""


class NotTogether(Exception):
    """A pipeline that was not sent because of what is in it."""


class BrokenKeys(RedisAway):
    """The keys of this one slot are no longer what the scripts made them; Redis serves the others."""


class Taken(msgspec.Struct, frozen=True):
    """The hold is there, by this call or (`again`) by an earlier one with the same id."""

    now_ms: int
    expires_at_ms: int
    since_ms: int
    again: bool


class Full(msgspec.Struct, frozen=True):
    """No room for the party; `next_expiry_ms` is when the next hold may lapse, 0 when there is none.

    `unsure`: the mirror learned of some bookings by a sync. A keyed retry of one of those must be looked up first.
    """

    now_ms: int
    left: int
    held: int
    booked: int
    next_expiry_ms: int
    capacity: int
    unsure: bool = False


class Occupied(msgspec.Struct, frozen=True):
    """The person or place does something else meanwhile; `lapses_ms` is when the last hold in the way may lapse, 0 when
    it is booked. `unsure` as in `Full`.
    """

    now_ms: int
    lapses_ms: int
    unsure: bool = False


class Doubtful(msgspec.Struct, frozen=True):
    """These other slots would be in the way, but were last known to be booked too long ago: look them up."""

    slot_ids: list[UUID]


class Extended(msgspec.Struct, frozen=True):
    """A hold that lives on. `limited`: it was as long as allowed before, and did not move."""

    now_ms: int
    expires_at_ms: int
    since_ms: int
    quantity: int
    limited: bool


class InTheWay(msgspec.Struct, frozen=True):
    """What a client holds already, and when the first of it ends by itself; None: it holds nothing."""

    held: int
    next_end: datetime | None
    ids: list[UUID]


class Gone(msgspec.Struct, frozen=True):
    """No such live hold. `settled`: it was booked; `gone`: it lapsed, or this Redis never knew it."""

    now_ms: int
    how: Literal["settled", "released", "gone"]


class HeldPlace(msgspec.Struct, frozen=True):
    """One live hold, as operators see it."""

    id: UUID
    slot_id: UUID
    quantity: int
    since: datetime
    expires_at: datetime
    now: datetime


class Mirrored(msgspec.Struct, frozen=True):
    """One slot as Redis knows it; `room` is None when the mirror does not know its counts."""

    room: Room | None
    version: int
    holds: list[HeldPlace]
    #: What the other slots of its person or place see of it: 0 nothing, 1 held, 2 booked.
    occupied: int = 0


class Breaker:
    """Counts failures in a row; while open, nobody waits for Redis and a probe of our own asks for it."""

    def __init__(self) -> None:
        self.failures = 0
        self.open_since: datetime | None = None
        self.opened = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self.open_since is not None

    def failed(self, times: int = 1) -> None:
        self.failures += times
        if self.failures >= FAILURES_TO_OPEN and not self.is_open:
            self.open_since = datetime.now(UTC)
            self.opened.set()
            DEGRADED.set(1)
            log.warning("redis_away", failures=self.failures)

    def succeeded(self) -> None:
        self.failures = 0

    def close(self) -> None:
        self.failures, self.open_since = 0, None
        self.opened.clear()
        DEGRADED.set(0)
        log.info("redis_back")


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


@lru_cache(maxsize=4_096)  # the slots that are wanted now: writing a UUID out costs more than looking it up
def slot_keys(resource_id: UUID, slot_id: UUID) -> Mapping[str, str]:
    """Name every key of a slot. One hash tag per resource: a script's keys lie on one shard (libraries.md 4)."""
    slot = f"hf:{{{resource_id}}}:{slot_id}"
    return {
        "mirror": f"{slot}:mirror",
        "holds": f"{slot}:holds",
        "parties": f"{slot}:parties",
        "settled": f"{slot}:settled",
        "active": f"hf:{{{resource_id}}}:active",
        "busy": f"hf:{{{resource_id}}}:busy",
        "doing": f"hf:{{{resource_id}}}:doing",
    }


class Holds:
    """The scripts as functions. Every one raises `RedisAway` when Redis does not serve."""

    def __init__(self, client: Client) -> None:
        self.client = client
        # Asked once: this class is slow to tell what is one of it.
        self._cluster = client if isinstance(client, RedisCluster) else None
        self.breaker = Breaker()
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._scripts = read_scripts()
        self._lanes: dict[str, Coalescer[Call, Reply]] = {}
        #: Slots that show something else since `feed` told of them: "<resource id>}:<slot id>", the oldest first.
        self.touched: dict[str, None] = {}
        self.some_touched = asyncio.Event()

    # -- one function per script ------------------------------------------------------------------------------------

    async def take(
        self, facts: SlotFacts, hold_id: UUID, quantity: int, ttl_ms: int, *, leaving: UUID | None = None
    ) -> Taken | Full | Occupied | Doubtful | str:
        """Hold places, or learn why not: `Full`, `Occupied`, `Doubtful`, or one of the words
        settled, mismatch, closed, past, missing, stale (`lua/hold.lua` says when). What the person or place does in the
        slot `leaving`, which is given up for this one, is not in the way.
        """
        more = () if facts.occupied_until is None else (to_ms(facts.occupied_until), str(leaving or ""))
        reply = await self.run(
            self._call(
                "hold", facts,
                str(hold_id), quantity, ttl_ms, str(facts.id), FRESH_SECONDS * 1000, *more,
            )
        )  # fmt: skip
        match reply:
            case ["held" | "again" as word, now, expires, since, _]:
                return Taken(now, expires, since, again=word == "again")
            case ["full", now, left, held, booked, next_expiry, capacity, unsure]:
                return Full(now, left, held, booked, next_expiry, capacity, bool(unsure))
            case ["occupied", now, lapses, unsure]:
                return Occupied(now, lapses, bool(unsure))
            case ["stale", *slot_ids] if slot_ids:
                return Doubtful([UUID(slot_id) for slot_id in slot_ids])
            case ["settled" | "mismatch" | "closed" | "past" | "missing" | "stale" as word]:
                return str(word)
        raise AssertionError(f"hold.lua said {reply!r}")

    async def extend(self, facts: SlotFacts, hold_id: UUID, ttl_ms: int, longest_ms: int) -> Extended | Gone:
        """Prolong a live hold to `ttl_ms` from now, at most `longest_ms` after it was taken (0: any)."""
        reply = await self.run(
            self._call(
                "extend", facts,
                str(hold_id), ttl_ms, longest_ms, str(facts.id),
            )
        )  # fmt: skip
        match reply:
            case ["extended" | "limit" as word, now, expires, since, quantity]:
                return Extended(now, expires, since, quantity, limited=word == "limit")
            case ["settled" | "released" | "gone" as word, now]:
                return Gone(now, word)
        raise AssertionError(f"extend.lua said {reply!r}")

    async def release(self, facts: SlotFacts, hold_id: UUID, *, has_token: bool) -> bool:
        """Give a hold up; False when it was gone. With a token it is remembered as released until it would lapse."""
        slot_id = () if facts.occupied_until is None else (str(facts.id),)
        reply = await self.run(self._call("release", facts, str(hold_id), int(has_token), *slot_id))
        return bool(reply[0] == "released")

    async def settle(self, counts: Counts, hold_id: UUID, *, remember: bool) -> None:
        """End a hold whose booking was committed, and apply the commit's counts."""
        await self.run(self.settle_call(counts, hold_id, remember=remember))

    async def settle_later(self, counts: Counts, hold_id: UUID, *, remember: bool) -> None:
        """Settle without waiting for it, unless very many are waiting already. A Redis that is away is told when it
        returns (`mirror.recover`).
        """
        await self._later(self.settle_call(counts, hold_id, remember=remember))

    async def sync_first(self, counts: Counts) -> None:
        """Have the mirror know a slot before whatever this process asks of it next, without waiting: calls of one slot
        go in the order in which they were made.
        """
        await self._later(self.sync_call(counts))

    async def _later(self, call: Call) -> None:
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

    async def sync(self, counts: Sequence[Counts], *, repair: bool = False) -> None:
        """Bring the mirror of these slots to what Postgres said; newer wins, unless it is a repair."""
        await self.run_many([self.sync_call(c, repair=repair) for c in counts])

    async def rooms(self, slots: Sequence[tuple[UUID, UUID]]) -> dict[UUID, tuple[Room, int] | None]:
        """Tell the counts and versions of slots given as (resource id, slot id); None: not in the mirror."""
        by_resource: dict[UUID, list[UUID]] = {}
        for resource_id, slot_id in slots:
            by_resource.setdefault(resource_id, []).append(slot_id)
        replies = await self.run_many([_room_call(resource, ids) for resource, ids in by_resource.items()])
        return {
            slot_id: _room(row)
            for ids, reply in zip(by_resource.values(), replies, strict=True)
            for slot_id, row in zip(ids, reply[1:] or [[]] * len(ids), strict=True)
        }

    async def clashes(self, slots: Sequence[Slot]) -> dict[UUID, Literal["held", "booked"]]:
        """Tell which of these slots of persons and places another one is in the way of, and why. Events never are."""
        by_resource: dict[UUID, list[Slot]] = {}
        for slot in slots:
            if slot.occupied_until is not None:
                by_resource.setdefault(slot.resource_id, []).append(slot)
        replies = await self.run_many([_clash_call(resource, those) for resource, those in by_resource.items()])
        return {
            slot.id: "held" if clash == 1 else "booked"
            for those, reply in zip(by_resource.values(), replies, strict=True)
            for slot, clash in zip(those, reply[1:] or [0] * len(those), strict=True)
            if clash
        }

    async def inspect(self, slots: Sequence[tuple[UUID, UUID]], most: int = MOST_HOLDS) -> list[Mirrored]:
        """Tell all that Redis knows of slots given as (resource id, slot id), at most `most` holds of each."""
        calls = [
            Call("inspect", _KEYS_OF["inspect"](slot_keys(resource_id, slot_id)), (most, str(slot_id)))
            for resource_id, slot_id in slots
        ]
        replies = await self.run_many(calls)
        return [_mirrored(slot_id, reply) for (_, slot_id), reply in zip(slots, replies, strict=True)]

    async def active_slots(self, resource_ids: Sequence[UUID]) -> list[tuple[UUID, UUID]]:
        """List the slots of these resources that may have live holds, as (resource id, slot id)."""
        # A minute of slack: the scores are of Redis' clock, and a lapsed slot shows no holds anyway.
        earliest = int(datetime.now(UTC).timestamp() * 1000) - 60_000
        found: list[tuple[UUID, UUID]] = []
        for resource_id in resource_ids:
            key = f"hf:{{{resource_id}}}:active"
            await self._guarded(partial(self.client.zremrangebyscore, key, "-inf", earliest))
            members: Any = await self._guarded(partial(self.client.zrange, key, 0, -1))
            found += [(resource_id, UUID(member)) for member in members]
        return found

    # -- keys of holds' requests ------------------------------------------------------------------------------------

    async def claim_key(self, hold_id: UUID, fingerprint: str) -> bool:
        """Bind a keyed hold's id to what was asked; False when another request used the key (422)."""
        key = f"hf:{{{hold_id}}}:asked"
        await self._guarded(lambda: self.client.set(key, fingerprint, nx=True, ex=SETTLED_SECONDS))
        return bool(await self._guarded(lambda: self.client.get(key)) == fingerprint)

    # -- clients ----------------------------------------------------------------------------------------------------

    async def allow(self, limit: str, client: str, interval: float, most: int, requests: int) -> float:
        """Let a client's request pass, `most` at once and one every `interval` seconds; returns how long it must wait
        instead, 0 when it need not. -1 request gives one back.
        """
        call = Call("allow", (f"hf:{{{client}}}:{limit}",), (round(interval * 1e6), most, requests))
        match await self.run(call):
            case ["allowed", _]:
                return 0.0
            case ["wait", wait]:
                return float(wait) / 1e6
            case reply:
                raise AssertionError(f"allow.lua said {reply!r}")

    async def claim(self, client: str, hold_id: UUID, places: int, most: int, ttl_ms: int) -> bool | InTheWay:
        """Count places as held by a client; False when this hold's were counted before."""
        match await self.run(Call("claim", (f"hf:{{{client}}}:claims",), (str(hold_id), places, most, ttl_ms))):
            case ["claimed", new]:
                return bool(new)
            case ["limit", held, next_end, *ids]:
                return InTheWay(held, from_ms(next_end) if next_end else None, [UUID(each) for each in ids])
            case reply:
                raise AssertionError(f"claim.lua said {reply!r}")

    async def drop_claim(self, client: str, hold_id: UUID) -> None:
        """Count a hold's places no longer."""
        await self.run(Call("claim", (f"hf:{{{client}}}:claims",), (str(hold_id), 0, 0, 0)))

    # -- calls, also for `run_many` ---------------------------------------------------------------------------------

    def settle_call(self, counts: Counts, hold_id: UUID, *, remember: bool) -> Call:
        keys, whose = _whose("settle", counts)
        args = (str(hold_id), SETTLED_SECONDS * 1000 if remember else 0, *_count_args(counts), *whose)
        return Call("settle", keys, args)

    def sync_call(self, counts: Counts, *, repair: bool = False) -> Call:
        keys, whose = _whose("sync", counts)
        return Call("sync", keys, (*_count_args(counts), int(repair), *whose))

    def _call(self, script: str, facts: SlotFacts, *args: str | int) -> Call:
        keys_of = _KEYS_OF if facts.occupied_until is None else _KEYS_OF_BUSY
        return Call(script, keys_of[script](slot_keys(facts.resource_id, facts.id)), args)

    # -- the one way to Redis ---------------------------------------------------------------------------------------

    async def run(self, call: Call) -> Reply:
        """Run one script, in one pipeline with all that are asked of its server meanwhile.

        Raises:
            RedisAway: also when only this slot's keys are broken.
            Overloaded: too many are waiting, or this one has waited too long. Nothing was sent.
        """
        self._refuse_while_open()
        if _repairing.get():  # a lane is nobody's, and would find the breaker open
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
        self._refuse_while_open()
        replies: list[Reply | BaseException] = []
        if len(calls) > FEW or _repairing.get() or any(call.script in LARGE_SCRIPTS for call in calls):
            # Not in the lane of the customers, who would wait behind all of it, or be turned away for it.
            for start in range(0, len(calls), BULK):
                replies += await self._directly(calls[start : start + BULK])
        else:
            replies += await asyncio.gather(*map(self.run, calls), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, BrokenKeys):
                raise reply
        return [[] if isinstance(reply, BaseException) else reply for reply in replies]

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
            with contextlib.suppress(*_AWAY):
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
        replies = await self._guarded(partial(self._pipelined, calls), times=times)
        if lost := [n for n, reply in enumerate(replies) if isinstance(reply, redis_errors.NoScriptError)]:
            whole = [calls[n] for n in lost]
            again = await self._guarded(partial(self._pipelined, whole, with_text=True), times=times)
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
        script = self._scripts[call.script]
        reply: Reply = await self._guarded(
            lambda: self.client.eval(script.text, len(call.keys), *call.keys, *call.args)
        )
        self._note(call, reply)
        return reply

    def _note(self, call: Call, reply: Reply) -> None:
        """Remember a slot that the call has changed. Every change of a hold or of counts comes by here, whoever made
        it, and this is all that live updates cost it: a look-up, and a place in a dict for the first of many.
        """
        if call.script in TOUCHING and reply[0] in TOUCHING[call.script]:
            self.touched[call.keys[0][4:78]] = None  # of hf:{<resource id>}:<slot id>:…
            self.some_touched.set()

    def note_new(self, slots: Iterable[tuple[UUID, UUID]]) -> None:
        """Have live updates tell of new slots, given as (resource id, slot id): no script has touched them."""
        for resource_id, slot_id in slots:
            self.touched[f"{resource_id}}}:{slot_id}"] = None
            self.some_touched.set()

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
        script = self._scripts[call.script]
        command, program = ("EVAL", script.text) if with_text else ("EVALSHA", script.sha)
        return (command, program, len(call.keys), *call.keys, *call.args)

    async def _guarded(self, operation: Callable[[], Awaitable[T]], *, times: int = 1) -> T:
        """Run one operation behind the breaker, bounded, on one of a bounded number of connections."""
        self._refuse_while_open()
        async with self._turns:
            self._refuse_while_open()  # it may have opened while we waited
            try:
                return await self._asked_twice(operation)
            except _AWAY as error:
                self.breaker.failed(times=times)
                raise RedisAway(str(error) or type(error).__name__) from error

    def _refuse_while_open(self) -> None:
        if self.breaker.is_open and not _repairing.get():
            raise NotAsked("the breaker is open")

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

    # -- coming back ------------------------------------------------------------------------------------------------

    async def probe(self) -> bool:
        """Ask for a write, past the breaker: a read-only or full Redis answers PING, but cannot hold."""
        try:
            await bounded(self.client.set("hf:probe", "1", px=1000))
        except _AWAY:
            with contextlib.suppress(Exception):
                await self._drop_idle_connections()
            return False
        return True

    @contextmanager
    def past_the_breaker(self) -> Iterator[None]:
        """Let this task's calls through while everybody else still goes without Redis: for repairs before closing."""
        token = _repairing.set(True)
        try:
            yield
        finally:
            _repairing.reset(token)

    async def evicts(self) -> bool:
        """Tell whether this Redis may delete holds to make room (reliability.md, finding 8)."""
        with contextlib.suppress(*_AWAY):
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


def _count_args(counts: Counts) -> tuple[int, ...]:
    forget = max(counts.ends_at, datetime.now(UTC)) + FORGET_AFTER
    return (counts.capacity, counts.booked, counts.version, int(counts.open), to_ms(counts.starts_at), to_ms(forget))


def _whose(script: str, counts: Counts) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    """Name the keys, and say what a script must know of a person's or place's slot. Of an event's: nothing.

    Counts that do not tell whose they are leave it to the mirror, which was told by others before.
    """
    keys = slot_keys(counts.resource_id, counts.slot_id)
    if counts.occupied_until is None:
        return _KEYS_OF[script](keys), ()
    ends = "" if counts.occupied_until is UNSET else to_ms(counts.occupied_until)
    return _KEYS_OF_BUSY[script](keys), (str(counts.slot_id), ends)


def to_ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


def _room_call(resource_id: UUID, slot_ids: Sequence[UUID]) -> Call:
    keys = (_KEYS_OF["room"](slot_keys(resource_id, slot_id)) for slot_id in slot_ids)
    return Call("room", tuple(chain.from_iterable(keys)), ())


def _clash_call(resource_id: UUID, slots: Sequence[Slot]) -> Call:
    args: list[str | int] = [FRESH_SECONDS * 1000]
    for slot in slots:
        if slot.occupied_until is not None:
            args += [str(slot.id), to_ms(slot.starts_at), to_ms(slot.occupied_until)]
    return Call("clash", _KEYS_OF_BUSY["clash"](slot_keys(resource_id, slots[0].id)), tuple(args))


def _room(row: list[int]) -> tuple[Room, int] | None:
    if not row:
        return None
    capacity, booked, held, is_open, version = row
    return Room(capacity, booked, held, bool(is_open)), version


def _mirrored(slot_id: UUID, reply: Reply) -> Mirrored:
    if not reply:  # its keys are broken
        return Mirrored(None, -1, [])
    _, now, counts, occupied, *fields = reply
    holds = [
        HeldPlace(UUID(hold_id), slot_id, quantity, from_ms(since), from_ms(expires), from_ms(now))
        for hold_id, quantity, since, expires in zip(*[iter(fields)] * 4, strict=True)
    ]
    if not counts:
        return Mirrored(None, -1, holds, occupied)
    capacity, booked, held, is_open, version, _seen = counts
    return Mirrored(Room(capacity, booked, held, bool(is_open)), version, holds, occupied)
