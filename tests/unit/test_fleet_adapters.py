"""Runs of a fleet through the one round loop: the strategy's result, one release a charge."""

import json
import secrets
import threading
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from support import fleets
from support.central import Still, make_central
from support.federation import (
    LORA,
    MANIFEST,
    TRAIN,
    filled,
    initial,
    make_metric,
    make_plan,
    make_strategy,
    make_task,
    update_for,
)
from support.fleets import RUN, get, refusal, rows_of

from sordino.core import app as flower
from sordino.core.config import (
    ExperimentConfig,
    FederationConfig,
    MetricsConfig,
    PrivacyConfig,
)
from sordino.core.contract import (
    Artefact,
    SignedHead,
    decode_adapter,
    encode_measurement,
    encode_update,
)
from sordino.core.errors import UpdateRejectedError
from sordino.core.records import Measurement, Receipt, Update
from sordino.core.settings import to_toml
from sordino.core.wire import encode_update as encode_for_flower
from sordino.privacy.ledger.keys import LedgerKey
from sordino.privacy.plan import decode_plan
from sordino.server import fleet_rounds as fr
from sordino.server.bell import Bell
from sordino.server.fleet_run import DurableRounds, drive
from sordino.server.grid import Coordinator, FleetGrid
from sordino.server.release import Releases
from sordino.server.store import Accepted, Artefacts, Event, Head, Round, Run, Task
from sordino.server.strategy import RoundReport

KEY = LedgerKey.generate()
PLAN = make_plan()


def head(entry="12"):
    receipt = Receipt(ledger_head=entry * 32, entry_index=4)
    signature = KEY.sign(receipt.ledger_head)
    return SignedHead(receipt=receipt, public_key=KEY.public, signature=signature)


def update(number, plan, tensors, signed=None):
    signed = signed or head()
    made = Update(
        run_id=plan.run_id,
        round=number,
        plan_sha256=plan.sha256,
        tensors=tensors,
        receipt=signed.receipt,
    )
    return encode_update(made, signed)


def start(made, folder, plan, metrics=None, **changes):
    central = plan.trust == "central"
    experiment = ExperimentConfig(
        metrics=metrics or MetricsConfig(),
        lora=LORA,
        train=TRAIN,
        privacy=PrivacyConfig(trust=plan.trust),
        federation=FederationConfig(population=4 if central else 0),
    )
    return fleets.start(
        made,
        folder,
        settings=to_toml(experiment),
        trust=plan.trust,
        plan=plan.canonical(),
        manifest=MANIFEST.canonical(),
        rounds=plan.rounds,
        **changes,
    )


def tensors_after(made, sha256):
    data = made.artefacts.read(sha256)
    return {**initial(), **decode_adapter(data, Artefact.of(data))}


class CrashError(BaseException):
    pass


# --- whatever the trust --------------------------------------------------------------------------

VALUES = {"d0": 0.01, "d1": 0.3 / 7, "d2": -0.02}


def uneven(value, number):
    tensors = filled(value, number)
    for tensor in tensors.values():
        tensor[0, 0] *= np.pi
    return tensors


def by_the_strategy(plan):
    """Each round's adapter, from replies that come in another order each time."""
    strategy, adapter = make_strategy(plan), initial()
    for number in (1, 2):
        replies, order = [], sorted(VALUES, reverse=number == 2)
        for place, message in enumerate(strategy.open_round(number, adapter, [1, 2, 3])):
            flower.set_message_id(message, f"m{number}{place}")
            update = update_for(make_task(number, plan), uneven(VALUES[order[place]], number))
            records = flower.to_records(encode_for_flower(update))
            replies.append(type(message)(records, reply_to=message))
        adapter, _ = strategy.close_round(replies)
        yield adapter


