"""For every family, per-record gradients are those of torch over PEFT over transformers.

The reference sees one record at a time, through the adapter that we saved and PEFT loaded.
"""

import pytest
import torch
from peft import PeftModel
from support import families, tiny
from support.exact import TARGETS, copy_of, one_at_a_time
from support.families import CONFIGS

from sordino.client.adapter_files import load_adapter, save_adapter
from sordino.client.lora import LoraAdapter
from sordino.client.model.store import open_base, resolve_model
from sordino.client.train import backward
from sordino.core.adapters import adapter_manifest
from sordino.core.config import LoraConfig, ModelConfig

RECORDS = [tiny.record(12, 1), tiny.record(3, 2), tiny.record(30, 3, masked=20)]


@pytest.fixture(scope="module", params=CONFIGS)
def opened(request, tmp_path_factory):
    """A family's decoder, the transformers model with its weights, and its config."""
    folder = tmp_path_factory.mktemp("family")
    made = families.model(request.param)
    files = resolve_model(
        ModelConfig(name=str(families.write_folder(folder / "hf", made))), folder / "cache"
    )
    decoder = open_base(files).decoder
    made = made.double()
    families.put_weights(made, decoder)
    families.make_exact(made, decoder)
    return decoder, made, files.config


def setting(opened, which, folder):
    decoder, made, config = opened
    lora = LoraConfig(rank=4, alpha=6.0, targets=TARGETS[which])
    manifest = adapter_manifest(config, lora)
    save_adapter(folder, tiny.adapter_tensors(manifest, scale=0.2), lora, "sordino/tiny")
    saved = load_adapter(folder, manifest)
    # PEFT puts its layers into the model that it is given.
    adapted = PeftModel.from_pretrained(copy_of(made, decoder), folder, is_trainable=True).double()
    return decoder, saved, adapted.eval()


@pytest.mark.parametrize("which", TARGETS)
def test_per_record_gradients(opened, which, tmp_path):
    decoder, saved, adapted = setting(opened, which, tmp_path)
    ours = {}
    for recompute in (False, True):
        adapter = LoraAdapter(
            saved.tensors, scale=saved.scale, trained=saved.tensors, dtype=torch.float64
        )
        losses = backward(decoder, adapter, RECORDS, recompute=recompute, dtype=torch.float64)
        ours[recompute] = {n: p.grad_sample for n, p in adapter.parameters.items()}
    for name, kept in ours[False].items():
        assert torch.equal(kept, ours[True][name])
    for i, one in enumerate(RECORDS):
        loss, gradients = one_at_a_time(adapted, one)
        assert losses[i].item() == pytest.approx(loss, rel=1e-12)
        assert gradients.keys() == ours[False].keys()
        for name, gradient in gradients.items():
            gap = (ours[False][name][i] - gradient).norm()
            assert gradient.norm() > 0
            assert gap <= 1e-12 * gradient.norm(), name


def test_the_saved_adapter_gives_the_same_logits(opened, tmp_path):
    decoder, saved, adapted = setting(opened, "all", tmp_path)
    adapter = LoraAdapter(saved.tensors, scale=saved.scale)
    with torch.no_grad():
        bare = families.worst_logit(decoder, adapted)
    assert bare > 0.1  # the adapter matters
    assert families.worst_logit(decoder, adapted, adapter.linears) <= 1e-5
