"""Every way to run a `LocalGrid` passes the same suite."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.clientapp import ClientApp
from support.federation import LORA, MANIFEST, SCRIPTED, filled, initial, make_strategy

from sordino.core import adapters
from sordino.core import app as flower
from sordino.core.errors import ConfigError, RoundFailedError, SordinoError
from sordino.privacy.ledger import read_charges
from sordino.server.rounds import run_rounds
from sordino.server.strategy import SordinoStrategy
from sordino.sim.grid import LocalGrid

MOST_NODES = 16


class Farm:
    """One grid for many tests: each writes what its nodes are to do."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.scripts = [folder / f"{i}.json" for i in range(MOST_NODES)]
        nodes = [{"script": str(path)} for path in self.scripts]
        self.grid = LocalGrid(nodes, app=SCRIPTED, workers=workers)

    def script(self, nodes: list[dict[str, object]]) -> list[int]:
        """Tell the first nodes what to do; returns their ids."""
        for path, node in zip(self.scripts, nodes, strict=False):
            path.write_text(json.dumps(node))
        return list(self.grid.get_node_ids())[: len(nodes)]

    def round(
        self, strategy: SordinoStrategy, nodes: list[dict[str, object]]
    ) -> dict[str, np.ndarray]:
        messages = strategy.open_round(1, initial(), self.script(nodes))
        timeout = strategy.federation.round_timeout_s
        adapter, _ = strategy.close_round(self.grid.send_and_receive(messages, timeout=timeout))
        return adapter


@pytest.fixture(scope="module", params=[0, 2], ids=["in-process", "workers"])
def farm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Farm]:
    farm = Farm(tmp_path_factory.mktemp("farm"), request.param)
    with farm.grid:
        yield farm


only_workers = pytest.mark.parametrize("farm", [2], indirect=True, ids=["workers"])


def counted(adapter: dict[str, np.ndarray], clients: int, unit: float) -> set[int]:
    """Which clients' powers of two are in the mean; fails on a client that is there twice."""
    name = next(n for n in MANIFEST.names if not adapters.is_lora_a(n))
    total = float(adapter[name].flat[0])
    count = 1
    while count <= clients:
        bits = round(total * count / unit)
        if bits.bit_count() == count and abs(total * count / unit - bits) < 1e-3:
            return {i for i in range(clients) if bits >> i & 1}
        count += 1
    raise AssertionError(f"{total} is no mean of distinct powers of two")


def test_each_client_is_counted_once(farm: Farm) -> None:
    unit = 2.0**-12
    strategy = make_strategy()
    adapter = farm.round(strategy, [{"value": unit * 2**i} for i in range(6)])
    assert counted(adapter, 6, unit) == set(range(6))
    report = strategy.last_report
    assert report is not None
    assert (report.sent, report.received, report.dropped) == (6, 6, ())
    assert report.bytes_up > 6 * sum(t.nbytes for t in filled(1.0).values())


BAD = {
    "nan": "not-finite",
    "inf": "not-finite",
    "shape": "wrong-shape",
    "transposed": "wrong-shape",
    "dtype": "wrong-dtype",
    "extra": "extra-tensor",
    "missing": "missing-tensor",
    "norm": "over-norm",
    "stale": "wrong-round",
    "other-plan": "wrong-plan",
    "extra-record": "malformed",
    "lying-shape": "malformed",
    "raise": "client-error",
}


def test_a_bad_reply_is_dropped_and_the_round_goes_on(farm: Farm) -> None:
    unit = 2.0**-14
    honest: list[dict[str, object]] = [{"value": unit * 2**i} for i in range(3)]
    bad: list[dict[str, object]] = [{"value": unit * 2**3, "behaviour": word} for word in BAD]
    strategy = make_strategy(min_updates=3)
    adapter = farm.round(strategy, honest[:1] + bad + honest[1:])
    assert counted(adapter, 4, unit) == {0, 1, 2}
    report = strategy.last_report
    assert report is not None
    reasons = {drop.node_id: drop.reason for drop in report.dropped}
    assert reasons == {3 + i: reason for i, reason in enumerate(BAD.values())}
    assert "hunter2" not in repr(report)


