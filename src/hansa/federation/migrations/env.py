"""Run by Alembic, on the connection that `hansa.federation.database` gives it."""

from __future__ import annotations

from alembic import context

from hansa.federation.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
