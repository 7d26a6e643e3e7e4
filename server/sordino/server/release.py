"""The coordinator under central trust: whom a round asks, and the one way out of its sum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sordino.core.records import Tensors
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan import AnyPlan, CentralPlan, sample_users
from sordino.server.aggregate import PrivateSum, apply_mean


@dataclass(frozen=True, kw_only=True)
class Releases:
    """What a coordinator needs under central trust.

    How many were asked and how many answered is as private as an update: logs and reports of a
    round under central trust stay with the coordinator.

    Attributes:
        plan: The run's plan.
        ledger: The coordinator's own; each release is charged to it before noise is drawn.
        population: The stable name of the users, as the ledger calls a dataset.
        source: Where the noise and the users' coins come from.
    """

    plan: CentralPlan
    ledger: Ledger
    population: str
    source: NoiseSource

    def ask(self, nodes: Sequence[int]) -> list[int]:
        """Whom a round asks: all, or those whom the plan's secret coins pick."""
        return [nodes[index] for index in sample_users(self.plan, len(nodes), self.source)]

    def release(self, round_number: int, adapter: Tensors, total: PrivateSum) -> Tensors:
        """Charge the round, add its noise, and make the next adapter.

        Raises:
            LedgerError: The round was charged before: its release is spent, whatever came of it.
        """
        charge = self.ledger.charge(self.plan.releases, round_number, self.population)
        changed = apply_mean(adapter, total.release(charge, self.source))
        self.ledger.release(charge.number, fingerprint(changed))
        return changed


def is_central(plan: AnyPlan) -> bool:
    """Whether the coordinator has to add the noise."""
    return isinstance(plan, CentralPlan)


def fingerprint(adapter: Tensors) -> str:
    """SHA-256 of a released adapter: names, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(adapter):
        tensor = np.ascontiguousarray(adapter[name])
        digest.update(json.dumps([name, list(tensor.shape)]).encode() + tensor.tobytes())
    return digest.hexdigest()
