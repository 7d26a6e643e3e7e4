"""report.html: one page, no script, nothing loaded, made from report.json alone.

Names of users, data and models are data: the template engine escapes everything that it is given,
and the page's own content policy would refuse a script even if one got in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sordino.privacy.claims import Claim
from sordino.server.report import formats
from sordino.server.report.audit_charts import audit_charts
from sordino.server.report.audited import Audited
from sordino.server.report.charts import all_charts
from sordino.server.report.codec import from_json, to_json
from sordino.server.report.curve_chart import curve_chart
from sordino.server.report.files import write_atomically
from sordino.server.report.opinion import second_opinion
from sordino.server.report.schema import ClientFigures, RunReport, UtilityFigures
from sordino.server.report.standing import (
    Standing,
    against,
    noise_standing,
    protected,
    trust_in_words,
)


def render_html(report: RunReport, claim: Claim | None = None) -> str:
    """The whole page.

    Args:
        report: As `from_json` gives it.
        claim: What the run's ledger bears out, if it was asked.
    """
    charts = {**all_charts(report), **audit_charts(report)}
    if claim is not None and (curve := curve_chart(claim)) is not None:
        charts[curve.key] = curve
    return render_page(
        "report.html.j2",
        report=report,
        charts=charts,
        view=View(report),
        audited=Audited(report.leakage),
        claim=claim.rows() if claim is not None else (),
        started=_moment(report.run.started_at),
    )


def render_page(template: str, *packages: str, **values: object) -> str:
    """A page with the reports' look: everything escaped, the style sheet within.

    Args:
        template: Its name.
        packages: Whose templates are there beside this package's own.
        values: What the template is given, beside `n`, how figures are written, and `css`.
    """
    # Here, so that an auditor's install, which prints claims and no pages, does without it.
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

    loader = ChoiceLoader([PackageLoader(name) for name in (*packages, "sordino.server.report")])
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, _, _ = loader.get_source(environment, "report.css")
    page = environment.get_template(template).render(n=formats, css=css, **values)
    return page.lstrip() + "\n"


def write_report(report: RunReport, folder: Path, claim: Claim | None = None) -> tuple[Path, Path]:
    """Write report.json, and from what it says report.html; each is whole or absent.

    Args:
        report: The run's.
        folder: Where the two files go.
        claim: The run's claim, for the page; see `render_html`.

    Returns:
        The two paths.

    Raises:
        ReportError: A figure is impossible, or the folder can't be written.
    """
    text = to_json(report)
    page = render_html(from_json(text), claim)
    paths = folder / "report.json", folder / "report.html"
    write_atomically(paths[0], text)
    write_atomically(paths[1], page)
    return paths


@dataclass(frozen=True)
class View:
    """What the template says in words, worked out from the report."""

    report: RunReport

    @property
    def standing(self) -> Standing:
        """What the noise's source is worth."""
        return noise_standing(self.report)

    @property
    def holds(self) -> bool:
        """Whether the run may claim its ε at all."""
        return self.standing.claims

    @property
    def against(self) -> str:
        """Whom the guarantee protects against."""
        return against(self.report.guarantee.trust)

    @property
    def trust(self) -> str:
        """The trust model and what it means."""
        return trust_in_words(self.report.guarantee.trust)

    @property
    def refusal(self) -> str:
        """The headline of a run without a guarantee."""
        return "This run gives no differential privacy."

    @property
    def refusal_reason(self) -> str:
        """Why it gives none, with the mechanism's qualifiers where there was one."""
        claim = self.report.guarantee
        if claim.epsilon.pld is None:
            return "No bound on ε holds for it, for a record or for a user. It is a baseline."
        return (
            "Whoever knows the seed can take the noise away again. With secret noise the same "
            f"mechanism would have ε\u00a0≤\u00a0{formats.epsilon(claim.epsilon.pld)} at "
            f"δ = {formats.power(claim.delta)} for the unit {claim.unit}, neighbouring datasets by "
            f"{claim.neighbouring}, sampling {claim.sampling}, accountant {claim.accountant}, "
            f"composition over {claim.composition}, trust model {claim.trust}."
        )

    @property
    def protected(self) -> str:
        """The unit of the headline, to begin a sentence with."""
        return protected(self.report.guarantee.unit)

    @property
    def unit_figure(self) -> str:
        """ε of the headline's unit, or its absence."""
        epsilon = self.report.guarantee.epsilon.pld
        return f"ε\u00a0≤\u00a0{formats.epsilon(epsilon)}" if self.holds else "Not protected"

    @property
    def unit_note(self) -> str:
        """What stands under the headline's ε."""
        claim = self.report.guarantee
        if not self.holds:
            return "See the noise source below." if claim.epsilon.pld is not None else "No noise."
        rdp = formats.epsilon(claim.epsilon.rdp)
        return f"at δ = {formats.power(claim.delta)}; by RDP, the looser check, {rdp}"

    @property
    def other_short(self) -> str:
        """ε of the other unit inside the statement."""
        return other_bound(self.report)

    @property
    def other_figure(self) -> str:
        """ε of the other unit, as a figure."""
        if not self.holds:
            return "Not protected"
        bounded = self.report.guarantee.other.epsilon is not None
        return f"ε\u00a0{self.other_short}" if bounded else "Not bounded"

    @property
    def counted(self) -> str:
        """What the noise's steps are."""
        user = self.report.guarantee.unit == "user"
        return "Noised sums, one a round" if user else "Noised steps of a client"

    @property
    def source_style(self) -> str:
        """How loudly the noise's source is shown."""
        return self.standing.style

    @property
    def source_note(self) -> str:
        """What the noise's source means."""
        return self.standing.note

    @property
    def second_opinion(self) -> str:
        """Whether Opacus agrees, where it was asked."""
        return second_opinion(self.report)

    @property
    def utility(self) -> str:
        """The gain in a sentence, beside the baselines'."""
        utility = self.report.utility
        judged = self.report.judged
        if judged is None:
            return ""
        sentence = _gain_sentence(judged)
        for figures, label in (
            (utility.no_privacy, "Without privacy"),
            (utility.no_federation, f"Without federation, {alone(self.report)},"),
        ):
            if figures is not None and figures is not judged:
                sentence += f" {label} the gain is {formats.signed(figures.interval.estimate)}."
        return sentence

    @property
    def method(self) -> str:
        """How the intervals were made."""
        figures = self.report.judged
        if figures is None:
            return ""
        how = figures.interval
        return (
            f"Held-out tokens: {formats.count(figures.tokens)}. Intervals at {how.level:.0%}: "
            f"{how.method}, {formats.count(how.resamples)} resamples. The baselines exist "
            "in the simulation alone: nothing of them is released, and ε does not cover them."
        )

    @property
    def peak(self) -> str:
        """Peak memory."""
        peak = self.report.cost.peak_rss_mb
        return formats.UNKNOWN if peak is None else formats.size(peak * 1e6)

    @property
    def speed(self) -> str:
        """Tokens per second."""
        speed = self.report.cost.tokens_per_s
        return formats.UNKNOWN if speed is None else f"{formats.count(round(speed))} tokens/s"

    @property
    def energy(self) -> str:
        """Joules, or that there is no figure."""
        joules = self.report.cost.energy.joules
        return "Unavailable" if joules is None else f"{formats.count(round(joules))}\u202fJ"

    @property
    def marked_columns(self) -> str:
        """The columns of the table of clients that only a simulation may know."""
        names = {
            "client": "who they are",
            "epsilon": "ε spent",
            "records": "records",
            "clip_fraction": "clipped",
            "loss_before": "loss before",
            "loss_after": "loss after",
        }
        marked = (
            name
            for key, name in names.items()
            if self.report.only_in_simulation(f"$.clients[*].{key}")
        )
        return ", ".join(marked)

    @property
    def dropped(self) -> str:
        """Updates that were refused, when there were any."""
        count = sum(figures.dropped for figures in self.report.rounds)
        if not count:
            return ""
        updates = "update was" if count == 1 else "updates were"
        return f"{count} {updates} refused and left out of the sum."

    @property
    def lost(self) -> str:
        """Rounds that were charged and gave nothing, when there were any."""
        numbers = [str(figures.round) for figures in self.report.rounds if not figures.released]
        if not numbers:
            return ""
        rounds = "Round" if len(numbers) == 1 else "Rounds"
        return (
            f"{rounds} {', '.join(numbers)}: charged, and nothing released. The coordinator was "
            "stopped between the charge and the keeping of what it drew, and never draws twice."
        )

    @property
    def versions(self) -> str:
        """Packages and their versions."""
        return ", ".join(f"{name} {version}" for name, version in self.report.run.versions.items())

    def gain(self, client: ClientFigures) -> str:
        """A client's own gain."""
        if client.loss_before is None or client.loss_after is None:
            return formats.UNKNOWN
        return formats.signed(client.loss_before - client.loss_after)


