"""Kept updates, by hash, so that a retry sends the very same bytes and nothing is drawn again.

A device keeps what it answered; under central trust the coordinator keeps the noised update that it
released.

One folder a plan (a plan's hash names its run too, which the coordinator chose: no path is made of
that), one file a round: `<round>.<sha256>.update`.
"""

from __future__ import annotations

from pathlib import Path

from sordino.core import canonical, durable
from sordino.core.errors import LedgerError


class KeptUpdates:
    """The kept updates of one client, or of a coordinator."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def keep(self, plan_sha256: str, round_number: int, data: bytes) -> str:
        """Put an update on stable storage, whole or not at all; returns its hash.

        The plan's earlier ones may go: their rounds are over.
        """
        digest = canonical.sha256_hex(data)
        folder = self._folder(plan_sha256)
        path = folder / f"{round_number}.{digest}.update"
        durable.write_whole(path, data)
        for other in folder.iterdir():
            if other != path:
                other.unlink(missing_ok=True)
        return digest

    def find(self, plan_sha256: str, round_number: int) -> str:
        """The hash of a round's kept update, or an empty string. What is damaged isn't found."""
        for path in self._folder(plan_sha256).glob(f"{round_number}.*.update"):
            digest = canonical.sha256_hex(path.read_bytes())
            if path.name == f"{round_number}.{digest}.update":
                return digest
        return ""

    def read(self, plan_sha256: str, round_number: int, digest: str) -> bytes:
        """The kept bytes.

        Raises:
            LedgerError: They are gone, or aren't what they were.
        """
        path = self._folder(plan_sha256) / f"{round_number}.{digest}.update"
        data = path.read_bytes() if path.exists() else b""
        if canonical.sha256_hex(data) != digest:
            state = "damaged" if data else "no longer kept"
            raise LedgerError(f"round {round_number}'s update was released and is {state}: {path}")
        return data

    def _folder(self, plan_sha256: str) -> Path:
        return self.root / plan_sha256[:32]
