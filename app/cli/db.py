"""`holdfast db`: the schema."""

import rich_click as click


@click.group()
def db() -> None:
    """The database's schema."""


@db.command()
def upgrade() -> None:
    """Bring the schema of DATABASE_URL to this version. Repeating it does nothing."""
    from app.cli.home import database_url
    from app.cli.stores import revisions

    url = database_url()
    from app.migrate import upgrade as migrate

    migrate(url)
    print(f"The schema is at {revisions()[1]}")
