"""The engine across organisations: who may speak (identity, policy, audit), what is said (protocol, calls, parcels, blobs), and what is
kept (state). `hansa.federated` joins it with jobs and data."""
