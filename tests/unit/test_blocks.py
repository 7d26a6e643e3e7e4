"""Dequantization equals the gguf library's, bit for bit, for every supported block type."""

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from sordino.client.model.blocks import FORMATS, block_format
from sordino.client.model.matrices import BlockMatrix, quantize_int8
from sordino.core.errors import ModelError

_SCALE_FIELDS = {  # where each format keeps its float16 fields
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(name: str, blocks: int, seed: int = 0) -> np.ndarray:
    """Random bytes with finite scales: every code, every scale bit, no NaN."""
    rng = np.random.default_rng(seed)
    fmt = FORMATS[name]
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal((blocks, fmt.values)).astype(np.float32)
        kind = getattr(gguf.GGMLQuantizationType, name)
        return quants.quantize(values, kind).view(np.uint8).reshape(blocks, fmt.bytes)
    raw = rng.integers(0, 256, (blocks, fmt.bytes), dtype=np.uint8)
    for offset in _SCALE_FIELDS[name]:
        scale = (rng.standard_normal(blocks) * 0.01).astype(np.float16)
        raw[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return raw


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_dequantization_equals_the_library_bit_for_bit(name):
    raw = random_blocks(name, 512)
    ours = FORMATS[name].dequantize(torch.from_numpy(raw.copy())).numpy()
    kind = getattr(gguf.GGMLQuantizationType, name)
    theirs = quants.dequantize(raw.reshape(1, -1), kind).reshape(ours.shape)
    assert theirs.dtype == np.float32
    assert np.array_equal(ours.view(np.uint32), theirs.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_block_sizes_are_the_librarys(name):
    kind = getattr(gguf.GGMLQuantizationType, name)
    assert gguf.GGML_QUANT_SIZES[kind] == (FORMATS[name].values, FORMATS[name].bytes)


@pytest.mark.parametrize("name", ["Q4_1", "Q8_0", "Q6_K", "F16"])
def test_tiles_and_gathered_rows_are_rows_of_the_dense_matrix(name):
    fmt, columns = FORMATS[name], 512
    raw = random_blocks(name, 12 * columns // fmt.values).reshape(12, -1)
    matrix = BlockMatrix(torch.from_numpy(raw), fmt, columns)
    dense = matrix.dense()
    assert dense.shape == (12, columns)
    assert torch.equal(matrix.tile(3, 9), dense[3:9])
    ids = torch.tensor([11, 0, 0, 5])
    assert torch.equal(matrix.gather(ids), dense[ids])


def test_rotary_order_is_undone():
    heads, half, columns = 3, 4, 32
    plain = np.random.default_rng(1).standard_normal((heads * 2 * half, columns)).astype(np.float32)
    # llama.cpp's converter: [heads, 2, half] -> [heads, half, 2]
    stored = plain.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(plain.shape)
    raw = torch.from_numpy(stored.copy()).view(torch.uint8)
    matrix = BlockMatrix(raw, FORMATS["F32"], columns, rotary_heads=heads)
    assert torch.equal(matrix.dense(), torch.from_numpy(plain))
    assert torch.equal(matrix.tile(2, 5), torch.from_numpy(plain)[2:5])


def test_an_unsupported_type_is_refused_by_name():
    with pytest.raises(ModelError, match=r"IQ2_XS of tensor blk\.0.*Q4_1"):
        block_format("IQ2_XS", "blk.0.ffn_up.weight")


def test_int8_rounds_to_half_a_step():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    matrix = quantize_int8(weight)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((matrix.dense() - weight).abs() <= step / 2 * (1 + 1e-5)).all()
    assert matrix.codes.dtype == torch.int8
