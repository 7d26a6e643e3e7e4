"""A real coordinator in a process of its own, for bench/fleet.py: TLS, SQLite, files, all durable.

The service is the product's, and so are the rounds; what a run computes is what a run without
privacy does: every update is decoded, held against its round, and summed in fixed point.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from fleet_devices import PATIENCE_S, update_value

from sordino.client.identity import accept_enrolment, enrolment_request
from sordino.core import adapters, contract
from sordino.core.config import ExperimentConfig, LoraConfig, TrainConfig
from sordino.core.contract import Artefact
from sordino.core.settings import to_toml
from sordino.core.trust import encode_token
from sordino.privacy.plan import NoPrivacyPlan
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.bell import Bell
from sordino.server.fleet_run import Drivers
from sordino.server.grid import Coordinator
from sordino.server.service import FleetService, ServiceSettings
from sordino.server.store import Accepted, Round

LAYER_BYTES = 4096 * 8 * 4
LORA = LoraConfig(rank=8, targets=("q_proj",))
TRAIN = TrainConfig(local_steps=10, learning_rate=1.0)


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """A run to be made: so many rounds of all devices, with updates of about so many bytes."""

    run_id: str
    update_bytes: int
    rounds: int
    devices: int


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What became of it.

    Attributes:
        published_at: When each round was, by the machine's monotonic clock.
        started_at: When the run was.
        accepted: Updates of each round.
        cpu_s: Processor time of the coordinator.
        right: Whether the adapter is what the updates add up to.
    """

    published_at: Sequence[float]
    started_at: float
    cpu_s: float
    accepted: Sequence[int]
    right: bool


def architecture(update_bytes: int) -> dict[str, int]:
    """A base whose adapter has about so many bytes to train: one projection in each layer."""
    layers = max(1, round(update_bytes / LAYER_BYTES))
    small = update_bytes < LAYER_BYTES
    return {
        "hidden_size": 8 if small else 4096,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
    }


@dataclass
class Bench:
    """A fleet's folder, its service, and what drives its runs."""

    folder: Path
    published: list[float] = field(default_factory=list)
    more: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    fleet: fr.Fleet = field(init=False)

    def enrol(self, authority: enroll.Authority, count: int) -> list[Path]:
        """Members, each by a token of its own: the folders of their identities."""
        members, folders = fr.Members(self.fleet), []
        for number in range(count):
            folder = self.folder / f"device-{number}"
            folder.mkdir()
            token = enroll.make_token(members, authority, now_unix_ms=self.fleet.now_ms())
            text = encode_token(token)
            request = enrolment_request(folder, text)
            answer = enroll.enroll(members, authority, request, now_unix_ms=self.fleet.now_ms())
            accept_enrolment(folder, text, answer)
            folders.append(folder)
        return folders

    def at(self, step: str) -> None:
        """The store's hook: when each round was published, at no cost to the coordinator."""
        if step == "publish-round:durable":
            self.published.append(time.monotonic())
            self.more.release()

    def run(self, order: RunOrder) -> RunResult:
        """Make a run, and wait for its end: its driver is the product's."""
        before = time.process_time()
        self.published.clear()
        self._start(order)
        started = time.monotonic()
        for _ in range(order.rounds):
            if not self.more.acquire(timeout=PATIENCE_S):
                break
        return RunResult(
            published_at=tuple(self.published),
            started_at=started,
            cpu_s=time.process_time() - before,
            accepted=self._accepted(order),
            right=self._right(order),
        )

    def _start(self, order: RunOrder) -> None:
        plan = NoPrivacyPlan(
            run_id=order.run_id,
            rounds=order.rounds,
            steps_per_round=TRAIN.local_steps,
            sampling_rate=0.5,
            divisor=4.0,
        )
        manifest = adapters.adapter_manifest(architecture(order.update_bytes), LORA)
        base = self.folder / "base.gguf"
        base.write_bytes(b"GGUF")
        new = fr.NewRun(
            run_id=order.run_id,
            settings=to_toml(ExperimentConfig(lora=LORA, train=TRAIN)),
            trust="none",
            plan=plan.canonical(),
            manifest=manifest.canonical(),
            base=fr.keep_base(self.fleet, base),
            rounds=order.rounds,
            cohort=order.devices,
            min_updates=order.devices,
            timeout_ms=3_600_000,
            max_answer_bytes=1 << 28,
        )
        fr.start_run(self.fleet, f"start-{order.run_id}", new)

    def _accepted(self, order: RunOrder) -> list[int]:
        with self.fleet.store.read() as rows:
            return [
                rows.count(Accepted, run_id=order.run_id, round=number + 1)
                for number in range(order.rounds)
            ]

    def _right(self, order: RunOrder) -> bool:
        """Each parameter of the last adapter is the sum of the rounds' means, to float32."""
        with self.fleet.store.read() as rows:
            last = rows.find(Round, order.run_id, order.rounds)
        if last is None or not last.adapter_after:
            return False
        data = self.fleet.artefacts.read(last.adapter_after)
        tensors = contract.decode_adapter(data, Artefact.of(data))
        mean = sum(map(update_value, range(order.devices))) / order.devices
        expected = order.rounds * mean
        return all(np.allclose(t, expected, rtol=1e-6, atol=0) for t in tensors.values())


def coordinate(folder: Path, devices: int, pipe: Connection) -> None:
    """A coordinator's process: says where it is, then makes each run that it is told to.

    Args:
        folder: Of the fleet; empty.
        devices: How many members it has.
        pipe: To the parent; `None` ends it.
    """
    now = time.time_ns() // 1_000_000
    authority = enroll.new_authority(now_unix_ms=now)
    enroll.create_folder(folder, authority)
    server = enroll.issue_server(authority, ["127.0.0.1"], now_unix_ms=now)
    enroll.write_server_certificate(folder, authority, server)
    bell = Bell()
    settings = ServiceSettings(
        fleet_address="127.0.0.1:0",
        enroll_address="127.0.0.1:0",
        calls_per_minute=1_000_000,  # a round of no training is made many times a minute
    )
    with ExitStack() as open_things:
        here = Bench(folder)
        opened = fr.open_fleet(folder, at=bell.hook(here.at))
        fleet = here.fleet = open_things.enter_context(opened)
        work = fr.AdapterWork(fleet)
        folders = here.enrol(authority, devices)
        service = open_things.enter_context(
            FleetService(fleet, bell, folder, settings, lambda _: work)
        )
        driven = Coordinator(fleet=fleet, bell=bell, work=work, online=service.online)
        open_things.enter_context(Drivers(driven, folder))
        pipe.send((service.fleet_address, folders))
        while (order := pipe.recv()) is not None:
            pipe.send(here.run(order))
