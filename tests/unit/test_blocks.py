"""Dequantization equals the gguf library's, bit for bit, for every supported block type.

Compared as 32-bit patterns, so that the sign of a zero, subnormals and infinities count; where the
library gives a NaN, ours must be one too, of whatever payload.
"""

import dataclasses

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from support.blocks import SCALE_FIELDS, odd_blocks, random_blocks

from sordino.client.model.blocks import FORMATS, block_format
from sordino.client.model.matrices import BlockMatrix, quantize_int8
from sordino.core.errors import ModelError


def assert_same_bits(name, raw):
    """Ours equals the library's over ``uint8[blocks, bytes]``; returns the library's."""
    ours = FORMATS[name].dequantize(torch.from_numpy(raw.copy())).numpy()
    kind = getattr(gguf.GGMLQuantizationType, name)
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(raw.reshape(1, -1), kind).reshape(ours.shape)
    assert ours.dtype == theirs.dtype == np.float32
    nan = np.isnan(theirs)
    assert (np.isnan(ours) == nan).all()
    assert (ours.view(np.uint32) == theirs.view(np.uint32))[~nan].all()
    return theirs


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_dequantization_equals_the_library_bit_for_bit(name):
    assert np.isfinite(assert_same_bits(name, random_blocks(name, 512))).all()


@pytest.mark.parametrize("name", sorted(SCALE_FIELDS))
def test_odd_scales_and_random_bytes(name):
    """Negative, zero, subnormal, largest, infinite and NaN scales, over codes of every kind."""
    theirs = assert_same_bits(name, odd_blocks(name))
    tiny = (theirs != 0) & (np.abs(theirs) < 2.0**-14)
    assert tiny.any()
    assert np.isnan(theirs).any()
    assert np.isposinf(theirs).any()
    assert np.isneginf(theirs).any()
    assert (np.signbit(theirs) & (theirs == 0)).any()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_all_patterns_of_two_bytes(name):
    patterns = np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    assert np.isnan(assert_same_bits(name, patterns)).sum() > 100


def test_any_float32_is_passed_on_untouched():
    raw = np.random.default_rng(3).integers(0, 256, (2**16, 4), dtype=np.uint8)
    ours = FORMATS["F32"].dequantize(torch.from_numpy(raw.copy())).numpy()
    assert (ours.view(np.uint8) == raw).all()


def test_a_wrong_reading_is_caught(monkeypatch):
    """Each by a little: nibbles in the other order, float16 within, small values made zero."""
    honest = FORMATS["Q4_1"]

    def swapped(blocks):
        codes = (blocks[:, 4:] << 4) | (blocks[:, 4:] >> 4)
        return honest.dequantize(torch.cat([blocks[:, :4], codes], 1))

    def rounded(blocks):
        return honest.dequantize(blocks).double().half().float()

    def flushed(blocks):
        values = honest.dequantize(blocks)
        return values.masked_fill(values.abs() < 2.0**-14, 0.0)

    for wrong in (swapped, rounded, flushed):

        def write(blocks, out, wrong=wrong):
            out.copy_(wrong(blocks))

        monkeypatch.setitem(FORMATS, "Q4_1", dataclasses.replace(honest, write=write))
        with pytest.raises(AssertionError):
            assert_same_bits(
                "Q4_1", np.concatenate([random_blocks("Q4_1", 64), odd_blocks("Q4_1")])
            )


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_block_sizes_are_the_librarys(name):
    kind = getattr(gguf.GGMLQuantizationType, name)
    assert gguf.GGML_QUANT_SIZES[kind] == (FORMATS[name].values, FORMATS[name].bytes)


@pytest.mark.parametrize("rotary_heads", [0, 3])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_tiles_and_gathered_rows_are_rows_of_the_dense_matrix(name, rotary_heads):
    fmt, columns = FORMATS[name], 512
    raw = random_blocks(name, 12 * columns // fmt.values).reshape(12, -1)
    matrix = BlockMatrix(torch.from_numpy(raw), fmt, columns, rotary_heads)
    dense = matrix.dense()
    assert dense.shape == (matrix.rows, matrix.columns) == (12, columns)
    assert dense.dtype == torch.float32
    for start, stop in ((0, 12), (0, 1), (3, 9), (11, 12)):
        assert torch.equal(matrix.tile(start, stop), dense[start:stop])
    if not rotary_heads:  # an embedding's rows are never in rotary order
        ids = torch.tensor([11, 0, 0, 5])
        assert torch.equal(matrix.gather(ids), dense[ids])
        assert torch.equal(matrix.gather(ids, torch.float64), dense[ids].double())
    assert torch.equal(matrix.dense(torch.float64), dense.double())
    assert torch.equal(matrix.tile(2, 7, torch.float64), dense[2:7].double())


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


def test_pairs_hold_the_same_values_in_another_order():
    raw = torch.from_numpy(random_blocks("Q4_1", 512))
    chosen = torch.randperm(512, generator=torch.Generator().manual_seed(1)).int()
    plain = FORMATS["Q4_1"].dequantize(raw)[chosen.long()].view(-1, 2, 16)
    paired = FORMATS["Q4_1"].paired(raw, chosen)
    assert torch.equal(paired, plain.transpose(1, 2).reshape(-1, 32))


@pytest.mark.parametrize(("start", "stop"), [(0, 16), (3, 13), (8, 16), (5, 5)])
@pytest.mark.parametrize("heads", [0, 2])
def test_a_tile_in_pairs(heads, start, stop):
    raw = torch.from_numpy(random_blocks("Q4_1", 16 * 3)).view(16, -1)
    matrix = BlockMatrix(raw, FORMATS["Q4_1"], 96, rotary_heads=heads)
    plain = matrix.tile(start, stop).view(-1, 3, 2, 16)
    assert torch.equal(matrix.paired(start, stop), plain.transpose(2, 3).reshape(-1, 96))


def test_a_format_without_pairs_says_so():
    matrix = BlockMatrix(torch.zeros(4, 34, dtype=torch.uint8), FORMATS["Q8_0"], 32)
    assert not matrix.pairs
    with pytest.raises(ModelError, match="Q8_0"):
        matrix.paired(0, 4)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_no_rows(name):
    fmt = FORMATS[name]
    matrix = BlockMatrix(torch.zeros(4, fmt.bytes, dtype=torch.uint8), fmt, fmt.values)
    assert matrix.tile(2, 2).shape == (0, fmt.values)
    assert matrix.gather(torch.zeros(0, dtype=torch.int64)).shape == (0, fmt.values)
