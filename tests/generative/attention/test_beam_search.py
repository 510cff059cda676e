"""Beam search: the true best by enumeration, greedy with one beam, GNMT's length penalty."""

from itertools import product

import pytest
import torch
from torch import Tensor

from generative.attention.beam_search import beam_search, greedy_search, length_penalty

END, VOCABULARY, LONGEST = 2, 3, 4


class Tables:
    """A state of a made-up language: the logits after each prefix are random, but fixed."""

    def __init__(self, rows: int, seed: int) -> None:
        self.of_row = torch.arange(rows)
        self.prefixes: list[list[int]] = [[] for _ in range(rows)]
        self.seed = seed

    @property
    def length(self) -> int:
        return len(self.prefixes[0])

    @property
    def nbytes(self) -> int:
        return 0

    def repeat(self, count: int) -> None:
        self.select(torch.arange(len(self.prefixes)).repeat_interleave(count))

    def select(self, rows: Tensor) -> None:
        self.of_row = self.of_row[rows]
        self.prefixes = [list(self.prefixes[r]) for r in rows.tolist()]

    def extend(self, tokens: Tensor) -> Tensor:
        for prefix, token in zip(self.prefixes, tokens[:, 0].tolist(), strict=True):
            prefix.append(token)
        rows = zip(self.of_row.tolist(), self.prefixes, strict=True)
        return torch.stack([logits(self.seed, row, prefix[1:]) for row, prefix in rows])[:, None]


def logits(seed: int, row: int, prefix: list[int]) -> Tensor:
    key = seed * 1_000_003 + row * 1_009
    for token in prefix:
        key = key * 7 + token + 1
    return 2 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(key))


def enumerated(seed: int, row: int, alpha: float) -> list[tuple[float, list[int]]]:
    """All sequences with their scores, best first."""
    found = {}
    for tokens in product(range(VOCABULARY), repeat=LONGEST):
        sequence = list(tokens)
        if END in sequence:
            sequence = sequence[: sequence.index(END) + 1]
        log_prob = sum(
            torch.log_softmax(logits(seed, row, sequence[:t]), -1)[token].item()
            for t, token in enumerate(sequence)
        )
        found[tuple(sequence)] = log_prob / ((5 + len(sequence)) / 6) ** alpha
    return sorted(((score, list(s)) for s, score in found.items()), reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_with_all_beams_the_true_order_is_found(seed: int, alpha: float) -> None:
    state = Tables(2, seed)
    first = torch.zeros(2, dtype=torch.int64)
    found = beam_search(
        state,
        state.extend,
        first,
        end=END,
        max_tokens=LONGEST,
        beams=VOCABULARY**LONGEST,
        alpha=alpha,
    )
    for row in range(2):
        true = enumerated(seed, row, alpha)
        for place, (score, sequence) in enumerate(true):
            length = int(found.lengths[row, place])
            assert found.tokens[row, place, :length].tolist() == sequence
            assert found.scores[row, place].item() == pytest.approx(score, abs=1e-5)
        assert found.log_probs[row, len(true) :].isneginf().all()


@pytest.mark.parametrize("seed", range(5))
def test_greedy_and_one_beam_take_the_likeliest_token(seed: int) -> None:
    first = torch.zeros(3, dtype=torch.int64)
    state, again = Tables(3, seed), Tables(3, seed)
    greedy = greedy_search(state, state.extend, first, end=END, max_tokens=LONGEST)
    one = beam_search(again, again.extend, first, end=END, max_tokens=LONGEST, beams=1, alpha=0.6)
    for row in range(3):
        sequence: list[int] = []
        while len(sequence) < LONGEST and END not in sequence:
            sequence.append(int(logits(seed, row, sequence).argmax()))
        for found in (greedy, one):
            assert int(found.lengths[row, 0]) == len(sequence)
            assert found.tokens[row, 0, : len(sequence)].tolist() == sequence
        assert torch.equal(greedy.log_probs, one.log_probs)


def test_more_beams_find_what_greedy_misses() -> None:
    first = torch.zeros(1, dtype=torch.int64)
    best, greedy = [], []
    for seed in range(20):
        state, again = Tables(1, seed), Tables(1, seed)
        options = {"end": END, "max_tokens": LONGEST}
        best.append(beam_search(state, state.extend, first, beams=3, alpha=0.0, **options).scores)
        greedy.append(greedy_search(again, again.extend, first, **options).scores)
    gains = [(b[0, 0] - g[0, 0]).item() for b, g in zip(best, greedy, strict=True)]
    assert max(gains) > 0.1


def test_length_penalty_by_hand() -> None:
    # ((5 + 13) / 6)^2 = 9; a sequence of one token is not changed.
    assert length_penalty(torch.tensor([1, 13]), 2.0).tolist() == [1.0, 9.0]


def test_bad_input_is_named() -> None:
    state, first = Tables(1, 0), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="beams=0: give at least 1"):
        beam_search(state, state.extend, first, end=END, max_tokens=2, beams=0)
    with pytest.raises(ValueError, match="end=3: the model's tokens go from 0 to 2"):
        beam_search(state, state.extend, first, end=3, max_tokens=2)
