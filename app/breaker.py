"""Whether Redis is asked at all: how it is told that Redis is away, and the breaker that spares everybody the waiting.

Knows no client and no script: `pipelines` counts here what failed, and `engine` closes the breaker again when Redis is
back and the mirror repaired. Whoever can go on without Redis catches `RedisAway`.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

import structlog

from app.telemetry import DEGRADED

log = structlog.get_logger()

#: Failures in a row that open the breaker: one may be a connection that a restart broke.
FAILURES_TO_OPEN = 3
#: How often an open breaker asks whether Redis takes writes again.
PROBE_SECONDS = 0.25

#: Whether this task repairs the mirror, see `past_the_breaker`.
repairing: ContextVar[bool] = ContextVar("repairing", default=False)


class RedisAway(Exception):
    """Redis did not answer, or cannot do its work. The script may have run."""

    def with_cause(self, error: Exception) -> "RedisAway":
        self.__cause__ = error  # as `raise … from` does, for one that is handed over and not raised here
        return self


class NotAsked(RedisAway):
    """The breaker is open: nothing was sent, so no script can have run."""


class BrokenKeys(RedisAway):
    """The keys of this one slot are no longer what the scripts made them; Redis serves the others."""


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

    def refuse_while_open(self) -> None:
        if self.is_open and not repairing.get():
            raise NotAsked("the breaker is open")


@contextmanager
def past_the_breaker() -> Iterator[None]:
    """Let this task's calls through while everybody else still goes without Redis: for repairs before closing."""
    token = repairing.set(True)
    try:
        yield
    finally:
        repairing.reset(token)
