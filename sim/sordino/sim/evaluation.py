"""The simulation's omniscient eye: held-out losses of every client, computed where the data is.

On a fleet nobody may see these: a client's exact loss is a release that no event pays for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sordino.core.errors import DataError
from sordino.sim.grid import LocalGrid, NodeConfig

EVALUATE = f"{__name__}:evaluate_job"


@dataclass(frozen=True)
class Losses:
    """Held-out losses of several clients, of whom some may hold nothing out.

    Attributes:
        sums: For each client, the summed loss of each of its records, in nats.
        tokens: For each client, how many tokens each record's loss counts.
    """

    sums: tuple[NDArray[np.float64], ...]
    tokens: tuple[NDArray[np.float64], ...]

    def mean(self, index: int) -> float | None:
        """Loss per token of one client; None if it holds nothing out."""
        tokens = self.tokens[index].sum()
        return float(self.sums[index].sum() / tokens) if tokens else None

    def overall(self) -> float:
        """Loss per token over all clients' tokens."""
        return float(sum(s.sum() for s in self.sums) / sum(t.sum() for t in self.tokens))


def evaluate_all(
    grid: LocalGrid,
    nodes: Sequence[NodeConfig],
    adapters: Sequence[Path | None],
    on_done: Callable[[int], None] | None = None,
) -> Losses:
    """Evaluate each client's held-out records under an adapter of its own.

    Args:
        grid: Whose processes do the work.
        nodes: Each client's node configuration.
        adapters: For each, the folder of the adapter; None: the base alone.
        on_done: Called with a client's index when it is done.

    Raises:
        DataError: No client holds a record out: there is nothing to judge an adapter by.
    """
    jobs = [
        json.dumps({"node": node, "adapter": adapter and str(adapter)})
        for node, adapter in zip(nodes, adapters, strict=True)
    ]
    answers = grid.map(EVALUATE, (job.encode() for job in jobs), on_done=on_done)
    tables = [np.frombuffer(answer, dtype=np.float64).reshape(-1, 2) for answer in answers]
    if not any(map(len, tables)):
        raise DataError(
            "no client has a held-out record with a token to learn: give them more records, or "
            "raise data.held_out, data.share or data.max_tokens"
        )
    return Losses(tuple(t[:, 0] for t in tables), tuple(t[:, 1] for t in tables))


def evaluate_job(job: bytes) -> bytes:
    """Evaluate one client here: ``float64[records, 2]`` of loss sums and token counts."""
    from sordino.client.adapter_files import load_adapter
    from sordino.client.lora import LoraAdapter
    from sordino.client.session import open_session
    from sordino.client.train import evaluate

    work = json.loads(job)
    session = open_session(work["node"])
    adapter = None
    if work["adapter"]:
        saved = load_adapter(Path(work["adapter"]))
        adapter = LoraAdapter(saved.tensors, scale=saved.scale)
    return evaluate(session.base.decoder, adapter, session.held_out).tobytes()
