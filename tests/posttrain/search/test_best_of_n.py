from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from posttrain.search.best_of_n import Best, ByStep, best_of_n, last, minimum, product


def draw(prompt: str, count: int, seed: int) -> list[str]:
    draws = random.Random(f"{prompt}/{seed}")
    return [prompt + str(draws.randrange(100)) for _ in range(count)]


def size(texts: Sequence[str]) -> list[float]:
    return [float(text.removeprefix("x")) for text in texts]


def test_best_is_the_largest_score_and_of_equals_the_first() -> None:
    found = best_of_n("x", lambda *_: ["x3", "x9", "x9", "x1"], size, n=4, seed=0)
    assert found == Best(1, ("x3", "x9", "x9", "x1"), (3.0, 9.0, 9.0, 1.0))
    assert (found.completion, found.score) == ("x9", 9.0)


def test_more_samples_of_one_seed_are_never_worse() -> None:
    scores = [best_of_n("x", draw, size, n=n, seed=7).score for n in range(1, 30)]
    assert scores == sorted(scores)
    assert best_of_n("x", draw, size, n=5, seed=7) == best_of_n("x", draw, size, n=5, seed=7)


@pytest.mark.parametrize(
    ("reduce", "index", "score"), [(last, 1, 0.75), (minimum, 0, 0.5), (product, 2, 0.375)]
)
def test_each_reduction_prefers_another_completion(
    reduce: Callable[[Sequence[float]], float], index: int, score: float
) -> None:
    # last .5 .75 .5; minimum .5 .25 .375; product .25 .1875 .375
    steps = {"a": [0.5, 0.5], "b": [0.25, 0.75], "c": [0.375]}
    if reduce is last:
        steps["c"] = [1.0, 0.5]

    def prm(texts: Sequence[str]) -> list[list[float]]:
        return [steps[text] for text in texts]

    found = best_of_n("", lambda *_: "abc", ByStep(prm, reduce), n=3, seed=0)
    assert (found.index, found.score) == (index, score)


def test_product_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match=r"step 1 has the score 1.5.*sigmoid"):
        product([0.5, 1.5])


@pytest.mark.parametrize("reduce", [last, minimum, product])
def test_completion_without_steps_is_refused(reduce: Callable[[Sequence[float]], float]) -> None:
    with pytest.raises(ValueError, match="no step scores"):
        reduce([])


@pytest.mark.parametrize(
    ("n", "score", "message"),
    [
        (0, size, "n=0"),
        (3, size, "gave 2 completions, expected n=3"),
        (2, lambda _: [1.0], "1 scores for 2"),
        (2, lambda _: [1.0, float("nan")], "score 1 is nan"),
    ],
)
def test_broken_samplers_and_scorers_are_refused(
    n: int, score: Callable[[Sequence[str]], list[float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        best_of_n("", lambda *_: ["x1", "x2"], score, n=n, seed=0)
