"""`holdfast webhooks`: where venues' events are sent, and what became of each of them."""

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import rich_click as click

from app.cli.failing import USAGE, Failed
from app.cli.holds import confirm
from app.cli.paging import next_cursor, position
from app.cli.show import ago, emit, facts, number, out, print_table, say

if TYPE_CHECKING:
    from app.webhooks.deliveries import Delivery, Status
    from app.webhooks.endpoints import Endpoint

STATUSES = ("pending", "delivered", "dead")


@click.group()
def webhooks() -> None:
    """Events sent to the venues' own systems."""


@webhooks.command("list")
@click.option("--venue", metavar="SLUG", help="Only this venue's.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", metavar="CURSOR", help="Go on: the next_cursor of the page before.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def list_command(*, venue: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List endpoints in the order in which they were made."""
    from app.cli.stores import with_engine
    from app.webhooks import endpoints

    after = position(cursor)
    found = with_engine(lambda engine: endpoints.listed(engine.ledger, venue, after, limit + 1))
    if _page(found, limit, [describe(endpoint) for endpoint in found[:limit]], as_json):
        return
    rows = [
        (f"{endpoint.id}\n{endpoint.url}", endpoint.venue, ", ".join(endpoint.types or ["all"]), _state(endpoint))
        for endpoint in found[:limit]
    ]
    print_table(("#Endpoint", "Venue", "Events", "State"), rows, empty="No webhook endpoints")


@webhooks.command()
@click.argument("venue", metavar="VENUE")
@click.argument("url", metavar="URL")
@click.option(
    "--type", "types", multiple=True, metavar="TYPE", help="Such as booking.confirmed; several. Default: all."
)
@click.option(
    "--allow-private", is_flag=True, help="For development, where the worker does too: http, and private addresses."
)
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def add(*, venue: str, url: str, types: tuple[str, ...], allow_private: bool, as_json: bool) -> None:
    """Send a venue's events to a URL. Prints the secret that verifies them, which is not told again."""
    from app.cli.stores import with_engine
    from app.webhooks import endpoints

    _require_known(types)
    new = endpoints.NewEndpoint(venue=venue, url=url, types=list(types) or None)
    made, _ = with_engine(lambda engine: endpoints.create(engine.ledger, new, None, None, allow_private=allow_private))
    _print_secret(made, as_json)


@webhooks.command()
@click.argument("endpoint_id", type=click.UUID, metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(endpoint_id: UUID, yes: bool) -> None:
    """Send nothing to an endpoint any more. A second time changes nothing."""
    from app.cli.stores import with_engine
    from app.webhooks import endpoints

    confirm(f"Remove {endpoint_id}? What was not delivered yet never will be.", yes)
    with_engine(lambda engine: endpoints.remove(engine.ledger, endpoint_id, None))
    say("Removed")


@webhooks.command()
@click.argument("endpoint_id", type=click.UUID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def rotate(endpoint_id: UUID, as_json: bool) -> None:
    """Give an endpoint a new secret, which is not told again. For 24 hours the one before signs as well."""
    from app.cli.stores import with_engine
    from app.webhooks import endpoints

    _print_secret(with_engine(lambda engine: endpoints.rotate(engine.ledger, endpoint_id, None)), as_json)


@webhooks.command()
@click.option("--venue", metavar="SLUG", help="Only this venue's.")
@click.option("--status", type=click.Choice(STATUSES), help="Only these; dead: given up.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", metavar="CURSOR", help="Go on: the next_cursor of the page before.")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def deliveries(*, venue: str | None, status: "Status | None", limit: int, cursor: str | None, as_json: bool) -> None:
    """List what was and what shall be delivered, the newest first."""
    from app.cli.stores import with_engine
    from app.webhooks.deliveries import DeliveryFilter, listed

    which, after = DeliveryFilter(venue=venue, status=status), position(cursor)
    found = with_engine(lambda engine: listed(engine.ledger, which, after, limit + 1))
    if _page(found, limit, found[:limit], as_json):
        return
    rows = [
        (f"{one.id}\n{one.type} of {one.venue}\n{_result(one)}", ago(one.created_at), one.status)
        for one in found[:limit]
    ]
    print_table(("#Delivery, event", ">Since", "Status"), rows, empty="No webhook deliveries")


@webhooks.command()
@click.argument("delivery_id", type=click.UUID, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One object for programs.")
def redeliver(delivery_id: UUID, as_json: bool) -> None:
    """Have a delivery sent again, whatever became of it. The worker does it within seconds."""
    from app.cli.stores import with_engine
    from app.webhooks.deliveries import redeliver as begin_again

    again = with_engine(lambda engine: begin_again(engine.ledger, delivery_id, None))
    if as_json:
        emit(again)
        return
    say("It will be sent again")
    pairs = [("Delivery", str(again.id)), ("Event", f"{again.event_seq} {again.type}"), ("Status", again.status)]
    out().print(facts(*pairs))


def describe(endpoint: "Endpoint") -> dict[str, Any]:
    """What programs are told of an endpoint: the words of the API, and never its secret."""
    told = msgspec.structs.asdict(endpoint)
    del told["secret"]
    return {**told, "enabled": endpoint.disabled_at is None}


def _page(found: "list[Any]", limit: int, shown: "list[Any]", as_json: bool) -> bool:
    """Tell that there is more, and all of it to a program; True: nothing is left to be shown."""
    more = len(found) > limit
    if more:
        say(f"There are more than {limit}: narrow it down, or raise --limit")
    if as_json:
        last: tuple[datetime, UUID] | None = (found[limit - 1].created_at, found[limit - 1].id) if more else None
        emit({"data": shown, "next_cursor": next_cursor(last)})
    return as_json


def _require_known(types: tuple[str, ...]) -> None:
    import re

    from app.webhooks.deliveries import SENT_TYPES

    for name in types:
        if not re.fullmatch(SENT_TYPES, name):
            raise Failed(f"--type: {name!r} is not among the events that are sent", USAGE)


def _print_secret(endpoint: "Endpoint", as_json: bool) -> None:
    if as_json:
        emit({**describe(endpoint), "secret": endpoint.secret})
        return
    lines = [("Endpoint", str(endpoint.id)), ("URL", endpoint.url), ("Secret", endpoint.secret)]
    if endpoint.old_secret_until:
        lines.append(("Old one until", f"{endpoint.old_secret_until:%Y-%m-%d %H:%M:%S} UTC"))
    out().print(facts(*lines))
    say("Keep the secret: it is not told again")


def _state(endpoint: "Endpoint") -> str:
    return "enabled" if endpoint.disabled_at is None else f"disabled: {endpoint.disabled_why}"


def _result(delivery: "Delivery") -> str:
    told = number(delivery.attempts, "attempt")
    if delivery.error:
        told += f", {delivery.error}"
    if delivery.next_at and delivery.attempts:
        told += f", next {delivery.next_at:%H:%M:%S} UTC"
    return told
