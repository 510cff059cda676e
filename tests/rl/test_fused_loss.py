from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rl.actor_critic import ActorCritic, SeparateTrunks, SharedTrunk
from rl.fused_loss import can_fuse, fused_loss
from rl.ppo import PPOConfig, _loss
from rl.rollouts import Rollout, Steps, evaluate_actions
from rl.sampled_actions import action_law

VECTOR = spaces.Box(-1.0, 1.0, (2, 2), np.float32)
DISCRETE, BOX = spaces.Discrete(4), spaces.Box(-1.0, 1.0, (2,), np.float32)


def build(config: SeparateTrunks | SharedTrunk, action_space: Any = DISCRETE) -> ActorCritic:  # noqa: ANN401
    return config.build(VECTOR, action_space, torch.Generator().manual_seed(0))


def batch(network: ActorCritic, rows: int, masked: bool, g: torch.Generator) -> tuple[Any, Any]:
    """Return a rollout, and rows of it whose policy and values have moved near and far."""
    for p in network.parameters():
        p.data.normal_(0.0, 0.5, generator=g)
    actions, rest = torch.randint(4, (rows,), generator=g), torch.zeros(1, rows)
    masks = None
    if masked:
        masks = torch.rand(rows, 4, generator=g) > 0.4
        masks[torch.arange(rows), actions] = True
    rollout = Rollout(
        raw=np.zeros((rows, 2, 2), np.float32),
        observations=torch.randn(rows, 2, 2, generator=g),
        actions=actions,
        action_masks=masks,
        log_probs=rest[0],
        values=rest,
        next_values=rest,
        rewards=rest,
        terminated=rest.bool(),
        truncated=rest.bool(),
        valid=~rest.bool(),
    )
    index = torch.randperm(rows, generator=g)
    with torch.no_grad():
        now = evaluate_actions(network, action_law(DISCRETE), rollout, index)
    noise = torch.randn(4, rows, generator=g)
    steps = Steps(
        index=index,
        log_probs=now[0] + 0.3 * noise[0],
        advantages=noise[1],
        values=now[2] + 0.3 * noise[2],
        targets=now[2] + noise[3],
    )
    return rollout, steps


@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(0, 40),
    masked=st.booleans(),
    value_clip=st.sampled_from([None, 0.2]),
    entropy_weight=st.sampled_from([0.0, 0.1]),
    hidden=st.sampled_from([(), (8,), (8, 5)]),
)
def test_fused_loss_and_gradients_are_those_of_the_readable_twin(
    seed: int,
    rows: int,
    masked: bool,
    value_clip: float | None,
    entropy_weight: float,
    hidden: tuple[int, ...],
) -> None:
    network = build(SeparateTrunks(hidden=hidden))
    assert can_fuse(network)
    rollout, steps = batch(network, rows, masked, torch.Generator().manual_seed(seed))
    cfg = PPOConfig(value_clip=value_clip, entropy_weight=entropy_weight)
    law = action_law(DISCRETE)
    learner: Any = SimpleNamespace(
        evaluate=lambda rollout, index: evaluate_actions(network, law, rollout, index)
    )
    parameters = list(network.parameters())
    expected = _loss(cfg, learner, rollout, steps)
    found = fused_loss(network, cfg, rollout, steps)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(found[0] / 3, parameters),
        torch.autograd.grad(expected[0] / 3, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "action_space"),
    [
        (SeparateTrunks(activation="relu"), DISCRETE),
        (SharedTrunk(hidden=(8,), activation="tanh"), DISCRETE),
        (SeparateTrunks(), BOX),
    ],
)
def test_other_networks_take_the_readable_way(
    config: SeparateTrunks | SharedTrunk,
    action_space: Any,  # noqa: ANN401
) -> None:
    assert not can_fuse(build(config, action_space))


def test_what_is_frozen_or_of_another_type_takes_the_readable_way() -> None:
    assert not can_fuse(build(SeparateTrunks()).double())
    frozen = build(SeparateTrunks())
    frozen.critic.head.bias.requires_grad_(False)
    assert not can_fuse(frozen)
    assert not can_fuse(SeparateTrunks().build(spaces.Discrete(3), DISCRETE, torch.Generator()))
