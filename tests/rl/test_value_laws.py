from __future__ import annotations

import numpy as np
import pytest
import torch

from rl.value_laws import CategoricalValues, ExpectedValues, QuantileValues, ValueLaw


def test_mean_of_hand_worked_atoms() -> None:
    # returns (0, 2, 4) with probabilities (1/4, 1/2, 1/4) and (1/2, 1/2, 0)
    law = CategoricalValues(atoms=3, low=0.0, high=4.0)
    probabilities = torch.tensor([[[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]]])
    torch.testing.assert_close(law.mean(probabilities.log()), torch.tensor([[2.0, 1.0]]))


def test_mean_of_hand_worked_quantiles() -> None:
    law = QuantileValues(atoms=4)
    assert law.mean(torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])).tolist() == [[3.0]]


@pytest.mark.parametrize("law", [ExpectedValues(), CategoricalValues(), QuantileValues()])
def test_arrays_and_tensors_have_the_same_mean(law: ValueLaw) -> None:
    shape = (5, 3) if law.atoms == 1 else (5, 3, law.atoms)
    outputs = 30 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mean = law.mean(outputs.numpy())
    assert mean.dtype == np.float32
    assert mean.shape == (5, 3)
    torch.testing.assert_close(torch.from_numpy(mean), law.mean(outputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atoms": 1}, "atoms=1"),
        ({"low": 1.0, "high": 1.0}, r"low=1\.0, high=1\.0"),
        ({"low": -float("inf")}, "low=-inf"),
    ],
)
def test_atoms_that_span_no_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategoricalValues(**settings)  # type: ignore[arg-type]  # atoms among floats


def test_no_quantiles_are_refused() -> None:
    with pytest.raises(ValueError, match="atoms=0"):
        QuantileValues(atoms=0)
