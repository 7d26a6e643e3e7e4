"""Grids for one suite of tests: `LocalGrid` in this process and over workers, and `FleetGrid`.

A farm's nodes do as a script says: `support.federation.scripted`, or the real ClientApp on a
session without a model. On a fleet they are devices that only speak the contract: each task goes
through its bytes, and so does each answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.app import Message, MessageType

from sordino.core import adapters, wire
from sordino.core import app as flower
from sordino.core.config import ExperimentConfig, MetricsConfig
from sordino.core.contract import (
    Artefact,
    SignedHead,
    decode_adapter,
    decode_task,
    encode_measurement,
    encode_task,
    encode_update,
)
from sordino.core.errors import ContractError, WireError
from sordino.core.records import Receipt, Tensors, TrainTask
from sordino.core.settings import to_toml
from sordino.privacy.ledger.keys import LedgerKey
from sordino.protos.v1 import work_pb2
from sordino.server import fleet_rounds as fr
from sordino.server.bell import Bell
from sordino.server.fleet_run import drive
from sordino.server.grid import Coordinator, FleetGrid, node_id
from sordino.server.rounds import MemoryRounds, run_rounds
from sordino.server.store import ArtefactRow, Event, Round, Run, Task
from sordino.server.strategy import RoundReport, SordinoStrategy
from sordino.sim.backends import Clients, NodeConfig
from sordino.sim.grid import LocalGrid
from support import fleets
from support.federation import BASE, MANIFEST, SCRIPTED, initial
from support.fleets import RUN, get, rows_of

MOST_NODES = 16
KEY = LedgerKey.generate()
Script = dict[str, object]


class InterruptError(Exception):
    """The test ends a run between two rounds."""


class LocalFarm:
    """One grid for many tests: each writes what its nodes are to do."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.scripts = [folder / f"{i}.json" for i in range(MOST_NODES)]
        nodes = [{"script": str(path)} for path in self.scripts]
        self.grid = LocalGrid(nodes, app=SCRIPTED, workers=workers)
        self.looks: list[tuple[int, int]] = []  # of the last run: which, and its answers

    def __enter__(self) -> LocalFarm:
        self.grid.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.grid.close()

    def script(self, nodes: Sequence[Script]) -> list[int]:
        """Tell the first nodes what to do; returns their ids."""
        for path, node in zip(self.scripts, nodes, strict=False):
            path.write_text(json.dumps(node))
        return list(self.grid.get_node_ids())[: len(nodes)]

    @contextmanager
    def open(
        self, strategy: SordinoStrategy, nodes: Sequence[Script]
    ) -> Iterator[tuple[LocalGrid, list[int]]]:
        """A grid on which a round of this strategy can be held, and the nodes' ids."""
        yield self.grid, self.script(nodes)

    def rounds(
        self,
        make_strategy: Callable[[], SordinoStrategy],
        nodes: Sequence[Script],
        *,
        interrupted: bool = False,
    ) -> dict[int, Tensors]:
        """The adapter after each round of a whole run, perhaps taken up again after the first."""
        made: dict[int, Tensors] = {0: initial()}
        ids = self.script(nodes)
        self.looks = []

        def keep(number: int, adapter: Tensors, report: RoundReport) -> None:
            assert report.received == len(nodes)
            made[number] = adapter
            looks = strategy.looks
            if looks is not None and (look := looks.after(number)) is not None:
                self.looks.append((look.look, look.received))
            if interrupted and number == 1:
                raise InterruptError

        for _ in range(2):
            start = max(made) + 1
            strategy = make_strategy()
            rounds = MemoryRounds(
                strategy, made[start - 1], node_ids=ids, start_round=start, on_round=keep
            )
            try:
                run_rounds(self.grid, rounds)
            except InterruptError:
                continue
        return made


