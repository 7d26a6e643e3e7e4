"""Every family computes what transformers computes, from a folder and from GGUF, by one path."""

import dataclasses
import doctest
import json

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import families, llama_files, tiny
from support.families import CONFIGS, IN_GGUF
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from sordino.client.adapter_files import load_adapter, save_adapter
from sordino.client.lora import LoraAdapter
from sordino.client.model import ropes
from sordino.client.model.architecture import architecture_of
from sordino.client.model.gguf_config import corrected
from sordino.client.model.gguf_names import GGUF_TYPES
from sordino.client.model.packing import pack
from sordino.client.model.store import open_base, resolve_model
from sordino.core import adapters
from sordino.core import families as core_families
from sordino.core.adapters import adapter_manifest
from sordino.core.config import LoraConfig, ModelConfig
from sordino.core.errors import ConfigError, ModelError

ALL = list(CONFIGS)
TOLERANCE = 1e-5  # of the largest logit; what is measured is 1e-6


def open_at(path, cache, quantization="int8"):
    return open_base(
        resolve_model(ModelConfig(name=str(path), quantization=quantization), cache)
    ).decoder


@pytest.mark.parametrize("case", ALL)
def test_a_folder_gives_the_dequantized_models_logits(tmp_path, case):
    made = families.model(case)
    decoder = open_at(families.write_folder(tmp_path / "hf", made), tmp_path / "cache")
    families.put_weights(made, decoder)
    assert families.worst_logit(decoder, made) <= TOLERANCE


@pytest.mark.parametrize("case", ["qwen2", "gpt2", "gpt_neox"])
def test_nf4_is_for_the_linears_of_every_family(tmp_path, case):
    made = families.model(case)
    folder = families.write_folder(tmp_path / "hf", made)
    decoder = open_at(folder, tmp_path / "cache", "nf4")
    families.put_weights(made, decoder)
    assert families.worst_logit(decoder, made) <= TOLERANCE


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("case", IN_GGUF)
def test_a_gguf_file_gives_the_dequantized_models_logits(tmp_path, case, kind):
    made = families.model(case)
    file = families.write_gguf(tmp_path / "tiny.gguf", case, made, kind)
    decoder = open_at(file, tmp_path / "cache")
    assert decoder.architecture.tied == made.config.tie_word_embeddings
    assert families.worst_logit(decoder, made) <= TOLERANCE


def test_every_family_that_both_libraries_read_from_gguf_is_among_the_cases():
    """GPT-NeoX isn't: `gguf` has a name for it, transformers can't read it."""
    known = set(gguf.MODEL_ARCH_NAMES.values()) & set(GGUF_CONFIG_MAPPING)
    ours = {kind.removesuffix("_text").replace("_", "") for kind in core_families.FAMILIES}
    assert known & ours == set(GGUF_TYPES)
    assert {families.name_in_gguf(case) for case in IN_GGUF} == set(GGUF_TYPES)
    assert {config["model_type"] for config in CONFIGS.values()} | {"mobilellm"} == set(
        core_families.FAMILIES
    )


def test_a_mobilellm_folder_gives_the_dequantized_models_logits(tmp_path):
    made = families.model("llama", tie_word_embeddings=True)
    folder = families.write_folder(tmp_path / "hf", made)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mobilellm", "share_embedding": True, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    decoder = open_at(folder, tmp_path / "cache")
    assert decoder.architecture.tied
    families.put_weights(made, decoder)
    assert families.worst_logit(decoder, made) <= TOLERANCE


def spans(arch, change):
    return dataclasses.replace(arch, spans=tuple(map(change, arch.spans)))


def parts(arch, **changes):
    return dataclasses.replace(arch, parts=dataclasses.replace(arch.parts, **changes))


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("gemma3", lambda a: spans(a, lambda s: dataclasses.replace(s, window=s.window and 9))),
        ("gemma3", lambda a: spans(a, lambda s: dataclasses.replace(s, rope=a.spans[0].rope))),
        ("gemma3", lambda a: dataclasses.replace(a, embedding_scale=7.9)),
        ("gemma3", lambda a: dataclasses.replace(a, attention_scale=0.17)),
        ("gemma3", lambda a: parts(a, activation="gelu")),
        ("gpt2", lambda a: parts(a, activation="gelu")),
        ("gpt2", lambda a: parts(a, biases=a.parts.biases - {"down"})),
        ("gpt2", lambda a: parts(a, positions=None)),
        ("gpt_neox", lambda a: parts(a, activation="gelu_tanh")),
        ("gpt_neox", lambda a: parts(a, parallel=False)),
    ],
)
def test_the_comparison_would_notice_a_wrong_part(tmp_path, case, change):
    made = families.model(case)
    decoder = open_at(families.write_folder(tmp_path / "hf", made), tmp_path / "cache")
    families.put_weights(made, decoder)
    wrong = dataclasses.replace(decoder, architecture=change(decoder.architecture))
    assert families.worst_logit(wrong, made) > 10 * TOLERANCE


