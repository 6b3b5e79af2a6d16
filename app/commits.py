"""The commits of bookings: gathered into lists, kept apart from what waits, repeated alone, settled when in doubt.

Every request gets its own answer, whoever it went together with: what failed a list fails no innocent member, what
layer 3 refuses becomes the refusal it stands for, and after a lost reply nobody is told anything before it is certain
(design 4). Knows the ledger and no statement.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec
import structlog

from app.coalesce import Coalescer
from app.errors import Busy, DatabaseUnavailable, Overloaded
from app.ledger import CommitRequest, Ledger, Outcome, Word
from app.postgres import (
    MAX_WAITING,
    MAX_WAITING_SECONDS,
    POOL_MAX_SIZE,
    SLOW_COMMIT_SECONDS,
    InDoubt,
    NoConnection,
    RuleViolated,
    told_again,
)
from app.telemetry import BACKSTOP_CONFLICTS, GATHERED, IN_DOUBT
from app.tokens import new_id

log = structlog.get_logger()

#: Bookings of one commit, and commits side by side: while Postgres works on the one, we read and answer requests for
#: the other. Larger lists cost Postgres a little less, but then everybody waits for everybody (docs/performance.md).
MOST_TOGETHER = 32
COMMIT_LANES = 2
#: Members of lists that failed are repeated so many at a time, and wait so long for that: then they are told "busy".
REPEATS = 2
ALONE_SECONDS = 1.0
#: A slot whose lock could not be had is kept apart for so long, and at most so many are.
LOCKED_SECONDS = 2.0
MOST_LOCKED = 1_000

#: Layer 3: what a violated rule means to the one who asked (reliability.md T-19). Any other is a bug, and a 500.
_TAKEN_BY_RULE: Mapping[str, Word] = {
    "slots_available_count_range": "full",
    "bookings_one_live_on_exclusive_slot": "full",
    "occupied_one_thing_at_a_time": "occupied",
}
#: A rival with the same id or key was committed meanwhile: asked again, the function sees its row.
_SAME_REQUEST_RULES = ("bookings_pkey", "bookings_one_per_idempotency_key")


class CommitInDoubt(Exception):
    """The reply to this attempt's commit never came."""

    def __init__(self, attempt: UUID) -> None:
        super().__init__(attempt)
        self.attempt = attempt


