"""Records into tokens, and which of them the loss counts.

Only `tokenizers` and the folder's own files are needed: no model library is imported to read data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sordino.client.data.chat import ChatTemplate
from sordino.client.data.records import Record, Turn
from sordino.core.errors import DataError, ModelError, expected

Span = tuple[int, int]  # characters [start, end)

_NO_TEMPLATE = "the model's tokenizer has no chat template: use text, or prompt and completion"


@dataclass(frozen=True)
class TokenRecord:
    """One record as the model sees it.

    Attributes:
        ids: Token ids, shape (tokens,).
        targets_mask: True at t where the loss counts predicting ``ids[t]``; never at 0.
    """

    ids: NDArray[np.int32]
    targets_mask: NDArray[np.bool_]

    @property
    def targets(self) -> int:
        """How many tokens the loss counts."""
        return int(self.targets_mask.sum())


@dataclass(frozen=True)
class EncodedRecords:
    """What is left of a user's records as tokens.

    Attributes:
        records: Those that can be written as tokens and have one to learn after the cut.
        dropped: Why each other one was left out. Private.
    """

    records: tuple[TokenRecord, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as it lies beside a model.

    Attributes:
        bos_id: Put before every record, or None where the tokenizer has none or says not to.
        eos_id: Put after every record that is not cut, or None.
        template: Renders chats, or None.
    """

    tokenizer: Tokenizer
    bos_id: int | None
    eos_id: int | None
    template: ChatTemplate | None

    @classmethod
    def load(cls, folder: Path) -> TokenizerFile:
        """Read ``tokenizer.json`` and the settings beside it.

        Raises:
            ModelError: A file is missing or can't be read.
        """
        file = folder / "tokenizer.json"
        text = _read_text(file)
        if text is None:
            raise ModelError(f"{folder} has no tokenizer.json: fetch the model again")
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the binding raises nothing narrower
            raise ModelError(f"{file} is not a tokenizer: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        settings = _read_json(folder / "tokenizer_config.json")
        config = _read_json(folder / "config.json")
        bos = _special(tokenizer, "bos", settings, config)
        eos = _special(tokenizer, "eos", settings, config)
        template = _template(folder, settings, tokenizer, bos, eos)
        # A tokenizer may define a begin token and still say that text doesn't start with it.
        starts = settings.get("add_bos_token", True) is not False
        return cls(tokenizer, bos if starts else None, eos, template)

    def encode_record(self, record: Record, max_tokens: int) -> TokenRecord:
        """Encode one record, cut to its first `max_tokens` tokens.

        Text counts every token and the end token; a prompt's completion counts alone; of a chat the
        assistant's turns count. Words that spell a special token are words, except in a chat, whose
        template writes with them.

        Raises:
            DataError: The record is a chat, and the tokenizer has no template or one that can't be
                used.
        """
        _check_max_tokens(max_tokens)
        if record.messages:
            ids, mask = self._encode_chat(record)
        else:
            start = len(record.prompt)
            text = record.prompt + record.text
            ids, mask = self._encode_text(text, [(start, len(text))], special=False)
            if self.bos_id is not None:
                ids, mask = [self.bos_id, *ids], [False, *mask]
            if self.eos_id is not None:
                ids, mask = [*ids, self.eos_id], [*mask, True]
        targets = np.array(mask[:max_tokens], dtype=np.bool_)
        targets[:1] = False
        return TokenRecord(np.array(ids[:max_tokens], dtype=np.int32), targets)

    def encode_records(self, records: Sequence[Record], max_tokens: int) -> EncodedRecords:
        """Encode a user's records, and drop those that can't be or have no token left to learn.

        Each is judged by itself: a chat that the template refuses is left out and takes no other
        record with it, and nothing left is an answer, not an error.

        Raises:
            DataError: `max_tokens` is below 2.
        """
        _check_max_tokens(max_tokens)
        kept, dropped = list[TokenRecord](), list[str]()
        for record in records:
            try:
                encoded = self.encode_record(record, max_tokens)
            except DataError as error:
                dropped.append(str(error))
                continue
            if encoded.targets:
                kept.append(encoded)
            else:
                dropped.append(f"no token to learn within max_tokens = {max_tokens}")
        return EncodedRecords(tuple(kept), tuple(dropped))

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """A conversation up to where the assistant begins.

        Raises:
            DataError: The tokenizer has no template, or its template refuses the conversation.
        """
        if self.template is None:
            raise DataError(_NO_TEMPLATE)
        return self._encode_text(self.template.prompt(turns), [], special=True)[0]

    def encode_beginning(self, text: str) -> list[int]:
        """Words to go on from, as a record of text begins."""
        ids, _ = self._encode_text(text, [], special=False)
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some tokens, special ones left out."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    def _encode_chat(self, record: Record) -> tuple[list[int], list[bool]]:
        if self.template is None:
            raise DataError(_NO_TEMPLATE)
        text, spans = self.template.render(record.messages)
        return self._encode_text(text, spans, special=True)

    def _encode_text(
        self, text: str, spans: Sequence[Span], *, special: bool
    ) -> tuple[list[int], list[bool]]:
        self.tokenizer.encode_special_tokens = not special
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        # A token counts if any of its characters is to be learned.
        mask = [
            any(begin < span_end and end > span_begin for span_begin, span_end in spans)
            for begin, end in encoding.offsets
        ]
        return list(encoding.ids), mask


def _check_max_tokens(max_tokens: int) -> None:
    if max_tokens < 2:
        raise DataError(expected("max_tokens", max_tokens, ">= 2"))


def _read_text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"can't read {file}: {error}") from error


def _read_json(file: Path) -> Mapping[str, Any]:
    text = _read_text(file)
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: expected a JSON object")
    return value


def _special(
    tokenizer: Tokenizer, name: str, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> int | None:
    token = settings.get(f"{name}_token")
    if isinstance(token, dict):
        token = token.get("content")
    if token is None:
        # Some models end on any of several tokens: the first one is what they write.
        ids = config.get(f"{name}_token_id")
        return (
            int(ids[0]) if isinstance(ids, list) and ids else ids if isinstance(ids, int) else None
        )
    found = tokenizer.token_to_id(str(token))
    if found is None:
        raise ModelError(expected(f"{name}_token", token, "in the tokenizer's vocabulary"))
    return int(found)


def _template(
    folder: Path,
    settings: Mapping[str, Any],
    tokenizer: Tokenizer,
    bos: int | None,
    eos: int | None,
) -> ChatTemplate | None:
    source = _read_text(folder / "chat_template.jinja") or settings.get("chat_template")
    if isinstance(source, list):
        source = {t.get("name"): t.get("template") for t in source}.get("default")
    if not isinstance(source, str):
        return None
    spelled = {"bos_token": bos, "eos_token": eos}
    names = {k: tokenizer.id_to_token(i) or "" for k, i in spelled.items() if i is not None}
    return ChatTemplate(source, {"bos_token": "", "eos_token": "", **names})
