"""Talk to a base with an adapter on the device: our own engine, or llama.cpp.

An engine writes words after token ids; a `Chat` keeps the turns, writes them with the model's own
template, and hands the answer on as it comes. Nothing of it is kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from sordino.client.data.records import Turn
from sordino.client.data.tokens import TokenizerFile
from sordino.client.generate import GREEDY, GenerationModel, Prefix, Sampling, prefill, stream

HALF = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a part of a letter
SHORTEST_PREFIX = 2  # tokens; the last of a prompt is computed anew in any case


class Engine(Protocol):
    """Writes on."""

    def write(self, ids: Sequence[int], most: int) -> Iterator[str]:
        """What comes after some token ids, in whole letters, of at most so many tokens."""
        ...


class OwnEngine:
    """The quantized base, mapped, with the adapter beside it: the engine that training uses."""

    def __init__(
        self,
        model: GenerationModel,
        tokenizer: TokenizerFile,
        sampling: Sampling = GREEDY,
        seed: int | None = None,
    ) -> None:
        """Take a prepared model.

        Args:
            model: From `prepare`, with its adapter.
            tokenizer: The base's; its end token ends an answer.
            sampling: Greedy, unless told otherwise.
            seed: Of the sampling; None: the operating system's.
        """
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self._known: Prefix | None = None
        self._chance = None if seed is None else torch.Generator().manual_seed(seed)

    def write(self, ids: Sequence[int], most: int) -> Iterator[str]:
        """Go on from `ids`; what an earlier call had in common with them isn't computed again."""
        if len(ids) >= SHORTEST_PREFIX:
            self._known = prefill(self._model, ids[:-1], after=self._known)
        end = self._tokenizer.eos_id
        tokens = stream(
            self._model, [ids], max_new_tokens=most, sampling=self._sampling,
            stop_ids=[] if end is None else [end], prefix=self._known, generator=self._chance,
        )  # fmt: skip
        return self._words(token.id for token in tokens)

    def _words(self, ids: Iterator[int]) -> Iterator[str]:
        written: list[int] = []
        said = text = ""
        for token in ids:
            written.append(token)
            text = self._tokenizer.decode(written)
            if not text.endswith(HALF):  # a letter's other bytes are yet to come
                yield text[len(said) :]
                said = text
        yield text[len(said) :]


class Chat:
    """A conversation.

    A model without a chat template goes on from the bare words of a message; each stands by itself.
    """

    def __init__(
        self, engine: Engine, tokenizer: TokenizerFile, *, system: str = "", most: int = 256
    ) -> None:
        """Begin.

        Args:
            engine: What writes.
            tokenizer: The base's.
            system: A system prompt, if the template takes one.
            most: Tokens of an answer.
        """
        self._engine, self._tokenizer, self._most = engine, tokenizer, most
        self.turns: list[Turn] = [Turn("system", system)] if system else []

    def say(self, message: str) -> Iterator[str]:
        """Send a message; the answer's words as they come.

        An answer that the caller doesn't take to its end isn't part of the conversation.

        Raises:
            DataError: The template refuses the conversation.
            ModelError: It is longer than what the model was made for.
        """
        asked = [*self.turns, Turn("user", message)]
        ids = (
            self._tokenizer.encode_prompt(asked)
            if self._tokenizer.template
            else self._tokenizer.encode_beginning(message)
        )
        said = []
        for words in self._engine.write(ids, self._most):
            said.append(words)
            yield words
        if self._tokenizer.template:
            self.turns = [*asked, Turn("assistant", "".join(said))]


def converse(chat: Chat, lines: Iterator[str], show: Callable[[str], None]) -> None:
    """Answer each line; empty ones are passed over."""
    for line in lines:
        if line.strip():
            for words in chat.say(line.rstrip("\n")):
                show(words)
            show("\n")
