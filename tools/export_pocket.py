"""Quantize a trained `pocket` to GGUF and write the files that the package carries.

    python tools/export_pocket.py --work build/pocket

Q4_1 in the linears, Q8_0 in the tied embedding, F32 in the norms, and the rows of q and k in
llama.cpp's rotary order, as llama.cpp's own converter writes a Llama. Where Q4_1 costs more than 2
% of perplexity, the linears that are most sensitive move to Q8_0. The file is then loaded back
through transformers, and what is reported of the quantized model is measured on that. `README.md`
beside the files is written by hand from what this prints.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from train_pocket import (
    BOS_ID,
    END_OF_TEXT_ID,
    EOS_ID,
    ROW,
    build_model,
    encode,
    evaluate,
    pieces,
    split_plays,
)
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from sordino.client.data import shakespeare

POCKET = Path(__file__).parents[1] / "client/sordino/client/model/pocket"
GGUF_FILE = "pocket.gguf"
MAX_BYTES = 5_000_000
MAX_COST = 0.02
Q4, Q8, F32 = GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# Each step moves more linears to Q8_0; tried in order until the cost is small enough.
MIXES = (
    (),
    ("ffn_down", "attn_v"),
    ("ffn_down", "attn_v", "attn_output"),
    ("ffn_", "attn_v", "attn_output"),
    ("",),
)
# The form of the passages it was trained on: a speaker's name, then the words.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}\n"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT\n{% endif %}"
)
Texts = Mapping[str, Sequence[list[int]]]


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor of transformers' Llama."""
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permute(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Bring the rows of q or k from transformers' rotary order into llama.cpp's."""
    shape = rows.shape
    return rows.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape)


def quantization(name: str, mix: Sequence[str]) -> GGMLQuantizationType:
    """What a tensor is stored as."""
    if "norm" in name:
        return F32
    if name == "token_embd.weight" or any(name.split(".")[2].startswith(part) for part in mix):
        return Q8
    return Q4


def gguf_tensors(
    model: LlamaForCausalLM, mix: Sequence[str]
) -> dict[str, tuple[NDArray[np.generic], GGMLQuantizationType]]:
    """The quantized tensors under their GGUF names."""
    found = {}
    for name, parameter in model.named_parameters():
        new, rows = gguf_name(name), parameter.detach().numpy()
        if ".attn_q." in new:
            rows = permute(rows, model.config.num_attention_heads)
        if ".attn_k." in new:
            rows = permute(rows, model.config.num_key_value_heads)
        kind = quantization(new, mix)
        found[new] = (quantize(np.ascontiguousarray(rows), kind), kind)
    return found


def round_trip(model: LlamaForCausalLM, mix: Sequence[str]) -> LlamaForCausalLM:
    """The model as the quantized file would have it, in transformers' order of rows.

    A row is a whole number of blocks, so its place doesn't change what quantization does to it.
    """
    other = build_model(0.0).eval()
    state = {}
    for name, parameter in model.named_parameters():
        kind = quantization(gguf_name(name), mix)
        rows = parameter.detach().numpy()
        state[name] = torch.from_numpy(
            np.array(dequantize(quantize(rows, kind), kind)).reshape(rows.shape)
        )
    other.load_state_dict(state, strict=False)
    return other


def choose_mix(model: LlamaForCausalLM, docs: Sequence[list[int]]) -> tuple[str, ...]:
    """The smallest mix whose cost in perplexity is within `MAX_COST`."""
    before = evaluate(model, docs, bf16=False)
    for mix in MIXES:
        cost = math.exp(evaluate(round_trip(model, mix), docs, bf16=False) - before) - 1
        print(f"Q8_0 in {mix or 'no linear'}: perplexity {cost:+.2%}", flush=True)
        if cost <= MAX_COST:
            return mix
    return MIXES[-1]


def write_gguf(
    path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, mix: Sequence[str]
) -> None:
    """Write the file with the metadata that llama.cpp and transformers look for."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name("pocket")
    writer.add_description("A small Llama trained on Shakespeare's plays, the histories left out")
    writer.add_license("cc0-1.0")
    writer.add_languages(["en"])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(ROW)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    add_tokenizer(writer, tokenizer)
    writer.add_quantization_version(2)
    for name, (data, kind) in gguf_tensors(model, mix).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """The byte-level BPE as GGUF keeps it."""
    described = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = {token["id"] for token in described["added_tokens"]}
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(True)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    kinds = [
        TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(len(vocabulary))
    ]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_unk_token_id(END_OF_TEXT_ID)
    writer.add_pad_token_id(END_OF_TEXT_ID)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """`tokenizer.json`, which starts what it encodes with the begin token, and its settings."""
    bos = tokenizer.id_to_token(BOS_ID)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, BOS_ID)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": ROW,
        "add_bos_token": True,
        "bos_token": bos,
        "eos_token": tokenizer.id_to_token(EOS_ID),
        "pad_token": tokenizer.id_to_token(END_OF_TEXT_ID),
        "unk_token": tokenizer.id_to_token(END_OF_TEXT_ID),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def texts_to_measure(tokenizer: Tokenizer, sample: int) -> Texts:
    """Held-out public speeches, and speeches of the histories: a sample of each, or all (0)."""
    texts = {
        "public": split_plays()[1],
        "demo": [t for r in shakespeare.roles(shakespeare.DEMO).values() for t in r],
        "tuning": [t for r in shakespeare.roles(shakespeare.TUNING).values() for t in r],
    }
    return {
        name: [p for t in some for p in pieces(encode(tokenizer, t))]
        for name, some in texts.items()
    }


def load_back(folder: Path) -> LlamaForCausalLM:
    """The written file, dequantized by transformers."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    return loaded.eval()


def check(model: LlamaForCausalLM, loaded: LlamaForCausalLM, mix: Sequence[str]) -> None:
    """The file as transformers reads it must be the round trip of every tensor, bit for bit."""
    wanted = dict(round_trip(model, mix).named_parameters())
    for name, parameter in loaded.named_parameters():
        if not torch.equal(parameter, wanted[name]):
            raise SystemExit(f"{name} differs after loading the file back")


def main() -> None:
    """Quantize, write, load back, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--out", type=Path, default=POCKET)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=0, help="speeches to measure on; 0: all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    model = build_model(0.0).eval()
    model.load_state_dict(torch.load(options.work / "checkpoint.pt", weights_only=True)["model"])
    texts = texts_to_measure(tokenizer, options.sample)
    mix = choose_mix(model, texts["public"])
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        folder = Path(name)
        write_gguf(folder / GGUF_FILE, model, tokenizer, mix)
        write_tokenizer(folder, tokenizer)
        model.config.architectures = ["LlamaForCausalLM"]
        model.config.save_pretrained(folder)
        loaded = load_back(folder)
        check(model, loaded, mix)
        if (size := (folder / GGUF_FILE).stat().st_size) > MAX_BYTES:
            raise SystemExit(f"{GGUF_FILE} has {size} bytes, more than {MAX_BYTES}")
        options.out.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.name in (GGUF_FILE, "config.json", "tokenizer.json", "tokenizer_config.json"):
                file.replace(options.out / file.name)
    for name, docs in texts.items():
        before, after = (evaluate(m, docs, bf16=False) for m in (model, loaded))
        print(
            f"{name}: loss {before:.4f} -> {after:.4f} nats per token, "
            f"perplexity {math.exp(before):.2f} -> {math.exp(after):.2f}"
        )
    print(f"{GGUF_FILE}: {size} bytes, Q8_0 in the embedding and {mix or 'no linear'}")


if __name__ == "__main__":
    main()
