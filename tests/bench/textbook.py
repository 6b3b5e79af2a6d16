"""The baseline: how a reasonable engineer books places on the same stack, without Redis and without batches.

BEGIN; SELECT … FOR UPDATE; UPDATE; INSERT; COMMIT for each request, through SQLAlchemy's async engine on psycopg. It is
correct (the row lock counts exactly) and not crippled: SQLAlchemy Core and not the slower ORM, a warm pool, a primary
key on both tables and an index on the foreign key, ids in the order of time. It keeps no audit log, no idempotency
and no version, which the service does.
"""

import os
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from litestar import Response, post
from litestar.params import JSONBody, SkipValidation
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.api import wire
from app.api.strict import ApiRequest
from app.tokens import new_id

#: As many as can do something at once on a small machine, with some to spare; more only lengthen the lock's queue.
POOL_SIZE = 16

TABLES = """
CREATE TABLE slots_textbook (
    id              uuid        PRIMARY KEY,
    starts_at       timestamptz NOT NULL,
    ends_at         timestamptz NOT NULL,
    capacity        integer     NOT NULL,
    available_count integer     NOT NULL CHECK (available_count BETWEEN 0 AND capacity)
);
CREATE TABLE bookings_textbook (
    id             uuid        PRIMARY KEY,
    slot_id        uuid        NOT NULL REFERENCES slots_textbook (id),
    quantity       integer     NOT NULL CHECK (quantity > 0),
    status         text        NOT NULL,
    customer_name  text        NOT NULL,
    customer_email text        NOT NULL,
    customer_phone text,
    metadata       jsonb       NOT NULL,
    created_at     timestamptz NOT NULL
);
CREATE INDEX bookings_textbook_by_slot ON bookings_textbook (slot_id);
"""

_metadata = sa.MetaData()
slots = sa.Table(
    "slots_textbook",
    _metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("capacity", sa.Integer),
    sa.Column("available_count", sa.Integer),
)
bookings = sa.Table(
    "bookings_textbook",
    _metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("slot_id", sa.Uuid),
    sa.Column("quantity", sa.Integer),
    sa.Column("status", sa.Text),
    sa.Column("customer_name", sa.Text),
    sa.Column("customer_email", sa.Text),
    sa.Column("customer_phone", sa.Text),
    sa.Column("metadata", sa.JSON),
    sa.Column("created_at", sa.TIMESTAMP(timezone=True)),
)


@cache
def _engine() -> AsyncEngine:
    """Make the pool of this process when it is first asked for: the other rows are not to carry its connections."""
    url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://", 1)
    return create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=10)


class Booked(msgspec.Struct, frozen=True):
    """About what the service answers."""

    id: str
    slot_id: str
    quantity: int
    status: str
    customer: wire.CustomerDetails
    metadata: dict[str, Any]
    created_at: datetime
    available_count: int


@post("/bench/textbook", include_in_schema=False)
async def book(request: ApiRequest, data: JSONBody[SkipValidation[wire.BookingOfSlot]]) -> Response[Any]:
    """Book, or answer 409 when there is no room and 404 when there is no slot."""
    booking_id, now = new_id(), datetime.now(UTC)
    async with _engine().begin() as connection:
        locked = sa.select(slots.c.available_count).where(slots.c.id == data.slot_id).with_for_update()
        room = await connection.scalar(locked)
        if room is None or room < data.quantity:
            return Response({"code": "not_found" if room is None else "full"}, status_code=404 if room is None else 409)
        await connection.execute(
            sa.update(slots).where(slots.c.id == data.slot_id).values(available_count=room - data.quantity)
        )
        await connection.execute(
            sa.insert(bookings).values(
                id=booking_id,
                slot_id=data.slot_id,
                quantity=data.quantity,
                status="confirmed",
                customer_name=data.customer.name,
                customer_email=data.customer.email,
                customer_phone=data.customer.phone,
                metadata=data.metadata,
                created_at=now,
            )
        )
    booked = Booked(
        str(booking_id), str(data.slot_id), data.quantity, "confirmed", data.customer, data.metadata, now,
        room - data.quantity,
    )  # fmt: skip
    return Response(msgspec.json.encode(booked), status_code=201, media_type="application/json")
