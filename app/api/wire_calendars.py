"""What goes over the wire about calendar feeds, in addition to `wire`: the same rules, another subject."""

from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from app.api import wire
from app.calendars import feeds


class CalendarFeedWanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let a resource's calendar be subscribed to; without `resource_id`, the whole venue's."""

    venue: wire.Slug
    resource_id: UUID | None = None


class CalendarFeedQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    venue: wire.Slug | None = None
    limit: wire.Limit = 50
    cursor: wire.Cursor | None = None


class CalendarFeed(msgspec.Struct, frozen=True, kw_only=True):
    """`url` is told when the feed is made or rotated, and never again; `resource` null: the whole venue."""

    id: UUID
    venue: str
    resource: wire.Named | None
    url: str | UnsetType = UNSET
    created_at: wire.At
    rotated_at: wire.At | None


class CalendarFeedPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[CalendarFeed]
    next_cursor: str | None = None


def feed(known: feeds.Feed, url: str | UnsetType = UNSET) -> CalendarFeed:
    resource = None
    if known.resource_id is not None and known.resource_name is not None:
        resource = wire.Named(id=known.resource_id, name=known.resource_name)
    return CalendarFeed(
        id=known.id,
        venue=known.venue,
        resource=resource,
        url=url,
        created_at=known.created_at,
        rotated_at=known.rotated_at,
    )
