"""Rounds of central trust: devices and coordinator together, and what a crash leaves of one."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from support.central import SAMPLED, Still, central_strategy, make_central
from support.federation import (
    BASE,
    LORA,
    MANIFEST,
    TRAIN,
    TinySession,
    filled,
    initial,
    make_looks,
    make_plan,
    update_for,
)

from sordino.client.app import answer, make_app
from sordino.core import app as flower
from sordino.core.config import FederationConfig
from sordino.core.errors import LedgerError, PlanError
from sordino.core.wire import decode_update, encode_update
from sordino.privacy.ledger import Ledger, read_charges
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import (
    policy_limit,
)
from sordino.privacy.policy import Cap, Policy
from sordino.server import aggregate
from sordino.server.aggregate import PrivateSum
from sordino.server.release import Releases
from sordino.server.strategy import SordinoStrategy


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db", "coordinator")


def make_strategy(plan, ledger, source=None, **federation) -> SordinoStrategy:
    source = source or seeded_source(0)
    return central_strategy(plan, ledger.path.parent, lambda *_: source, **federation)


def ask(strategy, number, nodes):
    with flower.task_identity(run_id=1, node_id=1):
        messages = list(strategy.open_round(number, initial(), nodes))
        for index, message in enumerate(messages):
            flower.set_message_id(message, f"m{number}-{index}")
    return messages


def device(tmp_path: Path, name: str) -> TinySession:
    session = TinySession(name, tmp_path / name)
    policy = Policy(
        trust=("central",),
        max_sampling_rate=1.0,
        min_cohort=4,
        caps=(Cap(epsilon=50.0, delta=1e-6, unit="user"),),
    )
    session.policy, session.limit = policy, policy_limit(policy)
    return session


def test_a_round_from_end_to_end(tmp_path, ledger):
    plan = make_central()
    strategy = make_strategy(plan, ledger, Still())
    sessions = {node: device(tmp_path, f"user-{node}") for node in (2, 3, 4)}
    replies = []
    for message in ask(strategy, 1, [2, 3, 4, 5]):  # node 5 never answers
        node = message.metadata.dst_node_id
        if node in sessions:
            app = make_app(lambda _, node=node: sessions[node])
            with flower.task_identity(run_id=1, node_id=node):
                replies.append(app(message, Context(1, node, {}, RecordDict(), {})))
    updates = [decode_update(flower.from_records(r.content)).tensors for r in replies]
    for update in updates:
        assert aggregate.update_norm(update) <= plan.clip_norm
    adapter, report = strategy.close_round(replies)
    assert (report.received, report.reasons) == (3, {"no-reply": 1})
    for name in updates[0]:
        mean = sum(u[name].astype(np.float64) for u in updates) / plan.cohort
        assert adapter[name] - initial()[name] == pytest.approx(mean, abs=2e-3)
    (entry,) = read_charges(ledger.path)["coordinator"]
    assert dict(entry.event) == plan.releases.event_fields()
    (standing,) = ledger.standings
    assert standing.state == "released"
    (own,) = read_charges(tmp_path / "user-2" / "ledger.db")["user-2"]
    assert (own.unit, own.event["kind"]) == ("user", "user-gaussian")


def test_a_client_that_forges_is_dropped(ledger):
    plan = make_central()
    strategy = make_strategy(plan, ledger, Still())
    messages = ask(strategy, 1, [2])
    task = strategy.task(1, initial())
    update = update_for(task, filled(9.0))
    with flower.task_identity(run_id=1, node_id=2):
        reply = Message(flower.to_records(encode_update(update)), reply_to=messages[0])
    adapter, report = strategy.close_round([reply])
    assert report.reasons == {"over-norm": 1}
    assert all((adapter[name] == initial()[name]).all() for name in adapter)


def test_a_round_with_nobody_is_released_all_the_same(ledger):
    # Whether it fails would tell how many answered.
    strategy = make_strategy(make_central(), ledger, min_updates=3)
    ask(strategy, 1, [])
    adapter, _ = strategy.close_round([])
    assert any((adapter[name] != initial()[name]).any() for name in adapter)


def test_a_round_is_released_once(ledger):
    strategy = make_strategy(make_central(), ledger)
    ask(strategy, 1, [2])
    strategy.close_round([])
    ask(strategy, 1, [2])
    with pytest.raises(LedgerError, match="already charged"):
        strategy.close_round([])


# --- what a crash left -------------------------------------------------------------------------


class StoppedError(Exception):
    """What a test stops a release with."""


def stopped_at(step, plan, folder):
    """Releases that stop at a step of the first round, as Ctrl-C would."""

    def at(reached):
        if reached == step:
            raise StoppedError

    releases = Releases(plan=plan, folder=folder, source=fresh, at=at)
    with pytest.raises(StoppedError):
        releases.release(1, initial(), PrivateSum(MANIFEST, plan))


def fresh(purpose, number):
    return seeded_source(time.time_ns(), purpose)  # a second draw would show


def settled(folder, plan):
    return Releases(plan=plan, folder=folder, source=fresh).settle(1, initial())


@pytest.mark.parametrize("step", ["sum:collected", "reserve:durable"])
def test_what_was_not_charged_may_begin_again(tmp_path, step):
    plan = make_central()
    stopped_at(step, plan, tmp_path)
    assert settled(tmp_path, plan) is None
    Releases(plan=plan, folder=tmp_path).release(1, initial(), PrivateSum(MANIFEST, plan))
    assert settled(tmp_path, plan).state == "released"


@pytest.mark.parametrize("step", ["commit:durable", "release:drawn"])
def test_what_was_charged_and_not_kept_is_lost_and_stays_charged(tmp_path, step):
    plan = make_central()
    stopped_at(step, plan, tmp_path)
    for _ in range(2):
        found = settled(tmp_path, plan)
        assert found.state == "abandoned"
        assert all((found.adapter[name] == t).all() for name, t in initial().items())
    releases = Releases(plan=plan, folder=tmp_path)
    with pytest.raises(LedgerError, match="already charged"):
        releases.release(1, initial(), PrivateSum(MANIFEST, plan))
    (standing,) = releases.ledger.standings
    assert standing.state == "abandoned"


@pytest.mark.parametrize("step", ["release:kept", "released:durable", "release:ready"])
def test_what_was_kept_is_given_again_bit_for_bit(tmp_path, step):
    plan = make_central()
    stopped_at(step, plan, tmp_path)
    first, second = settled(tmp_path, plan), settled(tmp_path, plan)
    assert first.state == second.state == "released"
    moved = [n for n in MANIFEST.names if (first.adapter[n] != initial()[n]).any()]
    assert moved
    assert all((first.adapter[n] == second.adapter[n]).all() for n in MANIFEST.names)


def test_a_round_of_another_plan_or_a_damaged_release_stops_the_run(tmp_path):
    plan = make_central()
    stopped_at("release:ready", plan, tmp_path)
    with pytest.raises(LedgerError, match="another plan"):
        settled(tmp_path, make_central(clip_norm=2.0))
    (path,) = tmp_path.rglob("*.update")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(LedgerError, match="damaged"):
        settled(tmp_path, plan)


def test_coins_and_noise_come_from_streams_of_their_own(tmp_path):
    asked = []
    plan = make_central()

    def source(*names):
        asked.append(names)
        return seeded_source(0, *map(str, names))

    releases = Releases(plan=plan, folder=tmp_path, source=source)
    assert releases.ask(2, [5, 6, 7]) == [5, 6, 7]
    releases.release(2, initial(), PrivateSum(MANIFEST, plan))
    assert asked == [("coins", 2), ("noise", 2)]


def test_only_those_whom_the_coins_picked_are_asked(ledger):
    plan = make_central(**SAMPLED)
    strategy = make_strategy(plan, ledger)
    asked = [m.metadata.dst_node_id for m in ask(strategy, 1, range(2, 5002))]
    assert 50 < len(asked) < 150
    again = [m.metadata.dst_node_id for m in ask(strategy, 2, range(2, 5002))]
    assert asked != again


bare_strategy = partial(
    SordinoStrategy,
    manifest=MANIFEST,
    base_sha256=BASE,
    lora=LORA,
    train=TRAIN,
    federation=FederationConfig(),
)


def test_a_central_plan_needs_its_own_releases(tmp_path):
    plan = make_central()
    with pytest.raises(PlanError, match="releases"):
        bare_strategy(plan=plan)
    releases = Releases(plan=plan, folder=tmp_path)
    for other in (make_plan(), make_central(clip_norm=2.0)):
        with pytest.raises(PlanError, match="releases"):
            bare_strategy(plan=other, releases=releases)


def test_a_central_run_buys_no_metric(tmp_path):
    plan = make_central()
    releases = Releases(plan=plan, folder=tmp_path)
    with pytest.raises(PlanError, match="looks None with a central plan, got 'loss'"):
        bare_strategy(plan=plan, releases=releases, looks=make_looks())


def test_the_device_refuses_a_plan_that_it_has_no_cap_for(tmp_path):
    session = device(tmp_path, "user")
    bare = Policy(trust=("central",), min_cohort=4, max_sampling_rate=1.0)
    session.policy, session.limit = bare, policy_limit(bare)
    ledger = Ledger(tmp_path / "c" / "ledger.db", "coordinator")
    task = make_strategy(make_central(), ledger).task(1, initial())
    from sordino.core.errors import PolicyRefusedError

    with pytest.raises(PolicyRefusedError, match="no cap for life"):
        answer(session, task)
    assert session.trained == 0
