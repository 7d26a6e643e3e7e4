"""Files by hash: whole or not there, checked when read, and nothing half-made after trouble."""

import errno
import hashlib
import os
import shutil

import pytest
from support import fleets
from support.fleets import RUN, Clock, Powers, answer, rows_of

from sordino.core.errors import StoreError, WireError
from sordino.server import fleet_rounds as fr
from sordino.server.fleet_rounds.context import DATABASE
from sordino.server.store import Artefacts, Task


@pytest.fixture
def kept(tmp_path):
    return Artefacts(tmp_path)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_its_hash(kept, tmp_path):
    artefact = kept.put(b"data")
    assert kept.put(b"data") == artefact
    assert artefact.sha256 == hashlib.sha256(b"data").hexdigest()
    assert files(tmp_path) == [f"artefacts/{artefact.sha256[:2]}/{artefact.sha256}"]
    assert kept.read(artefact.sha256) == b"data"
    assert b"".join(kept.chunks(artefact.sha256, offset=1, size=2)) == b"ata"
    assert kept.has(artefact.sha256)


def test_what_is_missing_or_damaged_is_never_read(kept, tmp_path):
    artefact = kept.put(b"data")
    (tmp_path / "artefacts" / artefact.sha256[:2] / artefact.sha256).write_bytes(b"dataX")
    with pytest.raises(StoreError, match="damaged"):
        kept.read(artefact.sha256)
    for call in (kept.read, lambda name: list(kept.chunks(name))):
        with pytest.raises(StoreError, match="No such file"):
            call("ab" * 32)
    assert kept.damaged({artefact.sha256, "ab" * 32}) == sorted([artefact.sha256, "ab" * 32])


@pytest.mark.parametrize("name", ["../../etc/passwd", "AB" * 32, "ab" * 31, ""])
def test_only_a_hash_names_a_file(kept, name):
    with pytest.raises(WireError):
        kept.has(name)


def test_a_base_is_copied_and_not_taken(kept, tmp_path):
    source = tmp_path / "base.gguf"
    source.write_bytes(b"GGUF" * 1000)
    artefact = kept.put_file(source)
    assert (artefact.size, kept.read(artefact.sha256)) == (4000, source.read_bytes())
    assert kept.put_file(source) == artefact
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        kept.begin_upload("u", 1 << 20)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        kept.put(b"data")
    assert files(tmp_path) == []


def test_a_full_disk_refuses_an_upload_and_changes_nothing(tmp_path, monkeypatch):
    with fleets.fleet(tmp_path, devices=3) as made:
        fleets.start(made, tmp_path)
        fleets.advance(made, Powers(), RUN)
        fleets.take(made, "d0")
        before = fleets.everything(made)
        monkeypatch.setattr(os, "posix_fallocate", full)
        assert fleets.refusal(answer, made, Powers(), "d0") == "storage-full"
        assert fleets.everything(made) == before
        monkeypatch.undo()
        assert answer(made, Powers(), "d0").state == "accepted"


def test_an_upload_has_its_disk_from_the_start(kept, tmp_path):
    kept.begin_upload("u", 10_000)
    assert (tmp_path / "uploads" / "u").stat().st_blocks * 512 >= 10_000
    data = b"x" * 10_000
    digest = hashlib.sha256(data).hexdigest()
    assert kept.read_upload("u", digest) is None
    kept.write_upload("u", 0, data[:5000])
    kept.write_upload("u", 5000, data[5000:])
    kept.sync_upload("u")
    assert kept.read_upload("u", digest) == data
    kept.take_upload("u", digest)
    kept.take_upload("u", digest)
    assert kept.read_upload("u", digest) == data == kept.read(digest)


def test_a_backup_goes_on_where_it_was_taken(tmp_path):
    work, clock, restored = Powers(), Clock(), tmp_path / "restored"
    restored.mkdir()
    with fleets.fleet(tmp_path / "live", devices=3, clock=clock) as made:
        fleets.start(made, tmp_path)
        for number in (1, 2):
            fleets.advance(made, work, RUN)
            for task in rows_of(made, Task, run_id=RUN, round=number):
                answer(made, work, task.device_id)
            if number == 1:
                fleets.advance(made, work, RUN)
                made.store.copy_to(restored / DATABASE)
                shutil.copytree(tmp_path / "live" / "artefacts", restored / "artefacts")
    with fleets.fleet(restored, clock=clock) as made:
        fr.check_artefacts(made)
        fr.recover(made, lambda _: work)
        assert fleets.adapter(made) == [[1, 7]]
        for device in ("d0", "d1", "d2"):  # as after any lost answer: they send what they kept
            assert answer(made, work, device).state == "accepted"
        fleets.advance(made, work, RUN)
        assert fleets.adapter(made) == [[1, 7], [2, 7]]
