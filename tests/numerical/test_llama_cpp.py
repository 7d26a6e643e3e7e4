"""The adapter that llama.cpp loads does what ours does: likely next tokens are as likely."""

from contextlib import suppress

import gguf
import numpy as np
import pytest
from support import families
from support.smollm2 import smollm2_files

from sordino.client.adapter_files import SavedAdapter
from sordino.client.generate import prepare, score
from sordino.client.gguf_adapter import save_gguf_adapter
from sordino.client.llama_cpp import LlamaCpp
from sordino.client.model.store import open_base, resolve_model
from sordino.core.adapters import adapter_manifest
from sordino.core.config import LoraConfig, ModelConfig
from sordino.core.errors import ModelError

LORA = LoraConfig(rank=4, alpha=6.0, targets=("attention", "mlp"))
# Nats. With float32 weights both compute the same products in another order, and llama.cpp reads
# some activations from a table: 0.0014 is the most seen here, 0.00013 on SmolLM2.
NEAR = 1e-2
APART = 0.1


def adapter_for(files, scale):
    rng = np.random.default_rng(0)
    tensors = {
        spec.name: (rng.standard_normal(spec.shape) * scale).astype(np.float32)
        for spec in adapter_manifest(files.config, LORA).tensors
    }
    return SavedAdapter(
        tensors=tensors, rank=LORA.rank, alpha=LORA.alpha, targets=LORA.targets, base_name="x/y"
    )


def gaps(files, weights, adapter, lora, count=50):
    """How far the log-probabilities of llama.cpp's likeliest tokens are from ours."""
    prompt, theirs = next(answers(LlamaCpp(weights, lora, context=256, exact=True), count))
    own = prepare(open_base(files).decoder, weights="full")
    if adapter is not None:
        own = own.with_adapter(adapter.tensors, scale=adapter.scale)
    ours = score(own, [prompt] * len(theirs), [[token] for token in theirs])
    return np.array([float(row[0]) for row in ours]) - np.array(list(theirs.values()))


def answers(engine, count):
    """Of the prompts that it answers: it is silent where half a letter is likeliest."""
    for seed in range(20):
        prompt = np.random.default_rng(seed).integers(20, 250, 8).tolist()
        with suppress(ModelError):
            yield prompt, engine.log_probs(prompt, count)


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "gemma3", "gpt2"])
def test_a_tiny_model_of_each_architecture(case, tmp_path):
    path = families.write_gguf(tmp_path / "base.gguf", case, families.model(case), "F32")
    files = resolve_model(ModelConfig(name=str(path)), tmp_path / "cache")
    adapter = adapter_for(files, 0.1)
    save_gguf_adapter(tmp_path / "lora.gguf", adapter, files)
    with_adapter = gaps(files, path, adapter, tmp_path / "lora.gguf")
    assert np.abs(with_adapter).max() < NEAR
    # The same without telling ours: so the adapter matters, and a lost one would show.
    assert np.abs(gaps(files, path, None, tmp_path / "lora.gguf")).max() > APART


@pytest.mark.parametrize("broken", ["q_proj", "k_proj"])
def test_rows_in_our_own_order_are_caught(broken, tmp_path):
    path = families.write_gguf(tmp_path / "base.gguf", "llama", families.model("llama"), "F32")
    files = resolve_model(ModelConfig(name=str(path)), tmp_path / "cache")
    right = adapter_for(files, 0.1)
    mixed = {
        name: np.roll(tensor, 1, axis=0) if f"{broken}.lora_B" in name else tensor
        for name, tensor in right.tensors.items()
    }
    wrong = SavedAdapter(
        tensors=mixed, rank=right.rank, alpha=right.alpha, targets=right.targets, base_name="x/y"
    )
    save_gguf_adapter(tmp_path / "lora.gguf", wrong, files)
    assert np.abs(gaps(files, path, right, tmp_path / "lora.gguf")).max() > APART


def test_a_base_that_is_no_gguf_file_and_a_strange_tensor_are_refused(tmp_path):
    folder = families.write_folder(tmp_path / "model", families.model("llama"))
    files = resolve_model(ModelConfig(name=str(folder)), tmp_path / "cache")
    adapter = adapter_for(files, 0.1)
    with pytest.raises(ModelError, match="a GGUF file"):
        save_gguf_adapter(tmp_path / "lora.gguf", adapter, files)
    path = families.write_gguf(tmp_path / "base.gguf", "llama", families.model("llama"), "F32")
    files = resolve_model(ModelConfig(name=str(path)), tmp_path / "cache")
    name = next(iter(adapter.tensors)).replace("layers.0", "layers.99")
    adapter.tensors[name] = adapter.tensors[next(iter(adapter.tensors))]
    with pytest.raises(ModelError, match=r"layers\.99"):
        save_gguf_adapter(tmp_path / "lora.gguf", adapter, files)
    assert not (tmp_path / "lora.gguf").exists()


def test_llama_cpp_says_what_it_can_not_open(tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="can't open"):
        LlamaCpp(tmp_path / "no.gguf")


@pytest.mark.slow
def test_smollm2(tmp_path):
    """With the base's weights written out in float32: llama.cpp rounds activations otherwise."""
    files = smollm2_files()
    adapter = adapter_for(files, 0.02)
    save_gguf_adapter(tmp_path / "lora.gguf", adapter, files)
    written_out = dense_copy(files.weights, tmp_path / "dense.gguf")
    gap = gaps(files, written_out, adapter, tmp_path / "lora.gguf", 500)
    assert np.abs(gap).max() < NEAR
    assert np.abs(gaps(files, written_out, None, tmp_path / "lora.gguf", 500)).max() > APART


def dense_copy(path, copy):
    """A GGUF file with each tensor as the `gguf` library dequantizes it."""
    reader, writer = gguf.GGUFReader(str(path)), gguf.GGUFWriter(copy, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, dense.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy
