"""Relays: through whom a client is reached, and where in the sum a task stands."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("members", sa.Column("via", sa.String(64)))
    op.add_column("tasks", sa.Column("block", sa.Integer, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("blocks", sa.Integer, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("held", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    for table, column in (("tasks", "held"), ("tasks", "blocks"), ("tasks", "block"), ("members", "via")):
        with op.batch_alter_table(table) as batch:
            batch.drop_column(column)
