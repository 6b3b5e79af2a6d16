"""Live updates: who looks at which slots, and telling them what those show now (`GET /v1/live`).

    feed ─→ Hub._follow    which slots changed, from every process        one reader for all streams of a process
         ─→ Hub._tell      looks those up that somebody looks at, once, and hands each stream what concerns it

A stream is told states, never changes: each event is the slot as `GET /v1/slots/{id}` shows it at that moment. Told
twice or out of turn it harms nobody; the order is that of the looks, which this one task makes one after the other.
What nobody announces is a hold that lapses: a slot that is shown with holds is looked at again when the first of them
ends. The position of a stream, which a client sends back as `Last-Event-ID`, is an entry of the feed up to which it
was told everything.

Without Redis there is no feed: streams end with `degraded`, and nobody gets a new one until it is back.
"""

import asyncio
import heapq
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from uuid import UUID

import msgspec
import structlog

from app.breaker import RedisAway
from app.domain import Room, Slot
from app.ending import end
from app.engine import Engine
from app.errors import Overloaded, Unavailable
from app.feed import Feed, Note, Position, position, written
from app.telemetry import LIVE_STREAMS

log = structlog.get_logger()

#: Slots are looked up at most so often, and a little less often for each stream that must then be written to: a write
#: takes 20 to 30 µs from bookings, so that 500 streams take 2 % of a process, however much changes. The first change
#: after a quiet moment is told at once.
PACE_SECONDS = 0.2
PACE_SECONDS_PER_STREAM = 0.002
MOST_PACE_SECONDS = 0.7
#: … and so many bytes a second: where hundreds look at thousands of slots that all change, they see it later.
BYTES_PER_SECOND = 4_000_000
#: Slots of one look. More wait for the next one: a page cannot show more than so many changes a second anyhow.
MOST_AT_ONCE = 100
#: Slots that wait for a look; each waits but once, however often it changes. Beyond it all are told to reload.
MOST_PENDING = 100_000
#: Proxies hang up on what is silent for long.
QUIET_SECONDS = 15.0
#: Who was away and missed more slots than this reloads instead.
MOST_MISSED = 200
#: Streams that are written to before somebody else gets a turn of this process.
STREAMS_AT_ONCE = 25
#: Bytes that wait for a slow reader, beside those that are in its socket. Then its stream is cut, and may resume.
MOST_BEHIND = 256 * 1024
#: Looked at so long after a hold has ended: clocks and timers are not exact.
LAPSE_SECONDS = 0.03
#: Places that are counted as booked and as held at the same time are left out of `held` for so long (settle.lua).
TWICE_SECONDS = 2.0
#: The feed may fail for so long before it counts as gone: a restart of Redis is over sooner.
PATIENCE_SECONDS = 1.5
#: How long a new stream waits for its place: until the feed is open, and what it missed is looked up.
JOIN_SECONDS = 5.0
#: The reader stays for a while after the last stream left: most of them come back at once.
IDLE_SECONDS = 40.0
#: What the reader may need to end when the process stops.
CLOSE_SECONDS = 12.0
#: Resources whose venue is remembered.
MOST_RESOURCES = 50_000


class LiveUnavailable(Unavailable):
    """There are no live updates at the moment: ask `GET /v1/slots` again and again, with its ETag."""

    code, title = "live_unavailable", "No live updates"

    def __init__(self) -> None:
        super().__init__("There are no live updates at the moment: poll GET /v1/slots instead", effect_none=True)


class Channel(msgspec.Struct, frozen=True):
    """What a stream is about: a venue, or one resource of it."""

    venue: str
    resource_id: UUID | None

    def shows(self, slot: Slot) -> bool:
        return slot.venue == self.venue and self.resource_id in (None, slot.resource_id)


class Shown(msgspec.Struct, frozen=True):
    """A slot at one moment, with the event that tells of it."""

    slot: Slot
    event: bytes


