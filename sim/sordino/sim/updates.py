"""What a simulated coordinator saw in each round: the clients' updates, kept for an audit.

A client keeps only its last answer, by hash. With `[audit]` in the configuration each round's are
copied as they are, so that the coordinator's attack can be run on the very bytes it was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sordino.client.charged import UPDATES
from sordino.core.durable import write_whole
from sordino.core.errors import LedgerError
from sordino.core.kept import KeptUpdates
from sordino.core.records import Tensors
from sordino.core.wire import decode_update, unpack
from sordino.privacy.plan import AnyPlan
from sordino.sim.folder import RunFolder


def keep_updates(
    run: RunFolder, variant: str, plan: AnyPlan, number: int, states: Sequence[Path]
) -> None:
    """Copy what each client answered in a round, before the next one replaces it."""
    for index, state in enumerate(states):
        kept = KeptUpdates(state / UPDATES)
        digest = kept.find(plan.sha256, number)
        if digest:
            write_whole(_path(run, variant, number, index), kept.read(plan.sha256, number, digest))


def kept_update(run: RunFolder, variant: str, number: int, client: int) -> Tensors | None:
    """A client's update of a round; None: it sent none, or none was kept.

    Raises:
        LedgerError: The kept bytes are no update.
    """
    path = _path(run, variant, number, client)
    if not path.exists():
        return None
    try:
        return dict(decode_update(unpack(path.read_bytes())).tensors)
    except ValueError as error:
        raise LedgerError(f"{path} is no update: {error}") from error


def _path(run: RunFolder, variant: str, number: int, client: int) -> Path:
    return run.state(variant) / "updates" / f"round-{number:04d}" / f"{client:05d}.update"
