"""Gated attention units and FLASH: equal to whole matrices, and their laws."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from generative.attention import naive
from generative.attention.gau import FLASH, GAU, flash_mixing, squared_relu_attention
from generative.attention.positions import NoPositions, Positions, Rotary

MIXED = ("quad_q", "quad_k", "lin_q", "lin_k", "v")


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def mixing_cases(draw: st.DrawFn) -> dict[str, Any]:
    rows, length = draw(st.integers(1, 2)), draw(st.integers(1, 13))
    size, inner = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    attend = torch.rand(draw(st.sampled_from((1, rows))), 1, 1, length, generator=g) < 0.7
    made: dict[str, Any] = {
        name: torch.randn(
            rows, length, inner if name == "v" else size, generator=g, dtype=torch.float64
        )
        for name in MIXED
    }
    return {
        **made,
        "chunk": draw(st.integers(1, 14)),
        "causal": draw(st.booleans()),
        "attend": draw(st.sampled_from((None, attend))),
        "quad_scale": 0.7,
        "lin_scale": draw(st.sampled_from((0.3, 0.0))),
    }


@given(case=mixing_cases())
@settings(max_examples=100, deadline=None)
def test_mixing_chunk_by_chunk_equals_the_whole_matrix(case: dict[str, Any]) -> None:
    found = []
    for dtype, close in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        for form in (naive.mixed_chunk_attention, flash_mixing):
            inputs = [case[name].to(dtype).requires_grad_() for name in MIXED]
            rest = {name: x for name, x in case.items() if name not in MIXED}
            out = form(*inputs, **rest)
            weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
            gradients = torch.autograd.grad(out, inputs, weights, allow_unused=True)
            zeros = [torch.zeros_like(x) for x in inputs]
            found.append(
                [
                    out.detach(),
                    *(z if g is None else g for g, z in zip(gradients, zeros, strict=True)),
                ]
            )
        for one, other in zip(*found[-2:], strict=True):
            scale = max(1.0, float(other.abs().max()))
            torch.testing.assert_close(one / scale, other / scale, rtol=close, atol=close)


@given(
    groups=st.integers(1, 3),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    kept=st.tuples(*[st.booleans()] * 4),
    causal=st.booleans(),
    scale=st.sampled_from((None, 0.3, -1.0)),
)
@settings(max_examples=60, deadline=None)
def test_squared_relu_attention_equals_the_naive_one(
    groups: int, queries: int, keys: int, kept: tuple[bool, ...], causal: bool, scale: float | None
) -> None:
    keys = queries if causal else keys
    full = (2, 2 * groups, queries, keys)
    sizes = [size if keep else 1 for size, keep in zip(full, kept, strict=True)]
    attend = draws(*sizes, seed=7) > -0.5
    for dtype, close in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        both = []
        for form in (naive.squared_relu_attention, squared_relu_attention):
            inputs = [
                draws(2, 2 * groups, queries, 3, seed=1).to(dtype).requires_grad_(),
                draws(2, 2, keys, 3, seed=2).to(dtype).requires_grad_(),
                draws(2, 2, keys, 2, seed=3).to(dtype).requires_grad_(),
            ]
            out = form(*inputs, attend=attend, causal=causal, scale=scale)
            both.append([out.detach(), *torch.autograd.grad(out.square().sum(), inputs)])
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other, rtol=10 * close, atol=close)


def test_squared_relu_attention_of_an_example_worked_by_hand() -> None:
    # q . k = 2 -1 3, times 1/2, relu, squared: 1, 0, 9/4;  v = 1, 5, 4: sum 1 + 9
    q = torch.tensor([1.0]).view(1, 1, 1, 1)
    k = torch.tensor([2.0, -1.0, 3.0]).view(1, 1, 3, 1)
    v = torch.tensor([1.0, 5.0, 4.0]).view(1, 1, 3, 1)
    assert squared_relu_attention(q, k, v, scale=0.5).item() == 10.0


def test_mixing_of_an_example_worked_by_hand() -> None:
    # Chunks {0, 1} and {2}; scales 1; quad 1, lin_q = 2, lin_k = 1, 10, 100, v = 1, 2, 4.
    # Causal: v_0 = 1; 1 + 2 = 3; 4 + 2 (1 * 1 + 10 * 2) = 46.
    # Else 3 + 842, 3 + 842, 4 + 842, as the sum over all is 1 + 20 + 400, times 2.
    ones = torch.ones(1, 3, 1)
    lin_k = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1)
    v = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1)
    rest = {"chunk": 2, "quad_scale": 1.0, "lin_scale": 1.0}
    causal = flash_mixing(ones, ones, 2 * ones, lin_k, v, causal=True, **rest)
    assert causal.flatten().tolist() == [1.0, 3.0, 46.0]
    both = flash_mixing(ones, ones, 2 * ones, lin_k, v, **rest)
    assert both.flatten().tolist() == [845.0, 845.0, 846.0]


def unit(kind: type[GAU] | type[FLASH], positions: Positions, dtype: torch.dtype) -> GAU | FLASH:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = (
            GAU(6, 2, 4, positions=positions)
            if kind is GAU
            else FLASH(6, 2, 4, chunk=5, positions=positions)
        )
        nn.init.normal_(made.scales)
        nn.init.normal_(made.offsets)
    return made.to(dtype)


every_kind = pytest.mark.parametrize("kind", [GAU, FLASH])
every_positions = pytest.mark.parametrize(
    "positions", [NoPositions(), Rotary()], ids=["no", "turn"]
)


@every_kind
def test_a_unit_is_its_projections_around_the_naive_mixing(kind: type[GAU] | type[FLASH]) -> None:
    model, x = unit(kind, NoPositions(), torch.float64), draws(2, 12, 6, dtype=torch.float64)
    u, v, z = nn.functional.silu(x @ model.input.weight.t()).split((12, 12, 4), -1)
    for causal in (False, True):
        if isinstance(model, GAU):
            mixed = naive.gated_attention_unit(
                u, v, z, model.scales, model.offsets, scale=0.5, causal=causal
            )
        else:
            uses = [z * a + b for a, b in zip(model.scales, model.offsets, strict=True)]
            mixed = u * naive.mixed_chunk_attention(
                *uses, v, chunk=5, causal=causal, quad_scale=0.5, lin_scale=0.1
            )
        expected = mixed @ model.output.weight.t()
        torch.testing.assert_close(model(x, causal=causal), expected, rtol=1e-10, atol=1e-10)


@every_kind
@every_positions
@given(cuts=st.lists(st.integers(1, 16), max_size=4, unique=True))
@settings(max_examples=15, deadline=None)
def test_any_split_of_the_tokens_extends_to_the_parallel_pass(
    kind: type[GAU] | type[FLASH], positions: Positions, cuts: list[int]
) -> None:
    model, x = unit(kind, positions, torch.float64), draws(2, 17, 6, dtype=torch.float64)
    bounds = [0, *sorted(cuts), 17]
    with torch.no_grad():
        state: Any = model.new_state(2, 17)
        parts = [
            model.extend(part, state)
            for part in x.split([b - a for a, b in itertools.pairwise(bounds)], 1)
        ]
        assert state.length == 17
        torch.testing.assert_close(
            torch.cat(parts, 1), model(x, causal=True), rtol=1e-10, atol=1e-10
        )


@every_kind
@every_positions
def test_a_change_leaves_earlier_outputs_the_same_bits(
    kind: type[GAU] | type[FLASH], positions: Positions
) -> None:
    model, x = unit(kind, positions, torch.float32), draws(2, 17, 6)
    before = model(x, causal=True)
    for i in (0, 1, 7, 16):
        changed = x.clone()
        changed[:, i:] = 3 * draws(2, 17 - i, 6, seed=5)
        after = model(changed, causal=True)
        assert torch.equal(after[:, :i], before[:, :i])
        assert not torch.equal(after[:, i], before[:, i])


@every_kind
@every_positions
def test_outputs_do_not_depend_on_how_many_tokens_follow(
    kind: type[GAU] | type[FLASH], positions: Positions
) -> None:
    model, x = unit(kind, positions, torch.float64), draws(2, 17, 6, dtype=torch.float64)
    whole = model(x, causal=True)
    for length in (1, 5, 12):
        part = model(x[:, :length], causal=True)
        torch.testing.assert_close(part, whole[:, :length], rtol=1e-12, atol=1e-12)


def test_gau_without_positions_lets_tokens_change_places() -> None:
    model, x = unit(GAU, NoPositions(), torch.float64), draws(2, 9, 6, dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order], rtol=1e-12, atol=1e-12)
    turned = unit(GAU, Rotary(), torch.float64)
    assert (turned(x[:, order]) - turned(x)[:, order]).abs().max() > 1e-3


@every_kind
@pytest.mark.parametrize("causal", [False, True])
def test_padding_never_matters_and_nothing_to_look_at_gives_zero(
    kind: type[GAU] | type[FLASH], causal: bool
) -> None:
    model, x = unit(kind, NoPositions(), torch.float32), draws(2, 12, 6)
    attend = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    attend[0, ..., 9:] = False
    attend[1] = False
    before = model(x, causal=causal, attend=attend)
    changed = x.clone()
    changed[0, 9:] = torch.nan
    after = model(changed, causal=causal, attend=attend)
    assert torch.equal(after[0, :9], before[0, :9])
    alone = model(x[:1, :9], causal=causal)
    torch.testing.assert_close(before[:1, :9], alone, rtol=1e-5, atol=1e-6)
    assert torch.equal(before[1], torch.zeros(12, 6))
    whole = before[1].sum()
    for gradient in torch.autograd.grad(whole, list(model.parameters())):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@every_kind
def test_states_repeat_and_select_rows(kind: type[GAU] | type[FLASH]) -> None:
    model, x = unit(kind, Rotary(), torch.float64), draws(2, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        state: Any = model.new_state(2, 9)
        model.extend(x[:, :7], state)
        state.repeat(2)  # rows 0 0 1 1
        state.select(torch.tensor([3, 0, 1]))
        rows = torch.tensor([1, 0, 0])
        found = model.extend(x[rows, 7:], state)
        expected = model(x, causal=True)[rows, 7:]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_state_of_flash_is_of_constant_size_and_that_of_gau_overflows_by_name() -> None:
    model = unit(FLASH, Rotary(), torch.float32)
    with torch.no_grad():
        state: Any = model.new_state(1, 0)
        size = state.nbytes
        for token in draws(1, 2000, 6).split(1, 1):
            model.extend(token, state)
        assert state.nbytes == size == 4 * (4 * 12 + 2 * 5 * 4 + 5 * 12)
        small: Any = unit(GAU, Rotary(), torch.float32)
        state = small.new_state(1, 3)
        small.extend(draws(1, 3, 6), state)
        with pytest.raises(ValueError, match="columns=3, but 1 tokens after 3 make 4"):
            small.extend(draws(1, 1, 6), state)
        with pytest.raises(ValueError, match="x has 2 rows, but state 1"):
            model.extend(draws(2, 1, 6), model.new_state(1, 3))


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


def test_flash_makes_no_matrix_of_all_tokens() -> None:
    length, model = 1000, unit(FLASH, Rotary(), torch.float32)
    x = draws(1, length, 6).requires_grad_()
    for causal in (False, True):
        with Largest() as largest:
            model(x, causal=causal).sum().backward()
        assert largest.numbers <= 32 * length  # length * length is 1000 * length
    with Largest() as largest:
        unit(GAU, Rotary(), torch.float32)(x)
    assert largest.numbers >= length * length


@pytest.mark.parametrize("kind", [GAU, FLASH])
def test_no_token_is_refused_by_name(kind: type[GAU] | type[FLASH]) -> None:
    unit, none = kind(6), torch.zeros(2, 0, 6)
    with pytest.raises(ValueError, match="x has T=0"):
        unit(none)
    with pytest.raises(ValueError, match="x has T=0"):
        unit.extend(none, unit.new_state(2, 4))
    with pytest.raises(ValueError, match="v has T=0"):
        flash_mixing(none, none, none, none, none, chunk=2)


def test_bad_input_is_named() -> None:
    x = draws(2, 6, 6)
    with pytest.raises(ValueError, match=r"x has shape \(2, 6, 5\), expected .* D=6"):
        GAU(6)(x[..., :5])
    with pytest.raises(TypeError, match=r"attend is torch\.float32, expected bool"):
        GAU(6)(x, attend=torch.zeros(6, 6))
    with pytest.raises(ValueError, match=r"attend .* mask of keys"):
        FLASH(6)(x, attend=torch.ones(6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="chunk=0"):
        FLASH(6, chunk=0)
    with pytest.raises(ValueError, match="key_size=0"):
        GAU(6, key_size=0)
    with pytest.raises(ValueError, match=r"expansion=1\.5, expected a whole number"):
        GAU(6, expansion=1.5)
    with pytest.raises(ValueError, match="lin_k has shape"):
        flash_mixing(x, x, x, x[:, :3], x, chunk=2)
    with pytest.raises(ValueError, match="causal=True with T_q=2"):
        squared_relu_attention(x[:, None, :2], x[:, None], x[:, None], causal=True)
