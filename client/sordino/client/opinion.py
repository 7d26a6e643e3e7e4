"""A second opinion on ε: Opacus' own accountants over the steps that Opacus itself counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from opacus.accountants import PRVAccountant, RDPAccountant

ORDERS = tuple(range(2, 64))
"""Whole orders: at these both libraries' series always converge, so that RDP must be equal."""

History = Iterable[tuple[float, float, int]]  # (noise multiplier, sampling rate, steps)


def opacus_epsilons(history: History, delta: float) -> tuple[float, float]:
    """ε by Opacus' PRV and RDP accountants.

    Args:
        history: What `RDPAccountant.history` held after each round.
        delta: The δ of the claim.

    Returns:
        (PRV, RDP at `ORDERS`). PRV is an estimate with an error of about 0.01, so it may lie below
        a pessimistic figure; RDP must not. `sordino.privacy.accounting.compare` holds both against
        ours.
    """
    steps = [tuple(entry) for entry in history]
    figures = []
    for accountant in (PRVAccountant(), RDPAccountant()):
        accountant.history = list(steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the largest RDP order, for tiny ε
            orders = {"alphas": list(ORDERS)} if isinstance(accountant, RDPAccountant) else {}
            figures.append(float(accountant.get_epsilon(delta, **orders)))
    return figures[0], figures[1]
