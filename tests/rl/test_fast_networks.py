from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rl.fast_networks import LARGEST_PRODUCT, Forward
from rl.layers import Activation
from rl.networks import (
    Dueling,
    FactorisedNoise,
    MLPConfig,
    NetworkConfig,
    QNetworkConfig,
    sample_noise,
)
from rl.observations import to_tensors
from rl.spaces import Observations, Space, empty_rows
from rl.value_laws import QuantileValues

VECTOR = spaces.Box(-1.0, 1.0, (4,))
DICT = spaces.Dict(b=VECTOR, a=spaces.Discrete(3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observe(space: Space, count: int) -> Observations:
    space.seed(0)
    rows = empty_rows(space, count)
    for i in range(count):
        if isinstance(rows, dict):
            for name, value in space.sample().items():
                rows[name][i] = value  # type: ignore[index]  # arrays inside
        else:
            rows[i] = space.sample()  # type: ignore[index]  # an array
    return rows


@pytest.mark.parametrize(
    "config",
    [
        MLPConfig(),
        MLPConfig(hidden=(), activation="relu"),
        QNetworkConfig(hidden=(8, 8)),
        QNetworkConfig(values=QuantileValues(atoms=5)),
        QNetworkConfig(dueling=Dueling()),
        QNetworkConfig(noise=FactorisedNoise()),
    ],
)
@pytest.mark.parametrize(
    "space",
    [
        VECTOR,
        spaces.Box(-1.0, 1.0, (2, 3)),
        spaces.Discrete(5, start=2),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        DICT,
    ],
)
@pytest.mark.parametrize("count", [0, 1, 8])
def test_forward_is_that_of_the_readable_twin(
    config: NetworkConfig, space: Space, count: int
) -> None:
    network = config.build(space, 3, generator()).eval()
    rows = observe(space, count)
    with torch.no_grad():
        expected = network(to_tensors(rows))
    outputs = Forward(network)(rows)
    assert outputs.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(outputs), expected)


@given(seed=st.integers(0, 2**16), activation=st.sampled_from(["tanh", "relu"]))
def test_both_ways_agree_for_any_weights(seed: int, activation: Activation) -> None:
    network = MLPConfig(hidden=(16, 8), activation=activation).build(VECTOR, 3, generator(seed))
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(seed)))
    forward = Forward(network)
    x = torch.randn(8, 4, generator=generator(seed)).numpy()
    torch.testing.assert_close(
        forward._in_numpy(x) if forward._fresh() else None, forward._in_torch(x)
    )


def test_weights_are_seen_at_once_however_they_change() -> None:
    network = MLPConfig(hidden=(8,)).build(VECTOR, 2, generator())
    forward = Forward(network)
    x = np.ones((3, 4), np.float32)

    def agrees() -> bool:
        with torch.no_grad():
            return np.allclose(forward(x), network(torch.from_numpy(x)).float().numpy(), atol=1e-6)

    seen = [forward(x)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.from_numpy(x)).sum().backward()
    optimizer.step()
    assert agrees()
    seen.append(forward(x))
    network.load_state_dict(MLPConfig(hidden=(8,)).build(VECTOR, 2, generator(1)).state_dict())
    assert agrees()
    seen.append(forward(x))
    network.head.weight.data = torch.ones(2, 8)
    assert agrees()
    seen.append(forward(x))
    assert len({outputs.tobytes() for outputs in seen}) == 4
    network.head.bias = torch.nn.Parameter(torch.full((2,), 7.0))
    assert agrees()


def test_noisy_layers_act_by_their_means_and_keep_their_mode() -> None:
    for dueling in (None, Dueling()):  # numpy knows the first, torch does the second
        config = QNetworkConfig(hidden=(8,), noise=FactorisedNoise(), dueling=dueling)
        network = config.build(VECTOR, 2, generator()).train()
        forward = Forward(network)
        x = np.ones((3, 4), np.float32)
        still = forward(x)
        sample_noise(network, generator(1))
        assert np.array_equal(forward(x), still)
        assert all(module.training for module in network.modules())


def test_large_batch_and_other_numbers_go_through_torch() -> None:
    network = MLPConfig().build(VECTOR, 2, generator())
    forward = Forward(network)
    rows = LARGEST_PRODUCT // (64 * 64) + 1
    x = torch.randn(rows, 4, generator=generator())
    with torch.no_grad():
        assert np.array_equal(forward(x.numpy()), network(x).numpy())
    small = x[:3]
    before = forward(small.numpy())
    network.bfloat16()
    network.float()
    assert forward(small.numpy()).shape == before.shape
    network.to(torch.float64)
    with pytest.raises(RuntimeError):  # torch refuses float32 rows for float64 weights
        forward(small.numpy())
