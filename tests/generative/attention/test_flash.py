from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from generative.attention import flash
from generative.attention.flash import flash_attention
from generative.attention.naive import softmax_attention


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=[(1, 1), (2, 3), (6, 2), (5, 100)])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = request.param
    monkeypatch.setattr(flash, "ROWS", rows)
    monkeypatch.setattr(flash, "COLUMNS", columns)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize("masked", [(), (0, 3), (0, 1, 2, 3), (2,)])
def test_the_size_of_tiles_does_not_matter(queries: int, masked: tuple[int, ...]) -> None:
    q, k, v = draws(2, 4, queries, 3), draws(2, 2, 7, 3, seed=1), draws(2, 2, 7, 5, seed=2)
    kept = [size if axis in masked else 1 for axis, size in enumerate((2, 4, queries, 7))]
    g = torch.Generator().manual_seed(3)
    attend = torch.rand(kept, generator=g) < 0.5 if masked else None
    inputs = [x.requires_grad_() for x in (q, k, v)]
    weights = draws(2, 4, queries, 5, seed=4)
    for causal in (False, True) if queries == 7 else (False,):
        found, expected = (
            form(q, k, v, attend=attend, causal=causal)
            for form in (flash_attention, softmax_attention)
        )
        pairs = [(found, expected)]
        pairs += zip(
            torch.autograd.grad(found, inputs, weights),
            torch.autograd.grad(expected, inputs, weights),
            strict=True,
        )
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


class Largest(TorchDispatchMode):
    """Notes the most elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_no_tensor_grows_with_the_square_of_the_length(causal: bool, groups: int) -> None:
    length, width = 1024, 4
    q = draws(1, 2, length, width, dtype=torch.float32).requires_grad_()
    k, v = (
        draws(1, 2 // groups, length, width, seed=seed, dtype=torch.float32).requires_grad_()
        for seed in (1, 2)
    )
    attend = torch.arange(length) % 5 != 0
    with Largest() as seen:
        flash_attention(q, k, v, attend=attend, causal=causal).sum().backward()
    # Two heads, tiles of 256 x 512: 1/8 of 1024 x 1024.
    assert seen.elements == 2 * 256 * 512 // groups
    with Largest() as seen:
        softmax_attention(q, k, v, attend=attend, causal=causal).sum().backward()
    assert seen.elements == 2 * length * length  # so the count sees what there is


def test_what_is_kept_for_the_backward_pass_is_linear_in_the_length() -> None:
    q, k, v = (draws(1, 2, 2048, 4, seed=seed).requires_grad_() for seed in range(3))
    kept: list[int] = []

    def note(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        flash_attention(q, k, v, causal=True)
    # q, k, v, the output, and a number a row.
    assert sorted(kept) == [2 * 2048] + 4 * [2 * 2048 * 4]


def test_a_second_derivative_is_refused() -> None:
    q = draws(1, 1, 3, 2).requires_grad_()
    # Silent otherwise: the sum's gradient of ones needs none itself.
    with pytest.raises(RuntimeError, match=r"create_graph=True.*softmax_attention"):
        torch.autograd.grad(flash_attention(q, q, q).sum(), q, create_graph=True)


def test_autocast_leaves_tiles_in_float32() -> None:
    q, k, v = (draws(1, 2, 9, 4, seed=s, dtype=torch.float32).requires_grad_() for s in range(3))
    expected = flash_attention(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = flash_attention(q, k, v)
        assert torch.equal(found, expected)
        found.sum().backward()
    torch.testing.assert_close(q.grad, torch.autograd.grad(expected.sum(), q)[0])


def test_layouts_that_are_not_contiguous_are_read_as_they_are() -> None:
    # (B, T, H, K) as projections give it.
    q, k, v = (draws(2, 7, 4, 3, seed=seed) for seed in range(3))
    q, k, v = (x.transpose(1, 2) for x in (q, k[:, :, :2], v[:, :, :2]))
    torch.testing.assert_close(flash_attention(q, k, v), softmax_attention(q, k, v))
