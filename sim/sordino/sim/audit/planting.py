"""Both sides of the canaries' protocol in a simulation, each in a folder of its own.

runs/<id>/audit/published.json                     what everybody may see before training
runs/<id>/state/audit/auditor.json                 the canaries and their nonces, until opened
runs/<id>/state/audit/clients/client-00000/        a client's randomness, and what it inserted

On a fleet the same functions of `sordino.privacy.canaries` run on two machines: the owner's device
gets the folder by its setting `canaries`, and sends its randomness once the scores are sealed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sordino.client.canaries import PLACED, keep_placed, trains
from sordino.client.data.records import Record
from sordino.client.data.tokens import TokenizerFile
from sordino.core.config import ExperimentConfig
from sordino.core.durable import write_whole
from sordino.core.errors import AuditError
from sordino.privacy import canaries as protocol
from sordino.privacy.audit.commitments import Opening
from sordino.privacy.audit.guessing import Guessing
from sordino.privacy.canaries import Canary, Opened, Published
from sordino.sim.audit.wording import Wording
from sordino.sim.folder import RunFolder

_TRIES = 10_000
_PUBLISHED, _OPENINGS, _CONTRIBUTIONS = "published.json", "auditor.json", "contributions.json"

Random = Callable[[int], bytes]


@dataclass(frozen=True)
class Planted:
    """What a run carries, as its auditor knows it: every canary, and no coin.

    Attributes:
        published: What was committed to.
        openings: The canaries and their nonces, by client.
    """

    published: Published
    openings: Mapping[str, tuple[Opening, ...]]

    @property
    def canaries(self) -> list[Canary]:
        """Those whose clients took part, in the order in which `open_coins` gives the coins."""
        clients = protocol.taking_part(self.published)
        return [Canary.decode(o.canary) for client in clients for o in self.openings[client]]


def plant(
    config: ExperimentConfig, run: RunFolder, users: Sequence[str], tokenizer: TokenizerFile
) -> None:
    """Commit to canaries, toss their coins with each client that agreed, and let it insert them.

    Does nothing where the configuration asks for none, or it was done before.

    Raises:
        ConfigError: `audit.agreed` names somebody who doesn't take part.
    """
    if not config.audit.plants or (run.audit / _PUBLISHED).exists():
        return
    agreed = _agreed(config, users)
    random = _randomness(config, run)
    drawn = protocol.draw(_canaries(config, agreed, tokenizer), random)
    total = sum(Canary.decode(o.canary).purpose == "bound" for own in drawn.values() for o in own)
    published = protocol.publish(run.run_id, _rules(config, total), drawn)
    contributions: dict[str, tuple[str, ...]] = {}
    for client in drawn:
        published, contributions[client] = protocol.contribute(published, client, random)
    for client, own in contributions.items():
        folder = client_folder(run, list(users).index(client))
        placed = protocol.place(published, client, drawn[client], own)
        _write_secret(folder / _CONTRIBUTIONS, {"contributions": own})
        keep_placed(folder, placed)
    secret = {client: [asdict(o) for o in own] for client, own in drawn.items()}
    _write_secret(run.state("audit") / _OPENINGS, secret)
    write_whole(run.audit / _PUBLISHED, published.to_json())  # last: with it, all of it is there


def planted(run: RunFolder) -> Planted | None:
    """What a run carries; None if it carries nothing.

    Raises:
        AuditError: A file can't be read.
    """
    path = run.audit / _PUBLISHED
    if not path.exists():
        return None
    published = Published.from_table(_read(path))
    table = _read(run.state("audit") / _OPENINGS)
    openings = {c: tuple(Opening(**o) for o in own) for c, own in table.items()}
    return Planted(published, openings)


def open_coins(
    run: RunFolder, known: Planted, users: Sequence[str]
) -> tuple[Opened, NDArray[np.bool_]]:
    """The clients open their randomness, and all of it is held against what was published.

    Only for scores that are sealed: from here on the auditor knows the coins.

    Raises:
        AuditError: A client's file is missing or not the one that was committed to.
    """
    contributions = {}
    for client in protocol.taking_part(known.published):
        folder = client_folder(run, list(users).index(client))
        contributions[client] = tuple(_read(folder / _CONTRIBUTIONS)["contributions"])
    opened = Opened(canaries=known.openings, contributions=contributions)
    _, coins = protocol.open_all(known.published, opened)
    return opened, coins


def client_folder(run: RunFolder, index: int) -> Path:
    """A client's own folder of the audit."""
    return run.state("audit") / "clients" / f"client-{index:05d}"


