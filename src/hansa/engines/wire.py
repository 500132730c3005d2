"""Messages over a socket between the processes of one owner's job, who first prove to each other that they hold its key."""

from __future__ import annotations

import contextlib
import hmac
import pickle
import secrets
import socket
import struct
from multiprocessing import AuthenticationError
from typing import Any, Literal

SILENCE = 60.0
"""Seconds without a byte in the middle of a message after which its sender is lost."""

PIECE = 2**20
"""Bytes that are sent at once, so that the time allowed is for a piece and not for the whole."""


class Wire:
    """Messages over a socket, each behind its length."""

    _LENGTH = struct.Struct("!Q")

    def __init__(self, socket_: socket.socket, timeout: float) -> None:
        self.socket = socket_
        socket_.settimeout(timeout)
        socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socket_.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # so that the loss of the other machine is noticed at all

    def prove(self, authkey: bytes, side: Literal["hub", "member"]) -> None:
        """Show each other that both hold the key. AuthenticationError, EOFError or OSError where the other side does not."""
        challenge = secrets.token_bytes(32)
        self.send_bytes(challenge)
        self.send_bytes(_proof(authkey, side, self.recv_bytes(32)))
        if not hmac.compare_digest(self.recv_bytes(32), _proof(authkey, "member" if side == "hub" else "hub", challenge)):
            raise AuthenticationError("the other side does not hold this gang's key")

    def send(self, message: Any) -> None:
        self.send_bytes(pickle.dumps(message, protocol=5))

    def receive(self) -> Any:
        """The next message, None if the other side is gone."""
        try:
            return pickle.loads(self.recv_bytes())  # noqa: S301  # from one who holds the key
        except (EOFError, OSError):
            return None

    def send_bytes(self, data: bytes) -> None:
        """To one that is gone nothing is sent: who listens next, learns it."""
        try:
            self.socket.sendall(self._LENGTH.pack(len(data)))
            for start in range(0, len(data), PIECE):
                self.socket.sendall(memoryview(data)[start : start + PIECE])
        except OSError:
            with contextlib.suppress(OSError):  # it is not connected any more
                self.socket.shutdown(socket.SHUT_RDWR)

    def recv_bytes(self, maxlength: int | None = None) -> bytearray:
        (length,) = self._LENGTH.unpack(self._read(self._LENGTH.size))
        if maxlength is not None and length > maxlength:
            raise OSError(f"a message of {length} bytes, where at most {maxlength} belong")
        return self._read(length)

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        view, got = memoryview(data), 0
        while got < length:
            count = self.socket.recv_into(view[got:])
            if not count:
                raise EOFError
            got += count
        return data

    def close(self) -> None:
        self.socket.close()


def _proof(authkey: bytes, side: str, challenge: bytearray | bytes) -> bytes:
    return hmac.digest(authkey, side.encode() + challenge, "sha256")
