"""Records into tokens: what the loss counts, and what it never counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sordino.client.data.chat import ChatTemplate
from sordino.client.data.records import Record, Turn
from sordino.client.data.tokens import EncodedRecords, TokenizerFile, TokenRecord
from sordino.core.errors import DataError, ModelError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]


def write_tokenizer(folder: Path, **settings: Any) -> Path:
    """A tokenizer whose tokens are bytes, so that a count of tokens is a count of letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path, **settings: Any) -> TokenizerFile:
    named = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "chat_template": CHATML}
    return TokenizerFile.load(write_tokenizer(folder, **(named | settings)))


def learned(tokenizer: TokenizerFile, record: TokenRecord) -> str:
    ids = [int(i) for i, counts in zip(record.ids, record.targets_mask, strict=True) if counts]
    return str(tokenizer.tokenizer.decode(ids, skip_special_tokens=False))


def whole(tokenizer: TokenizerFile, record: TokenRecord) -> str:
    return str(tokenizer.tokenizer.decode(record.ids.tolist(), skip_special_tokens=False))


def test_text_counts_every_token_and_the_end(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    record = tokenizer.encode_record(Record(text="To be,\nor not"), 64)
    assert whole(tokenizer, record) == "<bos>To be,\nor not<eos>"
    assert learned(tokenizer, record) == "To be,\nor not<eos>"
    assert record.targets == len(record.ids) - 1
    assert str(record.ids.dtype) == "int32"


def test_a_cut_record_has_no_end(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    assert whole(tokenizer, tokenizer.encode_record(Record(text="abcdef"), 4)) == "<bos>abc"
    assert whole(tokenizer, tokenizer.encode_record(Record(text="ab"), 4)) == "<bos>ab<eos>"


def test_the_first_token_is_never_counted(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, bos_token=None, eos_token=None)
    record = tokenizer.encode_record(Record(text="abc"), 64)
    assert whole(tokenizer, record) == "abc"
    assert learned(tokenizer, record) == "bc"


def test_a_tokenizer_may_say_that_text_starts_without_its_begin_token(tmp_path: Path) -> None:
    assert load(tmp_path, add_bos_token=False).bos_id is None
    assert load(tmp_path, add_bos_token=True).bos_id is not None


def test_only_the_completion_is_learned(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    record = tokenizer.encode_record(Record(prompt="Q: é? A:", text=" ça"), 64)
    assert whole(tokenizer, record) == "<bos>Q: é? A: ça<eos>"
    assert learned(tokenizer, record) == " ça<eos>"


def test_only_the_assistants_turns_are_learned(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    turns = (
        Turn("system", "Be short."),
        Turn("user", "assistant?"),
        Turn("assistant", "Aye."),
        Turn("user", "Sure?"),
        Turn("assistant", "Nay."),
        Turn("user", "Thanks."),
    )
    record = tokenizer.encode_record(Record(messages=turns), 500)
    assert learned(tokenizer, record) == "Aye.<|im_end|>Nay.<|im_end|>"
    assert whole(tokenizer, record).startswith("<|im_start|>system\nBe short.<|im_end|>\n")


def test_words_that_spell_a_special_token_are_words(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    chat = Record(messages=(Turn("user", "x"), Turn("assistant", "y")))
    tokenizer.encode_record(chat, 64)  # a chat before must not change how text is read
    record = tokenizer.encode_record(Record(text="a<eos>b"), 64)
    assert len(record.ids) == len("a<eos>b") + 2
    assert record.ids.tolist().count(tokenizer.eos_id) == 1


def test_records_with_nothing_left_to_learn_are_dropped(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    late = Record(prompt="a long prompt", text="x")
    reason = "no token to learn within max_tokens = 8"
    encoded = tokenizer.encode_records([late, Record(text="short")], 8)
    assert (len(encoded.records), encoded.dropped) == (1, (reason,))
    assert tokenizer.encode_records([late], 8) == EncodedRecords((), (reason,))
    assert tokenizer.encode_records([], 8) == EncodedRecords((), ())
    for encode in (tokenizer.encode_record, lambda r, n: tokenizer.encode_records([r], n)):
        with pytest.raises(DataError, match="max_tokens >= 2"):
            encode(late, 1)


def test_a_chat_that_is_refused_takes_no_other_record_with_it(tmp_path: Path) -> None:
    alternating = (
        "{% for m in messages %}{{ raise_exception('roles must alternate') "
        "if loop.previtem and loop.previtem.role == m.role }}{{ m.content }}|{% endfor %}"
    )
    tokenizer = load(tmp_path, chat_template=alternating)
    good = Record(messages=(Turn("user", "x"), Turn("assistant", "y")))
    bad = Record(messages=(Turn("user", "x"), *good.messages))
    encoded = tokenizer.encode_records([good, bad, Record(text="z")], 64)
    assert [learned(tokenizer, r) for r in encoded.records] == ["y|", "z<eos>"]
    (reason,) = encoded.dropped
    assert "roles must alternate" in reason


def test_a_template_that_rewrites_the_past_is_refused(tmp_path: Path) -> None:
    # Several models strip what the assistant thought from all turns but the last.
    forgetful = "{% for m in messages %}{{ m.content if loop.last else '…' }}|{% endfor %}"
    tokenizer = load(tmp_path, chat_template=forgetful)
    turns = (Turn("user", "x"), Turn("assistant", "y"), Turn("user", "z"))
    with pytest.raises(DataError, match="differently when more follow"):
        tokenizer.encode_record(Record(messages=turns), 64)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[5]['role'] }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 + 'x' }}",
        "{{ 1 // 0 }}",
        "{{ ''.join(messages) }}",
        "{{ 'x'.index('y') }}",
    ],
)
def test_a_template_that_fails_is_an_error_about_the_chat(template: str) -> None:
    with pytest.raises(DataError, match="refuses a chat"):
        ChatTemplate(template, {}).render([Turn("user", "x")])


def test_templates_may_ask_for_the_date() -> None:
    text, _ = ChatTemplate("{{ strftime_now('%Y') }}", {}).render([Turn("user", "x")])
    assert int(text) > 2000


def test_templates_lie_in_several_places(tmp_path: Path) -> None:
    chat = Record(messages=(Turn("user", "x"), Turn("assistant", "y")))
    with pytest.raises(DataError, match="no chat template"):
        load(tmp_path, chat_template=None).encode_record(chat, 64)
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": CHATML}]
    assert load(tmp_path, chat_template=several).encode_record(chat, 64).targets
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert load(tmp_path, chat_template=None).encode_record(chat, 64).targets


def test_special_tokens_of_the_models_configuration_are_the_fallback(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"bos_token_id": 256, "eos_token_id": [257, 3]}')
    tokenizer = load(tmp_path, bos_token=None, eos_token=None)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (256, 257)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        TokenizerFile.load(tmp_path)
    with pytest.raises(ModelError, match="chat template can't be read"):
        load(tmp_path, chat_template="{% for %}")
    with pytest.raises(ModelError, match="expected bos_token in the tokenizer's vocabulary"):
        load(tmp_path, bos_token="<nowhere>")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        TokenizerFile.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="expected a JSON object"):
        TokenizerFile.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        TokenizerFile.load(tmp_path)
