"""The bundle: what an outsider needs to check a run without believing whoever ran it. Signed.

A folder with the files below, a manifest of their hashes, and the auditor's signature over it. To
verify needs no model, no network and no access to the run: the ledger is replayed, the claim made
again from it, every figure of the audit computed again from raw scores, the coins opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sordino.core import canonical, durable
from sordino.core.errors import AuditError, SordinoError, expected
from sordino.privacy.audit import signing
from sordino.privacy.audit.checking import (
    Findings,
    check_bounds,
    claim_defects,
    coin_defects,
    decode_claim,
)
from sordino.privacy.audit.records import MOST_BYTES, Audit, decode_audit, mismatches, recompute
from sordino.privacy.ledger import read_heads
from sordino.privacy.plan import CentralPlan, Plan, decode_metric_plan, decode_plan

VERSION: Final = 1
MANIFEST: Final = "bundle.json"
SIGNATURE: Final = "bundle.sig"
AUDIT: Final = "audit.json"
CONFIG: Final = "config.toml"
CLAIMED: Final = ("plan.json", "ledger.jsonl", "claim.json")
"""A run with privacy has all three; a run without has none of them."""

OPTIONAL: Final = ("heads.jsonl", "metric.json")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        run_id: The run.
        files: SHA-256 of each file.
        adapters: SHA-256 of each adapter that was audited, by name; they aren't in the bundle.
        public_key: The auditor's.
    """

    run_id: str
    files: Mapping[str, str]
    adapters: Mapping[str, str]
    public_key: str

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        return canonical.encode(
            {
                "kind": "sordino.bundle",
                "version": VERSION,
                "run_id": self.run_id,
                "files": dict(self.files),
                "adapters": dict(self.adapters),
                "public_key": self.public_key,
            }
        )


def sign_bundle(folder: Path, key: Path, adapters: Mapping[str, str]) -> Manifest:
    """Write a bundle's manifest and signature beside its files.

    Args:
        folder: Holds `config.toml` and `audit.json`; of a run with privacy also `plan.json`,
            `ledger.jsonl` and `claim.json`, and perhaps `heads.jsonl` and `metric.json`. Nothing
            else.
        key: The auditor's key, from `make_auditor_key`.
        adapters: SHA-256 of each adapter that was audited.

    Raises:
        AuditError: A file is missing, unknown, or no audit; or the folder can't be written.
        TrustError: The key can't be read, or others can read it too.
    """
    names = _present(folder)
    wrong = _layout(names)
    if wrong:
        raise AuditError(f"{folder} is no bundle: {wrong[0]}")
    audit = decode_audit(_read(folder / AUDIT))
    manifest = Manifest(
        run_id=audit.run_id,
        files={name: _sha256(folder / name) for name in sorted(names)},
        adapters=dict(sorted(adapters.items())),
        public_key=signing.public_key_of(key),
    )
    signature = signing.sign(key, manifest.canonical())
    try:
        durable.write_whole(folder / MANIFEST, manifest.canonical())
        durable.write_whole(folder / SIGNATURE, f"{signature}\n")
    except OSError as error:
        raise AuditError(f"can't write into {folder}: {error.strerror}") from error
    return manifest


def verify_bundle(folder: Path, public_key: str | None = None, root: str | None = None) -> Findings:
    """Check everything that a bundle says, offline.

    Args:
        folder: The bundle.
        public_key: The auditor's key, learnt elsewhere. Without it the signature only shows that
            nothing was changed since somebody signed.
        root: The root of the commitments, if somebody kept it since before training.

    Returns:
        All defects and alarms. What a defect leaves unreadable isn't looked at further.

    Raises:
        AuditError: There is no bundle, or the key can't be one.
    """
    if public_key is not None:
        signing.check_public_key(public_key)
    manifest, defects = _read_manifest(folder, public_key)
    if manifest is None:
        return Findings(defects=tuple(defects))
    defects += _changed(folder, manifest)
    try:
        audit = decode_audit(_read(folder / AUDIT))
        again = recompute(audit)
    except SordinoError as error:
        return Findings(defects=(*defects, str(error)))
    if audit.run_id != manifest.run_id:
        defects.append(expected("run_id", audit.run_id, f"to be {manifest.run_id}"))
    defects += [*mismatches(audit, again), *coin_defects(audit), *_other_root(audit, root)]
    card, about_claim = _claim(folder, manifest.run_id)
    bounds = check_bounds(again.entries, card)
    defects += [*about_claim, *bounds.defects]
    if card is not None and not bounds.compared and not bounds.defects:
        defects.append("no lower bound is held against the claim")
    return Findings(defects=tuple(defects), alarms=bounds.alarms, compared=bounds.compared)


