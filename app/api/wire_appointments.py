"""What goes over the wire of the salon's page, beside `wire`: one route's body and answers, in the words that its
programs know (S4-1, S4-2).
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app import domain
from app.api import wire
from app.api.strict import NOT_BLANK, instant
from app.domain import BookingStatus
from app.errors import InvalidRequest

Text100 = Annotated[str, Meta(min_length=1, max_length=99, pattern=NOT_BLANK)]


class AppointmentWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A service with a person at a time, in the words of the salon's page."""

    service_id: UUID
    staff_id: UUID
    start_time: wire.Instant
    first_name: Text100
    last_name: Text100
    email: wire.Email
    phone: Annotated[str, Meta(min_length=1, max_length=40)] | None = None

    def starts_at(self) -> datetime:
        try:
            return instant(self.start_time, "startTime")
        except ValueError as error:
            raise InvalidRequest("startTime", str(error)) from None

    def customer(self) -> domain.Customer:
        name = f"{self.first_name.strip()} {self.last_name.strip()}"
        return wire.CustomerDetails(name=name, email=self.email, phone=self.phone).normalised()


class Appointment(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A booked appointment. The manage token is told here, and never again."""

    id: UUID
    status: BookingStatus
    service_id: UUID
    staff_id: UUID
    slot_id: UUID
    start_time: wire.At
    end_time: wire.At
    manage_token: str
    created_at: wire.At


class AppointmentOffer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A free time of the same service."""

    start_time: wire.At
    end_time: wire.At
    staff_id: UUID
    slot_id: UUID


class AppointmentFailure(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str
    field: str | UnsetType = UNSET


class AppointmentError(msgspec.Struct, frozen=True, kw_only=True):
    """What this one route answers instead of a problem. `alternatives` come with TIME_CONFLICT."""

    error: AppointmentFailure
    alternatives: list[AppointmentOffer] | UnsetType = UNSET