class FleetFarm:
    """A coordinator for each test, whose devices run the ClientApp in threads of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fleets = folder, 0
        self.looks: list[tuple[int, int]] = []  # of the last run: which, and its answers

    def __enter__(self) -> FleetFarm:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @contextmanager
    def open(
        self, strategy: SordinoStrategy, nodes: Sequence[Script]
    ) -> Iterator[tuple[FleetGrid, list[int]]]:
        """A grid on which a round of this strategy can be held, and the nodes' ids."""
        with self._serving(strategy, nodes) as coordinator:
            ids = [node_id(f"d{i}") for i in range(len(nodes))]
            yield FleetGrid(coordinator, RUN), ids

    def rounds(
        self,
        make_strategy: Callable[[], SordinoStrategy],
        nodes: Sequence[Script],
        *,
        interrupted: bool = False,
    ) -> dict[int, Tensors]:
        """The adapter after each round of a whole run, perhaps taken up again after the first."""

        def at(step: str) -> None:
            if interrupted and step == "publish-round:durable":
                coordinator.stop()

        with self._serving(make_strategy(), nodes, at) as coordinator:
            drive(coordinator, RUN, _no_releases)
            if interrupted:
                assert get(coordinator.fleet, Run, RUN).rounds_done == 1
                coordinator.stopping.clear()
                interrupted = False
                drive(coordinator, RUN, _no_releases)
            made = {0: initial()}
            for row in rows_of(coordinator.fleet, Round, run_id=RUN):
                assert row.asked == len(nodes)
                data = coordinator.fleet.artefacts.read(row.adapter_after)
                made[row.round] = {**initial(), **decode_adapter(data, Artefact.of(data))}
            told = rows_of(coordinator.fleet, Event, kind="metric-measured")
            self.looks = [(row.round, json.loads(row.detail)["answers"]) for row in told]
        return made

    @contextmanager
    def _serving(
        self,
        strategy: SordinoStrategy,
        nodes: Sequence[Script],
        at: Callable[[str], None] = lambda step: None,
    ) -> Iterator[Coordinator]:
        self.fleets += 1
        folder = self.folder / str(self.fleets)
        bell = Bell()
        with (
            flower.task_identity(run_id=1, node_id=1),
            fleets.fleet(
                folder,
                devices=len(nodes),
                clock=lambda: time.time_ns() // 1_000_000,
                at=bell.hook(at),
            ) as made,
            _devices(made, bell, folder, nodes),
        ):
            _start(made, strategy, len(nodes))
            coordinator = Coordinator(fleet=made, bell=bell, work=fr.AdapterWork(made))
            yield coordinator
            coordinator.stop()


Farm = LocalFarm | FleetFarm
UNIT = 2.0**-14
"""What the first client's every parameter is; the next one's are twice as large."""


def hold(farm: Farm, strategy: SordinoStrategy, nodes: Sequence[Script]) -> Tensors:
    """The adapter after one round."""
    with farm.open(strategy, nodes) as (grid, ids):
        messages = strategy.open_round(1, initial(), ids)
        timeout = strategy.federation.round_timeout_s
        adapter, _ = strategy.close_round(grid.send_and_receive(messages, timeout=timeout))
    return adapter


def counted(adapter: Tensors, clients: int) -> set[int]:
    """Which clients' powers of two are in the mean; fails on a client that is there twice."""
    name = next(n for n in MANIFEST.names if not adapters.is_lora_a(n))
    total = float(adapter[name].flat[0]) / UNIT
    for count in range(1, clients + 1):
        bits = round(total * count)
        if bits.bit_count() == count and abs(total * count - bits) < 1e-3:
            return {i for i in range(clients) if bits >> i & 1}
    raise AssertionError(f"{total} is no mean of distinct powers of two")


def _start(made: fr.Fleet, strategy: SordinoStrategy, cohort: int) -> None:
    """Start the run that a strategy is of."""
    with made.store.write("test") as tx:  # the devices have it
        tx.add(ArtefactRow(sha256=BASE, size=1, kind="base", made_ms=1))
    looks = strategy.looks
    metrics = MetricsConfig()
    if looks is not None:
        metric = looks.plan.metric
        metrics = MetricsConfig(metric=metric, every=looks.every)  # type: ignore[arg-type]
    experiment = ExperimentConfig(lora=strategy.lora, train=strategy.train, metrics=metrics)
    new = fleets.new_run(
        BASE,
        settings=to_toml(experiment),
        trust=strategy.plan.trust,
        plan=strategy.plan.canonical(),
        manifest=MANIFEST.canonical(),
        rounds=strategy.plan.rounds,
        cohort=cohort,
        min_updates=strategy.federation.min_updates,
        metric=looks.plan.canonical() if looks else b"",
    )
    fr.start_run(made, "start", new)


