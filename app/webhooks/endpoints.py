"""Endpoints: where a venue's webhooks go, and the secrets that sign them. Postgres only."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from app.errors import Conflict, IdempotencyKeyReused, InvalidRequest, NotFound, VenueNotFound
from app.ledger import Ledger
from app.tokens import id_from_key, new_id
from app.webhooks.target import NotAllowed, require_plausible

Row = Any  # psycopg's named tuples: the fields are those of the statement above each use

#: Every event of a venue goes to each of them.
MOST_PER_VENUE = 20
#: While a secret is rotated, the old one signs as well for so long: time enough to tell the receiver the new one.
ROTATION_HOURS = 24
SECRET_BYTES = 32
#: An operator's key is for one request, whichever venue that is about.
_EVERY_VENUE = UUID(int=0)

_COLUMNS = (
    "w.id, v.slug AS venue, w.url, w.secret, w.types, w.created_at, w.disabled_at, w.disabled_why,"
    " CASE WHEN w.old_secret_until > clock_timestamp() THEN w.old_secret_until END AS old_secret_until"
)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where webhooks go. The secret is for whoever made or rotated it, and for nobody after that."""

    id: UUID
    venue: str
    url: str
    secret: str
    #: None: every type that is sent at all.
    types: list[str] | None
    created_at: datetime
    disabled_at: datetime | None
    disabled_why: str | None
    #: Until then another secret signs beside this one; None: it is the only one.
    old_secret_until: datetime | None

    def __repr__(self) -> str:
        return f"Endpoint(id={self.id!r})"


class NewEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    venue: str
    url: str
    types: list[str] | None = None


async def create(
    ledger: Ledger, new: NewEndpoint, key: str | None, request_id: str | None, *, allow_private: bool
) -> tuple[Endpoint, bool]:
    """Make an endpoint and its secret; tells whether an earlier request with this Idempotency-Key had made it.

    What is found then is the endpoint as it is now, so that no secret is kept anywhere else.

    Raises:
        VenueNotFound. InvalidRequest: nothing may be sent to that URL. Conflict: the venue has enough of them.
        IdempotencyKeyReused: the key made another endpoint.
    """
    try:
        require_plausible(new.url, allow_private=allow_private)
    except NotAllowed as refused:
        raise InvalidRequest("url", str(refused)) from None
    types = sorted(set(new.types)) if new.types is not None else None
    values = {
        "id": id_from_key("webhook-endpoint", _EVERY_VENUE, key) if key else new_id(),
        "venue": await venue_id_of(ledger, new.venue),
        "url": new.url,
        "secret": _secret(),
        "types": types,
        "request": request_id,
        "most": MOST_PER_VENUE,
    }
    # Of two at once under one key, the second waits for the first, and cannot see its row until it asks once more.
    rows = await _made_or_found(ledger, values) or await _made_or_found(ledger, values)
    if not rows:
        raise Conflict(f"The venue has {MOST_PER_VENUE} webhook endpoints already")
    [row] = rows
    if row.removed_at is not None:
        raise Conflict("The webhook endpoint that this Idempotency-Key made was removed")
    found = _endpoint(row)
    if (found.venue, found.url, found.types) != (new.venue, new.url, types):
        raise IdempotencyKeyReused
    return found, row.again and key is not None


async def _made_or_found(ledger: Ledger, values: Mapping[str, Any]) -> list[Row]:
    return await ledger.repeatable(
        "WITH made AS ("  # noqa: S608 constants of this module
        "  INSERT INTO webhook_endpoints (id, venue_id, url, secret, types)"
        "  SELECT %(id)s, %(venue)s, %(url)s, %(secret)s, %(types)s::text[]"
        "  WHERE (SELECT count(*) FROM webhook_endpoints WHERE venue_id = %(venue)s AND removed_at IS NULL) < %(most)s"
        "  ON CONFLICT (id) DO NOTHING RETURNING *"
        "), told AS ("
        "  INSERT INTO events (type, actor, request_id, venue_id, data)"
        "  SELECT 'webhook.created', 'operator', %(request)s, venue_id, jsonb_build_object('endpoint_id', id) FROM made"
        "), found AS ("
        "  SELECT *, false AS again FROM made UNION ALL"
        "  SELECT *, true AS again FROM webhook_endpoints WHERE id = %(id)s)"
        f" SELECT {_COLUMNS}, w.removed_at, w.again FROM found AS w JOIN venues AS v ON v.id = w.venue_id",
        values,
    )


async def listed(ledger: Ledger, venue: str | None, after: tuple[datetime, UUID] | None, limit: int) -> list[Endpoint]:
    """List endpoints in the order in which they were made, behind a position.

    Raises:
        VenueNotFound
    """
    venue_id = await venue_id_of(ledger, venue) if venue is not None else None
    rows = await ledger.repeatable(
        f"SELECT {_COLUMNS} FROM webhook_endpoints AS w JOIN venues AS v ON v.id = w.venue_id"  # noqa: S608
        " WHERE w.removed_at IS NULL AND (%(venue)s::uuid IS NULL OR w.venue_id = %(venue)s)"
        "   AND (%(at)s::timestamptz IS NULL OR (w.created_at, w.id) > (%(at)s, %(id)s))"
        " ORDER BY w.created_at, w.id LIMIT %(limit)s",
        {
            "venue": venue_id,
            "at": after[0] if after else None,
            "id": after[1] if after else None,
            "limit": limit,
        },
    )
    return [_endpoint(row) for row in rows]


