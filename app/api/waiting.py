"""The waiting list: for customers by the token of their entry, and its lines for operators."""

from typing import Annotated
from uuid import UUID

from litestar import Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, HeaderParameter, JSONBody, SkipValidation
from msgspec import UNSET

from app import waiting
from app.api import answers, wire, wire_waiting
from app.api.docs import operator_security, problems, token_or_operator
from app.api.public import IdempotencyKey
from app.api.strict import ApiRequest, idempotency_key, operator_only, query
from app.errors import NotFound

WaitingToken = Annotated[
    str | None, HeaderParameter(name="Waiting-Token", description="the token of the entry; operators need none")
]


@post("/v1/waiting-list", responses=problems(404, 409, 422, 429, body=True))
async def join_waiting_list(
    request: ApiRequest,
    data: JSONBody[SkipValidation[wire_waiting.WaitForSlot | wire_waiting.WaitForDay]],
    key: IdempotencyKey = None,
) -> Response[wire_waiting.WaitingEntry]:
    """Wait for places of a slot, or for a service on a day. Who is first and fits gets a hold in the moment in which
    places become free, and an e-mail with its token; `slot_available` while there is room.
    """
    joined, token = await waiting.join(request.engine, data.to_wish(idempotency_key(key)), caller=request.caller)
    location = f"/v1/waiting-list/{joined.id}"
    return answers.created(wire_waiting.entry(joined, token), location=location, replayed=joined.replayed)


@get(
    "/v1/waiting-list",
    opt={"query": wire_waiting.WaitingQuery},
    guards=[operator_only],
    security=operator_security,
    responses=problems(401, 404),
)
async def list_waiting(request: ApiRequest) -> Response[wire_waiting.WaitingPage]:
    """List who waits and who has waited, in the order in which they came."""
    asked = query(request, wire_waiting.WaitingQuery)
    which = waiting.Filter(venue=asked.venue, slot_id=asked.slot_id, status=asked.status)
    found = await waiting.listed(request.engine.ledger, which, wire.position(asked.cursor), asked.limit + 1)
    shown, more = wire.page_of(found, asked.limit, wire.behind)
    return answers.ok(wire_waiting.WaitingPage(data=[wire_waiting.entry(entry) for entry in shown], next_cursor=more))


@get("/v1/waiting-list/{entry_id:str}", security=token_or_operator, responses=problems(401, 404))
async def read_waiting(
    request: ApiRequest, entry_id: FromPath[UUID], token: WaitingToken = None
) -> Response[wire_waiting.WaitingEntry]:
    """Read an entry by its token, or as an operator. With the token it tells that of the hold on offer, too."""
    proof = _proof(request, token)
    entry = await waiting.read(request.engine, entry_id, proof)
    hold_token = waiting.hold_token(request.engine, entry) if proof else None
    return answers.ok(wire_waiting.entry(entry, hold_token=hold_token or UNSET))


@delete("/v1/waiting-list/{entry_id:str}", security=token_or_operator, responses=problems(401, 404, 409, 429))
async def leave_waiting_list(
    request: ApiRequest, entry_id: FromPath[UUID], token: WaitingToken = None
) -> Response[None]:
    """Leave, by the token or as an operator. What was on offer goes to the next one at once."""
    await waiting.leave(request.engine, entry_id, _proof(request, token), caller=request.caller)
    return answers.nothing()


def _proof(request: ApiRequest, token: str | None) -> str | None:
    """Tell by what right an entry is asked for: None for operators, else the token that was shown.

    Raises:
        NotFound: none at all.
    """
    if request.is_operator:
        return None
    if not token:
        raise NotFound("Waiting list entry not found")
    return token


ROUTES: list[HTTPRouteHandler] = [join_waiting_list, list_waiting, read_waiting, leave_waiting_list]
