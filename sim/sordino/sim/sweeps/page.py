"""A sweep's report.html: one page of the reports' look, no script, nothing loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sordino.core.durable import write_whole
from sordino.core.stats import round_up
from sordino.server.report import formats, render_page
from sordino.server.report.standing import against, noise_standing, protected
from sordino.sim.sweeps import charts
from sordino.sim.sweeps.cells import label, value_in_words
from sordino.sim.sweeps.holdings import holdings_charts
from sordino.sim.sweeps.outcome import (
    COSTS_BUDGET,
    LEVEL,
    METHOD,
    Finished,
    Group,
    SeedFigure,
    SweepResult,
)


def write_page(result: SweepResult) -> Path:
    """Write report.html, whole or not at all."""
    path = result.folder / "report.html"
    write_whole(path, render(result))
    return path


def render(result: SweepResult) -> str:
    """The whole page."""
    return render_page(
        "sweep.html.j2",
        "sordino.sim.sweeps",
        view=View(result),
        utility=charts.utility_charts(result),
        noise=charts.noise_charts(result),
        traffic=charts.traffic_charts(result),
        leakage=charts.leakage_charts(result),
        holdings=holdings_charts(result),
    )


@dataclass(frozen=True)
class View:
    """What the template says in words."""

    result: SweepResult

    @property
    def name(self) -> str:
        """The sweep's."""
        return self.result.folder.name

    @property
    def counted(self) -> str:
        """How much was run."""
        seeds = {run.cell.seed for run in self.result.runs}
        runs, groups = len(self.result.runs), len(self.result.groups)
        return f"{runs} runs: {groups} settings, {len(seeds)} seed{'s' * (len(seeds) > 1)}"

    @property
    def statement(self) -> str:
        """The best of the settings, beside its baselines."""
        judged = [(f, g) for g in self.result.groups if (f := g.figure(_gain)) is not None]
        if not judged:
            return "No run was finished."
        figure, best = max(judged, key=lambda pair: pair[0].mean)
        most = f"Of {len(judged)} settings, {label(best.settings)} gains most:"
        if len(judged) == 1:
            most = f"{label(best.settings)} gains"
        text = f"{most} {formats.signed(figure.mean)} nats per held-out token"
        for name, of in (
            ("without privacy", lambda run: run.without_privacy),
            ("each client alone and without noise", lambda run: run.alone),
        ):
            beside = best.figure(of)
            if beside is not None:
                text += f"; {name} {formats.signed(beside.mean)}"
        return f"{text}."

    @property
    def caution(self) -> str:
        """What the reader must know of choosing among cells."""
        return COSTS_BUDGET if self.result.price is None else f"Private data: {self.result.price}."

    @property
    def claims(self) -> bool:
        """Whether every private run may claim its ε."""
        return all(noise_standing(r.report).claims for r in self.result.runs if r.beside)

    @property
    def source(self) -> str:
        """Where the noise came from."""
        return self._said(lambda run: run.report.noise.source)

    @property
    def method(self) -> str:
        """What the whiskers are."""
        return (
            f"Whiskers and intervals: {LEVEL:.0%}, {METHOD}, of the mean over seeds: noise and "
            "batches drawn anew on the same records. What other records would do is not in them; "
            "each run's own report has an interval over records."
        )

    @property
    def audited(self) -> bool:
        """Whether any run has been attacked."""
        return any(run.report.leakage.status != "not audited" for run in self.result.runs)

    def facts(self) -> list[tuple[str, str]]:
        """What every figure of ε on the page means."""
        return [
            ("Unit", self._said(lambda run: run.report.guarantee.unit)),
            ("Trust model", self._said(_trust)),
            ("δ", self._said(lambda run: formats.power(run.report.guarantee.delta))),
            ("Neighbouring datasets", self._said(lambda run: run.report.guarantee.neighbouring)),
            ("Sampling", self._said(lambda run: run.report.guarantee.sampling)),
            ("Composition", self._said(lambda run: run.report.guarantee.composition)),
            ("Accountant", self._said(lambda run: run.report.guarantee.accountant)),
            ("The other unit", self._said(_other)),
            ("Noise source", self.source),
        ]

    def rows(self) -> list[tuple[str, ...]]:
        """A line a setting."""
        return [
            (
                label(group.settings),
                *self.figures(group),
                formats.size(charts.mean_bytes(group)),
            )
            for group in self.result.groups
        ]

    def figures(self, group: Group) -> tuple[str, ...]:
        """ε, noise multiplier, gain and how far off it may be, both baselines, the part kept."""
        epsilon = group.figure(lambda run: run.epsilon)
        noise = group.figure(lambda run: run.report.noise.noise_multiplier)
        gain = group.figure(_gain)
        return (
            formats.epsilon(max(epsilon.values) if epsilon else None),
            formats.short(noise.mean if noise else None),
            formats.signed(gain.mean) if gain else formats.UNKNOWN,
            _either_way(gain) if gain else formats.UNKNOWN,
            _mean(group, lambda run: run.without_privacy),
            _mean(group, lambda run: run.alone),
            formats.share(charts.kept(group)).replace("-", formats.MINUS),
        )

    @staticmethod
    def value(group: Group, path: str) -> str:
        """What a setting is in a group, where the group sets it."""
        return value_in_words(group.settings[path]) if path in group.settings else formats.UNKNOWN

    def links(self) -> list[tuple[str, str]]:
        """Each run's own report."""
        return [
            (run.cell.name, (run.folder / "report.html").relative_to(self.result.folder).as_posix())
            for run in self.result.runs
        ]

    @property
    def processor(self) -> str:
        """Processor time of all cells."""
        known = [run.processor_s for run in self.result.runs if run.processor_s is not None]
        return formats.duration(sum(known))

    @property
    def subject(self) -> str:
        """Base and data."""
        model = self._said(lambda run: run.report.run.model.name)
        data = self._said(lambda run: run.report.run.data)
        return f"{model} on {data}"

    def protected(self) -> str:
        """The unit, to begin a sentence with, and against whom."""
        units = {(r.report.guarantee.unit, r.report.guarantee.trust) for r in self._private}
        return "; ".join(f"{protected(unit)} {against(trust)}" for unit, trust in sorted(units))

    @property
    def _private(self) -> list[Finished]:
        return [run for run in self.result.runs if run.epsilon is not None]

    def _said(self, of: Callable[[Finished], str]) -> str:
        """What the private runs say, each thing once."""
        runs = self._private or self.result.runs
        return "; ".join(dict.fromkeys(of(run) for run in runs))


def _gain(run: Finished) -> float | None:
    return run.gain


def _trust(run: Finished) -> str:
    trust = run.report.guarantee.trust
    return f"{trust}, {against(trust)}"


def _other(run: Finished) -> str:
    other = run.report.guarantee.other
    return f"{other.unit}: {formats.epsilon(other.epsilon)}; {other.reason}"


def _either_way(figure: SeedFigure) -> str:
    if figure.high is None:
        return formats.UNKNOWN
    return f"± {round_up(figure.high - figure.mean, 3):.3f}"


def _mean(group: Group, of: Callable[[Finished], float | None]) -> str:
    figure = group.figure(of)
    return formats.signed(figure.mean) if figure else formats.UNKNOWN
