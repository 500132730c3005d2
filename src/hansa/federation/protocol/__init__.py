"""The messages and calls between organisations (``hansa.proto``), and the version of them that this package speaks."""

PROTOCOL = 2
