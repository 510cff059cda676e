"""Whether one of k samples is right, and whether their majority is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.rewards.answer import compare_answers
from posttrain.rewards.judge import Verdict

__all__ = ["avg_at_k", "maj_at_k", "pass_at_k"]


def pass_at_k(n: Tensor, c: Tensor, k: int) -> Tensor:
    r"""Unbiased pass@k (Chen et al. 2021, arXiv:2107.03374, eq. 1).

        pass@k = 1 - C(n - c, k) / C(n, k)

    the probability that k of the n samples, drawn without replacement, hold a correct one. It is
    worked out in integers, so each value is the float64 that is nearest to the true one.

    Args:
        n: ``(N,)`` integers, samples drawn for each question.
        c: ``(N,)`` integers, how many of them are correct.
        k: How many a user would draw, 1 <= k <= n.

    Returns:
        ``(N,)`` float64, on the device of ``n``.

    Raises:
        TypeError: ``n`` or ``c`` is no integer tensor, or ``k`` no integer.
        ValueError: Shapes differ, or a row has c < 0, c > n or k > n (names the row).

    >>> pass_at_k(torch.tensor([4, 4, 4]), torch.tensor([0, 1, 3]), 2)
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    _check_integers(n, c, k)
    values: dict[tuple[int, int], float] = {}
    rows = list(zip(n.tolist(), c.tolist(), strict=True))
    for row, (drawn, correct) in enumerate(rows):
        if (drawn, correct) not in values:
            _check_row(row, drawn, correct, k)
            values[drawn, correct] = _pass_at_k(drawn, correct, k)
    return torch.tensor([values[pair] for pair in rows], dtype=torch.float64, device=n.device)


def avg_at_k(correct: Tensor, k: int) -> Tensor:
    """Mean accuracy of the first k samples; an estimate of pass@1.

        avg@k = (1 / k) sum_{i <= k} correct_i

    DeepSeek-R1 reports it as pass@1 from k samples, beside cons@k, which is ``maj_at_k`` (Guo et
    al. 2025, arXiv:2501.12948, the equation of section 3).

    Args:
        correct: ``(N, S)`` bool, whether each of S samples of N questions is correct.
        k: How many samples count, 1 <= k <= S.

    Returns:
        ``(N,)`` float64, on the device of ``correct``.

    >>> avg_at_k(torch.tensor([[True, False, True, True]]), 3)
    tensor([0.6667], dtype=torch.float64)
    """
    if not isinstance(correct, Tensor) or correct.dtype != torch.bool:
        raise TypeError("correct: expected an (N, S) tensor of truth values")
    if correct.dim() != 2:
        raise ValueError(f"correct has shape {tuple(correct.shape)}: expected (N, S)")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k is a {type(k).__name__}: expected an int")
    drawn = correct.shape[1]
    if not 1 <= k <= drawn:
        raise ValueError(
            f"k={k}, but {drawn} samples were drawn for each question: give 1 <= k <= {drawn}"
        )
    return correct[:, :k].double().mean(dim=1)


def _pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), which is symmetric in c and k: the smaller is the loop."""
    few, many = min(c, k), max(c, k)
    total = math.perm(n, few)
    return (total - math.perm(n - many, few)) / total  # int / int rounds once, correctly


def _check_integers(n: Tensor, c: Tensor, k: int) -> None:
    for name, value in (("n", n), ("c", c)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}: expected an (N,) integer tensor")
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} has dtype {value.dtype}: samples are counted in integers")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k is a {type(k).__name__}: expected an int")
    if n.dim() != 1 or n.shape != c.shape:
        raise ValueError(
            f"n has shape {tuple(n.shape)} and c {tuple(c.shape)}: expected (N,) for both, one "
            "number for each question"
        )
    if k < 1:
        raise ValueError(f"k={k}: pass@k needs at least one sample")


def _check_row(row: int, n: int, c: int, k: int) -> None:
    if not 0 <= c <= n:
        raise ValueError(f"row {row} has c={c} correct of n={n} samples: expected 0 <= c <= n")
    if k > n:
        raise ValueError(
            f"row {row} has n={n} samples, fewer than k={k}: pass@{k} cannot be known from them; "
            "draw more samples or lower k"
        )


def maj_at_k(answers: Sequence[Sequence[str | None]], gold: Sequence[str], k: int) -> Tensor:
    """Whether the majority of the first k answers is right (Wang et al. 2022, arXiv:2203.11171).

    Answers that the verifier holds for equal are one cluster: each joins the first cluster whose
    first member it equals. The largest cluster wins, of equally large ones the one seen first, and
    its first member is compared with the gold answer.

    Args:
        answers: For each question the extracted answers, in order; None where there was none. A
            question with fewer than k is judged on those.
        gold: N gold answers.
        k: How many answers vote.

    Returns:
        ``(N,)`` float64 of zeros and ones; 0 where no answer is left.

    >>> maj_at_k([["7", "0.5", "1/2"], ["3", "4", None]], ["1/2", "3"], 3)
    tensor([1., 1.], dtype=torch.float64)
    """
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k is a {type(k).__name__}: expected an int")
    if k < 1:
        raise ValueError(f"k={k}: a majority needs at least one answer")
    if len(answers) != len(gold):
        raise ValueError(
            f"got answers to {len(answers)} questions and {len(gold)} gold answers: expected "
            "one gold answer for each question"
        )
    votes = [_votes(row, given, k) for row, given in enumerate(answers)]
    elected = {row: head for row, head in enumerate(_elect(votes)) if head is not None}
    verdicts = compare_answers([(head, gold[row]) for row, head in elected.items()])
    right = torch.zeros(len(gold), dtype=torch.float64)
    for row, verdict in zip(elected, verdicts, strict=True):
        right[row] = verdict is Verdict.EQUAL
    return right


def _votes(row: int, given: Sequence[str | None], k: int) -> dict[str, int]:
    """Count equal texts among the first k answers, in order of first appearance."""
    if isinstance(given, str):
        raise TypeError(f"answers[{row}] is a text: expected a sequence of answers")
    counts: dict[str, int] = {}
    for answer in given[:k]:
        if answer is None:
            continue
        if not isinstance(answer, str):
            raise TypeError(
                f"answers[{row}] holds a {type(answer).__name__}: expected texts, or None"
            )
        counts[answer] = counts.get(answer, 0) + 1
    return counts


def _elect(votes: Sequence[dict[str, int]]) -> list[str | None]:
    """Return the first member of each question's winning cluster; None without votes.

    Each round opens the next cluster of every question at once, because many comparisons side by
    side cost the verifier little more than one.
    """
    left = [dict(counts) for counts in votes]
    best: list[tuple[int, str | None]] = [(0, None)] * len(votes)
    while any(left):
        heads = [next(iter(counts), None) for counts in left]
        places = [
            (row, answer)
            for row, (head, counts) in enumerate(zip(heads, left, strict=True))
            for answer in counts
            if answer != head
        ]
        verdicts = compare_answers([(answer, str(heads[row])) for row, answer in places])
        sizes = [
            0 if head is None else counts.pop(head)
            for head, counts in zip(heads, left, strict=True)
        ]
        for (row, answer), verdict in zip(places, verdicts, strict=True):
            if verdict is Verdict.EQUAL:
                sizes[row] += left[row].pop(answer)
        for row, (size, head) in enumerate(zip(sizes, heads, strict=True)):
            if size > best[row][0]:
                best[row] = (size, head)
    return [head for _, head in best]
