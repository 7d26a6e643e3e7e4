"""Names and paths become open models; what is made of them is made once."""

import json
import pickle
import shutil

import pytest
import torch
from support import llama_files

from sordino.client.data.tokens import TokenizerFile
from sordino.client.model import describe, store
from sordino.client.model.packing import pack
from sordino.client.model.registry import KNOWN, upstream_name
from sordino.client.model.store import cache_root, open_base, resolve_model
from sordino.core.config import ModelConfig
from sordino.core.errors import ModelError


@pytest.fixture
def tiny(tmp_path):
    return llama_files.write_gguf(tmp_path / "tiny.gguf", "Q4_1")


def resolve(name, cache):
    return resolve_model(ModelConfig(name=str(name)), cache)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("SORDINO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "sordino"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "sordino"


def test_pocket_is_shipped(tmp_path):
    files = resolve("pocket", tmp_path)
    assert (files.name, files.kind) == ("pocket", "gguf")
    assert files.weights.stat().st_size <= 5_000_000
    decoder = open_base(files).decoder
    assert decoder.hidden(*pack([torch.tensor([1, 2, 3])])).isfinite().all()


def test_a_gguf_file_is_described_once(tiny, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    files = resolve(tiny, cache)
    assert (files.name, files.quantization, files.kind) == ("tiny", "Q4_1", "gguf")
    assert files.weights == tiny
    assert files.tokenizer == cache / "derived" / files.sha256[:16]

    def never(*_):
        raise AssertionError("described twice")

    monkeypatch.setattr(store, "describe_gguf", never)
    monkeypatch.setattr("sordino.client.model.gguf_file.read_index", never)
    assert resolve(tiny, cache) == files


def test_a_changed_gguf_file_is_another_model(tiny, tmp_path):
    before = resolve(tiny, tmp_path / "cache")
    llama_files.write_gguf(tiny, "Q8_0", seed=1)
    after = resolve(tiny, tmp_path / "cache")
    assert after.sha256 != before.sha256
    assert after.quantization == "Q8_0"


def test_the_description_says_what_the_file_says(tiny, tmp_path):
    files = resolve(tiny, tmp_path / "cache")
    for name in ("hidden_size", "num_key_value_heads", "vocab_size", "head_dim"):
        assert files.config[name] == llama_files.CONFIG[name]
    assert str(tmp_path) not in json.dumps(dict(files.config))
    settings = (files.tokenizer / "tokenizer_config.json").read_text()
    assert json.loads(settings)["chat_template"] == llama_files.CHAT_TEMPLATE
    assert str(tmp_path) not in settings
    tokenizer = TokenizerFile.load(files.tokenizer).tokenizer
    text = "<|im_start|>the thing<|im_end|>"
    theirs = llama_files.tokenizer()
    assert tokenizer.encode(text, add_special_tokens=False).ids == theirs.encode(text).ids
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False).ids == [258]


def test_a_description_that_was_interrupted_is_made_again(tiny, tmp_path):
    files = resolve(tiny, tmp_path / "cache")
    (files.tokenizer / "config.json").unlink()
    assert resolve(tiny, tmp_path / "cache") == files


def test_files_go_to_another_process(tiny, tmp_path):
    files = resolve(tiny, tmp_path / "cache")
    assert pickle.loads(pickle.dumps(files)) == files


def test_a_known_model_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(ModelError, match="sordino models fetch smollm2-135m"):
        resolve("smollm2-135m", tmp_path)


def test_a_fetched_model_must_be_the_right_file(tiny, tmp_path):
    files = resolve(tiny, tmp_path)
    known = KNOWN["smollm2-135m"]
    folder = tmp_path / "models" / known.name
    folder.mkdir(parents=True)
    for name in describe.DESCRIPTION:
        shutil.copy(files.tokenizer / name, folder / name)
    shutil.copy(tiny, folder / known.file)
    with pytest.raises(ModelError, match=f"is not the file.*{known.sha256}"):
        resolve("smollm2-135m", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pockt", "did you mean pocket"),
        ("nothing-like-it", "Known names are pocket, smollm2-135m"),
        ("no/such/file.gguf", "no file"),
    ],
)
def test_an_unknown_model_is_refused(tmp_path, name, message):
    with pytest.raises(ModelError, match=message):
        resolve(name, tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    for content in (b"", b"GGUF", b"not a model" * 100):
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"can't read .*bad\.gguf"):
            resolve(path, tmp_path / "cache")


def test_a_truncated_gguf_is_refused(tiny, tmp_path):
    data = tiny.read_bytes()
    tiny.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ModelError):
        resolve(tiny, tmp_path / "cache")


def test_names_for_others():
    assert upstream_name("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert upstream_name("tiny") == "tiny"
