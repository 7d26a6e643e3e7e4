"""The report's figures of an audit: what was seen to leak, each with what it could have shown.

They are taken over from ``audit.json``, where the raw scores stand that they follow from. `label`
says of which run a figure is: ``private``, or ``without privacy`` for its baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sordino.core.errors import ReportError, expected


@dataclass(frozen=True, kw_only=True)
class Between:
    """An estimate and its 95 % interval; the method stands in ``audit.json``."""

    estimate: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            required = "between 0 and 1, with low <= high"
            raise ReportError(expected("leakage interval", (self.low, self.high), required))


@dataclass(frozen=True, kw_only=True)
class BoundFigures:
    """A lower bound on ε that one adversary's guesses about canaries show.

    `epsilon_lower` is rigorous and pays for every look of its family; `estimate` assumes that the
    mechanism is Gaussian, and is an estimate. `ceiling` is what so many guesses can show if all are
    right: far below the claim, a small bound says nothing in the claim's favour. `p_value` is of
    the guesses under the claim; None where nothing is claimed.
    """

    label: str
    adversary: str
    round: int
    unit: str
    delta: float
    canaries: int
    guesses: int
    correct: int
    epsilon_lower: float
    estimate: float | None
    ceiling: float
    p_value: float | None
    alarm: bool
    verdict: str


@dataclass(frozen=True, kw_only=True)
class AttackFigures:
    """One membership attack: how well it tells trained records from held-out ones.

    The two tuples are the ROC curve, corner by corner. `at_one_percent` is the true-positive rate
    at 1 % of false ones, at the realised rate `realised`; None where the sample is too small, and
    `refused` says so.
    """

    label: str
    attack: str
    adversary: str
    members: int
    others: int
    auc: Between
    at_one_percent: Between | None
    realised: float | None
    refused: str
    false_positives: tuple[float, ...]
    true_positives: tuple[float, ...]
    verdict: str

    def __post_init__(self) -> None:
        if len(self.false_positives) != len(self.true_positives):
            sizes = len(self.false_positives), len(self.true_positives)
            raise ReportError(expected("leakage.attacks roc", sizes, "of equal length"))


@dataclass(frozen=True, kw_only=True)
class ExposureFigures:
    """How well planted codes are known, by how often they stood in the data; 0: never.

    `bits` is each code's exposure: log2 of how many codes there are over the true one's rank.
    """

    label: str
    repetitions: int
    bits: tuple[float, ...]
    ceiling: float
    mean: float
    p_value: float
    above_null: bool


@dataclass(frozen=True, kw_only=True)
class PromptFigures:
    """How many hidden texts one family of attacks brought out of one model, of so many.

    `control` is how many the same answers would be counted for of texts that the model never saw.
    `power` is whether the untouched base gave away enough for a comparison to mean anything.
    """

    target: str
    stage: str
    family: str
    criterion: str
    prompts: int
    leaked: Between
    control: Between
    power: bool


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Any other measure, in its own words; `control` is what was done to know how it does."""

    label: str
    kind: str
    control: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """What an audit saw, or that there was none.

    `alarm`: a lower bound, or scores, contradict the claim. `none_planted` says why there is no
    bound where the run carried no canaries.
    """

    status: Literal["not audited", "audited"] = "not audited"
    tier: str = ""
    alarm: bool = False
    none_planted: str = ""
    bounds: tuple[BoundFigures, ...] = ()
    attacks: tuple[AttackFigures, ...] = ()
    exposure: tuple[ExposureFigures, ...] = ()
    prompts: tuple[PromptFigures, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        found = (self.bounds, self.attacks, self.exposure, self.prompts, self.findings)
        if self.status == "not audited" and any(found):
            raise ReportError(expected("leakage.status", self.status, "audited, beside figures"))

    @property
    def whole(self) -> tuple[BoundFigures, ...]:
        """The bounds for the whole of each run: of its last round."""
        last = {one.label: max(b.round for b in self.bounds if b.label == one.label)
                for one in self.bounds}  # fmt: skip
        return tuple(bound for bound in self.bounds if bound.round == last[bound.label])
