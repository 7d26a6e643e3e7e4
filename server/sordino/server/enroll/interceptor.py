"""The door of the service `Fleet`: no call reaches a method before its maker is known.

Methods are registered with handlers that take bytes (`grpc.method_handlers_generic_handler`, no
deserializer), so that the gate is before the parser. Behind this interceptor a method is given, in
the request's place:

- a `Call`, for a signed request;
- a `StreamCall`, for a stream whose first message is signed;
- the bytes, for a method that is open (`Enroll`).

An error from a method whose reason is one of the contract's words becomes that failure on the wire;
any other is `internal`, and only the log says what it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from cryptography import x509

from sordino.core import contract
from sordino.core.errors import ContractError, SordinoError
from sordino.protos.v1 import fleet_pb2
from sordino.server.enroll.calls import Call, Transport, authenticate
from sordino.server.enroll.records import MembershipStore
from sordino.server.logs import say

OPEN_METHODS: Final = frozenset({"/sordino.v1.Fleet/Enroll"})
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StreamCall:
    """A stream whose maker is known.

    Attributes:
        call: Of its first message.
        rest: The messages that follow, as bytes.
    """

    call: Call
    rest: AsyncIterator[bytes]


def of_connection(context: Any, data: bytes) -> Transport:
    """What TLS knows of a call's connection, whatever the call says."""
    known: Transport = context.auth_context()
    return known


class Authentication(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Authenticates every call, on asyncio; whatever isn't known to be open is closed.

    Args:
        store: Who is a member. Its methods run in threads: they may wait for a disk.
        authorities: Whose certificates are taken.
        now_unix_ms: The coordinator's clock.
        first_message_s: How long a stream may wait with its first message.
        transport_of: What is known of the connection of a call with that `Signed`; runs in a
            thread. Anything but `of_connection` is for loopback without TLS.
    """

    def __init__(
        self,
        store: MembershipStore,
        authorities: Sequence[x509.Certificate],
        *,
        now_unix_ms: Callable[[], int],
        first_message_s: float = 30.0,
        transport_of: Callable[[Any, bytes], Transport] = of_connection,
    ) -> None:
        self._store = store
        self._authorities = tuple(authorities)
        self._now_unix_ms = now_unix_ms
        self._first_message_s = first_message_s
        self._transport_of = transport_of

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Put the check before a method's handler (gRPC's own signature)."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC says UNIMPLEMENTED
        return self._guarded(handler, handler_call_details.method)

    def _guarded(self, handler: Any, method: str) -> Any:
        inner = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        async def single(request: Any, context: Any) -> Any:
            async with Failing(context, method, self._now_unix_ms):
                return await inner(await self._admit(request, context, method, handler), context)

        async def several(request: Any, context: Any) -> AsyncIterator[Any]:
            async with Failing(context, method, self._now_unix_ms):
                async for answer in inner(
                    await self._admit(request, context, method, handler), context
                ):
                    yield answer

        make, behaviour = {
            (False, False): (grpc.unary_unary_rpc_method_handler, single),
            (False, True): (grpc.unary_stream_rpc_method_handler, several),
            (True, False): (grpc.stream_unary_rpc_method_handler, single),
            (True, True): (grpc.stream_stream_rpc_method_handler, several),
        }[handler.request_streaming, handler.response_streaming]
        return make(behaviour, response_serializer=handler.response_serializer)

    async def _admit(self, request: Any, context: Any, method: str, handler: Any) -> Any:
        if method in OPEN_METHODS:
            return request
        if not handler.request_streaming:
            return await self._authenticate(request, context, method)
        signed = _start_of(await self._first(request))
        return StreamCall(call=await self._authenticate(signed, context, method), rest=request)

    async def _authenticate(self, data: bytes, context: Any, method: str) -> Call:
        return await asyncio.to_thread(self._check, data, context, method)

    def _check(self, data: bytes, context: Any, method: str) -> Call:
        return authenticate(
            data,
            method=method,
            transport=self._transport_of(context, data),
            authorities=self._authorities,
            store=self._store,
            now_unix_ms=self._now_unix_ms(),
        )

    async def _first(self, messages: AsyncIterator[bytes]) -> bytes:
        try:
            return await asyncio.wait_for(anext(messages), self._first_message_s)
        except StopAsyncIteration as error:
            raise ContractError("missing-field", "the stream ended before its start") from error
        except TimeoutError as error:
            required = f"the first message within {self._first_message_s} s"
            raise ContractError("too-slow", f"expected {required}") from error


def _start_of(message: bytes) -> bytes:
    """The signed request in an upload's first message.

    Its three fields are bytes that were hashed and signed as they are, so that writing their
    envelope anew changes nothing.
    """
    first = contract.from_bytes(message, fleet_pb2.PushUpdateRequest)
    if not first.HasField("start"):
        raise ContractError("missing-field", "the stream's first message has no start")
    return contract.to_bytes(first.start)


def name_of(context: Any) -> str:
    """The device that a connection's certificate names, which TLS has checked; or nothing."""
    names = context.auth_context().get("x509_common_name", ())
    return names[0].decode(errors="replace") if names else ""


class Failing:
    """Ends a call with the failure that a method, or a check before it, raised, and logs its word.

    What the caller is told beside the word isn't logged: it may quote the request.
    """

    def __init__(self, context: Any, method: str, now_unix_ms: Callable[[], int]) -> None:
        self._context, self._method, self._now_unix_ms = context, method, now_unix_ms

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, (grpc.aio.AbortError, GeneratorExit)):
            return
        reason = getattr(error, "reason", "")
        about = {"method": self._method, "device": name_of(self._context)}
        if isinstance(error, SordinoError) and reason in contract.REASONS:
            # A caller that calls too often doesn't fill the log too.
            level = logging.DEBUG if reason == "rate-limited" else logging.WARNING
            say(_LOG, "call-refused", level, **about, word=reason)
            await self._abort(reason, str(error), getattr(error, "retry_after_ms", 0))
        elif isinstance(error, Exception):
            _LOG.error("%s failed for %s", *about.values(), exc_info=error)
            await self._abort("internal", "the coordinator failed; its log says why")

    async def _abort(self, reason: str, message: str, retry_after_ms: int = 0) -> None:
        now = self._now_unix_ms() if reason == "clock-skew" else 0
        failure = contract.encode_failure(
            reason, message, retry_after_ms=retry_after_ms, now_unix_ms=now
        )
        code = grpc.StatusCode[contract.REASONS[reason].code]
        await self._context.abort(code, reason, ((contract.TRAILER, failure),))
