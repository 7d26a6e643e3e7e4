"""Files that an operator or an auditor takes along: whole, the same again, resumable."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.central import make_central
from support.federation import LORA, MANIFEST, initial, make_metric, make_plan
from support.fleets import RUN
from support.operators import EXPERIMENT, Operated, operated

from sordino.client.adapter_files import load_adapter
from sordino.core import contract
from sordino.core.errors import ContractError, StoreError
from sordino.core.settings import to_toml
from sordino.privacy.ledger.keys import signature_holds
from sordino.protos.v1 import common_pb2, operator_pb2
from sordino.server.operator import SERVICE

RUN_ZIP = common_pb2.ARTEFACT_KIND_RUN_ZIP
PEFT = common_pb2.ARTEFACT_KIND_PEFT_ZIP
HEADS = common_pb2.ARTEFACT_KIND_LEDGER_HEADS_JSONL


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path / "fleet", chunk_bytes=512) as made:
        yield made


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ContractError) as caught:
        call(*args, **kwargs)
    return caught.value.reason


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def unpacked(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_runs_folder(at: Operated, tmp_path: Path) -> None:
    at.start()
    at.finish_round("d2")
    artefact = at.client.export(RUN, RUN_ZIP, tmp_path / "run.zip")
    data = (tmp_path / "run.zip").read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (artefact.sha256, artefact.size)
    files, plan = unpacked(tmp_path / "run.zip"), make_plan()
    assert files["plan.json"] == files[f"plans/{plan.sha256}.json"] == plan.canonical()
    assert files["manifest.json"] == MANIFEST.canonical()
    assert files["config.toml"].decode() == to_toml(EXPERIMENT)
    assert json.loads(files["run.json"])["rounds_done"] == 1
    first, second = lines(files["rounds.jsonl"])
    assert (first["round"], first["received"], first["dropped"]) == (1, 2, {"policy-budget": 1})
    assert (second["round"], second["state"]) == (2, "open")
    assert [one["device_id"] for one in lines(files["heads.jsonl"])] == ["d0", "d1"]
    receipts = lines(files["receipts.jsonl"])
    assert [(one["round"], one["device_id"]) for one in receipts] == [(1, "d0"), (1, "d1")]
    for one in receipts:
        assert signature_holds(one["public_key"], one["entry_sha256"], one["signature"])
    again = at.client.export(RUN, RUN_ZIP, tmp_path / "again.zip")
    assert again == artefact
    assert oct((at.folder / "exports" / artefact.sha256).stat().st_mode)[-3:] == "600"


def test_what_was_measured_goes_along(at: Operated, tmp_path: Path) -> None:
    metric = make_metric()
    at.start(metric=metric.canonical())
    at.finish_round("d0", "d1")
    at.look("d2")
    at.client.export(RUN, RUN_ZIP, tmp_path / "run.zip")
    files = unpacked(tmp_path / "run.zip")
    assert files["metric.json"] == metric.canonical()
    wanted = {"look": 1, "metric": "loss", "value": 2.5, "noise_std": 0.25, "answers": 2}
    assert lines(files["metrics.jsonl"]) == [wanted]
    told = [(one["run_id"], one["device_id"]) for one in lines(files["receipts.jsonl"])]
    assert told == [(RUN, "d2"), (f"{RUN}:loss", "d0"), (f"{RUN}:loss", "d1")]
    assert [one["device_id"] for one in lines(files["heads.jsonl"])] == ["d0", "d1", "d2"]


def test_an_adapter_that_peft_reads(at: Operated, tmp_path: Path) -> None:
    at.start()
    at.client.export(RUN, PEFT, tmp_path / "0.zip")
    for device_sum, number in ((7, 1), (3, 2)):
        at.finish_round(*(["d2"] if number == 2 else []))
        at.client.export(RUN, PEFT, tmp_path / f"{number}.zip", round_number=number)
        folder = tmp_path / str(number)
        zipfile.ZipFile(tmp_path / f"{number}.zip").extractall(folder)
        saved = load_adapter(folder, MANIFEST)
        assert (saved.rank, saved.alpha) == (LORA.rank, LORA.alpha)
        for name, tensor in saved.tensors.items():
            wanted = initial()[name] if "lora_A" in name else np.full_like(tensor, device_sum)
            np.testing.assert_array_equal(tensor, wanted)
    newest = at.client.export(RUN, PEFT, tmp_path / "newest.zip")
    assert newest.sha256 == hashlib.sha256((tmp_path / "2.zip").read_bytes()).hexdigest()
    zipfile.ZipFile(tmp_path / "0.zip").extractall(tmp_path / "0")
    untouched = load_adapter(tmp_path / "0", MANIFEST)
    assert all(not tensor.any() for n, tensor in untouched.tensors.items() if "lora_B" in n)


def test_heads_for_an_auditor(at: Operated, tmp_path: Path) -> None:
    at.start()
    assert refusal(at.client.export, RUN, HEADS, tmp_path / "heads") == "unknown-artefact"
    at.finish_round("d1")
    at.client.export(RUN, HEADS, tmp_path / "heads")
    told = lines((tmp_path / "heads").read_bytes())
    assert [(one["device_id"], one["entry_index"]) for one in told] == [("d0", 1), ("d2", 2)]
    for one in told:
        assert signature_holds(one["public_key"], one["entry_sha256"], one["signature"])


def test_a_cut_stream_goes_on_with_the_same_file(at: Operated, tmp_path: Path) -> None:
    at.start()
    request = operator_pb2.ExportRequest(run_id=RUN, kind=RUN_ZIP)
    stub = at.client._channel.unary_stream(f"/{SERVICE}/Export")
    call = stub(contract.to_bytes(request))
    named = operator_pb2.ExportResponse.FromString(next(call)).artefact
    first = operator_pb2.ExportResponse.FromString(next(call)).chunk
    call.cancel()
    assert (first.offset, len(first.data)) == (0, 512)
    sha256 = named.sha256.hex()
    part = tmp_path / f"run.zip.{sha256}.part"
    part.write_bytes(first.data)
    at.finish_round()  # the run went on meanwhile, and its folder would be another file now
    artefact = at.client.export(RUN, RUN_ZIP, tmp_path / "run.zip")
    assert artefact.sha256 == sha256
    assert json.loads(unpacked(tmp_path / "run.zip")["run.json"])["rounds_done"] == 0
    assert not part.exists()
    # A day later it is over, and is begun anew.
    part.write_bytes(first.data)
    os.utime(at.folder / "exports" / sha256, (0, 0))
    newer = at.client.export(RUN, RUN_ZIP, tmp_path / "run.zip")
    assert newer.sha256 != sha256
    assert list(tmp_path.glob("*.part")) == []
    assert not (at.folder / "exports" / sha256).exists()


def test_bytes_that_are_not_what_they_were_said_to_be(at: Operated, tmp_path: Path) -> None:
    at.start()
    artefact = at.client.export(RUN, RUN_ZIP, tmp_path / "run.zip")
    (tmp_path / f"again.zip.{artefact.sha256}.part").write_bytes(b"not its beginning")
    with pytest.raises(StoreError, match="fetch it again"):
        at.client.export(RUN, RUN_ZIP, tmp_path / "again.zip")
    assert at.client.export(RUN, RUN_ZIP, tmp_path / "again.zip") == artefact
    (tmp_path / f"long.zip.{artefact.sha256}.part").write_bytes(bytes(artefact.size + 1))
    assert at.client.export(RUN, RUN_ZIP, tmp_path / "long.zip") == artefact


def test_what_is_not_exported(at: Operated, tmp_path: Path) -> None:
    at.start()
    out = tmp_path / "out"
    base = common_pb2.ARTEFACT_KIND_BASE_GGUF
    assert refusal(at.client.export, RUN, base, out) == "wrong-kind"
    assert refusal(at.client.export, "none", RUN_ZIP, out) == "unknown-run"
    assert refusal(at.client.export, RUN, PEFT, out, round_number=1) == "unknown-round"
    assert list(tmp_path.glob("out*")) == []


def test_under_central_trust_an_export_has_no_devices(at: Operated, tmp_path: Path) -> None:
    at.start(make_central(), cohort=4, min_updates=1)
    at.finish_round()
    at.client.export(RUN, RUN_ZIP, tmp_path / "run.zip")
    files = unpacked(tmp_path / "run.zip")
    assert {"heads.jsonl", "receipts.jsonl"}.isdisjoint(files)
    for one in lines(files["rounds.jsonl"]):
        assert one["asked"] is one["received"] is one["dropped"] is one["bytes_up"] is None
    assert b'"d0"' not in b"".join(files.values())
    assert refusal(at.client.export, RUN, HEADS, tmp_path / "heads") == "not-permitted"
