"""Who listens to the calls: on the server's side for figures and traces, on the client's for the context of the traces."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from typing import Any, NamedTuple

import grpc

from hansa.federation.tracing import RoundSpans, TaskSpans
from hansa.federation.wire import Piece

_CODES: dict[Any, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class Listener(grpc.aio.ServerInterceptor):
    """Counts and times every call, and its messages' bytes. figures: of :mod:`hansa.federation.observe`; either may be None."""

    def __init__(self, figures: Any = None, spans: RoundSpans | None = None) -> None:
        self._figures, self._spans = figures, spans
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        name = details.method
        if name not in self._handlers:
            handler = await continuation(details)
            if handler is None:
                return None  # no method of ours: nothing is kept of what somebody made up
            self._handlers[name] = self._wrapped(name.rpartition("/")[2], handler)
        return self._handlers[name]

    def _wrapped(self, method: str, handler: Any) -> Any:
        if handler.response_streaming:

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                with self._heard(method, context):
                    inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
                    announced = _First(request) if handler.request_streaming else request
                    async with aclosing(inner(announced, context)) as replies:
                        async for reply in replies:
                            if method == "PutBlob" and reply.complete and self._figures is not None:
                                self._figures.uploads.observe(announced.first.blob.size)
                            yield reply

            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
            return make(stream, *self._counted(method, handler))

        if handler.request_streaming:

            async def last(requests: Any, context: Any) -> Any:
                announced = _First(requests)
                with self._heard(method, context):
                    reply = await handler.stream_unary(announced, context)
                if self._figures is not None:
                    self._figures.reported(announced.first, reply)
                    if announced.content:
                        self._figures.uploads.observe(announced.content)
                return reply

            return grpc.stream_unary_rpc_method_handler(last, *self._counted(method, handler))

        async def one(request: Any, context: Any) -> Any:
            with self._heard(method, context):
                reply = await handler.unary_unary(request, context)
            if method == "Next" and self._spans is not None and reply.tasks:
                context.set_trailing_metadata(tuple(self._spans.beside(reply.tasks)))
            return reply

        return grpc.unary_unary_rpc_method_handler(one, *self._counted(method, handler))

    @contextmanager
    def _heard(self, method: str, context: Any) -> Any:
        began, figures, code = time.monotonic(), self._figures, "OK"
        if figures is not None:
            figures.open_calls.labels(method).inc()
        try:
            with self._span(method, context):
                yield
            code = _code(context, "OK")
        except GeneratorExit:
            code = "CANCELLED"
            raise
        except BaseException as error:
            ended = "CANCELLED" if type(error).__name__ == "CancelledError" else "UNKNOWN"
            code = _code(context, ended)
            raise
        finally:
            if figures is not None:
                figures.open_calls.labels(method).dec()
                figures.called(method, code, time.monotonic() - began)

    def _span(self, method: str, context: Any) -> AbstractContextManager[None]:
        if self._spans is None:
            return nullcontext()
        said = next((str(value) for key, value in context.invocation_metadata() if key == "traceparent"), "")
        return self._spans.call(method, said)

    def _counted(self, method: str, handler: Any) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
        """The handler's deserializer and serializer, with their bytes counted."""
        if self._figures is None:
            return handler.request_deserializer, handler.response_serializer
        received, sent = self._figures.received.labels(method), self._figures.sent.labels(method)

        def read(data: bytes) -> Any:
            received.inc(len(data))
            return handler.request_deserializer(data)

        def write(message: Any) -> bytes:
            data: bytes = handler.response_serializer(message)
            sent.inc(len(data))
            return data

        return read, write


class _First:
    """The messages of an upload or a report. first: the first one. content: bytes of content in the others."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = aiter(requests)
        self.first: Any = None
        self.content = 0

    def __aiter__(self) -> _First:
        return self

    async def __anext__(self) -> Any:
        request = await anext(self._requests)
        if self.first is None:
            self.first = request
        elif isinstance(request, Piece):
            self.content += len(request.data)
        return request


def _code(context: Any, otherwise: str) -> str:
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return _CODES.get(number, otherwise) if number else otherwise


class _Details(NamedTuple):
    """Of a call, as gRPC reads them: by name."""

    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class Caller(
    grpc.UnaryUnaryClientInterceptor, grpc.StreamUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):  # fmt: skip
    """Adds the present step's context to a client's calls, and hears what comes beside the replies.

    heard: called when a server has answered.
    """

    def __init__(self, heard: Callable[[], None], spans: TaskSpans | None = None) -> None:
        self._heard, self._spans = heard, spans

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        call = continuation(self._with_context(details), request)
        if call.code() is grpc.StatusCode.OK:  # waits for the reply
            self._heard()
            if self._spans is not None and str(details.method).endswith("/Next"):
                self._spans.told(call.trailing_metadata())
        return call

    def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        call = continuation(self._with_context(details), requests)
        if call.code() is grpc.StatusCode.OK:  # waits for the reply
            self._heard()
        return call

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_context(details), request)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(self._with_context(details), requests)

    def _with_context(self, details: Any) -> Any:
        words = self._spans.words() if self._spans is not None else ""
        if not words:
            return details
        return _Details(
            details.method, details.timeout, [*(details.metadata or ()), ("traceparent", words)], details.credentials,
            details.wait_for_ready, details.compression,
        )  # fmt: skip
