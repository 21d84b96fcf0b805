"""Choices: what each parameter does, and that they are the same bits wherever they are made."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from alula.host import sampling
from alula.host.sampling import SamplingParams, choose, draw, logprobs, sample_seed


def _logits(*values):
    return np.array(values, np.float32)


def _share(logits, count=1500, **params):
    """The share of each token among many draws."""
    wanted = SamplingParams(**{"temperature": 1.0, **params})
    made = Counter(choose(logits, wanted, seed, [], []) for seed in range(count))
    return [made[token] / count for token in range(len(logits))]


def test_greedy_takes_the_lowest_of_equals():
    assert choose(_logits(1, 3, 3, np.nan), SamplingParams(), 0, [], []) == 1
    assert choose(_logits(np.nan, np.nan), SamplingParams(temperature=1), 0, [], []) == 0
    assert choose(_logits(0, np.inf, 1), SamplingParams(temperature=1), 0, [], []) == 1


def test_shares_are_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    np.testing.assert_allclose(_share(logits), [0.5, 0.3, 0.15, 0.05], atol=0.05)
    hot = np.exp(np.log([0.5, 0.3, 0.15, 0.05]) / 2)
    np.testing.assert_allclose(_share(logits, temperature=2.0), hot / hot.sum(), atol=0.05)


@pytest.mark.parametrize("params, left", [
    ({"top_k": 1}, [0]), ({"top_k": 2}, [0, 1]), ({"top_k": -1}, [0, 1, 2, 3]),
    ({"top_p": 0.5}, [0]), ({"top_p": 0.51}, [0, 1]), ({"top_p": 0.96}, [0, 1, 2, 3]),
    ({"min_p": 0.5}, [0, 1]), ({"min_p": 1.0}, [0]), ({"min_p": 0.2}, [0, 1, 2]),
    ({"top_k": 3, "top_p": 0.6}, [0, 1]), ({"logit_bias": {0: -50.0}}, [1, 2, 3]),
    ({"temperature": 1e-9}, [0]),
])
def test_what_is_left_to_choose(params, left):
    logits = np.log(np.array([0.5001, 0.3, 0.15, 0.0499], np.float32))
    shares = _share(logits, **params)
    assert [token for token, share in enumerate(shares) if share] == left


def test_penalties():
    logits = _logits(2, 1.9, -1, -1.1)
    assert choose(logits, SamplingParams(repetition_penalty=1.2), 0, [0], []) == 1
    assert choose(logits, SamplingParams(presence_penalty=0.2), 0, [0], []) == 0
    assert choose(logits, SamplingParams(presence_penalty=0.2), 0, [], [0]) == 1
    assert choose(logits, SamplingParams(frequency_penalty=0.06), 0, [], [0]) == 0
    assert choose(logits, SamplingParams(frequency_penalty=0.06), 0, [], [0, 0]) == 1
    low = SamplingParams(repetition_penalty=2.0, logit_bias={0: -9, 1: -9})
    assert choose(logits, low, 0, [2], []) == 3
    assert choose(logits, SamplingParams(), 0, [], [], barred=[0]) == 1


def test_choices_are_pinned():
    """The same on every machine, and in every version: seeds in notebooks keep their texts."""
    random = np.random.default_rng(0)
    logits = (random.integers(-4000, 4000, (50, 300)) / 400).astype(np.float32)
    params = SamplingParams(temperature=0.8, top_p=0.9, min_p=0.001, repetition_penalty=1.1)
    made = []
    for row in logits:
        made.append(choose(row, params, 42, [1, 2, 3], made))
    digest = hashlib.sha256(np.array(made, "<u4").tobytes()).hexdigest()
    assert digest[:16] == "092b232da725a491"
    assert draw(1, 2, 1000) == draw(1, 2, 1000) and sample_seed(9, 0) == 9
    assert len({sample_seed(9, index) for index in range(100)}) == 100


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(0.05, 5), st.floats(0.01, 0.999), st.floats(0, 1),
       st.integers(0, 20))
def test_order_of_tokens_does_not_matter(seed, temperature, top_p, min_p, top_k):
    """What is sorted is sorted the same from any order: no sum depends on its order."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal(97).astype(np.float32) * 5
    params = SamplingParams(temperature=temperature, top_p=top_p, min_p=min_p, top_k=top_k)
    order = random.permutation(97)
    assert logits[choose(logits, params, seed, [], [])] == logits[order][
        choose(logits[order], params, seed, [], [])]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(0.05, 0.999), st.integers(0, 400))
