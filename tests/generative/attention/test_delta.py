"""The gated delta rule: chunked and recurrent forms equal the plain loop, and their laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from generative.attention import naive
from generative.attention.delta import gated_delta_rule_chunked, gated_delta_rule_recurrent

Form = Callable[..., tuple[Tensor, Tensor]]
FORMS: list[Form] = [gated_delta_rule_chunked, gated_delta_rule_recurrent]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


def case(length: int, seed: int, dtype: torch.dtype, key_heads: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = {
        "q": torch.randn(2, 2, length, 4, generator=g),
        "k": F.normalize(torch.randn(2, key_heads, length, 4, generator=g), dim=-1),
        "v": torch.randn(2, key_heads, length, 3, generator=g),
        "beta": torch.rand(2, 2, length, generator=g),
        "log_decay": -2 * torch.rand(2, 2, length, generator=g),
    }
    return {name: x.to(dtype) for name, x in made.items()}


@given(
    length=st.integers(1, 12),
    chunk=st.integers(1, 13),
    decays=st.booleans(),
    key_heads=st.sampled_from((1, 2)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_forms_equal_the_plain_loop_in_outputs_and_gradients(
    length: int, chunk: int, decays: bool, key_heads: int, seed: int
) -> None:
    for dtype, close in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        found = []
        forms: list[tuple[Callable[..., Any], dict[str, int]]] = [
            (naive.gated_delta_rule, {}),
            (gated_delta_rule_recurrent, {}),
            (gated_delta_rule_chunked, {"chunk": chunk}),
        ]
        for form, rest in forms:
            tensors = case(length, seed, dtype, key_heads)
            given = {name: x.requires_grad_() for name, x in tensors.items()}
            if not decays:
                del given["log_decay"]
            out = form(**given, **rest)
            out = out if isinstance(out, Tensor) else out[0]
            found.append([out.detach(), *torch.autograd.grad(out.sin().sum(), given.values())])
        for others in found[1:]:
            for one, other in zip(others, found[0], strict=True):
                torch.testing.assert_close(one, other, rtol=close, atol=close)


def test_an_association_is_overwritten_not_added_to() -> None:
    # Keys of a basis: v_0 at e_0, v_1 at e_1, then v_2 at e_0 with beta 1. Read e_0: v_2 alone.
    k = torch.eye(2)[[0, 1, 0]][None, None]
    v = torch.tensor([[[[1.0], [2.0], [4.0]]]])
    q = torch.eye(2)[[0, 0, 0]][None, None]
    for form in FORMS:
        out, memory = form(q, k, v, beta=torch.ones(1, 1, 3))
        assert out.flatten().tolist() == [1.0, 1.0, 4.0]
        assert memory.flatten().tolist() == [4.0, 2.0]


@every_form
def test_a_change_leaves_earlier_outputs_the_same_bits(form: Form) -> None:
    before = form(**case(150, 0, torch.float32))[0]
    for i in (0, 1, 70, 149):
        changed, other = case(150, 0, torch.float32), case(150, 1, torch.float32)
        for name, x in changed.items():
            x[:, :, i:] = other[name][:, :, i:]
        after = form(**changed)[0]
        assert torch.equal(after[:, :, :i], before[:, :, :i])
        assert not torch.equal(after[:, :, i], before[:, :, i])


@given(cut=st.integers(1, 19), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_state_continues_to_what_the_whole_gives(cut: int, seed: int) -> None:
    whole = case(20, seed, torch.float64)
    expected = naive.gated_delta_rule(**whole)
    for first, then in (FORMS, FORMS[::-1]):
        out, state = first(**{name: x[:, :, :cut] for name, x in whole.items()})
        rest, _ = then(**{name: x[:, :, cut:] for name, x in whole.items()}, state=state)
        torch.testing.assert_close(torch.cat((out, rest), 2), expected, rtol=1e-10, atol=1e-10)


@every_form
def test_strong_decay_costs_no_precision(form: Form) -> None:
    given = case(128, 0, torch.float64)
    # Half of the tokens forget nearly all, the others nearly nothing.
    forgets = torch.arange(128) % 2 == 0
    given["log_decay"] = torch.where(forgets, torch.tensor(-80.0), given["log_decay"])
    exact = naive.gated_delta_rule(**given)
    out, _ = form(**{name: x.float() for name, x in given.items()})
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)


@every_form
def test_a_token_of_beta_zero_is_left_out(form: Form) -> None:
    whole = case(9, 0, torch.float64)
    keep = torch.tensor([0, 1, 3, 4, 7, 8])
    part, _ = form(**{name: x[:, :, keep] for name, x in whole.items()})
    for name in ("beta", "log_decay"):
        whole[name][:, :, [2, 5, 6]] = 0.0
    found, _ = form(**whole)
    torch.testing.assert_close(found[:, :, keep], part, rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """Counts the numbers of the largest tensor that is produced."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.itemsize)
        return out


@every_form
def test_no_matrix_of_all_tokens_is_made(form: Form) -> None:
    given = {name: x.requires_grad_() for name, x in case(512, 0, torch.float32).items()}
    with Largest() as largest:
        form(**given)[0].sum().backward()
    assert largest.numbers <= 4 * 64 * 512  # one matrix of all tokens is 512 * 512


@every_form
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"beta": torch.ones(2, 2)}, r"beta has shape \(2, 2\), expected \(2, 2, 5\)"),
        ({"log_decay": torch.ones(2, 2, 4)}, "log_decay has shape"),
        ({"state": torch.ones(2, 2, 3, 4)}, r"state has shape .*, expected \(2, 2, 4, 3\)"),
        ({"q": torch.ones(2, 2, 4, 4)}, "causal=True with T_q=4"),
    ],
)
def test_bad_input_is_named(form: Form, change: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        form(**{**case(5, 0, torch.float32), **change})