def test_below_the_minimum_the_round_fails_and_nothing_changes(farm: Farm) -> None:
    nodes = farm.script([{"value": 0.5, "behaviour": "nan"}, {"value": 0.5}])
    strategy = make_strategy(min_updates=2)
    before = initial()
    seen: list[int] = []
    with pytest.raises(RoundFailedError, match=r"at least 2 valid updates, got 1 of 2.*not-finite"):
        run_rounds(
            farm.grid,
            strategy,
            before,
            node_ids=nodes,
            on_round=lambda number, *_: seen.append(number),
        )
    assert not seen
    assert all(np.array_equal(before[n], initial()[n]) for n in before)


def test_rounds_resume(farm: Farm) -> None:
    nodes = farm.script([{"value": 2.0**-10}, {"value": 2.0**-9}])
    states = {}
    whole = run_rounds(
        farm.grid,
        make_strategy(),
        initial(),
        node_ids=nodes,
        on_round=lambda n, a, _: states.__setitem__(n, a),
    )
    assert sorted(states) == [1, 2, 3]
    resumed = run_rounds(farm.grid, make_strategy(), states[1], node_ids=nodes, start_round=2)
    assert all(np.array_equal(whole[n], resumed[n]) for n in whole)


@only_workers
def test_a_late_client_is_left_behind(farm: Farm) -> None:
    unit = 2.0**-12
    nodes: list[dict[str, object]] = [{"value": unit * 2**i} for i in range(3)]
    late = {**nodes[1], "behaviour": "sleep", "seconds": 8.0}
    strategy = make_strategy(timeout_s=4.0)
    adapter = farm.round(strategy, [nodes[0], late, nodes[2]])
    assert counted(adapter, 3, unit) == {0, 2}
    assert strategy.last_report is not None
    assert strategy.last_report.reasons == {"no-reply": 1}
    # What comes too late is counted in no later round.
    assert counted(farm.round(make_strategy(), [nodes[0], nodes[2]]), 3, unit) == {0, 2}


def test_expired_work_is_not_begun(farm: Farm) -> None:
    strategy = make_strategy(timeout_s=0.001)
    messages = strategy.open_round(1, initial(), farm.script([{"value": 1.0}]))
    time.sleep(0.05)
    replies = list(farm.grid.send_and_receive(messages, timeout=60.0))
    assert [r.error.code for r in replies] == [flower.ERROR_EXPIRED]


def test_push_and_pull(farm: Farm) -> None:
    grid = farm.grid
    nodes = farm.script([{"value": 1.0}, {"value": 2.0}])
    messages = make_strategy().open_round(1, initial(), nodes)
    ids = list(grid.push_messages(messages))
    assert len(set(ids)) == 2
    replies = {}
    deadline = time.monotonic() + 60
    while len(replies) < 2 and time.monotonic() < deadline:
        for reply in grid.pull_messages(ids):
            replies[reply.metadata.reply_to_message_id] = reply
        time.sleep(0.01)
    assert set(replies) == set(ids)
    assert {r.metadata.src_node_id for r in replies.values()} == {2, 3}
    assert not list(grid.pull_messages(ids))


def test_a_message_to_nobody_is_refused(farm: Farm) -> None:
    grid = farm.grid
    with pytest.raises(ConfigError, match="dst_node_id"):
        grid.push_messages([grid.create_message(RecordDict(), "train", 99, "1")])


def test_map_keeps_the_order(farm: Farm) -> None:
    grid = farm.grid
    done: list[int] = []
    jobs = [str(i).encode() for i in range(7)]
    assert grid.map("support.jobs:double", jobs, on_done=done.append) == [j + j for j in jobs]
    assert sorted(done) == list(range(7))


def test_map_reports_what_failed(farm: Farm) -> None:
    grid = farm.grid
    with pytest.raises(SordinoError, match=r"support.jobs:refuse, job [01]: ValueError: no"):
        grid.map("support.jobs:refuse", [b"1", b"2"])
    assert grid.map("support.jobs:double", [b"3"]) == [b"33"]
    with pytest.raises(SordinoError, match="importable"):
        grid.map("support.jobs:absent", [b"1"])


def test_a_retry_resends_the_same_bytes(farm: Farm, tmp_path: Path) -> None:
    nodes = farm.script([{"client": f"c{i}", "state": str(tmp_path)} for i in range(2)])
    strategy = make_strategy()
    answers = []
    for _ in range(2):
        messages = strategy.open_round(1, initial(), nodes)
        replies = list(farm.grid.send_and_receive(messages))
        replies.sort(key=lambda reply: reply.metadata.src_node_id)
        answers.append([_raw(reply) for reply in replies])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]
    for i in range(2):
        assert len(read_charges(tmp_path / f"c{i}" / "ledger.db")[f"c{i}"]) == 1


