"""Federations on one machine: populations, the local grid, and whole experiments.

    from sordino.sim import experiment, simulate, sweep

    result = simulate(experiment("demo", {"privacy.epsilon": 4.0}))
    swept = sweep("demo", grid={"privacy.epsilon": [1.0, 2.0, 4.0, 8.0]}, seeds=[0, 1, 2])

The names come with the modules behind them, torch among those, only when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sordino.sim.run import SimulationResult, resume_run, simulate
    from sordino.sim.scenarios import experiment
    from sordino.sim.sweeps import SweepResult, sweep

__all__ = ["SimulationResult", "SweepResult", "experiment", "resume_run", "simulate", "sweep"]

_HOMES = {
    "SimulationResult": "sordino.sim.run",
    "SweepResult": "sordino.sim.sweeps",
    "experiment": "sordino.sim.scenarios",
    "resume_run": "sordino.sim.run",
    "simulate": "sordino.sim.run",
    "sweep": "sordino.sim.sweeps",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
