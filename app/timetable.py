"""Services, and when they can be booked: what operators keep, beside the catalogue.

Every change notes, in its own transaction, that the slots of the resources concerned are due. Making them is
`schedules`, afterwards: a change is committed whether or not its slots can be made at once.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.catalogue import SERVICES, require_venue, service_of, slots_are_due
from app.database import Answer, Database, Keyed, audit
from app.domain import Hours, Schedule, ScheduleException, Service
from app.errors import Conflict, InvalidRequest, NotFound, ResourceNotFound
from app.schema import (
    resources,
    schedule_exceptions,
    schedule_hours,
    schedule_services,
    schedules,
    service_resources,
    services,
    venues,
)
from app.tokens import new_id

Row = Any

#: Slots that one schedule may make on one day: a mistyped step must not fill the database.
MOST_A_DAY = 1_000
#: Schedules of a resource, and exceptions of a schedule.
MOST_SCHEDULES = 20
MOST_EXCEPTIONS = 1_000


class NewService(msgspec.Struct, frozen=True, kw_only=True):
    venue: str
    name: str
    duration_minutes: int
    buffer_minutes: int
    capacity: int
    price_amount: int | None
    price_currency: str | None
    resource_ids: list[UUID]


class NewSchedule(msgspec.Struct, frozen=True, kw_only=True):
    resource_id: UUID
    service_ids: list[UUID]
    hours: list[Hours]
    step_minutes: int
    from_date: date
    to_date: date | None
    notice_minutes: int
    horizon_days: int


class NewException(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    from_date: date
    to_date: date
    opens: int | None
    closes: int | None
    note: str | None


# -- services ---------------------------------------------------------------------------------------------------------


async def list_services(
    database: Database, venue: str | None, after: tuple[datetime, UUID] | None, limit: int
) -> list[Service]:
    """List services in the order they were made, also those that are not offered any more.

    Raises:
        VenueNotFound
    """
    query = SERVICES.order_by(services.c.created_at, services.c.id).limit(limit)
    if venue is not None:
        query = query.where(venues.c.slug == venue)
    if after is not None:
        query = query.where(sa.tuple_(services.c.created_at, services.c.id) > sa.tuple_(*after))

    async def read(connection: AsyncConnection) -> list[Service]:
        rows = (await connection.execute(query)).all()
        if not rows and venue is not None:
            await require_venue(connection, venue)
        return [service_of(row) for row in rows]

    return await database.read(read)


async def create_service(
    database: Database,
    new: NewService,
    keyed: Keyed | None,
    request_id: str | None,
    render: Callable[[Service], bytes],
) -> Answer:
    """Create a service.

    Raises:
        VenueNotFound, ResourceNotFound: also for a resource of another venue.
    """

    async def create(connection: AsyncConnection) -> bytes:
        venue_id = await require_venue(connection, new.venue)
        values = {**msgspec.structs.asdict(new), "id": new_id(), "venue_id": venue_id}
        del values["venue"], values["resource_ids"]
        await connection.execute(sa.insert(services).values(values))
        await _offer(connection, venue_id, [(values["id"], resource_id) for resource_id in new.resource_ids])
        event = {"venue_id": venue_id, "data": {"service_id": str(values["id"]), "name": new.name}}
        await audit(connection, "service.created", request_id, [event])
        return render(await _service(connection, values["id"]))

    return await database.once(keyed, create)


async def change_service(
    database: Database,
    service_id: UUID,
    changes: Mapping[str, Any],
    resource_ids: Sequence[UUID] | None,
    request_id: str | None,
) -> tuple[Service, list[UUID]]:
    """Change columns of a service, and who offers it; returns also the resources whose slots are due.

    What was booked stays as it was sold. Slots nobody booked follow: a new length closes the old ones and makes others.

    Raises:
        NotFound, ResourceNotFound
    """

    async def change(connection: AsyncConnection) -> tuple[Service, list[UUID]]:
        of_service = services.c.id == service_id
        due = await _take_users_of(connection, service_id, besides=())
        venue_id = await connection.scalar(sa.select(services.c.venue_id).where(of_service).with_for_update())
        if venue_id is None:
            raise NotFound("Service not found")
        # A schedule that was being made meanwhile had a share of that lock: now it is there to be seen.
        due += await _take_users_of(connection, service_id, besides=due)
        if changes:
            await connection.execute(sa.update(services).where(of_service).values(changes))
        if resource_ids is not None:
            kept = service_resources.c.resource_id == sa.any_(sa.literal(list(resource_ids), sa.ARRAY(sa.Uuid)))
            others = sa.and_(service_resources.c.service_id == service_id, sa.not_(kept))
            await connection.execute(sa.delete(service_resources).where(others))
            await _offer(connection, venue_id, [(service_id, resource_id) for resource_id in resource_ids])
        changed = sorted([*changes, *(["resource_ids"] if resource_ids is not None else [])])
        if changed:
            event = {"venue_id": venue_id, "data": {"service_id": str(service_id), "changed": changed}}
            await audit(connection, "service.updated", request_id, [event])
        return await _service(connection, service_id), due

    return await database.write(change)


async def _take_users_of(connection: AsyncConnection, service_id: UUID, besides: Sequence[UUID]) -> list[UUID]:
    """Lock the resources with schedules of a service, and note that their slots are due."""
    query = sa.select(schedule_services.c.resource_id).where(schedule_services.c.service_id == service_id).distinct()
    found = [resource_id for resource_id in (await connection.scalars(query)).all() if resource_id not in besides]
    await slots_are_due(connection, resources.c.id == sa.any_(sa.literal(found, sa.ARRAY(sa.Uuid))))
    return found


async def _service(connection: AsyncConnection, service_id: UUID) -> Service:
    return service_of((await connection.execute(SERVICES.where(services.c.id == service_id))).one())


async def _offer(connection: AsyncConnection, venue_id: UUID, offers: Sequence[tuple[UUID, UUID]]) -> None:
    """Have resources offer services, if they do not yet. That all are of one venue, the database sees to."""
    rows = [{"service_id": service, "resource_id": resource, "venue_id": venue_id} for service, resource in offers]
    if rows:
        await connection.execute(insert(service_resources).on_conflict_do_nothing(), rows)


# -- schedules --------------------------------------------------------------------------------------------------------


async def list_schedules(
    database: Database,
    venue: str | None,
    resource_id: UUID | None,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Schedule]:
    """List schedules in the order they were made.

    Raises:
        VenueNotFound
    """
    query = sa.select(schedules).order_by(schedules.c.created_at, schedules.c.id).limit(limit)
    if venue is not None:
        this_venue = sa.select(venues.c.id).where(venues.c.slug == venue).scalar_subquery()
        query = query.where(schedules.c.venue_id == this_venue)
    if resource_id is not None:
        query = query.where(schedules.c.resource_id == resource_id)
    if after is not None:
        query = query.where(sa.tuple_(schedules.c.created_at, schedules.c.id) > sa.tuple_(*after))

    async def read(connection: AsyncConnection) -> list[Schedule]:
        rows = (await connection.execute(query)).all()
        if not rows and venue is not None:
            await require_venue(connection, venue)
        return await _whole(connection, rows)

    return await database.read(read)


async def read_schedule(database: Database, schedule_id: UUID) -> Schedule:
    """Read a schedule.

    Raises:
        NotFound
    """
    return await database.read(lambda connection: _schedule(connection, schedule_id))


async def create_schedule(
    database: Database,
    new: NewSchedule,
    keyed: Keyed | None,
    request_id: str | None,
    render: Callable[[Schedule], bytes],
) -> Answer:
    """Create a schedule. Its resource offers the services from then on, if it did not before.

    Raises:
        ResourceNotFound. NotFound: a service that does not exist, or is another venue's.
    """

    async def create(connection: AsyncConnection) -> bytes:
        venue_id = await _take_resource(connection, new.resource_id)
        already = sa.select(sa.func.count()).where(schedules.c.resource_id == new.resource_id)
        if (await connection.scalar(already) or 0) >= MOST_SCHEDULES:
            raise Conflict(f"A resource has {MOST_SCHEDULES} schedules at most")
        schedule_id = new_id()
        values = {**msgspec.structs.asdict(new), "id": schedule_id, "venue_id": venue_id}
        del values["service_ids"], values["hours"]
        await connection.execute(sa.insert(schedules).values(values))
        await _set_services(connection, venue_id, schedule_id, new.resource_id, new.service_ids)
        await _set_hours(connection, schedule_id, new.hours)
        event = {"venue_id": venue_id, "data": _about(schedule_id, new.resource_id)}
        await audit(connection, "schedule.created", request_id, [event])
        return render(_bounded(await _schedule(connection, schedule_id)))

    return await database.once(keyed, create)


async def change_schedule(
    database: Database,
    schedule_id: UUID,
    changes: Mapping[str, Any],
    *,
    service_ids: Sequence[UUID] | None,
    hours: Sequence[Hours] | None,
    request_id: str | None,
) -> Schedule:
    """Change columns of a schedule; a list that is given takes the place of the old one.

    Raises:
        NotFound: the schedule, or a service.
    """

    async def change(connection: AsyncConnection) -> Schedule:
        venue_id, resource_id = await _take_schedule(connection, schedule_id)
        if changes:
            await connection.execute(sa.update(schedules).where(schedules.c.id == schedule_id).values(changes))
        if service_ids is not None:
            await _set_services(connection, venue_id, schedule_id, resource_id, service_ids)
        if hours is not None:
            await _set_hours(connection, schedule_id, hours)
        lists = {"service_ids": service_ids, "weekly": hours}
        changed = sorted([*changes, *(name for name, given in lists.items() if given is not None)])
        event = {"venue_id": venue_id, "data": {**_about(schedule_id, resource_id), "changed": changed}}
        await audit(connection, "schedule.updated", request_id, [event])
        return _bounded(await _schedule(connection, schedule_id))

    return await database.write(change)


async def delete_schedule(database: Database, schedule_id: UUID, request_id: str | None) -> UUID:
    """Delete a schedule and its exceptions; returns the resource, whose slots are due.

    Raises:
        NotFound
    """

    async def delete(connection: AsyncConnection) -> UUID:
        venue_id, resource_id = await _take_schedule(connection, schedule_id)
        await connection.execute(sa.delete(schedules).where(schedules.c.id == schedule_id))
        event = {"venue_id": venue_id, "data": _about(schedule_id, resource_id)}
        await audit(connection, "schedule.deleted", request_id, [event])
        return resource_id

    return await database.write(delete)


async def create_exception(
    database: Database,
    schedule_id: UUID,
    new: NewException,
    *,
    keyed: Keyed | None,
    request_id: str | None,
    render: Callable[[ScheduleException], bytes],
) -> tuple[Answer, UUID]:
    """Add days that are not like the others; returns also the resource, whose slots are due.

    Raises:
        NotFound
    """
    resource_id = (await read_schedule(database, schedule_id)).resource_id

    async def create(connection: AsyncConnection) -> bytes:
        venue_id, _ = await _take_schedule(connection, schedule_id)
        already = sa.select(sa.func.count()).where(schedule_exceptions.c.schedule_id == schedule_id)
        if (await connection.scalar(already) or 0) >= MOST_EXCEPTIONS:
            raise Conflict(f"A schedule has {MOST_EXCEPTIONS} exceptions at most")
        values = {**msgspec.structs.asdict(new), "id": new_id(), "schedule_id": schedule_id}
        query = sa.insert(schedule_exceptions).values(values).returning(schedule_exceptions)
        row = (await connection.execute(query)).one()
        event = {"venue_id": venue_id, "data": {**_about(schedule_id, resource_id), "exception_id": str(row.id)}}
        await audit(connection, "schedule.updated", request_id, [event])
        return render(_exception(row))

    return await database.once(keyed, create), resource_id


async def delete_exception(database: Database, schedule_id: UUID, exception_id: UUID, request_id: str | None) -> UUID:
    """Take an exception back; returns the resource, whose slots are due.

    Raises:
        NotFound: the schedule, or the exception.
    """

    async def delete(connection: AsyncConnection) -> UUID:
        venue_id, resource_id = await _take_schedule(connection, schedule_id)
        this = sa.and_(schedule_exceptions.c.schedule_id == schedule_id, schedule_exceptions.c.id == exception_id)
        if (await connection.execute(sa.delete(schedule_exceptions).where(this))).rowcount == 0:
            raise NotFound("Exception not found")
        event = {"venue_id": venue_id, "data": {**_about(schedule_id, resource_id), "exception_id": str(exception_id)}}
        await audit(connection, "schedule.updated", request_id, [event])
        return resource_id

    return await database.write(delete)


# -- in a transaction -------------------------------------------------------------------------------------------------


async def _take_resource(connection: AsyncConnection, resource_id: UUID) -> UUID:
    """Lock a resource and note that its slots are due; returns its venue."""
    await slots_are_due(connection, resources.c.id == resource_id)
    query = sa.select(resources.c.venue_id).where(resources.c.id == resource_id)
    venue_id: UUID | None = await connection.scalar(query)
    if venue_id is None:
        raise ResourceNotFound
    return venue_id


async def _take_schedule(connection: AsyncConnection, schedule_id: UUID) -> tuple[UUID, UUID]:
    """Lock the resource of a schedule, as for every change, and see that the schedule is there; tells whose it is."""
    query = sa.select(schedules.c.venue_id, schedules.c.resource_id).where(schedules.c.id == schedule_id)
    found = (await connection.execute(query)).one_or_none()
    if found is None:
        raise NotFound("Schedule not found")
    await slots_are_due(connection, resources.c.id == found.resource_id)
    if (await connection.execute(query)).one_or_none() is None:  # deleted while we waited for the lock
        raise NotFound("Schedule not found")
    return found.venue_id, found.resource_id


async def _set_services(
    connection: AsyncConnection, venue_id: UUID, schedule_id: UUID, resource_id: UUID, service_ids: Sequence[UUID]
) -> None:
    wanted = list(dict.fromkeys(service_ids))
    # Who changes one of them waits until we are done, and then knows that these slots are due, too.
    this = sa.and_(services.c.venue_id == venue_id, services.c.id == sa.any_(sa.literal(wanted, sa.ARRAY(sa.Uuid))))
    locked = sa.select(services.c.id).where(this).order_by(services.c.id).with_for_update(read=True, key_share=True)
    if len((await connection.scalars(locked)).all()) != len(wanted):
        raise NotFound("Service not found")
    await _offer(connection, venue_id, [(service_id, resource_id) for service_id in wanted])
    await connection.execute(sa.delete(schedule_services).where(schedule_services.c.schedule_id == schedule_id))
    rows = [{"schedule_id": schedule_id, "service_id": each, "resource_id": resource_id} for each in wanted]
    await connection.execute(sa.insert(schedule_services), rows)


async def _set_hours(connection: AsyncConnection, schedule_id: UUID, hours: Sequence[Hours]) -> None:
    await connection.execute(sa.delete(schedule_hours).where(schedule_hours.c.schedule_id == schedule_id))
    rows = [{"schedule_id": schedule_id, **msgspec.structs.asdict(each)} for each in hours]
    if rows:
        await connection.execute(sa.insert(schedule_hours), rows)


def _about(schedule_id: UUID, resource_id: UUID) -> dict[str, str]:
    return {"schedule_id": str(schedule_id), "resource_id": str(resource_id)}


def _bounded(schedule: Schedule) -> Schedule:
    """Refuse a schedule that would make absurdly many slots."""
    a_day = [0] * 8
    for each in schedule.hours:
        a_day[each.weekday] += (each.closes - each.opens - 1) // schedule.step_minutes + 1
    if max(a_day) * len(schedule.service_ids) > MOST_A_DAY:
        raise InvalidRequest("step_minutes", f"More than {MOST_A_DAY} slots a day: longer steps, or fewer services")
    return schedule


# -- rows to values ---------------------------------------------------------------------------------------------------


async def _schedule(connection: AsyncConnection, schedule_id: UUID) -> Schedule:
    rows = (await connection.execute(sa.select(schedules).where(schedules.c.id == schedule_id))).all()
    if not rows:
        raise NotFound("Schedule not found")
    return (await _whole(connection, rows))[0]


async def _whole(connection: AsyncConnection, rows: Sequence[Row]) -> list[Schedule]:
    """Read what belongs to schedules; of services only those that are offered, in the order they were made."""
    ids = sa.literal([row.id for row in rows], sa.ARRAY(sa.Uuid))
    offered = (
        sa.select(schedule_services.c.schedule_id, services.c.id)
        .join(services, services.c.id == schedule_services.c.service_id)
        .where(schedule_services.c.schedule_id == sa.any_(ids))
        .order_by(services.c.created_at, services.c.id)
    )
    hours = (
        sa.select(schedule_hours)
        .where(schedule_hours.c.schedule_id == sa.any_(ids))
        .order_by(schedule_hours.c.weekday, schedule_hours.c.opens)
    )
    exceptions = (
        sa.select(schedule_exceptions)
        .where(schedule_exceptions.c.schedule_id == sa.any_(ids))
        .order_by(schedule_exceptions.c.from_date, schedule_exceptions.c.created_at, schedule_exceptions.c.id)
    )
    services_of: dict[UUID, list[UUID]] = {}
    for row in (await connection.execute(offered)).all():
        services_of.setdefault(row.schedule_id, []).append(row.id)
    hours_of: dict[UUID, list[Hours]] = {}
    for row in (await connection.execute(hours)).all():
        hours_of.setdefault(row.schedule_id, []).append(Hours(row.weekday, row.opens, row.closes))
    exceptions_of: dict[UUID, list[ScheduleException]] = {}
    for row in (await connection.execute(exceptions)).all():
        exceptions_of.setdefault(row.schedule_id, []).append(_exception(row))
    return [
        Schedule(
            id=row.id,
            resource_id=row.resource_id,
            service_ids=services_of.get(row.id, []),
            hours=hours_of.get(row.id, []),
            exceptions=exceptions_of.get(row.id, []),
            step_minutes=row.step_minutes,
            from_date=row.from_date,
            to_date=row.to_date,
            notice_minutes=row.notice_minutes,
            horizon_days=row.horizon_days,
            created_at=row.created_at,
        )
        for row in rows
    ]


def _exception(row: Row) -> ScheduleException:
    return ScheduleException(
        id=row.id,
        kind=row.kind,
        from_date=row.from_date,
        to_date=row.to_date,
        opens=row.opens,
        closes=row.closes,
        note=row.note,
    )
