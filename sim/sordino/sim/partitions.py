"""Who has what: records dealt out to simulated clients, by label, by size, or evenly.

Dealing makes a file like any other, with a user column, beside the model cache: the clients read it
as they read every file. For studies of methods alone. The clients are made up, so under central
trust the protected *user* is such a client, and no person.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.client.data import files, shakespeare
from sordino.client.data.source import SHAKESPEARE
from sordino.core.config import ExperimentConfig
from sordino.core.durable import write_whole
from sordino.core.errors import DataError, expected
from sordino.core.population import PartitionConfig

HOLDINGS = "partition.json"
_USER = "user"
_VERSION = 1  # of the dealing: another one makes other files

Owners = NDArray[np.int64]
"""The client of each record, shape (records,)."""


@dataclass(frozen=True)
class Holdings:
    """How many records of each label each client holds: exact, and a simulation's to know.

    Attributes:
        clients: Their names.
        labels: The labels' names; one, empty, where records have none.
        counts: A row a client, a column a label.
    """

    clients: tuple[str, ...]
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def read(cls, root: Path) -> Holdings | None:
        """What a run's folder says; None where its clients are the data's own users."""
        path = root / HOLDINGS
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(tuple(row) for row in found["counts"])
        return cls(tuple(found["clients"]), tuple(found["labels"]), rows)

    def to_json(self) -> str:
        """One line of JSON."""
        table = {"clients": self.clients, "labels": self.labels, "counts": self.counts}
        return json.dumps(table) + "\n"


@dataclass(frozen=True)
class Dealt:
    """An experiment whose data has the clients that it asks for.

    Attributes:
        config: With the dealt file as its source.
        holdings: Who has what; None where nothing was dealt.
    """

    config: ExperimentConfig
    holdings: Holdings | None = None

    def keep(self, root: Path) -> None:
        """Write the holdings into a run's folder."""
        if self.holdings is not None:
            write_whole(root / HOLDINGS, self.holdings.to_json())


def deal(config: ExperimentConfig, cache: Path) -> Dealt:
    """Deal an experiment's records out as its ``[partition]`` says; once for equal ones.

    Args:
        config: The experiment.
        cache: The model cache, where the file is made.

    Raises:
        DataError: The data can't be read, has no such label, or too few records.
    """
    how = config.partition
    if how.kind == "user":
        return Dealt(config)
    rows, labels = _rows(config)
    clients = config.data.clients
    owners = owners_of(labels, clients, how)
    names = tuple(f"client-{i:05d}" for i in range(clients))
    lines = [
        json.dumps({**row, _USER: names[owner]}, ensure_ascii=False)
        for row, owner in zip(rows, owners, strict=True)
    ]
    text = "\n".join(lines) + "\n"
    digest = hashlib.sha256(f"{_VERSION}\n{text}".encode()).hexdigest()[:12]
    path = cache / "partitions" / f"{Path(config.data.source).stem}-{how.kind}-{digest}.jsonl"
    if not path.exists():
        write_whole(path, text)
    data = replace(config.data, source=str(path), user_column=_USER, users=names)
    return Dealt(
        replace(config, data=data, partition=PartitionConfig()), _count(owners, labels, names)
    )


def owners_of(labels: Sequence[str], clients: int, how: PartitionConfig) -> Owners:
    """Deal records out; every client gets at least one.

    Args:
        labels: Each record's; only `dirichlet` looks at them.
        clients: How many.
        how: The kind of dealing, and its seed.

    Raises:
        DataError: There are fewer records than clients.
    """
    if len(labels) < clients:
        raise DataError(expected("data.clients", clients, f"<= {len(labels)}, the records"))
    rng = np.random.default_rng(how.seed)
    if how.kind == "dirichlet":
        owners = _dirichlet(labels, clients, how.alpha, rng)
    elif how.kind == "quantity":
        owners = _by_parts(len(labels), rng.dirichlet(np.full(clients, how.alpha)), rng)
    else:
        owners = _by_parts(len(labels), np.array(how.sizes or [1.0] * clients), rng)
    return _fill(owners, clients)


def _dirichlet(
    labels: Sequence[str], clients: int, alpha: float, rng: np.random.Generator
) -> Owners:
    """Each label's records in parts drawn from Dir(α) (Hsu et al. 2019, arXiv:1909.06335)."""
    owners = np.empty(len(labels), dtype=np.int64)
    named = np.array(labels)
    for label in sorted(set(labels)):
        own = np.flatnonzero(named == label)
        owners[own] = _by_parts(own.size, rng.dirichlet(np.full(clients, alpha)), rng)
    return owners


def _by_parts(count: int, parts: NDArray[np.float64], rng: np.random.Generator) -> Owners:
    """So many records to each client as its part says, in an order of chance."""
    ends = np.rint(np.cumsum(parts) / parts.sum() * count).astype(np.int64)
    owners = np.searchsorted(ends, np.arange(count), side="right")
    return rng.permutation(np.minimum(owners, parts.size - 1)).astype(np.int64)


def _fill(owners: Owners, clients: int) -> Owners:
    """Give whoever has nothing one record of whoever has most."""
    filled = owners.copy()
    counts = np.bincount(filled, minlength=clients)
    for client in np.flatnonzero(counts == 0):
        richest = int(counts.argmax())
        filled[np.flatnonzero(filled == richest)[0]] = client
        counts[richest] -= 1
        counts[client] += 1
    return filled


def _rows(config: ExperimentConfig) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The usable rows and their labels; of the plays, a speech's is its play."""
    if config.data.source == SHAKESPEARE:
        plays = [(play, shakespeare.speeches(play)) for play in sorted(shakespeare.DEMO)]
        found = [(play, speech.text) for play, spoken in plays for speech in spoken]
        return [{"text": text} for _, text in found], [play for play, _ in found]
    rows: list[Mapping[str, Any]] = []
    labels = []
    for file in files.data_files(Path(config.data.source)):
        for where, row in files.rows_of(file):
            if files.usable(row, where):
                rows.append({key: row[key] for key in _WORDS if row.get(key) is not None})
                labels.append(_label(row, config.partition, where))
    if not rows:
        raise DataError(f"{config.data.source} has no usable record: nothing can be dealt out")
    return rows, labels


_WORDS = ("text", "prompt", "completion", "messages")


def _label(row: Mapping[str, Any], how: PartitionConfig, where: str) -> str:
    if how.kind != "dirichlet":
        return ""
    if row.get(how.label_column) is None:
        there = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"{where} has no label in column {how.label_column!r}: its columns are {there}; set "
            "partition.label_column"
        )
    return str(row[how.label_column])


def _count(owners: Owners, labels: Sequence[str], names: tuple[str, ...]) -> Holdings:
    shown = tuple(sorted(set(labels)))
    counts = Counter(zip(owners.tolist(), labels, strict=True))
    rows = tuple(tuple(counts[i, label] for label in shown) for i in range(len(names)))
    return Holdings(names, shown, rows)
