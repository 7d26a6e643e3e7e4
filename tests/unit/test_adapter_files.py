"""Adapters in PEFT's format: PEFT loads ours and computes the same; what we load is checked."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from support import llama_files
from transformers import AutoModelForCausalLM

from sordino.client.adapter_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from sordino.client.lora import LoraAdapter
from sordino.client.model.packing import pack
from sordino.client.model.store import open_base, resolve_model
from sordino.core.adapters import adapter_manifest
from sordino.core.config import LoraConfig, ModelConfig
from sordino.core.errors import ModelError

LORA = LoraConfig(rank=4, alpha=6.0)


def random_adapter(lora=LORA, seed=0):
    rng = np.random.default_rng(seed)
    manifest = adapter_manifest(llama_files.CONFIG, lora)
    return {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32) * 0.2
        for spec in manifest.tensors
    }


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "adapter"
    save_adapter(folder, random_adapter(), LORA, "sordino/tiny")
    return folder


def change_config(folder, **changes):
    table = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**table, **changes}))


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(dict(tensors)), folder / WEIGHTS)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("targets", [LORA.targets, ("q_proj", "v_proj", "down_proj")])
def test_peft_computes_what_we_compute(tmp_path, kind, targets):
    lora = LoraConfig(rank=4, alpha=6.0, targets=targets)
    tensors = random_adapter(lora)
    save_adapter(tmp_path / "adapter", tensors, lora, "sordino/tiny")
    file = llama_files.write_gguf(tmp_path / "tiny.gguf", kind)
    base = open_base(resolve_model(ModelConfig(name=str(file)), tmp_path / "cache"))
    loaded = load_adapter(tmp_path / "adapter", adapter_manifest(base.files.config, lora))
    adapter = LoraAdapter(loaded.tensors, scale=loaded.scale)
    dense = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=file.name, dtype=torch.float32
    )
    ids = torch.randint(0, 260, (1, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed, packing = pack([ids[0]])
        ours = base.decoder.logits(base.decoder.hidden(packed, packing, linears=adapter.linears))
        bare = dense(input_ids=ids).logits[0]
        theirs = PeftModel.from_pretrained(dense, tmp_path / "adapter")(input_ids=ids).logits[0]
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert (bare - theirs).abs().max() > 0.1 * theirs.abs().max()  # the adapter matters


def test_we_load_what_peft_saves(tmp_path):
    llama_files.write_folder(tmp_path / "base")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = PeftConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    get_peft_model(dense, settings).save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter")
    assert (loaded.rank, loaded.alpha, loaded.targets) == (4, 6.0, ("q_proj", "up_proj"))
    assert len(loaded.tensors) == 2 * 2 * 2
    assert loaded.scale == 1.5


def test_what_is_saved_is_loaded_bit_for_bit(saved):
    loaded, tensors = load_adapter(saved), random_adapter()
    assert loaded.tensors.keys() == tensors.keys()
    assert all(np.array_equal(loaded.tensors[name], tensors[name]) for name in tensors)
    assert loaded.base_name == "sordino/tiny"
    assert sorted(p.name for p in saved.iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("name", ["/home/someone/model", "./model", "a/b/c", "", "~/m", "C:\\m"])
def test_a_path_is_no_base_name(tmp_path, name):
    with pytest.raises(ModelError, match="not a path"):
        save_adapter(tmp_path / "adapter", random_adapter(), LORA, name)
    assert not (tmp_path / "adapter").exists()


NAME = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, NAME: t[NAME] * np.float32("nan")}, "NaN"),
        (lambda t: {**t, NAME: t[NAME].astype(np.float16)}, "float32"),
        (lambda t: {**t, NAME: t[NAME][:, :3].copy()}, "of rank 4"),
        (lambda t: {k: v for k, v in t.items() if k != NAME}, "counterpart"),
        (lambda t: {k: v for k, v in t.items() if "up_proj" not in k}, "no tensor of up_proj"),
        (lambda t: {**t, "lm_head.lora_A.weight": t[NAME]}, "none of"),
    ],
)
def test_a_wrong_tensor_is_refused(saved, change, message):
    change_tensors(saved, change)
    with pytest.raises(ModelError, match=message):
        load_adapter(saved)


def test_an_adapter_of_another_model_is_refused(saved):
    other = {**llama_files.CONFIG, "intermediate_size": 128}
    with pytest.raises(ModelError, match="not for this model"):
        load_adapter(saved, adapter_manifest(other, LORA))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 0}, "whole number"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_wrong_settings_are_refused(saved, changes, message):
    change_config(saved, **changes)
    with pytest.raises(ModelError, match=message):
        load_adapter(saved)


def test_damaged_or_missing_files_are_refused(saved):
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="can't read an adapter"):
        load_adapter(saved)
    (saved / CONFIG).unlink()
    with pytest.raises(ModelError, match="can't read an adapter"):
        load_adapter(saved)