class Stream:
    """One client. Filled by the hub, emptied by whoever writes to the socket."""

    def __init__(self, channel: Channel, since: Position | None) -> None:
        self.channel, self.since = channel, since
        #: Resolved when the hub has given it its place, or failed when it could not.
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Asks whoever is writing to give up.
        self.cut: Callable[[], None] = lambda: None
        self._waiting: list[bytes] = []
        self._size = 0
        self._some = asyncio.Event()
        self._ended = False

    def push(self, data: bytes) -> None:
        if self._ended:
            return
        self._size += len(data)
        if self._size > MOST_BEHIND:
            self.end()
            self.cut()
            return
        self._waiting.append(data)
        self._some.set()

    def end(self, last: bytes = b"") -> None:
        """Have the stream end, after what is waiting; a second time: nothing."""
        if not self._ended:
            if last:
                self._waiting.append(last)
            self._ended = True
            self._some.set()

    async def next(self) -> bytes | None:
        """Wait for something to write; None: that was all."""
        await self._some.wait()
        if not self._waiting:
            return None
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        if not self._ended:
            self._some.clear()
        return data


class Hub:
    """All streams of a process, and the one reader that feeds them while there are any."""

    def __init__(self, engine: Engine, render: Callable[[Slot, Room | None], bytes]) -> None:
        self._engine, self._render = engine, render
        self._limit = engine.settings.live_streams
        self._channels: dict[Channel, set[Stream]] = {}
        self._count = 0
        self._joining: list[Stream] = []
        #: What changed and was not looked up yet, with the position before it: (resource, slot) -> position.
        self._pending: dict[Note, Position] = {}
        #: When the first hold of a slot ends, on our clock; the heap may also have entries that are no longer true.
        self._lapses: dict[Note, float] = {}
        self._lapse_heap: list[tuple[float, Note]] = []
        self._venue_of: dict[UUID, str] = {}
        self._feed: Feed | None = None
        #: While slots are looked up: the position before the first change that made us look.
        self._looking_from: Position | None = None
        self._work = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        #: When slots may be looked up again, and when streams are next told that nothing happened.
        self._look_at = self._comment_at = 0.0

    # -- for who writes the streams -----------------------------------------------------------------------------------

    async def join(self, venue: str, resource_id: UUID | None, last_event_id: str | None) -> Stream:
        """Give a client its place: from when this returns it is told of every change, or first of what it missed.

        Raises:
            Overloaded: there are as many streams as allowed. LiveUnavailable: Redis is away, or the process stops.
        """
        if self._count >= self._limit:
            raise Overloaded
        if self._stopped.is_set() or not self._engine.redis_ok:
            raise LiveUnavailable
        stream = Stream(Channel(venue, resource_id), _since(last_event_id))
        self._count += 1
        LIVE_STREAMS.inc()
        try:
            self._joining.append(stream)
            self._work.set()
            if self._running is None:
                self._running = asyncio.create_task(self._run())
            async with asyncio.timeout(JOIN_SECONDS):
                await stream.ready
        except BaseException as error:
            self.leave(stream)
            if isinstance(error, TimeoutError):
                raise LiveUnavailable from error
            raise
        return stream

    def leave(self, stream: Stream) -> None:
        """Forget a stream. To be called exactly once for each that was joined."""
        self._count -= 1
        LIVE_STREAMS.dec()
        stream.end()
        with suppress(ValueError):
            self._joining.remove(stream)
        streams = self._channels.get(stream.channel, set())
        streams.discard(stream)
        if not streams:
            self._channels.pop(stream.channel, None)
            self._work.set()

    def watches(self, venue: str) -> bool:
        """Tell whether anybody looks at a venue."""
        return any(channel.venue == venue for channel in self._channels)

    def venue_of(self, resource_id: UUID) -> str | None:
        """Tell whose a resource is, where streams have taught it. It never becomes another venue's."""
        return self._venue_of.get(resource_id)

    def stop_soon(self) -> None:
        """End all streams, and take no more: the process is going to stop. Safe in a signal handler of its loop."""
        self._stopped.set()
        self._end_all(b"")

    async def close(self) -> None:
        self.stop_soon()
        if (reader := self._running) is not None:
            # Told, not cancelled: that would also cut short how it ends its own tasks.
            await asyncio.wait([reader], timeout=CLOSE_SECONDS)
            await end([reader])

    # -- the reader ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Follow the feed and tell the streams, until Redis is away or nobody is there for a while."""
        self._feed = feed = Feed(self._engine.settings.redis_url)
        tasks: list[asyncio.Task[None]] = []
        try:
            await feed.begin()
            # The first of them to end ends the others.
            works = (self._follow(feed), self._serve(feed), self._redis_gone(), self._until_stopped())
            tasks = [asyncio.create_task(work) for work in works]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except RedisAway as error:
            log.info("live_updates_degraded", streams=self._count, reason=str(error))
        except Exception:
            log.exception("live_updates_failed")
        finally:
            self._running = None
            self._forget()
            await end(tasks)
            await feed.close()

    def _forget(self) -> None:
        """End what cannot go on, so that the next stream finds everything as at the start."""
        self._looking_from = None
        self._end_all(b"event: degraded\nid: %s\ndata: {}\n\n" % self._position())
        for stream in self._joining:
            if not stream.ready.done():
                stream.ready.set_exception(LiveUnavailable())
        self._joining.clear()
        self._pending.clear()
        self._lapses.clear()
        self._lapse_heap.clear()
        self._feed = None

    async def _redis_gone(self) -> None:
        await self._engine.holds.breaker.opened.wait()
        raise RedisAway("the breaker opened")

    async def _until_stopped(self) -> None:
        await self._stopped.wait()

    async def _follow(self, feed: Feed) -> None:
        """Note what the feed says, for as long as it speaks."""
        failing_since: float | None = None
        while True:
            before = feed.at
            try:
                if failing_since is not None and await feed.oldest() > feed.at:
                    await self._begin_anew(feed)
                    before = feed.at
                entries = await feed.read()
                failing_since = None
            except RedisAway:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > PATIENCE_SECONDS:
                    raise
                await asyncio.sleep(0.1)
                continue
            for entry in entries:
                for note in entry.notes:
                    if note not in self._pending and self._is_watched(note[0]):
                        self._pending[note] = before
                before = entry.at
            if len(self._pending) > MOST_PENDING:
                self._pending.clear()
                self._reset(self._streams())
            if self._pending:
                self._work.set()

    async def _begin_anew(self, feed: Feed) -> None:
        """Redis came back without its memory: the holds that pages show are gone, and nobody will say which."""
        await feed.begin()
        self._pending.clear()
        self._reset(self._streams())

    async def _serve(self, feed: Feed) -> None:
        """Look up what is due and tell it, in turns."""
        while await self._wait_for_work():
            await self._admit(feed)
            self._comment()
            try:
                await self._tell()
            except (Unavailable, RedisAway) as error:  # what was pending still is; a breaker that opens ends us
                log.info("live_updates_postponed", reason=str(error))
                await asyncio.sleep(0.5)

    async def _wait_for_work(self) -> bool:
        """Wait until somebody joins, a change may be told or a hold ends; False: nobody has been here for a while."""
        while not self._joining:
            self._work.clear()
            now = time.monotonic()
            due = [self._comment_at if self._count else now + IDLE_SECONDS]
            if self._pending:
                due.append(self._look_at)
            if self._lapse_heap:
                due.append(max(self._lapse_heap[0][0], self._look_at))
            if min(due) <= now:
                break
            try:
                async with asyncio.timeout(min(due) - now):
                    await self._work.wait()
            except TimeoutError:
                if not self._count:
                    return False
        return True

    # -- who joins ----------------------------------------------------------------------------------------------------

    async def _admit(self, feed: Feed) -> None:
        """Give those who wait their place: what is looked up from here on they are told, and before that what they
        missed.
        """
        joined, self._joining = self._joining, []
        try:
            if self._stopped.is_set():
                raise LiveUnavailable
            for venue in {stream.channel.venue for stream in joined} - {channel.venue for channel in self._channels}:
                await self._watch(venue)
            admitted = [stream for stream in joined if not stream.ready.done()]  # others left while we looked
            for stream in admitted:
                self._channels.setdefault(stream.channel, set()).add(stream)
            await self._tell_missed(feed, [stream for stream in admitted if stream.since is not None])
        except (Unavailable, RedisAway):
            for stream in joined:
                if not stream.ready.done():
                    stream.ready.set_exception(LiveUnavailable())
            return
        for stream in admitted:
            stream.push(b"retry: %d\nid: %s\n\n" % (random.randint(500, 1500), self._position()))  # noqa: S311
            if not stream.ready.done():
                stream.ready.set_result(None)

    async def _watch(self, venue: str) -> None:
        """Learn which slots of a venue have holds now: their ends are announced by nobody."""
        resource_ids = await self._engine.ledger.resource_ids(venue)
        self._remember_venue(venue, resource_ids)
        await self._note_lapses(await self._engine.holds.active_slots(resource_ids), {})

    async def _tell_missed(self, feed: Feed, back: Sequence[Stream]) -> None:
        """Tell those who come back what changed while they were away, or to reload when nobody knows that any more."""
        if not back:
            return
        oldest = await feed.oldest()
        entries = await feed.since(max(oldest, min(stream.since or oldest for stream in back)))
        missed: dict[Stream, set[Note]] = {}
        for stream in back:
            since = stream.since or oldest
            # What is pending comes to them as to everybody.
            notes = {note for entry in entries if entry.at > since for note in entry.notes if note not in self._pending}
            notes = {note for note in notes if self._is_watched(note[0])}
            if oldest <= since <= feed.at and len(notes) <= MOST_MISSED:
                missed[stream] = notes
            else:
                self._reset([stream])
        shown = await self._look({note for notes in missed.values() for note in notes})
        for stream, notes in missed.items():
            ids, persons = {slot_id for _, slot_id in notes}, {resource_id for resource_id, _ in notes}
            self._give([stream], [each for each in shown if _concerns(each.slot, ids, persons)], stream.channel)

    # -- telling ------------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        """Look up what changed or may have lapsed, and hand it to all whom it concerns."""
        now = time.monotonic()
        notes = list(self._pending)[:MOST_AT_ONCE]
        lapsed = [note for note in self._due(now, MOST_AT_ONCE) if self._is_watched(note[0])]
        if not notes and not lapsed:
            return
        self._looking_from = self._pending[notes[0]] if notes else None
        # Forgotten before the look: what changes again while we look is noted again.
        looking = {note: self._pending.pop(note) for note in notes}
        try:
            shown = await self._look([*dict.fromkeys([*notes, *lapsed])])
            pace, size = min(MOST_PACE_SECONDS, PACE_SECONDS + self._count * PACE_SECONDS_PER_STREAM), 0
            for channel, streams in list(self._channels.items()):
                for several in _batched(list(streams), STREAMS_AT_ONCE):
                    size += self._give(several, shown, channel)
                    await asyncio.sleep(0)  # a turn for bookings: what follows are so many writes
            self._look_at = now + max(pace, size / BYTES_PER_SECOND)
        except BaseException:
            self._pending = {**looking, **self._pending}
            for note in lapsed:
                self._set_lapse(note, now + 1)
            raise
        finally:
            self._looking_from = None

    async def _look(self, notes: Iterable[Note]) -> list[Shown]:
        """Look slots up, and those of the same person that they are in the way of."""
        ids = [slot_id for _, slot_id in notes]
        if not ids:
            return []
        slots = await self._engine.ledger.slots_around(ids)
        rooms = await self._engine.mirror.rooms(slots, without_redis=False)
        for slot in slots:
            self._remember_venue(slot.venue, [slot.resource_id])
        await self._note_lapses([(slot.resource_id, slot.id) for slot in slots], rooms)
        return [
            Shown(slot, b"event: slot\ndata: " + self._render(slot, rooms[slot.id]) + b"\n")
            for slot in slots
            if any(channel.shows(slot) for channel in self._channels)
        ]

    def _give(self, streams: Sequence[Stream], shown: Sequence[Shown], channel: Channel) -> int:
        """Tell streams of one channel what concerns it; returns how many bytes are on their way."""
        events = [each.event for each in shown if channel.shows(each.slot)]
        if not events:
            return 0
        # Only the last event has an id: whoever loses the connection between them asks for all of them again.
        data = b"\n".join(events) + b"id: %s\n\n" % self._position(given=True)
        for stream in streams:
            stream.push(data)
        return len(data) * len(streams)

    def _comment(self) -> None:
        """Tell streams now and then that nothing happened, and their position all the same: what they resume from
        must not grow too old.
        """
        now = time.monotonic()
        if now >= self._comment_at:
            self._comment_at = now + QUIET_SECONDS
            for stream in self._streams():
                stream.push(b": \nid: %s\n\n" % self._position())

    def _reset(self, streams: Iterable[Stream]) -> None:
        """Tell pages to load anew what they show."""
        data = b"event: reset\nid: %s\ndata: {}\n\n" % self._position(given=True)
        for stream in streams:
            stream.push(data)

    def _position(self, *, given: bool = False) -> bytes:
        """Name the last entry up to which everything was told; with that which is being `given`."""
        if self._feed is None:
            return b""
        at = next(iter(self._pending.values())) if self._pending else self._feed.at
        if self._looking_from is not None and not given:
            at = self._looking_from
        return written(at).encode()

    def _streams(self) -> list[Stream]:
        return [stream for streams in self._channels.values() for stream in streams]

    def _end_all(self, last: bytes) -> None:
        for stream in self._streams():
            stream.end(last)

    # -- what is remembered -------------------------------------------------------------------------------------------

    def _is_watched(self, resource_id: UUID) -> bool:
        """Tell whether anybody looks at a resource; one that we know nothing of may be a new one of their venue."""
        venue = self._venue_of.get(resource_id)
        if venue is None:
            return bool(self._channels)
        return Channel(venue, None) in self._channels or Channel(venue, resource_id) in self._channels

    def _remember_venue(self, venue: str, resource_ids: Iterable[UUID]) -> None:
        if len(self._venue_of) > MOST_RESOURCES:
            self._venue_of.clear()
        for resource_id in resource_ids:
            self._venue_of[resource_id] = venue

    async def _note_lapses(self, slots: Sequence[Note], rooms: Mapping[UUID, Room]) -> None:
        """Remember when each slot will show something else although nobody changes it."""
        if not slots:
            return
        now = time.monotonic()
        for note, known in zip(slots, await self._engine.holds.inspect(slots, most=1), strict=True):
            if known.holds:
                first = known.holds[0]
                self._set_lapse(note, now + (first.expires_at - first.now).total_seconds() + LAPSE_SECONDS)
            shown = rooms.get(note[1])
            if shown is not None and known.room is not None and known.room.held != shown.held:
                self._set_lapse(note, now + TWICE_SECONDS + LAPSE_SECONDS)

    def _set_lapse(self, note: Note, at: float) -> None:
        # A hold that lives longer than we thought is looked at too early, and then again: one entry for each slot.
        if at < self._lapses.get(note, math.inf):
            self._lapses[note] = at
            heapq.heappush(self._lapse_heap, (at, note))

    def _due(self, now: float, most: int) -> list[Note]:
        due: list[Note] = []
        while self._lapse_heap and self._lapse_heap[0][0] <= now and len(due) < most:
            at, note = heapq.heappop(self._lapse_heap)
            if self._lapses.get(note) == at:
                del self._lapses[note]
                due.append(note)
        return due


def _batched(streams: Sequence[Stream], size: int) -> Iterator[Sequence[Stream]]:
    for start in range(0, len(streams), size):
        yield streams[start : start + size]


def _since(last_event_id: str | None) -> Position | None:
    if not last_event_id:
        return None
    try:
        return position(last_event_id)
    except ValueError:
        return (0, 0)  # none of ours: whatever it was about is not to be had, and the page reloads


def _concerns(slot: Slot, ids: set[UUID], persons: set[UUID]) -> bool:
    """Tell whether one of these changes may be seen in a slot: it is its own, or one of the same person."""
    return slot.id in ids or (slot.occupied_until is not None and slot.resource_id in persons)
