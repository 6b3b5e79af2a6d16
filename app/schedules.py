"""Slots made ahead of time: what the schedules say, made true in Postgres, and the mirror told.

    a schedule or service changes ─→ its resources' version grows, and they are due, in the same transaction
    make_slots, keep_ahead        ─→ read the schedules and that version, expand them (`hours`), then portion by portion
                                     apply_schedule(): refuses lists made from an older version

Whoever comes may do it, any number of them at once, and may die in the middle: a resource stays due until somebody has
finished, and what is made twice is made once. Nobody's booking is ever touched.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import structlog

from app.engine import Engine
from app.errors import Unavailable
from app.hours import Start, Timetable, last_day, moment, slot_id, starts
from app.ledger import Ledger

log = structlog.get_logger()

#: A portion has about so many slots: one statement, and one short stretch of our own work, far below their time limits.
PORTION_SLOTS = 1_000
#: … and not more days than these, because what is closed is not known beforehand.
PORTION_DAYS = 7
#: A resource whose schedules do not change is looked at again after this long: a new day has come into the horizon, or
#: a booking was cancelled that kept a slot open which nobody wants.
AGAIN_SECONDS = 900
#: Who takes on a resource that is due has it for so long; if he dies, another one takes it afterwards.
CLAIM_SECONDS = 120
#: Resources taken on at a time, and how long the worker goes on taking some in one call.
CLAIMED_AT_ONCE = 10
KEEP_SECONDS = 2.0
#: How long somebody who changed a schedule waits for its slots. What is not done by then is the worker's.
ON_DEMAND_SECONDS = 2.0
#: New slots that open pages are told of, the nearest first. Who looks further ahead loads what he sees then.
MOST_TOLD = 500
#: Somebody changes the schedules again and again: then it is the worker's, too.
MAX_TRIES = 3

_PLAN = """
    SELECT v.timezone, r.schedule_version,
        (SELECT max(s.starts_at) FROM slots AS s WHERE s.resource_id = r.id AND s.made_by_schedule
            AND s.status = 'open' AND s.starts_at > now()) AS last_start,
        (SELECT coalesce(json_agg(json_build_object(
            'step_minutes', p.step_minutes, 'from_date', p.from_date, 'to_date', p.to_date,
            'notice_minutes', p.notice_minutes, 'horizon_days', p.horizon_days,
            'services', (SELECT coalesce(json_agg(json_build_object('id', o.id, 'duration_minutes', o.duration_minutes,
                    'buffer_minutes', o.buffer_minutes)), '[]')
                FROM schedule_services AS w JOIN services AS o ON o.id = w.service_id
                WHERE w.schedule_id = p.id AND o.active),
            'hours', (SELECT coalesce(json_agg(json_build_object('weekday', h.weekday, 'opens', h.opens,
                    'closes', h.closes)), '[]')
                FROM schedule_hours AS h WHERE h.schedule_id = p.id),
            'deviations', (SELECT coalesce(json_agg(json_build_object('kind', x.kind, 'from_date', x.from_date,
                    'to_date', x.to_date, 'opens', x.opens, 'closes', x.closes)), '[]')
                FROM schedule_exceptions AS x WHERE x.schedule_id = p.id)
            )), '[]') FROM schedules AS p WHERE p.resource_id = r.id) AS timetables
    FROM resources AS r JOIN venues AS v ON v.id = r.venue_id WHERE r.id = %s
