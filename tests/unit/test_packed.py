"""How weights are held for writing follows from what fits, and float16 from what it can hold."""

import pytest
import torch
from support import families, written

from sordino.client.generate import prepare
from sordino.client.model.packed import has_half_products
from sordino.client.model.store import open_base, resolve_model
from sordino.core.config import ModelConfig
from sordino.core.errors import ConfigError, ModelError


def test_the_form_follows_from_the_memory_allowed(tmp_path):
    decoder = written.open_case(tmp_path, "llama", "Q4_1")[0].decoder
    arch = decoder.architecture
    linears = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)
    values = linears + arch.vocabulary * 64
    fast = "half" if has_half_products() else "full"
    bytes_each = {"half": 2, "full": 4}[fast]
    assert prepare(decoder).form == fast
    assert prepare(decoder).nbytes == values * bytes_each
    assert prepare(decoder, memory_mb=values * bytes_each / 1e6).form == fast
    tight = prepare(decoder, memory_mb=values * bytes_each / 1e6 - 1e-6)
    assert (tight.form, tight.nbytes) == ("streamed", 0)
    with pytest.raises(ConfigError, match="weights 'full' take that"):
        prepare(decoder, weights="full", memory_mb=0.1)
    with pytest.raises(ConfigError, match="one of auto, half, full, streamed"):
        prepare(decoder, weights="int3")


def test_a_weight_beyond_float16_is_refused(tmp_path):
    if not has_half_products():
        pytest.skip("this build of torch has no float16 products")
    made = families.model("llama")
    with torch.no_grad():
        made.model.layers[0].mlp.up_proj.weight[3, 5] = 1e5
    file = families.write_gguf(tmp_path / "large.gguf", "llama", made, "F32")
    decoder = open_base(resolve_model(ModelConfig(name=str(file)), tmp_path)).decoder
    with pytest.raises(ModelError, match="too large for float16: use weights 'full'"):
        prepare(decoder, weights="half")
