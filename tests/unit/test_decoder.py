"""The decoder computes what transformers computes over the same weights, dequantized."""

from pathlib import Path

import pytest
import torch
from support import llama_files
from support.smollm2 import smollm2_files
from transformers import AutoModelForCausalLM

from sordino.client.model.elementwise import elementwise
from sordino.client.model.packing import pack
from sordino.client.model.registry import POCKET_FOLDER
from sordino.client.model.store import open_base, resolve_model
from sordino.core.config import ModelConfig

LENGTHS = (17, 1, 40, 9)


def records(vocabulary: int, lengths=LENGTHS, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (n,), generator=generator) for n in lengths]


def reference(gguf_file: Path):
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent), gguf_file=gguf_file.name, dtype=torch.float32
    )
    return model.eval()


def assert_same_logits(base, model, lengths=LENGTHS) -> None:
    """Within 1e-4 of the largest logit, for every token of every record."""
    ids = records(base.decoder.architecture.vocabulary, lengths)
    packed, packing = pack(ids)
    with torch.no_grad():
        ours = base.decoder.logits(base.decoder.hidden(packed, packing))
        for one, (start, stop) in zip(ids, packing.bounds, strict=True):
            theirs = model(input_ids=one[None]).logits[0]
            worst = (ours[start:stop] - theirs).abs().max() / theirs.abs().max()
            assert worst <= 1e-4


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(tmp_path, kind, tied):
    config = {**llama_files.CONFIG, "tie_word_embeddings": tied}
    file = llama_files.write_gguf(tmp_path / "tiny.gguf", kind, config=config)
    files = resolve_model(ModelConfig(name=str(file)), tmp_path / "cache")
    assert files.quantization == kind
    assert_same_logits(open_base(files), reference(file))


def test_pockets_logits_equal_transformers(tmp_path):
    base = open_base(resolve_model(ModelConfig(name="pocket"), tmp_path))
    assert_same_logits(base, reference(POCKET_FOLDER / "pocket.gguf"))


@pytest.mark.slow
def test_smollm2s_logits_equal_transformers():
    files = smollm2_files()
    assert_same_logits(open_base(files), reference(files.weights), lengths=(100, 1, 37))


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    file = llama_files.write_gguf(folder / "tiny.gguf", "Q8_0")
    return open_base(resolve_model(ModelConfig(name=str(file)), folder / "cache"))


def test_packed_records_don_t_see_each_other(tiny_base):
    decoder = tiny_base.decoder
    ids = records(decoder.architecture.vocabulary)
    packed, packing = pack(ids)
    with torch.no_grad():
        together = decoder.hidden(packed, packing)
        for one, (start, stop) in zip(ids, packing.bounds, strict=True):
            alone = decoder.hidden(*pack([one]))
            assert torch.allclose(together[start:stop], alone, rtol=1e-5, atol=1e-5)


def test_a_changed_record_changes_no_other(tiny_base):
    decoder = tiny_base.decoder
    ids = records(decoder.architecture.vocabulary)
    other = [*ids[:2], (ids[2] + 1) % decoder.architecture.vocabulary, ids[3]]
    with torch.no_grad():
        packed, packing = pack(ids)
        before, after = decoder.hidden(packed, packing), decoder.hidden(*pack(other))
    start, stop = packing.bounds[2]
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[stop:], after[stop:])
    assert not torch.equal(before[start:stop], after[start:stop])


def test_recomputing_layers_changes_nothing(tiny_base):
    decoder = tiny_base.decoder
    packed, packing = pack(records(decoder.architecture.vocabulary))
    results = []
    for recompute in (False, True):
        gate = torch.ones(1, requires_grad=True)

        def linears(names, matrices, before, *inputs, gate=gate):
            x = elementwise(before, *inputs)
            return tuple((x @ matrix.dense().t()) * gate for matrix in matrices)

        hidden = decoder.hidden(packed, packing, linears=linears, recompute=recompute)
        hidden.pow(2).sum().backward()
        results.append((hidden.detach(), gate.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])  # summed in another order
