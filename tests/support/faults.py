"""Faults of an engine, put where a caller could put them: its inside is free to change."""

import torch

from sordino.client import train


def samples_changed_by(change):
    """The honest backward, after which `change` gets at the parameters' per-record gradients."""

    def patch(monkeypatch):
        honest = train.backward

        def backward(decoder, adapter, records, **settings):
            losses = honest(decoder, adapter, records, **settings)
            for parameter in adapter.parameters.values():
                change(parameter.grad_sample, records)
            return losses

        monkeypatch.setattr(train, "backward", backward)

    return patch


def token_mean(sample, records):
    """The mean over the batch's tokens weighs each record by its length."""
    counts = torch.tensor([int(r.targets_mask[1:].sum()) for r in records], dtype=sample.dtype)
    weights = counts * len(counts) / counts.sum()
    sample.mul_(weights.view(-1, *[1] * (sample.dim() - 1)))
