"""Every way a request can fail, as the one tree that becomes `application/problem+json` (RFC 9457).

    Problem                          the root, never raised itself
      InvalidRequest          400    invalid_request          what was sent makes no sense; `errors` names the fields
      Unauthorized            401    unauthorized             no operator key, or a wrong one
      PaymentRequired         402    payment_required         the venue takes payment first
      NotFound                404    not_found                and its children; a wrong token looks like a missing thing
        VenueNotFound                venue_not_found
        ResourceNotFound
        SlotNotFound                 slot_not_found
        HoldNotFound                 hold_not_found
        BookingNotFound              booking_not_found
      SlotUnavailable         409    slot_unavailable         taken, closed or past: true at some moment of the request
      SlotAvailable           409    slot_available           nobody waits for what can be booked
      HoldLimit               409    hold_limit               a hold has been prolonged as far as its venue allows
        HeldTooMuch                                           a client holds as many places as it may
      AlreadyResolved         409    already_resolved         the booking or hold ended before, and how
      Conflict                409    conflict                 an operator's change that contradicts what is stored
      HoldExpired             410    hold_expired             the deadline passed on the store's clock
      UnsupportedMediaType    415    unsupported_media_type
      IdempotencyKeyReused    422    idempotency_key_reused   same key, other request
      RateLimited             429    rate_limited             a client asks too often; with Retry-After
      PaymentFailed           502    payment_failed           Stripe refused or failed; the places came back
      Unavailable             503    never raised itself; always with Retry-After
        Busy                         busy                     a lock or a connection could not be had in time
        DatabaseUnavailable          database_unavailable     Postgres cannot be reached, or its answer was lost
        Overloaded                   overloaded               a queue is full

Raise where the fact is known. A 503 with `"effect": "none"` left nothing behind, now or later; without it the outcome
is not known, and repeating the request with the same Idempotency-Key settles it.
"""

import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID


class Problem(Exception):
    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, **fields: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        #: What goes into the body besides the members of RFC 9457.
        self.fields = fields

    @property
    def headers(self) -> Mapping[str, str]:
        return {}


class InvalidRequest(Problem):
    status, code, title = 400, "invalid_request", "The request is not valid"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message, errors=[{"field": field, "message": message}])


class Unauthorized(Problem):
    status, code, title = 401, "unauthorized", "An operator key is needed"

    def __init__(self) -> None:
        super().__init__("Send the operator key as Authorization: Bearer <key>")

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class PaymentRequired(Problem):
    status, code, title = 402, "payment_required", "Payment required"

    def __init__(self) -> None:
        super().__init__("The venue takes payment first: use POST /v1/checkout")


class NotFound(Problem):
    status, code, title = 404, "not_found", "Not found"

    def __init__(self, detail: str = "Not found") -> None:
        super().__init__(detail)


class VenueNotFound(NotFound):
    code, title = "venue_not_found", "Venue not found"

    def __init__(self) -> None:
        super().__init__("Venue not found")


class ResourceNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("Resource not found")


class SlotNotFound(NotFound):
    code, title = "slot_not_found", "Slot not found"

    def __init__(self) -> None:
        super().__init__("Slot not found")


class HoldNotFound(NotFound):
    code, title = "hold_not_found", "Hold not found"

    def __init__(self) -> None:
        super().__init__("Hold not found")


class BookingNotFound(NotFound):
    code, title = "booking_not_found", "Booking not found"

    def __init__(self) -> None:
        super().__init__("Booking not found")


class SlotUnavailable(Problem):
    """A true refusal. `alternatives` are slots with room for the party, as the wire shows slots. `items`, when several
    slots were asked for at once, are those of them that could not be had; what is told beside is of the first.
    """

    status, code, title = 409, "slot_unavailable", "Slot unavailable"

    def __init__(
        self,
        reason: str,
        requested: int,
        available: int,
        may_free_at: datetime | None = None,
        alternatives: Sequence[Any] = (),
        *,
        items: Sequence[Any] | None = None,
    ) -> None:
        guests = "1 guest" if requested == 1 else f"{requested} guests"
        super().__init__(
            f"Slot no longer available for {guests}",
            reason=reason,
            requested=requested,
            available=available,
            may_free_at=may_free_at,
            alternatives=alternatives,
            **({} if items is None else {"items": items}),
        )


