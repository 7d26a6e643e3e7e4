"""The signed bundle of an audited run: what an outsider needs, and nothing private beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sordino.core.durable import write_whole
from sordino.privacy.audit import Findings, make_auditor_key, sign_bundle, verify_bundle
from sordino.server.plans import METRIC_PLAN
from sordino.server.report.claim import HEADS
from sordino.sim.audit.deployed import AUDIT
from sordino.sim.audit.run import AuditOutcome
from sordino.sim.folder import PRIVATE


def auditor_key() -> Path:
    """Where this user's auditing key is, if no other is named: one for all audits."""
    states = os.environ.get("XDG_STATE_HOME")
    root = Path(states) if states else Path.home() / ".local" / "state"
    return root / "sordino" / "auditor.key"


def write_bundle(outcome: AuditOutcome, key: Path) -> Findings:
    """Put the bundle into the run's folder, signed, and verify it as an outsider would.

    Args:
        outcome: Of `audit_run`; its ``audit.json`` is written.
        key: The auditor's; made if it isn't there.

    Returns:
        What an outsider finds.

    Raises:
        AuditError: The bundle can't be written.
        TrustError: The key can't be read, or others can read it.
    """
    if not key.exists():
        make_auditor_key(key)
    run = outcome.target.run
    folder = bundle_of(run.root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (AUDIT, "config.toml"):
        write_whole(folder / name, (run.root / name).read_bytes())
    if outcome.claim is not None:
        write_whole(folder / "claim.json", outcome.claim.to_json())
        state = run.state(PRIVATE)
        write_whole(folder / "plan.json", (state / "plan.json").read_bytes())
        write_whole(folder / "ledger.jsonl", run.ledger.read_bytes())
        for name, source in ((HEADS, run.root / HEADS), (METRIC_PLAN, state / METRIC_PLAN)):
            if source.exists():
                write_whole(folder / name, source.read_bytes())
    sign_bundle(folder, key, outcome.audit.context["adapters"])
    return verify_bundle(folder)


def bundle_of(root: Path) -> Path:
    """Where a run's bundle is."""
    return root / "audit" / "bundle"
