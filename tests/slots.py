"""Slots for the tests of the hold scripts, and a clock for the scripts that stands still until it is moved.

The fixtures are imported by name.
"""

import hashlib
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from app import pipelines
from app.domain import Counts, Slot, SlotFacts
from app.holds import Holds, slot_keys
from app.pipelines import Client, Script, read_scripts

HOUR_MS = 3_600_000
TIME_CALL = "redis.call('TIME')"


class ClockedHolds(Holds):
    """`Holds` whose scripts read this clock in place of the server's: both sides of an instant, without sleeping.

    Only the call of TIME is replaced in their text; everything else runs on the server as it is.
    """

    def __init__(self, client: Client, texts: dict[str, str] | None = None) -> None:
        super().__init__(client)
        self._texts = {name: script.text for name, script in self.pipelines.scripts.items()} | (texts or {})
        self.set_clock(int(time.time() * 1000))

    def set_clock(self, now_ms: int) -> None:
        self.now_ms = now_ms
        clock = f"{{'{now_ms // 1000}', '{now_ms % 1000 * 1000 + 999}'}}"  # microseconds that must not be rounded up
        for name, text in self._texts.items():
            moved = text.replace(TIME_CALL, clock)
            sha = hashlib.sha1(moved.encode(), usedforsecurity=False).hexdigest()
            self.pipelines.scripts[name] = Script(moved, sha)

    def tick(self, milliseconds: int) -> None:
        self.set_clock(self.now_ms + milliseconds)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a server that a busy machine slows down: here it is asked what it says, not how fast."""
    monkeypatch.setattr(pipelines, "WAIT_SLICES", 400)


@pytest.fixture
def holds(client: Client) -> ClockedHolds:
    return ClockedHolds(client)


def altered(script: str, old: str, new: str) -> dict[str, str]:
    """Give a script one flaw, for controls: the text with `old` replaced."""
    text = read_scripts()[script].text
    assert text.count(old) == 1, f"{script}.lua has changed: {old!r}"
    return {script: text.replace(old, new)}


def some_facts(
    *,
    slot_id: UUID | None = None,
    resource_id: UUID | None = None,
    starts_in: timedelta = timedelta(hours=2),
    lasting: timedelta = timedelta(hours=1),
    buffer: timedelta | None = None,
    now: datetime | None = None,
) -> SlotFacts:
    """A slot of an event; with a buffer, be it of no time, one of a person."""
    starts_at = (now or datetime.now(UTC)).replace(microsecond=0) + starts_in
    ends_at = starts_at + lasting
    return SlotFacts(
        id=slot_id or uuid4(),
        venue_id=uuid4(),
        resource_id=resource_id or uuid4(),
        starts_at=starts_at,
        ends_at=ends_at,
        hold_ttl_seconds=None,
        hold_max_seconds=1800,
        occupied_until=None if buffer is None else ends_at + buffer,
    )


def counts_of(
    facts: SlotFacts, *, capacity: int = 3, booked: int = 0, version: int = 1, is_open: bool = True
) -> Counts:
    return Counts(
        slot_id=facts.id,
        resource_id=facts.resource_id,
        capacity=capacity,
        available_count=capacity - booked,
        version=version,
        open=is_open,
        starts_at=facts.starts_at,
        ends_at=facts.ends_at,
        occupied_until=facts.occupied_until,
    )


def a_slot(facts: SlotFacts) -> Slot:
    """The slot as a list has read it from Postgres, with room in it."""
    return Slot(
        id=facts.id,
        venue_id=facts.venue_id,
        venue="venue",
        timezone="UTC",
        resource_id=facts.resource_id,
        resource_name="Ada",
        service_id=None,
        service_name=None,
        starts_at=facts.starts_at,
        ends_at=facts.ends_at,
        closes_at=None,
        capacity=3,
        available_count=3,
        open=True,
        blocked=False,
        held_rows=0,
        version=1,
        price_amount=None,
        price_currency=None,
        occupied_until=facts.occupied_until,
    )


async def stored(client: Client, facts: SlotFacts) -> tuple[dict[str, str], dict[str, float], dict[str, str]]:
    """Read a slot past the code under test: the mirror, the holds with their expiries, the parties."""
    keys = slot_keys(facts.resource_id, facts.id)
    return (
        await client.hgetall(keys["mirror"]),
        dict(await client.zrange(keys["holds"], 0, -1, withscores=True)),
        await client.hgetall(keys["parties"]),
    )


async def assert_adds_up(client: Client, facts: SlotFacts) -> None:
    """The mirror's count of held places is the sum of its parties, each of which has one expiry."""
    mirror, holds, parties = await stored(client, facts)
    assert set(holds) == set(parties)
    if mirror:
        assert int(mirror["held"]) == sum(int(party.split(":")[0]) for party in parties.values())