class Commits:
    """The one way of this process to commit bookings."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._commit_bookings = ledger.commit_bookings  # bound once, for every list
        self._lane = self._gathering(lanes=COMMIT_LANES, most_flights=max(1, POOL_MAX_SIZE // 2))
        #: Slots that somebody has locked, or whose commits wait for each other, until when that is believed.
        self._locked: dict[UUID, float] = {}
        self._lane_of_locked = self._gathering(lanes=1, most_flights=1)
        self._repeats = asyncio.Semaphore(REPEATS)

    def _gathering(self, *, lanes: int, most_flights: int) -> Coalescer[CommitRequest, Outcome]:
        return Coalescer(
            self._commit_together,
            self._commit_alone,
            most_together=MOST_TOGETHER,
            most_waiting=MAX_WAITING,
            longest_wait_seconds=MAX_WAITING_SECONDS,
            lanes=lanes,
            slow_seconds=SLOW_COMMIT_SECONDS,
            most_flights=most_flights,
            named=lambda request: request.id,
            observe_size=GATHERED.labels("postgres").observe,
        )

    async def drain(self) -> None:
        """Wait until every commit that was asked for has its answer."""
        await self._lane.drain()
        await self._lane_of_locked.drain()

    async def commit_one(self, request: CommitRequest) -> Outcome:
        """Decide and write one request, in one transaction with all that are asked meanwhile.

        What layer 3 refuses becomes the refusal it stands for.

        Raises:
            Busy, Overloaded: nothing was written.
            DatabaseUnavailable: `effect_none` says whether that is certain.
        """
        for _ in range(2):
            try:
                return await self._way_of(request).ask(request)
            except RuleViolated as violation:
                if violation.rule in _SAME_REQUEST_RULES:
                    continue
                if violation.rule not in _TAKEN_BY_RULE:
                    raise
                return await self._ledger.refused_by_rule(request, _TAKEN_BY_RULE[violation.rule])
        raise Busy  # a rival with the same key keeps coming and going

    async def commit(self, requests: Sequence[CommitRequest]) -> list[Outcome]:
        """Decide and write a list of requests in one transaction, one round trip. Order of answers = order of requests.

        Raises:
            RuleViolated, Busy, CommitInDoubt: of the whole list. A member repeated alone may fare better.
            Overloaded, DatabaseUnavailable: nothing was written.
        """
        attempt = new_id()
        try:
            return await self._commit_bookings(attempt, requests)
        except InDoubt as error:
            raise CommitInDoubt(attempt) from error

    def _way_of(self, request: CommitRequest) -> Coalescer[CommitRequest, Outcome]:
        """Keep slots that were locked a moment ago apart: whoever goes together with them waits as they do."""
        locked_until = self._locked.get(request.slot_id)
        if locked_until is None:
            return self._lane
        if locked_until > time.monotonic():
            return self._lane_of_locked
        del self._locked[request.slot_id]
        return self._lane

    def _note_locked(self, slot_id: UUID) -> None:
        if len(self._locked) < MOST_LOCKED:
            self._locked[slot_id] = time.monotonic() + LOCKED_SECONDS

    async def _commit_together(self, requests: Sequence[CommitRequest]) -> Sequence[Outcome | Exception]:
        try:
            return await self.commit(requests)
        except RuleViolated as violation:
            # Counted here, for the list: repeated, its members may be told by layer 2.
            if _TAKEN_BY_RULE.get(violation.rule) == "full":
                BACKSTOP_CONFLICTS.inc()
                log.warning("backstop_conflict", rule=violation.rule)
            if len(requests) == 1:  # nobody is innocent: to repeat it would say the same
                return [violation]
            raise
        except Busy as busy:
            slots = {request.slot_id for request in requests}
            if len(slots) == 1 and not isinstance(busy, NoConnection):
                self._note_locked(slots.pop())
            if len(requests) == 1:
                return [busy]
            raise

    async def _commit_alone(self, request: CommitRequest, error: Exception) -> Outcome:
        """Give one of a list that failed its own answer: what was in doubt is settled, what was refused is repeated,
        a few at a time, so that the others find connections.
        """
        if isinstance(error, NoConnection | Overloaded | DatabaseUnavailable):
            raise told_again(error) from error  # the others' news is this one's
        if isinstance(error, CommitInDoubt):
            IN_DOUBT.inc()
            return await self._resolve(error.attempt, request)
        try:
            async with asyncio.timeout(ALONE_SECONDS):
                await self._repeats.acquire()
        except TimeoutError:
            raise Busy from error
        try:
            return (await self.commit([request]))[0]
        except CommitInDoubt as doubt:
            IN_DOUBT.inc()
            return await self._resolve(doubt.attempt, request)
        except Busy as busy:
            if not isinstance(busy, NoConnection):
                self._note_locked(request.slot_id)
            raise
        finally:
            self._repeats.release()

    async def _resolve(self, attempt: UUID, request: CommitRequest) -> Outcome:
        """Settle a request of an attempt whose reply was lost: make sure that it is over, then ask the same again.

        The first step waits for the attempt if it runs, and disarms it if it has not got as far as this slot; so the
        second finds what it wrote, or writes it now, and its answer is final. Without both, nobody may say "taken" or
        "nothing happened".
        """
        try:
            await self._ledger.abandon_attempt(attempt, [request.slot_id])
            return (await self._commit_bookings(new_id(), [msgspec.structs.replace(request, repeat=True)]))[0]
        except (InDoubt, Busy, Overloaded, DatabaseUnavailable) as error:
            raise DatabaseUnavailable(effect_none=False) from error

    async def commit_all(self, requests: Sequence[CommitRequest]) -> list[Outcome]:
        """Decide a list of requests as one: all are written, or none. A lost reply is settled as for a single one.

        Raises:
            RuleViolated: nothing was written. Busy, Overloaded: nothing was written.
            DatabaseUnavailable: `effect_none` says whether that is certain.
        """
        attempt = new_id()
        try:
            return await self._ledger.commit_bookings_together(attempt, requests)
        except InDoubt:
            IN_DOUBT.inc()
            again = [msgspec.structs.replace(request, repeat=True) for request in requests]
            try:
                await self._ledger.abandon_attempt(attempt, [r.slot_id for r in requests])
                return await self._ledger.commit_bookings_together(new_id(), again)
            except (InDoubt, Busy, Overloaded, DatabaseUnavailable) as error:
                raise DatabaseUnavailable(effect_none=False) from error