class SlotAvailable(Problem):
    """Nobody waits for what can be booked at this moment: `slot_id`."""

    status, code, title = 409, "slot_available", "There is room now"

    def __init__(self, slot_id: UUID) -> None:
        super().__init__("There is room now: book it", slot_id=slot_id)


class HoldLimit(Problem):
    status, code, title = 409, "hold_limit", "No more can be held"

    def __init__(self, expires_at: datetime) -> None:
        super().__init__("The hold cannot be prolonged any further", expires_at=expires_at)


class HeldTooMuch(HoldLimit):
    """`held` places of the venue are one client's, who may have `limit`. The first of them count no longer at
    `may_free_at`; null: no waiting helps, for more were wanted than one client may ever have.
    """

    def __init__(self, limit: int, held: int, wanted: int, may_free_at: datetime | None) -> None:
        places = "1 place" if limit == 1 else f"{limit} places"
        detail = f"You may hold at most {places} here at once"
        if wanted > limit:
            may_free_at = None
        else:
            detail += ": book or give up what you hold, or let it lapse"
        Problem.__init__(self, detail, limit=limit, held=held, may_free_at=may_free_at)


class AlreadyResolved(Problem):
    """`resolved_at` is null for a hold whose row tells no more than its status."""

    status, code, title = 409, "already_resolved", "Already resolved"

    def __init__(self, booking_id: UUID, booking_status: str, resolved_at: datetime | None) -> None:
        super().__init__(
            f"It was resolved before: {booking_status}",
            booking_id=booking_id,
            booking_status=booking_status,
            resolved_at=resolved_at,
        )


class Conflict(Problem):
    status, code, title = 409, "conflict", "In conflict with what is stored"


class HoldExpired(Problem):
    status, code, title = 410, "hold_expired", "Hold expired"

    def __init__(self, expired_at: datetime, alternatives: Sequence[Any] = ()) -> None:
        super().__init__("The hold has expired", expired_at=expired_at, alternatives=alternatives)


class UnsupportedMediaType(Problem):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"

    def __init__(self, detail: str = "Send Content-Type: application/json, without Content-Encoding") -> None:
        super().__init__(detail)


class IdempotencyKeyReused(Problem):
    status, code, title = 422, "idempotency_key_reused", "Idempotency key reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request")


class RateLimited(Problem):
    """Asked too often. `policy` and `quota` are the headers RateLimit-Policy and RateLimit."""

    status, code, title = 429, "rate_limited", "Too many requests"

    def __init__(self, wait_seconds: int, policy: str, quota: str) -> None:
        super().__init__("Too many requests from your address: wait as long as Retry-After says")
        self._headers = {"Retry-After": str(wait_seconds), "RateLimit-Policy": policy, "RateLimit": quota}

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers


class PaymentFailed(Problem):
    """Nothing was sold and nothing was paid. The same request may be sent again, also with the same key."""

    status, code, title = 502, "payment_failed", "Payment failed"

    def __init__(self, why: str = "Stripe could not start the payment") -> None:
        super().__init__(f"{why}: the places are free again")


class Unavailable(Problem):
    """`effect_none`: certain that nothing was done. False: it may have been."""

    status = 503

    def __init__(self, detail: str, *, effect_none: bool) -> None:
        super().__init__(detail, **({"effect": "none"} if effect_none else {}))

    @property
    def effect_none(self) -> bool:
        return "effect" in self.fields

    @property
    def headers(self) -> Mapping[str, str]:
        # Jitter, so that clients refused together do not come back together (AWS Builders' Library, on timeouts).
        return {"Retry-After": str(random.randint(1, 3))}  # noqa: S311 not a secret


class Busy(Unavailable):
    code, title = "busy", "Busy"

    def __init__(self) -> None:
        super().__init__("Many are asking for this slot at once: try again", effect_none=True)


class DatabaseUnavailable(Unavailable):
    code, title = "database_unavailable", "Database unavailable"

    def __init__(self, *, effect_none: bool) -> None:
        told = "nothing was changed" if effect_none else "whether the request took effect is not known"
        super().__init__(f"Database error: {told}", effect_none=effect_none)


class Overloaded(Unavailable):
    code, title = "overloaded", "Overloaded"

    def __init__(self) -> None:
        super().__init__("Too many requests are waiting: try again", effect_none=True)