def other_bound(report: RunReport) -> str:
    """ε of the unit that the headline isn't about, with its δ."""
    other = report.guarantee.other
    if other.epsilon is None:
        return formats.NOT_BOUNDED
    return f"≤\u00a0{formats.epsilon(other.epsilon)} at δ = {formats.power(other.delta)}"


def alone(report: RunReport) -> str:
    """What a client without federation does."""
    # It has no coordinator to trust, and publishes nothing; or its run is a baseline itself.
    if report.guarantee.unit == "user" or report.guarantee.trust == "none":
        return "each client alone, without noise, as nothing leaves it"
    return "each client alone and private"


def _gain_sentence(figures: UtilityFigures) -> str:
    gain = figures.interval
    moved = "fell" if figures.loss_after < figures.loss_before else "did not fall: it went"
    verdict = "excludes" if gain.excludes_zero else "does not exclude"
    return (
        f"Held-out loss {moved} from {formats.plain(figures.loss_before)} to "
        f"{formats.plain(figures.loss_after)} nats per token, a gain of "
        f"{formats.signed(gain.estimate)} whose {gain.level:.0%} interval, "
        f"{formats.interval(gain)}, {verdict} zero."
    )


def _moment(started_at: str) -> str:
    """ISO 8601 as people write it; anything else stays as it is.

    >>> _moment("2025-03-01T09:30:00+00:00")
    '1 March 2025, 09:30 UTC'
    """
    try:
        moment = datetime.fromisoformat(started_at)
    except ValueError:
        return started_at
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"
