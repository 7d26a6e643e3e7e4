"""A coordinator behind the real TLS and the real door, on loopback, with methods that do little."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from sordino.client.identity import Identity
from sordino.core import contract
from sordino.core.errors import ContractError, UpdateRejectedError
from sordino.core.trust import private_pem, public_pem
from sordino.protos.v1 import fleet_pb2
from sordino.server import enroll
from sordino.server.enroll.interceptor import Authentication, StreamCall
from sordino.server.enroll.listener import server_credentials
from support.members import DAY, MemoryMembers

SERVICE = "sordino.v1.Fleet"
HELLO = f"/{SERVICE}/Hello"


@dataclass
class Coordinator:
    """What runs: its store, its clock, and how many calls came past the door."""

    folder: Path
    authority: enroll.Authority
    store: MemoryMembers
    now: int
    port: int = 0
    enroll_port: int = 0
    past_the_door: list[str] = field(default_factory=list)

    async def enroll(self, data: bytes, context: Any) -> fleet_pb2.EnrollResponse:
        request = contract.from_bytes(data, fleet_pb2.EnrollRequest)
        return enroll.enroll(self.store, self.authority, request, now_unix_ms=self.now)

    async def hello(self, call: enroll.Call, context: Any) -> fleet_pb2.HelloResponse:
        self.past_the_door.append(call.peer.device_id)
        return fleet_pb2.HelloResponse(
            revision=1,
            now_unix_ms=self.now,
            heartbeat_interval_ms=1,
            max_wait_ms=1,
            chunk_bytes=1,
            max_calls_per_minute=1,
        )

    async def pull(
        self, call: enroll.Call, context: Any
    ) -> AsyncIterator[fleet_pb2.PullTaskResponse]:
        self.past_the_door.append(call.peer.device_id)
        still = fleet_pb2.StillHere(now_unix_ms=self.now)
        yield fleet_pb2.PullTaskResponse(still_here=still)
        if call.opened.body.wait_ms == 2:
            raise ContractError("task-over", "so it is")
        if call.opened.body.wait_ms == 3:
            raise RuntimeError("a mistake of ours, with a /secret/path")
        if call.opened.body.wait_ms == 4:
            raise UpdateRejectedError("over-norm", "as the round's rules say")

    async def push(self, stream: StreamCall, context: Any) -> fleet_pb2.PushUpdateResponse:
        self.past_the_door.append(stream.call.peer.device_id)
        size = 0
        async for message in stream.rest:
            size += len(contract.from_bytes(message, fleet_pb2.PushUpdateRequest).chunk.data)
        return fleet_pb2.PushUpdateResponse(state=fleet_pb2.UPLOAD_STATE_ACCEPTED, offset=size)


@asynccontextmanager
async def serving(
    folder: Path, *, now: int, first_message_s: float = 5.0
) -> AsyncIterator[Coordinator]:
    """Run a coordinator whose folder is made here."""
    authority = enroll.new_authority(now_unix_ms=now - 100 * DAY)  # so that devices can be old
    enroll.create_folder(folder, authority)
    renew_server(folder, authority, now)
    running = Coordinator(folder, authority, MemoryMembers(), now)
    door = Authentication(
        running.store,
        [authority.certificate],
        now_unix_ms=lambda: running.now,
        first_message_s=first_message_s,
    )
    server = grpc.aio.server(interceptors=[door])
    wrap = {"response_serializer": contract.to_bytes}
    methods = {
        "Enroll": grpc.unary_unary_rpc_method_handler(running.enroll, **wrap),
        "Hello": grpc.unary_unary_rpc_method_handler(running.hello, **wrap),
        "PullTask": grpc.unary_stream_rpc_method_handler(running.pull, **wrap),
        "PushUpdate": grpc.stream_unary_rpc_method_handler(running.push, **wrap),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    running.port = server.add_secure_port(
        "127.0.0.1:0", server_credentials(folder, client_certificates=True)
    )
    running.enroll_port = server.add_secure_port(
        "127.0.0.1:0", server_credentials(folder, client_certificates=False)
    )
    await server.start()
    try:
        yield running
    finally:
        await server.stop(0)


def renew_server(folder: Path, authority: enroll.Authority, now: int) -> None:
    issued = enroll.issue_server(authority, ["127.0.0.1"], now_unix_ms=now)
    enroll.write_server_certificate(folder, authority, issued)


def call_by_hand(port: int, who: Identity, folder: Path, method: str, body: bytes) -> bytes:
    """A gRPC call over TLS 1.2, which gRPC's own client doesn't offer alone: what came back.

    HTTP/2 (RFC 9113) with literal headers (RFC 7541, 6.2.2): just enough to be understood.
    """
    chain = folder / "by-hand.pem"
    chain.write_bytes(private_pem(who.key) + b"".join(map(public_pem, who.certificates)))
    context = ssl.create_default_context(cadata=public_pem(who.authorities[0]).decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(chain)
    context.set_alpn_protocols(["h2"])
    headers = {
        ":method": "POST",
        ":scheme": "https",
        ":path": method,
        ":authority": "127.0.0.1",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    message = b"\0" + len(body).to_bytes(4, "big") + body
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        assert wrapped.version() == "TLSv1.2"
        wrapped.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(4, 0, 0, b"")
            + _frame(1, 4, 1, block)
            + _frame(0, 1, 1, message)
        )
        while not _ended(answer) and (part := wrapped.recv(65536)):
            answer += part
    return answer


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def _ended(data: bytes) -> bool:
    """Whether the frames so far hold the end of stream 1."""
    while len(data) >= 9:
        length, flags, stream = int.from_bytes(data[:3], "big"), data[4], data[8]
        if len(data) < 9 + length:
            return False
        if stream == 1 and data[3] in {0, 1} and flags & 1:
            return True
        data = data[9 + length :]
    return False
