"""Streams that are cut, ended, taken up again, or still open when something changes."""

from __future__ import annotations

import json
import threading
import time

import pytest
from support.devices import (
    SERVICE,
    RefusedError,
    chunk,
    chunks,
    coordinator,
    refusals,
    until,
)
from support.fleets import RUN, adapter, get, rows_of

from sordino.client import identity
from sordino.core import contract
from sordino.core.contract import SignedHead
from sordino.core.errors import StoreError
from sordino.core.records import Receipt
from sordino.privacy.ledger.keys import LedgerKey
from sordino.protos.v1 import fleet_pb2
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.fleet_rounds.context import DATABASE
from sordino.server.store import Accepted, Device, SqlStore, Task, Upload

MIB = 1 << 20


def answer_of(task, value, pad=0):
    return json.dumps({"round": task.round, "value": value, "pad": "." * pad}).encode()


def word_of(stream):
    """How a stream ends."""
    with pytest.raises(RefusedError) as caught, refusals():
        list(stream)
    return caught.value.word


def first_of(stream, kind):
    """The next event of a kind."""
    with refusals():
        return next(event for event in stream if event.HasField(kind))


# --- waiting -----------------------------------------------------------------------------------


def test_who_waits_is_told_at_once(tmp_path):
    with coordinator(tmp_path, tick_ms=60_000, heartbeat_ms=400) as at:
        one, two = at.enrol("d0"), at.enrol("d1")
        assert at.service.online() == frozenset()
        streams = [device.pull() for device in (one, two)]
        for stream in streams:
            assert first_of(stream, "still_here").still_here.rest_ms == 0
        assert at.service.online() == {one.id, two.id}
        assert at.service.figures().pulling == 2
        at.start(rounds=2)  # no tick comes in this test: the bell alone wakes them
        tasks = [first_of(stream, "task").task for stream in streams]
        assert {task.round for task in tasks} == {1}
        fr.stop_run(at.fleet, "stop", RUN)
        for stream, task in zip(streams, tasks, strict=True):
            told = first_of(stream, "cancelled").cancelled
            assert (told.task_id, told.reason) == (task.task_id, "run-stopped")
        assert one.heartbeat(tasks[0].task_id).cancelled.reason == "run-stopped"
        assert two.heartbeat(tasks[0].task_id).cancelled.reason == ""  # another device's
        for stream in streams:
            stream.cancel()
        until(lambda: not at.service.online())  # heartbeats: 2.5 x 0.4 s


def test_a_heartbeat_says_who_is_there_and_when_to_renew(tmp_path):
    with coordinator(tmp_path) as at:
        device = at.enrol("d0")
        assert not device.heartbeat().renew_now
        assert at.service.online() == {device.id}
        device.heartbeat(activity=fleet_pb2.ACTIVITY_NOT_NOW)
        assert at.service.online() == frozenset()
        at.clock.by_ms = device.now_ms.by_ms = 21 * 86_400_000
        assert device.heartbeat().renew_now
        assert get(at.fleet, Device, device.id).last_seen_ms >= at.clock() - 60_000


def test_an_unsettled_task_comes_again_unchanged(tmp_path):
    with coordinator(tmp_path) as at:
        device = at.enrol("d0")
        at.start()
        first, second = device.next_task(), device.next_task()
        assert second.expires_in_ms <= first.expires_in_ms
        assert {**vars(first), "expires_in_ms": 0} == {**vars(second), "expires_in_ms": 0}
        at.service.stop()
    with coordinator(tmp_path) as at:
        device.reach(at.service)
        at.devices.append(device)
        third = device.next_task()
        assert {**vars(third), "expires_in_ms": 0} == {**vars(first), "expires_in_ms": 0}


def test_a_stream_lasts_as_long_as_was_asked_and_ticks(tmp_path):
    with coordinator(tmp_path, tick_ms=100, wait_ms=1500) as at:
        device = at.enrol("d0")
        events = list(device.pull(wait_ms=60_000))
        assert len(events) >= 2
        assert all(event.HasField("still_here") for event in events)


def test_a_second_stream_ends_the_first(tmp_path):
    with coordinator(tmp_path) as at:
        device = at.enrol("d0")
        first = device.pull()
        first_of(first, "still_here")
        second = device.pull()
        first_of(second, "still_here")
        assert word_of(first) == "superseded"
        assert at.service.online() == {device.id}
        second.cancel()


