from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rollout.batch import Sampling
from posttrain.rollout.sampling import completion_keys, draw, kept, uniforms


def splitmix(x: int) -> int:
    """The published generator's output function, on Python integers modulo 2^64."""
    m = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & m
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & m
    return x ^ (x >> 31)


@given(seed=st.integers(-(2**70), 2**70), g=st.integers(0, 7), t=st.integers(0, 1000))
def test_uniforms_are_splitmix_of_seed_completion_and_token(seed: int, g: int, t: int) -> None:
    m, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15
    key = splitmix((splitmix((seed + golden) & m) + (g + 1) * golden) & m)
    bits = splitmix((key + (t + 1) * golden) & m) >> 12
    keys = completion_keys([seed], 8)
    assert float(uniforms(keys, t, t + 1)[0, g]) == (bits + 0.5) / 2**52


def test_uniforms_are_uniform_and_independent() -> None:
    numbers = uniforms(completion_keys(range(64), 8), 0, 64).flatten()
    n = len(numbers)
    assert abs(float(numbers.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert float(numbers.min()) > 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, 64, 0, 1)
    assert float(((counts - n / 64) ** 2 / (n / 64)).sum()) < 120  # chi-square, 63 degrees: p 1e-5
    assert len(numbers.unique()) == n


def test_draw_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125])
    n = 40_000
    logits = probabilities.log().expand(n, -1)
    tokens, log_probs, tempered = draw(
        logits.clone(), uniforms(completion_keys([1], n), 0, 1)[0], Sampling(max_tokens=1)
    )
    counts = torch.bincount(tokens, minlength=5)
    assert counts[1] == 0
    expected = n * probabilities
    assert float(((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()) < 26
    torch.testing.assert_close(log_probs, probabilities[tokens].log())
    assert tempered is log_probs


@given(u=st.floats(0, 1, exclude_min=True, exclude_max=True), size=st.integers(1, 200))
def test_draw_inverts_the_cumulative_distribution(u: float, size: int) -> None:
    weights = torch.rand(size, generator=torch.Generator().manual_seed(size)).double()
    weights[::3] = 0.0 if size > 3 else weights[::3]
    upto = (weights / weights.sum()).cumsum(0)
    token = draw(
        weights.log().float()[None], torch.tensor([u], dtype=torch.float64), Sampling(max_tokens=1)
    )[0]
    index = int(token)
    assert weights[index] > 0
    assert upto[index] >= u - 1e-5
    assert index == 0 or upto[index - 1] <= u + 1e-5


@pytest.mark.parametrize("u", [2.0**-53, 0.5, 1 - 2.0**-53])
def test_draw_never_takes_what_has_no_weight(u: float) -> None:
    logits = torch.full((1, 100), -torch.inf)
    logits[0, 40] = 3.0
    token, log_prob, _ = draw(
        logits, torch.tensor([u], dtype=torch.float64), Sampling(max_tokens=1)
    )
    assert (int(token), float(log_prob)) == (40, 0.0)


def test_draw_of_temperature_zero_is_the_likeliest_token() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    tokens, log_probs, tempered = draw(
        logits, torch.tensor([0.5, 0.5]), Sampling(max_tokens=1, temperature=0)
    )
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(log_probs, logits.log_softmax(-1)[[0, 1], [1, 0]])
    assert tempered.tolist() == [0.0, 0.0]


def test_draw_gives_log_probs_before_and_after_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    token, log_probs, tempered = draw(
        logits.clone(),
        torch.tensor([0.3], dtype=torch.float64),
        Sampling(max_tokens=1, temperature=0.5, top_k=1),
    )
    assert int(token) == 2
    torch.testing.assert_close(log_probs, logits.log_softmax(-1)[:, 2])
    torch.testing.assert_close(tempered, (2 * logits).log_softmax(-1)[:, 2])


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 0.39, [0]),
        (0, 0.4, [0]),  # 0.4 is reached by the first alone
        (0, 0.41, [0, 2]),
        (0, 0.7, [0, 2]),
        (0, 0.9, [0, 2, 3]),
        (0, 0.91, [0, 1, 2, 3]),
        (3, 1.0, [0, 2, 3]),
        (3, 0.44, [0]),  # 0.4 of the 0.9 that top-k leaves is 0.444
        (3, 0.45, [0, 2]),
        (9, 1.0, [0, 1, 2, 3]),
        (1, 0.01, [0]),
    ],
)
def test_kept_are_the_fewest_likeliest(top_k: int, top_p: float, expected: list[int]) -> None:
    keep = kept(torch.tensor([[0.4, 0.1, 0.3, 0.2]]), top_k, top_p)
    assert keep[0].nonzero().view(-1).tolist() == expected


def test_kept_breaks_ties_by_id() -> None:
    assert kept(torch.full((1, 4), 0.25), 2, 1.0).tolist() == [[True, True, False, False]]
    assert kept(torch.full((1, 4), 0.25), 0, 0.5).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 1e-300, 5e-324])
def test_a_very_low_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([[10.0, 30.0, 20.0]])
    sampling = Sampling(max_tokens=1, temperature=temperature)
    token, _, tempered = draw(logits, torch.tensor([0.99], dtype=torch.float64), sampling)
    assert (int(token), float(tempered)) == (1, 0.0)


@pytest.mark.parametrize("temperature", [1e20, 1e39, 1e308])
def test_a_very_high_temperature_is_uniform_over_what_can_be(temperature: float) -> None:
    logits = torch.tensor([[10.0, -torch.inf, 30.0]])
    sampling = Sampling(max_tokens=1, temperature=temperature)
    for u, expected in ((0.49, 0), (0.51, 2)):
        token, _, tempered = draw(logits, torch.tensor([u], dtype=torch.float64), sampling)
        assert int(token) == expected
        torch.testing.assert_close(tempered, torch.tensor([-math.log(2)]))


def test_draw_of_logits_that_are_nan_gives_log_probs_that_say_so() -> None:
    logits = torch.full((2, 40), torch.nan)
    tokens, log_probs, _ = draw(logits, torch.tensor([0.3, 0.9]).double(), Sampling(max_tokens=1))
    assert bool((tokens < 40).all())
    assert bool(log_probs.isnan().all())
