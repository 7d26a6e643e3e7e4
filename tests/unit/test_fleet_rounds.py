"""The durable rounds: what opens, closes, fails and rests, is refused, and outlives a restart."""

import re
from itertools import product
from pathlib import Path

import pytest
from support import fleets
from support.fleets import RUN, TIMEOUT_MS, Clock, Powers, answer, get, refusal, rows_of

from sordino.core.contract import REASONS, Artefact, SignedHead
from sordino.core.errors import ConfigError, StoreError
from sordino.core.records import Receipt
from sordino.server import fleet_rounds as fr
from sordino.server.fleet_rounds import devices
from sordino.server.fleet_rounds.machine import MOVES, move
from sordino.server.store import (
    Accepted,
    ArtefactRow,
    Device,
    Event,
    Round,
    Run,
    Task,
    Upload,
)
from sordino.server.store.records import FINAL_ROUNDS


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def made(tmp_path, clock):
    with fleets.fleet(tmp_path, devices=5, clock=clock) as fleet:
        yield fleet


@pytest.fixture
def work():
    return Powers()


def cohort(made, number=1):
    return sorted(task.device_id for task in rows_of(made, Task, run_id=RUN, round=number))


def powers(names):
    return sum(1 << int(name[1:]) for name in names)


# --- a round's way -----------------------------------------------------------------------------


def test_a_run_from_start_to_done(made, work, tmp_path):
    fleets.start(made, tmp_path)
    sums = []
    for number in (1, 2, 3):
        assert fleets.advance(made, work, RUN).state == "open"
        for device in cohort(made, number):
            assert answer(made, work, device).state == "accepted"
        sums.append([number, powers(cohort(made, number))])
        assert fleets.step(made, work, RUN).state == "closing"
    assert fleets.advance(made, work, RUN) is None
    assert fleets.adapter(made) == sums
    run = get(made, Run, RUN)
    assert (run.state, run.rounds_done) == ("done", 3)
    kinds = [event.kind for event in rows_of(made, Event, run_id=RUN)]
    assert kinds == [
        "start-run",
        *["round-opened", "round-closed", "round-published"] * 3,
        "run-done",
    ]


def test_what_a_round_works_with_is_fixed_when_it_opens(made, work, tmp_path):
    fleets.start(made, tmp_path)
    before = fleets.advance(made, work, RUN)
    fr.change_cohort(made, "c", RUN, cohort=1, extra=0, min_updates=1)
    fr.add_rounds(made, "a", RUN, 6, lambda plan: b"another plan")
    assert fleets.step(made, work, RUN) == before
    assert len(cohort(made)) == 3
    for device in cohort(made):
        answer(made, work, device)
    assert fleets.advance(made, work, RUN).round == 2
    assert len(cohort(made, 2)) == 1
    assert get(made, Round, RUN, 2).plan != before.plan


def test_it_collects_from_the_first_device_that_took_its_task(made, work, tmp_path):
    fleets.start(made, tmp_path)
    fleets.advance(made, work, RUN)
    device = cohort(made)[0]
    task = fr.task_for(made, device)
    assert refusal(fr.acknowledge, made, device, task.task_id, "0" * 64) == "wrong-plan"
    assert get(made, Round, RUN, 1).state == "open"
    taken = fleets.take(made, device)
    assert (taken.state, fleets.take(made, device)) == ("taken", taken)
    assert get(made, Round, RUN, 1).state == "collecting"


def test_the_reserve_closes_a_round_early_and_stragglers_are_let_go(made, work, tmp_path):
    fleets.start(made, tmp_path, cohort=2, extra=2)
    fleets.advance(made, work, RUN)
    one, two, late, last = cohort(made)
    slow = fleets.take(made, late)
    answer(made, work, one)
    assert fleets.step(made, work, RUN).state == "collecting"
    answer(made, work, two)
    assert fleets.advance(made, work, RUN).round == 2
    states = {task.device_id: task.state for task in rows_of(made, Task, run_id=RUN, round=1)}
    assert states == {one: "answered", two: "answered", late: "cancelled", last: "cancelled"}
    data = fleets.update_of(late, 1)
    assert refusal(fr.offer_upload, made, late, slow.task_id, Artefact.of(data)) == "task-over"
    assert get(made, Device, late).failures == 0  # it did nothing wrong
    assert fleets.adapter(made) == [[1, powers([one, two])]]


