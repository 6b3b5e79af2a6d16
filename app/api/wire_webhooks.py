"""What goes over the wire about webhooks, in addition to `wire`: where venues have their events sent, and what became
of each. What is sent there is the matter of `app.webhooks.sending`.
"""

from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from app.api import wire
from app.api.strict import said, whole
from app.webhooks import deliveries, endpoints, target

_URL = said(whole(target.URL), "Not an address, such as https://salon.example/hooks")
_SENT_TYPE = said(whole(deliveries.SENT_TYPES), "Not a type that is sent, such as booking.confirmed")
SentType = Annotated[str, Meta(max_length=81, pattern=_SENT_TYPE, description="such as `booking.confirmed`")]


class WebhookEndpointWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Have a venue's events sent to a system of its own; without `types`, all that are ever sent."""

    venue: wire.Slug
    url: Annotated[str, Meta(max_length=target.MAX_URL_LENGTH, pattern=_URL, description="https, on a public address")]
    types: Annotated[list[SentType], Meta(min_length=1, max_length=50)] | None = None

    def to_new(self) -> endpoints.NewEndpoint:
        return endpoints.NewEndpoint(venue=self.venue, url=self.url, types=self.types)


class WebhookEndpointQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug | None = None
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None


class WebhookDeliveryQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug | None = None
    status: deliveries.Status | None = None
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None


class WebhookEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`secret` is told when the endpoint is made or its secret rotated, and never again; `types` null: all of them.
    Until `old_secret_until` the secret before signs as well.
    """

    id: UUID
    venue: str
    url: str
    types: list[str] | None
    secret: str | UnsetType = UNSET
    enabled: bool
    created_at: wire.At
    disabled_at: wire.At | None
    disabled_why: str | None
    old_secret_until: wire.At | None


class WebhookEndpointPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[WebhookEndpoint]
    next_cursor: str | None = None


class WebhookDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is the `webhook-id` that the receiver gets, `event_seq` the `seq` of the event. `answer_status` null: there
    was no answer, and `error` says why; `next_at` null: no attempt will follow.
    """

    id: UUID
    endpoint_id: UUID
    venue: str
    event_seq: int
    type: str
    status: deliveries.Status
    attempts: int
    answer_status: int | None
    error: str | None
    next_at: wire.At | None
    created_at: wire.At
    delivered_at: wire.At | None


class WebhookDeliveryPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[WebhookDelivery]
    next_cursor: str | None = None


def endpoint(known: endpoints.Endpoint, *, with_secret: bool = False) -> WebhookEndpoint:
    return WebhookEndpoint(
        id=known.id,
        venue=known.venue,
        url=known.url,
        types=known.types,
        secret=known.secret if with_secret else UNSET,
        enabled=known.disabled_at is None,
        created_at=known.created_at,
        disabled_at=known.disabled_at,
        disabled_why=known.disabled_why,
        old_secret_until=known.old_secret_until,
    )


def delivery(known: deliveries.Delivery) -> WebhookDelivery:
    return WebhookDelivery(**msgspec.structs.asdict(known))