def test_the_adapter_is_the_strategys_bit_for_bit(tmp_path):
    plan, bell = make_plan(rounds=2), Bell()

    def answer(task):
        return update(task.round, plan, uneven(VALUES[task.device_id], task.round))

    with (
        fleets.fleet(tmp_path, devices=3, at=bell.hook()) as made,
        fleets.answering(made, bell, answer),
        fleets.driving(made, bell, tmp_path),
    ):
        start(made, tmp_path, plan)
        fleets.until(bell, lambda: get(made, Run, RUN).state == "done")
        for number, expected in enumerate(by_the_strategy(plan), 1):
            after = tensors_after(made, get(made, Round, RUN, number).adapter_after)
            assert all(after[name].tobytes() == expected[name].tobytes() for name in expected)
        assert {row.entry_index for row in rows_of(made, Accepted)} == {4}
        assert len(rows_of(made, Head)) == 3


@pytest.fixture
def opened(tmp_path):
    """A fleet whose first round asks `d0`."""
    bell = Bell()
    with fleets.fleet(tmp_path, devices=1, at=bell.hook()) as made:
        start(made, tmp_path, PLAN)
        with fleets.driving(made, bell, tmp_path):
            fleets.until(bell, lambda: fr.task_for(made, "d0"))
        yield made


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (update(1, PLAN, filled(0.01)) + b"\xe0\x03\x01", "unknown-field"),
        (update(2, PLAN, filled(0.01)), "wrong-round"),
        (update(1, make_plan(noise_multiplier=9.0), filled(0.01)), "wrong-plan"),
        (update(1, PLAN, filled(np.nan)), "not-finite"),
        (update(1, PLAN, filled(1e9)), "over-norm"),
        (update(1, PLAN, dict(list(filled(0.01).items())[1:])), "missing-tensor"),
        (update(1, PLAN, filled(0.01), replace(head(), signature="ab" * 64)), "wrong-receipt"),
    ],
)
def test_what_the_round_does_not_allow_is_refused(opened, data, word):
    given = fleets.take(opened, "d0")
    assert refusal(fleets.send, opened, fr.AdapterWork(opened), given, data) == word
    assert rows_of(opened, Accepted) == []


def test_a_task_travels_as_the_strategy_made_it(opened):
    task = fr.task_for(opened, "d0")
    order = fr.order_of(opened, task)
    wanted = make_task(1, PLAN)
    assert order.client_task({}) == replace(wanted, base_sha256=get(opened, Run, RUN).base)
    assert (order.task_id, order.deadline_unix_ms) == (task.task_id, task.deadline_ms)
    assert 0 < order.expires_in_ms <= fleets.TIMEOUT_MS


def test_updates_of_nothing_leave_an_adapter_all_the_same(tmp_path):
    bell = Bell()
    with (
        fleets.fleet(tmp_path, devices=1, at=bell.hook()) as made,
        fleets.answering(made, bell, lambda task: update(task.round, PLAN, filled(0.0))),
        fleets.driving(made, bell, tmp_path),
    ):
        start(made, tmp_path, PLAN)
        fleets.until(bell, lambda: get(made, Run, RUN).state == "done")
        after = tensors_after(made, get(made, Run, RUN).adapter)
        assert all((after[name] == tensor).all() for name, tensor in initial().items())


