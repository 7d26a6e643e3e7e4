"""One audit of one run: parts that run the model, the seal, the coins, the figures."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sordino.client.model.store import cache_root
from sordino.core import canonical
from sordino.core.durable import write_whole
from sordino.privacy.audit import (
    Audit,
    Commitments,
    Entry,
    Findings,
    check_bounds,
    encode_audit,
    measured,
    versions,
)
from sordino.privacy.claims import Claim
from sordino.privacy.plan import CentralPlan, NoPrivacyPlan
from sordino.server.report import claim_of_run
from sordino.sim.audit.coins import bound_entries, secret_entries
from sordino.sim.audit.deployed import AUDIT, DeployedParts
from sordino.sim.audit.kept import Kept, rebuilt, tables
from sordino.sim.audit.parts.canaries import sights
from sordino.sim.audit.parts.inversion import inversions
from sordino.sim.audit.parts.secrets import code_ranks, suffixes
from sordino.sim.audit.planting import Planted, open_coins, planted
from sordino.sim.audit.target import Target, open_target
from sordino.sim.audit.tiers import Tier, estimated_seconds, tier_of
from sordino.sim.folder import NO_PRIVACY, PRIVATE
from sordino.sim.progress import Progress, Silent

LABELS = {PRIVATE: "private", NO_PRIVACY: "without privacy"}


@dataclass(frozen=True)
class AuditOutcome:
    """What an audit of a run left.

    Attributes:
        target: The run.
        audit: All scores and figures.
        claim: What the run's ledger bears out; None: it claims nothing.
        findings: Lower bounds against the claim, and other alarms.
        seconds: How long it took.
    """

    target: Target
    audit: Audit
    claim: Claim | None
    findings: Findings
    seconds: float


def audit_run(
    root: Path,
    tier: str = "quick",
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> AuditOutcome:
    """Audit a finished run and write ``audit.json`` beside its report.

    Whatever ran before a stop is kept, and not run again.

    Args:
        root: The run's folder.
        tier: `quick`, `full`, or the demo's own.
        cache: The model cache; None: the user's.
        progress: Who is told of it.

    Raises:
        AuditError: The run isn't finished, or what it carries can't be read or believed.
        ClaimError: Its ledger doesn't bear its claim out.
    """
    progress, chosen = progress or Silent(), tier_of(tier)
    target = open_target(root, cache or cache_root())
    plan = target.plan(target.main)
    seeded = target.config.privacy.seeded_noise
    claim = None if seeded or isinstance(plan, NoPrivacyPlan) else claim_of_run(target.run.root)
    known = planted(target.run)
    kept = Kept(target.run.audit / "parts")
    work = _Work(target, chosen, known, DeployedParts(target, chosen, LABELS, kept, progress))
    wanted = estimated_seconds(target, chosen, known.canaries if known else [])
    progress.say(
        f"Audit of {target.run.run_id}, {chosen.name}: {chosen.what}; about {wanted:.0f} s"
    )
    started = time.monotonic()
    audit = work.audit(claim)
    write_whole(target.run.root / AUDIT, encode_audit(audit))
    findings = check_bounds(audit.entries, None if claim is None else claim_card(claim))
    return AuditOutcome(target, audit, claim, findings, time.monotonic() - started)


def claim_card(claim: Claim) -> dict[str, Any]:
    """A claim as the card that bounds are held against."""
    from sordino.privacy.audit import decode_claim

    return decode_claim(claim.to_json().encode())


@dataclass(frozen=True)
class _Work:
    target: Target
    tier: Tier
    planted: Planted | None
    parts: DeployedParts

    @property
    def kept(self) -> Kept:
        """Where finished parts are."""
        return self.parts.kept

    @property
    def progress(self) -> Progress:
        """Who is told."""
        return self.parts.progress

    def audit(self, claim: Claim | None) -> Audit:
        """Run the parts, seal what says anything of canaries, open the coins, and measure."""
        started = time.monotonic()
        scores = {variant: self._canaries(variant) for variant in self.target.variants}
        plain = [*self.parts.entries(), *self._inversion()]
        seconds = time.monotonic() - started
        context: dict[str, Any] = {
            "tier": self.tier.name,
            "versions": versions(),
            "adapters": self.parts.adapters(),
            "base_sha256": self.target.base.files.sha256,
            "seed": self.target.config.seed,
            "seconds": round(seconds, 1),
        }
        known = self.planted
        if known is None or not known.canaries:
            context["canaries"] = (
                "none were planted: [audit] in the run's configuration asks for it"
            )
            return Audit(run_id=self.target.run.run_id, entries=tuple(plain), context=context)
        sealed = {"scores": scores, "published": known.published.table()}
        context["sealed"] = canonical.sha256_hex(canonical.encode(sealed))
        write_whole(self.target.run.audit / "sealed.sha256", context["sealed"] + "\n")
        opened, coins = open_coins(self.target.run, known, self.target.corpus.users)
        context["clients"] = sorted(opened.contributions)
        entries = [
            entry
            for variant in self.target.variants
            for entry in (
                *bound_entries(self.target, variant, LABELS[variant], known, scores, coins, claim),
                *secret_entries(LABELS[variant], known.canaries, scores[variant], coins),
            )
        ]
        return Audit(
            run_id=self.target.run.run_id,
            entries=(*entries, *plain),
            commitments=_flat_commitments(known),
            openings=tuple(o for c in sorted(opened.contributions) for o in opened.canaries[c]),
            contributions=tuple(x for _, own in sorted(opened.contributions.items()) for x in own),
            context=context,
        )

    def _canaries(self, variant: str) -> dict[str, Any]:
        """Everything about a variant's canaries that can be known without a coin."""
        known = self.planted
        canaries = known.canaries if known else []
        if not known or not canaries:
            return {}
        bound = [c for c in canaries if c.purpose == "bound"]
        exposed = [c for c in canaries if c.purpose == "exposure"]
        rounds = self.target.rounds(variant)
        given = {**self._given(variant), "canaries": known.published.sha256}
        central = isinstance(self.target.plan(variant), CentralPlan)
        label, tick = LABELS[variant], self.progress.advance
        self.progress.phase(f"canaries: {label}", rounds * (1 if central else 2))
        seen = self.kept.part(
            f"canaries-{variant}",
            given,
            lambda: [
                {**asdict(s), "scores": s.scores.tolist()}
                for s in (sights(self.target, bound, tick, variant) if bound else [])
            ],
        )
        self.progress.phase(f"exposure: {label}", len(exposed))
        ranks = self.kept.part(
            f"exposure-{variant}",
            given,
            lambda: list(code_ranks(self.target, variant, exposed, tick)),
        )
        found = self.kept.part(
            f"extraction-{variant}",
            given,
            lambda: suffixes(self.target, variant, canaries, lambda: None),
        )
        return {"sights": seen, "ranks": ranks, "suffixes": found}

    def _given(self, variant: str) -> dict[str, Any]:
        return {**self.parts.given(variant), "rounds": self.target.rounds(variant)}

    def _inversion(self) -> list[Entry]:
        if self.tier.name == "demo":
            return []
        main = self.target.main
        rows = self.kept.part(
            "inversion",
            self._given(main),
            lambda: [[said, *tables([found])] for said, found in inversions(self.target)],
        )
        return [measured(LABELS[main], rebuilt(table), control=said) for said, table in rows]


def _flat_commitments(known: Planted) -> Commitments:
    """What was published of the clients that took part, one after another."""
    clients = sorted(known.published.contributions)
    return Commitments(
        canaries=tuple(h for c in clients for h in known.published.canaries[c]),
        contributions=tuple(h for c in clients for h in known.published.contributions[c]),
    )
