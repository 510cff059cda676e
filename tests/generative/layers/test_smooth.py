from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from generative.layers.smooth import smooth_accuracy, smooth_f1, soft_argmax

COLD = 1e-9


def some(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def logits_of(*rows: list[float]) -> Tensor:
    """Return logits whose softmax at temperature 1 is ``rows``."""
    return torch.tensor(rows, dtype=torch.float64).log()


# --- worked by hand -----------------------------------------------------------------------------


def test_soft_argmax_worked_by_hand() -> None:
    logits = logits_of([0.5, 0.25, 0.25], [0.1, 0.2, 0.7])
    found = soft_argmax(logits, temperature=1.0)  # .25 + 2 * .25;  .2 + 2 * .7
    expected = torch.tensor([0.75, 1.6], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    # At temperature 1/2 probabilities are squared: .25, .0625, .0625, over .375.
    found = soft_argmax(logits[0], temperature=0.5)
    torch.testing.assert_close(found, torch.tensor(0.5, dtype=torch.float64), rtol=0, atol=1e-15)


def test_smooth_accuracy_worked_by_hand() -> None:
    logits = logits_of([0.5, 0.25, 0.25], [0.1, 0.2, 0.7])
    labels = torch.tensor([1, 2])
    found = smooth_accuracy(logits, labels, temperature=1.0)  # (.25 + .7) / 2
    torch.testing.assert_close(found, torch.tensor(0.475, dtype=torch.float64), rtol=0, atol=1e-15)


def test_smooth_f1_worked_by_hand() -> None:
    logits = logits_of([0.75, 0.25, 0], [0.5, 0.5, 0], [0.25, 0.75, 0])
    labels = torch.tensor([0, 1, 1])
    # class 0: tp = .75, predicted in all 1.5, present 1: F1 = 1.5 / 2.5 = .6
    # class 1: tp = 1.25, predicted 1.5, present 2: F1 = 2.5 / 3.5; class 2: left out
    expected = torch.tensor((0.6 + 2.5 / 3.5) / 2, dtype=torch.float64)
    found = smooth_f1(logits, labels, temperature=1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_smooth_f1_counts_an_absent_class_from_the_decision_on() -> None:
    labels = torch.tensor([0, 0])
    # Class 0: tp = 1.2 resp. .8 of 2 rows, F1 = 2.4 / 3.2 resp. 1.6 / 2.8. Class 1 is present in no
    # row. In the first logits no row decides for it, in the second one does: its F1 of 0 counts.
    for first, second, expected in ((0.6, 0.6, 0.75), (0.6, 0.2, 1.6 / 2.8 / 2)):
        logits = logits_of([first, 1 - first], [second, 1 - second])
        found = smooth_f1(logits, labels, temperature=1.0)
        wanted = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)


# --- the limit at temperature 0 -----------------------------------------------------------------


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 40), classes=st.integers(1, 8))
def test_limits_are_argmax_and_sklearns_metrics(seed: int, rows: int, classes: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=g, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=g)
    decided = logits.argmax(-1)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(soft_argmax(logits, temperature=COLD), decided.double(), **close)
    for metric, expected in (
        (smooth_accuracy, accuracy_score(labels, decided)),
        (smooth_f1, f1_score(labels, decided, average="macro")),
    ):
        found = metric(logits, labels, temperature=COLD)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **close)


