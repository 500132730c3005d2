"""How messages become bytes and back: as protobuf says, except that content is not copied once more on its way through.

A message with content is its content behind a few bytes that say how long it is. Those are read and written here; the bytes on the
wire are the ones that protobuf writes, and whatever looks otherwise is left to protobuf.
"""

from __future__ import annotations

from typing import Any, Final

import grpc

from hansa.federation.decoding import guarded
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.protocol import hansa_pb2_grpc as rpc

_NAME: Final = "hansa.federation.v1.Federation"
_CHUNK: Final = bytes([pb.Chunk.DESCRIPTOR.fields_by_name["data"].number << 3 | 2])
_PIECE: Final = bytes([pb.PutBlobRequest.DESCRIPTOR.fields_by_name["data"].number << 3 | 2])
_RESULT: Final = bytes([pb.ReportRequest.DESCRIPTOR.fields_by_name["content"].number << 3 | 2])


class Piece:
    """A ``PutBlobRequest``, a ``Chunk`` or a ``ReportRequest`` with content and nothing else. data: a view of what came."""

    __slots__ = ("data",)

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def WhichOneof(self, _: str) -> str:
        return "data"


def chunk(part: bytes) -> bytes:
    """A ``Chunk`` with content, as it is on the wire."""
    return _CHUNK + _length(len(part)) + part


def piece(part: bytes) -> bytes:
    """A ``PutBlobRequest`` with content, as it is on the wire."""
    return _PIECE + _length(len(part)) + part


def result(content: bytes) -> bytes:
    """A ``ReportRequest`` with content, as it is on the wire."""
    return _RESULT + _length(len(content)) + content


def read_chunk(message: bytes) -> Any:
    """A ``Chunk``. Raises protobuf's DecodeError for what is none."""
    view = _content(message, _CHUNK)
    return pb.Chunk.FromString(message) if view is None else Piece(view)


def read_piece(message: bytes) -> Any:
    """A ``PutBlobRequest``. Raises protobuf's DecodeError for what is none."""
    view = _content(message, _PIECE)
    return pb.PutBlobRequest.FromString(message) if view is None else Piece(view)


def read_report(message: bytes) -> Any:
    """A ``ReportRequest``. Raises protobuf's DecodeError for what is none."""
    view = _content(message, _RESULT)
    return pb.ReportRequest.FromString(message) if view is None else Piece(view)


def written(message: Any) -> bytes:
    """A message that is on the wire already, or that protobuf has to write."""
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


def _length(size: int) -> bytes:
    said = bytearray()
    while size > 127:
        said.append(size & 127 | 128)
        size >>= 7
    said.append(size)
    return bytes(said)


def _content(message: bytes, field: bytes) -> memoryview | None:
    """The content of a message that is one field with content; None for any other message."""
    if message[:1] != field:
        return None
    size = 0
    for place, byte in enumerate(message[1:6]):
        size |= (byte & 127) << 7 * place
        if byte < 128:
            start = place + 2
            return memoryview(message)[start:] if start + size == len(message) else None
    return None


class FederationStub:
    """What a client calls by a channel. Its pieces may be on the wire already."""

    def __init__(self, channel: Any) -> None:
        plain = rpc.FederationStub(channel)
        self.Join, self.Next = plain.Join, plain.Next
        self._report = channel.stream_unary(f"/{_NAME}/Report", written, pb.ReportReply.FromString)
        self.PutBlob = channel.stream_stream(f"/{_NAME}/PutBlob", written, pb.PutBlobReply.FromString)
        self.GetBlob = channel.unary_stream(f"/{_NAME}/GetBlob", written, read_chunk)

    def Report(self, request: Any, content: bytes = b"", **how: Any) -> Any:
        """content: of a result that goes with its report. how: as of any call of gRPC."""
        return self._report(iter((request, result(content)) if content else (request,)), **how)


def add_federation(service: Any, server: Any) -> None:
    """Let a server answer what clients and relays call, with a :class:`FederationServicer`; its chunks may be on the wire already."""
    unary = grpc.unary_unary_rpc_method_handler
    handlers = {
        "Join": unary(service.Join, pb.JoinRequest.FromString, written),
        "Next": unary(service.Next, pb.NextRequest.FromString, written),
        "Report": grpc.stream_unary_rpc_method_handler(service.Report, read_report, written),
        "PutBlob": grpc.stream_stream_rpc_method_handler(service.PutBlob, read_piece, written),
        "GetBlob": grpc.unary_stream_rpc_method_handler(service.GetBlob, pb.GetBlobRequest.FromString, written),
    }
    _add(_NAME, handlers, server)


def add_administration(service: Any, server: Any) -> None:
    """Let a server answer what administrators call, with an :class:`AdministrationServicer`."""
    told = pb.DESCRIPTOR.services_by_name["Administration"]
    handlers = {}
    for method in told.methods:
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(getattr(service, method.name), getattr(pb, method.input_type.name).FromString, written)
    _add(told.full_name, handlers, server)


def _add(name: str, handlers: dict[str, Any], server: Any) -> None:
    safe = {method: guarded(method, handler) for method, handler in handlers.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, safe),))
