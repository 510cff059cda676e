from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rl.actor_critic import TwinQConfig
from rl.soft_policies import SoftCategorical, SquashedGaussian, soft_law

VECTOR = spaces.Box(-1.0, 1.0, (3,))
BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 8.0], np.float32))
DISCRETE = spaces.Discrete(4, start=2)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_value_in_a_box_is_the_smaller_q_plus_the_entropy_of_the_draw() -> None:
    g, law = generator(), SquashedGaussian(BOX)
    critic = TwinQConfig(hidden=(8,)).build(VECTOR, BOX, g)
    seen, outputs = torch.randn(5, 3, generator=g), torch.randn(5, 4, generator=g)
    draws, alpha = law.draws((5,), g), torch.tensor(0.3)
    value, entropies = law.value(outputs, critic, seen, alpha, draws, None)
    normal = Normal(outputs[:, :2], outputs[:, 2:].exp())
    squashed = TransformedDistribution(Independent(normal, 1), TanhTransform(cache_size=1))
    actions = (outputs[:, :2] + outputs[:, 2:].exp() * draws).tanh()
    log_probs = squashed.log_prob(actions)
    torch.testing.assert_close(entropies, -log_probs, rtol=1e-4, atol=1e-4)
    smaller = torch.minimum(critic.first(seen, actions), critic.second(seen, actions))
    torch.testing.assert_close(value, smaller - 0.3 * log_probs, rtol=1e-4, atol=1e-4)


def test_value_among_actions_is_the_expectation_over_all_of_them() -> None:
    g, law = generator(), SoftCategorical(DISCRETE)
    critic = TwinQConfig(hidden=(8,)).build(VECTOR, DISCRETE, g)
    seen, outputs = torch.randn(5, 3, generator=g), torch.randn(5, 4, generator=g)
    masks = torch.tensor([[True, True, False, True]] * 5)
    alpha, draws = torch.tensor(0.3), law.draws((5,), g)
    value, entropies = law.value(outputs, critic, seen, alpha, draws, masks)
    for row in range(5):
        weights = [math.exp(x) if i != 2 else 0.0 for i, x in enumerate(outputs[row].tolist())]
        p = [w / sum(weights) for w in weights]
        q = torch.minimum(*critic(seen))[row].tolist()
        surprise = [-math.log(x) if x else 0.0 for x in p]
        assert entropies[row].item() == pytest.approx(np.dot(p, surprise), abs=1e-5)
        expected = sum(p[i] * (q[i] + 0.3 * surprise[i]) for i in range(4))
        assert value[row].item() == pytest.approx(expected, abs=1e-5)


def test_gradient_of_the_value_reaches_the_actor_but_no_action_that_is_ruled_out() -> None:
    g, law = generator(), SoftCategorical(DISCRETE)
    critic = TwinQConfig(hidden=(8,)).build(VECTOR, DISCRETE, g)
    outputs = torch.randn(1, 4, generator=g, requires_grad=True)
    masks = torch.tensor([[True, True, False, True]])
    seen = torch.randn(1, 3, generator=g)
    law.value(outputs, critic, seen, torch.tensor(0.3), torch.rand(1), masks)[0].sum().backward()
    assert outputs.grad is not None
    assert (outputs.grad != 0).tolist() == [[True, True, False, True]]


def test_box_actions_are_kept_between_minus_one_and_one_and_taken_within_the_box() -> None:
    law, outputs = SquashedGaussian(BOX), np.array([[0.0, 9.0, -20.0, -20.0]], np.float32)
    draws = np.array([[1.0, -1.0]], np.float32)
    kept, taken = law.act(outputs, draws, None, anything=False)
    np.testing.assert_allclose(kept, [[0.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(taken, [[0.0, 8.0]], atol=1e-5)
    kept, taken = law.act(outputs, np.zeros((1, 2), np.float32), None, anything=True)
    np.testing.assert_array_equal(kept, [[0.0, 0.0]])  # the middle, whatever the outputs
    np.testing.assert_array_equal(taken, [[0.0, 4.0]])


def test_discrete_actions_are_kept_from_zero_and_taken_from_the_spaces_start() -> None:
    law, outputs = SoftCategorical(DISCRETE), np.array([[0.0, 90.0, 0.0, 0.0]] * 2, np.float32)
    draws = np.array([0.1, 0.6])
    assert [x.tolist() for x in law.act(outputs, draws, None, anything=False)] == [[1, 1], [3, 3]]
    # Any action of the three that are allowed: a third of the uniforms each.
    masks = np.array([[True, True, False, True]] * 2)
    assert law.act(outputs, draws, masks, anything=True)[0].tolist() == [0, 1]


def test_aimed_entropies_are_those_of_the_papers() -> None:
    assert soft_law(BOX).entropy == -2.0
    assert soft_law(DISCRETE).entropy == pytest.approx(0.98 * math.log(4))


@pytest.mark.parametrize("space", [BOX, DISCRETE])
def test_q_values_are_of_the_actions_that_were_kept(space: spaces.Space) -> None:
    g, law = generator(), soft_law(space)
    critic = TwinQConfig(hidden=(8,)).build(VECTOR, space, g)
    seen, draws = torch.randn(3, 3, generator=g), law.draws((3,), g)
    outputs = torch.randn(3, law.outputs, generator=g).numpy()
    kept = torch.from_numpy(law.act(outputs, draws.numpy(), None, anything=False)[0])
    first, second = law.q_values(critic, seen, kept)
    if space is BOX:
        expected = critic(seen, kept)
    else:
        rows = torch.arange(3)
        expected = tuple(table[rows, kept] for table in critic(seen))
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])
