"""`holdfast demo`: everything in one terminal, for trying it out. What `make run` calls."""

import hashlib
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import rich_click as click

from app.cli.serve import export

if TYPE_CHECKING:
    from app.cli.home import Keys, Run
    from app.cli.seed import Seeded
    from app.cli.workers import Program
    from app.settings import Settings

#: A demo is stopped by somebody who waits for the prompt.
GRACE_SECONDS = 3
#: Where the demo's mailbox listens, or the next free port.
SMTP_PORT = 2525
#: Of e-mails that never leave this machine.
DEMO_SENDER = "Holdfast demo <demo@holdfast.example>"
#: More would only take the processor from the stores and the load generator, which run on the same machine.
MAX_DEFAULT_WORKERS = 4


@click.command()
@click.option("--host", metavar="HOST", help="Address to listen on  [env: HOLDFAST_HOST; default 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(1, 65_535), help="Port  [env: HOLDFAST_PORT; default: 8000 or the next free]"
)
@click.option(
    "--workers", type=click.IntRange(1, 64), help="Processes  [env: HOLDFAST_WORKERS; default: as processors]"
)
def demo(host: str | None, port: int | None, workers: int | None) -> None:
    """Run everything here: bundled Redis and Postgres, a demo venue, the service.

    Data and keys stay in HOLDFAST_HOME (./.holdfast). With REDIS_URL or DATABASE_URL set, those stores are used.
    """
    from app.cli.home import Run, home_dir, keep_keys, published
    from app.cli.seed import seed
    from app.cli.show import say
    from app.cli.sockets import url_of
    from app.cli.workers import metrics_dir, supervise
    from app.migrate import upgrade
    from app.settings import from_env

    home = home_dir()
    export(HOLDFAST_HOST=host, HOLDFAST_PORT=port, HOLDFAST_WORKERS=workers)
    _default("HOLDFAST_WORKERS", str(min(os.cpu_count() or 1, MAX_DEFAULT_WORKERS)))
    listener = _listen()
    url = url_of(listener)
    with stoppable(), ExitStack() as stack:
        say("Starting Redis and Postgres")
        _start_stores(home, stack)
        home.mkdir(parents=True, exist_ok=True)
        keys = keep_keys(home)
        _default("HOLDFAST_OPERATOR_KEY", keys.operator_key)
        _default("HOLDFAST_SECRET", keys.secret)
        _default("HOLDFAST_ENV", "development")
        _default("HOLDFAST_PUBLIC_URL", url)
        export(HOLDFAST_DEMO="on", HOLDFAST_PORT=listener.getsockname()[1])
        beside = _companions(home, keys, listener, stack)
        settings = from_env()
        say("Bringing the database to the newest schema")
        upgrade(settings.database_url)
        say("Looking for the demo venue, or making it")
        seeded = seed(settings.database_url)
        say("Starting the service")
        run = Run(settings.redis_url, settings.database_url, url, settings.operator_key, os.getpid())
        stack.enter_context(published(home, run))
        stack.enter_context(metrics_dir(settings.workers + 1, home))  # the job worker counts, too
        log = stack.enter_context(_log(home))
        supervise(
            listener,
            settings.workers,
            grace_seconds=GRACE_SECONDS,
            ready=lambda: _welcome(run, home, seeded, settings),
            log=log,
            beside=beside,
        )


def _companions(home: Path, keys: "Keys", listener: socket.socket, stack: ExitStack) -> list["Program"]:
    """Name what runs beside the service: the worker, and a simulator of Stripe with a mailbox for what is not set."""
    from app.cli.sockets import listen, url_of
    from app.cli.workers import PIPE, Program
    from app.settings import SIMULATOR_KEY_PREFIX

    worker = Program("Job worker", "app.cli", ("worker", "--parent", PIPE))
    if os.environ.get("STRIPE_API_KEY") and os.environ.get("HOLDFAST_SMTP_URL"):
        return [worker]
    stripe = stack.enter_context(listen("127.0.0.1", listener.getsockname()[1] + 1, next_free=True))
    smtp = stack.enter_context(listen("127.0.0.1", SMTP_PORT, next_free=True))
    if not os.environ.get("STRIPE_API_KEY"):
        os.environ["STRIPE_API_KEY"], os.environ["STRIPE_API_BASE"] = f"{SIMULATOR_KEY_PREFIX}demo", url_of(stripe)
    _default("STRIPE_WEBHOOK_SECRET", f"whsec_{hashlib.sha256(keys.secret.encode()).hexdigest()}")
    _default("HOLDFAST_SMTP_URL", url_of(smtp).replace("http://", "smtp://"))
    _default("HOLDFAST_MAIL_FROM", DEMO_SENDER)
    simulator = Program(
        "Simulator",
        "app.simulator",
        (str(stripe.fileno()), PIPE, str(smtp.fileno())),
        fds=(stripe.fileno(), smtp.fileno()),
        environ={
            "HOLDFAST_SIMULATOR_WEBHOOK_URL": f"{url_of(listener)}/v1/webhooks/stripe",
            "HOLDFAST_SIMULATOR_STATE": str(home / "stripe.json"),
            "HOLDFAST_SIMULATOR_MAIL_DIR": str(home / "mail"),
        },
    )
    return [simulator, worker]


