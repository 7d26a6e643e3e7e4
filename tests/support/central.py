"""Central trust for tests: a plan, a strategy whose coordinator is real, and noise held still."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sordino.core import adapters
from sordino.core.config import FederationConfig
from sordino.privacy.ledger import Hook, no_hook
from sordino.privacy.plan import CentralPlan
from sordino.server.release import Releases, Sources
from sordino.server.strategy import SordinoStrategy
from support.federation import ARCHITECTURE, BASE, LORA, TRAIN


class Still:
    """No noise, and every coin falls on its first side: what is left is the sum."""

    label = "still: for tests"
    private = False

    def rounded_gaussian(self, size, scale):
        return np.zeros(size, np.int64)

    def coins(self, size):
        return np.zeros(size, np.uint64)


SAMPLED = {"sampling": "poisson", "sampling_rate": 0.02, "population": 5000, "cohort": 100}


def make_central(**changes) -> CentralPlan:
    values = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": TRAIN.local_steps,
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "delta": 1e-6,
        "population": 4,
        "cohort": 4,
        "sampling": "none",
        "sampling_rate": 1.0,
        "batch_rate": 0.5,
        "batch_divisor": 4.0,
    }
    return CentralPlan(**{**values, **changes})


def central_strategy(
    plan: CentralPlan, folder: Path, source: Sources, at: Hook = no_hook, **federation: object
) -> SordinoStrategy:
    return SordinoStrategy(
        plan=plan,
        manifest=adapters.adapter_manifest(ARCHITECTURE, LORA),
        base_sha256=BASE,
        lora=LORA,
        train=TRAIN,
        federation=FederationConfig(population=4, **federation),  # type: ignore[arg-type]
        releases=Releases(plan=plan, folder=folder, source=source, at=at),
    )