def test_a_device_that_rests_is_told_for_how_long(tmp_path):
    with coordinator(tmp_path, limits=fr.Limits(failures=1, rest_ms=90_000)) as at:
        device = at.enrol("d0")
        at.start()
        assert device.decline(device.next_task(), "internal") == "DECLINED"
        (told,) = list(device.pull(wait_ms=60_000))  # and the stream ends
        assert 0 < told.still_here.rest_ms <= 90_000


# --- who may no longer -------------------------------------------------------------------------


def revoke_elsewhere(at, device):
    """As another process does it: no bell is rung here."""
    store = SqlStore(at.folder / DATABASE)
    elsewhere = fr.Fleet(store=store, artefacts=at.fleet.artefacts, now_ms=at.clock)
    enroll.revoke(fr.Members(elsewhere), device.id, now_unix_ms=at.clock(), because="stolen")
    store.close()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_revocation_takes_hold_of_a_stream_that_waits(tmp_path, elsewhere):
    with coordinator(tmp_path, tick_ms=300) as at:
        device, other = at.enrol("d0"), at.enrol("d1")
        at.start()
        stream, others = device.pull(), other.pull()
        first_of(stream, "task")
        first_of(others, "task")
        if elsewhere:
            revoke_elsewhere(at, device)
        else:
            fr.revoke_device(at.fleet, "out", device.id, "stolen")
        assert word_of(stream) == "certificate-revoked"
        before = at.state()
        with pytest.raises(RefusedError, match="certificate-revoked"):
            device.heartbeat()
        assert at.state() == before
        first_of(others, "still_here")  # goes on
        others.cancel()


def test_the_end_of_a_certificate_takes_hold_of_a_stream_that_waits(tmp_path):
    with coordinator(tmp_path, tick_ms=200) as at:
        device = at.enrol("d0")
        stream = device.pull()
        first_of(stream, "still_here")
        at.clock.by_ms = 31 * 86_400_000
        assert word_of(stream) == "certificate-expired"
        before = at.state()
        with pytest.raises(RefusedError, match="certificate-expired"):
            device.heartbeat()
        assert at.state() == before


def test_revocation_takes_hold_in_the_middle_of_an_upload_and_of_a_download(tmp_path):
    with coordinator(tmp_path, tick_ms=100) as at:
        device = at.enrol("d0")
        (tmp_path / "large").write_bytes(bytes(8 * MIB))
        large = fr.keep_base(at.fleet, tmp_path / "large")
        at.start(base=large)
        task = device.next_task()
        device.acknowledge(task)
        data = answer_of(task, 1, pad=3000)
        upload = device.offer(task, data).upload_id
        body = fleet_pb2.FetchArtefactRequest(sha256=bytes.fromhex(large))
        download = device.channel.unary_stream(f"/{SERVICE}/FetchArtefact")(
            device.seal("FetchArtefact", body).SerializeToString(), timeout=60
        )
        next(download)
        until(lambda: at.service.figures().calls_open == 1)
        revoked = threading.Event()

        def half():
            yield device.start_of(task, upload, data)
            yield chunk(0, data[:1000])
            until(lambda: get(at.fleet, Upload, upload).streams)
            revoke_elsewhere(at, device)
            time.sleep(0.3)  # beyond a tick
            revoked.set()
            yield chunk(1000, data[1000:])

        with pytest.raises(RefusedError) as caught:
            device.push_raw(half())
        assert caught.value.word == "certificate-revoked"
        assert revoked.is_set()
        assert word_of(download) == "certificate-revoked"
        assert rows_of(at.fleet, Accepted) == []
        assert get(at.fleet, Upload, upload).state == "discarded"


def test_who_left_is_out(tmp_path):
    with coordinator(tmp_path, tick_ms=60_000) as at:
        device = at.enrol("d0")
        at.start()
        stream = device.pull()
        task = first_of(stream, "task").task
        device.call("Leave", fleet_pb2.LeaveRequest(reason="owner"))
        assert word_of(stream) == "certificate-revoked"
        with pytest.raises(RefusedError, match="certificate-revoked"):
            device.call("Leave", fleet_pb2.LeaveRequest(reason="owner"))
        assert get(at.fleet, Task, task.task_id).reason == "left"
        assert at.service.online() == frozenset()


