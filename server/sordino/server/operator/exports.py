"""Files for operators and auditors: a run's folder, its adapter for PEFT, heads of ledgers.

A file is made of what is durable, with nothing in it that depends on when it was made, so that the
same state gives the same bytes; and it is kept for a day under its hash, so that a stream that was
cut goes on with the very same file, whatever happened since.
"""

from __future__ import annotations

import io
import json
import time
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors.numpy import save

from sordino.core import canonical, durable
from sordino.core.adapters import initial_adapter
from sordino.core.config import ExperimentConfig
from sordino.core.contract import Artefact, decode_adapter, decode_manifest
from sordino.core.errors import ContractError, expected
from sordino.core.settings import build
from sordino.protos.v1 import common_pb2, operator_pb2
from sordino.server.app import peft_config
from sordino.server.fleet_rounds import Fleet
from sordino.server.operator.listing import heads_of
from sordino.server.operator.looks import looks_taken
from sordino.server.operator.tables import device_head_table, round_table, run_table
from sordino.server.operator.views import View
from sordino.server.store import Accepted, Round, Run

FOLDER: Final = "exports"
_KEPT_S: Final = 86_400
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can say


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that is ready to be sent."""

    path: Path
    artefact: Artefact


def export(view: View, folder: Path, request: operator_pb2.ExportRequest) -> Exported:
    """Make a file, or find the one that a cut stream began with.

    Args:
        view: The fleet.
        folder: The coordinator's.
        request: Which file, from where.

    Raises:
        ContractError: ``unknown-run``, ``unknown-round``, ``wrong-kind``, ``not-permitted``,
            ``unknown-artefact`` (there is nothing to export, or the file is over) or
            ``wrong-offset``.
    """
    kept = folder / FOLDER
    _forget_old(kept)
    path = kept / request.sha256.hex() if request.sha256 else None
    if path is None or not path.exists():
        path = _make(view, kept, request)
    if request.sha256 and path.name != request.sha256.hex():
        raise ContractError("unknown-artefact", "that file is over, and differs now: begin anew")
    size = path.stat().st_size
    if request.offset > size:
        raise ContractError("wrong-offset", expected("offset", request.offset, f"<= {size}"))
    return Exported(path=path, artefact=Artefact(sha256=path.name, size=size))


def _make(view: View, kept: Path, request: operator_pb2.ExportRequest) -> Path:
    run = view.run_called(request.run_id)
    last = _last_round(view, run, request.round)
    match request.kind:
        case common_pb2.ARTEFACT_KIND_RUN_ZIP:
            data = _zipped(_run_files(view, run, last))
        case common_pb2.ARTEFACT_KIND_PEFT_ZIP:
            data = _zipped(_adapter_files(view.fleet, run, _adapter_after(run, last)))
        case common_pb2.ARTEFACT_KIND_LEDGER_HEADS_JSONL:
            data = _heads(view, run.run_id)
        case _:
            required = "RUN_ZIP, PEFT_ZIP or LEDGER_HEADS_JSONL"
            kind = common_pb2.ArtefactKind.Name(request.kind)
            raise ContractError("wrong-kind", expected("kind", kind, required))
    if not data:
        raise ContractError("unknown-artefact", "no device has told a head of its ledger yet")
    path = kept / canonical.sha256_hex(data)
    durable.write_whole(path, data, mode=0o600)
    return path


def _last_round(view: View, run: Run, number: int) -> Round | None:
    """The round whose state is meant; None: the run's present state."""
    if not number:
        return None
    found = view.rows.find(Round, run.run_id, number)
    if found is None or found.state != "published":
        raise ContractError("unknown-round", f"round {number} published no adapter")
    return found


def _adapter_after(run: Run, last: Round | None) -> str:
    return last.adapter_after if last else run.adapter


def _run_files(view: View, run: Run, last: Round | None) -> dict[str, bytes]:
    """What a run's folder holds, by name."""
    rounds = [
        row
        for row in view.rows.all(Round, order="round", run_id=run.run_id)
        if row.opened_ms and (last is None or row.round <= last.round)
    ]
    read = view.fleet.artefacts.read
    files = {
        "config.toml": run.settings.encode(),
        "plan.json": read(run.plan),
        "manifest.json": read(run.manifest),
        "run.json": _json(run_table(view.run(run))),
        "rounds.jsonl": b"".join(_line(round_table(view.round(row))) for row in rounds),
    }
    looks = view.looks_of(run)
    if looks is not None:
        files["metric.json"] = read(looks.plan)
        files["metrics.jsonl"] = b"".join(_line(look) for look in looks_taken(view.rows, run))
    files |= {f"plans/{name}.json": read(name) for name in sorted({row.plan for row in rounds})}
    known = {row.round for row in rounds}
    if not view.secret:
        files["heads.jsonl"] = _heads(view, run.run_id)
        told = [row for row in view.rows.all(Accepted, run_id=run.run_id) if row.round in known]
        if looks is not None:
            told += view.rows.all(Accepted, run_id=looks.run_id)
        files["receipts.jsonl"] = _receipts(told)
    adapter = _adapter_files(view.fleet, run, _adapter_after(run, last))
    return files | {f"adapter/{name}": data for name, data in adapter.items()}


def _adapter_files(fleet: Fleet, run: Run, sha256: str) -> dict[str, bytes]:
    """An adapter as PEFT has it; the public initial one where none was made."""
    experiment = build(ExperimentConfig, tomllib.loads(run.settings))
    data = fleet.artefacts.read(run.manifest)
    manifest = decode_manifest(data, Artefact.of(data))
    tensors = initial_adapter(manifest, experiment.lora.init_seed)
    if sha256:
        made = fleet.artefacts.read(sha256)
        tensors |= decode_adapter(made, Artefact.of(made))
    return {
        "adapter_config.json": _json(peft_config(experiment, manifest)),
        "adapter_model.safetensors": save(dict(sorted(tensors.items())), {"format": "pt"}),
    }


def _heads(view: View, run_id: str) -> bytes:
    return b"".join(_line(device_head_table(one)) for one in heads_of(view, run_id))


def _receipts(rows: Iterable[Accepted]) -> bytes:
    """Where each device charged each round that it answered: signed by the device's ledger."""
    return b"".join(
        _line(
            {
                "run_id": row.run_id,
                "round": row.round,
                "device_id": row.device_id,
                "update_sha256": row.sha256,
                "entry_index": row.entry_index,
                "entry_sha256": row.entry_sha256,
                "public_key": row.public_key,
                "signature": row.signature,
            }
        )
        for row in sorted(rows, key=lambda row: (row.run_id, row.round, row.device_id))
        if row.entry_sha256
    )


def _zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip file that depends on the names and bytes alone."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr = 0o644 << 16
            small = zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compress_type=small)
    return target.getvalue()


def _line(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, sort_keys=True).encode() + b"\n"


def _json(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, indent=2, sort_keys=True).encode() + b"\n"


def _forget_old(kept: Path) -> None:
    """Delete files that nobody will go on with."""
    for path in kept.glob("*"):
        if path.stat().st_mtime + _KEPT_S < time.time():
            path.unlink(missing_ok=True)
