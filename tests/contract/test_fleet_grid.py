"""What `FleetGrid` has beside the suite of every grid: rounds that outlive it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Message
from support.farms import FleetFarm
from support.federation import initial, make_looks, make_metric, make_plan, make_strategy
from support.fleets import RUN, get, rows_of

from sordino.core import app as flower
from sordino.core.errors import PlanError, RoundGivenUpError, StoreError
from sordino.server import fleet_rounds as fr
from sordino.server.grid import FleetGrid, node_id
from sordino.server.store import ArtefactRow, Round, Task

NODES: list[dict[str, object]] = [{"value": 0.1}, {"value": 0.2}, {"value": 0.3}]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[FleetGrid, list[int]]]:
    with FleetFarm(tmp_path).open(make_strategy(), NODES) as made:
        yield made


def messages(ids: list[int], **changes: object) -> list[Message]:
    return list(make_strategy(make_plan(**changes)).open_round(1, initial(), ids))


def test_a_new_grid_finds_the_round_that_was_opened(opened: tuple[FleetGrid, list[int]]) -> None:
    grid, ids = opened
    first = list(grid.push_messages(messages(ids)))
    again = FleetGrid(grid.coordinator, RUN)
    assert list(again.push_messages(messages(ids))) == first
    rows = {node_id(t.device_id): t.task_id for t in rows_of(grid.coordinator.fleet, Task)}
    assert [rows[number] for number in ids] == first
    replies = {m.metadata.reply_to_message_id for m in again.send_and_receive(messages(ids))}
    assert replies == set(first)


def test_what_differs_from_the_opened_round_is_refused(
    opened: tuple[FleetGrid, list[int]],
) -> None:
    grid, ids = opened
    grid.push_messages(messages(ids))
    before = rows_of(grid.coordinator.fleet, Task)
    with pytest.raises(PlanError, match="cohort"):
        grid.push_messages(messages(ids[:2]))
    with pytest.raises(PlanError, match="plan"):
        grid.push_messages(messages(ids, noise_multiplier=2.0))
    assert len(rows_of(grid.coordinator.fleet, Task)) == len(before) == 3


def test_what_is_not_this_runs_is_refused(opened: tuple[FleetGrid, list[int]]) -> None:
    grid, ids = opened
    with pytest.raises(PlanError, match="run_id"):
        grid.push_messages(messages(ids, run_id="another"))
    with pytest.raises(PlanError, match="round"):
        grid.push_messages(make_strategy().open_round(2, initial(), ids))
    with pytest.raises(PlanError, match="one content"):
        grid.push_messages([*messages(ids[:1]), *messages(ids[1:])])
    looks = make_looks(make_metric(rounds=3))  # which this run doesn't buy
    with pytest.raises(PlanError, match="run_id"):
        grid.push_messages(looks.open(1, initial(), ids))
    message = messages(ids[:1])[0]
    with pytest.raises(PlanError, match="message_type"):
        grid.push_messages([grid.create_message(message.content, "query", ids[0], "1")])
    assert rows_of(grid.coordinator.fleet, Task) == []


def test_a_paused_run_opens_nothing(opened: tuple[FleetGrid, list[int]]) -> None:
    grid, ids = opened
    fr.plan_round(grid.coordinator.fleet, RUN)
    fr.pause_run(grid.coordinator.fleet, "pause", RUN)
    with pytest.raises(RoundGivenUpError, match="planned"):
        grid.send_and_receive(messages(ids))
    assert get(grid.coordinator.fleet, Round, RUN, 1).state == "planned"


def test_a_coordinator_that_stops_leaves_the_round_open(tmp_path: Path) -> None:
    late: list[dict[str, object]] = [{"value": 0.1, "behaviour": "sleep", "seconds": 0.5}]
    with FleetFarm(tmp_path).open(make_strategy(), late) as (grid, ids):
        replies = grid.send_and_receive(messages(ids))
        grid.coordinator.stop()
        with pytest.raises(RoundGivenUpError, match="coordinator stops"):
            next(replies)
        assert get(grid.coordinator.fleet, Round, RUN, 1).state in fr.COLLECTING


def test_replies_are_made_of_the_accepted_files_alone(
    opened: tuple[FleetGrid, list[int]],
) -> None:
    grid, ids = opened
    fleet = grid.coordinator.fleet
    assert len(list(grid.send_and_receive(messages(ids)))) == 3
    victim = next(row for row in rows_of(fleet, ArtefactRow) if row.kind == "update")
    (tmp := fleet.artefacts._path(victim.sha256)).write_bytes(b"bit rot")
    with pytest.raises(StoreError, match=victim.sha256):
        list(grid.send_and_receive(messages(ids)))
    assert tmp.exists()
    assert get(fleet, Round, RUN, 1).state == "closing"


def test_node_ids_are_stable_and_flowers() -> None:
    assert node_id("d0") == node_id("d0")
    assert len({node_id(f"d{i}") for i in range(1000)}) == 1000
    assert all(1 < node_id(f"d{i}") < 2**63 for i in range(1000))
    assert flower.ERROR_REJECTED != flower.ERROR_REFUSED