def test_a_certificate_is_renewed_without_a_restart(tmp_path):
    with coordinator(tmp_path) as at:
        device = at.enrol("d0")
        folder, first = tmp_path / "devices" / "d0", device.who.certificates
        request = identity.renewal_request(folder, device.who)
        answer = device.call("Renew", request)
        assert device.call("Renew", request).certificates == answer.certificates
        device.who = identity.accept_renewal(folder, device.who, answer)
        assert device.who.certificates != first
        device.reach(at.service)
        device.heartbeat()


# --- ledgers -----------------------------------------------------------------------------------


def head_of(key, index):
    receipt = Receipt(ledger_head=f"{index:064x}", entry_index=index)
    signature = key.sign(receipt.ledger_head)
    head = SignedHead(receipt=receipt, public_key=key.public, signature=signature)
    return contract.head_message(head)


def test_a_ledger_that_fell_behind_is_refused(tmp_path):
    with coordinator(tmp_path) as at:
        device = at.enrol("d0")
        assert not device.hello().HasField("known_ledger_head")
        later, earlier = (head_of(LedgerKey.generate(), index) for index in (5, 3))
        assert device.hello(ledger_head=later).known_ledger_head.entry_index == 5
        assert device.hello(ledger_head=later).known_ledger_head == later
        before = at.state()
        with pytest.raises(RefusedError, match="ledger-rolled-back"):
            device.hello()  # as if it had none
        assert at.state() == before
        with pytest.raises(RefusedError, match="ledger-rolled-back"):
            device.hello(ledger_head=earlier)
        assert get(at.fleet, Device, device.id).state == "suspect"


# --- uploads that are cut ----------------------------------------------------------------------


@pytest.fixture
def sending(tmp_path):
    """A device with a task, and an answer of 3 MB that it has offered."""
    with coordinator(tmp_path) as at:
        device = at.enrol("d0")
        at.start(max_answer_bytes=8 * MIB)
        at.task = device.next_task()
        device.acknowledge(at.task)
        at.data = answer_of(at.task, 1, pad=3 * MIB)
        at.upload = device.offer(at.task, at.data).upload_id
        yield at


def begin(at, size, offset=0):
    """Begin to send, and stay at it after so many bytes: a call that is still open."""
    device, hold = at.devices[0], threading.Event()

    def messages():
        yield device.start_of(at.task, at.upload, at.data, offset)
        yield from chunks(at.data[: offset + size], offset)
        hold.wait(60)

    call = device.channel.stream_unary(f"/{SERVICE}/PushUpdate").future(messages(), timeout=60)
    up = at.service.figures().bytes_up
    until(lambda: at.service.figures().bytes_up >= up + size)
    return call, hold


def test_what_came_before_a_cut_is_kept(sending):
    at, device = sending, sending.devices[0]
    call, hold = begin(at, MIB)
    call.cancel()
    hold.set()
    until(lambda: at.service.figures().uploads_open == 0)
    offset = device.offer(at.task, at.data).offset
    assert offset == MIB
    assert device.push(at.task, at.upload, at.data, offset) == ("ACCEPTED", len(at.data))
    at.advance()
    assert adapter(at.fleet) == [[1, 1]]


def test_an_offer_ends_the_stream_that_hangs_and_keeps_what_came(sending):
    at, device = sending, sending.devices[0]
    call, hold = begin(at, MIB)
    assert device.offer(at.task, at.data).offset == MIB
    with pytest.raises(RefusedError) as caught, refusals():
        call.result()
    assert (caught.value.word, caught.value.failure.retry) == ("superseded", "resume")
    hold.set()
    assert device.push(at.task, at.upload, at.data, MIB)[0] == "ACCEPTED"


def test_a_newer_stream_ends_the_older_one(sending):
    at, device = sending, sending.devices[0]
    call, hold = begin(at, MIB)
    assert device.push(at.task, at.upload, at.data, 0)[0] == "ACCEPTED"  # nothing was kept yet
    with pytest.raises(RefusedError) as caught, refusals():
        call.result()
    assert caught.value.word == "superseded"
    hold.set()
    assert len(rows_of(at.fleet, Accepted)) == 1


