"""A claim held against its ledger, and an audit's lower bounds held against the claim.

The one module here that knows plans and claims; all others are about scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from sordino.core.errors import ClaimError, SordinoError
from sordino.privacy.audit.checks import LEVEL
from sordino.privacy.audit.commitments import check_openings
from sordino.privacy.audit.one_run import OneRun
from sordino.privacy.audit.records import Audit, Entry
from sordino.privacy.audit.worlds import TwoWorlds
from sordino.privacy.claims import VERSION, Claim, Facts, make_claim
from sordino.privacy.ledger import KeptHead
from sordino.privacy.plan import CentralPlan, MetricPlan, Plan

RED_ALARM: Final = 3
"""The exit code of an audit that contradicts a claim."""

_OF_THE_MACHINE: Final = ("versions", "accountant")  # say who computed, and not what came out


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is wrong with an audit, and what it shows to be wrong with the run.

    Attributes:
        defects: What doesn't hold: a figure, a hash, a missing statement.
        alarms: Where scores contradict the claim.
        compared: Each lower bound that was held against the claim, in words.
    """

    defects: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if nothing is wrong, 1 with a defect, 3 with an alarm, whatever else there is."""
        return RED_ALARM if self.alarms else int(bool(self.defects))


def decode_claim(data: bytes) -> dict[str, Any]:
    """Read a claim card.

    Raises:
        ClaimError: It isn't one, or a statement is missing or unknown.
    """
    try:
        card = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ClaimError(f"the claim can't be read: {error}") from error
    if not isinstance(card, dict) or card.pop("kind", None) != "sordino.claim":
        raise ClaimError("the claim is not a card of the kind sordino.claim")
    version = card.pop("version", None)
    if version != VERSION:
        raise ClaimError(f"expected version {VERSION} of the claim, got {version!r}")
    known = {field.name for field in fields(Claim)}
    odd = sorted(known.symmetric_difference(card))
    if odd:
        raise ClaimError(f"the claim has missing or unknown statements: {', '.join(odd)}")
    empty = [name for name in sorted(known) if card[name] in ("", [], {})]
    if set(empty) - {"delta_curve"}:
        raise ClaimError(f"the claim says nothing about {', '.join(empty)}")
    return card


def claim_defects(
    card: dict[str, Any],
    plan: Plan | CentralPlan,
    ledger: Path,
    heads: Sequence[KeptHead] = (),
    metric: MetricPlan | None = None,
) -> tuple[str, ...]:
    """Make the claim again from the ledger alone; says where the card states something else.

    What a ledger can't know is taken from the card, as somebody's word: where the noise came from,
    how settings were chosen, a second opinion.
    """
    facts = Facts(
        noise_source=str(card["randomness"]),
        tuning=str(card["tuning"]),
        second_opinion=str(card["second_opinion"]),
    )
    try:
        again = make_claim(plan, ledger, facts, heads, metric)
    except SordinoError as error:
        return (f"the ledger doesn't bear the claim out: {error}",)
    found = json.loads(json.dumps(asdict(again)))
    return tuple(
        f"claim {name}: the ledger gives {_short(found[name])}, the card states {_short(stated)}"
        for name, stated in card.items()
        if name not in _OF_THE_MACHINE and found[name] != stated
    )


def check_bounds(entries: Iterable[Entry], card: dict[str, Any] | None) -> Findings:
    """Hold every lower bound against the claim, at the claim's δ and unit.

    An entry that says what is claimed must say what the card says. One that doesn't is about
    something of which nothing is claimed, such as the run without privacy.
    """
    defects, alarms, compared = [], [], []
    every = tuple(entries)
    looks = sum(map(_is_look, every))
    for entry in every:
        if entry.figures.get("alarm") and not entry.control:
            alarms.append(f"{_name(entry)}: {entry.figures['verdict']}")
        measure = entry.measure
        if not isinstance(measure, OneRun | TwoWorlds) or measure.claimed_epsilon is None:
            continue
        if card is None:
            defects.append(f"{_name(entry)} is held against a claim, and there is none")
            continue
        wrong = _other_claim(measure, card)
        if _is_look(entry) and measure.family < looks:
            wrong.append(f"its level is for {measure.family} looks, and there are {looks}")
        defects += [f"{_name(entry)}: {what}" for what in wrong]
        if not wrong and not entry.control:
            lower, upper = entry.figures["epsilon_lower"], card["epsilon"]
            compared.append(
                f"{_name(entry)}: {lower} <= {upper} at delta {measure.delta:g}"
                if lower <= upper
                else f"{_name(entry)}: {lower} > {upper} at delta {measure.delta:g}"
            )
    return Findings(defects=tuple(defects), alarms=tuple(alarms), compared=tuple(compared))


def coin_defects(audit: Audit) -> tuple[str, ...]:
    """Hold every canary's coin against what was committed to before training."""
    used = [entry for entry in audit.entries if isinstance(entry.measure, OneRun)]
    real = [entry for entry in used if not entry.control]
    if audit.commitments is None:
        return tuple(f"{_name(entry)}: its coins weren't committed to" for entry in real)
    try:
        tossed = check_openings(audit.commitments, audit.openings, audit.contributions)
    except SordinoError as error:
        return (str(error),)
    found = []
    for entry in real:
        measure = entry.measure
        assert isinstance(measure, OneRun)  # noqa: S101  chosen above
        if max(measure.canaries) >= len(tossed):
            found.append(f"{_name(entry)}: a canary that wasn't committed to")
        elif tossed[list(measure.canaries)].tolist() != list(measure.coins):
            found.append(f"{_name(entry)}: other coins than those that were committed to")
    return tuple(found)


def _is_look(entry: Entry) -> bool:
    """Whether it is one of the looks that share the chance of a false alarm."""
    measure = entry.measure
    claimed = isinstance(measure, OneRun) and measure.claimed_epsilon is not None
    return claimed and not entry.control


def _other_claim(measure: OneRun | TwoWorlds, card: dict[str, Any]) -> list[str]:
    stated = {"claimed_epsilon": "epsilon", "delta": "delta"}
    if isinstance(measure, OneRun):
        stated |= {"unit": "unit", "neighbouring": "neighbouring"}
    wrong = [
        f"{name} {getattr(measure, name)}, and the claim's is {card[key]}"
        for name, key in stated.items()
        if getattr(measure, name) != card[key]
    ]
    if measure.level != LEVEL:
        wrong.append(f"level {measure.level}, and every audit's is {LEVEL}")
    if isinstance(measure, OneRun) and [list(p) for p in measure.curve] != card["delta_curve"]:
        wrong.append("another curve than the claim's")
    return wrong


def _name(entry: Entry) -> str:
    measure = entry.measure
    parts = [entry.label, entry.control, measure.kind]
    parts += [getattr(measure, name, "") for name in ("adversary", "scope")]
    return " ".join(part for part in parts if part)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