def _no_releases(plan: object) -> None:
    raise AssertionError("these runs have no central plan")


# --- devices -------------------------------------------------------------------------------------


@contextmanager
def _devices(made: fr.Fleet, bell: Bell, folder: Path, nodes: Sequence[Script]) -> Iterator[None]:
    """Devices `d0`, `d1`, .. that do as their scripts say."""
    configs: dict[str, NodeConfig] = {}
    for i, node in enumerate(nodes):
        path = folder / f"d{i}.json"
        path.write_text(json.dumps(node))
        configs[f"d{i}"] = {"script": str(path)}
    clients = Clients(SCRIPTED, {}, 1)
    parts: list[Future[None]] = []
    with ThreadPoolExecutor(4) as pool:

        def hand_out(task: Task) -> None:
            node = nodes[int(task.device_id[1:])]
            config = configs[task.device_id]
            parts.append(pool.submit(_device, made, clients, task, node, config))

        with fleets.answering(made, bell, hand_out):
            yield
    for part in parts:
        part.result()


def _device(made: fr.Fleet, clients: Clients, task: Task, node: Script, config: NodeConfig) -> None:
    """A device's part in a round: its client's answer to the task, by the contract's bytes."""
    order = decode_task(encode_task(fr.order_of(made, task)))
    tensors: Tensors = {}
    if order.adapter is not None:
        data = made.artefacts.read(order.adapter.sha256)
        tensors = decode_adapter(data, order.adapter)
    asked = order.client_task(tensors)
    if isinstance(asked, TrainTask):
        kind, envelope = MessageType.TRAIN, wire.encode_task(asked)
    else:
        kind, envelope = MessageType.EVALUATE, wire.encode_metric_task(asked)
    content = flower.to_records(envelope)
    message = Message(content, node_id(task.device_id), kind, group_id=str(task.round))
    flower.set_message_id(message, task.task_id)
    reply = clients.answer(message, config)
    if reply.has_error():
        known = reply.error.code == flower.ERROR_REFUSED
        fr.decline(made, task.device_id, task.task_id, reply.error.reason if known else "internal")
        return
    data = _bytes_of(reply, str(node.get("behaviour")))
    with suppress(ContractError):  # it is told why, and goes on
        fleets.send(made, fr.AdapterWork(made), task, data)


def _bytes_of(reply: Message, behaviour: str) -> bytes:
    """The contract's bytes of a client's reply, or those of a device that lies."""
    try:
        envelope = flower.from_records(reply.content)
        if envelope.fields["kind"] == "measurement":
            measured = wire.decode_measurement(envelope)
            return encode_measurement(measured, _signed(measured.receipt))
        update = wire.decode_update(envelope)
        return encode_update(update, _signed(update.receipt) if update.receipt else None)
    except (WireError, ContractError):
        return _forged(behaviour)


def _signed(receipt: Receipt) -> SignedHead:
    signature = KEY.sign(receipt.ledger_head)
    return SignedHead(receipt=receipt, public_key=KEY.public, signature=signature)


def _forged(behaviour: str) -> bytes:
    """What no honest device can encode."""
    shape = (1 << 20, 1) if behaviour == "lying-shape" else (1,)
    tensor = work_pb2.Tensor(name="a", dtype=work_pb2.D_TYPE_FLOAT32, shape=shape, data=b"\0" * 4)
    update = work_pb2.Update(run_id=RUN, round=1, plan_sha256=b"\0" * 32, tensors=[tensor])
    if behaviour == "dtype":
        update.tensors[0].dtype = 2  # type: ignore[assignment]
    extra = b"\xe0\x03\x01" if behaviour == "extra-record" else b""
    return update.SerializeToString() + extra
