from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from generative.attention.checks import (
    allowed,
    check_heads,
    check_key_mask,
    checked,
    checked_scale,
    head_size,
    repeat_heads,
)
from generative.attention.flash import flash_attention
from generative.attention.naive import softmax_attention
from generative.attention.softmax import attention

Q = torch.zeros(2, 4, 5, 8)
KV = torch.zeros(2, 2, 6, 8)
FORMS: list[Callable[..., Tensor]] = [softmax_attention, attention]

WRONG: list[tuple[type[Exception], str, dict[str, object]]] = [
    (ValueError, "q has shape (4, 5, 8), expected (B, H, T_q, K)", {"q": Q[0]}),
    (ValueError, "q has B=2, but k has B=1: shapes (2, 4, 5, 8) and", {"k": KV[:1]}),
    (ValueError, "but v has B=1", {"v": KV[:1]}),
    (ValueError, "but k has K=7", {"k": KV[..., :7]}),
    (ValueError, "but v has T_k=5", {"v": KV[:, :, :5]}),
    (ValueError, "but v has H_kv=1", {"v": KV[:, :1]}),
    (ValueError, "q has H=3 heads, which the H_kv=2", {"q": Q[:, :3]}),
    (ValueError, "k has T_k=0", {"k": KV[:, :, :0], "v": KV[:, :, :0]}),
    (TypeError, "k is torch.float64, but q is torch.float32", {"k": KV.double()}),
    (TypeError, "q is torch.int64, expected a floating dtype", {"q": Q.long()}),
    (TypeError, "an additive mask goes to bias", {"attend": torch.zeros(5, 6)}),
    (TypeError, "attend is torch.int64", {"attend": torch.zeros(5, 6).long()}),
    (ValueError, "attend has shape (1, 1, 6, 5)", {"attend": torch.ones(6, 5).bool()}),
    (ValueError, "attend has shape (1, 1, 2, 6)", {"attend": torch.ones(2, 6).bool()}),
    (ValueError, "attend has shape (1, 1, 1, 5, 6)", {"attend": torch.ones(1, 1, 1, 5, 6).bool()}),
    (ValueError, "causal=True with T_q=5 queries and T_k=6 keys", {"causal": True}),
    (ValueError, "scale is nan", {"scale": float("nan")}),
]
WRONG_BIAS: list[tuple[type[Exception], str, dict[str, object]]] = [
    (TypeError, "bias is torch.bool, expected a floating", {"bias": torch.ones(5, 6).bool()}),
    (ValueError, "bias has shape (1, 3, 5, 6)", {"bias": torch.ones(3, 5, 6)}),
]


CASES = [(form, *case) for form in FORMS for case in WRONG + WRONG_BIAS]
CASES += [(flash_attention, *case) for case in WRONG]


@pytest.mark.parametrize(("form", "error", "message", "changes"), CASES)
def test_what_does_not_fit_is_named(
    form: Callable[..., Tensor], error: type[Exception], message: str, changes: dict[str, Tensor]
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        form(**({"q": Q, "k": KV, "v": KV} | changes))


def test_a_key_mask_has_no_axis_of_queries() -> None:
    keys = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    assert torch.equal(check_key_mask(keys, Q, KV), keys)
    with pytest.raises(ValueError, match="linear attention sums over keys once"):
        check_key_mask(torch.ones(5, 6, dtype=torch.bool), Q, KV)


def test_heads_share_the_features_and_groups_are_equal() -> None:
    check_heads(8, 2)
    assert head_size(64, 4) == 16
    with pytest.raises(ValueError, match="key_heads=0: give at least 1"):
        check_heads(8, 0)
    with pytest.raises(ValueError, match="key_heads must divide heads"):
        check_heads(8, 3)
    with pytest.raises(ValueError, match=r"heads=3 with width=64: .* heads must divide width"):
        head_size(64, 3)


def test_the_scale_is_that_of_the_paper_unless_given() -> None:
    assert checked_scale(None, torch.zeros(1, 1, 1, 16)) == 0.25
    assert checked_scale(2, Q) == 2.0


def test_causal_and_attend_both_hold() -> None:
    attend = torch.tensor([True, False, True])[None, None, None]
    x = torch.zeros(1, 1, 3, 1)
    both = allowed(attend, True, x, x)
    assert both is not None
    assert both[0, 0].int().tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert allowed(attend, False, x, x) is attend
    assert allowed(None, False, x, x) is None


def test_a_key_head_serves_the_query_heads_next_to_each_other() -> None:
    x = torch.arange(2.0).view(1, 2, 1, 1)
    assert repeat_heads(x, 6).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert repeat_heads(x, 2) is x


def test_only_what_no_query_of_any_head_sees_is_replaced() -> None:
    # Two key heads of one query head each; of three keys the first is seen by query 0 of head 0,
    # the second by query 1 of head 1, the third by none.
    attend = torch.zeros(1, 2, 2, 3, dtype=torch.bool)
    attend[0, 0, 0, 0] = attend[0, 1, 1, 1] = True
    q, x = torch.zeros(1, 2, 2, 1), torch.full((1, 2, 3, 1), torch.nan)
    _, k, v, _ = checked(q, x, x + 1, attend=attend, causal=False)
    assert k.isnan().int().flatten().tolist() == [1, 0, 0, 0, 1, 0]
    assert torch.equal(k.isnan(), v.isnan())
    # One key head that both share sees the union.
    _, k, _, _ = checked(q, x[:, :1], x[:, :1], attend=attend, causal=False)
    assert k.isnan().flatten().tolist() == [True, True, False]


@pytest.mark.parametrize("shape", [(3, 3), (1, 3), (3, 1), (2, 1, 3, 3), (2, 4, 1, 3), (1, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_only_queries_that_may_look_nowhere_are_replaced(
    shape: tuple[int, ...], causal: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.ones(2, 4, 3, 1)
    for _ in range(20):
        attend = torch.rand(shape, generator=g) < 0.4
        q, _, _, _ = checked(x, x, x, attend=attend, causal=causal)
        past = torch.ones(3, 3, dtype=torch.bool).tril() if causal else torch.tensor(True)
        assert torch.equal(q[..., 0] == 1, (attend & past).any(-1).expand(2, 4, 3))
