"""A coordinator that serves operators over real TLS, with devices that only speak the protocol.

Its runs have real plans, manifests and adapters; a device's update is a number (support/fleets.py),
and the adapter after a round holds the sum of those that were accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sordino.core.config import ExperimentConfig
from sordino.core.contract import SignedHead, encode_adapter
from sordino.core.errors import PlanError
from sordino.core.records import Receipt
from sordino.core.settings import to_toml
from sordino.privacy.ledger.keys import LedgerKey
from sordino.privacy.plan import AnyPlan
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.bell import Bell
from sordino.server.enroll.operators import FIRST
from sordino.server.operator import ADDRESS
from sordino.server.operator.client import OperatorClient, access_of
from sordino.server.operator.commands import StartOrder
from sordino.server.operator.service import OperatorService
from sordino.server.operator.settings import OperatorSettings
from sordino.server.store import Device, Task
from support import fleets
from support.devices import Moved
from support.federation import LORA, MANIFEST, TRAIN, initial, make_plan
from support.fleets import RUN

KEY = LedgerKey.generate()
EXPERIMENT = ExperimentConfig(lora=LORA, train=TRAIN)


class Sums(fleets.Powers):
    """Work whose adapter is filled with the sum of what was sent."""

    def __init__(self) -> None:
        self.entry = 0

    def check(self, asked: Any, data: bytes) -> SignedHead:
        super().check(asked, data)
        self.entry += 1
        receipt = Receipt(ledger_head=f"{self.entry:064x}", entry_index=self.entry)
        signature = KEY.sign(receipt.ledger_head)
        return SignedHead(receipt=receipt, public_key=KEY.public, signature=signature)

    def aggregate(self, closed: Any, adapter: bytes | None, updates: Any) -> bytes:
        total = sum(json.loads(data)["value"] for data in updates)
        trained = {n: t for n, t in initial().items() if "lora_B" in n}
        return encode_adapter({n: np.full_like(t, total) for n, t in trained.items()})


@dataclass
class Operated:
    """What serves, and all it serves from."""

    folder: Path
    fleet: fr.Fleet
    bell: Bell
    service: OperatorService
    client: OperatorClient
    clock: Moved
    online: set[str]
    work: Sums = field(default_factory=Sums)

    def start(self, plan: AnyPlan | None = None, **changes: Any) -> None:
        """Start a run past the wire, and open its first round."""
        source = self.folder / "base.gguf"
        source.write_bytes(b"GGUF")
        base = fr.keep_base(self.fleet, source)
        run = new_run(base, plan or make_plan(), **changes)
        fr.start_run(self.fleet, f"start-{run.run_id}", run)
        self.advance(run.run_id)

    def advance(self, run_id: str = RUN) -> None:
        fleets.advance(self.fleet, self.work, run_id)

    def finish_round(self, *silent: str, run_id: str = RUN) -> None:
        """Every device answers but these, which decline; the round comes to its end."""
        for number in range(len(fleets.rows_of(self.fleet, Device))):
            name = f"d{number}"
            if name in silent:
                task = fr.task_for(self.fleet, name)
                if task is not None:
                    fr.decline(self.fleet, name, task.task_id, "policy-budget")
            else:
                fleets.answer(self.fleet, self.work, name)
        self.advance(run_id)

    def look(self, *silent: str, value: float = 2.5) -> None:
        """A paid look at the run's metric, which every device answers but these."""
        name = f"{RUN}:loss"
        planned = fr.plan_round(self.fleet, name)
        look = fleets.open_round(self.fleet, self.work, name, planned, None)
        for task in fleets.rows_of(self.fleet, Task, run_id=name, round=look.round):
            if task.device_id not in silent:
                fr.acknowledge(self.fleet, task.device_id, task.task_id, look.plan)
                data = fleets.update_of(task.device_id, look.round)
                fleets.send(self.fleet, self.work, task, data)
            else:
                fr.decline(self.fleet, task.device_id, task.task_id, "policy-metric")
        fr.close_round(self.fleet, self.work, name, look.round)
        fr.publish_look(
            self.fleet, name, look.round, metric="loss", value=value, noise_std=0.25, answers=2
        )


def new_run(base: str, plan: AnyPlan, **changes: Any) -> fr.NewRun:
    given = {
        "settings": to_toml(EXPERIMENT),
        "trust": plan.trust,
        "plan": plan.canonical(),
        "manifest": MANIFEST.canonical(),
        "rounds": plan.rounds,
        **changes,
    }
    return fleets.new_run(base, **given)


def make_folder(folder: Path, now: int, hosts: tuple[str, ...] = ("127.0.0.1",)) -> None:
    """As `sordino ca init` makes it."""
    authority = enroll.new_authority(now_unix_ms=now)
    enroll.create_folder(folder, authority)
    issued = enroll.issue_server(authority, hosts, now_unix_ms=now)
    enroll.write_server_certificate(folder, authority, issued)
    add_operator(folder, FIRST, folder / FIRST, now)


def add_operator(folder: Path, name: str, out: Path, now: int) -> None:
    fleet = enroll.load_authority(folder).fleet
    operators = enroll.create_operators(folder, fleet, now_unix_ms=now)
    enroll.admit_operator(folder, operators, fleet, name, out, now_unix_ms=now)


def new_run_of(fleet: fr.Fleet, folder: Path) -> Callable[[StartOrder], fr.NewRun]:
    """Makes a run of settings that say nothing but its number of rounds."""

    def make(order: StartOrder) -> fr.NewRun:
        if not order.settings.startswith("rounds = "):
            raise PlanError(f"expected settings like 'rounds = 3', got {order.settings!r}")
        source = folder / "base.gguf"
        source.write_bytes(b"GGUF")
        rounds = int(order.settings.removeprefix("rounds = "))
        plan = make_plan(run_id=order.run_id, rounds=rounds)
        base = fr.keep_base(fleet, source)
        return new_run(base, plan, run_id=order.run_id, cohort=order.cohort)

    return make


@contextmanager
def operated(folder: Path, *, devices: int = 3, **changes: Any) -> Iterator[Operated]:
    """Serve operators from a folder that is made if need be; a second time: a restart."""
    clock, bell, online = Moved(), Bell(), set[str]()
    if not (folder / "ca.key").exists():
        make_folder(folder, clock())
    settings = OperatorSettings(**{"tick_ms": 300, "calls_per_minute": 100_000, **changes})
    with (
        fr.open_fleet(folder, now_ms=clock, at=bell.hook()) as fleet,
        OperatorService(
            fleet, bell, folder, settings, new_run_of(fleet, folder), lambda: online
        ) as service,
        OperatorClient(access_of(folder, folder / FIRST)) as client,
    ):
        fleets.enrol(fleet, devices)
        yield Operated(folder, fleet, bell, service, client, clock, online)
    assert not (folder / ADDRESS).exists()
