"""`holdfast serve`: the HTTP service on stores that run elsewhere."""

import os
import sys

import rich_click as click

from app.cli.failing import Failed
from app.settings import Settings, SettingsError

#: How long requests that run at a stop, and live streams, may go on.
GRACE_SECONDS = 10


@click.command()
@click.option("--host", metavar="HOST", help="Address to listen on  [env: HOLDFAST_HOST; default 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65_535), help="Port to listen on  [env: HOLDFAST_PORT; default 8000]")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes  [env: HOLDFAST_WORKERS; default 1]")
def serve(host: str | None, port: int | None, workers: int | None) -> None:
    """Serve HTTP, on the stores of REDIS_URL and DATABASE_URL.

    Does not change the schema: `holdfast db upgrade` does.
    """
    from app.cli.sockets import listen, url_of
    from app.cli.workers import metrics_dir, supervise
    from app.settings import from_env

    export(HOLDFAST_HOST=host, HOLDFAST_PORT=port, HOLDFAST_WORKERS=workers)
    settings = from_env()
    check_stores(settings)
    listener = listen(settings.host, settings.port)
    url = url_of(listener)
    with metrics_dir(settings.workers):
        supervise(
            listener,
            settings.workers,
            grace_seconds=GRACE_SECONDS,
            ready=lambda: print(f"Holdfast serves on {url}", file=sys.stderr),
        )


def export(**given: object) -> None:
    """Put flags where the workers find them; what was not given stays as it is."""
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})


def check_stores(settings: Settings) -> None:
    """Refuse to start on stores that could not keep the promises. A store that is merely away is no reason.

    Raises:
        Failed: the schema is missing or old. SettingsError: Redis may evict holds, in production.
    """
    from app.cli.stores import evicts, schema_problem

    try:
        problem = schema_problem(settings.database_url)
    except OSError as error:
        print(f"Postgres cannot be reached yet: {error}", file=sys.stderr)
        problem = None
    if problem:
        raise Failed(f"{problem}: run `holdfast db upgrade`")
    if settings.production and evicts(settings.redis_url):
        raise SettingsError("REDIS_URL: this Redis may evict holds; set its maxmemory-policy to noeviction")
