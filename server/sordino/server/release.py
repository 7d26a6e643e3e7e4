"""The coordinator under central trust: whom a round asks, and the one way out of its sum.

The order is the guarantee, as on a device: collect, reserve and commit in the coordinator's own
ledger (durable), draw the noise, keep the noised update by hash, write down its release, hand it
out. A round that was charged is never drawn for again: if its update was kept, a retry gives the
same bytes; if it wasn't, the noise is lost, the round stays charged with nothing released, and the
run goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from sordino.core import durable
from sordino.core.errors import LedgerError
from sordino.core.kept import KeptUpdates
from sordino.core.records import Tensors
from sordino.core.wire import Envelope, Scalar, pack, unpack
from sordino.privacy.ledger import Hook, Ledger, no_hook
from sordino.privacy.noise import NoiseSource, system_source
from sordino.privacy.plan import AnyPlan, CentralPlan, sample_users
from sordino.server.aggregate import PrivateSum, apply_mean

COORDINATOR: Final = "coordinator"
LEDGER: Final = "ledger.db"  # in the folder, as `sordino claim` looks for it
UPDATES: Final = "releases"
USERS: Final = "users"

Sources = Callable[[str, int], NoiseSource]
"""Randomness for a purpose, `coins` or `noise`, of a round."""


def from_system(purpose: str, round_number: int) -> NoiseSource:
    """The operating system's randomness, a fresh stream each time."""
    return system_source()


@dataclass(frozen=True)
class Settled:
    """What became of a round that was charged before.

    Attributes:
        state: `released`: its kept update is in `adapter`. `abandoned`: nothing of it ever leaves.
        adapter: All tensors, as they are after the round.
    """

    state: Literal["released", "abandoned"]
    adapter: Tensors


@dataclass(frozen=True, kw_only=True)
class Releases:
    """What a coordinator needs under central trust.

    How many were asked and how many answered is as private as an update: logs and reports of a
    round under central trust stay with the coordinator.

    Attributes:
        plan: The run's plan.
        folder: The coordinator's own: its ledger, and the noised updates that it released.
        population: The stable name of the users, as the ledger calls a dataset.
        source: Where the noise and the users' coins come from.
        at: Told each step as it is reached.
    """

    plan: CentralPlan
    folder: Path
    population: str = USERS
    source: Sources = from_system
    at: Hook = no_hook

    @cached_property
    def ledger(self) -> Ledger:
        """The coordinator's own; each release is charged to it before noise is drawn."""
        return Ledger(self.folder / LEDGER, COORDINATOR, at=self.at)

    def ask(self, round_number: int, nodes: Sequence[int]) -> list[int]:
        """Whom a round asks: all, or those whom the plan's secret coins pick.

        A round that is asked again before its charge throws new coins: nothing came of the first.
        """
        coins = self.source("coins", round_number)
        asked = [nodes[index] for index in sample_users(self.plan, len(nodes), coins)]
        self.at("users:asked")
        return asked

    def settle(self, round_number: int, adapter: Tensors) -> Settled | None:
        """Finish what a crash cut short; None: the round wasn't charged, and may begin.

        Args:
            round_number: From 1.
            adapter: All tensors, as they are before the round.

        Raises:
            LedgerError: It was charged under another plan, or what was released is gone.
        """
        with self._alone():
            standing = self.ledger.find(self.plan.run_id, round_number)
            if standing is None or standing.state == "reserve":
                return None
            if standing.reserve.plan_sha256 != self.plan.sha256:
                raise LedgerError(f"round {round_number} was charged under another plan")
            digest = standing.artefact
            if standing.state == "commit":
                digest = self._kept.find(self.plan.sha256, round_number)
                if digest:
                    self.ledger.release(standing.number, digest)
                else:
                    self.ledger.abandon(standing.number, "interrupted")
            if not digest:
                return Settled("abandoned", adapter)
            kept = unpack(self._kept.read(self.plan.sha256, round_number, digest))
        return Settled("released", {**adapter, **kept.tensors})

    def release(self, round_number: int, adapter: Tensors, total: PrivateSum) -> Tensors:
        """Charge the round, add its noise, keep it, and make the next adapter.

        Raises:
            LedgerError: The round was charged before: see `settle`.
        """
        self.at("sum:collected")
        with self._alone():
            charge = self.ledger.charge(self.plan.releases, round_number, self.population)
            noised = total.release(charge, self.source("noise", round_number))
            self.at("release:drawn")
            changed = apply_mean(adapter, noised)
            data = self._packed(round_number, {name: changed[name] for name in noised})
            digest = self._kept.keep(self.plan.sha256, round_number, data)
            self.at("release:kept")
            self.ledger.release(charge.number, digest)
        self.at("release:ready")
        return changed

    @cached_property
    def _kept(self) -> KeptUpdates:
        return KeptUpdates(self.folder / UPDATES)

    def _alone(self) -> AbstractContextManager[int]:
        """One release at a time: a commit without an outcome is then nobody's work any more."""
        return durable.locked(self.folder / "releases.lock")

    def _packed(self, round_number: int, tensors: Tensors) -> bytes:
        fields: dict[str, Scalar] = {
            "kind": "release",
            "run-id": self.plan.run_id,
            "round": round_number,
            "plan-sha256": self.plan.sha256,
        }
        return pack(Envelope(fields, tensors))


def is_central(plan: AnyPlan) -> bool:
    """Whether the coordinator has to add the noise."""
    return isinstance(plan, CentralPlan)
