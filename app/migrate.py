"""Bring a database to the newest schema. Imported only by `holdfast db` and `holdfast demo`: Alembic takes seconds."""

from alembic import command
from alembic.config import Config

from app.paths import migrations_dir


def upgrade(database_url: str, revision: str = "head") -> None:
    """Run what is missing. Repeating it does nothing; two at once take turns (an advisory lock)."""
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()))
    config.set_main_option("path_separator", "os")
    # ConfigParser reads % as its own sign.
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    command.upgrade(config, revision)
