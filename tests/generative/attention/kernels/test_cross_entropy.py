from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Protocol

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from generative.attention.kernels.cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_and_normaliser,
)


class Largest(AbstractContextManager["Largest"], Protocol):
    nbytes: int


def rows(n: int = 11, d: int = 4, v: int = 7, *, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = ((n, d), (v, d), (v,))
    inputs = [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in sizes]
    return [*inputs, torch.randint(0, v, (n,), generator=g)]


def test_two_classes_by_hand() -> None:
    # Logits 2 (0, log 3): probabilities 1/10 and 9/10. The loss of class 0 is log 10; its gradient
    # in the logits is 2 (-9/10, 9/10), so in hidden 2 * 9/10 * log 3.
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [3.0]], dtype=torch.float64).log1p() * 0
    weight[1] = torch.tensor(3.0, dtype=torch.float64).log()
    loss, normaliser = linear_cross_entropy_and_normaliser(
        hidden, weight, torch.tensor([0]), scale=2.0
    )
    torch.testing.assert_close(loss, torch.tensor([10.0], dtype=torch.float64).log())
    torch.testing.assert_close(normaliser, loss)  # the label's logit is 0
    (gradient,) = torch.autograd.grad(loss.sum(), hidden)
    torch.testing.assert_close(gradient, 1.8 * weight[1:])


@pytest.mark.parametrize("chunk", [1, 4, 11, 100, None])
def test_outputs_and_gradients_are_those_of_whole_logits(chunk: int | None) -> None:
    hidden, weight, bias, labels = rows()
    weights = torch.linspace(-1, 2, len(labels), dtype=torch.float64)
    found = linear_cross_entropy_and_normaliser(
        hidden, weight, labels, bias=bias, scale=0.7, chunk=chunk
    )
    logits = 0.7 * (hidden @ weight.t() + bias)
    truth = F.cross_entropy(logits, labels, reduction="none"), logits.logsumexp(1)
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours, theirs = (
        torch.autograd.grad((x * weights).sum() + (y**2).sum(), (hidden, weight, bias))
        for x, y in (found, truth)
    )
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_gradients_by_finite_differences() -> None:
    hidden, weight, bias, labels = rows(3, 2, 4)

    def function(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy_and_normaliser(
            inputs[0], inputs[1], labels, bias=inputs[2], chunk=2
        )

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


def test_rows_that_do_not_count_may_hold_anything() -> None:
    hidden, weight, _, labels = rows()
    mask = torch.arange(len(labels)) % 3 != 0
    spoiled = torch.where(mask[:, None], hidden, torch.nan)
    other = torch.where(mask, labels, -100)
    loss = linear_cross_entropy(spoiled, weight, other, mask=mask)
    kept = linear_cross_entropy(hidden[mask], weight, labels[mask])
    assert torch.equal(loss[~mask], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(loss[mask], kept)
    ours = torch.autograd.grad(loss.sum(), (hidden, weight))
    theirs = torch.autograd.grad(kept.sum(), (hidden, weight))
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_no_rows_give_no_losses_and_zero_gradients() -> None:
    hidden, weight, bias, labels = rows(0)
    loss = linear_cross_entropy(hidden, weight, labels, bias=bias)
    assert loss.shape == (0,)
    for gradient in torch.autograd.grad(loss.sum(), (hidden, weight, bias)):
        assert not gradient.any()


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_wanted_gradients_are_computed(wanted: int) -> None:
    inputs = rows()
    labels = inputs.pop()
    whole = torch.autograd.grad(
        linear_cross_entropy(inputs[0], inputs[1], labels, bias=inputs[2]).sum(), inputs
    )
    alone = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(inputs)]
    linear_cross_entropy(alone[0], alone[1], labels, bias=alone[2]).sum().backward()
    for i, x in enumerate(alone):
        assert (x.grad is None) == (i != wanted)
    torch.testing.assert_close(alone[wanted].grad, whole[wanted])


def test_half_precision_sums_chunks_in_float32() -> None:
    # Every row pushes each class's weight by +-1/2; in bfloat16 a sum of 1024 such steps, taken a
    # row at a time, would stay at 128, whose next number is 129.
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(1024, dtype=torch.int64)
    loss = linear_cross_entropy(hidden, weight, labels, chunk=1)
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    assert gradient.tolist() == [[-512.0], [512.0]]


def test_logits_never_exist_as_a_whole(largest: Largest) -> None:
    hidden, weight, _, labels = rows(64, 2, 50)
    with largest:
        loss = linear_cross_entropy(hidden, weight, labels, chunk=4)
        torch.autograd.grad(loss.sum(), (hidden, weight))
    assert largest.nbytes == 4 * 50 * 8  # of 64 * 50 * 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.ones(2, 3, 4)}, ValueError, r"hidden has shape \(2, 3, 4\).*flatten"),
        ({"weight": torch.ones(5, 9)}, ValueError, r"weight \(5, 9\), expected \(N, D\)"),
        ({"weight": torch.ones(5, 4).double()}, TypeError, "weight torch.float64, expected one"),
        ({"labels": torch.zeros(3)}, TypeError, "labels are torch.float32, expected int64"),
        ({"labels": torch.tensor([0, -100, 1])}, ValueError, r"labels\[1\] is -100.*mask"),
        ({"labels": torch.tensor([0, 1, 5])}, ValueError, r"labels\[2\] is 5, expected 0 to 4"),
        ({"labels": torch.zeros(2).long()}, ValueError, r"labels has shape \(2,\)"),
        ({"mask": torch.ones(3)}, TypeError, "mask is torch.float32, expected bool"),
        ({"mask": torch.ones(4).bool()}, ValueError, r"mask has shape \(4,\)"),
        ({"bias": torch.ones(4)}, ValueError, r"bias has shape \(4,\), expected \(V,\) = \(5,\)"),
        ({"bias": torch.ones(5).half()}, TypeError, "bias is torch.float16, but hidden"),
        ({"chunk": 0}, ValueError, "chunk is 0, expected at least 1"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    given = {
        "hidden": torch.ones(3, 4),
        "weight": torch.ones(5, 4),
        "labels": torch.tensor([0, 1, 2]),
    }
    with pytest.raises(error, match=message):
        linear_cross_entropy(**{**given, **change})


def test_without_a_device_nothing_of_triton_is_loaded_and_nothing_is_said() -> None:
    code = """
import sys, torch
from generative.attention.kernels.cross_entropy import linear_cross_entropy
x = torch.ones(2, 3, requires_grad=True)
linear_cross_entropy(x, torch.ones(4, 3), torch.tensor([0, 1])).sum().backward()
assert not any(name.split(".")[0] == "triton" for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