def test_what_an_operator_says_takes_effect_between_two_rounds(tmp_path):
    """More rounds under another plan, a pause, another cohort, a rollback: in one life."""
    plans = [make_plan(rounds=rounds, noise_multiplier=1.0 + rounds) for rounds in (2, 3, 5)]
    bell, gate = Bell(), threading.Event()

    def answer(task):
        plan = decode_plan(made.artefacts.read(get(made, Round, RUN, task.round).plan))
        assert task.round < 4 or gate.wait(60)
        return update(task.round, plan, filled(0.01 * task.round, task.round))

    def done():
        return fleets.until(bell, lambda: (run := get(made, Run, RUN)).state == "done" and run)

    with (
        fleets.fleet(tmp_path, devices=4, at=bell.hook()) as made,
        fleets.answering(made, bell, answer),
        fleets.driving(made, bell, tmp_path),
    ):
        start(made, tmp_path, plans[0])
        assert done().rounds_done == 2
        fr.add_rounds(made, "3", RUN, 1, lambda _: plans[1].canonical())
        assert done().rounds_done == 3
        fr.add_rounds(made, "5", RUN, 2, lambda _: plans[2].canonical())
        fleets.until(bell, lambda: rows_of(made, Task, round=4))
        fr.pause_run(made, "pause", RUN)
        gate.set()
        fleets.until(bell, lambda: get(made, Run, RUN).rounds_done == 4)
        fr.change_cohort(made, "cohort", RUN, 1, 0, 1)
        fr.roll_back(made, "back", RUN, 1)
        assert get(made, Round, RUN, 5) is None
        fr.resume_run(made, "resume", RUN)
        assert done().rounds_done == 5
        rounds = {row.round: row for row in rows_of(made, Round, run_id=RUN)}
        under = [rounds[number].plan for number in range(1, 6)]
        assert under == [plans[k].sha256 for k in (0, 0, 1, 2, 2)]
        assert [rounds[number].asked for number in range(1, 6)] == [3, 3, 3, 3, 1]
        assert rounds[5].adapter_before == rounds[1].adapter_after
        assert rounds[4].adapter_before == rounds[3].adapter_after
        assert len(rows_of(made, Event, kind="round-published")) == 5


def test_a_round_waits_for_enough_devices_that_are_connected(tmp_path):
    bell, online, looks = Bell(), {"d0"}, []

    def connected():
        looks.append(len(online))
        return set(online)

    with (
        fleets.fleet(tmp_path, devices=4, at=bell.hook()) as made,
        fleets.driving(made, bell, tmp_path, online=connected),
    ):
        start(made, tmp_path, PLAN, cohort=4, min_updates=2)
        fleets.until(bell, lambda: 1 in looks)
        assert get(made, Round, RUN, 1).state == "planned"
        online.add("d3")
        bell.ring()
        fleets.until(bell, lambda: get(made, Round, RUN, 1).state == "open")
        assert sorted(task.device_id for task in rows_of(made, Task)) == ["d0", "d3"]


def test_what_a_round_made_that_counts_no_more_is_forgotten(tmp_path):
    bell = Bell()
    with (
        fleets.fleet(tmp_path, devices=1, at=bell.hook()) as made,
        flower.task_identity(run_id=1, node_id=1),
    ):
        start(made, tmp_path, PLAN)
        coordinator = Coordinator(fleet=made, bell=bell, work=fr.AdapterWork(made))
        rounds = DurableRounds(coordinator=coordinator, run_id=RUN, releases=fleets.no_releases)
        turn = rounds.next()
        grid = FleetGrid(coordinator, RUN)
        grid.push_messages(turn.strategy.open_round(1, turn.adapter, turn.node_ids))
        task = fr.task_for(made, "d0")
        fr.decline(made, "d0", task.task_id, "unavailable")
        assert fr.close_round(made, coordinator.work, RUN, 1).state == "failed"
        nothing = RoundReport(
            round=1, sent=1, received=1, dropped=(), bytes_down=0, bytes_up=0, wall_s=0.0
        )
        assert not rounds.keep(turn, {**turn.adapter, **filled(0.5)}, nothing)
        after = rounds.next()
        assert (after.number, after.drawn, after.made) == (2, False, None)
        assert all((after.adapter[name] == tensor).all() for name, tensor in initial().items())


