"""Membership inference on the run's own records: those that were trained on, and those held out.

Each record's own hash put it on its side, so the two kinds differ in nothing else, and length, time
and topic can't give a member away; the checks for confounds are made all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sordino.client.data.tokens import TokenRecord
from sordino.client.lora import LoraAdapter
from sordino.client.probe import TokenScores, token_scores
from sordino.core.errors import AuditError
from sordino.privacy.audit import Membership, attacks, count_doubles
from sordino.sim.audit.target import Deployed, last_adapter

_PREFIX = 7  # non-members before each text for ReCaLL

Tick = Callable[[], None]


@dataclass(frozen=True)
class Texts:
    """Texts and their tokens, members first."""

    texts: list[str]
    encoded: tuple[TokenRecord, ...]
    members: int


def membership(
    target: Deployed, variant: str, most: int, tick: Tick, *, full: bool = False
) -> list[Membership]:
    """Run the attacks of a user on a variant's last adapter.

    Args:
        target: The adapters, and the texts that they were trained on.
        variant: Whose adapter.
        most: Texts of each kind, drawn by the run's seed.
        tick: Told of each pass over the texts.
        full: Also the attacks that need more passes.

    Raises:
        AuditError: Fewer than two records were trained on, or held out.
    """
    chosen = _choose(target, most)
    base = _score(target, None, chosen.encoded, tick)
    own = _score(target, last_adapter(target, variant), chosen.encoded, tick)
    found = {
        "loss": attacks.loss_score(_log_probs(own)),
        "zlib": attacks.zlib_score(_log_probs(own), chosen.texts),
        "reference": attacks.reference_score(_log_probs(own), _log_probs(base)),
        "min-k": attacks.min_k_score(_log_probs(own)),
        "min-k++": attacks.min_k_plus_score(
            _log_probs(own), [s.means for s in own], [s.spreads for s in own]
        ),
    }
    if full:
        found["recall"] = _recall(target, variant, chosen, own, tick)
        found["rmia"] = _rmia(own, base, chosen.members)
    return [_measure(name, scores, chosen) for name, scores in found.items()]


def _choose(target: Deployed, most: int) -> Texts:
    rng = target.corpus.rng("membership")
    sides = []
    for part in ("train", "held_out"):
        texts = target.corpus.texts(part)
        picked = sorted(rng.permutation(len(texts))[:most].tolist())
        sides.append([texts[i] for i in picked])
    if min(map(len, sides)) < 2:
        raise AuditError(
            f"expected at least 2 records trained on and 2 held out, got {len(sides[0])} and "
            f"{len(sides[1])}: there is nothing to tell apart"
        )
    return Texts(sides[0] + sides[1], target.corpus.encode(sides[0] + sides[1]), len(sides[0]))


def _score(
    target: Deployed, adapter: LoraAdapter | None, encoded: Sequence[TokenRecord], tick: Tick
) -> list[TokenScores]:
    found = token_scores(target.base.decoder, adapter, encoded)
    tick()
    return found


def _log_probs(scores: Sequence[TokenScores]) -> list[NDArray[np.float32]]:
    return [one.log_probs for one in scores]


def _recall(
    target: Deployed, variant: str, chosen: Texts, own: Sequence[TokenScores], tick: Tick
) -> NDArray[np.float64]:
    """ReCaLL: how much less likely a text is after others that weren't trained on."""
    ids = [record.ids for record in chosen.encoded[chosen.members :][:_PREFIX]]
    room = target.base.decoder.architecture.positions - target.corpus.config.data.max_tokens
    prefix = np.concatenate(ids)[-max(room, 1) :].astype(np.int32)
    joined = [
        TokenRecord(
            np.concatenate([prefix, record.ids]),
            np.concatenate([np.zeros(len(prefix), np.bool_), record.targets_mask]),
        )
        for record in chosen.encoded
    ]
    adapter = last_adapter(target, variant)
    after = _score(target, adapter, joined, tick)
    return np.asarray(attacks.recall_score(_log_probs(own), _log_probs(after)))


def _rmia(
    own: Sequence[TokenScores], base: Sequence[TokenScores], members: int
) -> NDArray[np.float64]:
    """Offline RMIA with the base as its one reference; the population is half of the held-out."""
    ours, reference = _log_probs(own), _log_probs(base)
    population = slice(members, None, 2)
    return np.asarray(
        attacks.rmia_score(
            ours,
            [reference],
            ours[population],
            [reference[population]],
            offline_scale=1.0,  # the reference is the same model: nothing is to be fitted
        )
    )


def _measure(name: str, scores: NDArray[np.float64], chosen: Texts) -> Membership:
    cut = chosen.members
    lengths = [len(text) for text in chosen.texts]
    values = [float(score) for score in scores]
    return Membership(
        attack=name,
        adversary="user",
        members=tuple(values[:cut]),
        others=tuple(values[cut:]),
        members_length=tuple(lengths[:cut]),
        others_length=tuple(lengths[cut:]),
        doubles=count_doubles(chosen.texts[:cut], chosen.texts[cut:]),
    )
