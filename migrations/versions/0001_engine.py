"""The engine: venues, resources, slots, bookings, events, and every rule of theirs.

The statements stand in the SQL file beside this one, where they read best. A released revision is never edited.
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Straight to psycopg, which sends a text without parameters as it is, all statements at once.
    op.get_bind().connection.driver_connection.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    raise NotImplementedError("bookings are not thrown away by a downgrade: restore a backup")
