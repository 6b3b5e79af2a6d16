"""The running engine: both stores, opened and closed together, and the few loops that need no request.

The loops: ask for Redis while it is away and repair the mirror before it is trusted again (design 7); expire lapsed
rows (design 8); tell all processes which slots this one changed. Every process runs them; they are harmless side by
side.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import structlog

from app import feed
from app.breaker import PROBE_SECONDS, RedisAway, past_the_breaker
from app.commits import Commits
from app.ending import end
from app.errors import Unavailable
from app.gateway import gateway
from app.holds import Holds
from app.ledger import Ledger
from app.limits import Limits
from app.mirror import Mirror
from app.payments import Payments
from app.pipelines import connect
from app.settings import Settings, SettingsError
from app.telemetry import MONEY_MISMATCHES

log = structlog.get_logger()

#: How often lapsed rows are looked for, and how many slots at a time.
SWEEP_SECONDS = 1.0
SWEEP_SLOTS = 200
#: How often it is counted what does not add up between payments and bookings.
COUNT_SECONDS = 60.0
#: How often old answers are forgotten.
FORGET_SECONDS = 3600.0
#: Work after the reply that may be pending at once; beyond it, requests do theirs themselves.
MAX_LATER = 2_000
#: How long a stopping process waits for it.
DRAIN_SECONDS = 5.0


class Engine:
    """What every use case is given: the settings, the two stores, and the memory between them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.holds = Holds(connect(settings.redis_url))
        self.ledger = Ledger(settings.database_url)
        self.commits = Commits(self.ledger)
        self.mirror = Mirror(self.holds, self.ledger)
        self.payments = Payments(self.ledger)
        self.limits = Limits(self.holds, settings.rate_limit)
        #: None: nothing can be paid online.
        self.gateway = gateway(settings)
        self._later: set[asyncio.Task[None]] = set()

    @property
    def redis_ok(self) -> bool:
        return not self.holds.breaker.is_open

    async def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do work after the reply: at once when too much of it is waiting, and before a clean stop in any case.

        For work that may be lost when the process is killed, because something else makes up for it.
        """
        if len(self._later) >= MAX_LATER:
            await _quietly(work)
            return
        task = asyncio.create_task(_quietly(work))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def drain(self) -> None:
        with contextlib.suppress(TimeoutError, RedisAway):
            async with asyncio.timeout(DRAIN_SECONDS):
                if self._later:
                    await asyncio.wait(self._later)
                await self.commits.drain()
                await self.holds.pipelines.drain()
                await feed.tell(self.holds)


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except (RedisAway, Unavailable) as error:
        log.debug("work_after_the_reply_not_done", reason=str(error))
    except Exception:
        log.exception("work_after_the_reply_failed")


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Engine]:
    """Open both stores, keep the loops going, and close everything. Starts also while a store is away.

    Raises:
        SettingsError: in production, a Redis that may evict holds.
    """
    engine = Engine(settings)
    await engine.ledger.pool.open()
    try:
        if settings.production and await engine.holds.pipelines.evicts():
            raise SettingsError("REDIS_URL: this Redis may evict holds; set its maxmemory-policy to noeviction")
        forever = (watch_redis(engine), sweep(engine), feed.keep_telling(engine.holds))
        loops = [asyncio.create_task(work) for work in forever]
        try:
            yield engine
        finally:
            await end(loops)
            await engine.drain()
    finally:
        await engine.ledger.pool.close()
        with contextlib.suppress(Exception):
            await engine.holds.client.aclose()
        if engine.gateway is not None:
            await engine.gateway.close()


async def watch_redis(engine: Engine) -> None:
    """Wait for the breaker to open; then probe, repair the mirror, and close it again."""
    breaker = engine.holds.breaker
    while True:
        await breaker.opened.wait()
        await asyncio.sleep(PROBE_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 many processes, one Redis
        try:
            if await engine.holds.pipelines.probe():
                await _recover(engine)
        except Exception:
            log.exception("recovery_failed")  # and is tried again: without this loop Redis would stay away for ever


async def _recover(engine: Engine) -> None:
    breaker = engine.holds.breaker
    if breaker.open_since is None:
        return
    try:
        with past_the_breaker():
            slots = await engine.mirror.recover(breaker.open_since)
    except (RedisAway, Unavailable) as error:
        log.info("redis_not_trusted_yet", reason=str(error))
        return
    since = datetime.now(UTC)
    breaker.close()
    # What was committed while the last page was read found the breaker open, and was not told.
    slots += await engine.mirror.recover(since)
    log.info("mirror_recovered", slots=slots)


async def sweep(engine: Engine) -> None:
    """Expire lapsed holds that Postgres keeps, batch after batch; now and then count money and forget old answers."""
    forget_at = count_at = 0.0
    while True:
        await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 many processes, one database
        try:
            await sweep_once(engine)
            if engine.redis_ok:
                await engine.mirror.release_unheard()
            if time.monotonic() > count_at:
                count_at = time.monotonic() + COUNT_SECONDS
                await count_money(engine)
            if time.monotonic() > forget_at:
                await engine.ledger.forget_old_answers()
                await engine.ledger.forget_claims()
                forget_at = time.monotonic() + FORGET_SECONDS
        except (Unavailable, RedisAway) as error:
            log.debug("sweep_postponed", reason=str(error))
        except Exception:
            log.exception("sweep_failed")


async def sweep_once(engine: Engine) -> int:
    """Expire one batch; returns how many slots got places back."""
    slot_ids = await engine.ledger.sweep(SWEEP_SLOTS)
    if slot_ids:
        await engine.mirror.sync_quietly(await engine.ledger.counts(slot_ids))
    return len(slot_ids)


async def count_money(engine: Engine) -> None:
    """Tell the metrics how much money does not add up: 0, unless a refund failed or there is a bug."""
    mismatches = await engine.payments.mismatches()
    MONEY_MISMATCHES.set(mismatches)
    if mismatches:
        log.error("money_does_not_add_up", rows=mismatches)
