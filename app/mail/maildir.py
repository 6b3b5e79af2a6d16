"""The mailbox of a demo on disk: a Maildir of `.eml` files that any mail program can open, read newest first.

For development only: whoever may read the folder reads every customer's link. It is made for its owner alone.
"""

import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.errors import MessageError
from email.message import Message, MIMEPart
from email.parser import BytesHeaderParser
from functools import lru_cache
from mailbox import Maildir
from pathlib import Path

import msgspec

from app.mail.text import one_line

#: What a demo's screen can show; the oldest go first.
KEPT = 500
#: Ids sort by the time at which they came, and as file names cannot lead out of the folder.
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{6}-[0-9a-f]{6}")
_TIME = "%Y%m%d-%H%M%S-%f"


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One e-mail as a list shows it."""

    id: str
    received_at: datetime
    sender: str
    to: str
    subject: str
    message_id: str
    size_bytes: int
    #: An older one that is kept has the same Message-ID: it was sent twice.
    duplicate: bool = False


class Attachment(msgspec.Struct, frozen=True):
    name: str
    content_type: str
    content: bytes


class Opened(msgspec.Struct, frozen=True):
    letter: Letter
    text: str
    html: str | None
    attachments: list[Attachment]
    source: bytes


def keep(mail_dir: Path, content: bytes, kept: int = KEPT) -> str:
    """Put an e-mail into the mailbox, whole or not at all, and let the oldest go. Return its id."""
    create(mail_dir)
    id_ = f"{datetime.now(UTC).strftime(_TIME)}-{secrets.token_hex(3)}"
    # As Maildir asks: written beside, then moved in, so that no reader finds half of one. Its own names would tell
    # this machine's, and end in nothing that opens a mail program.
    half = mail_dir / "tmp" / f"{id_}.eml"
    half.touch(mode=0o600, exist_ok=False)
    half.write_bytes(content)
    half.rename(mail_dir / "new" / half.name)
    folder = Maildir(mail_dir, create=False)
    for old in sorted(_ids(folder), reverse=True)[kept:]:
        folder.discard(f"{old}.eml")
    return id_


def create(mail_dir: Path) -> None:
    """Make the folder, so that `is_mailbox` finds an empty mailbox rather than none."""
    for part in ("", "tmp", "new", "cur"):
        (mail_dir / part).mkdir(mode=0o700, parents=True, exist_ok=True)


def letters(mail_dir: Path) -> list[Letter]:
    """List what is kept, newest first; nothing where there is no mailbox."""
    if not is_mailbox(mail_dir):
        return []
    folder, found, seen = Maildir(mail_dir, create=False), [], set[str]()
    for id_ in sorted(_ids(folder)):
        try:
            letter = _letter(mail_dir, id_)
        except (KeyError, FileNotFoundError):  # let go meanwhile
            continue
        again = letter.message_id in seen
        found.append(msgspec.structs.replace(letter, duplicate=True) if again else letter)
        if letter.message_id:
            seen.add(letter.message_id)
    return found[::-1]


def open_letter(mail_dir: Path, id_: str) -> Opened | None:
    """Read one e-mail; None when there is none of this id."""
    letter = next((letter for letter in letters(mail_dir) if letter.id == id_), None)
    if letter is None:
        return None
    try:
        source = Maildir(mail_dir, create=False).get_bytes(f"{id_}.eml")
    except (KeyError, FileNotFoundError):  # let go meanwhile
        return None
    message = message_from_bytes(source, policy=policy.default)
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    attachments = [
        Attachment(_file_name(part, number), part.get_content_type(), _bytes(part))
        for number, part in enumerate(message.iter_attachments(), 1)
    ]
    return Opened(letter, _text(plain), _text(html) if html else None, attachments, source)


def is_mailbox(mail_dir: Path) -> bool:
    return all((mail_dir / part).is_dir() for part in ("cur", "new", "tmp"))


def _ids(folder: Maildir) -> Iterator[str]:
    for key in folder.iterkeys():
        id_ = key.removesuffix(".eml")
        if _ID.fullmatch(id_):
            yield id_


@lru_cache(maxsize=2 * KEPT)
def _letter(mail_dir: Path, id_: str) -> Letter:
    """Read the headers. What is kept never changes, and a list of hundreds is read again and again."""
    source = Maildir(mail_dir, create=False).get_bytes(f"{id_}.eml")
    headers = BytesHeaderParser(policy=policy.default).parsebytes(source)
    return Letter(
        id=id_,
        received_at=datetime.strptime(id_.rpartition("-")[0], _TIME).replace(tzinfo=UTC),
        sender=_header(headers, "From"),
        to=_header(headers, "To"),
        subject=_header(headers, "Subject"),
        message_id=_header(headers, "Message-ID"),
        size_bytes=len(source),
    )


# Any program on this machine may send us anything: what cannot be read is told as far as it can.


def _header(headers: Message, name: str) -> str:
    try:
        return one_line(str(headers.get(name, "")))
    except (ValueError, LookupError, AttributeError, MessageError):  # as the stdlib's parser has them for broken ones
        return "(unreadable)"


def _file_name(part: MIMEPart, number: int) -> str:
    name = one_line(part.get_filename() or "", 100)
    return re.sub(r"[^\w.() -]", "_", name).strip(". ") or f"attachment-{number}"


def _bytes(part: MIMEPart) -> bytes:
    content = part.get_payload(decode=True)
    # An attached e-mail has parts instead of content.
    return content if isinstance(content, bytes) else part.as_bytes()


def _text(part: MIMEPart | None) -> str:
    if part is None:
        return ""
    content = _bytes(part).replace(b"\r\n", b"\n")
    try:
        return content.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:
        return content.decode("utf-8", "replace")
