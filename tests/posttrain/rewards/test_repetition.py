from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards import RepetitionPenalty, Sample
from posttrain.rewards.repetition import repeated_share


def sample(tokens: tuple[int, ...] = (), completion: str = "") -> Sample:
    return Sample(prompt="", completion=completion, answer="", tokens=tokens)


def test_repeated_bigrams_of_hand_worked_tokens() -> None:
    # 1 2 1 2 1: bigrams 12 21 12 21: half of them stood before
    samples = [
        sample((1, 2, 1, 2, 1)),
        sample((1, 2, 3)),
        sample((5,) * 11),
        sample((1,)),
        sample(),
    ]
    rewards = RepetitionPenalty(2)(samples)
    torch.testing.assert_close(rewards, torch.tensor([-0.5, 0, -0.9, 0, 0]))
    assert RepetitionPenalty()([]).shape == (0,)


def test_words_are_taken_where_there_are_no_tokens() -> None:
    rewards = RepetitionPenalty(1)([sample(completion="so so so good")])
    assert rewards.tolist() == [-0.5]


@given(units=st.lists(st.integers(0, 3), max_size=20), n=st.integers(1, 4))
def test_share_counts_what_stood_before(units: list[int], n: int) -> None:
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
    expected = repeated / len(grams) if grams else 0.0
    assert repeated_share(units, n) == pytest.approx(expected)


def test_n_gram_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n=0"):
        RepetitionPenalty(0)
