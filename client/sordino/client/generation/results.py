"""What generation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token that was written.

    Attributes:
        prompt: Index of the prompt that it goes on from.
        id: The token.
        log_prob: Natural logarithm of its probability under the model as it is: before
            temperature, top-k and top-p.
        finish: Why it is the prompt's last; None: it isn't.
    """

    prompt: int
    id: int
    log_prob: float
    finish: Finish | None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What was written after one prompt.

    Attributes:
        ids: The new tokens; a stop id that ended them is the last.
        log_probs: One each, as in `Token`.
        finish: ``stop``: by a stop id. ``length``: by `max_new_tokens`.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish: Finish


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long it took, by the wall clock.

    Attributes:
        first_token_s: Until the first prompt's first token.
        total_s: Until the last token.
        new_tokens: Written for all prompts together.
    """

    first_token_s: float
    total_s: float
    new_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """New tokens over the whole time, the prompts' included."""
        return self.new_tokens / self.total_s


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The completions, in the prompts' order, and how long they took."""

    completions: tuple[Completion, ...]
    timing: Timing