@pytest.mark.parametrize("case", ["gemma3", "gpt2", "gpt_neox"])
def test_packed_records_don_t_see_each_other(tmp_path, case):
    folder = families.write_folder(tmp_path / "hf", families.model(case))
    decoder, ids = open_at(folder, tmp_path / "cache"), families.records()
    packed, packing = pack(ids)
    other, _ = pack([*ids[:2], (ids[2] + 1) % 260, ids[3]])
    with torch.no_grad():
        before, after = decoder.hidden(packed, packing), decoder.hidden(other, packing)
    start, stop = packing.bounds[2]
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[stop:], after[stop:])
    assert not torch.equal(before[start:stop], after[start:stop])


def renamed(folder, change):
    """Save a folder's tensors under other names."""
    tensors = load_file(folder / "model.safetensors")
    save_file({change(n): t for n, t in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("gpt2", lambda name: name.removeprefix("transformer.")),
        ("gpt_neox", lambda name: name.replace("embed_out", "lm_head")),
        ("gpt_neox", lambda name: name.replace("lm_head", "embed_out")),
    ],
)
def test_the_names_of_older_files_are_known(tmp_path, case, change):
    folder = families.write_folder(tmp_path / "hf", families.model(case))
    before = resolve_model(ModelConfig(name=str(folder)), tmp_path / "cache").sha256
    renamed(folder, change)
    assert resolve_model(ModelConfig(name=str(folder)), tmp_path / "cache").sha256 == before


def test_masks_and_frequencies_in_older_files_are_passed_over(tmp_path):
    folder = families.write_folder(tmp_path / "hf", families.model("gpt_neox"))
    tensors = load_file(folder / "model.safetensors")
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        tensors[f"gpt_neox.layers.0.attention.{name}"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    open_at(folder, tmp_path / "cache")


def test_a_tensor_that_would_not_be_used_is_refused(tmp_path):
    folder = families.write_folder(tmp_path / "hf", families.model("llama"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_norm.weight"
    save_file({**tensors, name: torch.ones(16)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"q_norm.*not supported"):
        open_at(folder, tmp_path / "cache")


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama", {"model_type": "mamba"}, "'mamba' is not supported: supported types are llama"),
        ("llama", {"hidden_act": "relu2"}, "'relu2' is not supported: silu, gelu"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2}}, "'yarn' is not supported: def"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "'llama3' needs factor"),
        ("llama", {"num_key_value_heads": 3}, "4 heads can't share 3"),
        ("llama", {"vocab_size": None}, "vocab_size"),
        ("llama", {"model_type": "mobilellm", "layer_sharing": True}, "layer_sharing = True"),
        ("qwen3", {"layer_types": ["linear_attention"] * 2}, "'linear_attention' is not supp"),
        ("qwen3", {"layer_types": ["full_attention"]}, "names 1 layers of 2"),
        ("gemma3", {"sliding_window": None}, "sliding_window"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(case, changes, message):
    with pytest.raises(ModelError, match=message):
        architecture_of({**CONFIGS[case], **changes})


def test_mobilellm_is_a_llama():
    config = {**CONFIGS["llama"], "model_type": "mobilellm", "share_embedding": True}
    tied = {**CONFIGS["llama"], "tie_word_embeddings": True}
    assert architecture_of(config) == architecture_of(tied)


def test_a_record_beyond_the_learned_positions_is_refused(tmp_path):
    folder = families.write_folder(tmp_path / "hf", families.model("gpt2"))
    decoder = open_at(folder, tmp_path / "cache")
    with pytest.raises(ModelError, match=r"129 tokens.*128 positions"):
        decoder.hidden(*pack([torch.zeros(129, dtype=torch.int64)]))


def test_a_gguf_architecture_is_refused_by_name(tmp_path):
    made = families.model("llama")
    file = families.write_gguf(tmp_path / "tiny.gguf", "llama", made, "F32")
    data = file.read_bytes()
    file.write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))
    with pytest.raises(ModelError, match="'mamba' is not supported: supported are llama, qwen2"):
        open_at(file, tmp_path / "cache")


def test_a_block_type_is_refused_with_its_tensors_name(tmp_path):
    file = llama_files.write_gguf(tmp_path / "tiny.gguf", "Q5_0")
    with pytest.raises(ModelError, match=r"Q5_0 of tensor \S+ is not supported.*F32, F16, BF16"):
        open_at(file, tmp_path / "cache")


def test_a_gguf_layer_is_refused_by_name(tmp_path):
    """Query norms, which a llama hasn't: left out, the model would be another one."""
    file = llama_files.write_gguf(tmp_path / "tiny.gguf", "F32")
    files = resolve_model(ModelConfig(name=str(file)), tmp_path / "cache")
    norm = next(t for t in files.index.tensors if t.name == "blk.0.attn_norm.weight")
    more = dataclasses.replace(norm, name="blk.0.attn_q_norm.weight")
    index = dataclasses.replace(files.index, tensors=(*files.index.tensors, more))
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q_norm.*not supported.*attn_norm"):
        open_base(dataclasses.replace(files, index=index))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "gptneox"}, "'gptneox' is not supported"),
        ({"general.architecture": "llama", "llama.rope.scaling.type": "yarn"}, "'yarn'"),
        ({"general.architecture": "gemma3", "gemma3.final_logit_softcapping": 30.0}, "softcap"),
        ({"general.architecture": "gemma3", "gemma3.attention.sliding_window_pattern": 5}, "5 of"),
    ],
)
def test_gguf_metadata_is_refused_by_name(fields, message):
    with pytest.raises(ModelError, match=message):
        corrected({}, fields)


