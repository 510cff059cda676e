"""Sequences and their answers: by hand, held out by content, drawn by their own key."""

import pytest
import torch

from generative.sequence_tasks import (
    BEGIN,
    END,
    Sequences,
    copied,
    in_reverse,
    is_held_out,
    parse_answer,
    sorted_up,
)
from launch.errors import UsageError

SHORT = Sequences(symbols=10, shortest=2, longest=4)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_batch_by_hand() -> None:
    batch = SHORT.batch([[5, 2, 4], [3, 2, 3, 2]], sorted_up)
    assert batch.source.tolist() == [[5, 2, 4, END], [3, 2, 3, 2]]
    assert batch.source_mask.tolist() == [[True, True, True, False], [True] * 4]
    assert batch.target.tolist() == [[BEGIN, 2, 4, 5, END], [BEGIN, 2, 2, 3, 3]]
    assert batch.labels.tolist() == [[2, 4, 5, END, END], [2, 2, 3, 3, END]]
    assert batch.mask.tolist() == [[True, True, True, True, False], [True] * 5]


def test_what_is_drawn_for_training_is_never_held_out() -> None:
    trained = [SHORT.draw(generator(i), held_out=False) for i in range(500)]
    held_out = [SHORT.draw(generator(i), held_out=True) for i in range(500)]
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, held_out))
    for drawn in (trained, held_out):
        assert {len(sequence) for sequence in drawn} == {2, 3, 4}
        assert {token for sequence in drawn for token in sequence} == set(range(2, 12))


def test_answers_are_parsed() -> None:
    assert [parse_answer(name) for name in ("sort", "copy", "reverse")] == [
        sorted_up,
        copied,
        in_reverse,
    ]
    with pytest.raises(UsageError, match="shuffle: expected sort, copy, reverse"):
        parse_answer("shuffle")


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="symbols=1: give 2 to 254"):
        Sequences(symbols=1)
    with pytest.raises(ValueError, match="shortest=5, longest=4"):
        Sequences(shortest=5, longest=4)
    with pytest.raises(ValueError, match="fewer than 1,000"):
        Sequences(symbols=2, shortest=1, longest=9)
