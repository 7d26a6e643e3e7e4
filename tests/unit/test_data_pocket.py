"""The files of `pocket`: small enough, complete, and what they say they are."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer

from sordino.client.data.records import Record, Turn
from sordino.client.data.tokens import TokenizerFile

POCKET = Path(str(files("sordino.client") / "model" / "pocket"))


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(POCKET / "pocket.gguf")


def field(reader: GGUFReader, name: str) -> object:
    found = reader.get_field(name)
    assert found is not None, name
    return found.contents()


def test_it_fits_the_package(reader: GGUFReader) -> None:
    assert (POCKET / "pocket.gguf").stat().st_size <= 5_000_000
    parameters = sum(int(t.n_elements) for t in reader.tensors)
    assert 2_000_000 <= parameters <= 6_000_000
    assert (POCKET / "README.md").is_file()


def test_it_is_quantized_as_the_models_that_are_deployed(reader: GGUFReader) -> None:
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert "output.weight" not in kinds, "the head is the embedding"
    linears = [k for n, k in kinds.items() if n.startswith("blk.") and "norm" not in n]
    assert set(linears) <= {"Q4_1", "Q8_0"}
    assert "Q4_1" in linears
    assert {k for n, k in kinds.items() if "norm" in n} == {"F32"}


def test_the_metadata_agrees_with_the_configuration(reader: GGUFReader) -> None:
    config = json.loads((POCKET / "config.json").read_text())
    assert field(reader, "general.architecture") == config["model_type"] == "llama"
    for ours, theirs in {
        "llama.block_count": "num_hidden_layers",
        "llama.embedding_length": "hidden_size",
        "llama.feed_forward_length": "intermediate_size",
        "llama.attention.head_count": "num_attention_heads",
        "llama.attention.head_count_kv": "num_key_value_heads",
        "llama.rope.dimension_count": "head_dim",
        "llama.context_length": "max_position_embeddings",
        "llama.vocab_size": "vocab_size",
    }.items():
        assert field(reader, ours) == config[theirs], ours
    assert np.isclose(
        float(str(field(reader, "llama.attention.layer_norm_rms_epsilon"))), config["rms_norm_eps"]
    )


def test_the_tokenizers_agree(reader: GGUFReader) -> None:
    described = json.loads((POCKET / "tokenizer.json").read_text())
    vocabulary = Tokenizer.from_file(str(POCKET / "tokenizer.json")).get_vocab()
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert tokens == sorted(vocabulary, key=vocabulary.__getitem__)
    assert field(reader, "tokenizer.ggml.model") == "gpt2"
    merges = [" ".join(pair) for pair in described["model"]["merges"]]
    assert field(reader, "tokenizer.ggml.merges") == merges
    loaded = TokenizerFile.load(POCKET)
    assert field(reader, "tokenizer.ggml.bos_token_id") == loaded.bos_id
    assert field(reader, "tokenizer.ggml.eos_token_id") == loaded.eos_id
    assert field(reader, "tokenizer.ggml.add_bos_token") is True


def test_it_encodes_text_and_chats() -> None:
    tokenizer = TokenizerFile.load(POCKET)
    text = "Now is the winter of our discontent\nMade glorious summer — by this sun of York;"
    record = tokenizer.encode_record(Record(text=text), 64)
    assert record.ids[0] == tokenizer.bos_id
    assert record.ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(record.ids) == text
    chat = Record(messages=(Turn("user", "Who's there?"), Turn("assistant", "Long live the king!")))
    encoded = tokenizer.encode_record(chat, 64)
    learned = encoded.ids[encoded.targets_mask]
    assert learned[-1] == tokenizer.eos_id
    assert tokenizer.decode(learned) == "Long live the king!"
