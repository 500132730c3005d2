"""The engine across organisations: who may speak (identity, policy, audit), what is said (protocol, calls, parcels, blobs), and what is
kept (state). `hansa.federated` joins it with jobs and data."""

import os

# gRPC's core writes lines of its own to standard error at every try; what it says there reaches who calls as an error too.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
