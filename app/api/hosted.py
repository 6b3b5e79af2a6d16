"""Where customers are sent: to book, to manage a booking, to take an offer, and what they see after paying."""

from typing import Any

from litestar import HttpMethod, Response, post, route
from litestar.connection import Request
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from app.api import book_form, book_page, book_times, pages
from app.api.strict import ApiRequest
from app.domain import Venue
from app.errors import InvalidRequest, NotFound, Problem
from app.pages import language

_READ = [HttpMethod.GET, HttpMethod.HEAD]
#: Names, addresses and ids, each of them several times over.
MAX_FORM_BYTES = 8 * 1024


def _page(request: ApiRequest, template: str, **values: Any) -> Response[Any]:
    chosen = book_page.language_of(request)
    return pages.page(template, w=language.words(chosen), lang=chosen, **values)


def _refused(request: Request[Any, Any, Any], problem: Problem) -> Response[Any]:
    """Tell people what a program is told as a problem."""
    if isinstance(problem, NotFound):
        return _told(request, problem.status, "not_found")
    if isinstance(problem, InvalidRequest) or problem.status < 429:
        return _told(request, problem.status, "wrong")
    answer = _told(request, problem.status, "busy", again=_address(request))
    answer.headers |= problem.headers
    return answer


def _http(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    known = {404: "not_found", 400: "wrong", 405: "wrong", 413: "wrong"}
    return _told(request, error.status_code, known.get(error.status_code, "failed"))


def _told(
    request: Request[Any, Any, Any], status: int, what: str, again: str = "", venue: Venue | None = None
) -> Response[Any]:
    """Tell something, and lead on: to the same `again`, to the venue, or at least to the front page."""
    chosen = language.choose(request.query_params.get("lang"), request.headers.get("accept-language", ""))
    words = language.words(chosen)
    stays = f"?lang={chosen}" if "lang" in request.query_params else ""
    values = {"title": words[f"{what}_title"], "text": words[what], "again": again, "venue": venue, "stays": stays}
    # In anybody's frame: whose it would be is not always known, and it can do nothing but tell.
    return pages.page("told.html", status=status, framed_by="*", w=words, lang=chosen, **values)


def _address(request: Request[Any, Any, Any]) -> str:
    query = request.scope["query_string"].decode("ascii", "replace")
    return f"{request.scope['path']}{'?' if query else ''}{query}"


_PROBLEMS: dict[Any, Any] = {Problem: _refused, HTTPException: _http}


@route("/book/{slug:str}", http_method=_READ, include_in_schema=False, exception_handlers=_PROBLEMS)
async def book_here(request: ApiRequest, slug: FromPath[str]) -> Response[Any]:
    """Show where to book: the widget, or the next step of the links and forms that do without JavaScript."""
    return await book_times.show(request, slug)


@post(
    "/book/{slug:str}",
    status_code=200,
    include_in_schema=False,
    exception_handlers=_PROBLEMS,
    request_max_body_size=MAX_FORM_BYTES,
)
async def book_by_form(request: ApiRequest, slug: FromPath[str]) -> Response[Any]:
    """Book what the form asks for, if it is one of our own pages."""
    if book_form.is_foreign(request):
        return _told(request, 403, "foreign", again=_address(request))
    return await book_form.submit(request, slug)


@route("/manage/{booking_id:str}", http_method=_READ, include_in_schema=False, exception_handlers=_PROBLEMS)
async def manage(request: ApiRequest, booking_id: FromPath[str]) -> Response[Any]:
    """Show where a booking is managed. Which one, and by what right, only the page's script knows and asks the API."""
    return _page(request, "manage.html", script="manage/manage.js")


@route("/offer/{entry_id:str}", http_method=_READ, include_in_schema=False, exception_handlers=_PROBLEMS)
async def offer(request: ApiRequest, entry_id: FromPath[str]) -> Response[Any]:
    """Show where a place that was waited for is taken or left; as with `manage`, its script does the asking."""
    return _page(request, "manage.html", script="manage/offer.js")


@route("/checkout/thanks", http_method=_READ, include_in_schema=False)
async def thanks(request: ApiRequest) -> Response[Any]:
    """Thank whoever comes back from paying. It promises nothing: only the webhook knows what was paid."""
    return _told(request, 200, "thanks", venue=await _venue_of(request))


@route("/checkout/cancelled", http_method=_READ, include_in_schema=False)
async def gave_up(request: ApiRequest) -> Response[Any]:
    """Tell whoever did not pay what becomes of the places."""
    return _told(request, 200, "unpaid", venue=await _venue_of(request))


async def _venue_of(request: ApiRequest) -> Venue | None:
    """Find where somebody comes from. He is told what he has come for also when that is not known, or not now."""
    try:
        return await request.catalogue.venue(request.query_params.get("venue", ""))
    except Problem:
        return None


@route("/", http_method=_READ, include_in_schema=False)
async def front(request: ApiRequest) -> Response[Any]:
    """Tell what runs here, and in a demo what there is to see."""
    return pages.page("front.html", demo=request.engine.settings.demo)


ROUTES: list[HTTPRouteHandler] = [book_here, book_by_form, manage, offer, thanks, gave_up, front]
