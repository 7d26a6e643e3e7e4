"""The claim of a run's folder: its plan, its ledger, and what its report says beside them."""

from __future__ import annotations

from pathlib import Path

from sordino.core.errors import ClaimError, ReportError
from sordino.privacy.accounting import NOT_BOUNDED
from sordino.privacy.claims import Claim, Facts, make_claim
from sordino.privacy.ledger import read_heads
from sordino.privacy.noise import SYSTEM_LABEL
from sordino.privacy.plan import CentralPlan, Plan, decode_plan
from sordino.server.plans import read_metric_plan
from sordino.server.report.codec import from_json
from sordino.server.report.opinion import second_opinion
from sordino.server.report.schema import RunReport

PLANS = ("state/private/plan.json", "plan.json")
LEDGERS = ("ledger.jsonl", "ledger.db")
HEADS = "heads.jsonl"


def claim_of_run(folder: Path) -> Claim:
    """The claim that a run's folder bears out.

    Args:
        folder: Holds the plan, the ledger (an export of the clients', or under central trust the
            coordinator's own), perhaps the heads that were kept of it, and perhaps a report.

    Raises:
        ClaimError: There is no plan with privacy or no ledger, or the ledger doesn't bear it out.
        LedgerError: The ledger can't be read.
        ReportError: The report can't be read.
    """
    path = _find(folder, PLANS, "plan")
    plan, metric = decode_plan(path.read_bytes()), read_metric_plan(path.parent)
    if not isinstance(plan, Plan | CentralPlan):
        raise ClaimError(f"{folder} is a run without privacy: it has nothing to claim")
    ledger = _find(folder, LEDGERS, "ledger")
    heads = folder / HEADS
    kept = read_heads(heads) if heads.exists() else ()
    path = folder / "report.json"
    report = None
    if path.exists():
        try:
            report = from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ReportError(f"can't read {path}: {error}") from error
    return make_claim(plan, ledger, _facts(plan, report), kept, metric)


def _facts(plan: Plan | CentralPlan, report: RunReport | None) -> Facts:
    if report is None:
        return Facts(noise_source=f"as the program that ran says: {SYSTEM_LABEL}")
    stated = report.guarantee
    if stated.unit != plan.unit:
        raise ClaimError(f"the report is about the unit {stated.unit}, the plan about {plan.unit}")
    return Facts(
        noise_source=report.noise.source,
        second_opinion=second_opinion(report) or "none",
        stated_epsilon=stated.epsilon.pld,
    )


def _find(folder: Path, names: tuple[str, ...], what: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ClaimError(f"{folder} holds no {what} ({' or '.join(names)}): {NOT_BOUNDED}")