def test_two_streams_at_once_leave_one_whole_answer(sending):
    at, device = sending, sending.devices[0]
    answers, spoilt = [], at.data[:-1] + b"]"

    def push(data):
        first = device.start_of(at.task, at.upload, at.data)
        try:
            answers.append(device.push_raw([first, *chunks(data, piece=1 << 16)]).state)
        except RefusedError as error:
            answers.append(error.word)

    both = [threading.Thread(target=push, args=(data,)) for data in (at.data, spoilt) * 2]
    for each in both:
        each.start()
    for each in both:
        each.join()
    final = get(at.fleet, Upload, at.upload).state
    assert final in {"accepted", "rejected"}  # of whichever was whole first, and of it alone
    if final == "accepted":
        (row,) = rows_of(at.fleet, Accepted)
        assert at.fleet.artefacts.read(row.sha256) == at.data  # its hash holds: nobody wrote later
    assert not list((at.folder / "uploads").iterdir())


@pytest.mark.parametrize("grace_s", [0.0, None])
def test_a_restart_in_the_middle(tmp_path, grace_s):
    with coordinator(tmp_path) as at:
        device, waiting = at.enrol("d0"), at.enrol("d1")
        at.start(max_answer_bytes=8 * MIB)
        at.task = device.next_task()
        device.acknowledge(at.task)
        at.data = answer_of(at.task, 1, pad=3 * MIB)
        at.upload = device.offer(at.task, at.data).upload_id
        stream = waiting.pull()
        first_of(stream, "task")
        call, hold = begin(at, MIB)
        at.service.stop(grace_s)
        assert not at.service.ready()
        assert at.service.figures().state == "stopped"
        assert word_of(stream) in {"stopping", ""}  # "": the connection was closed first
        with pytest.raises(RefusedError), refusals():
            call.result()
        hold.set()
    with coordinator(tmp_path) as at:
        for each in (device, waiting):
            each.reach(at.service)
            at.devices.append(each)
        task = device.next_task()
        data = answer_of(task, 1, pad=3 * MIB)
        offered = device.offer(task, data)
        assert offered.offset == MIB
        assert device.push(task, offered.upload_id, data, MIB)[0] == "ACCEPTED"
        assert waiting.answer(waiting.next_task(), answer_of(task, 2)) == "ACCEPTED"
        at.advance()
        assert adapter(at.fleet) == [[1, 3]]


def test_a_download_goes_on_from_any_offset(tmp_path):
    with coordinator(tmp_path, chunk_bytes=1000) as at:
        device = at.enrol("d0")
        content = bytes(range(256)) * 40
        (tmp_path / "large").write_bytes(content)
        large = fr.keep_base(at.fleet, tmp_path / "large")
        at.start(base=large)
        got = device.fetch(large, most=3000)
        assert 3000 <= len(got) < len(content)
        while len(got) < len(content):
            got += device.fetch(large, offset=len(got), most=2500)
        assert got == content
        assert device.fetch(large, offset=len(content)) == b""


# --- a mistake of ours -------------------------------------------------------------------------


class Broken:
    """Work that fails, and then doesn't."""

    def __init__(self, work, errors):
        self._work, self.errors = work, errors

    def __getattr__(self, name):
        return getattr(self._work, name)

    def check(self, asked, data):
        if self.errors:
            raise self.errors.pop()
        return self._work.check(asked, data)


def test_a_check_that_breaks_is_made_again(sending, caplog):
    at, device = sending, sending.devices[0]
    at.work = Broken(at.work, [StoreError("the disk says no: /secret/place")])
    with pytest.raises(RefusedError) as caught:
        device.push(at.task, at.upload, at.data)
    assert (caught.value.word, caught.value.failure.retry) == ("internal", "same")
    assert "secret" not in caught.value.failure.message
    assert "secret" in caplog.text
    assert get(at.fleet, Upload, at.upload).state == "checking"
    assert rows_of(at.fleet, Accepted) == []
    assert device.offer(at.task, at.data).state == fleet_pb2.UPLOAD_STATE_CHECKING  # begun anew
    until(
        lambda: device.offer(at.task, at.data).state == fleet_pb2.UPLOAD_STATE_ACCEPTED,
    )
    assert at.service.figures().accepted == 1
    assert at.service.ready()


def test_a_store_that_cannot_be_read_makes_the_service_unready(tmp_path):
    with coordinator(tmp_path) as at:
        device = at.enrol("d0")
        device.heartbeat()
        assert at.service.ready()
        with at.fleet.store.write("spoil") as tx:
            tx._connection.exec_driver_sql("ALTER TABLE runs RENAME TO gone")
        assert not at.service.ready()
        with at.fleet.store.write("mend") as tx:
            tx._connection.exec_driver_sql("ALTER TABLE gone RENAME TO runs")
        assert at.service.ready()
        device.heartbeat()
