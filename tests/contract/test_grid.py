"""Every way to run a `LocalGrid` passes the same suite."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.serverapp import Grid
from support import federation
from support.federation import LORA, MANIFEST, SCRIPTED, filled, initial, make_strategy

from sordino.core import adapters
from sordino.core import app as flower
from sordino.core.errors import ConfigError, RoundFailedError, SordinoError
from sordino.privacy.ledger import read_ledger
from sordino.server.strategy import SordinoStrategy, run_rounds
from sordino.sim.grid import LocalGrid

MakeGrid = Callable[..., LocalGrid]


@pytest.fixture(params=[0, 2], ids=["in-process", "workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def make_grid(workers: int) -> Iterator[MakeGrid]:
    grids: list[LocalGrid] = []

    def make(nodes: list[dict[str, object]], app: str = SCRIPTED) -> LocalGrid:
        grids.append(LocalGrid(nodes, app=app, workers=workers))  # type: ignore[arg-type]
        return grids[-1]

    yield make
    for grid in reversed(grids):
        grid.close()


def one_round(grid: Grid, strategy: SordinoStrategy) -> dict[str, np.ndarray]:
    messages = strategy.open_round(1, initial(), sorted(grid.get_node_ids()))
    timeout = strategy.federation.round_timeout_s
    adapter, _ = strategy.close_round(grid.send_and_receive(messages, timeout=timeout))
    return adapter


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


def test_each_client_is_counted_once(make_grid: MakeGrid) -> None:
    unit = 2.0**-12
    grid = make_grid([{"value": unit * 2**i} for i in range(6)])
    strategy = make_strategy()
    adapter = one_round(grid, strategy)
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


def test_a_bad_reply_is_dropped_and_the_round_goes_on(make_grid: MakeGrid) -> None:
    unit = 2.0**-14
    honest: list[dict[str, object]] = [{"value": unit * 2**i} for i in range(3)]
    bad: list[dict[str, object]] = [{"value": unit * 2**3, "behaviour": word} for word in BAD]
    strategy = make_strategy(min_updates=3)
    adapter = one_round(make_grid(honest[:1] + bad + honest[1:]), strategy)
    assert counted(adapter, 4, unit) == {0, 1, 2}
    report = strategy.last_report
    assert report is not None
    reasons = {drop.node_id: drop.reason for drop in report.dropped}
    assert reasons == {3 + i: reason for i, reason in enumerate(BAD.values())}
    assert "hunter2" not in repr(report)


def test_below_the_minimum_the_round_fails_and_nothing_changes(make_grid: MakeGrid) -> None:
    grid = make_grid([{"value": 0.5, "behaviour": "nan"}, {"value": 0.5}])
    strategy = make_strategy(min_updates=2)
    before = initial()
    seen: list[int] = []
    with pytest.raises(RoundFailedError, match=r"at least 2 valid updates, got 1 of 2.*not-finite"):
        run_rounds(grid, strategy, before, on_round=lambda number, *_: seen.append(number))
    assert not seen
    assert all(np.array_equal(before[n], initial()[n]) for n in before)


def test_rounds_resume(make_grid: MakeGrid) -> None:
    grid = make_grid([{"value": 2.0**-10}, {"value": 2.0**-9}])
    states = {}
    whole = run_rounds(
        grid, make_strategy(), initial(), on_round=lambda n, a, _: states.__setitem__(n, a)
    )
    assert sorted(states) == [1, 2, 3]
    resumed = run_rounds(grid, make_strategy(), states[1], start_round=2)
    assert all(np.array_equal(whole[n], resumed[n]) for n in whole)


def test_a_late_client_is_left_behind() -> None:
    nodes = [
        {"value": 2.0**-10},
        {"value": 2.0**-9, "behaviour": "sleep", "seconds": 60.0},
        {"value": 2.0**-8},
    ]
    with LocalGrid(nodes, app=SCRIPTED, workers=2) as grid:
        strategy = make_strategy(timeout_s=6.0)
        started = time.monotonic()
        one_round(grid, strategy)
        assert strategy.last_report is not None
        assert strategy.last_report.reasons == {"no-reply": 1}
    assert time.monotonic() - started < 20.0


def test_expired_work_is_not_begun(make_grid: MakeGrid) -> None:
    grid = make_grid([{"value": 1.0}])
    strategy = make_strategy(timeout_s=0.001)
    messages = strategy.open_round(1, initial(), grid.get_node_ids())
    time.sleep(0.05)
    replies = list(grid.send_and_receive(messages, timeout=60.0))
    assert [r.error.code for r in replies] == [flower.ERROR_EXPIRED]


def test_push_and_pull(make_grid: MakeGrid) -> None:
    grid = make_grid([{"value": 1.0}, {"value": 2.0}])
    messages = make_strategy().open_round(1, initial(), grid.get_node_ids())
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


def test_a_message_to_nobody_is_refused(make_grid: MakeGrid) -> None:
    grid = make_grid([{"value": 1.0}])
    with pytest.raises(ConfigError, match="dst_node_id"):
        grid.push_messages([grid.create_message(RecordDict(), "train", 99, "1")])


def test_map_keeps_the_order(make_grid: MakeGrid) -> None:
    grid = make_grid([{"value": 1.0}])
    done: list[int] = []
    jobs = [str(i).encode() for i in range(7)]
    assert grid.map("support.jobs:double", jobs, on_done=done.append) == [j + j for j in jobs]
    assert sorted(done) == list(range(7))


def test_map_reports_what_failed(make_grid: MakeGrid) -> None:
    grid = make_grid([{"value": 1.0}])
    with pytest.raises(SordinoError, match=r"support.jobs:refuse, job [01]: ValueError: no"):
        grid.map("support.jobs:refuse", [b"1", b"2"])
    assert grid.map("support.jobs:double", [b"3"]) == [b"33"]
    with pytest.raises(SordinoError, match="importable"):
        grid.map("support.jobs:absent", [b"1"])


def test_a_retry_resends_the_same_bytes(make_grid: MakeGrid, tmp_path: Path) -> None:
    nodes = [{"client": f"c{i}", "state": str(tmp_path)} for i in range(2)]
    grid = make_grid(nodes, app=federation.TRAINING)
    strategy = make_strategy()
    answers = []
    for _ in range(2):
        messages = strategy.open_round(1, initial(), grid.get_node_ids())
        replies = sorted(grid.send_and_receive(messages), key=lambda r: r.metadata.src_node_id)
        answers.append([_raw(reply) for reply in replies])
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]
    for i in range(2):
        assert len(read_ledger(tmp_path / f"c{i}" / "ledger.jsonl")[f"c{i}"]) == 1


def test_the_real_app_through_all_rounds(make_grid: MakeGrid, tmp_path: Path) -> None:
    nodes = [{"client": f"c{i}", "state": str(tmp_path)} for i in range(3)]
    grid = make_grid(nodes, app=federation.TRAINING)
    reports = []
    adapter = run_rounds(
        grid, make_strategy(min_updates=3), initial(), on_round=lambda *r: reports.append(r[2])
    )
    assert [r.received for r in reports] == [3, 3, 3]
    for name, tensor in adapter.items():
        same = np.array_equal(tensor, initial()[name])
        assert same == adapters.is_lora_a(name)  # ffa: A stays, B moves
    assert LORA.aggregation == "ffa"


def test_a_worker_killed_in_its_task(tmp_path: Path) -> None:
    unit = 2.0**-12
    nodes: list[dict[str, object]] = [{"value": unit * 2**i} for i in range(5)]
    nodes[2] |= {"behaviour": "die-once", "marker": str(tmp_path / "died")}
    with LocalGrid(nodes, app=SCRIPTED, workers=2) as grid:  # type: ignore[arg-type]
        strategy = make_strategy()
        adapter = one_round(grid, strategy)
        assert counted(adapter, 5, unit) == {0, 1, 3, 4}
        assert strategy.last_report is not None
        assert strategy.last_report.reasons == {"client-died": 1}
        assert len(set(grid.worker_process_ids)) == 2
        adapter = one_round(grid, strategy)  # the new worker does the work
        assert counted(adapter, 5, unit) == set(range(5))


def test_an_idle_worker_killed_is_replaced() -> None:
    with LocalGrid([{"value": 0.5}], app=SCRIPTED, workers=2) as grid:
        grid.map("support.jobs:double", [b"1", b"2"])
        before = grid.worker_process_ids
        os.kill(before[0], signal.SIGKILL)
        assert grid.map("support.jobs:double", [b"1", b"2", b"3"]) == [b"11", b"22", b"33"]
        assert before[1] in grid.worker_process_ids
        assert before[0] not in grid.worker_process_ids


def test_an_app_that_cannot_be_had_is_an_error(make_grid: MakeGrid) -> None:
    with pytest.raises(SordinoError, match=r"no\.such\.module"):
        make_grid([{"value": 0.5}], app="no.such.module:app").map("support.jobs:double", [b"1"])


def test_closing_leaves_no_process_behind() -> None:
    with LocalGrid([{"value": 0.5}], app=SCRIPTED, workers=2) as grid:
        grid.map("support.jobs:double", [b"1"])
        ids = grid.worker_process_ids
    for pid in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_ignore_ctrl_c() -> None:
    with LocalGrid([{"value": 0.5}], app=SCRIPTED, workers=1) as grid:
        grid.map("support.jobs:double", [b"1"])
        (pid,) = grid.worker_process_ids
        os.kill(pid, signal.SIGINT)
        assert grid.map("support.jobs:double", [b"2"]) == [b"22"]
        assert grid.worker_process_ids == [pid]


def test_workers_get_their_environment() -> None:
    names = b"OMP_NUM_THREADS MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get("OMP_NUM_THREADS")
    with LocalGrid([{"value": 0.5}], app=SCRIPTED, workers=1, threads=2) as grid:
        assert grid.map("support.jobs:environment", [names]) == [b"2 1048576"]
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_a_trivial_task_costs_little() -> None:
    nodes = [{"value": 2.0**-12} for _ in range(200)]
    with LocalGrid(nodes, app=SCRIPTED) as grid:
        strategy = make_strategy()
        one_round(grid, strategy)
        best = min(_timed(lambda: one_round(grid, strategy)) for _ in range(3))
    assert best / 200 < 0.01  # measured: see the docs; a slow machine gets 10 ms


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _raw(reply) -> list[object]:  # type: ignore[no-untyped-def]
    fields = sorted(reply.content[flower.FIELDS].items())
    arrays = sorted((n, a.data) for n, a in reply.content[flower.TENSORS].items())
    return [fields, arrays]
