"""One HTTP worker of the benchmark: the service itself, plus the routes it is compared with.

They run in the very same processes, behind the same middleware, on the same bodies: what differs is the work. Nothing
of them is in `app`.
"""

from typing import Any

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody, SkipValidation

import app.api
from app.api import wire
from app.api.public import IdempotencyKey
from app.api.strict import ApiRequest
from app.cli import http_worker
from tests.bench import textbook


class Nothing(msgspec.Struct, frozen=True):
    """A small answer, so that the framework's way out is measured too."""

    slot_id: str
    quantity: int
    status: str = "confirmed"


@post("/bench/noop", include_in_schema=False)
async def noop(
    request: ApiRequest,
    data: JSONBody[SkipValidation[wire.BookingOfSlot | wire.BookingOfHold]],
    key: IdempotencyKey = None,
) -> Response[Any]:
    """Decode what `create_booking` decodes, as it does, and do nothing."""
    assert isinstance(data, wire.BookingOfSlot)
    return _small(data.slot_id, data.quantity)


@post("/bench/noop-hold", include_in_schema=False)
async def noop_hold(request: ApiRequest, data: JSONBody[wire.HoldWanted], key: IdempotencyKey = None) -> Response[Any]:
    """Decode what `take_hold` decodes, as it does, and do nothing."""
    return _small(data.slot_id, data.quantity)


def _small(slot_id: object, quantity: int) -> Response[Any]:
    body = msgspec.json.encode(Nothing(str(slot_id), quantity))
    return Response(body, status_code=201, media_type="application/json")


ROUTES: list[HTTPRouteHandler] = [noop, noop_hold, textbook.book]


def main() -> None:
    app.api.ROUTES.extend(ROUTES)
    http_worker.main()


if __name__ == "__main__":
    main()