def _listen() -> socket.socket:
    """Take the port before anything is started: neither a typo nor a busy port shall cost a database."""
    from app.cli.home import placeholders
    from app.cli.sockets import listen
    from app.settings import from_env

    any_port = not os.environ.get("HOLDFAST_PORT")
    settings = from_env({**placeholders("REDIS_URL", "DATABASE_URL"), **_set_variables()})
    return listen(settings.host, settings.port, next_free=any_port)


def _set_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if value}


def _default(name: str, value: str) -> None:
    if not os.environ.get(name):
        os.environ[name] = value


@contextmanager
def stoppable() -> Iterator[None]:
    """Make SIGTERM and a closed terminal end us like Ctrl-C, also while starting: the stores stop cleanly."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _start_stores(home: Path, stack: ExitStack) -> None:
    """Run the bundled servers for those stores that the environment does not name."""
    from app.embedded import running

    redis, postgres = not os.environ.get("REDIS_URL"), not os.environ.get("DATABASE_URL")
    if not (redis or postgres):
        return
    servers = stack.enter_context(running(home, redis=redis, postgres=postgres))
    export(REDIS_URL=servers.redis_url, DATABASE_URL=servers.database_url)


@contextmanager
def _log(home: Path) -> Iterator[Path]:
    """Requests are logged to a file, so that the terminal keeps what is worth reading."""
    path = home / "http.log"
    if path.exists():
        path.replace(home / "http.log.old")
    path.touch(mode=0o600)
    yield path


def _welcome(run: "Run", home: Path, seeded: "Seeded", settings: "Settings") -> None:
    from rich.panel import Panel

    from app.cli.seed import SLUG
    from app.cli.show import facts, out

    lines = facts()
    lines.add_row("Book", f"[bold]{run.api_url}/book/{SLUG}[/]")
    lines.add_row("Calendar", f"{run.api_url}/calendar")
    lines.add_row("Console", f"{run.api_url}/ops")
    lines.add_row("API", run.api_url)
    lines.add_row("Docs", f"{run.api_url}/schema")
    lines.add_row("Health", f"{run.api_url}/readyz")
    lines.add_row("Metrics", f"{run.api_url}/metrics")
    lines.add_row("Operator key", run.operator_key)
    if settings.stripe_api_base.startswith("http://"):
        lines.add_row("Payments", f"{settings.stripe_api_base} is a simulator of Stripe: no money moves")
    if settings.mail_from == DEMO_SENDER:
        lines.add_row("E-mail", f"{settings.stripe_api_base}/mailbox, or [cyan]{_program(home)} mail show[/]")
    lines.add_row("Data and logs", str(home))
    lines.add_row("Watch holds", f"[cyan]{_program(home)} holds watch[/]")
    lines.add_row("Race", f"[cyan]{_program(home)} race[/]")
    console = out()
    console.print(Panel(lines, title="Holdfast runs. Ctrl-C stops it", title_align="left", expand=False))
    # Outside the panel and never wrapped: a border or a line break would be pasted with it.
    console.print(f"Book a place on “{seeded.name}”, {seeded.when}:")
    console.print(curl(run.api_url, seeded), soft_wrap=True, highlight=False, markup=False)
    if settings.stripe_api_key:
        console.print("Or pay for it first, at the checkout_url of the answer:")
        console.print(curl(run.api_url, seeded, "checkout"), soft_wrap=True, highlight=False, markup=False)


def _program(home: Path) -> str:
    """Tell how this program is called in another terminal that stands in the same directory."""
    called = Path(sys.argv[0])
    if shutil.which(called.name) is None and called.resolve().is_relative_to(Path.cwd()):
        name = str(called.resolve().relative_to(Path.cwd()))
    else:
        name = called.name if shutil.which(called.name) else str(called)
    return name if home == Path(".holdfast").resolve() else f"{name} --home {shlex.quote(str(home))}"


def curl(url: str, seeded: "Seeded", route: str = "bookings") -> str:
    customer = '{"name":"Ada Lovelace","email":"ada@example.com"}'
    body = f'{{"slot_id":"{seeded.slot_id}","quantity":1,"customer":{customer}}}'
    return f"curl -sS {url}/v1/{route} -H 'Content-Type: application/json' -d '{body}'"
