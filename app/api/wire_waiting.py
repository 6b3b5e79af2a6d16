"""What goes over the wire about the waiting list, in addition to `wire`: the same rules, another subject."""

from datetime import date
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from app import waiting
from app.api import wire


class WaitForSlot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Wait for places of a slot."""

    slot_id: UUID
    quantity: wire.Quantity = 1
    customer: wire.CustomerDetails

    def to_wish(self, key: str | None) -> waiting.Wish:
        return waiting.Wish(slot_id=self.slot_id, quantity=self.quantity, customer=self.customer.normalised(), key=key)


class WaitForDay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Wait for any slot of a service on a day of the venue's calendar; with `resource_id` only of that one."""

    venue: wire.Slug
    service_id: UUID
    day: date
    resource_id: UUID | None = None
    quantity: wire.Quantity = 1
    customer: wire.CustomerDetails

    def to_wish(self, key: str | None) -> waiting.Wish:
        return waiting.Wish(
            venue=self.venue,
            service_id=self.service_id,
            day=self.day,
            resource_id=self.resource_id,
            quantity=self.quantity,
            customer=self.customer.normalised(),
            key=key,
        )


class WaitingQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`slot_id`: who waits for that slot, and who was offered it."""

    venue: wire.Slug | None = None
    slot_id: UUID | None = None
    status: waiting.Status | None = None
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None


class WaitingOffer(msgspec.Struct, frozen=True, kw_only=True):
    """The hold that was made for the customer: to be booked, looked at and given up with its token as any hold. That is
    told while it can be taken, and not to operators.
    """

    hold_id: UUID
    hold_token: str | UnsetType = UNSET
    slot_id: UUID
    offered_at: wire.At
    expires_at: wire.At


class WaitingEntry(msgspec.Struct, frozen=True, kw_only=True):
    """For a slot, or for a service on a day; the other fields are null. `position` 1 is next; null: not waiting any
    more. `token` is told when the line is joined, and never again; it goes into `Waiting-Token`.
    """

    id: UUID
    token: str | UnsetType = UNSET
    venue: str
    slot_id: UUID | None
    service_id: UUID | None
    day: date | None
    resource_id: UUID | None
    quantity: int
    status: waiting.Status
    position: int | None
    customer: wire.CustomerShown
    offer: WaitingOffer | None
    created_at: wire.At
    ended_at: wire.At | None


class WaitingPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[WaitingEntry]
    next_cursor: str | None = None


def entry(known: waiting.Entry, token: str | UnsetType = UNSET, hold_token: str | UnsetType = UNSET) -> WaitingEntry:
    offer = None
    if known.offer is not None:
        offer = WaitingOffer(
            hold_id=known.offer.hold_id,
            hold_token=hold_token,
            slot_id=known.offer.slot_id,
            offered_at=known.offer.at,
            expires_at=known.offer.until,
        )
    return WaitingEntry(
        id=known.id,
        token=token,
        venue=known.venue,
        slot_id=known.slot_id,
        service_id=known.service_id,
        day=known.day,
        resource_id=known.resource_id,
        quantity=known.quantity,
        status=known.status,
        position=known.position,
        customer=wire.CustomerShown(name=known.customer.name, email=known.customer.email, phone=known.customer.phone),
        offer=offer,
        created_at=known.created_at,
        ended_at=known.ended_at,
    )
