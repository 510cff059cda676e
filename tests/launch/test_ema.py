import pytest
import torch
from torch import nn

from launch.ema import EMA


def weights(value: float) -> nn.Linear:
    model = nn.Linear(2, 1)
    for p in model.parameters():
        nn.init.constant_(p, value)
    return model


def test_ema_halves_the_distance_in_a_half_life() -> None:
    ema = EMA(weights(0.0), half_life=64)
    model = weights(1.0)
    ema.update(model, samples=64)
    torch.testing.assert_close(ema.averages["weight"], torch.full((1, 2), 0.5), rtol=0, atol=0)
    ema.update(model, samples=64)
    torch.testing.assert_close(ema.averages["bias"], torch.tensor([0.75]), rtol=0, atol=0)


def test_ema_does_not_depend_on_the_batch_size() -> None:
    once, often, model = EMA(weights(0.0), 100), EMA(weights(0.0), 100), weights(1.0)
    once.update(model, samples=30)
    for _ in range(3):
        often.update(model, samples=10)
    torch.testing.assert_close(once.averages, often.averages)


def test_ema_applied_gives_the_average_and_then_the_own_weights_back() -> None:
    model = weights(0.0)
    ema = EMA(model, 10)
    nn.init.constant_(model.weight, 3.0)
    with pytest.raises(KeyError, match="inside"), ema.applied(model):  # noqa: PT012 both matter
        assert model.weight.tolist() == [[0.0, 0.0]]
        raise KeyError("inside")
    assert model.weight.tolist() == [[3.0, 3.0]]


def test_ema_state_round_trip_is_exact() -> None:
    ema, other = EMA(weights(1.0), 10), EMA(weights(0.0), 10)
    ema.update(weights(2.0), 3)
    other.load_state_dict(ema.state_dict())
    torch.testing.assert_close(other.averages, ema.averages, rtol=0, atol=0)
    with pytest.raises(ValueError, match="EMA of another model: bias in only one"):
        other.load_state_dict({"weight": torch.zeros(1, 2)})


def test_ema_refuses_a_half_life_of_nothing() -> None:
    with pytest.raises(ValueError, match="half_life=0"):
        EMA(weights(0.0), 0)
