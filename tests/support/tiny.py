"""A tiny random llama, and its loss written plainly: dense weights, torch autograd, one record."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from sordino.client.model.architecture import Architecture, architecture_of
from sordino.client.model.blocks import FORMATS
from sordino.client.model.decoder import Decoder
from sordino.client.model.matrices import BlockMatrix
from sordino.client.model.shapes import matrix_shapes
from sordino.core.adapters import tensor_names

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 101,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
}


@dataclass
class Record:
    """A tokenized record."""

    ids: np.ndarray
    targets_mask: np.ndarray


def architecture() -> Architecture:
    return architecture_of(CONFIG)


def decoder(seed: int = 0) -> Decoder:
    """A random decoder whose matrices are F32 blocks."""
    arch = architecture()
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for name, shape in matrix_shapes(arch).items():
        weight = torch.randn(shape, generator=generator) * 0.2
        matrices[name] = BlockMatrix(weight.view(torch.uint8), FORMATS["F32"], shape[1])
    norms = {"norm": torch.ones(arch.hidden)}
    for i in range(arch.layers):
        for part in ("input_layernorm", "post_attention_layernorm"):
            noise = 0.1 * torch.randn(arch.hidden, generator=generator)
            norms[f"layers.{i}.{part}"] = 1 + noise
    return Decoder(arch, matrices, norms)


def adapter_tensors(manifest, seed: int = 0, scale: float = 0.1):
    """A random adapter, both A and B away from zero."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: (rng.standard_normal(spec.shape) * scale).astype(np.float32)
        for spec in manifest.tensors
    }


def record(length: int, seed: int, masked: int = 0) -> Record:
    """A random record of which the first `masked` tokens are a prompt."""
    rng = np.random.default_rng([seed, length])
    mask = np.ones(length, dtype=bool)
    mask[: max(1, masked)] = False
    return Record(rng.integers(0, CONFIG["vocab_size"], length).astype(np.int32), mask)


def plain_gradients(base: Decoder, tensors, trained, one: Record, scale: float):
    """Loss and gradients of one record in float64, by torch's own autograd over dense weights."""
    arch = base.architecture
    params = {
        name: torch.from_numpy(value).double().requires_grad_(name in trained)
        for name, value in tensors.items()
    }
    ids = torch.from_numpy(one.ids.astype(np.int64))
    length = len(ids)
    x = base.matrices["embed_tokens"].dense(torch.float64)[ids]

    def norm(name, value):
        rms = torch.sqrt((value**2).mean(-1, keepdim=True) + arch.norm_eps)
        return value / rms * base.vectors[name].double()

    def linear(name, value):
        y = value @ base.matrices[name].dense(torch.float64).T
        a, b = tensor_names(f"model.{name}")
        return y + scale * (value @ params[a].T) @ params[b].T if a in params else y

    exponents = torch.arange(0, arch.head_dim, 2).double() / arch.head_dim
    frequencies = (1 / arch.spans[0].rope.theta ** exponents).float().double()
    angles = torch.outer(torch.arange(length).double(), frequencies)
    cos, sin = (torch.cat([f(angles)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))

    def rotate(value):
        half = value.shape[-1] // 2
        return value * cos + torch.cat([-value[..., half:], value[..., :half]], -1) * sin

    future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
    for i in range(arch.layers):
        part = f"layers.{i}"
        z = norm(f"{part}.input_layernorm", x)
        q, k, v = (
            linear(f"{part}.self_attn.{n}_proj", z).view(length, -1, arch.head_dim) for n in "qkv"
        )
        groups = arch.heads // arch.kv_heads
        q, k = rotate(q), rotate(k).repeat_interleave(groups, 1)
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(arch.head_dim)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        mixed = torch.einsum("hts,shd->thd", weights, v.repeat_interleave(groups, 1))
        x = x + linear(f"{part}.self_attn.o_proj", mixed.reshape(length, -1))
        z = norm(f"{part}.post_attention_layernorm", x)
        gate = torch.nn.functional.silu(linear(f"{part}.mlp.gate_proj", z))
        x = x + linear(f"{part}.mlp.down_proj", gate * linear(f"{part}.mlp.up_proj", z))
    logits = norm("norm", x) @ base.head.dense(torch.float64).T
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    loss = losses[torch.from_numpy(one.targets_mask[1:])].mean()
    loss.backward()
    return loss.item(), {n: p.grad for n, p in params.items() if p.grad is not None}
