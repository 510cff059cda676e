import math
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.eval.pass_at_k import avg_at_k, maj_at_k, pass_at_k


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample() -> None:
    for n in range(1, 8):
        for k in range(1, n + 1):
            counts = torch.arange(n + 1)
            passed = pass_at_k(torch.full_like(counts, n), counts, k)
            expected = []
            for c in range(n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                expected.append(float(Fraction(sum(map(any, subsets)), len(subsets))))
            assert passed.dtype == torch.float64
            assert passed.tolist() == expected


def test_pass_at_k_of_hand_worked_rows() -> None:
    # 1 - C(6,2)/C(10,2) = 1 - 15/45;  1 - C(3,2)/C(5,2) = 1 - 3/10;  one sample: c/n.
    passed = pass_at_k(torch.tensor([10, 5]), torch.tensor([4, 2]), 2)
    assert passed.tolist() == [30 / 45, 7 / 10]
    assert pass_at_k(torch.tensor([3, 10]), torch.tensor([1, 3]), 1).tolist() == [1 / 3, 0.3]


@given(
    n=st.integers(1, 10**6),
    share=st.fractions(0, 1),
    k=st.integers(1, 300),
)
def test_pass_at_k_is_the_nearest_float(n: int, share: Fraction, k: int) -> None:
    k, c = min(k, n), int(share * min(n, 2000))
    exact = Fraction(math.comb(n, k) - math.comb(n - c, k), math.comb(n, k))
    passed = pass_at_k(torch.tensor([n]), torch.tensor([c]), k).item()
    assert passed == float(exact)
    assert (passed == 0) == (c == 0)
    assert (n - c < k) <= (passed == 1)


def test_pass_at_k_keeps_the_smallest_probabilities() -> None:
    n = torch.tensor([10**15, 2**62])
    assert pass_at_k(n, torch.tensor([1, 1]), 1).tolist() == [1e-15, 2.0**-62]


def test_pass_at_k_takes_any_integer_type_and_no_rows() -> None:
    n, c = torch.tensor([4, 200], dtype=torch.uint8), torch.tensor([1, 199], dtype=torch.int16)
    assert pass_at_k(n, c, 2).tolist() == [0.5, 1.0]
    empty = pass_at_k(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 3)
    assert empty.shape == (0,)
    assert empty.dtype == torch.float64


@pytest.mark.parametrize(
    ("n", "c", "k", "error", "match"),
    [
        ([4, 4], [1, 5], 2, ValueError, "row 1 has c=5 correct of n=4"),
        ([4, 4, 4], [1, 2, -1], 2, ValueError, "row 2 has c=-1"),
        ([4, 1], [1, 1], 2, ValueError, r"row 1 has n=1 samples, fewer than k=2"),
        ([4], [1], 0, ValueError, "k=0"),
        ([4], [1], -3, ValueError, "k=-3"),
        ([4], [1], 2.0, TypeError, "k is a float"),
        ([4], [1], True, TypeError, "k is a bool"),
        ([4.0], [1], 2, TypeError, r"n has dtype torch\.float32"),
        ([4], [1.0], 2, TypeError, r"c has dtype torch\.float32"),
        ([4], [True], 2, TypeError, r"c has dtype torch\.bool"),
        ([4, 4], [1], 2, ValueError, r"n has shape \(2,\) and c \(1,\)"),
        ([[4]], [[1]], 2, ValueError, r"expected \(N,\)"),
    ],
)
def test_pass_at_k_names_what_is_wrong(
    n: list[int], c: list[int], k: int, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        pass_at_k(torch.tensor(n), torch.tensor(c), k)


def test_pass_at_k_wants_tensors() -> None:
    with pytest.raises(TypeError, match="n is a list"):
        pass_at_k([4], torch.tensor([1]), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "gold", "k", "right"),
    [
        (["7", "8", "8"], "8", 3, 1.0),
        (["7", "8", "8"], "8", 2, 0.0),  # the third is not among the first two; 7 was seen first
        (["7", "8"], "7", 2, 1.0),  # a tie goes to the cluster seen first
        (["8", "7"], "7", 2, 0.0),
        (["1", "2", "2", "1"], "1", 4, 1.0),
        (["2", "1", "1", "2", "1"], "1", 5, 1.0),
        (["7", "0.5", "1/2", "7", "5e-1"], "0.50", 5, 1.0),  # equal by value, not by text
        (["1,000", "1000", "3", "3"], "1e3", 4, 1.0),
        ([None, None, "4"], "4", 3, 1.0),  # None does not vote
        ([None, "4", "4"], "4", 1, 0.0),  # but it counts among the first k
        ([None, None], "4", 2, 0.0),
        ([], "4", 2, 0.0),
        (["4"], "4", 8, 1.0),
        (["", "", "4"], "4", 3, 0.0),
        (["none", "None", "none"], "none", 3, 1.0),
        (["\\frac{1}{2}", "0.5", "3"], "1/2", 3, 1.0),
    ],
)
def test_maj_at_k_of_hand_worked_votes(
    answers: list[str | None], gold: str, k: int, right: float
) -> None:
    voted = maj_at_k([answers], [gold], k)
    assert voted.dtype == torch.float64
    assert voted.tolist() == [right]


def test_maj_at_k_judges_each_question_by_itself() -> None:
    rows = [["1", "2", "2"], ["2", "1", "1"], [None, None, None], ["5", "4", "3"]]
    assert maj_at_k(rows, ["2", "2", "2", "5"], 3).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert maj_at_k([], [], 3).shape == (0,)


@given(
    rows=st.lists(st.lists(st.sampled_from(["1", "2", "3", "2.0", None]), max_size=6), max_size=5),
    k=st.integers(1, 6),
)
def test_maj_at_k_follows_a_plain_count(rows: list[list[str | None]], k: int) -> None:
    expected = []
    for row in rows:
        values = [float(answer) for answer in row[:k] if answer is not None]
        most = max((values.count(v) for v in values), default=0)
        winner = next((v for v in values if values.count(v) == most), None)
        expected.append(float(winner == 2.0))
    assert maj_at_k(rows, ["2"] * len(rows), k).tolist() == expected


def test_maj_at_k_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="2 questions and 1 gold"):
        maj_at_k([["1"], ["2"]], ["1"], 1)
    with pytest.raises(ValueError, match="k=0"):
        maj_at_k([["1"]], ["1"], 0)
    with pytest.raises(TypeError, match=r"answers\[0\] is a text"):
        maj_at_k(["12"], ["1"], 1)
    with pytest.raises(TypeError, match=r"answers\[1\] holds a int"):
        maj_at_k([["1"], [2]], ["1", "2"], 1)  # type: ignore[list-item]


def test_avg_at_k_of_hand_worked_samples() -> None:
    correct = torch.tensor([[True, False, True, True], [False, False, False, True]])
    assert avg_at_k(correct, 2).tolist() == [0.5, 0.0]
    assert avg_at_k(correct, 4).tolist() == [0.75, 0.25]
    # Over all samples it is pass@1.
    counts = torch.tensor([3, 1])
    assert torch.equal(avg_at_k(correct, 4), pass_at_k(torch.tensor([4, 4]), counts, 1))


@pytest.mark.parametrize(
    ("correct", "k", "error", "message"),
    [
        (torch.ones(2, 3, dtype=torch.bool), 4, ValueError, "k=4, but 3 samples"),
        (torch.ones(2, 3, dtype=torch.bool), 0, ValueError, "k=0"),
        (torch.ones(2, 3, dtype=torch.bool), True, TypeError, "k is a bool"),
        (torch.ones(3, dtype=torch.bool), 1, ValueError, r"expected \(N, S\)"),
        (torch.ones(2, 3), 1, TypeError, "truth values"),
    ],
)
def test_avg_at_k_refuses_what_it_cannot_average(
    correct: torch.Tensor, k: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        avg_at_k(correct, k)
