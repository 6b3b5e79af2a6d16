"""`holdfast mail`: the e-mail that a demo has sent, as its development mailbox keeps it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from app.cli.failing import NOT_FOUND, Failed
from app.cli.home import home_dir
from app.cli.show import emit, number, out, print_table

if TYPE_CHECKING:
    from app.mail.maildir import Letter, Opened


@click.group()
def mail() -> None:
    """E-mail that a demo has sent. It reaches nobody: it stays in HOLDFAST_HOME/mail."""


@mail.command("list")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="The newest …")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def list_command(*, limit: int, as_json: bool) -> None:
    """List what is kept, newest first."""
    from rich.markup import escape

    from app.mail.maildir import letters

    found = letters(_mailbox())[:limit]
    if as_json:
        emit({"data": found})
        return
    rows = [
        (letter.id, f"{escape(letter.to)}\n{escape(letter.subject)}{' (sent again)' if letter.duplicate else ''}")
        for letter in found
    ]
    print_table(("#E-mail", "To, subject"), rows, empty="No e-mail yet")


@mail.command()
@click.argument("letter_id", default="latest", metavar="[ID|latest]")
@click.option("--ics", is_flag=True, help="Only the calendar entry, for `> booking.ics`.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def show(letter_id: str, *, ics: bool, as_json: bool) -> None:
    """Show an e-mail: its text, and the names of what is attached."""
    opened = _open(letter_id)
    if ics:
        entry = next((file.content for file in opened.attachments if file.content_type == "text/calendar"), None)
        if entry is None:
            raise Failed(f"E-mail {opened.letter.id} has no calendar entry", NOT_FOUND)
        # As it is, to the last byte: its lines end as the standard asks.
        sys.stdout.buffer.write(entry)
        sys.stdout.flush()
    elif as_json:
        emit(describe(opened))
    else:
        _print(opened)


def describe(opened: "Opened") -> dict[str, Any]:
    """What programs are told of an e-mail."""
    letter = opened.letter
    return {
        "id": letter.id,
        "received_at": letter.received_at,
        "sender": letter.sender,
        "to": letter.to,
        "subject": letter.subject,
        "message_id": letter.message_id,
        "duplicate": letter.duplicate,
        "text": opened.text,
        "html": opened.html,
        "attachments": [
            {"name": file.name, "content_type": file.content_type, "size_bytes": len(file.content)}
            for file in opened.attachments
        ],
    }


def _mailbox() -> Path:
    from app.mail.maildir import is_mailbox

    mail_dir = home_dir() / "mail"
    if not is_mailbox(mail_dir):
        raise Failed(
            f"No mailbox in {mail_dir}: `holdfast demo` keeps one. In production, e-mail leaves through "
            "HOLDFAST_SMTP_URL and nothing is kept here",
            NOT_FOUND,
        )
    return mail_dir


def _open(letter_id: str) -> "Opened":
    from app.mail.maildir import letters, open_letter

    mail_dir = _mailbox()
    wanted: Letter | None = next(iter(letters(mail_dir)), None) if letter_id == "latest" else None
    if letter_id == "latest" and wanted is None:
        raise Failed("No e-mail yet", NOT_FOUND)
    opened = open_letter(mail_dir, wanted.id if wanted else letter_id)
    if opened is None:
        raise Failed(f"No e-mail {letter_id}: `holdfast mail list` names those that are kept", NOT_FOUND)
    return opened


def _print(opened: "Opened") -> None:
    from rich.markup import escape

    from app.cli.show import facts
    from app.mail.text import visible

    letter = opened.letter
    again = " (sent again: an older one has the same Message-ID)" if letter.duplicate else ""
    out().print(
        facts(
            ("E-mail", letter.id + again),
            ("From", escape(letter.sender)),
            ("To", escape(letter.to)),
            ("Subject", escape(letter.subject)),
            ("Received", f"{letter.received_at:%Y-%m-%d %H:%M:%S} UTC"),
        )
    )
    # Whatever a message holds, the terminal is told no commands; a link stays whole for whoever clicks on it.
    print("", *(visible(line) for line in opened.text.rstrip().splitlines()), "", sep="\n")
    print(
        number(len(opened.attachments), "attachment"),
        *(f"  {file.name} ({file.content_type}, {len(file.content)} bytes)" for file in opened.attachments),
        sep="\n",
    )
