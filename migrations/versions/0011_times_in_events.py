"""Times in the data of events are written as everywhere else on the wire: RFC 3339 in UTC, with Z (api.md)."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.get_bind().connection.driver_connection.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    raise NotImplementedError("times stay written as they are: restore a backup")
