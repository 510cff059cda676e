import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.trainers.token_advantages import token_advantages, token_rewards, whitened

# Two rows: a prompt, three tokens, padding; and a prompt, a token, a tool's, a token.
MASK = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 0, 1, 0]]).bool()
NAN = torch.nan


def test_the_score_is_paid_at_the_last_counted_token() -> None:
    rewards = token_rewards(torch.tensor([1.0, -2.0]), MASK)
    assert rewards.tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, -2, 0]]


def test_penalties_are_paid_at_their_tokens_and_junk_elsewhere_is_not() -> None:
    penalties = torch.tensor([[NAN, 0.5, 0.25, -0.5, NAN], [NAN, 1.0, NAN, 0.0, NAN]])
    rewards = token_rewards(torch.tensor([1.0, -2.0]), MASK, penalties)
    assert rewards.tolist() == [[0, -0.5, -0.25, 1.5, 0], [0, -1.0, 0, -2, 0]]


def test_a_row_without_counted_tokens_is_paid_nothing() -> None:
    rewards = token_rewards(torch.tensor([3.0, 3.0]), torch.zeros_like(MASK))
    assert rewards.tolist() == torch.zeros(2, 5).tolist()


def test_advantages_of_hand_worked_rows() -> None:
    # gamma = lambda = 1/2, values .5, .25, .75 and 1, 2; rewards 1 and -2 at the end
    # row 0: A_3 = 1 - .75 = .25;  A_2 = .5 * .75 - .25 + .25 * .25 = .1875
    #        A_1 = .5 * .25 - .5 + .25 * .1875 = -.328125
    # row 1: A_3 = -2 - 2 = -4;  A_1 = .5 * 2 - 1 + .25 * -4 = -1: the tool's token is passed over
    values = torch.tensor([[NAN, 0.5, 0.25, 0.75, NAN], [NAN, 1.0, NAN, 2.0, NAN]])
    rewards = token_rewards(torch.tensor([1.0, -2.0]), MASK)
    advantages = token_advantages(rewards, values, MASK, discount=0.5, trace=0.5)
    expected = [[0, -0.328125, 0.1875, 0.25, 0], [0, -1.0, 0, -4.0, 0]]
    assert advantages.tolist() == expected


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 8, generator=g) < 0.6
    rewards, values = torch.randn(2, 4, 8, generator=g, dtype=torch.float64)
    return rewards, values, mask


@given(seed=st.integers(0, 2**16))
def test_undiscounted_full_traces_give_rewards_to_go_less_the_value(seed: int) -> None:
    rewards, values, mask = drawn(seed)
    to_go = torch.where(mask, rewards, 0.0).flip(-1).cumsum(-1).flip(-1)
    found = token_advantages(rewards, values, mask, discount=1.0, trace=1.0)
    torch.testing.assert_close(found, torch.where(mask, to_go - values, 0.0))


@given(seed=st.integers(0, 2**16), columns=st.integers(0, 3))
def test_padding_and_order_of_rows_change_nothing(seed: int, columns: int) -> None:
    rewards, values, mask = drawn(seed)
    found = token_advantages(rewards, values, mask, discount=0.9, trace=0.8)
    order = torch.tensor([2, 0, 3, 1])
    other = token_advantages(rewards[order], values[order], mask[order], discount=0.9, trace=0.8)
    torch.testing.assert_close(other, found[order], rtol=0, atol=0)
    wide = [torch.nn.functional.pad(x, (columns, 2), value=NAN) for x in (rewards, values)]
    padded = torch.nn.functional.pad(mask, (columns, 2))
    other = token_advantages(wide[0], wide[1], padded, discount=0.9, trace=0.8)
    torch.testing.assert_close(other[:, columns:-2], found, rtol=0, atol=0)


def test_whitening_is_over_the_tokens_of_all_processes() -> None:
    # tokens 0, 2 here and 4, 4, 0 there: mean 2, deviation sqrt((4 + 0 + 4 + 4 + 4) / 5)
    mine = torch.tensor([[NAN, 0.0, 2.0]])
    mask = torch.tensor([[False, True, True]])
    others = {torch.float32: torch.tensor([4.0, 4.0, 0.0]), torch.int64: torch.tensor([3])}
    for rank in (0, 1):

        def gather(x: Tensor, rank: int = rank) -> Tensor:
            other = others[x.dtype]
            return torch.cat([x, other] if rank == 0 else [other, x])

        found = whitened(mine, mask, gather=gather, rank=rank)
        deviation = (16 / 5) ** 0.5
        assert found.tolist() == [[0.0, pytest.approx(-2 / deviation), 0.0]]


def test_equal_advantages_are_whitened_to_0() -> None:
    assert whitened(torch.full((2, 5), 0.1), MASK).tolist() == torch.zeros(2, 5).tolist()
