"""`holdfast simulator`: a Stripe for trying things out, in which no money moves."""

from pathlib import Path

import rich_click as click

from app.cli.failing import USAGE, Failed
from app.settings import SIMULATOR_KEY_PREFIX

#: What people who know Stripe's own stand-in expect.
DEFAULT_PORT = 12_111


@click.command()
@click.option("--host", metavar="HOST", default="127.0.0.1", help="Loopback address to listen on  [default 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65_535), default=DEFAULT_PORT, help="Port  [default 12111]")
@click.option("--webhook-url", metavar="URL", help="Where events go; without it they are only listed")
@click.option(
    "--webhook-secret",
    metavar="SECRET",
    envvar="STRIPE_WEBHOOK_SECRET",
    help="Signs the events  [env: STRIPE_WEBHOOK_SECRET]",
)
@click.option(
    "--state", type=click.Path(dir_okay=False, path_type=Path), help="File that keeps everything for a restart"
)
def simulator(host: str, port: int, webhook_url: str | None, webhook_secret: str | None, state: Path | None) -> None:
    """Run a simulator of Stripe: its API, its pay page, its webhooks. No money moves.

    On this machine only, and never where HOLDFAST_ENV is production.
    """
    from app.cli.sockets import listen, url_of
    from app.simulator.server import Setup, is_loopback, refuse_production, serve, webhook_secrets

    refuse_production()
    if not is_loopback(host):
        raise Failed("--host must be a loopback address: the simulator is for this machine only", code=USAGE)
    secrets = webhook_secrets(webhook_secret or "", webhook_url)
    listener = listen(host, port)
    url = url_of(listener)
    setup = Setup(public_url=url, webhook_url=webhook_url, webhook_secrets=secrets, state=state)
    try:
        serve(setup, listener, ready=lambda: _welcome(url, webhook_url))
    except KeyboardInterrupt:  # the way to stop it, and no failure
        return


def _welcome(url: str, webhook_url: str | None) -> None:
    from rich.panel import Panel

    from app.cli.show import facts, out

    lines = facts(
        ("STRIPE_API_BASE", url),
        ("STRIPE_API_KEY", f"{SIMULATOR_KEY_PREFIX}anything"),
        ("Webhooks to", webhook_url or "nobody"),
    )
    title = "A simulator of Stripe: no money moves. Ctrl-C stops it"
    out().print(Panel(lines, title=title, title_align="left", expand=False))
