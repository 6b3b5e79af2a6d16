"""Checkout: payments, what Stripe told us, and the queue of jobs that follow from it.

The queue is procrastinate's, in a schema of its own: its tables are its business, and its names cannot meet ours.
"""

from pathlib import Path

from alembic import op
from procrastinate.schema import SchemaManager

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind().connection.driver_connection
    connection.execute(Path(__file__).with_suffix(".sql").read_text())
    connection.execute("CREATE SCHEMA jobs; SET LOCAL search_path = jobs")
    connection.execute(SchemaManager.get_schema())
    connection.execute("SET LOCAL search_path = public")


def downgrade() -> None:
    raise NotImplementedError("payments are not thrown away by a downgrade: restore a backup")
