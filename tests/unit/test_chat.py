"""A chat: turns by the model's own template, words as they come, and what both engines share."""

import io
import sys

import pytest
from support import llama_files
from typer.testing import CliRunner

from sordino.cli.main import app
from sordino.client.adapter_files import save_adapter
from sordino.client.chat import Chat, OwnEngine, converse
from sordino.client.data.tokens import TokenizerFile
from sordino.client.generate import Sampling, generate, prepare
from sordino.client.llama_cpp import LlamaCpp
from sordino.client.model.store import open_base, resolve_model
from sordino.core.adapters import adapter_manifest, initial_adapter
from sordino.core.config import LoraConfig, ModelConfig
from sordino.core.errors import ConfigError, ModelError

MOST = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    path = llama_files.write_gguf(folder / "tiny.gguf", "F32")
    return resolve_model(ModelConfig(name=str(path)), folder / "cache")


@pytest.fixture(scope="module")
def tokenizer(files):
    return TokenizerFile.load(files.tokenizer)


def own(files, tokenizer, **settings):
    return OwnEngine(prepare(open_base(files).decoder, weights="full"), tokenizer, **settings)


class Scripted:
    """Writes given words, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def write(self, ids, most):
        self.asked.append(list(ids))
        yield from self.answers.pop(0)


def test_each_turn_goes_on_from_all_that_was_said(tokenizer):
    assert tokenizer.template is not None
    engine = Scripted("Yes", "No")
    chat = Chat(engine, tokenizer, system="Be brief")
    assert "".join(chat.say("Is it?")) == "Yes"
    assert "".join(chat.say("And now?")) == "No"
    assert [(t.role, t.content) for t in chat.turns] == [
        ("system", "Be brief"),
        ("user", "Is it?"),
        ("assistant", "Yes"),
        ("user", "And now?"),
        ("assistant", "No"),
    ]
    assert engine.asked[1] == tokenizer.encode_prompt(chat.turns[:4])


def test_half_a_letter_waits_for_the_rest(files, tokenizer):
    ids = tokenizer.encode_beginning("été")
    pieces = list(own(files, tokenizer)._words(iter(ids)))
    assert "".join(pieces) == "été"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    cut = list(own(files, tokenizer)._words(iter(ids[:-1])))
    assert "".join(cut) == "ét\N{REPLACEMENT CHARACTER}"  # nothing is kept back at the end


def test_an_answer_that_was_left_is_not_part_of_the_chat(tokenizer):
    chat = Chat(Scripted("a long answer"), tokenizer)
    next(chat.say("?"))
    assert chat.turns == []


def test_our_engine_writes_what_generate_writes_turn_after_turn(files, tokenizer):
    engine, shown = own(files, tokenizer), []
    converse(
        Chat(engine, tokenizer, most=MOST), iter(["First.\n", "\n", "Second.\n"]), shown.append
    )
    model, chat = prepare(open_base(files).decoder, weights="full"), Chat(None, tokenizer)
    expected = []
    for words in ("First.", "Second."):
        prompt = tokenizer.encode_prompt([*chat.turns, llama_turn("user", words)])
        stop = [tokenizer.eos_id]
        ids = generate(model, [prompt], max_new_tokens=MOST, stop_ids=stop).completions[0].ids
        answer = tokenizer.decode(ids)
        chat.turns += [llama_turn("user", words), llama_turn("assistant", answer)]
        expected.append(answer)
    assert "".join(shown) == "".join(f"{answer}\n" for answer in expected)


def llama_turn(role, content):
    from sordino.client.data.records import Turn

    return Turn(role, content)


def test_a_seed_gives_the_same_answer_again(files, tokenizer):
    def answer(seed):
        engine = own(files, tokenizer, sampling=Sampling(temperature=1.0), seed=seed)
        return "".join(Chat(engine, tokenizer, most=MOST).say("Go on"))

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_llama_cpp_writes_the_same(files, tokenizer):
    prompt = [17, 93, 42, 200, 7]
    ours = "".join(own(files, tokenizer).write(prompt, MOST))
    theirs = "".join(LlamaCpp(files.weights, context=256, exact=True).write(prompt, MOST))
    # It holds letters back that never became whole.
    assert theirs.replace("\N{REPLACEMENT CHARACTER}", "")
    assert ours.startswith(theirs.split("\N{REPLACEMENT CHARACTER}")[0])


def test_the_command_speaks_with_an_adapter(tmp_path, monkeypatch):
    lora = LoraConfig(rank=4, alpha=8.0)
    pocket = resolve_model(ModelConfig(name="pocket"), tmp_path)
    tensors = initial_adapter(adapter_manifest(pocket.config, lora), 0)
    save_adapter(tmp_path / "adapter", tensors, lora, "pocket")
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("ROMEO:\n"))
    spoken = CliRunner().invoke(
        app, ["chat", "--adapter", str(tmp_path / "adapter"), "--max-tokens", "5"], input="ROMEO:\n"
    )
    assert spoken.exit_code == 0, spoken.output
    assert spoken.output.strip()


def test_a_base_must_be_named_and_an_adapter_there(tmp_path):
    named = CliRunner().invoke(app, ["chat"])
    assert isinstance(named.exception, ConfigError)
    missing = CliRunner().invoke(app, ["adapter", "show", str(tmp_path / "none")])
    assert isinstance(missing.exception, ModelError)
