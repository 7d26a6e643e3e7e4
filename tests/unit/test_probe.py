"""What an audit asks of a model, held against the plain way of computing it."""

import numpy as np
import pytest
import torch
from support import tiny

from sordino.client import probe
from sordino.client.batches import make_batch
from sordino.client.generate import generate, prepare, score
from sordino.client.lora import LoraAdapter
from sordino.client.train import evaluate
from sordino.core.adapters import adapter_manifest
from sordino.core.config import LoraConfig
from sordino.core.errors import DataError
from sordino.privacy.audit.inversion import span_check

RECORDS = [tiny.record(length, seed) for length, seed in ((9, 1), (5, 2), (17, 3), (2, 4))]


@pytest.fixture(scope="module")
def base():
    return tiny.decoder()


def manifest(**settings):
    return adapter_manifest(
        tiny.CONFIG, LoraConfig(**{"targets": ("q_proj", "v_proj"), **settings})
    )


def test_token_scores_are_those_of_the_whole_softmax(base, monkeypatch):
    """Also where the vocabulary is walked in many tiles."""
    monkeypatch.setattr("sordino.client.model.loss.LOGITS_BYTES", 4 * 7 * 30)
    tensors = tiny.adapter_tensors(manifest())
    adapter = LoraAdapter(tensors, scale=2.0)
    found = probe.token_scores(base, adapter, RECORDS, micro_batch=3)
    sums = evaluate(base, adapter, RECORDS)
    for scores, record, (total, count) in zip(found, RECORDS, sums, strict=True):
        batch = make_batch([record])
        with torch.no_grad():
            hidden = base.hidden(batch.ids, batch.packing, linears=adapter.linears)
            log_probs = base.logits(hidden[batch.rows]).double().log_softmax(-1)
        own = log_probs.gather(1, batch.targets[:, None])
        means = (log_probs.exp() * log_probs).sum(1)
        spreads = (log_probs.exp() * (log_probs - means[:, None]).square()).sum(1).sqrt()
        np.testing.assert_allclose(scores.log_probs, own[:, 0], atol=1e-5)
        np.testing.assert_allclose(scores.means, means, atol=1e-5)
        np.testing.assert_allclose(scores.spreads, spreads, atol=1e-5)
        assert scores.ranks.tolist() == (log_probs > own).sum(1).tolist()
        assert scores.loss == pytest.approx(total / count, abs=1e-5)


def test_gradients_are_each_record_by_itself(base):
    tensors = tiny.adapter_tensors(manifest())
    trained = [name for name in tensors if "lora_B" in name]
    rows = probe.record_gradients(base, tensors, trained, RECORDS, scale=2.0, micro_batch=3)
    for row, record in zip(rows, RECORDS, strict=True):
        _, plain = tiny.plain_gradients(base, tensors, trained, record, 2.0)
        expected = probe.flat({name: value.numpy() for name, value in plain.items()})
        np.testing.assert_allclose(row, expected, atol=1e-5)
    assert probe.record_gradients(base, tensors, trained, [], scale=2.0).shape == (0, rows.shape[1])


def test_an_update_lies_along_the_records_that_made_it():
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((40, 500)) + 3.0  # with much in common
    inside = np.arange(40) % 2 == 0
    clipped = gradients * np.minimum(1, 2.0 / np.linalg.norm(gradients, axis=1, keepdims=True))
    scores = probe.alignment(-clipped[inside].sum(0), gradients, clip_norm=2.0)
    assert scores[inside].min() > scores[~inside].max()
    assert probe.alignment(np.ones(3), np.zeros((2, 3))).tolist() == [0.0, 0.0]
    assert probe.alignment(np.ones(3), np.zeros((0, 3))).shape == (0,)


def test_candidates_are_ranked_as_if_each_were_scored_alone(base):
    model = prepare(base)
    candidates = [(a, b, c) for a in (3, 4) for b in range(5, 9) for c in range(10, 20)]
    candidates += [(7,), (7, 8), (3, 5, 10, 11)]
    for prompt in ([1], [5, 6, 7, 8]):
        found = probe.rank_candidates(model, prompt, candidates)
        alone = score(model, [prompt] * len(candidates), candidates)
        np.testing.assert_allclose(found, [float(s.sum()) for s in alone], atol=1e-4)
    with pytest.raises(DataError, match=r"candidates\[1\]"):
        probe.rank_candidates(model, [1], [(2,), (999,)])


def test_a_suffix_that_the_model_writes_by_itself_is_found(base):
    model = prepare(base)
    prefixes = [[1, 2, 3], [4, 5]]
    own = [list(c.ids) for c in generate(model, prefixes, max_new_tokens=4).completions]
    other = [*own[1][:2], (own[1][2] + 1) % 101]
    first, second = probe.complete_suffixes(model, prefixes, [own[0], other])
    assert first.extracted
    assert first.matched == 4
    assert not second.extracted
    assert second.matched == 2
    truth = score(model, prefixes, [own[0], other])
    assert second.log_prob == pytest.approx(float(truth[1].double().sum()), abs=1e-5)
    assert probe.complete_suffixes(model, [], []) == []


@pytest.mark.parametrize("matrix", ["A", "B"])
def test_tokens_of_one_record_are_told_from_the_others(base, matrix):
    """B ≠ 0, one record, fewer distinct tokens than the rank: the positive control."""
    tensors = tiny.adapter_tensors(manifest(rank=8))
    site = "base_model.model.model.layers.0.self_attn.v_proj"
    name = f"{site}.lora_{matrix}.weight"
    record = tiny.record(4, seed=5)
    rows = probe.record_gradients(base, tensors, [name], [record], scale=2.0)
    inputs = probe.embedded_vocabulary(base)
    if matrix == "B":
        inputs = inputs @ tensors[f"{site}.lora_A.weight"].T
    found = span_check(rows[0].reshape(tensors[name].shape), inputs)
    read = set(record.ids[:-1].tolist())  # nothing is predicted from the last
    assert found.rank == len(read)
    assert set(np.flatnonzero(found.residuals < 1e-3).tolist()) == read
