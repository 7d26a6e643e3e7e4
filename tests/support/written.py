"""What transformers writes and what the decoder itself says, to hold generation against."""

import numpy as np
import torch

from sordino.client.generate import prepare
from sordino.client.lora import LoraAdapter
from sordino.client.model.packed import has_half_products
from sordino.client.model.packing import pack
from sordino.client.model.store import open_base, resolve_model
from sordino.core.adapters import adapter_manifest
from sordino.core.config import LoraConfig, ModelConfig
from support import families

SCALE = 2.0
FORMS = ["full", "streamed", *(["half"] if has_half_products() else [])]


def open_case(folder, case, kind=None):
    """A family's decoder, and transformers' model with exactly its weights.

    Args:
        folder: To write in.
        case: One of `families.CONFIGS`.
        kind: GGUF's block type; None: a Hugging Face folder, quantized to int8.
    """
    made = families.model(case)
    if kind:
        path = families.write_gguf(folder / "tiny.gguf", case, made, kind)
    else:
        path = families.write_folder(folder / "hf", made)
    base = open_base(resolve_model(ModelConfig(name=str(path)), folder / "cache"))
    if not kind:
        families.put_weights(made, base.decoder)
    return base, made


def prompts(lengths=(17, 1, 40, 9), seed=0):
    return [one.tolist() for one in families.records(lengths, seed=seed)]


def theirs(made, prompt, new, stop=None):
    """The ids that transformers writes greedily."""
    made.generation_config.eos_token_id = stop
    ids = torch.tensor([prompt])
    out = made.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    return tuple(out[0, len(prompt) :].tolist())


def adapter(base, seed=0, targets=("attention", "mlp"), scale=0.1):
    """A random adapter, both A and B away from zero."""
    lora = LoraConfig(targets=targets, rank=2)
    manifest = adapter_manifest(base.files.config, lora)
    rng = np.random.default_rng(seed)
    return {
        spec.name: (rng.standard_normal(spec.shape) * scale).astype(np.float32)
        for spec in manifest.tensors
    }


def plain_log_probs(base, sequence, tensors=None):
    """``[tokens, vocabulary]`` by the decoder's own forward of the sequence, without a cache."""
    linears = {"linears": LoraAdapter(tensors, scale=SCALE).linears} if tensors else {}
    ids, packing = pack([torch.tensor(sequence)])
    with torch.no_grad():
        return base.decoder.logits(base.decoder.hidden(ids, packing, **linears)).log_softmax(-1)


def model_of(base, weights="full", tensors=None):
    model = prepare(base.decoder, weights=weights)
    return model.with_adapter(tensors, scale=SCALE) if tensors else model