def test_metrics_tend_to_their_limit() -> None:
    logits, labels = some(50, 4), torch.arange(50) % 4
    limit = float(f1_score(labels, logits.argmax(-1), average="macro"))
    # The two largest logits of each row differ by .004 or more, from which on p is a decision.
    gaps = [
        abs(float(smooth_f1(logits, labels, temperature=t)) - limit)
        for t in (0.03, 0.01, 0.003, 0.001, 0.0001)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.02 > 1e-3 > gaps[-2] > gaps[-1]
    assert gaps[-1] < 1e-12


def test_ties_share_the_decision() -> None:
    logits = torch.tensor([[7.0, 0.0, 7.0, 0.0]], dtype=torch.float64)
    assert soft_argmax(logits, temperature=COLD).tolist() == [1.0]
    assert smooth_accuracy(logits, torch.tensor([2]), temperature=COLD) == 0.5
    # The first of a tie is predicted, so class 0 counts beside class 2 of tp 1/2: (0 + 2/3) / 2.
    found = smooth_f1(logits, torch.tensor([2]), temperature=COLD)
    torch.testing.assert_close(found, torch.tensor(1 / 3, dtype=torch.float64), rtol=0, atol=1e-15)


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_gradients_are_those_of_differences(temperature: float) -> None:
    logits, labels = some(6, 4).requires_grad_(), torch.tensor([0, 1, 1, 2, 2, 2])

    def argmax(x: Tensor) -> Tensor:
        return soft_argmax(x, temperature=temperature)

    def accuracy(x: Tensor) -> Tensor:
        return smooth_accuracy(x, labels, temperature=temperature)

    def f1(x: Tensor) -> Tensor:
        return smooth_f1(x, labels, temperature=temperature)

    for function in (argmax, accuracy, f1):
        assert torch.autograd.gradcheck(function, (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1.0, 1e6])
def test_values_and_gradients_are_finite(dtype: torch.dtype, temperature: float) -> None:
    largest = torch.finfo(dtype).max / 4
    rows = [[largest, -largest, 0.0], [1.0, -math.inf, 2.0], [0.0, 1e-3, -1e-3]]
    labels = torch.tensor([1, 1, 0])
    for metric in (
        lambda x: soft_argmax(x, temperature=temperature).sum(),
        lambda x: smooth_accuracy(x, labels, temperature=temperature),
        lambda x: smooth_f1(x, labels, temperature=temperature),
    ):
        logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
        value = metric(logits)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_a_step_up_the_gradient_raises_each_metric() -> None:
    logits, labels = some(30, 3).requires_grad_(), torch.arange(30) % 3
    for metric in (smooth_accuracy, smooth_f1):
        before = metric(logits, labels, temperature=1.0)
        (gradient,) = torch.autograd.grad(before, logits)
        after = metric(logits + gradient, labels, temperature=1.0)
        assert after > before + 0.5 * gradient.square().sum()


# --- laws ---------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16))
def test_order_of_rows_and_names_of_classes_do_not_matter(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, 5, generator=g, dtype=torch.float64)
    labels = torch.randint(5, (12,), generator=g)
    rows, names = torch.randperm(12, generator=g), torch.randperm(5, generator=g)
    for metric in (smooth_accuracy, smooth_f1):
        whole = metric(logits, labels, temperature=0.7)
        other = metric(logits[rows] + 3, labels[rows], temperature=0.7)
        torch.testing.assert_close(other, whole)
        other = metric(logits[:, names], names.argsort()[labels], temperature=0.7)
        torch.testing.assert_close(other, whole)
        folded = metric(logits.view(3, 4, 5), labels.view(3, 4).int(), temperature=0.7)
        torch.testing.assert_close(folded, whole)


def test_half_precision_is_computed_in_float32() -> None:
    # float16 has no odd integer above 2048; the index of the largest of 4,000 logits is one.
    logits = torch.zeros(4000, dtype=torch.float16)
    logits[3001] = 100.0
    found = soft_argmax(logits, temperature=0.5)
    assert found.dtype == torch.float32
    assert found == 3001
    for metric in (smooth_accuracy, smooth_f1):
        assert metric(logits[None], torch.tensor([3001]), temperature=0.5) == 1.0


# --- bad input ----------------------------------------------------------------------------------

Metric = Callable[..., Tensor]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, 1e-40])
def test_temperature_is_above_0(temperature: float) -> None:
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"temperature=.*argmax"):
        soft_argmax(logits, temperature=temperature)
    for metric in (smooth_accuracy, smooth_f1):
        with pytest.raises(ValueError, match="temperature="):
            metric(logits, labels, temperature=temperature)


@pytest.mark.parametrize("metric", [smooth_accuracy, smooth_f1])
@pytest.mark.parametrize(
    ("logits", "labels", "error", "said"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, "labels go from 0 to 3, expected 0"),
        (torch.zeros(2, 3), torch.tensor([-100, 1]), ValueError, r"labels go from -100 .*mask"),
        (torch.zeros(2, 3), torch.tensor([0]), ValueError, r"labels has shape \(1,\)"),
        (torch.zeros(2, 3), torch.tensor([[0], [1]]), ValueError, r"labels has shape \(2, 1\)"),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "labels are torch.float32"),
        (torch.zeros(2, 3), torch.tensor([True, False]), TypeError, "labels are torch.bool"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), ValueError, "labels is empty"),
        (torch.zeros(2, 0), torch.tensor([0, 0]), ValueError, r"logits has shape \(2, 0\)"),
        (torch.zeros(2, 3).long(), torch.tensor([0, 0]), TypeError, "logits are torch.int64"),
    ],
)
def test_bad_input_names_the_argument(
    metric: Metric, logits: Tensor, labels: Tensor, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        metric(logits, labels, temperature=1.0)


def test_soft_argmax_needs_an_axis_of_classes_but_no_row() -> None:
    assert soft_argmax(torch.zeros(0, 3), temperature=1.0).shape == (0,)
    with pytest.raises(ValueError, match=r"logits has shape \(\)"):
        soft_argmax(torch.tensor(1.0), temperature=1.0)
