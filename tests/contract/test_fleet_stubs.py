"""The generated stubs over a real channel, and a failure's way through trailing metadata."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from support.contracts import DECODERS, HELLO, make_hello, open_hello, seal_hello

from sordino.core import contract
from sordino.core.errors import ContractError
from sordino.protos.v1 import common_pb2, fleet_pb2, fleet_pb2_grpc


def hello(data: bytes, context: grpc.ServicerContext) -> fleet_pb2.HelloResponse:
    """As a coordinator does it: the bytes themselves, so that the gate is before the parser."""
    try:
        revision = open_hello(data).body.revision
    except ContractError as error:
        failure = contract.encode_failure(error.reason, str(error) + "x" * 2000)
        context.set_trailing_metadata(((contract.TRAILER, failure),))
        context.abort(grpc.StatusCode[contract.REASONS[error.reason].code], error.reason)
    return fleet_pb2.HelloResponse(
        revision=revision,
        now_unix_ms=1,
        heartbeat_interval_ms=1,
        max_wait_ms=1,
        chunk_bytes=1 << 18,
        max_calls_per_minute=60,
    )


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(hello, response_serializer=contract.to_bytes)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("sordino.v1.Fleet", {"Hello": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(0).wait()


def test_a_stub_calls_what_the_contract_names(channel: grpc.Channel) -> None:
    answer = fleet_pb2_grpc.FleetStub(channel).Hello(seal_hello(), timeout=20)
    assert answer.revision == make_hello().revision


def test_a_refusal_arrives_with_its_word(channel: grpc.Channel) -> None:
    signed = common_pb2.Signed.FromString(DECODERS["signed"][1])
    signed.body += b"\x00"
    with pytest.raises(grpc.RpcError) as caught:
        fleet_pb2_grpc.FleetStub(channel).Hello(signed, timeout=20)
    trailers = dict(caught.value.trailing_metadata())
    failure = contract.decode_failure(trailers[contract.TRAILER])
    assert failure.reason == "wrong-body"
    assert len(failure.message) == 1024
    assert caught.value.code().name == contract.REASONS["wrong-body"].code


def test_the_methods_path_is_the_signed_one(channel: grpc.Channel) -> None:
    call = channel.unary_unary(HELLO, request_serializer=contract.to_bytes)
    assert fleet_pb2.HelloResponse.FromString(call(seal_hello(), timeout=20)).chunk_bytes == 1 << 18
