"""The HTTP surface: handlers decode, call once, and return. One module per kind of caller."""

from collections.abc import Iterable, Iterator

from litestar import HttpMethod, Response, route
from litestar.handlers import HTTPRouteHandler

from app.api import (
    agenda,
    appointments,
    calendars,
    hosted,
    jobs,
    live,
    machines,
    operator_pages,
    operators,
    pages,
    payments,
    problems,
    public,
    session,
    timetable,
    waiting,
    webhooks,
)


def _options(handlers: Iterable[HTTPRouteHandler]) -> Iterator[HTTPRouteHandler]:
    """Answer OPTIONS for every path. Litestar's own answer names only the first handler's methods."""
    methods: dict[str, set[str]] = {}
    for handler in handlers:
        for path in handler.paths:
            methods.setdefault(path, {"OPTIONS"}).update(handler.http_methods)
    for path, of_path in methods.items():
        yield _allowing(path, ", ".join(sorted(of_path)))


def _allowing(path: str, methods: str) -> HTTPRouteHandler:
    @route(path, http_method=HttpMethod.OPTIONS, include_in_schema=False, sync_to_thread=False, status_code=204)
    def allowed() -> Response[None]:
        return Response(None, headers={"Allow": methods})

    return allowed


_HANDLERS = [
    *public.ROUTES, *appointments.ROUTES, *payments.ROUTES, *operators.ROUTES, *timetable.ROUTES,
    *webhooks.ROUTES, *jobs.ROUTES, *calendars.ROUTES, *agenda.ROUTES, *waiting.ROUTES, *live.ROUTES,
    *machines.ROUTES, problems.describe, *session.ROUTES, *pages.ROUTES, *operator_pages.ROUTES,
    *hosted.ROUTES,
]  # fmt: skip
#: Litestar adds its own answer to a path that has none yet: ours come first.
ROUTES = [*_options(_HANDLERS), *_HANDLERS]