def _read_manifest(folder: Path, public_key: str | None) -> tuple[Manifest | None, list[str]]:
    data = _read(folder / MANIFEST)
    signature = _read(folder / SIGNATURE).decode("ascii", "replace").strip()
    try:
        values = canonical.decode(data)
        if (values.pop("kind"), values.pop("version")) != ("sordino.bundle", VERSION):
            return None, [f"{MANIFEST} is not the manifest of a bundle, version {VERSION}"]
        manifest = Manifest(**values)
        signing.check_public_key(manifest.public_key)
        named = all(map(_words, (manifest.files, manifest.adapters)))
    except (ValueError, KeyError, TypeError, AuditError) as error:
        return None, [f"{MANIFEST} can't be read: {error}"]
    if not named or not isinstance(manifest.run_id, str):
        return None, [f"{MANIFEST} names no files"]
    key = public_key or manifest.public_key
    if manifest.public_key != key or not signing.signature_holds(key, data, signature):
        return manifest, [f"the bundle is not signed by the key {key[:12]}"]
    return manifest, []


def _changed(folder: Path, manifest: Manifest) -> list[str]:
    """What isn't as it was signed."""
    found = _layout(manifest.files)
    present = _present(folder)
    found += [f"{name} isn't in the manifest" for name in sorted(present - set(manifest.files))]
    for name, sha256 in manifest.files.items():
        if name not in present:
            found.append(f"{name} is missing")
        elif _sha256(folder / name) != sha256:
            found.append(f"{name} is not what was signed")
    return found


def _claim(folder: Path, run_id: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The claim card, and what is wrong with it; None if nothing is claimed or it can't be read."""
    if not (folder / "claim.json").is_file():
        return None, []
    try:
        card = decode_claim(_read(folder / "claim.json"))
        plan = decode_plan(_read(folder / "plan.json"))
        metric = folder / "metric.json"
        look = decode_metric_plan(_read(metric)) if metric.is_file() else None
        heads = folder / "heads.jsonl"
        kept = read_heads(heads) if heads.is_file() else ()
    except SordinoError as error:
        return None, [str(error)]
    if not isinstance(plan, Plan | CentralPlan):
        return card, ["the plan is one without privacy: it bears no claim out"]
    wrong = list(claim_defects(card, plan, folder / "ledger.jsonl", kept, look))
    if run_id != plan.run_id:
        wrong.append(f"the audit is of run {run_id}, and the claim of run {plan.run_id}")
    return card, wrong


def _other_root(audit: Audit, root: str | None) -> list[str]:
    if root is None or (audit.commitments is not None and audit.commitments.root == root):
        return []
    return ["the commitments are not those whose root was kept"]


def _layout(names: Iterable[str]) -> list[str]:
    given = set(names)
    needed = {AUDIT, CONFIG} | (set(CLAIMED) if given & set(CLAIMED) else set())
    known = needed | (set(OPTIONAL) if given & set(CLAIMED) else set())
    missing = [f"{name} is missing" for name in sorted(needed - given)]
    return missing + [f"{name} has no place in a bundle" for name in sorted(given - known)]


def _present(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise AuditError(expected("bundle", str(folder), "to be a folder"))
    return {path.name for path in folder.iterdir()} - {MANIFEST, SIGNATURE}


def _words(values: object) -> bool:
    pairs = values.items() if isinstance(values, dict) else [(None, None)]
    return all(isinstance(k, str) and isinstance(v, str) for k, v in pairs)


def _sha256(path: Path) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise AuditError(f"can't read {path}: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise AuditError(f"{path} is longer than {MOST_BYTES} bytes")
    return data