async def read(ledger: Ledger, endpoint_id: UUID) -> Endpoint:
    """Read an endpoint.

    Raises:
        NotFound: also when it was removed.
    """
    rows = await ledger.repeatable(
        f"SELECT {_COLUMNS} FROM webhook_endpoints AS w JOIN venues AS v ON v.id = w.venue_id"  # noqa: S608
        " WHERE w.id = %s AND w.removed_at IS NULL",
        (endpoint_id,),
    )
    return _endpoint(_only(rows))


async def remove(ledger: Ledger, endpoint_id: UUID, request_id: str | None) -> None:
    """Send nothing there any more and forget its secrets; harmless when it was removed before.

    What is still pending for it dies unsent; what was delivered stays listed.

    Raises:
        NotFound: there never was such an endpoint.
    """
    rows = await ledger.repeatable(
        "WITH removed AS ("
        "  UPDATE webhook_endpoints SET removed_at = clock_timestamp(), secret = NULL, old_secret = NULL,"
        "    old_secret_until = NULL, disabled_at = coalesce(disabled_at, clock_timestamp()),"
        "    disabled_why = coalesce(disabled_why, 'removed')"
        "  WHERE id = %(id)s AND removed_at IS NULL RETURNING id, venue_id"
        "), told AS ("
        "  INSERT INTO events (type, actor, request_id, venue_id, data)"
        "  SELECT 'webhook.removed', 'operator', %(request)s, venue_id, jsonb_build_object('endpoint_id', id)"
        "  FROM removed)"
        " SELECT id FROM webhook_endpoints WHERE id = %(id)s",
        {"id": endpoint_id, "request": request_id},
    )
    _only(rows)


async def rotate(
    ledger: Ledger,
    endpoint_id: UUID,
    request_id: str | None,
    *,
    derived_from: Sequence[str] = (),
    key: str | None = None,
) -> Endpoint:
    """Give an endpoint a new secret; the one before signs as well for `ROTATION_HOURS` more.

    With an Idempotency-Key the secret follows from it and from the service's own (`derived_from`, the first counts):
    the same request again, after a lost answer say, finds itself done and does not push the receiver's secret out.

    Raises:
        NotFound
    """
    wanted = _derived_secret(derived_from[0], endpoint_id, key) if key and derived_from else _secret()
    values = {"id": endpoint_id, "secret": wanted, "hours": ROTATION_HOURS, "request": request_id}
    # Of two at once under one key, as above.
    return _endpoint(_only(await _rotated_or_found(ledger, values) or await _rotated_or_found(ledger, values)))


async def _rotated_or_found(ledger: Ledger, values: Mapping[str, Any]) -> list[Row]:
    return await ledger.repeatable(
        "WITH rotated AS ("  # noqa: S608 constants of this module
        "  UPDATE webhook_endpoints SET old_secret = secret, secret = %(secret)s,"
        "    old_secret_until = clock_timestamp() + %(hours)s * interval '1 hour'"
        "  WHERE id = %(id)s AND removed_at IS NULL AND secret <> %(secret)s RETURNING *"
        "), told AS ("
        "  INSERT INTO events (type, actor, request_id, venue_id, data)"
        "  SELECT 'webhook.rotated', 'operator', %(request)s, venue_id, jsonb_build_object('endpoint_id', id)"
        "  FROM rotated"
        "), found AS ("
        "  SELECT * FROM rotated UNION ALL"
        "  SELECT * FROM webhook_endpoints WHERE id = %(id)s AND secret = %(secret)s)"
        f" SELECT {_COLUMNS} FROM found AS w JOIN venues AS v ON v.id = w.venue_id",
        values,
    )


async def venue_id_of(ledger: Ledger, slug: str) -> UUID:
    """Find a venue.

    Raises:
        VenueNotFound
    """
    rows = await ledger.repeatable("SELECT id FROM venues WHERE slug = %s", (slug,))
    if not rows:
        raise VenueNotFound
    found: UUID = rows[0].id
    return found


def _only(rows: Sequence[Row]) -> Row:
    if not rows:
        raise NotFound("Webhook endpoint not found")
    return rows[0]


def _secret() -> str:
    return _written(secrets.token_bytes(SECRET_BYTES))


def _derived_secret(service_secret: str, endpoint_id: UUID, key: str) -> str:
    message = b"webhook secret\0" + endpoint_id.bytes + key.encode()
    return _written(hmac.digest(service_secret.encode(), message, hashlib.sha256))


def _written(raw: bytes) -> str:
    return f"whsec_{base64.b64encode(raw).decode()}"


def _endpoint(row: Row) -> Endpoint:
    return Endpoint(
        id=row.id, venue=row.venue, url=row.url, secret=row.secret, types=row.types, created_at=row.created_at,
        disabled_at=row.disabled_at, disabled_why=row.disabled_why, old_secret_until=row.old_secret_until,
    )  # fmt: skip
