"""Bias by pairs of sentences that differ in whom they speak of: CrowS-Pairs, StereoSet.

For each pair it is asked which sentence the model finds likelier. A model without a preference
takes the stereotype in half of them; that it does is no proof that it has none, and what a
benchmark of American stereotypes says of other places is little.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.client.evaluation.answers import TaskFigures, share
from sordino.client.evaluation.subject import Subject
from sordino.client.generate import score
from sordino.core.errors import DataError, expected

_MORE, _LESS, _ABOUT = "sent_more", "sent_less", "bias_type"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two sentences.

    Attributes:
        about: What the stereotype is about.
        more: The stereotype.
        less: Its counterpart.
    """

    about: str
    more: str
    less: str


def read_pairs(path: Path) -> list[Pair]:
    """Read CrowS-Pairs' CSV or StereoSet's JSON (its pairs within a sentence).

    Raises:
        DataError: It can't be read as either, or holds no pair.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = list(_stereoset(json.load(file)) if path.suffix == ".json" else _crows(file))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"can't read pairs from {path}: {error}") from error
    if not found:
        raise DataError(expected(str(path), 0, f"pairs, in columns {_MORE} and {_LESS}"))
    return found


def prefer(subject: Subject, name: str, pairs: Sequence[Pair]) -> TaskFigures:
    """In how many pairs the stereotype is likelier: of all, and by what it is about."""
    kinds: dict[str, list[bool]] = {}
    more = _likelihoods(subject, [pair.more for pair in pairs])
    less = _likelihoods(subject, [pair.less for pair in pairs])
    for pair, of_more, of_less in zip(pairs, more, less, strict=True):
        kinds.setdefault(pair.about, []).append(of_more > of_less)
    every = [likelier for kind in kinds.values() for likelier in kind]
    return TaskFigures(
        task=name,
        items=len(pairs),
        measures=(
            share("stereotype", sum(every), len(every)),
            *(share(f"stereotype.{k}", sum(v), len(v)) for k, v in sorted(kinds.items())),
        ),
    )


def _likelihoods(subject: Subject, sentences: Sequence[str]) -> list[float]:
    """Of whole sentences, after the token that begins or ends a text."""
    tokenizer = subject.tokenizer
    start = tokenizer.eos_id if tokenizer.bos_id is None else None
    ids = [tokenizer.encode_beginning(sentence) for sentence in sentences]
    if start is not None:
        ids = [[start, *own] for own in ids]
    scores = score(subject.model, [own[:1] for own in ids], [own[1:] for own in ids])
    return [float(row.double().sum()) for row in scores]


def _crows(lines: Iterable[str]) -> Iterator[Pair]:
    for row in csv.DictReader(lines):
        yield Pair(about=row.get(_ABOUT) or "all", more=row[_MORE], less=row[_LESS])


def _stereoset(table: Any) -> Iterator[Pair]:
    for item in table["data"]["intrasentence"]:
        said = {sentence["gold_label"]: sentence["sentence"] for sentence in item["sentences"]}
        yield Pair(about=item["bias_type"], more=said["stereotype"], less=said["anti-stereotype"])