def test_the_deadline_closes_and_who_is_late_has_failed(made, work, clock, tmp_path):
    fleets.start(made, tmp_path)
    fleets.advance(made, work, RUN)
    one, two, three = cohort(made)
    answer(made, work, one)
    clock.now += TIMEOUT_MS - 1
    assert fleets.step(made, work, RUN).state == "collecting"
    clock.now += 1
    assert fr.task_for(made, two) is None
    assert fleets.step(made, work, RUN).state == "closing"
    assert [get(made, Device, name).failures for name in (one, two, three)] == [0, 1, 1]
    assert fleets.advance(made, work, RUN).round == 2
    assert fleets.adapter(made) == [[1, powers([one])]]


def test_too_few_updates_fail_the_round_and_three_in_a_row_the_run(made, work, clock, tmp_path):
    fleets.start(made, tmp_path, rounds=9, min_updates=2)
    for number in (1, 2, 3):
        fleets.advance(made, work, RUN)
        answer(made, work, cohort(made, number)[0])
        clock.now += TIMEOUT_MS
        assert fleets.step(made, work, RUN).state == "failed"
        clock.now += 86_400_000  # whoever rests has rested
    assert get(made, Round, RUN, 3).reason == "too-few-updates"
    run = get(made, Run, RUN)
    assert (run.state, run.reason, run.adapter, run.rounds_done) == (
        "failed",
        "too-few-updates",
        "",
        0,
    )
    assert fleets.advance(made, work, RUN) is None
    fr.resume_run(made, "again", RUN)
    assert fleets.advance(made, work, RUN).round == 4  # its number is used up


def test_everybody_declined_ends_a_round_at_once(made, work, tmp_path):
    fleets.start(made, tmp_path)
    fleets.advance(made, work, RUN)
    for device, reason in zip(
        cohort(made), ("policy-budget", "unavailable", "internal"), strict=True
    ):
        task = fr.task_for(made, device)
        assert fr.decline(made, device, task.task_id, reason).state == "declined"
        assert fr.decline(made, device, task.task_id, "other").reason == reason
    assert fleets.step(made, work, RUN).state == "failed"
    failures = [get(made, Device, device).failures for device in cohort(made)]
    assert failures == [0, 0, 1]


def test_too_few_devices_leave_a_round_planned(made, work, tmp_path):
    fleets.start(made, tmp_path, cohort=9, min_updates=6)
    assert fleets.advance(made, work, RUN).state == "planned"
    assert rows_of(made, Task) == []
    fleets.enrol(made, 6)
    assert fleets.advance(made, work, RUN, among={"d0"}).state == "planned"
    assert fleets.advance(made, work, RUN).state == "open"


def test_under_central_trust_no_count_decides(made, work, clock, tmp_path):
    fleets.start(made, tmp_path, trust="central", cohort=2, min_updates=2)
    fleets.advance(made, work, RUN)
    assert len(cohort(made)) == 5  # the coins are the work's to throw
    for device in cohort(made)[:4]:
        answer(made, work, device)
        assert fleets.step(made, work, RUN).state == "collecting"
    clock.now += TIMEOUT_MS
    assert fleets.advance(made, work, RUN).round == 2
    clock.now += TIMEOUT_MS
    assert fleets.step(made, work, RUN).state == "closing"  # with nobody's update at all
    assert refusal(fr.change_cohort, made, "c", RUN, 1, 0, 1) == "cohort-fixed"


