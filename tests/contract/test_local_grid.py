"""What `LocalGrid` has beside the suite of every grid: workers, and calls on them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from support.farms import UNIT, LocalFarm, counted, hold
from support.federation import SCRIPTED, initial, make_strategy

from sordino.core import app as flower
from sordino.core.errors import SordinoError
from sordino.server.rounds import MemoryRounds, run_rounds
from sordino.sim.grid import LocalGrid


@pytest.fixture(scope="module", params=[0, 2], ids=["in-process", "workers"])
def farm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalFarm]:
    with LocalFarm(tmp_path_factory.mktemp("farm"), request.param) as farm:
        yield farm


only_workers = pytest.mark.parametrize("farm", [2], indirect=True, ids=["workers"])


def test_a_trace_decides_who_is_there_and_whose_answer_is_lost(farm: LocalFarm) -> None:
    fates = {2: "offline", 3: "lost"}
    strategy = make_strategy()
    nodes: list[dict[str, object]] = [{"value": UNIT * 2**i} for i in range(4)]
    with farm.grid.fleet(lambda message: fates.get(message.metadata.dst_node_id, "")):  # type: ignore[return-value]
        adapter = hold(farm, strategy, nodes)
    assert counted(adapter, 4) == {2, 3}
    assert strategy.last_report is not None
    assert strategy.last_report.reasons == {"no-reply": 2}
    assert counted(hold(farm, make_strategy(), nodes), 4) == {0, 1, 2, 3}


def test_map_keeps_the_order(farm: LocalFarm) -> None:
    grid = farm.grid
    done: list[int] = []
    jobs = [str(i).encode() for i in range(7)]
    assert grid.map("support.jobs:double", jobs, on_done=done.append) == [j + j for j in jobs]
    assert sorted(done) == list(range(7))


def test_map_reports_what_failed(farm: LocalFarm) -> None:
    grid = farm.grid
    with pytest.raises(SordinoError, match=r"support.jobs:refuse, job [01]: ValueError: no"):
        grid.map("support.jobs:refuse", [b"1", b"2"])
    assert grid.map("support.jobs:double", [b"3"]) == [b"33"]
    with pytest.raises(SordinoError, match="importable"):
        grid.map("support.jobs:absent", [b"1"])


@only_workers
def test_a_worker_killed_in_its_task(farm: LocalFarm, tmp_path: Path) -> None:
    nodes: list[dict[str, object]] = [{"value": UNIT * 2**i} for i in range(5)]
    nodes[2] |= {"behaviour": "die-once", "marker": str(tmp_path / "died")}
    strategy = make_strategy()
    adapter = hold(farm, strategy, nodes)
    assert counted(adapter, 5) == {0, 1, 3, 4}
    assert strategy.last_report is not None
    assert strategy.last_report.reasons == {"client-died": 1}
    assert len(set(farm.grid.worker_process_ids)) == 2
    adapter = hold(farm, strategy, nodes)  # its replacement does the work
    assert counted(adapter, 5) == set(range(5))


@only_workers
def test_an_idle_worker_killed_is_replaced(farm: LocalFarm) -> None:
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
def test_workers_keep_flower_quiet(farm: LocalFarm) -> None:
    assert farm.grid.map("support.jobs:flower_level", [b""]) == [b"WARNING"]


def test_an_app_that_makes_no_message() -> None:
    silent = ClientApp()
    silent.train()(lambda message, context: None)  # type: ignore[arg-type, return-value]
    with LocalGrid([{}], app=silent) as grid:
        messages = make_strategy().open_round(1, initial(), grid.get_node_ids())
        (reply,) = grid.send_and_receive(messages)
        assert reply.error.code == flower.ERROR_APP


@only_workers
def test_workers_ignore_ctrl_c(farm: LocalFarm) -> None:
    farm.grid.map("support.jobs:double", [b"1"] * 16)  # one that replaces a dead one is up, too
    before = farm.grid.worker_process_ids
    for pid in before:
        os.kill(pid, signal.SIGINT)
    assert farm.grid.map("support.jobs:double", [b"2"]) == [b"22"]
    assert farm.grid.worker_process_ids == before


@only_workers
def test_workers_get_their_environment(farm: LocalFarm) -> None:
    names = b"OMP_NUM_THREADS TOKENIZERS_PARALLELISM"
    assert farm.grid.map("support.jobs:environment", [names]) == [b"1 false"]


def test_a_trivial_task_costs_little() -> None:
    nodes = [{"value": 2.0**-12} for _ in range(200)]
    with LocalGrid(nodes, app=SCRIPTED) as grid:
        strategy = make_strategy()
        best = min(
            _timed(lambda: run_rounds(grid, MemoryRounds(strategy, initial(), start_round=3)))
            for _ in range(4)
        )
    assert best / 200 < 0.01  # measured: see the docs; a slow machine gets 10 ms


def _timed(call: Callable[[], object]) -> float:
    started = time.process_time()  # other work on the machine is none of the grid's
    call()
    return time.process_time() - started
