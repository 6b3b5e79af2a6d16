"""A mailbox for development: an SMTP server that delivers to nobody, and pages that show what it was given.

Whoever reaches either reads every customer's link. Both are for a demo on one machine: the server listens on loopback
unless told otherwise, and nothing of this runs in production.
"""

import asyncio
import base64
import hashlib
import logging
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

from aiosmtpd.smtp import SMTP, Envelope, Session
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from litestar import MediaType, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from app.mail import maildir

#: Ours have some ten kilobytes.
MAX_BYTES = 1_000_000
#: A program that opened a connection and forgot it.
IDLE_SECONDS = 60

TEMPLATES = Path(__file__).parent / "templates"

#: Of the part that others wrote. It runs nothing and loads nothing; its links open in a tab of their own.
LETTER_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
)
#: Of what is downloaded, should a browser show it after all.
DOWNLOAD_POLICY = "default-src 'none'; sandbox"


# -- the server -------------------------------------------------------------------------------------------------------


@dataclass
class SmtpServer:
    """A running mailbox. `stop` it in the event loop that started it."""

    port: int
    _server: asyncio.Server
    _connections: WeakSet[SMTP]

    async def stop(self) -> None:
        """Listen no longer, and end the conversations that are under way."""
        self._server.close()
        under_way = [task for each in list(self._connections) if (task := _end(each))]
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._server.wait_closed()


async def start_smtp(mail_dir: Path, host: str = "127.0.0.1", port_or_socket: int | socket.socket = 0) -> SmtpServer:
    """Keep every e-mail that arrives in `mail_dir`. Port 0 takes a free one; a socket is bound already."""
    maildir.create(mail_dir)
    loop, connections = asyncio.get_running_loop(), WeakSet[SMTP]()

    def accept() -> SMTP:
        # Its host name is given, because it would otherwise ask the DNS for it, and the loop would wait.
        conversation = SMTP(
            _Keeper(mail_dir),
            data_size_limit=MAX_BYTES,
            enable_SMTPUTF8=True,
            hostname="localhost",
            ident="Holdfast development mailbox",
            timeout=IDLE_SECONDS,
            loop=loop,
        )
        connections.add(conversation)
        return conversation

    # It writes the addresses of all conversations, which are personal data also in development.
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    if isinstance(port_or_socket, socket.socket):
        server = await loop.create_server(accept, sock=port_or_socket)
    else:
        server = await loop.create_server(accept, host, port_or_socket)
    return SmtpServer(server.sockets[0].getsockname()[1], server, connections)


class _Keeper:
    """What aiosmtpd calls when a message is complete."""

    def __init__(self, mail_dir: Path) -> None:
        self._mail_dir = mail_dir

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        try:
            await asyncio.to_thread(maildir.keep, self._mail_dir, envelope.original_content or b"")
        except OSError:
            return "451 The message could not be written down: try again"
        return "250 Kept"


def _end(conversation: SMTP) -> "asyncio.Task[None] | None":
    if conversation.transport is not None:
        conversation.transport.close()
    task = conversation._handler_coroutine
    if task is not None:
        task.cancel()  # one that waits for its peer would wait on
    return task


# -- the pages --------------------------------------------------------------------------------------------------------


def routes(mail_dir: Path) -> list[HTTPRouteHandler]:
    """Make the handlers that show the mailbox in `mail_dir`, for whichever application mounts them."""

    @get("/mailbox", sync_to_thread=True, include_in_schema=False)
    def mailbox_list() -> Response[str]:
        return _page("mailbox.html", letters=maildir.letters(mail_dir), kept=maildir.KEPT)

    @get("/mailbox.json", sync_to_thread=True, include_in_schema=False)
    def mailbox_json() -> Response[dict[str, Any]]:
        return Response({"data": maildir.letters(mail_dir)}, headers=_headers(DOWNLOAD_POLICY))

    @get("/mailbox/{letter_id:str}", sync_to_thread=True, include_in_schema=False)
    def mailbox_letter(letter_id: FromPath[str]) -> Response[str]:
        opened = maildir.open_letter(mail_dir, letter_id)
        return _page("mailbox_letter.html", opened=opened) if opened else _nothing()

    @get("/mailbox/{letter_id:str}/html", sync_to_thread=True, include_in_schema=False)
    def mailbox_html(letter_id: FromPath[str]) -> Response[str]:
        opened = maildir.open_letter(mail_dir, letter_id)
        if opened is None or opened.html is None:
            return _nothing()
        return Response(opened.html, media_type=MediaType.HTML, headers=_headers(LETTER_POLICY))

    @get("/mailbox/{letter_id:str}/source", sync_to_thread=True, include_in_schema=False)
    def mailbox_source(letter_id: FromPath[str]) -> Response[Any]:
        opened = maildir.open_letter(mail_dir, letter_id)
        return _download(f"{letter_id}.eml", opened.source) if opened else _nothing()

    @get("/mailbox/{letter_id:str}/attachments/{number:int}", sync_to_thread=True, include_in_schema=False)
    def mailbox_attachment(letter_id: FromPath[str], number: FromPath[int]) -> Response[Any]:
        opened = maildir.open_letter(mail_dir, letter_id)
        if opened is None or not 1 <= number <= len(opened.attachments):
            return _nothing()
        attachment = opened.attachments[number - 1]
        return _download(attachment.name, attachment.content)

    return [mailbox_list, mailbox_json, mailbox_letter, mailbox_html, mailbox_source, mailbox_attachment]


def _page(template: str, status: int = 200, **shown: Any) -> Response[str]:
    style, digest = _style()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; frame-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    html = _environment().get_template(template).render(style=style, **shown)
    return Response(html, status_code=status, media_type=MediaType.HTML, headers=_headers(policy))


def _nothing() -> Response[str]:
    return _page("mailbox_nothing.html", status=404)


def _download(name: str, content: bytes) -> Response[bytes]:
    # `maildir` leaves names with letters, digits, dots, dashes and spaces; what is not ASCII, headers cannot hold.
    ascii_name = name.encode("ascii", "replace").decode().replace("?", "_")
    headers = {"Content-Disposition": f'attachment; filename="{ascii_name}"', **_headers(DOWNLOAD_POLICY)}
    # Its own type, such as HTML, would be an invitation to show it as a page of this origin.
    return Response(content, media_type="application/octet-stream", headers=headers)


def _headers(policy: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


@cache
def _style() -> tuple[str, str]:
    """Read the one style sheet, and what the policy of a page calls it."""
    style = (TEMPLATES / "mailbox.css").read_text("utf-8")
    return style, base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
