"""Devices that only speak the protocol: they pull, fetch, and send updates that nobody trained.

Many in a process, on asyncio, each with its own key, certificate and connection. What they send is
valid in everything, and each device's is its own constant, so that a sum tells who was counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from sordino.client.identity import Identity, channel_credentials, load_identity
from sordino.core import adapters, contract
from sordino.core.contract import Artefact, TaskOrder
from sordino.core.errors import ContractError
from sordino.core.records import AdapterManifest, Update
from sordino.protos.v1 import common_pb2, fleet_pb2

SERVICE = "/sordino.v1.Fleet"
UNIT = 2.0**-20  # device i sends (i + 1) of it: whole numbers of it add up without rounding
PATIENCE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One update that was acknowledged.

    Attributes:
        device: Which device.
        round: Which round.
        chunk_to_ack_s: From the sending of the last chunk to the acknowledgement.
        task_to_ack_s: From the task's arrival.
        acked_at: When, by the machine's monotonic clock.
        retries: Calls that were made again.
    """

    device: int
    round: int
    chunk_to_ack_s: float
    task_to_ack_s: float
    acked_at: float
    retries: int


def update_value(device: int) -> float:
    """What every parameter of a device's update is."""
    return (device + 1) * UNIT


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Device:
    """One device.

    Attributes:
        number: Which it is: what it sends follows from it.
        identity: Its key and certificate.
        address: The coordinator's.
        wait_s: How long it waits with an answer, as if it trained.
    """

    number: int
    identity: Identity
    address: str
    wait_s: float
    chunk_bytes: int = 0
    retries: int = 0
    sent_at: float = 0.0
    channel: Any = None
    manifests: dict[str, AdapterManifest] = field(default_factory=dict)

    async def connect(self) -> None:
        """Open the connection and say hello."""
        own = [("grpc.use_local_subchannel_pool", 1)]
        credentials = channel_credentials(self.identity)
        self.channel = grpc.aio.secure_channel(self.address, credentials, options=own)
        body = fleet_pb2.HelloRequest(
            revision=contract.REVISION,
            software="bench",
            capabilities=fleet_pb2.Capabilities(
                model_formats=["Q4_1"],
                model_families=["llama"],
                memory_bytes=1 << 30,
                storage_bytes=1 << 30,
                cores=1,
                architecture="x86_64",
                power=fleet_pb2.POWER_SOURCE_MAINS,
            ),
        )
        said = await self._patiently(lambda: self._call("Hello", body, fleet_pb2.HelloResponse))
        self.chunk_bytes = said.chunk_bytes

    async def answers(self, rounds: int) -> AsyncIterator[Answer]:
        """Answer so many tasks; the stream that they come by stays open."""
        done: set[str] = set()
        while len(done) < rounds:
            body = fleet_pb2.PullTaskRequest(wait_ms=600_000)
            stream = self.channel.unary_stream(f"{SERVICE}/PullTask")(self._seal("PullTask", body))
            try:
                async for data in stream:
                    event = contract.from_bytes(data, fleet_pb2.PullTaskResponse)
                    if event.HasField("task") and event.task.task_id not in done:
                        yield await self._answer(contract.read_task(event.task))
                        done.add(event.task.task_id)
                    if len(done) == rounds:
                        break
            except grpc.aio.AioRpcError as error:
                await self._rest(error)
            finally:
                stream.cancel()

    async def _answer(self, order: TaskOrder) -> Answer:
        began, retries = time.monotonic(), self.retries
        taken = fleet_pb2.AcknowledgeRequest(
            task_id=order.task_id, plan_sha256=bytes.fromhex(order.plan_sha256)
        )
        about = (order.run_id, order.round)
        await self._patiently(
            lambda: self._call("Acknowledge", taken, fleet_pb2.AcknowledgeResponse, about)
        )
        if order.adapter is not None:
            await self._patiently(lambda: self._fetch(order.adapter, about))
        data = self._update(order, await self._manifest(order, about))
        await asyncio.sleep(self.wait_s)
        await self._patiently(lambda: self._send(order, data))
        now = time.monotonic()
        return Answer(
            device=self.number,
            round=order.round,
            chunk_to_ack_s=now - self.sent_at,
            task_to_ack_s=now - began,
            acked_at=now,
            retries=self.retries - retries,
        )

    async def _manifest(self, order: TaskOrder, about: tuple[str, int]) -> AdapterManifest:
        named = order.manifest
        if named.sha256 not in self.manifests:
            data = await self._patiently(lambda: self._fetch(named, about))
            self.manifests[named.sha256] = contract.decode_manifest(data, named)
        return self.manifests[named.sha256]

    def _update(self, order: TaskOrder, manifest: AdapterManifest) -> bytes:
        trained = adapters.trained_manifest(manifest, order.lora.aggregation, order.round)
        value = update_value(self.number)
        update = Update(
            run_id=order.run_id,
            round=order.round,
            plan_sha256=order.plan_sha256,
            tensors={s.name: np.full(s.shape, value, np.float32) for s in trained.tensors},
            receipt=None,
        )
        return contract.encode_update(update, None)

    async def _fetch(self, named: Artefact, about: tuple[str, int]) -> bytes:
        body = fleet_pb2.FetchArtefactRequest(sha256=bytes.fromhex(named.sha256))
        call = self.channel.unary_stream(f"{SERVICE}/FetchArtefact")
        parts = []
        async for data in call(self._seal("FetchArtefact", body, about)):
            parts.append(contract.from_bytes(data, fleet_pb2.FetchArtefactResponse).chunk.data)
        whole = b"".join(parts)
        if Artefact.of(whole) != named:
            raise SystemExit(f"device {self.number} fetched another file than {named}")
        return whole

    async def _send(self, order: TaskOrder, data: bytes) -> None:
        """Offer an update, and send what isn't there yet."""
        about, named = (order.run_id, order.round), Artefact.of(data)
        offer = fleet_pb2.OfferUploadRequest(
            task_id=order.task_id,
            artefact=contract.artefact_message(named, common_pb2.ARTEFACT_KIND_UPDATE),
        )
        upload = await self._call("OfferUpload", offer, fleet_pb2.OfferUploadResponse, about)
        if upload.state != fleet_pb2.UPLOAD_STATE_OPEN:
            return
        start = fleet_pb2.PushUpdateStart(
            upload_id=upload.upload_id,
            sha256=bytes.fromhex(named.sha256),
            size=named.size,
            offset=upload.offset,
        )
        call = self.channel.stream_unary(f"{SERVICE}/PushUpdate")
        answer = await call(self._chunks(start, about, data))
        said = contract.from_bytes(answer, fleet_pb2.PushUpdateResponse)
        if said.state != fleet_pb2.UPLOAD_STATE_ACCEPTED:
            raise SystemExit(f"device {self.number}: state {said.state} after the last chunk")

    async def _chunks(
        self, start: fleet_pb2.PushUpdateStart, about: tuple[str, int], data: bytes
    ) -> AsyncIterator[bytes]:
        signed = self._sign("PushUpdate", start, about)
        yield fleet_pb2.PushUpdateRequest(start=signed).SerializeToString()
        for offset in range(start.offset, len(data), self.chunk_bytes):
            chunk = {"offset": offset, "data": data[offset : offset + self.chunk_bytes]}
            self.sent_at = time.monotonic()  # before the last one, too, is on its way
            yield fleet_pb2.PushUpdateRequest(chunk=chunk).SerializeToString()

    async def _call(
        self, method: str, body: Any, answer: Any, about: tuple[str, int] = ("", 0)
    ) -> Any:
        call = self.channel.unary_unary(f"{SERVICE}/{method}")
        return contract.from_bytes(await call(self._seal(method, body, about)), answer)

    def _seal(self, method: str, body: Any, about: tuple[str, int] = ("", 0)) -> bytes:
        return contract.to_bytes(self._sign(method, body, about))

    def _sign(self, method: str, body: Any, about: tuple[str, int]) -> Any:
        return contract.seal(
            self.identity.key,
            body,
            device_id=self.identity.device_id,
            method=f"{SERVICE}/{method}",
            now_unix_ms=_now_ms(),
            run_id=about[0],
            round_number=about[1],
        )

    async def _patiently(self, call: Callable[[], Any]) -> Any:
        """Make a call until it succeeds, as the contract says; each time signed anew."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if time.monotonic() > until:
                    raise
                await self._rest(error)

    async def _rest(self, error: grpc.aio.AioRpcError) -> None:
        trailers = dict(error.trailing_metadata() or ())
        wait_ms = 500
        if contract.TRAILER in trailers:
            failure = contract.decode_failure(trailers[contract.TRAILER])
            if failure.retry == "never":
                raise SystemExit(f"device {self.number}: {failure.reason}: {failure.message}")
            wait_ms = failure.retry_after_ms or wait_ms
        self.retries += 1
        await asyncio.sleep(wait_ms / 1000)


async def _run(devices: Sequence[Device], rounds: int, pipe: Connection) -> None:
    for batch in range(0, len(devices), 16):
        await asyncio.gather(*(device.connect() for device in devices[batch : batch + 16]))
    pipe.send("ready")

    async def all_of(device: Device) -> list[Answer]:
        return [answer async for answer in device.answers(rounds)]

    try:
        found = await asyncio.gather(*(all_of(device) for device in devices))
    except ContractError as error:
        raise SystemExit(str(error)) from error
    pipe.send([answer for answers in found for answer in answers])
    for device in devices:
        await device.channel.close()


def run_devices(
    folders: Sequence[tuple[int, Path]],
    address: str,
    rounds: int,
    waits: Sequence[float],
    pipe: Connection,
) -> None:
    """A process of devices: says "ready", answers so many rounds, gives what it measured.

    Args:
        folders: Each device's number and where its identity lies.
        address: The coordinator's.
        rounds: How many tasks each device answers.
        waits: Seconds that each waits with its answers.
        pipe: To the parent.
    """
    devices = [
        Device(number, load_identity(folder, now_unix_ms=_now_ms()), address, wait)
        for (number, folder), wait in zip(folders, waits, strict=True)
    ]
    asyncio.run(_run(devices, rounds, pipe))
