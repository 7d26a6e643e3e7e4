"""Tiny random models of every family: in transformers, as Hugging Face folders and as GGUF."""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import quants
from transformers import AutoConfig, AutoModelForCausalLM

from sordino.client.model.packing import pack
from support import blocks, llama_files

_LLAMA = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 260,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 257,
    "eos_token_id": 258,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Name of a case -> its config; several of one family differ in what the family leaves open.
CONFIGS = {
    "llama": {"model_type": "llama", **_LLAMA},
    "llama3": {"model_type": "llama", **_LLAMA, "rope_parameters": _LLAMA3_ROPE},
    "llama-biased": {
        "model_type": "llama",
        **_LLAMA,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    },
    "qwen2": {"model_type": "qwen2", **_LLAMA, "tie_word_embeddings": True},
    "qwen2-windows": {
        "model_type": "qwen2",
        **_LLAMA,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 32},
    "gemma3": {
        "model_type": "gemma3_text",
        **_LLAMA,
        "num_hidden_layers": 7,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 128,
        "vocab_size": 260,
        "bos_token_id": 257,
        "eos_token_id": 257,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "vocab_size": 260,
        "max_position_embeddings": 128,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
    },
    "gpt_neox-sequential": {
        "model_type": "gpt_neox",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "vocab_size": 260,
        "max_position_embeddings": 128,
        "rotary_pct": 0.5,
        "use_parallel_residual": False,
        "attention_bias": False,
    },
}
IN_GGUF = ("llama", "llama3", "qwen2", "qwen3", "gemma3", "gpt2")
_NAMES_IN_GGUF = {"llama3": "llama"}
_WITHOUT_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def model(case: str, seed: int = 0, **changes):
    """A transformers model whose every weight is random and matters."""
    table = {**CONFIGS[case], **changes}
    if table["model_type"] == "gpt2":
        table |= _WITHOUT_DROPOUT
    config = AutoConfig.for_model(table.pop("model_type"), **table)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                weight.copy_(0.15 * noise)
            elif name.endswith(".bias"):
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(0.1 * noise + (0.0 if case == "gemma3" else 1.0))
    return made


def write_folder(folder: Path, made) -> Path:
    """Save as transformers does, and a tokenizer beside it."""
    made.save_pretrained(folder)
    llama_files.tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"chat_template": llama_files.CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_gguf(path: Path, case: str, made, kind: str) -> Path:
    """Write as llama.cpp's converter does, by the `gguf` library's own names.

    The model is left with the weights that the file has, dequantized by the `gguf` library.
    """
    name = name_in_gguf(case)
    writer = gguf.GGUFWriter(path, name)
    _add_sizes(writer, name, made.config)
    llama_files._add_tokenizer(writer, {"bos_token_id": 257, "eos_token_id": 258})
    if case == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(16))
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
    names = gguf.get_tensor_name_map(arch, 16)
    with torch.no_grad():
        for parameter_name, weight in made.named_parameters():
            written = names.get_name(parameter_name, try_suffixes=(".weight", ".bias"))
            _add(writer, written, weight, case, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def name_in_gguf(case: str) -> str:
    """What GGUF calls the architecture of a case."""
    return _NAMES_IN_GGUF.get(case, case)


def llama3_divisors(head_dim: int) -> np.ndarray:
    """As llama.cpp's converter computes them from config.json."""
    rope, divisors = _LLAMA3_ROPE, []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        positions = rope["original_max_position_embeddings"]
        if wave < positions / rope["high_freq_factor"]:
            divisors.append(1.0)
        elif wave > positions / rope["low_freq_factor"]:
            divisors.append(rope["factor"])
        else:
            span = rope["high_freq_factor"] - rope["low_freq_factor"]
            smooth = (positions / wave - rope["low_freq_factor"]) / span
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)


def records(lengths=(17, 1, 40, 9), vocabulary: int = 260, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (n,), generator=generator) for n in lengths]


