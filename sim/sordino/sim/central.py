"""Central trust in a simulation: the coordinator's own folder, and what only a simulation sees.

The coordinator lives in the run's folder beside the clients, with a ledger of its own: a run that
was killed goes on with it, and what was charged stays charged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sordino.client.charged import UPDATES
from sordino.core.config import ExperimentConfig
from sordino.core.errors import ConfigError, expected
from sordino.core.kept import KeptUpdates
from sordino.core.wire import unpack
from sordino.privacy.ledger import Hook, no_hook
from sordino.privacy.noise import NoiseSource, seeded_source
from sordino.privacy.plan import CentralPlan
from sordino.server.release import LEDGER, Releases, from_system
from sordino.sim.folder import PRIVATE, RunFolder


def check_population(config: ExperimentConfig) -> None:
    """Refuse a population that the simulated clients don't fit in.

    Raises:
        ConfigError: There are more clients than users. Fewer is allowed: who isn't simulated never
            answers, and counts as zero.
    """
    clients = len(config.data.users) or config.data.clients
    population = config.federation.population
    if config.privacy.trust == "central" and population < clients:
        required = f">= the number of clients ({clients})"
        raise ConfigError(expected("federation.population", population, required))


def releases_of(
    plan: CentralPlan, run: RunFolder, config: ExperimentConfig, at: Hook = no_hook
) -> Releases:
    """The simulated coordinator's ledger and randomness.

    Args:
        plan: The private run's plan.
        run: The run's folder, which holds the coordinator's own.
        config: The experiment; it may ask for seeded noise, which is then not private.
        at: Told each step of a release as it is reached.
    """
    seeded = partial(_seeded, config.seed, run.run_id)
    source = seeded if config.privacy.seeded_noise else from_system
    return Releases(plan=plan, folder=_folder(run), source=source, at=at)


def ledger_of(run: RunFolder) -> Path:
    """Where the simulated coordinator's ledger is."""
    return _folder(run) / LEDGER


def observe(plan: CentralPlan, number: int, states: Sequence[Path]) -> dict[str, float | None]:
    """What clip and noise did to a round's updates. On a fleet only the coordinator could tell.

    Args:
        plan: The private run's plan.
        number: The round.
        states: The clients' own folders.

    Returns:
        `clip_fraction`: the share of the updates that their clients shortened to C.
        `update_snr`: the norm of their sum over that of the noise on it.
    """
    total: np.ndarray | None = None
    norms = []
    for state in states:
        update = _kept_update(state, plan, number)
        if update is None:
            continue
        norms.append(float(np.linalg.norm(update)))
        total = update if total is None else total + update
    if total is None:
        return {"clip_fraction": None, "update_snr": None}
    grid = plan.grid_step(total.size)
    # A clipped update is shorter than C by what its way onto the grid takes off, and no more.
    least = plan.clip_norm - grid * math.sqrt(total.size)
    noise = plan.noise_scale(total.size) * grid * math.sqrt(total.size)
    return {
        "clip_fraction": sum(norm >= least for norm in norms) / len(norms),
        "update_snr": float(np.linalg.norm(total)) / noise,
    }


def _kept_update(state: Path, plan: CentralPlan, number: int) -> np.ndarray | None:
    """A client's clipped update of a round, as one row; None if it wasn't asked."""
    kept = KeptUpdates(state / UPDATES)
    digest = kept.find(plan.sha256, number)
    if not digest:
        return None
    tensors = unpack(kept.read(plan.sha256, number, digest)).tensors
    return np.concatenate([tensors[name].ravel().astype(np.float64) for name in sorted(tensors)])


def _seeded(seed: int, run_id: str, purpose: str, number: int) -> NoiseSource:
    return seeded_source(seed, run_id, "coordinator", purpose, str(number))


def _folder(run: RunFolder) -> Path:
    return run.state(PRIVATE) / "coordinator"
