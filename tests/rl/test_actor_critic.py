from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_model, save_model

from rl.actor_critic import ActorCritic, SeparateTrunks, SharedTrunk, TwinQConfig
from rl.spaces import Space

VECTOR = spaces.Box(-1.0, 1.0, (4,))
DISCRETE, BOX = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def separate(action_space: Space) -> ActorCritic:
    return SeparateTrunks().build(VECTOR, action_space, generator())


@pytest.mark.parametrize("config", [SeparateTrunks(), SharedTrunk(hidden=(16,))])
@pytest.mark.parametrize("action_space", [DISCRETE, BOX])
def test_forward_is_the_actor_beside_the_critic(
    config: SeparateTrunks | SharedTrunk, action_space: Space
) -> None:
    model = config.build(VECTOR, action_space, generator())
    x = torch.randn(5, 4, generator=generator())
    outputs, values = model(x)
    assert torch.equal(outputs, model.actor(x))
    assert torch.equal(values, model.values(x))
    assert values.shape == (5,)
    assert outputs.shape == (5, 3 if action_space is DISCRETE else 2)


def test_separate_trunks_have_the_size_and_beginning_of_cleanrl() -> None:
    model = separate(DISCRETE)
    # 2 * (4 * 64 + 64 + 64 * 64 + 64) + 64 * 3 + 3 + 64 * 1 + 1
    assert sum(p.numel() for p in model.parameters()) == 2 * 4480 + 195 + 65
    torch.testing.assert_close(model.critic.head.weight.norm(), torch.tensor(1.0))
    torch.testing.assert_close(
        model.actor.head.weight @ model.actor.head.weight.T, 1e-4 * torch.eye(3)
    )
    torch.testing.assert_close(
        model.actor.body[0].weight.T @ model.actor.body[0].weight, 2 * torch.eye(4)
    )
    assert not torch.equal(model.actor.body[0].weight, model.critic.body[0].weight)


def test_deviation_belongs_to_a_box_alone_and_is_trained_with_the_actor() -> None:
    assert separate(DISCRETE).log_std is None
    model = separate(BOX)
    assert model.log_std is not None
    assert model.log_std.tolist() == [0.0, 0.0]
    assert any(p is model.log_std for p in model.parameters())


def test_shared_trunk_counts_once_and_takes_gradients_from_both() -> None:
    model = SharedTrunk(hidden=(16,)).build(VECTOR, DISCRETE, generator())
    assert sum(p.numel() for p in model.parameters()) == 4 * 16 + 16 + 16 * 3 + 3 + 16 + 1
    x = torch.randn(5, 4, generator=generator())

    def gradient(actor: float, critic: float) -> torch.Tensor:
        model.zero_grad()
        outputs, values = model(x)
        (actor * outputs.sum() + critic * values.sum()).backward()
        grad = model.actor.body[0].weight.grad
        assert grad is not None
        return grad.clone()

    torch.testing.assert_close(gradient(1.0, 1.0), gradient(1.0, 0.0) + gradient(0.0, 1.0))
    assert gradient(1.0, 0.0).abs().max() > 0


@pytest.mark.parametrize("config", [SeparateTrunks(), SharedTrunk(hidden=(16,))])
def test_weights_survive_safetensors(
    config: SeparateTrunks | SharedTrunk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = str(tmp_path_factory.mktemp("weights") / "model.safetensors")
    model, other = (config.build(VECTOR, BOX, generator(seed)) for seed in (0, 1))
    save_model(model, file)
    load_model(other, file)
    x = torch.randn(5, 4, generator=generator())
    for ours, theirs in zip(model(x), other(x), strict=True):
        assert torch.equal(ours, theirs)


def test_shared_trunk_reads_images() -> None:
    images = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    model = SharedTrunk().build(images, DISCRETE, generator())
    outputs, values = model(torch.zeros(2, 4, 36, 36, dtype=torch.uint8))
    assert (outputs.shape, values.shape) == ((2, 3), (2,))


def test_twin_critics_begin_differently_and_read_the_action() -> None:
    critics = TwinQConfig(hidden=(16,)).build(VECTOR, BOX, generator())
    x = torch.randn(5, 4, generator=generator())
    first, second = critics(x, torch.zeros(5, 2))
    assert first.shape == second.shape == (5,)
    assert not torch.equal(first, second)
    assert not torch.equal(critics(x, torch.ones(5, 2))[0], first)
    inputs = torch.cat([x, torch.zeros(5, 2)], dim=1)
    assert torch.equal(critics.first.layers(inputs)[:, 0], first)


def test_twin_critics_of_discrete_actions_value_each() -> None:
    first, second = TwinQConfig(hidden=(16,)).build(VECTOR, DISCRETE, generator())(torch.ones(5, 4))
    assert first.shape == second.shape == (5, 3)


@pytest.mark.parametrize("config", [SeparateTrunks(), SharedTrunk(), TwinQConfig()])
def test_action_space_that_no_network_serves_is_refused_by_name(
    config: SeparateTrunks | SharedTrunk | TwinQConfig,
) -> None:
    with pytest.raises(ValueError, match=r"got the action space MultiBinary\(2\)"):
        config.build(VECTOR, spaces.MultiBinary(2), generator())