def test_two_runs_go_on_beside_each_other(tmp_path):
    names, bell = (RUN, "run-2"), Bell()
    plans = {name: make_plan(run_id=name, rounds=2) for name in names}

    def answer(task):
        value = 0.01 if task.run_id == RUN else 0.02
        return update(task.round, plans[task.run_id], filled(value, task.round))

    with (
        fleets.fleet(tmp_path, devices=3, at=bell.hook()) as made,
        fleets.answering(made, bell, answer),
        fleets.driving(made, bell, tmp_path),
    ):
        for name in names:
            start(made, tmp_path, plans[name], run_id=name, request_id=name)
        fleets.until(bell, lambda: all(get(made, Run, name).state == "done" for name in names))
        for name, value in zip(names, (0.02, 0.04), strict=True):
            after = tensors_after(made, get(made, Run, name).adapter)
            trained = filled(0.0)
            assert all(np.allclose(after[each], value) for each in trained)


def test_a_stop_ends_the_round_and_its_driver(tmp_path):
    bell = Bell()
    with fleets.fleet(tmp_path, devices=3, at=bell.hook()) as made:
        start(made, tmp_path, PLAN)
        with fleets.driving(made, bell, tmp_path):
            fleets.until(bell, lambda: rows_of(made, Task))
            assert fr.stop_run(made, "stop", RUN).state == "stopped"
            threads = [t for t in threading.enumerate() if t.name == f"run {RUN}"]
            fleets.until(bell, lambda: not any(thread.is_alive() for thread in threads))
        assert get(made, Round, RUN, 1).state == "given-up"


def test_a_driver_that_failed_takes_the_run_up_again(tmp_path, monkeypatch):
    """The disk was full just when the adapter was to be kept."""
    bell, put, full = Bell(), Artefacts.put, [OSError(28, "No space left on device")]

    def refusing(artefacts, data):
        if full and rows_of(made, Round, run_id=RUN, state="closing"):
            raise full.pop()
        return put(artefacts, data)

    monkeypatch.setattr(Artefacts, "put", refusing)
    plan = make_plan(rounds=1)
    with (
        fleets.fleet(tmp_path, devices=3, at=bell.hook()) as made,
        fleets.answering(made, bell, lambda task: update(task.round, plan, filled(0.01))),
        fleets.driving(made, bell, tmp_path),
    ):
        start(made, tmp_path, plan)
        fleets.until(bell, lambda: get(made, Run, RUN).state == "done")
        assert full == []
        assert get(made, Round, RUN, 1).state == "published"
        (alarm,) = rows_of(made, Event, kind="alarm-run-waits")
        assert "OSError" in alarm.detail


# --- paid looks ----------------------------------------------------------------------------------

METRIC = make_metric(rounds=1)
STEPS = ["aggregate-round:durable", "publish-look:written", "publish-look:durable"]


def measured(task):
    signed = head()
    made = Measurement(
        run_id=task.run_id,
        round=task.round,
        plan_sha256=METRIC.sha256,
        value=3.5 if task.device_id == "d0" else 4.5,
        receipt=signed.receipt,
    )
    return encode_measurement(made, signed)


@pytest.mark.parametrize("step", STEPS)
def test_a_look_is_taken_once_whatever_crashes(tmp_path, step):
    plan, crashes, asked = make_plan(rounds=1), [step], []

    def at(reached):
        if crashes and reached == crashes[0]:
            crashes.pop()
            raise CrashError(reached)

    def answer(task):
        asked.append((task.run_id, task.device_id))
        return measured(task) if task.run_id == METRIC.run_id else update(1, plan, filled(0.01))

    for life in range(2):
        bell = Bell()
        with (
            suppress(CrashError),
            fleets.fleet(tmp_path, devices=2, at=bell.hook(at)) as made,
            fleets.answering(made, bell, answer),
            flower.task_identity(run_id=1, node_id=1),
        ):
            if not life:
                metrics = MetricsConfig(metric="loss")
                start(made, tmp_path, plan, metrics=metrics, metric=METRIC.canonical())
            coordinator = Coordinator(fleet=made, bell=bell, work=fr.AdapterWork(made))
            drive(coordinator, RUN, fleets.no_releases)
            (told,) = rows_of(made, Event, kind="metric-measured")
            assert json.loads(told.detail)["value"] == "4.0"
            assert (told.run_id, told.round) == (RUN, 1)
            states = [(row.run_id, row.state) for row in rows_of(made, Round)]
            assert states == [(RUN, "published"), (METRIC.run_id, "published")]
            assert get(made, Run, RUN).state == "done"
            assert sorted(asked) == sorted(
                (run_id, name) for run_id in (RUN, METRIC.run_id) for name in ("d0", "d1")
            )
            assert refusal(fr.pause_run, made, "x", METRIC.run_id) == "unknown-run"
    assert crashes == []