def test_a_release_that_was_lost_fails_the_round(made, work, tmp_path):
    fleets.start(made, tmp_path)
    fleets.advance(made, work, RUN)
    for device in cohort(made):
        answer(made, work, device)
    work.aggregate = lambda *_: None
    fleets.step(made, work, RUN)
    assert fleets.step(made, work, RUN).reason == "release-lost"
    assert fleets.adapter(made) == []


# --- devices -----------------------------------------------------------------------------------


def test_a_device_that_failed_repeatedly_rests_longer_each_time(made, work, clock, tmp_path):
    rests = []
    for _ in range(5):
        with made.store.write("test") as tx:
            devices.failed(made, tx, "d0")
        rests.append(max(0, get(made, Device, "d0").rests_until_ms - clock.now))
    assert rests == [0, 0, 600_000, 1_200_000, 2_400_000]
    fleets.start(made, tmp_path, cohort=5)
    fleets.advance(made, work, RUN)
    assert cohort(made) == ["d1", "d2", "d3", "d4"]
    clock.now += 2_400_000
    fleets.advance(made, work, RUN)
    fleets.advance(made, work, RUN)
    assert "d0" in cohort(made, 2)


def test_a_success_wipes_failures_out(made, work, tmp_path):
    with made.store.write("test") as tx:
        tx.change(tx.find(Device, "d0"), failures=7)
    fleets.start(made, tmp_path, cohort=5)
    fleets.advance(made, work, RUN)
    answer(made, work, "d0")
    assert get(made, Device, "d0").failures == 0


def test_who_is_gone_is_asked_no_more_and_has_no_task(made, work, tmp_path):
    fleets.start(made, tmp_path, cohort=5)
    fleets.advance(made, work, RUN)
    revoked = fr.revoke_device(made, "r", "d0", "stolen")
    assert fr.revoke_device(made, "r", "d0", "stolen") == revoked
    assert fr.leave(made, "d1", "owner").state == "left"
    assert fr.leave(made, "d0").state == "revoked"
    gone = [fr.Members(made).device(name) for name in ("d0", "d1")]
    assert [device.revoked_because for device in gone] == ["stolen", "owner"]
    assert fr.task_for(made, "d0") is fr.task_for(made, "d1") is None
    assert refusal(fr.clear_device, made, "x", "d0") == "certificate-revoked"
    assert fr.Members(made).revoke_device("d2", 5, "lost")
    assert fr.task_for(made, "d2") is None


def test_nonces_are_remembered_over_a_restart(tmp_path):
    with fleets.fleet(tmp_path, devices=1) as made:
        assert fr.Members(made).remember_nonce("d0", b"n", "1" * 64, 5) is None
    with fleets.fleet(tmp_path) as made:
        assert fr.Members(made).remember_nonce("d0", b"n", "2" * 64, 5) == "1" * 64


def head(index, entry="ab"):
    receipt = Receipt(ledger_head=entry * 32, entry_index=index)
    return SignedHead(receipt=receipt, public_key="cd" * 32, signature="ef" * 64)


def test_a_ledger_behind_a_kept_head_makes_its_device_suspect(made, work, tmp_path):
    fr.keep_head(made, "d0", head(5))
    fr.keep_head(made, "d0", head(5))
    fr.keep_head(made, "d0", head(7, "ac"))
    assert fr.last_head(made, "d0").entry_index == 7
    for wrong in (head(6), head(7, "ad")):
        assert refusal(fr.keep_head, made, "d0", wrong) == "ledger-rolled-back"
    assert get(made, Device, "d0").state == "suspect"
    fleets.start(made, tmp_path, cohort=5)
    fleets.advance(made, work, RUN)
    assert "d0" not in cohort(made)
    assert fr.clear_device(made, "ok", "d0").state == "active"


# --- uploads -----------------------------------------------------------------------------------


@pytest.fixture
def task(made, work, tmp_path):
    fleets.start(made, tmp_path, max_answer_bytes=1000)
    fleets.advance(made, work, RUN)
    return fleets.take(made, cohort(made)[0])


