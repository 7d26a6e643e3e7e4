"""How a subject answers a task: by choosing the likeliest words, or by writing its own."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sordino.client.evaluation.subject import Subject
from sordino.client.evaluation.tasks import Item, Task
from sordino.client.generate import generate, score
from sordino.core.errors import DataError
from sordino.core.stats import Interval
from sordino.privacy.audit.intervals import wilson

_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of a task.

    Attributes:
        name: As lm-eval-harness calls it.
        value: Between 0 and 1.
        low: Wilson's 95 % interval of a share of right answers; None for other means.
        high: As `low`.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """How a subject did.

    Attributes:
        task: Its name.
        items: Questions.
        measures: The figures.
    """

    task: str
    items: int
    measures: tuple[Measure, ...]


def answer(subject: Subject, task: Task) -> TaskFigures:
    """Put a task's questions to a subject.

    A choice is judged by the log-likelihood of its tokens after the question's: ``acc`` takes the
    likeliest, ``acc_norm`` the likeliest for its length in bytes. A written answer is greedy:
    ``exact_match`` and the words' ``f1`` are those of SQuAD (lower case, no punctuation, no
    articles), against the best of the right answers.

    Raises:
        DataError: A question or choice has no token.
        ModelError: A question is longer than what the model was made for.
    """
    measures = _choose(subject, task) if task.kind == "multiple_choice" else _write(subject, task)
    return TaskFigures(task=task.name, items=len(task.items), measures=tuple(measures))


def log_likelihoods(subject: Subject, text: str, continuations: Sequence[str]) -> list[float]:
    """Natural logarithms of how likely each continuation of a text is."""
    encode = subject.tokenizer.encode_beginning
    # Tokens may join across the seam: what is scored begins where the two encodings part.
    whole = [encode(text + continuation) for continuation in continuations]
    alone = encode(text)
    seams = [_common(alone, ids) for ids in whole]
    if any(seam < 1 or seam == len(ids) for seam, ids in zip(seams, whole, strict=True)):
        raise DataError(f"no token to score after {text[-40:]!r}: give the question words")
    scores = score(
        subject.model,
        [ids[:seam] for seam, ids in zip(seams, whole, strict=True)],
        [ids[seam:] for seam, ids in zip(seams, whole, strict=True)],
    )
    return [float(row.double().sum()) for row in scores]


def share(name: str, hits: int, of: int) -> Measure:
    """A share of right answers with Wilson's interval."""
    interval: Interval = wilson(hits, of)
    return Measure(name=name, value=hits / of, low=interval.low, high=interval.high)


def _choose(subject: Subject, task: Task) -> list[Measure]:
    right = right_by_length = 0
    for item in task.items:
        likely = np.array(log_likelihoods(subject, item.text, item.choices))
        lengths = np.array([len(choice.encode()) for choice in item.choices])
        right += int(likely.argmax()) == item.answer
        right_by_length += int((likely / lengths).argmax()) == item.answer
    return [
        share("acc", right, len(task.items)),
        share("acc_norm", right_by_length, len(task.items)),
    ]


def _write(subject: Subject, task: Task) -> list[Measure]:
    tokenizer = subject.tokenizer
    prompts = [tokenizer.encode_beginning(item.text) for item in task.items]
    stop = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    done = generate(subject.model, prompts, max_new_tokens=task.most, stop_ids=stop)
    written = [
        _until(tokenizer.decode(completion.ids), task.until) for completion in done.completions
    ]
    pairs = list(zip(written, task.items, strict=True))
    exact = sum(_exact(words, item) for words, item in pairs)
    return [
        share("exact_match", exact, len(pairs)),
        Measure(name="f1", value=float(np.mean([_f1(words, item) for words, item in pairs]))),
    ]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return min(len(one), len(other))


def _until(text: str, ends: Sequence[str]) -> str:
    for end in ends:
        text = text.split(end, maxsplit=1)[0] if end else text
    return text


def _exact(words: str, item: Item) -> bool:
    return any(_plain(words) == _plain(right) for right in item.answers)


def _f1(words: str, item: Item) -> float:
    return max(_overlap(_plain(words).split(), _plain(right).split()) for right in item.answers)


def _overlap(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(said == right)
    both = sum((Counter(said) & Counter(right)).values())
    return 2 * both / (len(said) + len(right))


def _plain(text: str) -> str:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())
