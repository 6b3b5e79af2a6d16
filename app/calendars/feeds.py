"""Feeds: which calendars can be subscribed to, and by which secret. Only hashes of secrets are stored.

A secret is told when it is made and never again; a repeated request with the same Idempotency-Key gets it once more,
because it then follows from the key and the service's own secrets.
"""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from app.errors import Conflict, IdempotencyKeyReused, NotFound, ResourceNotFound, VenueNotFound
from app.ledger import Ledger
from app.tokens import id_from_key, new_id, token_hash

Row = Any  # psycopg's named tuples: the fields are those of the statement above each use

#: 192 bits: beyond guessing. In base64 without padding, so that an address needs no escapes.
SECRET_BYTES = 24
ENCODED = "[A-Za-z0-9_-]{32}"
#: An operator's key is for one request, whichever venue that is about.
_EVERY_VENUE = UUID(int=0)

_COLUMNS = "f.id, v.slug AS venue, f.resource_id, r.name AS resource_name, f.created_at, f.rotated_at, f.secret_hash"
_NAMED = "JOIN venues AS v ON v.id = f.venue_id LEFT JOIN resources AS r ON r.id = f.resource_id"
_REPLACED = "The address that was told for this Idempotency-Key was replaced since: rotate the feed"

_CREATE = (
    "WITH made AS ("  # noqa: S608 constants of this module
    "  INSERT INTO calendar_feeds (id, venue_id, resource_id, secret_hash)"
    "  VALUES (%(id)s, %(venue)s, %(resource)s, %(hash)s) ON CONFLICT DO NOTHING RETURNING *"
    "), told AS ("
    "  INSERT INTO events (type, actor, request_id, venue_id, data)"
    "  SELECT 'calendar.created', 'operator', %(request)s, venue_id, jsonb_build_object('feed_id', id) FROM made"
    "), found AS ("
    "  SELECT *, false AS again FROM made UNION ALL"
    "  SELECT *, true AS again FROM calendar_feeds WHERE id = %(id)s)"
    f" SELECT {_COLUMNS}, f.venue_id, f.removed_at, f.again FROM found AS f {_NAMED}"
)
#: That a key was used is written in the same transaction: a late retry must not bring a secret back that was rotated
#: away since.
_ROTATE = (
    "WITH first_time AS ("  # noqa: S608 constants of this module
    "  INSERT INTO answers (scope, idempotency_key, fingerprint, status, body)"
    "  SELECT 'calendar-feed:' || id, %(key)s, ''::bytea, 200, ''::bytea FROM calendar_feeds"
    "  WHERE id = %(id)s AND removed_at IS NULL AND %(key)s::text IS NOT NULL ON CONFLICT DO NOTHING RETURNING 1"
    "), rotated AS ("
    "  UPDATE calendar_feeds SET secret_hash = %(hash)s, rotated_at = clock_timestamp()"
    "  WHERE id = %(id)s AND removed_at IS NULL AND secret_hash <> %(hash)s"
    "    AND (%(key)s::text IS NULL OR EXISTS (SELECT FROM first_time)) RETURNING *"
    "), told AS ("
    "  INSERT INTO events (type, actor, request_id, venue_id, data)"
    "  SELECT 'calendar.rotated', 'operator', %(request)s, venue_id, jsonb_build_object('feed_id', id) FROM rotated"
    "), found AS ("
    "  SELECT *, false AS again FROM rotated UNION ALL"
    "  SELECT *, true AS again FROM calendar_feeds"
    "  WHERE id = %(id)s AND removed_at IS NULL AND NOT EXISTS (SELECT FROM rotated))"
    f" SELECT {_COLUMNS}, f.again FROM found AS f {_NAMED}"
)


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """A calendar that can be subscribed to: a person's (or place's or event's), or a whole venue's."""

    id: UUID
    venue: str
    #: None, with the name: the whole venue.
    resource_id: UUID | None
    resource_name: str | None
    created_at: datetime
    #: None: it has its first secret.
    rotated_at: datetime | None
    #: For whoever made or rotated it, and for nobody after that.
    secret: str | None = None

    def __repr__(self) -> str:
        return f"Feed(id={self.id!r})"


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Whose calendar a secret opens."""

    venue_id: UUID
    venue_name: str
    resource_id: UUID | None
    resource_name: str | None


async def create(
    ledger: Ledger,
    venue: str,
    resource_id: UUID | None,
    request_id: str | None,
    *,
    derived_from: Sequence[str] = (),
    key: str | None = None,
) -> tuple[Feed, bool]:
    """Make a feed and its secret; tells whether an earlier request with this Idempotency-Key had made it.

    With a key the secret follows from it and from the service's own (`derived_from`, the first counts).

    Raises:
        VenueNotFound, ResourceNotFound. IdempotencyKeyReused: the key made another feed.
        Conflict: there is such a feed already; or the one that the key made has another secret by now, or is removed.
    """
    venue_id = await _venue_id(ledger, venue)
    if resource_id is not None:
        await _require_resource(ledger, venue_id, resource_id)
    feed_id = id_from_key("calendar-feed", _EVERY_VENUE, key) if key else new_id()
    offered = _secrets(derived_from, b"made", feed_id, key)
    values = {
        "id": feed_id,
        "venue": venue_id,
        "resource": resource_id,
        "hash": token_hash(offered[0]),
        "request": request_id,
    }
    # A second look, because the first does not see what was committed while it waited: the same request, say.
    row = (await ledger.repeatable(_CREATE, values) or await ledger.repeatable(_CREATE, values) or [None])[0]
    if row is None:
        raise Conflict("There is a feed of this calendar already: rotate it to be told a new address")
    if (row.venue_id, row.resource_id) != (venue_id, resource_id):
        raise IdempotencyKeyReused
    if row.removed_at is not None:
        raise Conflict("The calendar feed that this Idempotency-Key made was removed")
    if (secret := _known(row, offered)) is None:
        raise Conflict(_REPLACED)
    return _feed(row, secret), row.again and key is not None


async def listed(ledger: Ledger, venue: str | None, after: tuple[datetime, UUID] | None, limit: int) -> list[Feed]:
    """List feeds in the order in which they were made, behind a position.

    Raises:
        VenueNotFound
    """
    venue_id = await _venue_id(ledger, venue) if venue is not None else None
    rows = await ledger.repeatable(
        f"SELECT {_COLUMNS} FROM calendar_feeds AS f {_NAMED}"  # noqa: S608 constants of this module
        " WHERE f.removed_at IS NULL AND (%(venue)s::uuid IS NULL OR f.venue_id = %(venue)s)"
        "   AND (%(at)s::timestamptz IS NULL OR (f.created_at, f.id) > (%(at)s, %(id)s))"
        " ORDER BY f.created_at, f.id LIMIT %(limit)s",
        {"venue": venue_id, "at": after[0] if after else None, "id": after[1] if after else None, "limit": limit},
    )
    return [_feed(row) for row in rows]


async def rotate(
    ledger: Ledger,
    feed_id: UUID,
    request_id: str | None,
    *,
    derived_from: Sequence[str] = (),
    key: str | None = None,
) -> tuple[Feed, bool]:
    """Give a feed a new secret; the one before opens nothing from now on.

    Raises:
        NotFound. Conflict: this key rotated it before, and the secret of then is not the feed's any more.
    """
    offered = _secrets(derived_from, b"rotated", feed_id, key)
    values = {"id": feed_id, "hash": token_hash(offered[0]), "key": key, "request": request_id}
    for _ in range(2):  # as in `create`
        row = _only(await ledger.repeatable(_ROTATE, values))
        if (secret := _known(row, offered)) is not None:
            return _feed(row, secret), row.again and key is not None
    raise Conflict(_REPLACED)


async def remove(ledger: Ledger, feed_id: UUID, request_id: str | None) -> None:
    """Close a feed for whoever knows its secret; harmless when it was removed before.

    Raises:
        NotFound: there never was such a feed.
    """
    rows = await ledger.repeatable(
        "WITH removed AS ("
        "  UPDATE calendar_feeds SET removed_at = clock_timestamp(), secret_hash = NULL"
        "  WHERE id = %(id)s AND removed_at IS NULL RETURNING id, venue_id"
        "), told AS ("
        "  INSERT INTO events (type, actor, request_id, venue_id, data)"
        "  SELECT 'calendar.removed', 'operator', %(request)s, venue_id, jsonb_build_object('feed_id', id) FROM removed"
        ") SELECT id FROM calendar_feeds WHERE id = %(id)s",
        {"id": feed_id, "request": request_id},
    )
    _only(rows)


async def opened_by(ledger: Ledger, secret: str) -> Subject:
    """Find whose calendar a secret opens. It is looked up by its hash: how long that takes tells nothing of the secret.

    Raises:
        NotFound: whatever is wrong with it.
    """
    if not re.fullmatch(ENCODED, secret):
        raise NotFound("Calendar not found")
    rows = await ledger.repeatable(
        f"SELECT f.venue_id, v.name AS venue_name, f.resource_id, r.name AS resource_name"  # noqa: S608 a constant
        f" FROM calendar_feeds AS f {_NAMED} WHERE f.secret_hash = %s",
        (token_hash(secret),),
    )
    if not rows:
        raise NotFound("Calendar not found")
    [row] = rows
    return Subject(
        venue_id=row.venue_id, venue_name=row.venue_name, resource_id=row.resource_id, resource_name=row.resource_name
    )


async def _venue_id(ledger: Ledger, slug: str) -> UUID:
    rows = await ledger.repeatable("SELECT id FROM venues WHERE slug = %s", (slug,))
    if not rows:
        raise VenueNotFound
    found: UUID = rows[0].id
    return found


async def _require_resource(ledger: Ledger, venue_id: UUID, resource_id: UUID) -> None:
    # Neither is ever deleted: what is there now is there when the feed refers to it.
    if not await ledger.repeatable("SELECT 1 FROM resources WHERE id = %s AND venue_id = %s", (resource_id, venue_id)):
        raise ResourceNotFound


def _secrets(derived_from: Sequence[str], purpose: bytes, feed_id: UUID, key: str | None) -> list[str]:
    """List what the secret may be, the one to store first: one for each of the service's own, of which a few may be in
    use while those are rotated.
    """
    if key is None or not derived_from:
        return [_written(os.urandom(SECRET_BYTES))]
    message = b"\0".join((b"calendar", purpose, feed_id.bytes + key.encode()))
    return [_written(hmac.digest(own.encode(), message, hashlib.sha256)) for own in derived_from]


def _written(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw[:SECRET_BYTES]).decode()


def _known(row: Row, offered: Sequence[str]) -> str | None:
    """Tell which of these secrets is the feed's; None: it has another one by now."""
    return next((secret for secret in offered if token_hash(secret) == bytes(row.secret_hash)), None)


def _only(rows: Sequence[Row]) -> Row:
    if not rows:
        raise NotFound("Calendar feed not found")
    return rows[0]


def _feed(row: Row, secret: str | None = None) -> Feed:
    return Feed(
        id=row.id, venue=row.venue, resource_id=row.resource_id, resource_name=row.resource_name,
        created_at=row.created_at, rotated_at=row.rotated_at, secret=secret,
    )  # fmt: skip
