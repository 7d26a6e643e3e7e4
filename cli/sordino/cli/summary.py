"""A run's figures as one table, for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sordino.server.report import OtherUnit, RunReport, UtilityFigures
from sordino.server.report.audited import Audited
from sordino.server.report.standing import against, noise_standing

_COLUMNS = ("ε\nspent", "noise\nmult.", "clip\nfraction", "loss\nbefore", "loss\nafter", "gain")
_LINES = (
    ("private", "private federation"),
    ("no_privacy", "without privacy"),
    ("no_federation", "without federation"),
)


def show(report: RunReport, console: Console) -> None:
    """Print what the run promises, its clients, and the run beside its baselines."""
    console.print(Group(_table(report), *_lines(report)))


def _table(report: RunReport) -> Table:
    table = Table(title=f"Run {report.run.id}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("client", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for client in report.clients:
        before, after = client.loss_before, client.loss_after
        gain = "-" if before is None or after is None else f"{before - after:+.3f}"
        table.add_row(
            Text(client.client),
            _number(client.epsilon, 2),
            _number(client.noise_multiplier, 3),
            _number(client.clip_fraction, 2),
            _number(before, 3),
            _number(after, 3),
            gain,
        )
    table.add_section()
    private, unit = report.guarantee.epsilon.pld, report.guarantee.unit
    for key, title in _LINES:
        figures: UtilityFigures | None = getattr(report.utility, key)
        if figures is None:
            continue
        # Under central trust a client alone needs no noise: nothing leaves it.
        without = key == "no_privacy" or (key, unit) == ("no_federation", "user")
        table.add_row(
            Text(title, style="bold" if key == "private" else ""),
            "none" if without else _number(private, 2),
            "none" if without else _number(report.noise.noise_multiplier, 3),
            _number(report.noise.clip_fraction, 2) if key == "private" else "",
            f"{figures.loss_before:.3f}",
            f"{figures.loss_after:.3f}",
            f"{figures.interval.estimate:+.3f}",
        )
    return table


def _lines(report: RunReport) -> list[Text]:
    given, noise = report.guarantee, report.noise
    standing = noise_standing(report)
    claim = (
        f"Guarantee: ε = {_number(given.epsilon.pld, 2)} (PLD; RDP gives "
        f"{_number(given.epsilon.rdp, 2)}) at δ = {given.delta:g}, unit {given.unit}, "
        f"{given.neighbouring}, sampling {given.sampling}, trust {given.trust} "
        f"({against(given.trust)}), over {given.composition}. "
        f"{_other(given.other)}."
        if given.epsilon.pld is not None and given.delta is not None
        else "Guarantee: none. This run was made without privacy."
    )
    return [
        Text(f"Gain in nats per held-out token, with 95 % intervals: {_gains(report)}."),
        Text(claim),
        Text(f"Noise: {noise.source}. {standing.note}"),
        Text(f"Leakage: {Audited(report.leakage).short}."),
        Text(
            "Exact losses and clip fractions of clients are known to a simulation only; the "
            "baselines exist in the simulation alone and release nothing."
        ),
    ]


def _other(other: OtherUnit) -> str:
    if other.epsilon is None or other.delta is None:
        return f"Unit {other.unit}: {other.status}"
    bound = f"ε = {_number(other.epsilon, 2)} at δ = {other.delta:g}"
    if other.unit == "record":
        return f"It covers each record of a user; a record added or removed by itself: {bound}"
    return f"Unit {other.unit}: {bound}"


def _gains(report: RunReport) -> str:
    found = []
    for key, title in _LINES:
        figures: UtilityFigures | None = getattr(report.utility, key)
        if figures is not None:
            low, high = figures.interval.low, figures.interval.high
            found.append(f"{title} {figures.interval.estimate:+.3f} ({low:+.3f} to {high:+.3f})")
    return "; ".join(found)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    from sordino.core.stats import round_up

    return f"{round_up(value, digits):.{digits}f}" if digits == 2 else f"{value:.{digits}f}"
