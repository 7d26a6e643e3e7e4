"""The service `Operator` over real TLS: what is told, what is done, and who is let in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.central import make_central
from support.devices import coordinator, until
from support.federation import make_metric, make_plan
from support.fleets import RUN, get, rows_of
from support.members import DAY
from support.operators import Operated, add_operator, operated

from sordino.client.identity import channel_credentials
from sordino.core import contract
from sordino.core.errors import ContractError, TrustError
from sordino.privacy.plan import decode_plan, guarantee
from sordino.protos.v1 import operator_pb2
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.operator import SERVICE
from sordino.server.operator.client import Access, OperatorClient, access_of, open_channel
from sordino.server.operator.tables import event_table
from sordino.server.store import Event, Run


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Operated]:
    with operated(tmp_path) as made:
        yield made


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    """The word with which a call is refused."""
    with pytest.raises(ContractError) as caught:
        call(*args, **kwargs)
    return caught.value.reason


def command(at: Operated, method: str, request_id: str, **about: Any) -> operator_pb2.Run:
    request = operator_pb2.RunCommand(request_id=request_id, run_id=RUN, **about)
    return at.client.call(method, request, operator_pb2.Run)


def start(at: Operated, request_id: str, **changes: Any) -> operator_pb2.Run:
    given = {"run_id": "other", "settings_toml": b"rounds = 4", "cohort": 2, **changes}
    request = operator_pb2.StartRunRequest(request_id=request_id, **given)
    return at.client.call("StartRun", request, operator_pb2.Run)


# --- what is told ------------------------------------------------------------------------------


def test_a_run_and_its_rounds_as_an_operator_sees_them(at: Operated) -> None:
    at.start()
    at.finish_round("d2")
    run = at.client.run(RUN)
    plan = decode_plan(run.plan)
    assert plan == make_plan()
    assert run.plan_sha256.hex() == plan.sha256
    assert (run.rounds_done, run.rounds_planned, run.cohort) == (1, 3, 3)
    assert run.state == operator_pb2.RUN_STATE_RUNNING
    assert run.adapter.sha256.hex() == get(at.fleet, Run, RUN).adapter
    newest, first = at.client.rounds(RUN)
    assert (newest.round, newest.state) == (2, operator_pb2.ROUND_STATE_OPEN)
    assert (first.round, first.state) == (1, operator_pb2.ROUND_STATE_DONE)
    assert (first.asked, first.received) == (3, 2)
    assert {one.reason: one.count for one in first.dropped} == {"policy-budget": 1}
    assert first.bytes_up == sum(len(data) for data in sent(1))
    assert first.adapter.sha256 == run.adapter.sha256
    assert [one.run_id for one in at.client.runs()] == [RUN]
    assert refusal(at.client.run, "none") == "unknown-run"
    assert refusal(list, at.client.rounds("none")) == "unknown-run"


def sent(number: int) -> list[bytes]:
    from support.fleets import update_of

    return [update_of(f"d{device}", number) for device in (0, 1)]


def test_every_epsilon_comes_with_all_that_it_means(at: Operated) -> None:
    at.start()
    record, user = at.client.run(RUN).epsilon
    plan = make_plan()
    wanted = guarantee(plan, [plan.round_event()] * 3, composition="")
    assert record.epsilon == wanted.epsilon_pld > 0
    assert (record.unit, user.unit) == ("record", "user")
    assert not user.HasField("epsilon")
    for one in (record, user):
        assert one.delta == plan.delta
        assert one.neighbouring == "add-or-remove-one"
        assert one.sampling == "poisson"
        assert one.trust == "local"
        assert "PLD" in one.accountant
        assert one.scope == "all 3 announced rounds of the run, no other"


def test_paid_looks_are_part_of_the_run_that_buys_them(at: Operated) -> None:
    metric = make_metric()
    at.start(metric=metric.canonical())
    at.finish_round()
    at.look("d2")
    assert [run.run_id for run in at.client.runs()] == [RUN]
    assert refusal(at.client.run, f"{RUN}:loss") == "unknown-run"
    plan = make_plan()
    events = [plan.round_event()] * 3 + [metric.round_event()] * 3
    wanted = guarantee(plan, events, composition="").epsilon_pld
    record, _ = at.client.run(RUN).epsilon
    assert record.epsilon == wanted > guarantee(plan, events[:3], composition="").epsilon_pld
    assert "3 announced rounds of the run and 3 looks at its metric" in record.scope
    (look,) = at.client.rounds(f"{RUN}:loss")
    assert (look.asked, look.received, look.state) == (3, 2, operator_pb2.ROUND_STATE_DONE)
    measured = rows_of(at.fleet, Event, kind="metric-measured")[0].number
    event = next(iter(at.client.watch(after=measured - 1)))
    assert event.run == at.client.run(RUN)


def test_devices_and_the_heads_of_their_ledgers(at: Operated) -> None:
    at.start()
    at.finish_round("d2")
    at.online.add("d1")
    devices = {device.device_id: device for device in at.client.devices()}
    assert list(devices) == ["d0", "d1", "d2"]
    assert devices["d1"].state == operator_pb2.DEVICE_STATE_ONLINE
    assert devices["d0"].state == operator_pb2.DEVICE_STATE_OFFLINE
    assert [devices[name].accepted for name in devices] == [1, 1, 0]
    online = list(at.client.devices(operator_pb2.DEVICE_STATE_ONLINE))
    assert [device.device_id for device in online] == ["d1"]
    for heads in (at.client.heads(), at.client.heads(RUN)):
        found = {one.device_id: one.head.entry_index for one in heads}
        assert found == {"d0": 1, "d1": 2}
    assert devices["d0"].ledger_head.entry_index == 1
    assert refusal(list, at.client.heads("none")) == "unknown-run"


def test_listings_come_in_pages(at: Operated) -> None:
    for number in range(5):
        at.start(make_plan(run_id=f"run-{number}"), run_id=f"run-{number}")
        at.clock.by_ms += 1000
    page, found = operator_pb2.Page(size=2), []
    while True:
        request = operator_pb2.ListRunsRequest(page=page)
        answer = at.client.call("ListRuns", request, operator_pb2.ListRunsResponse)
        found.append([run.run_id for run in answer.runs])
        if not answer.next:
            break
        page.token = answer.next
    assert found == [["run-4", "run-3"], ["run-2", "run-1"], ["run-0"]]
    page.token = "elsewhere"
    request = operator_pb2.ListRunsRequest(page=page)
    assert (
        refusal(at.client.call, "ListRuns", request, operator_pb2.ListRunsResponse) == "bad-value"
    )


def test_under_central_trust_no_count_is_told(at: Operated) -> None:
    plan = make_central()
    at.start(plan, cohort=4, min_updates=1)
    at.finish_round("d2")
    at.fleet.artefacts.put(b"x")
    for one in at.client.rounds(RUN):
        assert (one.asked, one.received, one.bytes_up, one.bytes_down) == (0, 0, 0, 0)
        assert not one.dropped
    for device in at.client.devices():
        assert (device.accepted, device.failures) == (0, 0)
        assert not device.HasField("ledger_head")
    assert refusal(list, at.client.heads()) == "not-permitted"
    assert refusal(list, at.client.heads(RUN)) == "not-permitted"
    told = list(islice(at.client.watch(after=1), 5))
    assert not [event for event in told if event.HasField("round") and event.round.asked]
    record, user = at.client.run(RUN).epsilon
    assert user.epsilon > 0
    assert (user.trust, user.unit) == ("central", "user")
    assert record.HasField("epsilon")


def test_under_central_trust_no_event_tells_who_was_asked(at: Operated) -> None:
    at.start(make_central(), cohort=4, min_updates=1)
    with at.fleet.store.write("test") as tx:
        for kind in ("update-rejected", "device-resting"):
            fr.context.tell(at.fleet, tx, kind, run_id=RUN, device_id="d0", reason="over-norm")
        last = fr.context.tell(at.fleet, tx, "device-enrolled", device_id="d1").number
    events = at.client.watch(after=1)
    numbers = []
    for event in events:
        numbers.append(event.number)
        if event.number == last:
            break
    assert {last - 1, last - 2}.isdisjoint(numbers)


# --- what is done ------------------------------------------------------------------------------


def test_a_run_is_started_once(at: Operated) -> None:
    run = start(at, "one")
    assert (run.run_id, run.rounds_planned, run.cohort) == ("other", 4, 2)
    assert start(at, "one") == run
    assert refusal(start, at, "one", cohort=3) == "another-request"
    assert refusal(start, at, "two") == "run-exists"
    assert refusal(start, at, "three", settings_toml=b"rounds: 4") == "bad-settings"
    assert refusal(start, at, "three", settings_toml=b"\xff") == "bad-settings"
    assert len(rows_of(at.fleet, Run)) == 1


def test_a_name_that_no_run_can_have(at: Operated) -> None:
    assert refusal(start, at, "one", run_id="../up") == "bad-settings"
    assert not rows_of(at.fleet, Run)


def test_commands_are_carried_out_once(at: Operated) -> None:
    at.start()
    before = len(rows_of(at.fleet, Event))
    paused = command(at, "PauseRun", "p")
    assert paused.state == operator_pb2.RUN_STATE_PAUSED
    assert command(at, "PauseRun", "p") == paused
    assert refusal(command, at, "ResumeRun", "p") == "another-request"
    assert command(at, "ResumeRun", "r").state == operator_pb2.RUN_STATE_RUNNING
    more = operator_pb2.AddRoundsRequest(request_id="a", run_id=RUN, rounds=2)
    longer = at.client.call("AddRounds", more, operator_pb2.Run)
    assert at.client.call("AddRounds", more, operator_pb2.Run) == longer
    assert longer.rounds_planned == 5
    assert decode_plan(longer.plan) == make_plan(rounds=5)
    assert longer.epsilon[0].epsilon > paused.epsilon[0].epsilon
    fewer = operator_pb2.ChangeCohortRequest(request_id="c", run_id=RUN, cohort=1)
    smaller = at.client.call("ChangeCohort", fewer, operator_pb2.Run)
    assert (smaller.cohort, smaller.min_updates) == (1, 1)
    assert command(at, "StopRun", "s").state == operator_pb2.RUN_STATE_STOPPED
    assert refusal(command, at, "ResumeRun", "r2") == "run-over"
    kinds = [event.kind for event in rows_of(at.fleet, Event)[before:]]
    assert kinds == [
        *("pause-run", "resume-run", "add-rounds", "change-cohort"),
        *("round-given-up", "stop-run"),
    ]


def test_a_run_is_rolled_back(at: Operated) -> None:
    at.start()
    back = operator_pb2.RollBackRequest(request_id="b", run_id=RUN, round=1)
    assert refusal(at.client.call, "RollBack", back, operator_pb2.Run) == "run-not-paused"
    at.finish_round()
    first = at.client.run(RUN).adapter
    command(at, "PauseRun", "p")
    at.finish_round("d0")
    assert at.client.run(RUN).adapter != first
    assert at.client.call("RollBack", back, operator_pb2.Run).adapter == first
    back = operator_pb2.RollBackRequest(request_id="b0", run_id=RUN)
    assert not at.client.call("RollBack", back, operator_pb2.Run).HasField("adapter")
    back = operator_pb2.RollBackRequest(request_id="b9", run_id=RUN, round=9)
    assert refusal(at.client.call, "RollBack", back, operator_pb2.Run) == "unknown-round"


def test_a_device_is_revoked(at: Operated) -> None:
    request = operator_pb2.RevokeDeviceRequest(request_id="r", device_id="d1", reason="stolen")
    for _ in range(2):
        device = at.client.call("RevokeDevice", request, operator_pb2.Device)
        assert device.state == operator_pb2.DEVICE_STATE_REVOKED
    assert fr.Members(at.fleet).device("d1").revoked_because == "stolen"
    request.device_id = "d9"
    assert (
        refusal(at.client.call, "RevokeDevice", request, operator_pb2.Device) == "another-request"
    )
    request.request_id = "r9"
    assert refusal(at.client.call, "RevokeDevice", request, operator_pb2.Device) == "unknown-device"


def test_under_central_trust_the_cohort_is_the_plans(at: Operated) -> None:
    at.start(make_central(), cohort=4, min_updates=1)
    fewer = operator_pb2.ChangeCohortRequest(request_id="c", run_id=RUN, cohort=1)
    assert refusal(at.client.call, "ChangeCohort", fewer, operator_pb2.Run) == "cohort-fixed"


# --- what happens ------------------------------------------------------------------------------


def test_what_happens_is_told_as_it_happens_and_again(at: Operated) -> None:
    first = len(rows_of(at.fleet, Event))
    told: list[operator_pb2.Event] = []
    watching = OperatorClient(access_of(at.folder, at.folder / "operator"))
    live = watching.watch()
    thread = threading.Thread(target=lambda: told.extend(islice(live, 7)), daemon=True)
    thread.start()
    until(at.service.watching)
    at.start()
    at.finish_round()
    command(at, "PauseRun", "p")
    with at.fleet.store.write("test") as tx:
        fr.context.tell(at.fleet, tx, "ledger-rolled-back", device_id="d2", entry=7)
    thread.join(60)
    assert [kind(event) for event in told] == [
        *("run running", "round 1", "round 1", "round 1", "round 2"),
        *("run paused", "alarm ledger-rolled-back"),
    ]
    assert [event.number for event in told] == list(range(first + 1, first + 8))
    again = list(islice(at.client.watch(after=first), 7))
    assert [event.number for event in again] == [event.number for event in told]
    of_run = list(islice(at.client.watch(after=first, run_id=RUN), 6))
    assert [event.number for event in of_run] == [event.number for event in told[:6]]
    assert told[-1].alarm.device_id == "d2"
    watching.__exit__(None, None, None)


def kind(event: operator_pb2.Event) -> str:
    table = event_table(event)
    for name, key in (("run", "state"), ("round", "round"), ("alarm", "reason")):
        if name in table:
            return f"{name} {table[name][key]}"
    return "device"


def test_a_watch_goes_on_after_a_restart_of_the_coordinator(tmp_path: Path) -> None:
    told: list[int] = []
    with operated(tmp_path) as at:
        address = at.service.address
        at.start()
        number = rows_of(at.fleet, Event)[-1].number
        access = access_of(tmp_path, tmp_path / "operator")
    with OperatorClient(access, pause=lambda _: restarted.wait(30)) as watching:
        restarted = threading.Event()

        def follow() -> None:
            told.extend(event.number for event in islice(watching.watch(after=number - 1), 2))

        with operated(tmp_path, address=address) as at:
            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            until(lambda: told or at.service.watching())
        with operated(tmp_path, address=address) as at:
            restarted.set()
            command(at, "PauseRun", "p")
            thread.join(60)
    assert told == [number, number + 1]


def until_stuck(at: Operated) -> None:
    """Wait until nothing more is sent for longer than an answer may take to be taken."""
    sent, since = -1, time.monotonic()
    while time.monotonic() - since < 1.5:
        if (now := at.service.figures().bytes_down) != sent or not now:
            sent, since = now, time.monotonic()
        time.sleep(0.05)


def test_who_does_not_keep_up_is_cut_off(tmp_path: Path) -> None:
    with operated(tmp_path, message_s=0.5) as at:
        at.start()
        with at.fleet.store.write("test") as tx:
            for _ in range(500):
                fr.context.tell(at.fleet, tx, "pause-run", run_id=RUN)
        access = access_of(tmp_path, tmp_path / "operator")
        small = ("grpc.http2.bdp_probe", 0)  # or so much is taken in advance
        with open_channel(access, small) as channel:
            stub = channel.unary_stream(f"/{SERVICE}/Watch")
            call = stub(contract.to_bytes(operator_pb2.WatchRequest(after=1)))
            until(lambda: at.service.watching() == 1)
            until_stuck(at)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
        until(lambda: at.service.watching() == 0)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert b"too-slow" in dict(caught.value.trailing_metadata())[contract.TRAILER]


def test_alarms_of_the_machine(tmp_path: Path) -> None:
    with operated(tmp_path) as at:
        assert not [row for row in rows_of(at.fleet, Event) if row.kind.startswith("alarm-")]
        at.clock.by_ms += 80 * DAY  # of the 90 of the coordinator's certificate
        number = rows_of(at.fleet, Event)[-1].number
        for _ in range(2):
            from sordino.server.operator.alarms import look_after

            look_after(at.fleet, tmp_path)
        event = next(iter(at.client.watch(after=number)))
        assert event.alarm.reason == "certificate-ends"
        assert "renew-server" in event.alarm.message
        assert len([row for row in rows_of(at.fleet, Event) if row.kind.startswith("alarm-")]) == 1


# --- who is let in -----------------------------------------------------------------------------


def raw(at: Operated) -> grpc.Channel:
    return at.client._channel


def listing(client: OperatorClient) -> list[operator_pb2.Run]:
    return list(client.runs())


def impatient(access: Access) -> OperatorClient:
    return OperatorClient(access, pause=lambda _: None)


def test_an_operator_who_was_dismissed_is_out_with_the_next_call(at: Operated) -> None:
    hers = at.folder / "hers"
    add_operator(at.folder, "alice", hers, at.clock())
    with OperatorClient(access_of(at.folder, hers)) as client:
        assert listing(client) == []
        endless = client.watch()
        ended = []

        def follow() -> None:
            try:
                next(endless)
            except ContractError as error:
                ended.append(error.reason)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        until(at.service.watching)
        enroll.dismiss_operator(at.folder, "alice")
        assert refusal(listing, client) == "certificate-revoked"
        thread.join(60)
        assert ended == ["certificate-revoked"]
    at.clock.by_ms += 366 * DAY
    assert refusal(listing, at.client) == "certificate-expired"


def test_devices_and_operators_have_nothing_of_each_other(tmp_path: Path) -> None:
    with coordinator(tmp_path / "c") as other, operated(tmp_path / "o") as at:
        device = other.enrol("d9")
        theirs = tmp_path / "theirs"
        theirs.mkdir(mode=0o700)
        # A device of this very fleet, as TLS sees it: the fleet's authority, not the operators'.
        authority = enroll.load_authority(at.folder)
        key = device.who.key
        issued = enroll.issue_device(
            authority, key.public_key(), "d9", now_unix_ms=at.clock(), lifetime_ms=DAY
        )
        from sordino.core.trust import private_pem, public_pem

        write_credentials(theirs, private_pem(key) + public_pem(issued), at.folder)
        with (
            impatient(access_of(at.folder, theirs)) as client,
            pytest.raises(TrustError, match="can't call"),
        ):
            listing(client)
        # And an operator at the devices' door.
        credentials = at.folder / "operator"
        access = Access(address=other.service.fleet_address, credentials=credentials)
        write_credentials(credentials, None, other.folder)
        with impatient(access) as client, pytest.raises(TrustError, match="can't call"):
            listing(client)
        assert channel_credentials(device.who)


def write_credentials(folder: Path, pem: bytes | None, fleet: Path) -> None:
    if pem is not None:
        (folder / "operator.pem").write_bytes(pem)
        (folder / "operator.pem").chmod(0o600)
    (folder / "fleet.pem").write_bytes((fleet / "ca.pem").read_bytes())


def test_no_call_without_tls(at: Operated) -> None:
    with grpc.insecure_channel(at.service.address) as channel:
        stub = channel.unary_unary(f"/{SERVICE}/ListRuns")
        with pytest.raises(grpc.RpcError) as caught:
            stub(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


REFUSED = [
    ("ListRuns", b"\x7a\x00", "unknown-field"),
    ("GetRun", b"", "missing-field"),
    ("GetRun", b"\x0a\x05ab", "truncated"),
    ("StartRun", b"\x0a" + b"\x01a" * 200_000, "too-long"),
    ("PauseRun", b"\x0a\x01a\x0a\x01b", "field-twice"),
    ("AddRounds", b"\x0a\x01a\x12\x01b", "missing-field"),
    ("ChangeCohort", b"\x0a\x01a\x12\x01b\x18\xff\xff\xff\x7f", "bad-number"),
    ("Watch", b"\x10\x80\x00", "bad-number"),
    ("Export", b"\x0a\x05run-1\x10\x05\x22\x01a", "wrong-length"),
]


def test_what_the_gate_refuses(at: Operated) -> None:
    before = len(rows_of(at.fleet, Event))
    for method, data, reason in REFUSED:
        call = raw(at).unary_stream(f"/{SERVICE}/{method}")(data, timeout=30)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        trailers = dict(caught.value.trailing_metadata() or ())
        assert contract.decode_failure(trailers[contract.TRAILER]).reason == reason, method
        assert caught.value.code().name == contract.REASONS[reason].code
    assert len(rows_of(at.fleet, Event)) == before


def test_a_fault_of_the_coordinator_tells_nothing(at: Operated) -> None:
    at.start()
    run = get(at.fleet, Run, RUN)
    (at.folder / "artefacts" / run.plan[:2] / run.plan).unlink()
    with pytest.raises(ContractError) as caught:
        impatient(access_of(at.folder, at.folder / "operator")).run(RUN)
    assert caught.value.reason == "internal"
    assert run.plan not in str(caught.value)


def test_credentials_that_cannot_be_read(at: Operated, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="sordino ca operator"):
        OperatorClient(Access(address="127.0.0.1:1", credentials=tmp_path / "none"))
    pem = at.folder / "operator" / "operator.pem"
    pem.chmod(0o644)
    with pytest.raises(TrustError, match="0644"):
        OperatorClient(access_of(at.folder, at.folder / "operator"))
    with pytest.raises(TrustError, match="no coordinator serves"):
        access_of(tmp_path / "none", at.folder / "operator")
