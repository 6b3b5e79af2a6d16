"""The command line, `holdfast`: each command in its module, imported when it is called.

A command's module imports little more than click at its top; stores, Litestar and Alembic are imported inside the
functions that need them, so that `holdfast --help` and `holdfast holds …` answer at once.
"""

import os
from importlib import import_module
from typing import cast

import rich_click as click

from app.cli.failing import guarded

#: Where each command lives. The order is that of the help.
COMMANDS = {
    "serve": "app.cli.serve:serve",
    "worker": "app.cli.worker:worker",
    "demo": "app.cli.demo:demo",
    "db": "app.cli.db:db",
    "doctor": "app.cli.doctor:doctor",
    "holds": "app.cli.holds:holds",
    "slots": "app.cli.slots:slots",
    "bookings": "app.cli.bookings:bookings",
    "calendar": "app.cli.calendar:calendar",
    "feeds": "app.cli.feeds:feeds",
    "payments": "app.cli.payments:payments",
    "waiting": "app.cli.waiting:waiting",
    "events": "app.cli.events:events",
    "webhooks": "app.cli.webhooks:webhooks",
    "mail": "app.cli.mail:mail",
    "reconcile": "app.cli.reconcile:reconcile",
    "race": "app.cli.race:race",
    "simulator": "app.cli.simulator:simulator",
}


class LazyGroup(click.RichGroup):
    """A group that imports a command's module when somebody asks for that command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        return cast(click.Command, getattr(import_module(module), name))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--home", metavar="DIR", help="Home of a demo, also for its second terminal  [env: HOLDFAST_HOME]")
@click.option("--redis-url", metavar="URL", help="The holds  [env: REDIS_URL]")
@click.option("--database-url", metavar="URL", help="The bookings  [env: DATABASE_URL]")
@click.version_option(package_name="holdfast")
def cli(home: str | None, redis_url: str | None, database_url: str | None) -> None:
    """Reservations that are never oversold.

    Where the stores are is taken from flags, else from the environment, else from a running `holdfast demo`.

    Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict or drift, 5 store unreachable.
    """
    # A flag is a variable for this one command; the processes that it starts inherit it.
    given = {"HOLDFAST_HOME": home, "REDIS_URL": redis_url, "DATABASE_URL": database_url}
    os.environ.update({name: value for name, value in given.items() if value is not None})


def main() -> None:
    """Run a command and exit with its code: the entry point of the console script."""
    raise SystemExit(guarded(lambda: cli.main(standalone_mode=False)))