def test_an_upload_goes_on_where_it_was_kept(made, work, task):
    data = fleets.update_of(task.device_id, 1, pad=100)
    artefact = Artefact.of(data)
    upload = fr.offer_upload(made, task.device_id, task.task_id, artefact)
    stream = fr.Stream(made, task.device_id, upload.upload_id, artefact, 0)
    stream.write(0, data[:50])
    stream.keep()
    stream.write(50, data[50:60])  # never kept: sent again
    assert fr.offer_upload(made, task.device_id, task.task_id, artefact).stored == 50
    again = fr.Stream(made, task.device_id, upload.upload_id, artefact, 50)
    assert refusal(stream.keep) == "superseded"
    for offset, piece in ((49, b"x"), (51, b"x"), (50, b"x" * 1000)):
        assert refusal(again.write, offset, piece) == "wrong-offset"
    again.write(50, data[50:])
    assert again.keep().state == "checking"
    assert fr.finish_upload(made, work, upload.upload_id).state == "accepted"
    assert fr.finish_upload(made, work, upload.upload_id).state == "accepted"
    assert len(rows_of(made, Accepted)) == 1
    assert made.artefacts.read(artefact.sha256) == data


def test_an_acknowledged_update_is_acknowledged_again(made, work, task):
    data = fleets.update_of(task.device_id, 1)
    first = fleets.send(made, work, task, data)
    assert fleets.send(made, work, task, data) == first
    other = Artefact.of(b"another")
    assert refusal(fr.offer_upload, made, task.device_id, task.task_id, other) == "another-answer"
    assert fr.decline(made, task.device_id, task.task_id, "internal").state == "answered"


def offer(made, task, size=10, sha="ab", device=None):
    artefact = Artefact(sha256=sha * 32, size=size)
    return fr.offer_upload(made, device or task.device_id, task.task_id, artefact)


@pytest.mark.parametrize(
    ("limits", "size", "word"),
    [
        ({}, 1001, "too-long"),
        ({"storage_bytes": 40}, 100, "quota-full"),
        ({"spare_bytes": 1 << 60}, 100, "storage-full"),
    ],
)
def test_room_is_checked_before_it_is_allotted(tmp_path, limits, size, word):
    work = Powers()
    with fleets.fleet(tmp_path, devices=3, limits=fr.Limits(**limits)) as made:
        fleets.start(made, tmp_path, max_answer_bytes=1000)
        fleets.advance(made, work, RUN)
        task = fleets.take(made, "d0")
        before = fleets.everything(made)
        assert refusal(offer, made, task, size) == word
        assert fleets.everything(made) == before
        assert list((tmp_path / "uploads").iterdir()) == []


def test_only_so_many_uploads_at_once(tmp_path):
    with fleets.fleet(tmp_path, devices=3, limits=fr.Limits(uploads=1)) as made:
        fleets.start(made, tmp_path)
        fleets.advance(made, Powers(), RUN)
        offer(made, fleets.take(made, "d0"))
        assert refusal(offer, made, fleets.take(made, "d1")) == "too-many-uploads"


def test_a_device_fetches_what_its_tasks_name_and_nothing_else(made, work, tmp_path):
    run = fleets.start(made, tmp_path)
    finish_round(made, work, 1)
    fleets.advance(made, work, RUN)
    adapter, one = get(made, Run, RUN).adapter, cohort(made, 2)[0]
    names = {row.sha256: row.kind for row in rows_of(made, ArtefactRow)}
    allowed = [name for name in names if not refusal(fr.may_fetch, made, one, name)]
    assert sorted(allowed) == sorted([run.base, run.manifest, adapter])
    idle = next(name for name in ("d0", "d1", "d2", "d3", "d4") if name not in cohort(made, 2))
    for name in (*names, "", "ab" * 32):
        assert refusal(fr.may_fetch, made, idle, name) == "unknown-artefact"


