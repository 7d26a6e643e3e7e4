"""Every grid passes the same suite: `LocalGrid` in this process and over workers, `FleetGrid`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from support.farms import UNIT, Farm, FleetFarm, LocalFarm, counted, hold
from support.federation import (
    LORA,
    filled,
    initial,
    make_looks,
    make_metric,
    make_strategy,
    open_plan,
)

from sordino.core import adapters
from sordino.core import app as flower
from sordino.core.errors import ConfigError, RoundFailedError
from sordino.privacy.ledger import read_charges
from sordino.server.aggregate import UpdateSum, apply_mean


@pytest.fixture(scope="module", params=["in-process", "workers", "fleet"])
def farm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("farm")
    if request.param == "fleet":
        made: Farm = FleetFarm(folder)
    else:
        made = LocalFarm(folder, workers=2 if request.param == "workers" else 0)
    with made:
        yield made


beside_each_other = pytest.mark.parametrize("farm", ["workers", "fleet"], indirect=True)


def test_each_client_is_counted_once(farm: Farm) -> None:
    strategy = make_strategy()
    adapter = hold(farm, strategy, [{"value": UNIT * 2**i} for i in range(6)])
    assert counted(adapter, 6) == set(range(6))
    report = strategy.last_report
    assert report is not None
    assert (report.sent, report.received, report.dropped) == (6, 6, ())
    assert report.bytes_up > 6 * sum(t.nbytes for t in filled(1.0).values())


def test_the_adapter_is_the_same_bit_for_bit_on_every_grid(farm: Farm) -> None:
    values = [0.1, -0.7 / 3, 1e-5]
    made = farm.rounds(lambda: make_strategy(open_plan()), [{"value": v} for v in values])
    wanted = initial()
    for number in (1, 2, 3):
        strategy = make_strategy(open_plan())
        bound = strategy.norm_bound(number)
        total = UpdateSum(strategy.trained(number), bound=bound, cohort=len(values))
        for value in reversed(values):
            total.add(filled(value, number))
        wanted = apply_mean(wanted, total.mean())
        assert all(made[number][name].tobytes() == wanted[name].tobytes() for name in wanted)


BAD = {  # what a client does: why it is dropped in a simulation, and on a fleet
    "nan": ("not-finite", "not-finite"),
    "inf": ("not-finite", "not-finite"),
    "shape": ("wrong-shape", "wrong-shape"),
    "transposed": ("wrong-shape", "wrong-shape"),
    "dtype": ("wrong-dtype", "unknown-value"),
    "extra": ("extra-tensor", "extra-tensor"),
    "missing": ("missing-tensor", "missing-tensor"),
    "norm": ("over-norm", "over-norm"),
    "stale": ("wrong-round", "wrong-round"),
    "other-plan": ("wrong-plan", "wrong-plan"),
    "extra-record": ("malformed", "unknown-field"),
    "lying-shape": ("malformed", "wrong-size"),
    "raise": ("client-error", "client-refused"),
}


def test_a_bad_reply_is_dropped_and_the_round_goes_on(farm: Farm) -> None:
    honest: list[dict[str, object]] = [{"value": UNIT * 2**i} for i in range(3)]
    bad: list[dict[str, object]] = [{"value": UNIT * 2**3, "behaviour": word} for word in BAD]
    strategy = make_strategy(min_updates=3)
    with farm.open(strategy, honest[:1] + bad + honest[1:]) as (grid, ids):
        messages = strategy.open_round(1, initial(), ids)
        adapter, report = strategy.close_round(grid.send_and_receive(messages, timeout=60.0))
    assert counted(adapter, 4) == {0, 1, 2}
    reasons = {drop.node_id: drop.reason for drop in report.dropped}
    words = [word[isinstance(farm, FleetFarm)] for word in BAD.values()]
    assert reasons == dict(zip(ids[1:], words, strict=False))
    assert "hunter2" not in repr(report)


def test_a_client_that_refuses_says_why(farm: Farm, tmp_path: Path) -> None:
    careful = {"client": "c", "state": str(tmp_path)}  # its owner allows no plan without privacy
    strategy = make_strategy(open_plan())
    hold(farm, strategy, [{"value": 0.1}, careful])
    assert strategy.last_report is not None
    (dropped,) = strategy.last_report.dropped
    assert dropped.reason == "client-refused"
    assert "plan-refused" in dropped.detail


def test_below_the_minimum_the_round_fails(farm: Farm) -> None:
    nodes: list[dict[str, object]] = [{"value": 0.5, "behaviour": "nan"}, {"value": 0.5}]
    with pytest.raises(RoundFailedError, match=r"at least 2 valid updates, got 1 of 2.*not-finite"):
        hold(farm, make_strategy(min_updates=2), nodes)


def test_rounds_resume(farm: Farm) -> None:
    nodes: list[dict[str, object]] = [{"value": 2.0**-10}, {"value": 2.0**-9}]
    whole = farm.rounds(make_strategy, nodes)
    resumed = farm.rounds(make_strategy, nodes, interrupted=True)
    assert sorted(whole) == sorted(resumed) == [0, 1, 2, 3]
    for number, adapter in whole.items():
        assert all(np.array_equal(adapter[n], resumed[number][n]) for n in adapter)


@beside_each_other
def test_a_late_client_is_left_behind(farm: Farm) -> None:
    nodes: list[dict[str, object]] = [{"value": UNIT * 2**i} for i in range(3)]
    late = {**nodes[1], "behaviour": "sleep", "seconds": 6.0}
    strategy = make_strategy(timeout_s=4.0)
    assert counted(hold(farm, strategy, [nodes[0], late, nodes[2]]), 3) == {0, 2}
    assert strategy.last_report is not None
    assert strategy.last_report.reasons == {"no-reply": 1}
    # What comes too late is counted in no later round.
    assert counted(hold(farm, make_strategy(), [nodes[0], nodes[2]]), 3) == {0, 2}


def test_expired_work_is_not_begun(farm: Farm) -> None:
    strategy = make_strategy(timeout_s=0.001)
    with farm.open(strategy, [{"value": 1.0}]) as (grid, ids):
        messages = strategy.open_round(1, initial(), ids)
        time.sleep(0.05)
        replies = list(grid.send_and_receive(messages, timeout=60.0))
    assert [r.error.code for r in replies] == [flower.ERROR_EXPIRED]


def test_push_and_pull(farm: Farm) -> None:
    strategy = make_strategy()
    with farm.open(strategy, [{"value": 0.1}, {"value": 0.2}]) as (grid, nodes):
        messages = strategy.open_round(1, initial(), nodes)
        ids = list(grid.push_messages(messages))
        assert len(set(ids)) == 2
        replies = {}
        deadline = time.monotonic() + 60
        while len(replies) < 2 and time.monotonic() < deadline:
            for reply in grid.pull_messages(ids):
                replies[reply.metadata.reply_to_message_id] = reply
            time.sleep(0.01)
        assert set(replies) == set(ids)
        assert {r.metadata.src_node_id for r in replies.values()} == set(nodes)
        assert not list(grid.pull_messages(ids))


def test_it_knows_its_nodes_and_its_run(farm: Farm) -> None:
    with farm.open(make_strategy(), [{"value": 0.5}, {"value": 0.5}]) as (grid, ids):
        known = list(grid.get_node_ids())
        assert known == sorted(set(known))
        assert set(ids) <= set(known)
        run = flower.empty_run(7)
        before = grid.run
        grid.set_run(run)
        assert grid.run is run
        grid.set_run(before)


def test_a_message_to_nobody_is_refused(farm: Farm) -> None:
    with (
        farm.open(make_strategy(), [{"value": 0.5}]) as (grid, _),
        pytest.raises(ConfigError, match="dst_node_id"),
    ):
        grid.push_messages([grid.create_message(RecordDict(), "train", 99, "1")])


def test_a_retry_resends_the_same_bytes(farm: Farm, tmp_path: Path) -> None:
    strategy = make_strategy()
    nodes: list[dict[str, object]] = [{"client": f"c{i}", "state": str(tmp_path)} for i in range(2)]
    answers = []
    with farm.open(strategy, nodes) as (grid, ids):
        for _ in range(2):
            messages = strategy.open_round(1, initial(), ids)
            replies = list(grid.send_and_receive(messages))
            replies.sort(key=lambda reply: reply.metadata.src_node_id)
            answers.append([_raw(reply) for reply in replies])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]
    for i in range(2):
        assert len(read_charges(tmp_path / f"c{i}" / "ledger.db")[f"c{i}"]) == 1


def test_the_real_app_through_all_rounds(farm: Farm, tmp_path: Path) -> None:
    nodes: list[dict[str, object]] = [{"client": f"c{i}", "state": str(tmp_path)} for i in range(3)]
    made = farm.rounds(lambda: make_strategy(min_updates=3), nodes)
    assert sorted(made) == [0, 1, 2, 3]
    for name, tensor in made[3].items():
        same = np.array_equal(tensor, initial()[name])
        assert same == adapters.is_lora_a(name)  # ffa: A stays, B moves
    assert LORA.aggregation == "ffa"
    for i in range(3):
        charges = read_charges(tmp_path / f"c{i}" / "ledger.db")[f"c{i}"]
        assert [charge.round for charge in charges] == [1, 2, 3]


def test_a_run_takes_the_looks_that_it_pays_for(farm: Farm, tmp_path: Path) -> None:
    nodes: list[dict[str, object]] = [{"client": f"c{i}", "state": str(tmp_path)} for i in range(2)]
    metric = make_metric(rounds=1)
    made = farm.rounds(lambda: make_strategy(looks=make_looks(metric, every=2)), nodes)
    assert (sorted(made), farm.looks) == ([0, 1, 2, 3], [(1, 2)])
    for i in range(2):
        charges = read_charges(tmp_path / f"c{i}" / "ledger.db")[f"c{i}"]
        paid = [charge.run_id for charge in charges]
        assert paid == ["run-1", "run-1", "run-1:loss", "run-1"]


def _raw(reply) -> list[object]:  # type: ignore[no-untyped-def]
    fields = sorted(reply.content[flower.FIELDS].items())
    arrays = sorted((n, a.data) for n, a in reply.content[flower.TENSORS].items())
    return [fields, arrays]
