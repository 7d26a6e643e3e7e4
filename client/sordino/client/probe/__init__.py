"""What an audit asks of a model: losses, log-probabilities, gradients, text, first inputs.

Only numbers and text come out. What they say about leakage is worked out elsewhere, by functions
that never see a model (`sordino.privacy.audit`).

    scores = token_scores(base.decoder, adapter, records)          # for membership inference
    vectors = record_gradients(base.decoder, tensors, trained, records, scale=adapter.scale)
    guesses = alignment(update, vectors, clip_norm=plan.clip_norm)  # the coordinator's attack
"""

from sordino.client.probe.gradients import alignment, flat, record_gradients
from sordino.client.probe.spans import embedded_vocabulary
from sordino.client.probe.tokens import TokenScores, token_scores
from sordino.client.probe.writing import Suffix, complete_suffixes, rank_candidates

__all__ = [
    "Suffix",
    "TokenScores",
    "alignment",
    "complete_suffixes",
    "embedded_vocabulary",
    "flat",
    "rank_candidates",
    "record_gradients",
    "token_scores",
]
