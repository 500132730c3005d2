"""How fast a federation's server is: against raw gRPC streaming of the same bytes, and against Flower's SuperLink with SuperNodes."""