def node_canaries(run: RunFolder, index: int) -> dict[str, str]:
    """What a client's node configuration says of canaries: a folder, if its owner agreed."""
    folder = client_folder(run, index)
    return {"canaries": str(folder)} if (folder / PLACED).exists() else {}


def _agreed(config: ExperimentConfig, users: Sequence[str]) -> list[str]:
    if unknown := sorted(set(config.audit.agreed) - set(users)):
        raise AuditError(f"audit.agreed names {unknown[0]!r}, who doesn't take part in this run")
    return [user for user in users if not config.audit.agreed or user in config.audit.agreed]


def _canaries(
    config: ExperimentConfig, clients: Sequence[str], tokenizer: TokenizerFile
) -> list[Canary]:
    """Every client's canaries, no two of the same text.

    Texts come from the operating system's randomness, or from the seed of a run that is seeded; a
    client could otherwise recompute what another one carries.
    """
    audit = config.audit
    seed = config.seed if _seeded(config) else secrets.randbits(128)
    wording = Wording(tokenizer, np.random.default_rng([seed, *b"canaries"]))
    seen: set[str] = set()

    def text(kind: str) -> str:
        for _ in range(_TRIES):
            drawn = wording.draw(kind, audit.words)
            if drawn not in seen and trains(drawn, config.data) and _fits(drawn, config, tokenizer):
                seen.add(drawn)
                return drawn
        raise AuditError(
            f"no canary of kind {kind!r} fits into data.max_tokens = {config.data.max_tokens}: "
            "raise it, or lower audit.words"
        )

    found = []
    for client in clients:
        kinds = itertools.islice(itertools.cycle(audit.kinds), audit.canaries)
        found += [Canary(client=client, kind=kind, text=text(kind)) for kind in kinds]
        times = itertools.islice(itertools.cycle(audit.repetitions), audit.secrets)
        found += [
            Canary(client=client, kind="exposed", text=text("secret"), repetitions=count)
            for count in times
        ]
    return found


def _fits(text: str, config: ExperimentConfig, tokenizer: TokenizerFile) -> bool:
    whole = tokenizer.encode_record(Record(text=text), config.data.max_tokens + 1)
    return 2 < len(whole.ids) <= config.data.max_tokens


def _rules(config: ExperimentConfig, total: int) -> tuple[Guessing, ...]:
    if not total:
        return ()
    sizes = sorted({max(1, round(part * total / 2)) for part in config.audit.guesses})
    return tuple(Guessing(guessed_in=size, guessed_out=size) for size in sizes if 2 * size <= total)


def _randomness(config: ExperimentConfig, run: RunFolder) -> Random:
    if not _seeded(config):
        return secrets.token_bytes
    key = hashlib.sha256(f"sordino audit {config.seed} {run.run_id}".encode()).digest()
    count = itertools.count()
    return lambda size: hashlib.shake_256(key + next(count).to_bytes(8, "big")).digest(size)


def _seeded(config: ExperimentConfig) -> bool:
    """Whether the run makes no claim that coins could be held against."""
    return config.privacy.seeded_noise or config.privacy.trust == "none"


def _write_secret(path: Path, table: object) -> None:
    write_whole(path, json.dumps(table) + "\n", mode=0o600)


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AuditError(f"can't read {path}: {error}") from error
    if not isinstance(table, dict):
        raise AuditError(f"{path} holds no table")
    return table
