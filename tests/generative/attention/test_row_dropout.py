"""Dropout by rows: the same for a row in any company, and of the right size."""

import torch

from generative.attention.row_dropout import RowDropout, number_places

SEEDS = torch.tensor([5, 6, 7])


def test_a_row_drops_the_same_in_any_company() -> None:
    dropout, x = RowDropout(0.5), torch.ones(3, 4, 6)
    whole = dropout(x, SEEDS)
    assert torch.equal(whole, dropout(x, SEEDS))
    order = torch.tensor([2, 0])
    assert torch.equal(dropout(x[order], SEEDS[order]), whole[order])
    assert not torch.equal(whole[0], whole[1])
    assert dropout(x[:0], SEEDS[:0]).shape == (0, 4, 6)


def test_uses_within_a_model_differ() -> None:
    both = torch.nn.ModuleList([RowDropout(0.5), RowDropout(0.5)])
    number_places(both)
    x = torch.ones(3, 4, 6)
    assert not torch.equal(both[0](x, SEEDS), both[1](x, SEEDS))


def test_keeps_its_share_and_the_mean() -> None:
    x = torch.ones(2, 100, 100)
    out = RowDropout(0.2)(x, SEEDS[:2])
    assert set(out.unique().tolist()) == {0.0, 1.25}  # 1 / (1 - 0.2)
    dropped = (out == 0).double().mean().item()
    assert abs(dropped - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5
    assert torch.equal(RowDropout(0.2).eval()(x, SEEDS[:2]), x)
    assert torch.equal(RowDropout(0.0)(x, SEEDS[:2]), x)
