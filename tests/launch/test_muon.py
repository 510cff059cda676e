import pytest
import torch
from torch import Tensor, nn

from launch.muon import Muon, orthogonalized


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
def test_orthogonalized_keeps_the_singular_vectors_and_levels_the_values(
    shape: tuple[int, int],
) -> None:
    x = gaussian(*shape)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ orthogonalized(x) @ vh.mT
    off = inner - torch.diag(inner.diagonal())
    assert off.abs().max() < 1e-4
    assert inner.diagonal().min() > 0.5
    assert inner.diagonal().max() < 1.3


def test_orthogonalized_of_a_stack_is_that_of_each() -> None:
    x = gaussian(3, 6, 4)
    torch.testing.assert_close(
        orthogonalized(x), torch.stack([orthogonalized(part) for part in x]), rtol=1e-5, atol=1e-6
    )


def test_orthogonalized_does_not_depend_on_the_scale() -> None:
    x = gaussian(4, 4)
    torch.testing.assert_close(orthogonalized(1e3 * x), orthogonalized(x), rtol=1e-4, atol=1e-5)
    assert orthogonalized(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_muon_steps_as_torchs_does_but_for_its_bfloat16() -> None:
    ours, theirs = (nn.Parameter(gaussian(6, 3, seed=1)) for _ in range(2))
    a = Muon([ours], lr=0.1, momentum=0.9)
    b = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.0)
    for step in range(3):
        ours.grad = gaussian(6, 3, seed=10 + step)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
    assert (ours - gaussian(6, 3, seed=1)).abs().max() > 0.1


def test_muon_hardly_notices_the_order_of_a_sum() -> None:
    weights = [nn.Parameter(gaussian(8, 8)) for _ in range(2)]
    for weight, noise in zip(weights, (0.0, 1e-7), strict=True):
        optimizer = Muon([weight], lr=0.1)
        weight.grad = gaussian(8, 8, seed=2) * (1 + noise)
        optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-5)


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"Muon takes matrices, got a parameter of \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])
