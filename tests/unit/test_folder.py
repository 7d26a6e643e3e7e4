"""Hugging Face folders are quantized once, tensor by tensor, and mapped by all."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support import llama_files
from transformers import AutoModelForCausalLM

from sordino.client.model import folder as folders
from sordino.client.model.nf4 import BLOCK, quantize_nf4
from sordino.client.model.packing import pack
from sordino.client.model.store import open_base, resolve_model
from sordino.core.config import ModelConfig
from sordino.core.errors import ModelError

UNTIED = {**llama_files.CONFIG, "tie_word_embeddings": False}


def resolve(path, cache, quantization="int8"):
    return resolve_model(ModelConfig(name=str(path), quantization=quantization), cache)


def dequantized_model(path, decoder):
    """transformers' model of the folder, with the matrices as the decoder has them."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    state = {
        (f"{n}.weight" if n == "lm_head" else f"model.{n}.weight"): m.dense()
        for n, m in decoder.matrices.items()
    }
    missing, surplus = model.load_state_dict(state, strict=False)
    assert not surplus
    assert all("norm" in name or name == "lm_head.weight" for name in missing)
    return model


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("config", [llama_files.CONFIG, UNTIED], ids=["tied", "untied"])
def test_logits_equal_the_dequantized_models(tmp_path, quantization, config):
    source = llama_files.write_folder(tmp_path / "hf", config=config)
    files = resolve(source, tmp_path / "cache", quantization)
    assert (files.kind, files.quantization, files.index) == ("folder", quantization, None)
    decoder = open_base(files).decoder
    model = dequantized_model(source, decoder)
    ids = torch.randint(0, 260, (1, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = decoder.logits(decoder.hidden(*pack([ids[0]])))
        theirs = model(input_ids=ids).logits[0]
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_float_type_is_read(tmp_path, dtype):
    source = llama_files.write_folder(tmp_path / "hf", dtype)
    decoder = open_base(resolve(source, tmp_path / "cache")).decoder
    weight = llama_files.weights()["model.layers.1.mlp.up_proj.weight"].to(dtype).float()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((decoder.matrices["layers.1.mlp.up_proj"].dense() - weight).abs() <= step * 0.51).all()


def test_shards_make_the_same_base_as_one_file(tmp_path):
    whole = llama_files.write_folder(tmp_path / "whole")
    shards = llama_files.write_folder(tmp_path / "shards", shards=3)
    a, b = resolve(whole, tmp_path / "cache"), resolve(shards, tmp_path / "cache")
    assert a.sha256 == b.sha256
    assert a.weights != b.weights


def test_a_folder_is_quantized_once(tmp_path, monkeypatch):
    source = llama_files.write_folder(tmp_path / "hf")
    before = resolve(source, tmp_path / "cache")

    def never(*_):
        raise AssertionError("quantized twice")

    monkeypatch.setattr(folders, "_quantize", never)
    monkeypatch.setattr(folders, "file_sha256", never)
    assert resolve(source, tmp_path / "cache") == before


def test_a_changed_source_or_file_is_seen(tmp_path):
    source = llama_files.write_folder(tmp_path / "hf")
    before = resolve(source, tmp_path / "cache")
    llama_files.write_folder(source, seed=1)
    after = resolve(source, tmp_path / "cache")
    assert after.sha256 != before.sha256
    after.weights.write_bytes(b"cut short")  # what a full disk may leave
    assert resolve(source, tmp_path / "cache").sha256 == after.sha256


def test_the_identity_is_the_same_on_another_machine(tmp_path):
    source = llama_files.write_folder(tmp_path / "hf")
    moved = shutil.copytree(source, tmp_path / "elsewhere")
    for quantization in ("int8", "nf4"):
        a = resolve(source, tmp_path / "cache", quantization)
        b = resolve(moved, tmp_path / "other", quantization)
        assert a.sha256 == b.sha256


def test_the_weights_are_mapped_not_copied(tmp_path):
    files = resolve(llama_files.write_folder(tmp_path / "hf"), tmp_path / "cache")
    decoder = open_base(files).decoder
    with Path("/proc/self/smaps").open(encoding="utf-8") as smaps:
        ranges = [line.split()[0].split("-") for line in smaps if str(files.weights) in line]
    spans = [(int(a, 16), int(b, 16)) for a, b in ranges]
    for matrix in decoder.matrices.values():
        assert any(a <= matrix.codes.data_ptr() < b for a, b in spans)


@pytest.mark.parametrize("shape", [(8, 64), (6, 96), (5, 22), (3, 130)])
def test_nf4_is_the_nearest_code_whatever_the_width(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    matrix = quantize_nf4(weight)
    from bitsandbytes.functional import get_4bit_type

    codes = get_4bit_type("nf4", device="cpu", blocksize=BLOCK)
    flat = weight.flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % BLOCK)]).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    nearest = codes[((blocks / scales)[..., None] - codes).abs().argmin(-1)] * scales
    assert torch.allclose(matrix.dense(), nearest.flatten()[: len(flat)].view(shape), atol=1e-6)
    assert torch.equal(matrix.tile(1, 3), matrix.dense()[1:3])
    assert torch.equal(matrix.gather(torch.tensor([2, 0])), matrix.dense()[[2, 0]])
    assert matrix.nbytes < weight.numel() * 0.75


def test_without_bitsandbytes_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    source = llama_files.write_folder(tmp_path / "hf")
    with pytest.raises(ModelError, match=r"sordino\[nf4\]"):
        resolve(source, tmp_path / "cache", "nf4")
    assert resolve(source, tmp_path / "cache", "int8").quantization == "int8"


def break_tensor(source, change):
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(source / "model.safetensors")), source / "model.safetensors")


NAME = "model.layers.0.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != NAME}, f"no tensor {NAME}"),
        (lambda t: {**t, NAME: t[NAME][:, :32].contiguous()}, "config.json says"),
        (lambda t: {**t, NAME: t[NAME].to(torch.int8)}, "float32, float16 or bfloat16"),
        (lambda t: {**t, NAME: t[NAME] * float("inf")}, "NaN or an infinity"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(tmp_path, change, message):
    source = llama_files.write_folder(tmp_path / "hf")
    break_tensor(source, change)
    with pytest.raises(ModelError, match=message):
        resolve(source, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "derived").glob("*/*.safetensors"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    source = llama_files.write_folder(tmp_path / "hf")
    (source / name).unlink()
    with pytest.raises(ModelError, match=name):
        resolve(source, tmp_path / "cache")


def test_a_missing_shard_is_named(tmp_path):
    source = llama_files.write_folder(tmp_path / "hf", shards=2)
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        resolve(source, tmp_path / "cache")


def test_another_architecture_is_refused(tmp_path):
    source = llama_files.write_folder(tmp_path / "hf")
    (source / "config.json").write_text(json.dumps({**llama_files.CONFIG, "model_type": "mamba"}))
    with pytest.raises(ModelError, match="mamba"):
        resolve(source, tmp_path / "cache")
