"""Everything that is asked of one subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sordino.client.data.records import Record
from sordino.client.evaluation.answers import TaskFigures, answer
from sordino.client.evaluation.card import DeviceCard, measure_card
from sordino.client.evaluation.pairs import Pair, prefer
from sordino.client.evaluation.perplexity import GroupFigures, group_figures
from sordino.client.evaluation.subject import Subject
from sordino.client.evaluation.tasks import Task
from sordino.client.model.store import ModelFiles


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked.

    Attributes:
        groups: Records by user, or by what else groups them.
        max_tokens: A longer record is cut.
        tasks: Questions with right answers.
        pairs: Pairs of sentences, by the name of their file.
        card: Measure what it costs, on the base of these files.
    """

    groups: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    max_tokens: int = 512
    tasks: Sequence[Task] = ()
    pairs: Mapping[str, Sequence[Pair]] = field(default_factory=dict)
    card: ModelFiles | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out.

    Attributes:
        subject: Whom it is about.
        groups: Perplexity, of all first.
        tasks: Of tasks and pairs.
        card: What it costs, if that was asked.
    """

    subject: str
    groups: tuple[GroupFigures, ...]
    tasks: tuple[TaskFigures, ...]
    card: DeviceCard | None


def examine(subject: Subject, asked: Questions, done: Callable[[], None]) -> Evaluation:
    """Ask everything; `done` is called after each part."""

    def told(figures: TaskFigures) -> TaskFigures:
        done()
        return figures

    groups = group_figures(subject, asked.groups, asked.max_tokens) if asked.groups else []
    if asked.groups:
        done()
    tasks = [told(answer(subject, task)) for task in asked.tasks]
    tasks += [told(prefer(subject, name, pairs)) for name, pairs in asked.pairs.items()]
    card = measure_card(subject, asked.card) if asked.card else None
    if asked.card:
        done()
    return Evaluation(subject=subject.name, groups=tuple(groups), tasks=tuple(tasks), card=card)


def parts(asked: Questions) -> int:
    """How often `examine` calls `done`."""
    return bool(asked.groups) + len(asked.tasks) + len(asked.pairs) + bool(asked.card)
