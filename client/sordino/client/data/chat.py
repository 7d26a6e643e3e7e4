"""A tokenizer's chat template, and where in its output the assistant speaks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sordino.client.data.records import Turn
from sordino.core.errors import DataError, ModelError

# What an expression in a template may raise when a chat isn't what its author thought of.
_OF_AN_EXPRESSION = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class ChatTemplate:
    """Renders chats in a sandbox: a template comes with a model and is not trusted."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        """Compile a template.

        Args:
            source: Jinja2, as in ``tokenizer_config.json``.
            names: What the template may refer to, such as ``eos_token``.

        Raises:
            ModelError: It isn't a valid template.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template can't be read: {error}") from error
        self._names = dict(names)

    def render(self, turns: Sequence[Turn]) -> tuple[str, tuple[tuple[int, int], ...]]:
        """Render a chat and find the assistant's words in it.

        A span starts where the template would let the assistant begin, and ends with its turn, the
        token that closes the turn included and white space after it not. It is found by rendering
        the chat up to there.

        Returns:
            The text, and the spans as characters [start, end).

        Raises:
            DataError: The template refuses the chat, or writes the beginning of a chat differently
                when more follows, so that the assistant's words can't be told apart.
        """
        text = self._render(turns, prompt=False)
        spans = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant":
                start = self._prefix(text, turns[:index], prompt=True)
                end = self._prefix(text, turns[: index + 1], prompt=False)
                spans.append((start, start + len(text[start:end].rstrip())))
        return text, tuple(spans)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """A chat up to where the assistant begins to speak.

        Raises:
            DataError: The template refuses it.
        """
        return self._render(turns, prompt=True)

    def _prefix(self, text: str, turns: Sequence[Turn], *, prompt: bool) -> int:
        prefix = self._render(turns, prompt=prompt)
        if not text.startswith(prefix):
            raise DataError(
                f"the model's chat template writes the first {len(turns)} messages differently "
                "when more follow, so the assistant's words can't be told apart: use prompt and "
                "completion"
            )
        return len(prefix)

    def _render(self, turns: Sequence[Turn], *, prompt: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=prompt, **self._names
            )
        except (jinja2.TemplateError, *_OF_AN_EXPRESSION) as error:
            raise DataError(f"the model's chat template refuses a chat: {error}") from error


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return dt.datetime.now(tz=dt.UTC).strftime(form)