def test_gguf_metadata_completes_the_config():
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    fields = {"general.architecture": "gemma3", "gemma3.rope.freq_base_swa": 5e3}
    fields |= {f"gemma3.{name}": value for name, value in scaling.items()}
    fields |= {"gemma3.block_count": 62, "gemma3.embedding_length": 5376}
    fields |= {"gemma3.attention.head_count": 32, "gemma3.attention.key_length": 128}
    ropes = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    table = corrected({"rope_parameters": ropes}, fields)
    assert table["query_pre_attn_scalar"] == 168
    assert table["rope_parameters"]["sliding_attention"] == {"rope_theta": 5e3}
    stretched = {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    assert table["rope_parameters"]["full_attention"] == stretched


def test_llama3s_divisors_are_llama_cpps():
    arch = architecture_of(CONFIGS["llama3"])
    ours = np.array(arch.spans[0].rope.divisors)
    np.testing.assert_allclose(ours, families.llama3_divisors(16), rtol=1e-6)
    assert ours.min() == 1.0
    assert ours.max() == 8.0
    assert any((ours > 1.0) & (ours < 8.0))


@pytest.mark.parametrize("case", ALL)
def test_the_manifest_names_pefts_tensors(case):
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model, get_peft_model_state_dict

    manifest = adapter_manifest(CONFIGS[case], LoraConfig(rank=4))
    layout = adapters.peft_layout(manifest.names)
    settings = PeftConfig(r=4, task_type="CAUSAL_LM", **layout)
    state = get_peft_model_state_dict(get_peft_model(families.model(case), settings))
    assert {n: tuple(t.shape) for n, t in state.items()} == {
        spec.name: spec.shape for spec in manifest.tensors
    }


@pytest.mark.parametrize("targets", [("c_attn", "attn.c_proj"), ("c_proj",), ("mlp.c_proj",)])
def test_gpt2s_two_linears_of_one_name_are_told_apart(tmp_path, targets):
    made = families.model("gpt2")
    decoder = open_at(families.write_folder(tmp_path / "hf", made), tmp_path / "cache")
    families.put_weights(made, decoder)
    lora = LoraConfig(rank=4, alpha=6.0, targets=targets)
    tensors = tiny.adapter_tensors(adapter_manifest(CONFIGS["gpt2"], lora), scale=0.2)
    save_adapter(tmp_path / "adapter", tensors, lora, "sordino/tiny")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(targets)
    assert settings["fan_in_fan_out"] is True
    saved = load_adapter(tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(made, tmp_path / "adapter").eval()
    adapter = LoraAdapter(saved.tensors, scale=saved.scale)
    assert families.worst_logit(decoder, adapted, adapter.linears) <= TOLERANCE


def test_a_target_of_another_family_is_refused():
    with pytest.raises(ConfigError, match="q_proj") as caught:
        adapter_manifest(CONFIGS["gpt2"], LoraConfig(targets=("q_proj",)))
    assert "c_attn, c_proj, c_fc, attention, mlp" in str(caught.value)


def test_sizes_a_config_leaves_out():
    neox = core_families.sizes_of(CONFIGS["gpt_neox"])
    gpt2 = core_families.sizes_of(CONFIGS["gpt2"])
    assert (neox.kv_heads, neox.head_dim) == (4, 16)
    assert gpt2.inner == 4 * gpt2.hidden
    qwen3 = {k: v for k, v in CONFIGS["qwen3"].items() if k != "head_dim"}
    assert core_families.sizes_of(qwen3).head_dim == 128


@pytest.mark.parametrize("module", [core_families, adapters, ropes])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_the_tokenizer_of_a_described_file_is_the_files(tmp_path):
    made = families.model("gemma3")
    file = families.write_gguf(tmp_path / "tiny.gguf", "gemma3", made, "F32")
    files = resolve_model(ModelConfig(name=str(file)), tmp_path / "cache")
    assert files.config["model_type"] == "gemma3_text"
    settings = (files.tokenizer / "tokenizer_config.json").read_text()
    assert json.loads(settings)["chat_template"] == llama_files.CHAT_TEMPLATE