"""
_CLAIM = """
    UPDATE resources SET slots_due_at = clock_timestamp() + %s * interval '1 second' WHERE id IN (
        SELECT id FROM resources WHERE slots_due_at <= clock_timestamp()
        ORDER BY slots_due_at LIMIT %s FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING id
"""


class Plan(msgspec.Struct, frozen=True):
    """What the slots of a resource are made from, as it was at one moment."""

    resource_id: UUID
    zone: ZoneInfo
    version: int
    #: Of the open slots that schedules have made: beyond it there is nothing to close.
    last_start: datetime | None
    timetables: list[Timetable]


class Portion(msgspec.Struct, frozen=True):
    """All that is wanted between two instants."""

    from_at: datetime
    before: datetime
    wanted: dict[UUID, Start]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """How many slots were made and changed, and whether all that was asked for is done."""

    made: int = 0
    closed: int = 0
    reopened: int = 0
    changed: int = 0
    finished: bool = True

    def __add__(self, other: "Done") -> "Done":
        return Done(
            made=self.made + other.made,
            closed=self.closed + other.closed,
            reopened=self.reopened + other.reopened,
            changed=self.changed + other.changed,
            finished=self.finished and other.finished,
        )


class Slots(msgspec.Struct, frozen=True):
    """What became of one portion: slots that are new, and those that the mirror may know otherwise."""

    made: list[UUID] = []
    changed: list[UUID] = []


async def make_slots(engine: Engine, resource_ids: Sequence[UUID]) -> Done:
    """Bring the slots of these resources up to date, as far as it goes in a moment: the days that are near first.

    Never fails: the change that it follows is committed, and what is left to do is the worker's.
    """
    deadline = asyncio.get_running_loop().time() + ON_DEMAND_SECONDS
    done = Done()
    for resource_id in resource_ids:
        try:
            done += await _bring_up(engine, resource_id, deadline)
        except Unavailable as error:
            log.info("slots_postponed", resource_id=str(resource_id), reason=error.code)
            return done + Done(finished=False)
    return done


async def keep_ahead(engine: Engine) -> Done:
    """Bring the slots of some resources up to date that are due: for the worker, every few seconds.

    Raises:
        Unavailable: it goes on next time.
    """
    clock = asyncio.get_running_loop().time
    enough = clock() + KEEP_SECONDS
    done = Done()
    while clock() < enough:
        claimed = await engine.ledger.repeatable(_CLAIM, (CLAIM_SECONDS, CLAIMED_AT_ONCE))
        for row in claimed:
            done += await _bring_up(engine, row.id, clock() + CLAIM_SECONDS / 2)
        if len(claimed) < CLAIMED_AT_ONCE:
            return done
    return done + Done(finished=False)


async def _bring_up(engine: Engine, resource_id: UUID, deadline: float) -> Done:
    done = Done()
    async for slots, words in _applied(engine.ledger, resource_id, deadline):
        engine.holds.note_new((resource_id, slot) for slot in slots.made[: max(0, MOST_TOLD - done.made)])
        if slots.changed:
            await engine.mirror.slots_changed(slots.changed)
        done += words
    return done


async def bring_up_to_date(ledger: Ledger, resource_id: UUID) -> Done:
    """Make the slots of a resource where there is no mirror to be told yet."""
    done = Done()
    async for _, words in _applied(ledger, resource_id, float("inf")):
        done += words
    return done


async def _applied(ledger: Ledger, resource_id: UUID, deadline: float) -> AsyncIterator[tuple[Slots, Done]]:
    """Apply what the schedules say, portion by portion; tells of each which slots it made and changed."""
    for _ in range(MAX_TRIES):
        plan = await _plan(ledger, resource_id)
        if plan is None:
            return
        for portion in portions(plan, datetime.now(UTC)):
            if asyncio.get_running_loop().time() > deadline:
                yield Slots(), Done(finished=False)
                return
            done = await _apply(ledger, plan, portion)
            if done is None:
                break
            yield done
        else:
            await _finished(ledger, plan)
            return
    yield Slots(), Done(finished=False)


async def _plan(ledger: Ledger, resource_id: UUID) -> Plan | None:
    rows = await ledger.repeatable(_PLAN, (resource_id,))
    if not rows:
        return None
    [row] = rows
    timetables = msgspec.convert(row.timetables, list[Timetable])
    return Plan(resource_id, ZoneInfo(row.timezone), row.schedule_version, row.last_start, timetables)


def portions(plan: Plan, now: datetime) -> Iterator[Portion]:
    """Cut what is to come into portions, the nearest first: as far as something is wanted, or was made before."""
    today = now.astimezone(plan.zone).date()
    ends = [last_day(timetable, today) for timetable in plan.timetables]
    if plan.last_start is not None:
        ends.append(plan.last_start.astimezone(plan.zone).date())
    last = max(ends, default=today - timedelta(days=1))
    from_at, day, wanted = now, today, dict[UUID, Start]()
    first = day
    while day <= last:
        wanted |= _wanted(plan, now, day)
        day += timedelta(days=1)
        if len(wanted) >= PORTION_SLOTS or (day - first).days == PORTION_DAYS or day > last:
            before = moment(datetime.combine(day, time()), plan.zone)
            yield Portion(from_at, before, wanted)
            from_at, first, wanted = before, day, {}


def _wanted(plan: Plan, now: datetime, day: date) -> dict[UUID, Start]:
    """Name what is wanted on a day. Of two schedules that want the same slot the shorter notice is enough."""
    found: dict[UUID, Start] = {}
    for timetable in plan.timetables:
        before = min(day, last_day(timetable, now.astimezone(plan.zone).date())) + timedelta(days=1)
        for start in starts(timetable, plan.zone, day, before):
            if start.at > now:
                named = slot_id(plan.resource_id, start.service, start.at)
                if named not in found or start.notice_minutes < found[named].notice_minutes:
                    found[named] = start
    return found


async def _apply(ledger: Ledger, plan: Plan, portion: Portion) -> tuple[Slots, Done] | None:
    """Have a portion made; None when the plan is not what the schedules say any more."""
    wanted = portion.wanted.values()
    rows = await ledger.repeatable(
        "SELECT what, slot_id FROM apply_schedule("
        "  %s, %s, %s, %s, %s::uuid[], %s::uuid[], %s::timestamptz[], %s::integer[])",
        (
            plan.resource_id,
            plan.version,
            portion.from_at,
            portion.before,
            list(portion.wanted),
            [start.service.id for start in wanted],
            [start.at for start in wanted],
            [start.notice_minutes for start in wanted],
        ),
    )
    words = Counter(row.what for row in rows)
    if "outdated" in words:
        return None
    slots = Slots(
        made=[row.slot_id for row in rows if row.what == "made"],
        changed=[row.slot_id for row in rows if row.what != "made"],
    )
    return slots, Done(made=words["made"], closed=words["closed"], reopened=words["reopened"], changed=words["changed"])


async def _finished(ledger: Ledger, plan: Plan) -> None:
    """Note that a resource is up to date, and when to look again, unless its schedules have changed meanwhile."""
    again = AGAIN_SECONDS if plan.timetables or plan.last_start is not None else None
    await ledger.repeatable(
        "UPDATE resources SET slots_due_at = clock_timestamp() + %s::integer * interval '1 second'"
        " WHERE id = %s AND schedule_version = %s RETURNING id",
        (again, plan.resource_id, plan.version),
    )
