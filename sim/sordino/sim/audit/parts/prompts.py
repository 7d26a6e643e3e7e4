"""Attacks on what a deployed model was given: the untouched base first, then each adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sordino.client.data.records import Turn
from sordino.client.data.tokens import TokenizerFile
from sordino.client.generate import GenerationModel, generate
from sordino.privacy.audit import Attempt, Leak, PromptLeakage, Stage, best, leak, readings
from sordino.sim.audit.hidden import TARGETS, Attack, Setting, draw_setting
from sordino.sim.audit.parts.secrets import written_by
from sordino.sim.audit.target import Deployed

_NEW_TOKENS = 128
_BATCH = 16
_OTHERS = 3  # of the further targets one third as many settings as system prompts

Tick = Callable[[], None]


@dataclass(frozen=True)
class Talker:
    """A model that can be talked to."""

    model: GenerationModel
    tokenizer: TokenizerFile
    new_tokens: int = _NEW_TOKENS

    def answer(self, talks: Sequence[Sequence[Turn]]) -> list[str]:
        """What the model says next in each talk, greedily."""
        eos = self.tokenizer.eos_id
        done = generate(
            self.model,
            [self.tokenizer.encode_prompt(talk) for talk in talks],
            max_new_tokens=self.new_tokens,
            stop_ids=() if eos is None else (eos,),
            batch_size=_BATCH,
        )
        return [self.tokenizer.decode(one.ids).strip() for one in done.completions]


def can_talk(target: Deployed) -> bool:
    """Whether the base's tokenizer has a chat template: without one there is no prompt to leak."""
    return target.corpus.tokenizer.template is not None


def prompt_leakage(
    target: Deployed, what: str, settings: int, labels: Mapping[str, str], tick: Tick
) -> PromptLeakage:
    """Attack settings of one kind in the base and in every variant of a run.

    Args:
        target: The adapters; their base must be one that can be talked to.
        what: One of `hidden.TARGETS`.
        settings: How many; of the further targets a third.
        labels: The variants' names in the report.
        tick: Told of each stage.
    """
    count = settings if what == "system prompt" else max(4, settings // _OTHERS)
    rng = target.corpus.rng(f"prompts {what}")
    drawn = [draw_setting(what, rng) for _ in range(count)]
    unseen = [draw_setting(what, rng) for _ in range(count)]
    stages = []
    for variant in (None, *target.variants):
        talker = Talker(written_by(target, variant), target.corpus.tokenizer)
        attempts = attack_all(talker, drawn, unseen, TARGETS[what])
        stages.append(Stage(name=labels[variant] if variant else "base", attempts=attempts))
        tick()
    criterion = "secret" if what == "abuse" else "rouge-l 0.8"
    return PromptLeakage(target=what, stages=tuple(stages), criterion=criterion)


def attack_all(
    talker: Talker,
    settings: Sequence[Setting],
    unseen: Sequence[Setting],
    attacks: Sequence[Attack],
) -> tuple[Attempt, ...]:
    """Every attack on every setting, each answer scored against what was there and what wasn't.

    Args:
        talker: Who is attacked.
        settings: What it is given.
        unseen: As many that it isn't given: the negative control.
        attacks: What is said.
    """
    found = []
    for attack in attacks:
        answers = _answers(talker, settings, attack)
        for index, (setting, other, answer) in enumerate(
            zip(settings, unseen, answers, strict=True)
        ):
            read = readings(answer) if attack.encoded else (answer,)
            found.append(
                Attempt(
                    prompt=index,
                    family=attack.family,
                    leak=_most(setting, read),
                    control=_most(other, read),
                )
            )
    return tuple(found)


def _answers(talker: Talker, settings: Sequence[Setting], attack: Attack) -> list[str]:
    talks = [list(setting.turns) for setting in settings]
    answers: list[str] = []
    for says in attack.says:
        for talk in talks:
            talk.append(Turn("user", says))
        answers = talker.answer(talks)
        for talk, answer in zip(talks, answers, strict=True):
            talk.append(Turn("assistant", answer))
    return answers


def _most(setting: Setting, read: Sequence[str]) -> Leak:
    return best([leak(setting.hidden, text, setting.secret) for text in read])
