"""The connection to the coordinator: every call signed, every failure read.

One channel at a time, which several threads may use. After a call that broke without a word the
next one goes over a new channel, so that how long to wait is the agent's to say and not gRPC's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from sordino.client.agent.timing import FleetClock
from sordino.client.identity import Identity, channel_credentials
from sordino.core import contract
from sordino.core.contract import Failure
from sordino.core.errors import ContractError, SordinoError
from sordino.protos.v1 import common_pb2, fleet_pb2

MessageT = TypeVar("MessageT", bound=Message)

SERVICE: Final = "/sordino.v1.Fleet/"
CALL_S: Final = 60.0
MOST_SAID: Final = 400
STREAM_S: Final = 300.0
"""How long a file's stream may take; one that was cut goes on where it was."""

LASTING: Final = frozenset(
    {
        "bad-signature",
        "certificate-expired",
        "certificate-revoked",
        "ledger-rolled-back",
        "no-certificate",
        "old-tls",
        "revision-too-old",
        "unknown-device",
        "wrong-authority",
        "wrong-device",
    }
)
"""Words that end a membership, not a task: an agent that hears one stops."""

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the old one's long waits
    ("grpc.max_receive_message_length", 1 << 22),
]
_LOG = logging.getLogger(__name__)


class CallError(SordinoError):
    """A call failed.

    Attributes:
        failure: What the coordinator said; None: nothing, the network or it broke.
    """

    def __init__(self, method: str, failure: Failure | None, why: str) -> None:
        said = f"{failure.reason}: {failure.message}" if failure else why
        # Whoever answers chose these letters, and they end up in a log.
        line = "".join(c if c.isprintable() else " " for c in said[:MOST_SAID])
        super().__init__(f"{method}: {line}")
        self.failure = failure

    @property
    def reason(self) -> str:
        """The coordinator's word; empty where there is none."""
        return self.failure.reason if self.failure else ""

    @property
    def lasting(self) -> bool:
        """Whether the device is no member any more."""
        return self.reason in LASTING

    @property
    def refused(self) -> bool:
        """Whether this request can never succeed, of a device that is a member all the same."""
        never = self.failure is not None and self.failure.retry == "never"
        return never and not self.lasting


class Link:
    """Signed calls to one coordinator, as one device.

    Args:
        address: Host and port of the fleet's listener.
        identity: Who calls.
        clock: The coordinator's, which failures and answers correct.
    """

    def __init__(self, address: str, identity: Identity, clock: FleetClock) -> None:
        self.address = address
        self.identity = identity
        self.clock = clock
        self._lock = threading.Lock()
        self._channel: Any = None

    def call(
        self,
        method: str,
        body: Message,
        kind: type[MessageT],
        *,
        run_id: str = "",
        number: int = 0,
        reopen: bool = True,
    ) -> MessageT:
        """Make a call with one request and one answer.

        Args:
            method: Its name, for example ``Hello``.
            body: What is signed.
            kind: Of the answer.
            run_id: The run that it is about, if any.
            number: The round that it is about, if any.
            reopen: Whether a break ends the channel, and with it the calls of other threads.

        Raises:
            CallError: It failed; nothing is tried again here.
        """
        signed = self._seal(method, body, run_id, number)
        with self._failing(method, reopen=reopen):
            data = self._open().unary_unary(SERVICE + method)(
                contract.to_bytes(signed), timeout=CALL_S
            )
            return contract.from_bytes(data, kind)

    def stream(
        self, method: str, body: Message, kind: type[MessageT], *, timeout_s: float = STREAM_S
    ) -> Iterator[MessageT]:
        """Make a call with one request and many answers; leaving the iterator ends the call."""
        signed = contract.to_bytes(self._seal(method, body, "", 0))
        with self._failing(method):
            answers = self._open().unary_stream(SERVICE + method)(signed, timeout=timeout_s)
            try:
                for data in answers:
                    yield contract.from_bytes(data, kind)
            finally:
                answers.cancel()

    def push(
        self,
        start: fleet_pb2.PushUpdateStart,
        chunks: Iterable[common_pb2.Chunk],
        *,
        run_id: str,
        number: int,
    ) -> fleet_pb2.PushUpdateResponse:
        """Send an answer's pieces; what was stored is asked anew after a failure."""
        signed = self._seal("PushUpdate", start, run_id, number)

        def messages() -> Iterator[bytes]:
            yield contract.to_bytes(fleet_pb2.PushUpdateRequest(start=signed))
            for chunk in chunks:
                yield contract.to_bytes(fleet_pb2.PushUpdateRequest(chunk=chunk))

        with self._failing("PushUpdate"):
            data = self._open().stream_unary(SERVICE + "PushUpdate")(messages(), timeout=STREAM_S)
            return contract.from_bytes(data, fleet_pb2.PushUpdateResponse)

    def become(self, identity: Identity) -> None:
        """Call with the next certificate from now on."""
        self.identity = identity
        self.close()

    def close(self) -> None:
        """End the channel, and every call on it; the next call opens another."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _open(self) -> Any:
        with self._lock:
            if self._channel is None:
                credentials = channel_credentials(self.identity)
                self._channel = grpc.secure_channel(self.address, credentials, _OPTIONS)
            return self._channel

    def _seal(self, method: str, body: Message, run_id: str, number: int) -> common_pb2.Signed:
        return contract.seal(
            self.identity.key,
            body,
            device_id=self.identity.device_id,
            method=SERVICE + method,
            now_unix_ms=self.clock.now_ms(),
            run_id=run_id,
            round_number=number,
        )

    @contextlib.contextmanager
    def _failing(self, method: str, *, reopen: bool = True) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            failed = call_error(method, error)
            if failed.failure is None and reopen:
                self.close()
            elif failed.failure is not None:
                self.clock.told(failed.failure.now_unix_ms)
            raise failed from error
        except (ContractError, ValueError) as error:  # ValueError: the channel was closed meanwhile
            raise CallError(method, None, f"no answer of the contract: {error}") from error


def call_error(method: str, error: Any) -> CallError:
    """Read what a call of gRPC's failed with."""
    trailers: Callable[[], Any] = getattr(error, "trailing_metadata", tuple)
    for name, value in trailers() or ():
        if name == contract.TRAILER:
            with contextlib.suppress(ContractError):
                return CallError(method, contract.decode_failure(value), "")
    code = getattr(error, "code", str)()
    details = getattr(error, "details", str)() or ""
    return CallError(method, None, f"{getattr(code, 'name', code)} {details}".strip())
