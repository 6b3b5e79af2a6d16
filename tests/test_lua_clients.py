"""The scripts that count what one client does: on fakeredis, both versions of Redis and a cluster."""

import asyncio
from uuid import UUID, uuid4

import pytest

from app.holds import InTheWay
from app.tokens import from_ms
from tests.redis_servers import client_fixture, redis_url
from tests.slots import ClockedHolds, holds, patience

__all__ = ["client_fixture", "holds", "patience", "redis_url"]

pytestmark = pytest.mark.anyio

#: Ten at once, and then one in so many seconds: longer than a test may be held up, for what is paid off Redis forgets
#: by its own clock.
BURST, INTERVAL = 10, 100.0
TTL = 60_000


async def ask(holds: ClockedHolds, client: str, requests: int = 1) -> float:
    return await holds.allow("requests", client, INTERVAL, BURST, requests)


async def claim(holds: ClockedHolds, client: str, places: int = 1, hold_id: UUID | None = None) -> bool | InTheWay:
    return await holds.claim(client, hold_id or uuid4(), places, 10, TTL)


# -- allow ------------------------------------------------------------------------------------------------------------


async def test_as_many_as_allowed_pass_at_once_and_one_more_waits(holds: ClockedHolds) -> None:
    client = uuid4().hex
    waits = await asyncio.gather(*(ask(holds, client) for _ in range(3 * BURST)))
    assert sorted(waits) == [0.0] * BURST + [INTERVAL] * 2 * BURST
    assert await ask(holds, uuid4().hex) == 0.0  # nobody else has to


async def test_who_waits_as_long_as_told_passes_and_not_a_moment_before(holds: ClockedHolds) -> None:
    client = uuid4().hex
    for _ in range(BURST):
        await ask(holds, client)
    holds.tick(40_000)
    assert await ask(holds, client) == pytest.approx(60.0)
    holds.tick(59_999)
    assert await ask(holds, client) > 0
    holds.tick(1)
    assert [await ask(holds, client), await ask(holds, client)] == [0.0, INTERVAL]


async def test_what_is_given_back_may_be_asked_again(holds: ClockedHolds) -> None:
    client = uuid4().hex
    for _ in range(3 * BURST):
        assert await ask(holds, client) == 0.0
        await ask(holds, client, -1)
    assert not await holds.client.exists(f"hf:{{{client}}}:requests")
    await ask(holds, client, -1)  # nothing is won by giving back more
    waits = [await ask(holds, client) for _ in range(BURST + 1)]
    assert waits[BURST - 1 :] == [0.0, INTERVAL]


async def test_a_client_that_is_silent_is_forgotten(holds: ClockedHolds) -> None:
    client = uuid4().hex
    for _ in range(3):
        await ask(holds, client)
    assert 0 < await holds.client.pttl(f"hf:{{{client}}}:requests") <= 3000 * INTERVAL


# -- claim ------------------------------------------------------------------------------------------------------------


async def test_one_client_claims_so_many_places_and_not_one_more(holds: ClockedHolds) -> None:
    client = uuid4().hex
    answers = await asyncio.gather(*(claim(holds, client, 2) for _ in range(50)))
    claimed = [answer for answer in answers if answer is True]
    refused = [answer for answer in answers if isinstance(answer, InTheWay)]
    assert (len(claimed), len(refused)) == (5, 45)
    assert {(each.held, each.next_end, len(each.ids)) for each in refused} == {(10, from_ms(holds.now_ms + TTL), 5)}
    assert await claim(holds, uuid4().hex, 10) is True
    assert isinstance(await claim(holds, uuid4().hex, 11), InTheWay)


async def test_the_same_hold_counts_once_and_never_for_less(holds: ClockedHolds) -> None:
    client, hold_id = uuid4().hex, uuid4()
    assert await claim(holds, client, 8, hold_id) is True
    assert await claim(holds, client, 1, hold_id) is False
    assert isinstance(await claim(holds, client, 3), InTheWay)
    assert await claim(holds, client, 2) is True


async def test_a_claim_ends_with_its_hold_or_is_given_back(holds: ClockedHolds) -> None:
    client, first, second = uuid4().hex, uuid4(), uuid4()
    await claim(holds, client, 5, first)
    holds.tick(TTL - 1)
    await claim(holds, client, 5, second)
    assert isinstance(refused := await claim(holds, client), InTheWay)
    assert refused.next_end == from_ms(holds.now_ms + 1)
    holds.tick(1)
    assert await claim(holds, client, 5) is True
    assert isinstance(await claim(holds, client), InTheWay)
    await holds.drop_claim(client, second)
    assert await claim(holds, client, 5) is True


async def test_a_claim_that_is_prolonged_lives_on(holds: ClockedHolds) -> None:
    client, hold_id = uuid4().hex, uuid4()
    await claim(holds, client, 10, hold_id)
    holds.tick(TTL - 1)
    assert await claim(holds, client, 10, hold_id) is False
    holds.tick(TTL - 1)
    assert isinstance(await claim(holds, client), InTheWay)
    assert 0 < await holds.client.pttl(f"hf:{{{client}}}:claims") <= 2 * TTL
