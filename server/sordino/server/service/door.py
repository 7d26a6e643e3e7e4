"""The outer door of the service: before it is known who calls, and after the call has ended.

Every method is registered with gRPC as one whose requests are a stream, so that a single request
that trickles in is given up too: gRPC itself would wait for it for ever. Behind this door a method
is what it says it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import grpc

from sordino.core.errors import ContractError, expected
from sordino.server.enroll.interceptor import OPEN_METHODS, Failing, name_of
from sordino.server.service.figures import Counters, ServiceState
from sordino.server.service.rates import Rates
from sordino.server.service.settings import ServiceSettings

_SOON_MS = 1000


class Door(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Holds every call against the limits of its caller, within its time, and counts it.

    Args:
        settings: The limits.
        counters: What is counted.
        state: Whether calls are taken now.
        now_unix_ms: The coordinator's clock.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        counters: Counters,
        *,
        state: Callable[[], ServiceState],
        now_unix_ms: Callable[[], int],
    ) -> None:
        self._settings, self._counters = settings, counters
        self._state, self._now_unix_ms = state, now_unix_ms
        self._rates = Rates(settings.calls_per_minute, time.monotonic)
        self._enrolments = Rates(settings.enrolments_per_minute, time.monotonic)
        self._open: Counter[str] = Counter()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Put the door before a method's handler (gRPC's own signature)."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_unary_rpc_method_handler(self._unknown)
        return self._guarded(handler, handler_call_details.method)

    async def _unknown(self, messages: Any, context: Any) -> None:
        """A method that there isn't, counted under one name whatever it was called."""
        async with self._entered(context, "unknown"):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown-method")

    def _guarded(self, handler: Any, method: str) -> Any:
        serializer = self._measured(handler.response_serializer)
        behaviour = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        async def single(messages: Any, context: Any) -> Any:
            async with self._entered(context, method):
                return await behaviour(await self._request(messages, handler), context)

        async def several(messages: Any, context: Any) -> None:
            async with self._entered(context, method):
                request = await self._request(messages, handler)
                async with aclosing(behaviour(request, context)) as answers:
                    async for answer in answers:
                        # Whoever doesn't take it holds one of its own places, until its connection
                        # has come of age: gRPC can't end a call whose answer is stuck.
                        await context.write(answer)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(several, response_serializer=serializer)
        return grpc.stream_unary_rpc_method_handler(single, response_serializer=serializer)

    @asynccontextmanager
    async def _entered(self, context: Any, method: str) -> AsyncIterator[None]:
        with self._counted(context, method):
            async with Failing(context, method, self._now_unix_ms):
                self._admit(context, method)
                yield

    def _admit(self, context: Any, method: str) -> None:
        """Hold a call against the state of the service and the limits of its caller.

        Raises:
            ContractError: ``starting``, ``stopping`` or ``rate-limited``.
        """
        state = self._state()
        if state != "serving":
            word = "starting" if state == "starting" else "stopping"
            raise ContractError(word, "no calls are taken now", retry_after_ms=_SOON_MS)
        caller, most = self._caller(context), self._settings.calls_at_once
        if self._open[caller] > most:
            limit = expected("calls at once", self._open[caller], f"<= {most}")
            raise ContractError("rate-limited", limit, retry_after_ms=_SOON_MS)
        rates = self._enrolments if method in OPEN_METHODS else self._rates
        wait_ms = rates.wait_ms(caller)
        if wait_ms:
            raise ContractError("rate-limited", "too many calls a minute", retry_after_ms=wait_ms)

    @contextmanager
    def _counted(self, context: Any, method: str) -> Iterator[None]:
        """Count a call in and out, with the word that it failed by."""
        caller, peer, word = self._caller(context), context.peer(), ""
        self._counters.begun(peer)
        self._open[caller] += 1
        try:
            yield
        except grpc.aio.AbortError:
            word = context.details()
            raise
        except asyncio.CancelledError:
            word = "cancelled"
            raise
        finally:
            self._counters.ended(peer, method, word)
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    def _caller(self, context: Any) -> str:
        """Whom a limit is held against: the device of the connection, or else its address."""
        peer: str = context.peer()
        if self._settings.insecure_loopback:
            return peer
        return name_of(context) or peer.rpartition(":")[0]

    async def _request(self, messages: AsyncIterator[bytes], handler: Any) -> Any:
        """What a method is given: its one request, or the stream of them."""
        if handler.request_streaming:
            return self._incoming(messages)
        limit_s = self._settings.message_s
        try:
            async with asyncio.timeout(limit_s):
                data = await anext(messages)
        except StopAsyncIteration as error:
            raise ContractError("missing-field", "the call ended before its request") from error
        except TimeoutError as error:
            raise ContractError("too-slow", f"expected the request within {limit_s} s") from error
        self._counters.moved(up=len(data))
        return data

    async def _incoming(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for data in messages:
            self._counters.moved(up=len(data))
            yield data

    def _measured(self, serializer: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        def measured(message: Any) -> bytes:
            data = serializer(message)
            self._counters.moved(down=len(data))
            return data

        return measured
