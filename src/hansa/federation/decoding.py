"""What no message of the protocol is: refused as its sender's mistake, with one line in the log, before any handler sees it.

gRPC calls whatever a deserializer raises "unknown", and logs a traceback.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

log = logging.getLogger("hansa.federation.decoding")


class _Unreadable:
    """In the place of a message that cannot be read."""


_UNREADABLE = _Unreadable()


def guarded(method: str, handler: Any) -> Any:
    """A handler of gRPC that is called with messages alone; a call with anything else ends as INVALID_ARGUMENT."""
    read, how = _safe(handler.request_deserializer), handler.response_serializer

    if handler.response_streaming:

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            if handler.request_streaming:
                replies = handler.stream_stream(_Messages(method, request, context), context)
            else:
                await _refuse_unreadable(method, request, context)
                replies = handler.unary_stream(request, context)
            async with aclosing(replies):
                async for reply in replies:
                    yield reply

        make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        return make(stream, read, how)

    async def one(request: Any, context: Any) -> Any:
        if handler.request_streaming:
            return await handler.stream_unary(_Messages(method, request, context), context)
        await _refuse_unreadable(method, request, context)
        return await handler.unary_unary(request, context)

    make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(one, read, how)


class _Messages:
    """The messages of a call; it ends with the first one that cannot be read."""

    def __init__(self, method: str, requests: AsyncIterator[Any], context: Any) -> None:
        self._method, self._requests, self._context = method, requests, context
        self._each: AsyncIterator[Any] | None = None  # gRPC's is begun by who reads, and complains if nobody does

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> Any:
        if self._each is None:
            self._each = aiter(self._requests)
        request = await anext(self._each)
        await _refuse_unreadable(self._method, request, self._context)
        return request


async def _refuse_unreadable(method: str, request: Any, context: Any) -> None:
    if request is _UNREADABLE:
        log.warning("%s of %s: its message cannot be read", method, context.peer())
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be read; send what the protocol says")


def _safe(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def message(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _UNREADABLE

    return message
