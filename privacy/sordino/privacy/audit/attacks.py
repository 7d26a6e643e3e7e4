"""Membership attacks: from a text's token log-probabilities to one score, higher for a member.

Each takes a sequence of texts, every text a column of log-probabilities, one for each of its tokens
that was predicted. Nothing here knows a model: `client/probe` makes the columns.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from sordino.core.errors import AuditError, expected
from sordino.privacy.audit.checks import Floats, column, inside, same_length

Texts = Sequence[ArrayLike]


def mean_log_probability(log_probs: Texts) -> Floats:
    """Each text's mean over its tokens, shape ``(texts,)``.

    Raises:
        AuditError: There is no text, one has no token, or a value isn't finite.
    """
    if not len(log_probs):
        raise AuditError(expected("texts", 0, ">= 1"))
    return np.array([column(f"text {i}", row).mean() for i, row in enumerate(log_probs)])


def loss_score(log_probs: Texts) -> Floats:
    """Minus the loss per token (Yeom et al. 2018, https://arxiv.org/abs/1709.01604, section 3)."""
    return mean_log_probability(log_probs)


def zlib_score(log_probs: Texts, texts: Sequence[str]) -> Floats:
    """Minus the loss per bit of the text's own information, by zlib (Carlini et al. 2021, §5.2)."""
    same_length(log_probs=log_probs, texts=texts)
    sizes = np.array([len(zlib.compress(text.encode())) for text in texts])
    return np.asarray(mean_log_probability(log_probs) / sizes)


def reference_score(log_probs: Texts, reference: Texts) -> Floats:
    """How much likelier than to a model that never saw it (Carlini et al. 2021, section 5.2).

    For an adapter the reference is the same quantized base without it.
    """
    same_length(log_probs=log_probs, reference=reference)
    return np.asarray(mean_log_probability(log_probs) - mean_log_probability(reference))


def min_k_score(log_probs: Texts, share: float = 0.2) -> Floats:
    """Mean over the least likely share of the tokens, at least one (Shi et al. 2024, section 4)."""
    rows = [column(f"text {i}", row) for i, row in enumerate(log_probs)]
    return _lowest(rows, share)


def min_k_plus_score(
    log_probs: Texts, means: Texts, deviations: Texts, share: float = 0.2
) -> Floats:
    """Min-K %++: each token standardized by the model's own distribution there (Zhang et al. 2024).

    Args:
        log_probs: Of the tokens that stand there.
        means: Mean of log p over the vocabulary, weighted by p, at each place.
        deviations: Standard deviation of the same.
        share: As `min_k_score`.
    """
    same_length(log_probs=log_probs, means=means, deviations=deviations)
    rows = []
    for i, parts in enumerate(zip(log_probs, means, deviations, strict=True)):
        own, mean, deviation = (column(f"text {i}", part) for part in parts)
        same_length(log_probs=own, means=mean, deviations=deviation)
        # Where the model is certain nothing can be standardized: the floor keeps it finite.
        rows.append((own - mean) / np.maximum(deviation, 1e-6))
    return _lowest(rows, share)


def recall_score(log_probs: Texts, conditional: Texts) -> Floats:
    """ReCaLL: log-likelihood after a prefix of non-members over that without (Xie et al. 2024, §3).

    Args:
        log_probs: Of each text by itself.
        conditional: Of the same tokens, with the prefix before them.
    """
    same_length(log_probs=log_probs, conditional=conditional)
    alone = np.minimum(mean_log_probability(log_probs), -1e-12)
    return np.asarray(mean_log_probability(conditional) / alone)


def rmia_score(
    log_probs: Texts,
    references: Sequence[Texts],
    population: Texts,
    population_references: Sequence[Texts],
    *,
    offline_scale: float,
    gamma: float = 1.0,
) -> Floats:
    """Offline RMIA: over how much of a population a text stands out (Zarifzadeh et al. 2024, §3).

    A text's probability is taken per token, exp of its mean log-probability. Where it was out of
    all the references, its mean over worlds is ((1 + a)·p_out + 1 - a)/2.

    Args:
        log_probs: The audited model's.
        references: The same texts, one sequence a reference model; none of them saw the texts.
        population: Texts that nobody trained on, by the audited model.
        population_references: The same by each reference model.
        offline_scale: a in [0, 1]; `fit_offline_scale` finds it on a model of one's own.
        gamma: By what factor it must stand out.

    Raises:
        AuditError: Shapes differ, or a setting is out of range.
    """
    inside("offline_scale", offline_scale, 0.0, 1.0, closed=True)
    inside("gamma", gamma, 0.0, math.inf)
    if not references or len(references) != len(population_references):
        given = (len(references), len(population_references))
        raise AuditError(expected("references", given, "as many for the population, at least one"))
    a = offline_scale
    out = np.mean([np.exp(mean_log_probability(r)) for r in references], axis=0)
    usual = np.mean([np.exp(mean_log_probability(r)) for r in population_references], axis=0)
    own = np.exp(mean_log_probability(log_probs))
    others = np.exp(mean_log_probability(population))
    same_length(log_probs=own, references=out)
    same_length(population=others, population_references=usual)
    ratio, against = own / (((1 + a) * out + 1 - a) / 2), np.sort(others / usual)
    return np.asarray(np.searchsorted(against, ratio / gamma, side="left") / against.size)


def fit_offline_scale(p_in: ArrayLike, p_out: ArrayLike) -> float:
    """The a of p_in = a·p_out + 1 - a, by least squares, cut to [0, 1].

    Args:
        p_in: Probability per token of texts to a model of one's own that saw them.
        p_out: The same texts' to one that didn't.
    """
    ins, outs = 1 - column("p_in", p_in), 1 - column("p_out", p_out)
    same_length(p_in=ins, p_out=outs)
    total = float(outs @ outs)
    return min(1.0, max(0.0, float(ins @ outs) / total)) if total > 0 else 1.0


def _lowest(rows: Sequence[Floats], share: float) -> Floats:
    inside("share", share, 0.0, 1.0 + 1e-12)
    if not rows:
        raise AuditError(expected("texts", 0, ">= 1"))
    sizes = [max(1, int(share * row.size)) for row in rows]
    return np.array([np.sort(row)[:size].mean() for row, size in zip(rows, sizes, strict=True)])
