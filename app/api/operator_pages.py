"""The operators' pages: shown to whoever is signed in, and where to sign in to anybody else.

They are shells: what they show, they ask the API for, with the session as proof (`who`).
"""

from typing import Any

from litestar import HttpMethod, Response, route
from litestar.handlers import HTTPRouteHandler

from app.api import pages, who
from app.api.strict import ApiRequest

_METHODS = [HttpMethod.GET, HttpMethod.HEAD]


@route("/calendar", http_method=_METHODS, include_in_schema=False)
async def calendar(request: ApiRequest) -> Response[Any]:
    """Show the owner's calendar."""
    return _signed_in(request, "calendar.html")


@route("/ops", http_method=_METHODS, include_in_schema=False)
async def console(request: ApiRequest) -> Response[Any]:
    """Show the operator's console."""
    return _signed_in(request, "ops.html")


def _signed_in(request: ApiRequest, template: str) -> Response[Any]:
    known = who.is_signed_in(request.engine.settings, request.headers)
    return pages.page(template, here=template.removesuffix(".html")) if known else pages.page("sign_in.html")


ROUTES: list[HTTPRouteHandler] = [calendar, console]