def test_limits_are_positive():
    with pytest.raises(ConfigError, match="uploads"):
        fr.Limits(uploads=0)


def test_another_devices_task_and_upload_are_unknown(made, task):
    other = cohort(made)[1]
    assert refusal(offer, made, task, device=other) == "unknown-task"
    assert refusal(fr.acknowledge, made, other, task.task_id, "") == "unknown-task"
    upload = offer(made, task)
    artefact = Artefact(sha256="ab" * 32, size=10)
    assert refusal(fr.Stream, made, other, upload.upload_id, artefact, 0) == "unknown-upload"
    changed = Artefact(sha256="ac" * 32, size=10)
    assert (
        refusal(fr.Stream, made, task.device_id, upload.upload_id, changed, 0) == "another-answer"
    )
    assert refusal(fr.Stream, made, task.device_id, upload.upload_id, artefact, 3) == "wrong-offset"


@pytest.mark.parametrize(
    ("data", "word"),
    [(fleets.update_of("d1", 2), "wrong-round"), (fleets.update_of("d1", 1, "nan"), "not-finite")],
)
def test_a_refused_update_is_refused_for_good_and_its_bytes_go(
    made, work, task, tmp_path, data, word
):
    assert refusal(fleets.send, made, work, task, data) == word
    assert refusal(fleets.send, made, work, task, data) == word
    assert get(made, Task, task.task_id).state == "rejected"
    assert get(made, Device, task.device_id).failures == 1
    assert (rows_of(made, Accepted), list((tmp_path / "uploads").iterdir())) == ([], [])


def test_bytes_that_are_not_their_hash_are_refused(made, work, task):
    artefact = Artefact(sha256="ab" * 32, size=4)
    upload = fr.offer_upload(made, task.device_id, task.task_id, artefact)
    stream = fr.Stream(made, task.device_id, upload.upload_id, artefact, 0)
    stream.write(0, b"fake")
    stream.keep()
    assert refusal(fr.finish_upload, made, work, upload.upload_id) == "wrong-hash"


def test_bytes_that_trip_the_check_up_do_not_hold_the_round_up(made, work, clock, task):
    assert refusal(fleets.send, made, work, task, b"[1, 2]") == "malformed"
    clock.now += TIMEOUT_MS
    assert fleets.step(made, work, RUN).state == "failed"


def test_trouble_of_this_machine_refuses_nobody(made, work, task):
    def check(asked, data):
        raise OSError("the disk")

    data = fleets.update_of(task.device_id, 1)
    honest, work.check = work.check, check
    with pytest.raises(OSError, match="the disk"):
        fleets.send(made, work, task, data)
    work.check = honest
    fr.recover(made, lambda _: work)
    assert fleets.send(made, work, task, data).state == "accepted"


def test_an_upload_that_came_whole_before_the_deadline_is_checked_before_the_round_closes(
    made, work, clock, task
):
    data = fleets.update_of(task.device_id, 1)
    artefact = Artefact.of(data)
    upload = fr.offer_upload(made, task.device_id, task.task_id, artefact)
    stream = fr.Stream(made, task.device_id, upload.upload_id, artefact, 0)
    stream.write(0, data)
    stream.keep()
    clock.now += TIMEOUT_MS
    assert fleets.step(made, work, RUN).state == "closing"
    assert get(made, Upload, upload.upload_id).state == "accepted"


def test_an_upload_whose_task_ended_is_discarded(made, work, clock, task):
    upload = offer(made, task)
    artefact = Artefact(sha256="ab" * 32, size=10)
    stream = fr.Stream(made, task.device_id, upload.upload_id, artefact, 0)
    clock.now += TIMEOUT_MS
    fleets.step(made, work, RUN)
    assert get(made, Upload, upload.upload_id).state == "discarded"
    fr.collect_garbage(made)
    assert refusal(stream.write, 0, b"x" * 10) == "task-over"
    assert refusal(fr.Stream, made, task.device_id, upload.upload_id, artefact, 0) == "task-over"


