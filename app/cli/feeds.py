"""`holdfast feeds`: calendars that a phone or a calendar program subscribes to, each by a secret address."""

import os
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import rich_click as click

from app.cli.holds import confirm
from app.cli.show import ago, emit, facts, out, print_table, say

if TYPE_CHECKING:
    from app.calendars.feeds import Feed


@click.group()
def feeds() -> None:
    """Calendars to subscribe to."""


@feeds.command("list")
@click.option("--venue", metavar="SLUG", help="Only this venue's.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def list_command(venue: str | None, limit: int, as_json: bool) -> None:
    """List feeds in the order in which they were made, without their addresses."""
    from app.calendars.feeds import listed
    from app.cli.stores import with_engine

    found = with_engine(lambda engine: listed(engine.ledger, venue, None, limit))
    if as_json:
        emit({"data": [describe(feed) for feed in found], "next_cursor": None})
        return
    rows = [(str(feed.id), feed.venue, _whose(feed), ago(feed.rotated_at or feed.created_at)) for feed in found]
    print_table(("#Feed", "Venue", "Of", ">Address since"), rows, empty="No calendar feeds")


@feeds.command()
@click.argument("venue", metavar="VENUE")
@click.option("--resource", "resource_id", type=click.UUID, metavar="ID", help="Only of this person, place or event.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def add(venue: str, resource_id: UUID | None, as_json: bool) -> None:
    """Make a feed of a venue, or of one of its resources. Prints its address, which is not told again."""
    from app.calendars.feeds import create
    from app.cli.stores import with_engine

    made, _ = with_engine(lambda engine: create(engine.ledger, venue, resource_id, None))
    _print_address(made, as_json)


@feeds.command()
@click.argument("feed_id", type=click.UUID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def rotate(feed_id: UUID, as_json: bool) -> None:
    """Give a feed a new address, which is not told again. The one before leads nowhere from now on."""
    from app.calendars.feeds import rotate as give_another
    from app.cli.stores import with_engine

    rotated, _ = with_engine(lambda engine: give_another(engine.ledger, feed_id, None))
    _print_address(rotated, as_json)


@feeds.command()
@click.argument("feed_id", type=click.UUID, metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(feed_id: UUID, yes: bool) -> None:
    """Close a feed for everybody who knows its address. A second time changes nothing."""
    from app.calendars.feeds import remove as close
    from app.cli.stores import with_engine

    confirm(f"Remove {feed_id}? Whoever subscribed to it sees nothing new any more.", yes)
    with_engine(lambda engine: close(engine.ledger, feed_id, None))
    say("Removed")


def describe(feed: "Feed") -> dict[str, Any]:
    """What programs are told of a feed: all but its secret."""
    told = msgspec.structs.asdict(feed)
    del told["secret"]
    return told


def _print_address(feed: "Feed", as_json: bool) -> None:
    from app.cli.home import find_api

    base = os.environ.get("HOLDFAST_PUBLIC_URL") or find_api(None, None).url
    url = f"{base.rstrip('/')}/v1/calendars/{feed.secret}.ics"
    if as_json:
        emit({**describe(feed), "url": url})
        return
    out().print(facts(("Feed", str(feed.id)), ("Of", f"{feed.venue}, {_whose(feed)}")))
    # Never wrapped: a line break would be pasted with it.
    out().print(url, soft_wrap=True, highlight=False, markup=False)
    say("Keep the address: it is not told again, and whoever knows it sees the bookings")


def _whose(feed: "Feed") -> str:
    return feed.resource_name or "the whole venue"
