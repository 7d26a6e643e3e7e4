"""Tokens are drawn from exactly the distribution that transformers' warpers leave."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from sordino.client.generation import sampling as module
from sordino.client.generation.sampling import Sampling, choose, kept
from sordino.core.errors import ConfigError

VOCABULARY = 1000
SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=50),
    Sampling(temperature=1.3, top_p=0.9),
    Sampling(temperature=1.0, top_p=0.999),
    Sampling(temperature=0.5, top_k=400, top_p=0.95),
    Sampling(temperature=2.0, top_k=400, top_p=0.95),
    Sampling(temperature=1.0, top_k=5000),
]


def logits(rows=3, spread=3.0, seed=0):
    return spread * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def probabilities(given, how):
    weights, ids = kept(given, how)
    weights = weights / weights.sum(-1, keepdim=True)
    if ids is None:
        return weights
    return torch.zeros(given.shape, dtype=torch.float64).scatter_(1, ids, weights)


def warped(given, how):
    given = TemperatureLogitsWarper(how.temperature)(None, given.double())
    if how.top_k:
        given = TopKLogitsWarper(how.top_k)(None, given)
    if how.top_p < 1:
        given = TopPLogitsWarper(how.top_p)(None, given)
    return given.softmax(-1)


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("spread", [0.1, 3.0])  # a nucleus of nearly all, and one of a few
def test_the_distribution_is_that_of_transformers(how, spread):
    given = logits(spread=spread)
    torch.testing.assert_close(probabilities(given, how), warped(given, how), rtol=1e-9, atol=0)


@pytest.mark.parametrize("how", SAMPLINGS[:4])
def test_draws_follow_the_distribution_and_another_one_is_noticed(how):
    given, draws = logits(rows=1), 20_000
    uniforms = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = choose(given.expand(draws, -1), how, uniforms).numpy()
    counts = np.bincount(ids, minlength=VOCABULARY)

    def p_value(temperature):
        other = Sampling(temperature=temperature, top_k=how.top_k, top_p=how.top_p)
        expected = draws * probabilities(given, other)[0].numpy()
        common = expected >= 10
        observed = np.append(counts[common], counts[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum())
        some = wanted > 0
        assert not observed[~some].any()
        return stats.chisquare(observed[some], wanted[some] * observed.sum() / wanted.sum()).pvalue

    assert p_value(how.temperature) > 1e-3
    assert p_value(how.temperature * 1.2) < 1e-6 if how.top_p == 1 else True


def test_a_uniform_at_either_end_gives_a_token_with_weight():
    given = torch.full((2, 10), -torch.inf)
    given[:, [3, 6]] = 0.0
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for how in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.9)):
        assert set(choose(given, how, ends).tolist()) == {3, 6}


def test_greedy_takes_the_likeliest():
    given = logits()
    assert torch.equal(choose(given, Sampling()), given.argmax(-1))
    cold = Sampling(temperature=1e-6)
    assert torch.equal(choose(given, cold, torch.full((3,), 0.5).double()), given.argmax(-1))
    one = Sampling(temperature=1.0, top_k=1)
    assert torch.equal(choose(given, one, torch.full((3,), 0.9).double()), given.argmax(-1))


def test_the_short_way_to_a_nucleus_is_the_long_way(monkeypatch):
    given, how = logits(), Sampling(temperature=1.0, top_p=0.9)
    short = probabilities(given, how)
    monkeypatch.setattr(module, "_LIKELY", VOCABULARY)
    torch.testing.assert_close(short, probabilities(given, how), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0)],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"expected {field}"):
        Sampling(**{field: value})
