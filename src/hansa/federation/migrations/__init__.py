"""How a database comes from any older layout of its tables to the present one (Alembic)."""
