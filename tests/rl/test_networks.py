from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from launch.conversion import Change, build
from launch.encoding import encode
from launch.scalars import ABSENT
from rl.layers import NoisyLinear, UniformFanIn
from rl.networks import (
    Dueling,
    FactorisedNoise,
    GaussianMLPConfig,
    MLPConfig,
    NetworkConfig,
    QNetworkConfig,
    sample_noise,
)
from rl.value_laws import CategoricalValues, QuantileValues

VECTOR = spaces.Box(-1.0, 1.0, (4,))
CONFIGS: list[NetworkConfig] = [
    MLPConfig(),
    MLPConfig(hidden=(), activation="relu", initialisation=UniformFanIn()),
    GaussianMLPConfig(log_std=-0.5),
    QNetworkConfig(),
    QNetworkConfig(dueling=Dueling(hidden=()), values=QuantileValues(atoms=8)),
    QNetworkConfig(dueling=Dueling(), values=CategoricalValues(), noise=FactorisedNoise()),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("config", CONFIGS)
def test_building_draws_from_its_generator_alone(config: NetworkConfig) -> None:
    before = torch.get_rng_state()
    one, same, other = (config.build(VECTOR, 3, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert any(
        not torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_config_is_kept_by_the_network_and_comes_back_from_plain_values(
    config: NetworkConfig,
) -> None:
    assert config.build(VECTOR, 3, generator()).config is config
    plain = json.loads(json.dumps(encode(config, object, "network")))
    assert build(Change(plain), object, ABSENT, "network") == config


def test_mlp_is_the_plain_sequence_of_its_layers() -> None:
    network = MLPConfig(hidden=(8, 6), activation="tanh").build(VECTOR, 3, generator())
    shapes = {name: tuple(x.shape) for name, x in network.named_parameters()}
    assert shapes == {
        "body.0.weight": (8, 4),
        "body.0.bias": (8,),
        "body.2.weight": (6, 8),
        "body.2.bias": (6,),
        "head.weight": (3, 6),
        "head.bias": (3,),
    }
    x = torch.randn(5, 4, generator=generator())
    twin = nn.Sequential(*network.body, network.head)
    assert torch.equal(network(x), twin(x))


def test_almost_uniform_policy_at_the_start() -> None:
    network = MLPConfig().build(VECTOR, 2, generator())
    assert network(torch.randn(64, 4, generator=generator())).abs().max() < 0.1


def test_gaussian_network_has_a_deviation_that_no_observation_changes() -> None:
    network = GaussianMLPConfig(log_std=-0.5).build(VECTOR, 2, generator())
    assert network.log_std is not None
    assert network.log_std.tolist() == [-0.5, -0.5]
    assert "log_std" in network.state_dict()
    assert network(torch.zeros(3, 4)).shape == (3, 2)


@pytest.mark.parametrize("dueling", [None, Dueling(hidden=(5,))])
@pytest.mark.parametrize("noise", [None, FactorisedNoise()])
@pytest.mark.parametrize("values", [QuantileValues(atoms=7), CategoricalValues(atoms=7)])
def test_distributions_have_atoms_for_each_action(
    dueling: Dueling | None, noise: FactorisedNoise | None, values: QuantileValues
) -> None:
    config = QNetworkConfig(hidden=(6,), values=values, dueling=dueling, noise=noise)
    network = config.build(VECTOR, 3, generator())
    outputs = network(torch.randn(5, 4, generator=generator()))
    assert outputs.shape == (5, 3, 7)
    assert values.mean(outputs).shape == (5, 3)
    assert any(isinstance(m, NoisyLinear) for m in network.modules()) == (noise is not None)
    assert any(isinstance(m, nn.Linear) for m in network.modules()) == (noise is None)


def test_sampled_noise_changes_the_outputs_in_training_only() -> None:
    config = QNetworkConfig(hidden=(6,), noise=FactorisedNoise(sigma=0.5))
    network = config.build(VECTOR, 3, generator())
    x = torch.randn(5, 4, generator=generator())
    still = network(x)
    sample_noise(network, generator(1))
    noisy = network(x)
    assert not torch.equal(noisy, still)
    assert torch.equal(network.eval()(x), still)
    sample_noise(network.train(), generator(1))
    assert torch.equal(network(x), noisy)


def test_noise_is_part_of_the_state() -> None:
    config = QNetworkConfig(hidden=(6,), noise=FactorisedNoise())
    network, twin = (config.build(VECTOR, 3, generator(seed)) for seed in (0, 1))
    sample_noise(network, generator(2))
    twin.load_state_dict(network.state_dict())
    x = torch.randn(5, 4, generator=generator())
    assert torch.equal(network(x), twin(x))


def test_network_reads_images_and_dicts() -> None:
    space = spaces.Dict(camera=spaces.Box(0, 255, (36, 36, 3), np.uint8), gear=spaces.Discrete(3))
    network = MLPConfig(hidden=(8,)).build(space, 2, generator())
    camera = torch.zeros(2, 36, 36, 3, dtype=torch.uint8)
    outputs = network({"gear": torch.tensor([0, 2]), "camera": camera})
    assert outputs.shape == (2, 2)
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("kind", [MLPConfig, QNetworkConfig])
def test_layers_without_units_are_refused(kind: type[MLPConfig]) -> None:
    with pytest.raises(ValueError, match=r"hidden=\(64, 0\)"):
        kind(hidden=(64, 0))
    with pytest.raises(ValueError, match="activation='sine'"):
        kind(activation="sine")  # type: ignore[arg-type]  # on purpose


def test_negative_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma=-1\.0"):
        FactorisedNoise(sigma=-1.0)
