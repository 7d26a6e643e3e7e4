"""The parts that need nothing but a model and its adapters: membership, and attacks on prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.client.model.store import cache_root
from sordino.core.config import ExperimentConfig
from sordino.core.durable import write_whole
from sordino.privacy.audit import Audit, Entry, encode_audit, measured, versions
from sordino.sim.audit.hidden import TARGETS
from sordino.sim.audit.kept import Kept, rebuilt, tables
from sordino.sim.audit.parts.membership import membership
from sordino.sim.audit.parts.prompts import can_talk, prompt_leakage
from sordino.sim.audit.target import GIVEN, Deployed, open_given
from sordino.sim.audit.tiers import Tier, tier_of
from sordino.sim.progress import Progress, Silent

AUDIT = "audit.json"


@dataclass(frozen=True)
class DeployedParts:
    """What can be asked of adapters as they were deployed.

    Attributes:
        target: The adapters.
        tier: How much.
        labels: The variants' names in the audit.
        kept: Where finished parts are.
        progress: Who is told.
    """

    target: Deployed
    tier: Tier
    labels: Mapping[str, str]
    kept: Kept
    progress: Progress

    def entries(self) -> list[Entry]:
        """All of it, variant by variant, then target by target."""
        found = [entry for v in self.target.variants for entry in self._membership(v)]
        if self.tier.prompts and can_talk(self.target):
            found += [self._prompts(what) for what in TARGETS]
        return found

    def given(self, variant: str) -> dict[str, Any]:
        """What any part of a variant depends on."""
        return {
            "variant": variant,
            "adapter": self.target.sha256(variant),
            "base": self.target.base.files.sha256,
        }

    def adapters(self) -> dict[str, str]:
        """Hashes of what was audited, by label."""
        return {self.labels[v]: self.target.sha256(v) for v in self.target.variants}

    def _membership(self, variant: str) -> list[Entry]:
        full, texts = self.tier.full, self.tier.texts
        self.progress.phase(f"membership: {self.labels[variant]}", 3 if full else 2)
        tick = self.progress.advance
        found = self.kept.part(
            f"membership-{variant}",
            {**self.given(variant), "texts": texts, "full": full},
            lambda: tables(membership(self.target, variant, texts, tick, full=full)),
        )
        return [measured(self.labels[variant], rebuilt(table)) for table in found]

    def _prompts(self, what: str) -> Entry:
        self.progress.phase(f"attacks: {what}", 1 + len(self.target.variants))
        count, tick = self.tier.prompts, self.progress.advance
        (found,) = self.kept.part(
            f"prompts-{what.replace(' ', '-')}",
            {**{v: self.given(v) for v in self.target.variants}, "settings": count},
            lambda: tables([prompt_leakage(self.target, what, count, self.labels, tick)]),
        )
        return measured(self.labels[self.target.variants[0]], rebuilt(found))


def audit_adapter(
    config: ExperimentConfig,
    adapter: Path,
    out: Path,
    tier: str = "quick",
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audit an adapter of whatever origin, as a user of it: there is no ledger and no canary.

    Args:
        config: The base in `[model]`; in `[data]` the records that it is said to have been trained
            on, cut as then, and those that it wasn't.
        adapter: Its folder.
        out: Where ``audit.json`` and finished parts go.
        tier: `quick` or `full`.
        cache: The model cache; None: the user's.
        progress: Who is told of it.

    Raises:
        AuditError: There is nothing to tell apart, or no such tier.
        ModelError: The base or the adapter can't be opened.
    """
    target, chosen = open_given(config, adapter, cache or cache_root()), tier_of(tier)
    kept = Kept(out / "parts")
    parts = DeployedParts(target, chosen, {GIVEN: GIVEN}, kept, progress or Silent())
    started = time.monotonic()
    entries = tuple(parts.entries())
    context = {
        "tier": tier,
        "versions": versions(),
        "adapters": parts.adapters(),
        "base_sha256": target.base.files.sha256,
        "seed": config.seed,
        "seconds": round(time.monotonic() - started, 1),
        "canaries": "none: an adapter by itself has no coins",
    }
    audit = Audit(run_id=GIVEN, entries=entries, context=context)
    write_whole(out / AUDIT, encode_audit(audit))
    return audit
