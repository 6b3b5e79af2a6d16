"""/pay: the page on which a person pays, or not. Plain HTML forms; nothing is loaded from anywhere else."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from app.simulator.exchange import Asking, Simulator, simulator_of
from app.simulator.forms import StripeError, decode
from app.simulator.ledger import methods, money
from app.simulator.state import Session

_TEMPLATES = Path(__file__).parent / "templates"
_pages = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=select_autoescape(default=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_pages.filters["money"] = money

#: Longer than any real name, shorter than what would break a page.
MAX_TEXT = 200


@get("/")
async def home(request: Asking) -> Response[str]:
    """Tell who comes by what this is."""
    return page("home.html")


@get("/pay.css")
async def style(request: Asking) -> Response[str]:
    """The look of the pages."""
    text = (_TEMPLATES / "pay.css").read_text()
    return Response(text, headers={"Content-Type": "text/css; charset=utf-8", "X-Content-Type-Options": "nosniff"})


@get("/pay/{session_id:str}")
async def show(request: Asking, session_id: FromPath[str]) -> Response[str]:
    """Show what is bought, and ways to pay or not."""
    simulator = simulator_of(request)
    session = simulator.books.state.sessions.get(session_id)
    if session is None:
        return page("missing.html", status=404)
    return _session_page(simulator, session, declined="declined" in request.query_params)


@post("/pay/{session_id:str}", status_code=303)
async def act(request: Asking, session_id: FromPath[str]) -> Response[Any]:
    """Do what the person chose, and send them on with a GET: reloading the page pays nothing twice."""
    simulator = simulator_of(request)
    session = simulator.books.state.sessions.get(session_id)
    if session is None:
        return page("missing.html", status=404)
    try:
        form = decode((await request.body()).decode())
        return _redirect(_done(simulator, session, form))
    except (StripeError, UnicodeDecodeError):
        # Meanwhile it expired, or was paid in another window: the page tells.
        return _redirect(_page_of(session))


def _done(simulator: Simulator, session: Session, form: dict[str, Any]) -> str:
    """Do it; return where to go."""
    ledger = simulator.ledger
    customer = {name: _text(form.get(name)) for name in ("name", "email")}
    match form.get("action"):
        case "pay" | "later" as action:
            if session.status != "complete":  # a second click pays nothing twice, and goes where the first one went
                ledger.pay(session.id, "card" if action == "pay" else "delayed", **customer)
            return success_url(session) or _page_of(session)
        case "arrive" | "fail" as action:
            ledger.settle(session.id, succeed=action == "arrive")
            return _page_of(session)
        case "decline" if session.status == "open":
            return f"{_page_of(session)}?declined"
        case "abandon" if session.cancel_url:
            return session.cancel_url
    return _page_of(session)


def _text(value: Any) -> str | None:
    return value.strip()[:MAX_TEXT] or None if isinstance(value, str) else None


def success_url(session: Session) -> str | None:
    """Where Stripe sends a customer who is done."""
    return session.success_url and session.success_url.replace("{CHECKOUT_SESSION_ID}", session.id)


def _page_of(session: Session) -> str:
    return f"/pay/{session.id}"


def _session_page(simulator: Simulator, session: Session, *, declined: bool) -> Response[str]:
    payment = simulator.books.state.payments.get(session.payment_intent or "")
    # A browser applies form-action also to where a form's answer redirects.
    onward = {_origin(url) for url in (session.success_url, session.cancel_url) if url}
    return page(
        "pay.html",
        onward=sorted(onward),
        session=session,
        payment=payment,
        methods=methods(session),
        declined=declined,
        success_url=success_url(session),
    )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # safe in a header: see ledger.check_url


def _redirect(url: str) -> Response[bytes]:
    return Response(b"", status_code=303, headers={"Location": url, **_SAFE})


_SAFE = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}


def page(template: str, *, status: int = 200, onward: list[str] | None = None, **values: Any) -> Response[str]:
    """Render a page that can load nothing but our style, run nothing, and be framed by nobody."""
    policy = [
        "default-src 'none'",
        "style-src 'self'",
        "img-src data:",  # the empty icon, or browsers ask for another
        " ".join(["form-action 'self'", *(onward or [])]),
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": "; ".join(policy), **_SAFE}
    return Response(_pages.get_template(template).render(**values), status_code=status, headers=headers)


ROUTES: list[HTTPRouteHandler] = [home, style, show, act]
