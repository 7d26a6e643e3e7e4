"""Files between device and coordinator: an answer's way up, an artefact's way down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sordino.client.agent.link import Link
from sordino.core import contract
from sordino.core.contract import Artefact, TaskOrder
from sordino.core.errors import ContractError, expected
from sordino.privacy.ledger import Hook
from sordino.protos.v1 import common_pb2, fleet_pb2

ENDED: Final = {
    fleet_pb2.UPLOAD_STATE_REJECTED: "rejected",
    fleet_pb2.UPLOAD_STATE_DISCARDED: "discarded",
}
_LOG = logging.getLogger(__name__)


def send(
    link: Link,
    order: TaskOrder,
    answer: Artefact,
    path: Path,
    *,
    chunk_bytes: int,
    progress: Callable[[], None],
    at: Hook,
) -> bool:
    """Offer an answer and send what is missing of it.

    Args:
        link: To the coordinator.
        order: The task that it answers.
        answer: Its hash and size.
        path: Its bytes.
        chunk_bytes: The size of the pieces.
        progress: Told when the coordinator stored more than before.
        at: Told each step as it is reached.

    Returns:
        Whether the coordinator has it, durably, or has refused it for good: nothing is owed then.
        False: it is still checking what came.

    Raises:
        CallError: The coordinator or the network failed, or the task is over.
    """
    look = order.train is None
    kind = common_pb2.ARTEFACT_KIND_MEASUREMENT if look else common_pb2.ARTEFACT_KIND_UPDATE
    named = contract.artefact_message(answer, kind)
    body = fleet_pb2.OfferUploadRequest(task_id=order.task_id, artefact=named)
    about = {"run_id": order.run_id, "number": order.round}
    offer = link.call("OfferUpload", body, fleet_pb2.OfferUploadResponse, **about)  # type: ignore[arg-type]
    at("upload:offered")
    if offer.state in ENDED:
        _LOG.warning(
            "the answer was %s: %s", ENDED[offer.state], offer.reason or "its task is over"
        )
        return True
    if offer.state == fleet_pb2.UPLOAD_STATE_ACCEPTED:
        return True
    if offer.state == fleet_pb2.UPLOAD_STATE_CHECKING:
        return False
    if offer.offset:
        progress()
    start = fleet_pb2.PushUpdateStart(
        upload_id=offer.upload_id,
        sha256=bytes.fromhex(answer.sha256),
        size=answer.size,
        offset=offer.offset,
    )
    chunks = _chunks(path, offer.offset, chunk_bytes, at)
    pushed = link.push(start, chunks, **about)  # type: ignore[arg-type]
    at("upload:answered")
    return bool(pushed.state == fleet_pb2.UPLOAD_STATE_ACCEPTED)


def fetch_chunks(
    link: Link, artefact: Artefact, kind: common_pb2.ArtefactKind, offset: int
) -> Iterator[common_pb2.Chunk]:
    """An artefact's pieces from an offset on.

    Raises:
        CallError: The coordinator or the network failed.
        ContractError: ``wrong-hash`` or ``wrong-size``: another file comes; or none does.
    """
    body = fleet_pb2.FetchArtefactRequest(sha256=bytes.fromhex(artefact.sha256), offset=offset)
    parts = link.stream("FetchArtefact", body, fleet_pb2.FetchArtefactResponse)
    first = next(parts, None)
    if first is None or not first.HasField("artefact"):
        raise ContractError("missing-field", "the coordinator doesn't say what comes")
    coming = contract.read_artefact(first.artefact, kind)
    if coming != artefact:
        word = "wrong-size" if coming.sha256 == artefact.sha256 else "wrong-hash"
        raise ContractError(word, expected("artefact", coming, f"= {artefact}"))
    for part in parts:
        yield part.chunk


def _chunks(path: Path, offset: int, size: int, at: Hook) -> Iterator[common_pb2.Chunk]:
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(size):
            yield common_pb2.Chunk(offset=offset, data=data)
            offset += len(data)
            at("chunk:sent")
