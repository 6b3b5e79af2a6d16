"""How often one client may ask. Redis counts for all processes together; while it is away, each counts for itself.

Who has to wait is remembered here until then, since nothing but waiting changes that: a flood costs Redis nothing.
"""

import math
import time

import msgspec

from app.breaker import RedisAway
from app.errors import Overloaded, RateLimited
from app.holds import Holds
from app.settings import Rate

#: Clients that a process remembers. Beyond it those longest known are forgotten, which lets them ask again.
MOST_CLIENTS = 20_000


class Limit(msgspec.Struct, frozen=True):
    """A rate for one kind of request; `name` tells it apart in Redis and in the answer."""

    name: str
    rate: Rate

    @property
    def interval(self) -> float:
        """Seconds from one request to the next, when they come steadily."""
        return self.rate.seconds / self.rate.count

    def refusal(self, wait: float) -> RateLimited:
        """Say so, as draft-ietf-httpapi-ratelimit-headers-10 has it: the quota, and when there is some of it again."""
        window = math.ceil(self.rate.burst * self.interval)
        seconds = max(1, math.ceil(wait))
        return RateLimited(seconds, f'"{self.name}";q={self.rate.burst};w={window}', f'"{self.name}";r=0;t={seconds}')


#: Guesses of the operator key, at the sign-in and (`edge`) anywhere else. A right one is given back, or never counted:
#: operators may sign in and ask as often as they like.
SIGN_IN = Limit("sign-in", Rate(10, 60, 10))


class Limits:
    def __init__(self, holds: Holds, rate: Rate | None) -> None:
        self._holds = holds
        #: What customers may ask of the API and of their pages; None: as often as they like.
        self.requests = Limit("requests", rate) if rate else None
        #: By limit and client: until when it must wait, by this process's clock.
        self._waiting: dict[tuple[str, str], float] = {}
        #: … and what `allow.lua` keeps, of what was asked while Redis was away.
        self._paid_off: dict[tuple[str, str], float] = {}

    async def ask(self, limit: Limit | None, client: str) -> None:
        """Let one request of a client pass; without a limit, any.

        Raises:
            RateLimited
        """
        if limit is None:
            return
        self.refuse_who_waits(limit, client)
        now = time.monotonic()
        wait = await self._count(limit, client, 1)
        if wait > 0:
            _remember(self._waiting, (limit.name, client), now + wait)
            raise limit.refusal(wait)

    def refuse_who_waits(self, limit: Limit, client: str) -> None:
        """Let pass who does not have to wait, as far as is known here. Counts nothing.

        Raises:
            RateLimited
        """
        until = self._waiting.get((limit.name, client))
        if until is not None and (wait := until - time.monotonic()) > 0:
            raise limit.refusal(wait)

    def passes_here(self, limit: Limit, client: str) -> bool:
        """Let something pass that this process alone counts, because it costs too little to be counted for all."""
        return self._count_here(limit, client, 1) <= 0

    async def give_back(self, limit: Limit, client: str) -> None:
        """Make a request count for nothing after all."""
        await self._count(limit, client, -1)

    async def _count(self, limit: Limit, client: str, requests: int) -> float:
        """Count requests; returns the seconds to wait instead, 0 when they pass."""
        try:
            return await self._holds.allow(limit.name, client, limit.interval, limit.rate.burst, requests)
        except (RedisAway, Overloaded):
            return self._count_here(limit, client, requests)

    def _count_here(self, limit: Limit, client: str, requests: int) -> float:
        who, now = (limit.name, client), time.monotonic()
        due = max(self._paid_off.get(who, 0.0), now) + requests * limit.interval
        beyond = due - now - limit.rate.burst * limit.interval
        if requests > 0 and beyond > 1e-9:
            return beyond
        _remember(self._paid_off, who, due)
        return 0.0


def _remember(known: dict[tuple[str, str], float], who: tuple[str, str], until: float) -> None:
    known.pop(who, None)  # the newest stand last
    known[who] = until
    if len(known) > MOST_CLIENTS:
        del known[next(iter(known))]
