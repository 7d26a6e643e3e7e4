"""What a sweep costs the people whose records it trains on: all its runs composed, not the best.

Whoever runs ten cells and keeps the best has released ten things. Cells that were announced
together compose by pessimistic PLD. Who adds cells after looking at results chooses adaptively:
that is what the Rényi figure beside it holds for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sordino.client.charged import LEDGER
from sordino.core.stats import round_up
from sordino.privacy import accounting
from sordino.privacy.accounting import Event, Filter, Unit
from sordino.privacy.ledger import read_charges
from sordino.privacy.plan import events_of
from sordino.sim.folder import PRIVATE
from sordino.sim.sweeps.cells import Cell
from sordino.sim.sweeps.jobs import ABANDONED

NEIGHBOURING = "add-or-remove-one"
_EVERYBODY = "everybody"


@dataclass(frozen=True, kw_only=True)
class Price:
    """ε of all a sweep's runs on the same records, with all that the figure needs.

    Attributes:
        epsilon: By pessimistic PLD, of cells that were announced together.
        filtered: By the Rényi filter, which holds though cells be added after looking.
        delta: The δ of both: the smallest of the cells'.
        unit: What is protected.
        trust: Against whom.
        runs: How many runs are composed.
        abandoned: How many of them were never finished.
    """

    epsilon: float
    filtered: float
    delta: float
    unit: Unit
    trust: str
    runs: int
    abandoned: int = 0

    @classmethod
    def of(
        cls,
        events: Mapping[str, Sequence[Event]],
        cells: Sequence[Cell],
        *,
        runs: int,
        abandoned: int = 0,
    ) -> Self:
        """The price of the one who pays most.

        Args:
            events: By whose records they touch. The records of two are disjoint.
            cells: Where δ and trust come from.
            runs: How many runs made the events.
            abandoned: How many of those were never finished.
        """
        delta = min(cell.config.privacy.delta for cell in cells)
        spent = accounting.spent(events, delta)
        worst = max(spent, key=lambda name: spent[name])
        unit: Unit = accounting.unit_of(events[worst]) or "record"  # None: of no events at all
        cap = Filter(unit=unit, epsilon=1.0, delta=delta)
        return cls(
            epsilon=spent[worst],
            filtered=cap.spent(events[worst]),
            delta=delta,
            unit=unit,
            trust=cells[0].config.privacy.trust,
            runs=runs,
            abandoned=abandoned,
        )

    def __str__(self) -> str:
        unfinished = f", {self.abandoned} of them abandoned" if self.abandoned else ""
        return (
            f"all {self.runs} runs on the same records together{unfinished}: ε ≤ "
            f"{round_up(self.epsilon, 2):.2f} at δ = {self.delta:g} by {accounting.accountant()}, "
            f"for cells that were announced together, and ε ≤ {round_up(self.filtered, 2):.2f} by "
            "the Rényi filter, which also holds if cells were added after looking at others; "
            f"unit {self.unit}, {NEIGHBOURING}, sampling as in each run, trust {self.trust}"
        )


def planned(cells: Sequence[Cell]) -> Price:
    """What the cells will cost if each is run once, before any is.

    Args:
        cells: All of one trust, none without privacy.
    """
    by_data: dict[str, list[Event]] = defaultdict(list)
    for cell in cells:
        by_data[cell.config.data.source].extend(cell.events)
    return Price.of(by_data, cells, runs=len(cells))


def spent(folder: Path, cells: Sequence[Cell]) -> Price:
    """What the ledgers of a sweep's folder hold: cells of earlier files and attempts included.

    Args:
        folder: The sweep's.
        cells: As `planned`.

    Raises:
        LedgerError: A ledger is defective.
        PlanError: An event is unknown.
    """
    abandoned = _runs(folder / ABANDONED)
    runs = [*_runs(folder / "cells"), *abandoned]
    events: dict[str, list[Event]] = defaultdict(list)
    for run in runs:
        for owner, own in _charges(run):
            events[owner].extend(own)
    if not events:
        return planned(cells)
    return Price.of(events, cells, runs=len(runs), abandoned=len(abandoned))


def _runs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []


def _charges(run: Path) -> Iterable[tuple[str, tuple[Event, ...]]]:
    """What each of a run's ledgers charges, and whose records that is of.

    A client's records are its dataset's, whichever cell asked. Under central trust the coordinator
    charges its population, of which any user may be in every cell.
    """
    state = run / "state" / PRIVATE
    for path in sorted(state.glob(f"client-*/{LEDGER}")):
        if (state / "coordinator").is_dir():
            continue  # a device charges itself without the amplification that it can't verify
        for entries in read_charges(path).values():
            for dataset in sorted({entry.dataset for entry in entries}):
                yield dataset, events_of(e for e in entries if e.dataset == dataset)
    for path in state.glob(f"coordinator/{LEDGER}"):
        for entries in read_charges(path).values():
            yield _EVERYBODY, events_of(entries)
