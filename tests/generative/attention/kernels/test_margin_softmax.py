from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from generative.attention.kernels.margin_softmax import (
    angular_margin_softmax,
    cosine_margin_softmax,
    margin_softmax,
)
from generative.attention.kernels.margins import Margin


def rows(n: int = 9, d: int = 4, v: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, d, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(v, d, generator=g, dtype=torch.float64).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,), generator=g)


def naive(
    hidden: Tensor, weight: Tensor, labels: Tensor, scale: float, angle: float, cosine: float
) -> Tensor:
    """The paper's formula with an arc cosine, where theta + angle is at most pi."""
    cosines = torch.nn.functional.normalize(hidden) @ torch.nn.functional.normalize(weight).t()
    right = torch.nn.functional.one_hot(labels, len(weight)).bool()
    theta = cosines.clamp(-1 + 1e-12, 1 - 1e-12).arccos()
    bent = torch.where(theta + angle < math.pi, (theta + angle).cos(), 0.0)
    passed = cosines - angle * math.sin(angle)
    own = torch.where(theta + angle < math.pi, bent, passed) if angle else cosines
    logits = scale * torch.where(right, own - cosine, cosines)
    return logits.logsumexp(1) - logits[right]


@pytest.mark.parametrize(
    ("angle", "cosine"), [(0.0, 0.0), (0.0, 0.35), (0.5, 0.0), (0.3, 0.2), (2.5, 0.0)]
)
@pytest.mark.parametrize("chunk", [2, None])
def test_outputs_and_gradients_are_the_papers(
    angle: float, cosine: float, chunk: int | None
) -> None:
    hidden, weight, labels = rows()
    found = margin_softmax(
        hidden, weight, labels, scale=8.0, angle=angle, cosine=cosine, chunk=chunk
    )
    truth = naive(hidden, weight, labels, 8.0, angle, cosine)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 2, len(labels), dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((x * weights).sum(), (hidden, weight)) for x in (found, truth)
    )
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


def test_cosface_by_hand() -> None:
    # cos theta = 1 and 0. With s = 2, m = 1/4: logits 2 (1 - 1/4) = 3/2 and 0.
    hidden, weight = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.1, 0.0], [0.0, 9.0]])
    loss = cosine_margin_softmax(hidden, weight, torch.tensor([0]), scale=2.0, margin=0.25)
    torch.testing.assert_close(loss, torch.tensor([math.log1p(math.exp(-1.5))]))


def test_arcface_by_hand() -> None:
    # theta = pi/3 to the right class and pi/6 to the other. With s = 2, m = pi/6: logits
    # 2 cos(pi/2) = 0 and 2 cos(pi/6) = sqrt(3).
    hidden = torch.tensor([[0.5, math.sqrt(0.75)]])
    loss = angular_margin_softmax(
        hidden, torch.eye(2), torch.tensor([0]), scale=2.0, margin=math.pi / 6
    )
    torch.testing.assert_close(loss, torch.tensor([math.log1p(math.exp(math.sqrt(3)))]))


def test_the_right_logit_falls_with_the_angle_everywhere() -> None:
    theta = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    margin = Margin(scale=1.0, angle=0.5)
    own = margin.own(theta.cos())
    assert (own.diff() < 0).all()
    assert (margin.slope(theta.cos()[1:]) > 0).all()


def test_a_row_on_its_class_has_a_finite_gradient() -> None:
    # theta = 0: the derivative of cos(theta + m) in cos theta has no bound there.
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.eye(2, requires_grad=True)
    loss = angular_margin_softmax(hidden, weight, torch.tensor([0]))
    for gradient in torch.autograd.grad(loss.sum(), (hidden, weight)):
        assert gradient.isfinite().all()


def test_lengths_do_not_matter_and_zeros_are_finite() -> None:
    hidden, weight, labels = rows()
    longer = angular_margin_softmax(hidden * 7, weight * 0.01, labels)
    torch.testing.assert_close(longer, angular_margin_softmax(hidden, weight, labels))
    empty = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    loss = cosine_margin_softmax(empty, weight, labels[:1], scale=1.0, margin=0.0)
    torch.testing.assert_close(loss, torch.tensor([6.0], dtype=torch.float64).log())
    (gradient,) = torch.autograd.grad(loss.sum(), empty)
    assert gradient.isfinite().all()


def test_rows_that_do_not_count_may_hold_anything() -> None:
    hidden, weight, labels = rows()
    mask = torch.arange(len(labels)) % 2 == 0
    spoiled = torch.where(mask[:, None], hidden, torch.inf)
    loss = angular_margin_softmax(spoiled, weight, labels, mask=mask)
    assert not loss[~mask].any()
    gradient, of_weight = torch.autograd.grad(loss.sum(), (hidden, weight))
    assert not gradient[~mask].any()
    kept = angular_margin_softmax(hidden[mask], weight, labels[mask])
    torch.testing.assert_close(loss[mask], kept)
    torch.testing.assert_close(of_weight, torch.autograd.grad(kept.sum(), weight)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale is 0.0, expected a positive number"),
        ({"scale": math.inf}, "scale is inf"),
        ({"angle": math.pi}, "angle is 3.14.*radians from 0 to pi"),
        ({"angle": -0.1}, "angle is -0.1"),
        ({"cosine": -1.0}, "cosine is -1.0"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_bad_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        margin_softmax(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([0]), **change)
