"""Jobs, data and models joined with the federation's wire: a server that plays jobs, a client with rows, and both on one machine."""

from importlib.util import find_spec

from hansa.core.errors import missing_extra

for _module, _package in {
    "grpc": "grpcio",
    "cryptography": "cryptography",
    "sqlalchemy": "sqlalchemy",
    "alembic": "alembic",
}.items():
    if find_spec(_module) is None:
        raise missing_extra(_package, "federation")