def test_the_real_app_through_all_rounds(farm: Farm, tmp_path: Path) -> None:
    nodes = farm.script([{"client": f"c{i}", "state": str(tmp_path)} for i in range(3)])
    reports = []
    adapter = run_rounds(
        farm.grid,
        make_strategy(min_updates=3),
        initial(),
        node_ids=nodes,
        on_round=lambda *r: reports.append(r[2]),
    )
    assert [r.received for r in reports] == [3, 3, 3]
    for name, tensor in adapter.items():
        same = np.array_equal(tensor, initial()[name])
        assert same == adapters.is_lora_a(name)  # ffa: A stays, B moves
    assert LORA.aggregation == "ffa"


@only_workers
def test_a_worker_killed_in_its_task(farm: Farm, tmp_path: Path) -> None:
    unit = 2.0**-12
    nodes: list[dict[str, object]] = [{"value": unit * 2**i} for i in range(5)]
    nodes[2] |= {"behaviour": "die-once", "marker": str(tmp_path / "died")}
    strategy = make_strategy()
    adapter = farm.round(strategy, nodes)
    assert counted(adapter, 5, unit) == {0, 1, 3, 4}
    assert strategy.last_report is not None
    assert strategy.last_report.reasons == {"client-died": 1}
    assert len(set(farm.grid.worker_process_ids)) == 2
    adapter = farm.round(strategy, nodes)  # its replacement does the work
    assert counted(adapter, 5, unit) == set(range(5))


@only_workers
def test_an_idle_worker_killed_is_replaced(farm: Farm) -> None:
    before = farm.grid.worker_process_ids
    os.kill(before[0], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while before[0] in farm.grid.worker_process_ids and time.monotonic() < deadline:
        assert farm.grid.map("support.jobs:double", [b"1", b"2", b"3"]) == [b"11", b"22", b"33"]
    assert before[1] in farm.grid.worker_process_ids
    assert before[0] not in farm.grid.worker_process_ids


@pytest.mark.parametrize("workers", [0, 1])
def test_an_app_that_cannot_be_had_is_an_error(workers: int) -> None:
    with (
        pytest.raises(SordinoError, match=r"no\.such\.module"),
        LocalGrid([{"value": 0.5}], app="no.such.module:app", workers=workers),
    ):
        pytest.fail("the grid opened")


def test_closing_leaves_no_process_behind() -> None:
    with LocalGrid([{"value": 0.5}], app=SCRIPTED, workers=2) as grid:
        ids = grid.worker_process_ids
        list(grid.push_messages(make_strategy().open_round(1, initial(), grid.get_node_ids())))
    for pid in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@only_workers
def test_workers_keep_flower_quiet(farm: Farm) -> None:
    assert farm.grid.map("support.jobs:flower_level", [b""]) == [b"WARNING"]


def test_an_app_that_makes_no_message() -> None:
    silent = ClientApp()
    silent.train()(lambda message, context: None)  # type: ignore[arg-type, return-value]
    with LocalGrid([{}], app=silent) as grid:
        messages = make_strategy().open_round(1, initial(), grid.get_node_ids())
        (reply,) = grid.send_and_receive(messages)
        assert reply.error.code == flower.ERROR_APP


@only_workers
def test_workers_ignore_ctrl_c(farm: Farm) -> None:
    before = farm.grid.worker_process_ids
    for pid in before:
        os.kill(pid, signal.SIGINT)
    assert farm.grid.map("support.jobs:double", [b"2"]) == [b"22"]
    assert farm.grid.worker_process_ids == before


@only_workers
def test_workers_get_their_environment(farm: Farm) -> None:
    names = b"OMP_NUM_THREADS TOKENIZERS_PARALLELISM"
    assert farm.grid.map("support.jobs:environment", [names]) == [b"1 false"]


def test_a_trivial_task_costs_little() -> None:
    nodes = [{"value": 2.0**-12} for _ in range(200)]
    with LocalGrid(nodes, app=SCRIPTED) as grid:
        strategy = make_strategy()
        best = min(
            _timed(lambda: run_rounds(grid, strategy, initial(), start_round=3)) for _ in range(4)
        )
    assert best / 200 < 0.01  # measured: see the docs; a slow machine gets 10 ms


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _raw(reply) -> list[object]:  # type: ignore[no-untyped-def]
    fields = sorted(reply.content[flower.FIELDS].items())
    arrays = sorted((n, a.data) for n, a in reply.content[flower.TENSORS].items())
    return [fields, arrays]
