"""Exposure of planted codes, and extraction of planted texts from their own beginnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sordino.client.generate import GenerationModel, prepare
from sordino.client.probe import complete_suffixes, rank_candidates
from sordino.privacy.audit import Exposure, Extraction, Suffix, rank_of
from sordino.privacy.canaries import Canary
from sordino.sim.audit.target import Deployed
from sordino.sim.audit.wording import CODES, secret_of

Tick = Callable[[], None]


def written_by(target: Deployed, variant: str | None) -> GenerationModel:
    """A variant's last adapter over the base, ready to write; None: the base alone."""
    model = prepare(target.base.decoder)
    if variant is None:
        return model
    return model.with_adapter(target.last(variant), scale=target.scale)


def code_ranks(
    target: Deployed, variant: str, secrets: Sequence[Canary], tick: Tick
) -> tuple[float, ...]:
    """The rank of each true code among all, by how much likelier the adapter made each.

    What the base alone thinks of a code is taken off: some codes are likelier than others to begin
    with, and that is nothing that was learnt here.
    """
    models = written_by(target, variant), written_by(target, None)
    ranks = []
    for canary in secrets:
        secret = secret_of(canary.text)
        prompt, candidates = _codes(target, secret.lead)
        after, before = (rank_candidates(model, prompt, candidates) for model in models)
        gained = (after - before).tolist()
        own = gained.pop(secret.code)
        ranks.append(rank_of(own, gained))
        tick()
    return tuple(ranks)


def exposure(ranks: Sequence[float], secrets: Sequence[Canary], coins: Sequence[bool]) -> Exposure:
    """The measure of a variant's ranks, once the coins are open."""
    return Exposure(
        adversary="user",
        ranks=tuple(ranks),
        repetitions=tuple(
            canary.repetitions if coin else 0 for canary, coin in zip(secrets, coins, strict=True)
        ),
        space=CODES,
        exact=True,
    )


def suffixes(
    target: Deployed, variant: str, canaries: Sequence[Canary], tick: Tick
) -> list[tuple[int, float, int]]:
    """For each canary, its second half after its first: tokens, log-probability, greedy matches."""
    model = written_by(target, variant)
    ids = [record.ids.tolist() for record in target.corpus.encode([c.text for c in canaries])]
    halves = [max(1, len(row) // 2) for row in ids]
    found = complete_suffixes(
        model,
        [row[:half] for row, half in zip(ids, halves, strict=True)],
        [row[half:] for row, half in zip(ids, halves, strict=True)],
    )
    tick()
    return [(one.length, one.log_prob, one.matched) for one in found]


def extraction(found: Sequence[tuple[int, float, int]], coins: Sequence[bool]) -> Extraction:
    """The measure of a variant's suffixes, once the coins are open."""
    return Extraction(
        adversary="user",
        scheme="temperature 1, no cuts",
        suffixes=tuple(
            Suffix(
                planted=bool(coin),
                tokens=tokens,
                log_probability=min(log_prob, -1e-12),
                greedy=greedy,
            )
            for (tokens, log_prob, greedy), coin in zip(found, coins, strict=True)
        ),
    )


def _codes(target: Deployed, lead: str) -> tuple[list[int], list[tuple[int, ...]]]:
    """The tokens that all sentences with this lead begin with, and how each goes on to its code."""
    encoded = [
        target.corpus.tokenizer.tokenizer.encode(f"{lead} {code:03d}", add_special_tokens=False).ids
        for code in range(CODES)
    ]
    shortest = min(map(len, encoded))
    same = next((i for i in range(shortest) if len({row[i] for row in encoded}) > 1), shortest - 1)
    bos = target.corpus.tokenizer.bos_id
    prompt = [*([] if bos is None else [bos]), *encoded[0][:same]]
    return prompt, [tuple(row[same:]) for row in encoded]
