"""A run's figures as one table, for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sordino.server.report import RunReport, UtilityFigures
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
    private = report.guarantee.record.epsilon.pld
    for key, title in _LINES:
        figures: UtilityFigures | None = getattr(report.utility, key)
        if figures is None:
            continue
        without = key == "no_privacy"
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
    record, noise = report.guarantee.record, report.noise
    standing = noise_standing(report)
    claim = (
        f"Guarantee: ε = {_number(record.epsilon.pld, 2)} (PLD; RDP gives "
        f"{_number(record.epsilon.rdp, 2)}) at δ = {record.delta:g}, unit record, "
        f"{record.neighbouring}, {record.sampling} sampling, trust "
        f"{report.guarantee.trust} ({against(report.guarantee.trust)}), over "
        f"{record.composition}. Unit user: {report.guarantee.user.status}."
        if record.epsilon.pld is not None and record.delta is not None
        else "Guarantee: none. This run was made without privacy."
    )
    return [
        Text(f"Gain in nats per held-out token, with 95 % intervals: {_gains(report)}."),
        Text(claim),
        Text(f"Noise: {noise.source}. {standing.note}"),
        Text(f"Leakage: {report.leakage.status}."),
        Text(
            "Exact losses and clip fractions of clients are known to a simulation only; the "
            "baselines exist in the simulation alone and release nothing."
        ),
    ]


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
