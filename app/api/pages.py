"""Pages and their files: what every page of ours is sent with, and the static files behind it."""

from collections.abc import Mapping
from typing import Any

from litestar import HttpMethod, route
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from app.api.answers import Answer, matches
from app.api.strict import ApiRequest
from app.domain import Venue
from app.errors import NotFound
from app.pages import assets, render
from app.telemetry import Send

HTML = b"text/html; charset=utf-8"
#: Nothing from elsewhere, nothing inline, nothing that frames it unless a page says whom it lets.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action {forms_to}; base-uri 'none'; frame-ancestors {framed_by}"
)
#: The files of one digest never change; of another they are of another deployment, and right only for now.
_FOR_EVER = "public, max-age=31536000, immutable"
_FOR_NOW = "no-cache"
#: The one address that other people's pages name: they get a new widget within minutes.
_WIDGET = "public, max-age=300"


def page(
    template: str, *, status: int = 200, framed_by: str = "'none'", forms_to: str = "'self'", **values: Any
) -> Answer:
    """Answer with a page. `framed_by`: the sources of `frame-ancestors`, who may show it in a frame; `forms_to`: those
    of `form-action`, where its forms and what answers them may lead.
    """
    headers = {
        "Content-Security-Policy": policy(framed_by, forms_to),
        "Referrer-Policy": "same-origin",  # addresses of ours hold ids, which are nobody else's business
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
    }
    return Answer(status, render.html(template, **values), HTML, headers)


def policy(framed_by: str = "'none'", forms_to: str = "'self'") -> str:
    """Write the Content-Security-Policy of a page."""
    return _POLICY.format(framed_by=framed_by, forms_to=forms_to)


def framed_by(venue: Venue) -> str:
    """Tell who may show a venue's pages in a frame: our own pages, and those of its origins."""
    return " ".join(["'self'", *venue.origins])


@route("/static/{digest:str}/{path:path}", http_method=[HttpMethod.GET, HttpMethod.HEAD], include_in_schema=False)
async def static_file(request: ApiRequest, digest: FromPath[str], path: FromPath[str]) -> "File":
    """Send a static file, for good when its address is of this very state of them."""
    return _file(request, path.lstrip("/"), _FOR_EVER if digest == assets.digest() else _FOR_NOW)


@route("/widget.js", http_method=[HttpMethod.GET, HttpMethod.HEAD], include_in_schema=False)
async def widget(request: ApiRequest) -> "File":
    """Send the booking widget to whatever page wants it: the address of today's."""
    body = f'import "{assets.url(assets.WIDGET)}";\n'.encode()
    return File(200, body, {"Content-Type": "text/javascript; charset=utf-8", "Cache-Control": _WIDGET})


def _file(request: ApiRequest, path: str, kept: str) -> "File":
    asset = assets.all_assets().get(path)
    if asset is None:
        raise NotFound
    if matches(request.headers.get("if-none-match"), asset.etag):
        return File(304, b"", {"ETag": asset.etag, "Cache-Control": kept, "Vary": "Accept-Encoding"})
    body, headers = asset.body, {"ETag": asset.etag, "Cache-Control": kept, "Vary": "Accept-Encoding"}
    if asset.gzipped and "gzip" in request.headers.get("accept-encoding", ""):
        body, headers["Content-Encoding"] = asset.gzipped, "gzip"
    return File(200, body, {**headers, "Content-Type": asset.media_type, "Content-Length": str(len(body))})


class File(Answer):
    """A file as it is kept by browsers. Anybody's page may use it: none of them says anything about anybody."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(
            status,
            body,
            b"",
            {
                **headers,
                "X-Content-Type-Options": "nosniff",
                "Access-Control-Allow-Origin": "*",
                "Cross-Origin-Resource-Policy": "cross-origin",
            },
        )

    async def send(self, send: Send) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


ROUTES: list[HTTPRouteHandler] = [static_file, widget]