def test_a_look_that_nobody_answers_ends_nothing(tmp_path):
    plan, bell = make_plan(rounds=1), Bell()

    def answer(task):
        if task.run_id == RUN:
            return update(1, plan, filled(0.01))
        fr.decline(made, task.device_id, task.task_id, "policy-metric")
        return None

    with (
        fleets.fleet(tmp_path, devices=2, at=bell.hook()) as made,
        fleets.answering(made, bell, answer),
        fleets.driving(made, bell, tmp_path),
    ):
        metrics = MetricsConfig(metric="loss")
        start(made, tmp_path, plan, metrics=metrics, metric=METRIC.canonical())
        fleets.until(bell, lambda: get(made, Run, RUN).state == "done")
        assert get(made, Round, METRIC.run_id, 1).state == "failed"
        assert rows_of(made, Event, kind="metric-measured") == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"value": 1e9}, "out-of-range"),
        ({"round": 2}, "wrong-round"),
        ({"plan_sha256": "ab" * 32}, "wrong-plan"),
        ({"run_id": RUN}, "wrong-run"),
    ],
)
def test_a_measurement_that_is_not_the_looks_is_refused(tmp_path, change, word):
    receipt = head().receipt
    given = {"run_id": METRIC.run_id, "round": 1, "plan_sha256": METRIC.sha256, "value": 4.0}
    data = encode_measurement(Measurement(**{**given, **change}, receipt=receipt), head())
    with fleets.fleet(tmp_path) as made:
        start(made, tmp_path, PLAN, metric=METRIC.canonical())
        asked = Round(
            run_id=METRIC.run_id,
            round=1,
            plan=METRIC.sha256,
            settings=fr.write_settings(LORA, None),
            max_answer_bytes=4096,
        )
        with pytest.raises(UpdateRejectedError) as refused:
            fr.AdapterWork(made).check(asked, data)
        assert refused.value.reason == word


# --- central trust: charge, draw, keep, write down, in this order and once -----------------------


class Counted(Still):
    """Counts the draws of a round's noise, and draws something else each time."""

    def __init__(self, draws, number):
        self.draws, self.number = draws, number

    def rounded_gaussian(self, size, scale):
        self.draws.append(self.number)
        return np.full(size, secrets.randbelow(1000), np.int64)


BEFORE = ["reserve:written", "reserve:durable", "commit:written"]
LOST = ["commit:durable", "release:drawn"]
KEPT = ["release:kept", "released:written", "released:durable", "release:ready", "adapter:kept"]
KEPT += ["aggregate-round:written", "aggregate-round:durable", "publish-round:written"]


def first_round(made, bell, plan, folder, releasing):
    """Drive the run until its second round asks, from wherever a crash left it."""
    if get(made, Run, RUN) is None:
        start(made, folder, plan, cohort=4, min_updates=4)
    coordinator = Coordinator(fleet=made, bell=bell, work=fr.AdapterWork(made))

    def answer(task):
        if task.round == 2:
            coordinator.stop()
        elif task.device_id == "d3":  # it counts as zero
            fr.decline(made, "d3", task.task_id, "unavailable")
        else:
            return update(1, plan, filled(0.001))
        return None

    with fleets.answering(made, bell, answer), flower.task_identity(run_id=1, node_id=1):
        drive(coordinator, RUN, releasing)


