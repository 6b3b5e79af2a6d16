"""The feed: which slots changed just now, from every process to all that show them. One stream of Redis, `hf:live`.

    Holds._note ─→ Holds.touched ─→ tell ─→ XADD hf:live ─→ Feed.read ─→ `live`

An entry names slots and nothing of what changed: one field for each resource, and as its value the ids of its slots.
Whoever shows a slot looks it up, so that late, repeated and lost entries can tell nobody anything untrue. A process
tells at most ten times a second, however many changes there are, and never while somebody waits for an answer.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import structlog

from app.breaker import RedisAway
from app.holds import Holds
from app.pipelines import AWAY, bounded, connect

log = structlog.get_logger()
T = TypeVar("T")

KEY = "hf:live"
#: Changes of so long go together: what a page waits for at the most before its process can know.
TOGETHER_SECONDS = 0.1
#: Slots of one entry; more wait for the next. With it the stream has at most about 40 MB, and usually a few hundred KB.
MOST_SLOTS = 250
#: A minute and a half of ten busy processes, several hours of a quiet one: who was away for longer reloads.
MOST_ENTRIES = 4_000
#: Slots kept for a Redis that is away. When it returns, all that changed meanwhile is told to the mirror, and noted.
MOST_KEPT = 10_000
#: How long one look waits for entries. Redis answers an empty hand then, within what the client waits for a reply.
BLOCK_MS = 500
#: Entries read in one look.
MOST_READ = 500

Position = tuple[int, int]
#: (resource, slot)
Note = tuple[UUID, UUID]


class Entry(msgspec.Struct, frozen=True):
    at: Position
    notes: list[Note]


# -- telling ----------------------------------------------------------------------------------------------------------


async def tell(holds: Holds) -> None:
    """Tell which slots this process has changed, in as many entries as it takes.

    Raises:
        RedisAway: what could not be told is kept.
    """
    while holds.touched:
        touched = list(islice(holds.touched, MOST_SLOTS))
        fields: dict[str, str] = {}
        for each in touched:
            del holds.touched[each]  # at first: what is touched while this is on its way is told again
            resource, slot = each[:36], each[38:]
            fields[resource] = f"{fields[resource]},{slot}" if resource in fields else slot
        try:
            await _asked(holds.client.xadd(KEY, fields, maxlen=MOST_ENTRIES, approximate=True))  # type: ignore[arg-type]
        except RedisAway:
            for each in touched[: max(0, MOST_KEPT - len(holds.touched))]:
                holds.touched[each] = None
            raise
    holds.some_touched.clear()


async def keep_telling(holds: Holds) -> None:
    """Tell of changes shortly after they happen, as long as the process lives."""
    while True:
        await holds.some_touched.wait()
        await asyncio.sleep(TOGETHER_SECONDS)
        try:
            await tell(holds)
        except RedisAway as error:
            log.debug("changes_not_told_yet", reason=str(error))
            await asyncio.sleep(1)
        except Exception:
            log.exception("changes_not_told")
            await asyncio.sleep(1)


async def _asked(operation: Awaitable[T]) -> T:
    # Beside the breaker: whatever is wrong with this one key must not keep anybody from booking.
    try:
        return await bounded(operation)
    except AWAY as error:
        raise RedisAway(str(error) or type(error).__name__) from error


# -- following --------------------------------------------------------------------------------------------------------


class Feed:
    """One reader. `at` is how far it has read. Has a connection of its own: it waits on it most of the time.

    Everything raises `RedisAway`.
    """

    def __init__(self, redis_url: str) -> None:
        self._client: Any = connect(redis_url)
        self.at: Position = (0, 0)

    async def begin(self) -> None:
        """Read from here on. A stream that is not there is begun with an empty entry: a position always names one
        that was there, so that it can be told later whether any after it is missing.
        """
        newest = await self._asked(self._client.xrevrange(KEY, count=1))
        if not newest:
            newest = [(await self._asked(self._client.xadd(KEY, {"-": ""}, maxlen=MOST_ENTRIES)), {})]
        self.at = position(newest[0][0])

    async def read(self) -> list[Entry]:
        """Wait a moment for entries; empty: there were none."""
        try:
            got: Any = await self._client.xread({KEY: written(self.at)}, count=MOST_READ, block=BLOCK_MS)
        except AWAY as error:
            raise RedisAway(str(error) or type(error).__name__) from error
        found = [_entry(*each) for _, entries in got for each in entries]
        if found:
            self.at = found[-1].at
        return found

    async def since(self, after: Position) -> list[Entry]:
        """Read again what came after a position, up to `at`."""
        if after >= self.at:
            return []
        found = await self._asked(self._client.xrange(KEY, written((after[0], after[1] + 1)), written(self.at)))
        return [_entry(*each) for each in found]

    async def oldest(self) -> Position:
        """Tell from which position on nothing is missing. Before it there were too many entries, or another Redis."""
        found = await self._asked(self._client.xrange(KEY, count=1))
        return position(found[0][0]) if found else (self.at[0], self.at[1] + 1)

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self._client.aclose()

    async def _asked(self, operation: Awaitable[Any]) -> Any:
        return await _asked(operation)


def position(text: str) -> Position:
    """Read the id of an entry.

    Raises:
        ValueError: it is none.
    """
    milliseconds, _, number = text.partition("-")
    if not (text.isascii() and milliseconds.isdigit() and number.isdigit() and len(text) <= 40):
        raise ValueError("not the id of an entry")
    return int(milliseconds), int(number)


def written(at: Position) -> str:
    return f"{at[0]}-{at[1]}"


def _entry(name: str, fields: Mapping[str, str]) -> Entry:
    notes = []
    for resource, slots in fields.items():
        # Suppressed: the first, empty entry; or one of a version that is not ours.
        with contextlib.suppress(msgspec.ValidationError):
            resource_id, *slot_ids = msgspec.convert([resource, *slots.split(",")], list[UUID])  # a sixth of UUID()
            notes += [(resource_id, slot_id) for slot_id in slot_ids]
    return Entry(position(name), notes)
