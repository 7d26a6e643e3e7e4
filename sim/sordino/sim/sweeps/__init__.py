"""Sweeps: a grid over any settings and seeds, every cell a run of its own, and one report."""

from sordino.sim.sweeps.cells import Cell, lay_out
from sordino.sim.sweeps.outcome import Finished, Group, SeedFigure, SweepResult, over_seeds
from sordino.sim.sweeps.price import Price
from sordino.sim.sweeps.run import run_sweep, sweep
from sordino.sim.sweeps.spec import SweepSpec, read_spec

__all__ = [
    "Cell",
    "Finished",
    "Group",
    "Price",
    "SeedFigure",
    "SweepResult",
    "SweepSpec",
    "lay_out",
    "over_seeds",
    "read_spec",
    "run_sweep",
    "sweep",
]