@pytest.mark.parametrize("step", [*BEFORE, *LOST, *KEPT])
def test_a_crash_under_central_trust_never_draws_twice(tmp_path, step):
    plan, draws, crashes = make_central(), [], [step]
    folder = tmp_path / "central"

    def at(reached):
        if crashes and reached == crashes[0]:
            crashes.pop()
            raise CrashError(reached)

    def source(purpose, number):
        return Counted(draws, number)

    def releasing(of):
        return Releases(plan=of, folder=folder, source=source, at=at)

    for _ in range(2):  # the second time is after the crash
        bell = Bell()
        with (
            suppress(CrashError),
            fleets.fleet(tmp_path, devices=4, at=bell.hook(at)) as made,
        ):
            first_round(made, bell, plan, tmp_path, releasing)
            first, second = (get(made, Round, RUN, number) for number in (1, 2))
            after = first.adapter_after and tensors_after(made, first.adapter_after)
    assert crashes == []
    assert second.state in fr.COLLECTING  # the run goes on
    assert draws == ([] if step == "commit:durable" else [1])
    releases = releasing(plan)
    settled = releases.settle(1, initial())
    if step in LOST:
        assert (first.state, first.reason) == ("failed", "release-lost")
        assert (settled.state, after) == ("abandoned", "")
    else:
        assert (first.state, settled.state) == ("published", "released")
        assert all((after[name] == settled.adapter[name]).all() for name in after)
    assert releases.ledger.find(RUN, 1).state == settled.state


class Coins(Still):
    """Coins that fall as they are told, and then no more."""

    def __init__(self, falls):
        self.falls = falls

    def coins(self, size):
        falls = self.falls.pop(0)  # a second draw of a round's coins has nothing left
        return np.array([0 if fall == "1" else 2**64 - 1 for fall in falls], np.uint64)


def by_coins(made, bell, plan, folder, falls, *, rounds):
    """Drive a run whose coins fall so, until its open round is to be given up or it is over."""

    def releasing(of):
        return Releases(plan=of, folder=folder / "central", source=lambda *_: Coins(falls))

    coordinator = Coordinator(fleet=made, bell=bell, work=fr.AdapterWork(made))

    def answer(task):
        if task.round > rounds:
            coordinator.stop()
            return None
        return update(task.round, plan, filled(0.001, task.round))

    with fleets.answering(made, bell, answer), flower.task_identity(run_id=1, node_id=1):
        drive(coordinator, RUN, releasing)


def test_secret_coins_pick_the_cohort_once_over_restarts(tmp_path):
    plan = make_central(sampling="poisson", sampling_rate=0.5, population=8, cohort=4, rounds=1)
    bell, falls = Bell(), ["10110000"]
    for rounds in (0, 1):
        with fleets.fleet(tmp_path, devices=8, at=bell.hook()) as made:
            if not rounds:
                start(made, tmp_path, plan)
            by_coins(made, bell, plan, tmp_path, falls, rounds=rounds)
            asked = rows_of(made, Task, run_id=RUN)
            assert (len(asked), falls) == (3, [])
    assert {task.state for task in asked} == {"answered"}
    with fleets.fleet(tmp_path) as made:
        assert get(made, Run, RUN).state == "done"


def test_a_round_whose_coins_pick_nobody_is_held_and_released_all_the_same(tmp_path):
    plan = make_central(sampling="poisson", sampling_rate=0.5, population=8, cohort=4, rounds=2)
    bell = Bell()
    with fleets.fleet(tmp_path, devices=8, at=bell.hook()) as made:
        start(made, tmp_path, plan)
        by_coins(made, bell, plan, tmp_path, ["00000000", "11111111"], rounds=2)
        rounds = rows_of(made, Round, run_id=RUN)
        assert [(row.state, row.asked) for row in rounds] == [("published", 0), ("published", 8)]
    ledger = Releases(plan=plan, folder=tmp_path / "central").ledger
    assert [ledger.find(RUN, number).state for number in (1, 2)] == ["released"] * 2