# --- an operator's commands ----------------------------------------------------------------------


def finish_round(made, work, number):
    fleets.advance(made, work, RUN)
    for device in cohort(made, number):
        answer(made, work, device)
    while get(made, Round, RUN, number).state not in FINAL_ROUNDS:
        fleets.step(made, work, RUN)


def test_a_pause_lets_the_open_round_end_and_opens_no_other(made, work, tmp_path):
    fleets.start(made, tmp_path)
    fleets.advance(made, work, RUN)
    paused = fr.pause_run(made, "p", RUN)
    assert fr.pause_run(made, "p", RUN) == paused
    for device in cohort(made):
        answer(made, work, device)
    assert fleets.advance(made, work, RUN) is None
    assert get(made, Round, RUN, 1).state == "published"
    fr.resume_run(made, "r", RUN)
    assert fleets.advance(made, work, RUN).state == "open"
    assert refusal(fr.pause_run, made, "r", RUN) == "another-request"


def test_rolling_back_goes_on_from_an_earlier_adapter_with_the_next_number(made, work, tmp_path):
    fleets.start(made, tmp_path, rounds=9)
    finish_round(made, work, 1)
    finish_round(made, work, 2)
    assert refusal(fr.roll_back, made, "b", RUN, 1) == "run-not-paused"
    fleets.advance(made, work, RUN)
    fr.pause_run(made, "p", RUN)
    assert refusal(fr.roll_back, made, "b", RUN, 1) == "run-not-paused"  # round 3 is open
    finish_round(made, work, 3)
    assert refusal(fr.roll_back, made, "b", RUN, 7) == "unknown-round"
    fr.roll_back(made, "b", RUN, 1)
    assert [number for number, _ in fleets.adapter(made)] == [1]
    fr.resume_run(made, "r", RUN)
    finish_round(made, work, 4)
    assert [number for number, _ in fleets.adapter(made)] == [1, 4]
    fr.pause_run(made, "p2", RUN)
    fr.roll_back(made, "b0", RUN, 0)
    assert fleets.adapter(made) == []


def test_stopping_gives_the_open_round_up(made, work, task):
    assert fr.stop_run(made, "s", RUN).state == "stopped"
    assert get(made, Round, RUN, 1).state == "given-up"
    assert get(made, Task, task.task_id).reason == "run-stopped"
    assert fleets.advance(made, work, RUN) is None
    for call in (fr.resume_run, fr.pause_run):
        assert refusal(call, made, "x", RUN) == "run-over"
    assert refusal(fr.add_rounds, made, "x", RUN, 99, bytes) == "run-over"


def test_rounds_are_added_to_a_run_that_was_done(made, work, tmp_path):
    fleets.start(made, tmp_path, rounds=1)
    finish_round(made, work, 1)
    assert fleets.advance(made, work, RUN) is None
    assert refusal(fr.add_rounds, made, "a", RUN, 0, bytes) == "bad-value"
    assert fr.add_rounds(made, "a", RUN, 1, lambda plan: plan + b"!").state == "running"
    again = fr.add_rounds(made, "a", RUN, 1, lambda plan: plan + b"?")
    assert (again.rounds_planned, made.artefacts.read(again.plan)) == (2, fleets.PLAN + b"!")
    assert refusal(fr.add_rounds, made, "a", RUN, 2, bytes) == "another-request"
    finish_round(made, work, 2)
    assert len(fleets.adapter(made)) == 2


