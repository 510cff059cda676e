from __future__ import annotations

import pytest
import torch

from generative.attention.relative_bias import RelativeBias, relative_buckets


def test_buckets_worked_by_hand() -> None:
    # 8 buckets, causal, farthest 16: 0 to 3 alone, then 4 + floor(ln(d/4) / ln 4 * 4):
    # d = 4, 5: 4; 6, 7: 5 (4 * ln 1.5 / ln 4 = 1.17); 8 to 11: 6; 12 to 15: 7 (3.17); beyond: 7.
    distances = -torch.arange(18)
    found = relative_buckets(distances, buckets=8, farthest=16, causal=True)
    assert found.tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7]
    assert relative_buckets(-distances, buckets=8, farthest=16, causal=True).eq(0).all()
    # Both directions: each has 4 buckets, 0 and 1 alone, then 2 + floor(ln(d/2) / ln 8 * 2).
    found = relative_buckets(distances[:8], buckets=8, farthest=16)
    assert found.tolist() == [0, 1, 2, 2, 2, 2, 3, 3]
    assert relative_buckets(-distances[1:8], buckets=8, farthest=16).tolist() == [
        *(5, 6, 6, 6, 6, 7, 7)
    ]


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_are_those_of_transformers(causal: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(distances, bidirectional=not causal)
    assert torch.equal(relative_buckets(distances, causal=causal), expected)


def test_each_head_reads_its_own_numbers() -> None:
    bias = RelativeBias(2, buckets=8, farthest=16, causal=True)
    with torch.no_grad():
        bias.weight.copy_(torch.arange(8)[:, None] * torch.tensor([1.0, 10.0]))
    assert bias(torch.tensor([2]), torch.arange(3)).tolist() == [[[2, 1, 0]], [[20, 10, 0]]]
    bias(torch.arange(3), torch.arange(3)).sum().backward()
    # Of nine pairs three are equal and three look ahead (bucket 0), two are 1 apart, one 2.
    assert bias.weight.grad is not None
    assert bias.weight.grad[:, 0].tolist() == [6, 2, 1, 0, 0, 0, 0, 0]


def test_a_new_bias_changes_nothing() -> None:
    assert RelativeBias(3)(torch.arange(4), torch.arange(5)).eq(0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buckets": 2}, "buckets=2"),
        ({"buckets": 30}, "multiple of 4 unless causal"),
        ({"farthest": 8}, "farthest=8 with 8 buckets"),
    ],
)
def test_what_leaves_no_buckets_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelativeBias(2, **settings)
