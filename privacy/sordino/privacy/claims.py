"""The claim card: one page that says what is promised, to whom, and what is not.

It states what NIST SP 800-226 asks of a claim of differential privacy. Every figure comes from the
ledger by replay; what the ledger doesn't bear out can't become a `Claim`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sordino.core.errors import ClaimError
from sordino.core.stats import ceil_digits
from sordino.privacy.plan import CentralPlan, MetricPlan, Plan, Support, support

if TYPE_CHECKING:
    from sordino.privacy.ledger import KeptHead

VERSION: Final = 1

_TRUST: Final = {
    "local": "Noise is added on the device before anything leaves it. Protects against everyone: "
    "the coordinator, other clients, and whoever gets the model or the traffic.",
    "central": "The coordinator sees clipped updates and is trusted to add the noise and to keep "
    "them and the cohort to itself. Protects against everyone else.",
}
_BOUND: Final = {
    "record": "one record: each record's gradient is clipped at every step",
    "user": "everything of one user: the user's whole update is clipped in every round",
}
_CONSIDERED: Final = (
    "low digits of floating-point noise (the sum is put on a public grid and the noise is exact)",
    "retries (the same bytes again: no second draw) and crashes (a charge stays)",
    "exact losses, counts, norms and error texts (none is sent)",
)
_NOT_CONSIDERED: Final = (
    "timing, energy and memory of the device and the size of a batch as they show in them",
    "whether and when a device takes part",
    "a device that is itself compromised, or an owner who signs a loose policy",
)
_NOT_COVERED: Final = (
    "what is true of a population and could be learnt without the unit's data",
    "records of which the same text stands in another unit's data",
    "other releases of the same data outside this ledger",
    "the base model's own training data",
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a ledger can't know of a run; each is printed as somebody's word.

    Attributes:
        noise_source: Where the noise came from, as the run reports it.
        tuning: Whether settings were chosen by looking at private data.
        second_opinion: What another library's accountants say.
        stated_epsilon: The ε that a report beside the claim states; it may not be below the
            ledger's.
    """

    noise_source: str
    tuning: str = "not stated: if settings were chosen on the same data, that isn't accounted"
    second_opinion: str = "none"
    stated_epsilon: float | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One run's claim. Made by `make_claim` alone from a ledger that bears it out."""

    run_id: str
    plan_sha256: str
    epsilon: float
    delta: float
    unit: str
    contribution_bound: str
    neighbouring: str
    other_unit: str
    trust: str
    threat_model: str
    mechanism: dict[str, str | int | float]
    sampling: str
    composition: str
    accountant: str
    versions: dict[str, str]
    epsilon_rdp: float
    mu: float | None
    mu_smallest_delta: float
    delta_curve: tuple[tuple[float, float], ...]
    second_opinion: str
    randomness: str
    side_channels_considered: tuple[str, ...]
    side_channels_not_considered: tuple[str, ...]
    other_releases: str
    tuning: str
    not_covered: tuple[str, ...]
    ledger_heads: dict[str, str]

    def to_json(self) -> str:
        """The claim as JSON; every field, in this order."""
        values = {"kind": "sordino.claim", "version": VERSION, **asdict(self)}
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def headline(self) -> str:
        """The figure with everything without which it would mean nothing."""
        return (
            f"ε ≤ {self.epsilon} at δ = {self.delta:g}, unit {self.unit}, {self.neighbouring}, "
            f"sampling {self.sampling}, {self.accountant}, over {self.composition}, trust "
            f"{self.trust}"
        )

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Label and text of each statement, for a page."""
        mechanism = ", ".join(f"{key} {value}" for key, value in self.mechanism.items())
        gaussian = "not bounded" if self.mu is None else f"{self.mu}"
        return (
            ("Claim", self.headline()),
            ("Contribution bound", self.contribution_bound),
            ("The other unit", self.other_unit),
            ("Threat model", self.threat_model),
            ("Mechanism, each round", mechanism),
            ("ε by RDP, a check", f"{self.epsilon_rdp}"),
            (
                "Dominating Gaussian",
                f"μ = {gaussian}, wherever δ ≥ {self.mu_smallest_delta:g}",
            ),
            (
                "δ at other ε",
                # ε up as well: δ belongs to the ε that was asked, not to a smaller one.
                "; ".join(
                    f"ε {ceil_digits(e, 4)}: δ ≤ {ceil_digits(d)}" for e, d in self.delta_curve[::4]
                ),
            ),
            ("Second opinion", self.second_opinion),
            ("Randomness", self.randomness),
            ("Side channels considered", "; ".join(self.side_channels_considered)),
            ("Side channels not considered", "; ".join(self.side_channels_not_considered)),
            ("Other releases of the data", self.other_releases),
            ("Tuning on private data", self.tuning),
            ("Not covered", "; ".join(self.not_covered)),
            ("Versions", ", ".join(f"{k} {v}" for k, v in self.versions.items())),
            ("Plan", self.plan_sha256),
            ("Ledger heads", ", ".join(f"{k}: {v}" for k, v in self.ledger_heads.items())),
        )

    def to_markdown(self) -> str:
        """The claim as one page of Markdown."""
        lines = [f"# Privacy claim of run {self.run_id}", ""]
        for label, text in self.rows():
            lines += [f"**{label}.** {_plain(text)}", ""]
        return "\n".join(lines)


def make_claim(
    plan: Plan | CentralPlan,
    ledger: Path,
    facts: Facts,
    heads: Sequence[KeptHead] = (),
    metric: MetricPlan | None = None,
) -> Claim:
    """A run's claim, if its ledger bears it out.

    Args:
        plan: The run's plan.
        ledger: The clients' export; under central trust the coordinator's ledger.
        facts: What the ledger can't know.
        heads: Heads that another party kept.
        metric: The plan of the metric that the run bought, if it did.

    Raises:
        ClaimError: The ledger is defective or says otherwise, the noise was reproducible, no finite
            ε holds, or a report beside the claim states a smaller ε.
        LedgerError: The ledger can't be read.
    """
    if "seeded" in facts.noise_source or "not private" in facts.noise_source:
        raise ClaimError("the noise came from a seed: whoever knows it can subtract the noise")
    found = support(plan, ledger, heads, metric)
    figures = found.guarantee
    if not math.isfinite(figures.epsilon_pld) or not figures.accountants_agree:
        raise ClaimError(
            f"no finite epsilon holds at delta {plan.delta}, or the accountants differ"
        )
    stated = facts.stated_epsilon
    if stated is not None and stated < figures.epsilon_pld:
        raise ClaimError(
            f"the report states epsilon {stated}, and the ledger gives {figures.epsilon_pld}"
        )
    return _claim(plan, facts, found)


def compare_claims(first: Claim, second: Claim) -> str:
    """Which of two claims promises more, in words.

    Raises:
        ClaimError: They differ in δ, unit, neighbouring relation or trust: then their ε are figures
            of different things, and neither is smaller.
    """
    for name in ("delta", "unit", "neighbouring", "trust"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ClaimError(f"claims of different {name} can't be compared: {ours} and {theirs}")
    if first.epsilon == second.epsilon:
        return f"runs {first.run_id} and {second.run_id} promise the same, epsilon {first.epsilon}"
    less, more = sorted((first, second), key=lambda claim: claim.epsilon)
    return (
        f"run {less.run_id} promises more: epsilon {less.epsilon} against {more.epsilon} of run "
        f"{more.run_id}, at delta {less.delta:g}, unit {less.unit}"
    )


def _claim(plan: Plan | CentralPlan, facts: Facts, found: Support) -> Claim:
    figures, mu = found.guarantee, found.dominating.mu
    return Claim(
        run_id=plan.run_id,
        plan_sha256=plan.sha256,
        epsilon=figures.epsilon_pld,
        delta=plan.delta,
        unit=plan.unit,
        contribution_bound=_BOUND[plan.unit],
        neighbouring=plan.neighbouring,
        other_unit=_other_unit(plan.unit, figures.record_epsilon, figures.user_epsilon),
        trust=plan.trust,
        threat_model=_TRUST[plan.trust],
        mechanism={"rounds": found.rounds, **_native(found)},
        sampling=plan.sampling,
        composition=figures.composition,
        accountant=figures.accountant,
        versions={name: version(name) for name in ("sordino", "dp-accounting", "numpy", "scipy")},
        epsilon_rdp=figures.epsilon_rdp,
        mu=mu if math.isfinite(mu) else None,
        mu_smallest_delta=found.dominating.smallest_delta,
        delta_curve=found.curve,
        second_opinion=facts.second_opinion,
        randomness=facts.noise_source,
        side_channels_considered=_CONSIDERED,
        side_channels_not_considered=_NOT_CONSIDERED,
        other_releases=_other_releases(found),
        tuning=facts.tuning,
        not_covered=_NOT_COVERED,
        ledger_heads=dict(found.holders),
    )


def _native(found: Support) -> dict[str, Any]:
    values = asdict(found.event)
    native = {"kind": found.event.kind, **{key: values[key] for key in sorted(values)}}
    if found.metric_event is not None:
        look = {"kind": found.metric_event.kind, **asdict(found.metric_event)}
        native |= {"looks": found.looks, **{f"look {key}": look[key] for key in sorted(look)}}
    return native


def _other_unit(unit: str, record: float, user: float) -> str:
    if unit == "user":
        return (
            "record: each of a user's records is covered by the user's ε, against the user's "
            "absence; one record added to or removed from a user who takes part moves the clipped "
            f"update by at most 2C: ε ≤ {record}"
        )
    if math.isinf(user):
        return "user: not bounded, for the plan doesn't limit how many records a user has"
    return f"user: ε ≤ {user}"


def _other_releases(found: Support) -> str:
    whole = found.lifetime_epsilon
    total = "not bounded" if math.isinf(whole) else f"ε ≤ {whole}"
    if not found.other_runs:
        return f"none in these ledgers; over all that they hold, {total}"
    return f"runs {', '.join(found.other_runs)}; over all that these ledgers hold, {total}"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|" else c for c in text)