def test_commands_that_are_refused_leave_nothing_behind(made, work, tmp_path):
    run = fleets.start(made, tmp_path)
    assert fleets.start(made, tmp_path) == run
    before = fleets.everything(made)
    base = run.base
    assert refusal(fr.start_run, made, "2", fleets.new_run(base)) == "run-exists"
    other = fleets.new_run("00" * 32, run_id="x")
    assert refusal(fr.start_run, made, "3", other) == "unknown-artefact"
    for cohort_extra_minimum in ((2, 0, 3), (2, -1, 1), (2, 0, 0)):
        assert refusal(fr.change_cohort, made, "4", RUN, *cohort_extra_minimum) == "bad-value"
    assert refusal(fr.start_run, made, "4", fleets.new_run(base, run_id="x", min_updates=9)) == (
        "bad-value"
    )
    assert refusal(fr.pause_run, made, "5", "nobody") == "unknown-run"
    assert refusal(fr.revoke_device, made, "6", "nobody", "") == "unknown-device"
    assert fleets.everything(made) == before


# --- restarts ------------------------------------------------------------------------------------


def test_a_restart_finds_the_same_round_cohort_and_tasks(tmp_path):
    work, clock = Powers(), Clock()
    with fleets.fleet(tmp_path, devices=4, clock=clock) as made:
        fleets.start(made, tmp_path)
        fleets.advance(made, work, RUN)
        answer(made, work, cohort(made)[0])
        before = fleets.everything(made)
    with fleets.fleet(tmp_path, clock=clock) as made:
        fr.recover(made, lambda _: work)
        assert fleets.advance(made, work, RUN).round == 1
        assert fleets.everything(made) == before
        for device in cohort(made)[1:]:
            answer(made, work, device)
        fleets.advance(made, work, RUN)
        assert fleets.adapter(made) == [[1, powers(cohort(made))]]


def test_one_process_works_in_a_folder(tmp_path):
    with (
        fleets.fleet(tmp_path),
        pytest.raises(StoreError, match="another coordinator"),
        fr.open_fleet(tmp_path),
    ):
        pass


def test_garbage_goes_and_what_a_row_needs_stays(made, work, tmp_path):
    fleets.start(made, tmp_path)
    finish_round(made, work, 1)
    fleets.advance(made, work, RUN)
    answer(made, work, cohort(made, 2)[0])
    made.artefacts.put(b"nobody's")
    assert fr.collect_garbage(made) == 1  # the updates of round 1 went with its end
    kinds = sorted(row.kind for row in rows_of(made, ArtefactRow))
    assert kinds == ["adapter", "base", "manifest", "plan", "update"]
    fr.check_artefacts(made)
    assert fr.collect_garbage(made) == 0
    victim = next(row for row in rows_of(made, ArtefactRow) if row.kind == "adapter")
    (tmp_path / "artefacts" / victim.sha256[:2] / victim.sha256).write_bytes(b"bit rot")
    with pytest.raises(StoreError, match=victim.sha256):
        fr.check_artefacts(made)


def test_an_update_that_is_also_an_adapter_is_kept(made, work, tmp_path):
    fleets.start(made, tmp_path)
    fleets.advance(made, work, RUN)
    first = cohort(made)[0]
    same = fleets.update_of(first, 1)
    for device in cohort(made):
        answer(made, work, device)
    work.aggregate = lambda *_: same
    fleets.advance(made, work, RUN)
    fr.collect_garbage(made)
    assert made.artefacts.read(get(made, Run, RUN).adapter) == same


# --- the tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MOVES)
def test_no_transition_but_those_in_the_table(kind):
    class Tx:
        def change(self, row, **changes):
            return changes["state"]

    for state, after in product(MOVES[kind], MOVES[kind]):
        row = object.__new__(kind)
        object.__setattr__(row, "state", state)
        if after in MOVES[kind][state]:
            assert move(Tx(), row, after) == after
        else:
            with pytest.raises(StoreError, match=f"can't become {after}"):
                move(Tx(), row, after)


def test_every_word_of_a_refusal_is_the_contracts():
    text = "".join(path.read_text() for path in Path(fr.__file__).parent.glob("*.py"))
    words = set(re.findall(r'ContractError\(\s*"([a-z-]+)"', text))
    assert len(words) > 15
    assert words <= set(REASONS)