def worst_logit(decoder, made, linears=None) -> float:
    """Largest difference from transformers' logits over records packed together, relative."""
    ids, worst = records(), 0.0
    packed, packing = pack(ids)
    chosen = {"linears": linears} if linears else {}
    with torch.no_grad():
        ours = decoder.logits(decoder.hidden(packed, packing, **chosen))
        for one, (start, stop) in zip(ids, packing.bounds, strict=True):
            theirs = made(input_ids=one[None]).logits[0]
            gap = (ours[start:stop] - theirs).abs().max() / theirs.abs().max()
            worst = max(worst, gap.item())
    return worst


def put_weights(made, decoder) -> None:
    """Give a transformers model exactly the decoder's weights, whatever the model's precision."""
    arch, base = decoder.architecture, decoder.architecture.family.base
    linears = {linear.module for linear in arch.family.linears.values()}
    state = {}
    for name, matrix in decoder.matrices.items():
        value = matrix.dense(torch.float64)
        if arch.family.transposed and name.split(".", 2)[-1] in linears:
            value = value.t()
        state[f"{name}.weight" if name == "lm_head" else f"{base}.{name}.weight"] = value
    for name, vector in decoder.vectors.items():
        is_bias = name.endswith(".bias")
        offset = 0.0 if is_bias else arch.parts.gain_offset
        state[f"{base}.{name}" if is_bias else f"{base}.{name}.weight"] = vector.double() - offset
    missing, surplus = made.load_state_dict(state, strict=False)
    assert not surplus
    assert set(missing) <= {"lm_head.weight"}
    made.tie_weights()


def make_exact(made, decoder) -> None:
    """Let a float64 model compute its norms and angles in float64 too, over the same frequencies.

    transformers does both in float32 whatever the model's precision.
    """
    arch = decoder.architecture
    for module in made.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _exact_norm(module, arch)
        if hasattr(module, "inv_freq") or hasattr(module, "full_attention_inv_freq"):
            module.forward = _exact_angles(module, arch)


def _exact_norm(module, arch):
    def forward(x):
        gain = arch.parts.gain_offset + module.weight
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + arch.norm_eps) * gain

    return forward


def _exact_angles(module, arch):
    def forward(x, position_ids, layer_type=None):
        windowed = layer_type == "sliding_attention"
        rope = next(s.rope for s in arch.spans if layer_type is None or bool(s.window) == windowed)
        theirs = getattr(module, f"{layer_type}_inv_freq" if layer_type else "inv_freq")
        frequencies = rope.frequencies()
        torch.testing.assert_close(frequencies, theirs.double(), rtol=1e-6, atol=0)
        angles = position_ids[..., None].double() * frequencies
        both = torch.cat([angles, angles], -1)
        return both.cos(), both.sin()

    return forward


def _add(writer, name, weight, case, kind) -> None:
    """Add one tensor as the converter has it, and put back what the file says of it."""
    conv = case == "gpt2" and weight.dim() == 2 and name.startswith("blk.")
    array = (weight.t() if conv else weight).contiguous().numpy()
    plus_one = case == "gemma3" and name.endswith("norm.weight")
    if plus_one:
        array = array + np.float32(1)
    heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2], 0) if "llama" in case else 0
    if heads:
        array = llama_files.permute(array, heads)
    dense = weight.dim() == 1 or name == "position_embd.weight"
    qtype = gguf.GGMLQuantizationType["F32" if dense else kind]
    data = blocks.quantize(array, qtype)
    writer.add_tensor(name, data, raw_dtype=qtype)
    back = quants.dequantize(data, qtype).reshape(array.shape)
    if heads:
        pairs = back.reshape(heads, -1, 2, back.shape[1])
        back = pairs.swapaxes(1, 2).reshape(back.shape)
    back = torch.from_numpy(np.ascontiguousarray(back))
    weight.copy_(back.t() if conv else back - 1 if plus_one else back)


def _add_sizes(writer, name, config) -> None:
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if name == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or 16
    if name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if name == "llama":
        writer.add_rope_dimension_count(head_dim)
    elif name != "qwen2":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