def test_fast_ways_are_the_plain_ones(seed, top_p, top_k):
    """Of tokens with many equal logits: what is left is what sorting them all would leave."""
    random = np.random.default_rng(seed)
    logits = (random.integers(0, 60, 700) / 8).astype(np.float32)
    params = SamplingParams(temperature=1.0, top_p=top_p, top_k=top_k)
    order = np.lexsort((np.arange(700), -logits))[:top_k or None]
    weights = np.exp(logits[order].astype(np.float64))
    count = int(np.searchsorted(np.cumsum(weights), top_p * weights.sum())) + 1
    tokens, found = sampling._candidates(logits.astype(np.float64), int(np.argmax(logits)), params)
    assert abs(len(tokens) - count) <= 1
    np.testing.assert_array_equal(tokens[:count], order[:len(tokens)][:count])
    np.testing.assert_allclose(found / 2**40, weights[:len(found)] / weights[0], rtol=1e-9)


def test_weights():
    exponents = -np.linspace(0, 27.7, 5000)
    error = sampling._weights(exponents) / 2.0**40 / np.exp(exponents) - 1
    assert np.all(np.abs(error) <= 2.0**-40 / np.exp(exponents) + 1e-15)


def test_draws_are_even():
    counts = Counter(draw(seed, number, 7) for seed in range(100) for number in range(100))
    assert sorted(counts) == list(range(7)) and min(counts.values()) > 1250


def test_logprobs():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32)) + np.float32(11)
    found = logprobs(logits, 2, 2)
    assert found.token == 2 and found.logprob == pytest.approx(math.log(0.15), abs=2e-6)
    assert list(found.top) == [0, 1]
    assert found.top[0] == pytest.approx(math.log(0.5), abs=2e-6)
    assert logprobs(_logits(0, -np.inf, np.nan), 0, 0).logprob == 0


@pytest.mark.parametrize("params, message", [
    ({"temperature": -1.0}, "temperature must be at least 0, not -1.0"),
    ({"temperature": math.nan}, "temperature must be at least 0, not nan"),
    ({"top_k": -2}, "top_k must be at least -1, not -2"),
    ({"top_k": 1.5}, "top_k must be at least -1, not 1.5"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
    ({"min_p": 1.1}, "min_p must be from 0 to 1, not 1.1"),
    ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
    ({"min_tokens": -1}, "min_tokens must be at least 0, not -1"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must be at most max_tokens, 8, not 9"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, not 0.0"),
    ({"presence_penalty": 3.0}, "presence_penalty must be from -2 to 2, not 3.0"),
    ({"frequency_penalty": -3.0}, "frequency_penalty must be from -2 to 2, not -3.0"),
    ({"n": 0}, "n must be at least 1, not 0"),
    ({"seed": -1}, "seed must be at least 0, not -1"),
    ({"logprobs": 65}, "logprobs must be from 0 to 64, not 65"),
    ({"stop": ""}, r"stop must be texts of at least one character, not \(''"),
    ({"stop": [1]}, r"stop must be texts of at least one character, not \(1"),
    ({"stop_token_ids": [-1]}, r"stop_token_ids must be whole numbers from 0, not \(-1"),
    ({"logit_bias": {1: math.inf}}, "logit_bias must give finite numbers for tokens from 0, not "
                                    "inf for 1"),
])
def test_params_wrong(params, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SamplingParams(**params)
