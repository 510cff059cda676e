"""Linear attention: its forms compute what the whole matrix of weights does, and its laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from generative.attention import naive
from generative.attention.features import (
    FeatureMap,
    PositiveRandomFeatures,
    elu_plus_one,
    exp,
    relu,
)
from generative.attention.linear import (
    linear_attention,
    linear_attention_chunked,
    linear_attention_continued,
    linear_attention_parallel,
    linear_attention_recurrent,
)

WIDTH = 3
RANDOM = PositiveRandomFeatures(WIDTH, 5, generator=torch.Generator().manual_seed(0))
MAPS: dict[str, FeatureMap] = {
    "elu": elu_plus_one,
    "relu": relu,
    "exp": exp,
    "torch.exp": torch.exp,
    "random": RANDOM,
}
every_map = pytest.mark.parametrize("feature_map", MAPS.values(), ids=MAPS)


def parallel(q: Tensor, k: Tensor, v: Tensor, **rest: object) -> Tensor:
    return linear_attention_parallel(q, k, v, causal=True, **rest)


def chunked(q: Tensor, k: Tensor, v: Tensor, **rest: object) -> Tensor:
    return linear_attention_chunked(q, k, v, **{"chunk": 3, **rest})


def recurrent(q: Tensor, k: Tensor, v: Tensor, **rest: object) -> Tensor:
    return linear_attention_recurrent(q, k, v, **rest)[0]


CAUSAL: list[Callable[..., Tensor]] = [parallel, chunked, recurrent]
every_form = pytest.mark.parametrize("form", CAUSAL, ids=lambda form: form.__name__)


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def qkv(length: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [draws(2, 4, length, WIDTH, seed=seed + i, dtype=dtype) for i in range(3)]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments in float64: grouped heads, masks of keys, decay, chunks that do not divide."""
    rows, shared, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    keys, value_width = draw(st.integers(1, 11)), draw(st.integers(1, 4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    heads = shared * group
    full = (rows, heads, 1, keys)
    kept = [size if draw(st.booleans()) else 1 for size in full]
    attend = torch.rand(kept, generator=g) < 0.7
    decay = torch.rand(heads, generator=g, dtype=torch.float64) * 0.9 + 0.1
    return {
        "q": torch.randn(rows, heads, keys, WIDTH, generator=g, dtype=torch.float64),
        "k": torch.randn(rows, shared, keys, WIDTH, generator=g, dtype=torch.float64),
        "v": torch.randn(rows, shared, keys, value_width, generator=g, dtype=torch.float64),
        "feature_map": draw(st.sampled_from(list(MAPS.values()))),
        "normalize": draw(st.booleans()),
        "attend": draw(st.sampled_from((None, attend))),
        "decay": draw(st.sampled_from((None, decay))),
    }


def outputs_and_gradients(
    form: Callable[..., Tensor], case: dict[str, Any], dtype: torch.dtype, **rest: object
) -> list[Tensor]:
    inputs = [case[name].to(dtype).requires_grad_() for name in ("q", "k", "v")]
    names = ("feature_map", "normalize", "attend", "decay")
    out = form(*inputs, **{name: case[name] for name in names}, **rest)
    weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


def assert_alike(found: list[Tensor], expected: list[Tensor], close: float) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, other / scale, rtol=close, atol=close)


@given(case=cases(), chunk=st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_causal_forms_equal_the_naive_one_in_outputs_and_gradients(
    case: dict[str, Any], chunk: int
) -> None:
    expected = outputs_and_gradients(naive.linear_attention, case, torch.float64, causal=True)
    for form, rest in ((parallel, {}), (chunked, {"chunk": chunk}), (recurrent, {})):
        assert_alike(outputs_and_gradients(form, case, torch.float64, **rest), expected, 1e-10)


@given(case=cases(), queries=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_not_causal_equals_the_naive_one_for_any_number_of_queries(
    case: dict[str, Any], queries: int
) -> None:
    rows, heads = case["q"].shape[:2]
    case = {**case, "q": draws(rows, heads, queries, WIDTH, dtype=torch.float64), "decay": None}
    expected = outputs_and_gradients(naive.linear_attention, case, torch.float64)
    for form in (linear_attention, linear_attention_parallel):
        assert_alike(outputs_and_gradients(form, case, torch.float64), expected, 1e-10)


@every_map
def test_float32_stays_near_float64(feature_map: FeatureMap) -> None:
    case = dict(zip("qkv", qkv(40, dtype=torch.float64), strict=True))
    rest = {"feature_map": feature_map, "normalize": True, "attend": None, "decay": None}
    expected = outputs_and_gradients(
        naive.linear_attention, {**case, **rest}, torch.float64, causal=True
    )
    for form in CAUSAL:
        found = outputs_and_gradients(form, {**case, **rest}, torch.float32)
        assert_alike([x.double() for x in found], expected, 1e-5)
    expected = outputs_and_gradients(naive.linear_attention, {**case, **rest}, torch.float64)
    found = outputs_and_gradients(linear_attention, {**case, **rest}, torch.float32)
    assert_alike([x.double() for x in found], expected, 1e-5)


@pytest.mark.parametrize("length", [1, 64, 200])
def test_chunk_size_does_not_matter_at_a_length_of_several_blocks(length: int) -> None:
    q, k, v = (draws(1, 32, length, 16, seed=i, dtype=torch.float64) for i in range(3))
    whole = naive.linear_attention(q, k, v, feature_map=relu, causal=True)
    for chunk in (1, 7, 64, 500):
        found = linear_attention_chunked(q, k, v, feature_map=relu, chunk=chunk)
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)


@every_form
@every_map
@pytest.mark.parametrize("decay", [None, torch.tensor([0.9, 0.5, 1.0, 0.7])], ids=["1", "decay"])
def test_a_change_leaves_earlier_outputs_the_same_bits(
    form: Callable[..., Tensor], feature_map: FeatureMap, decay: Tensor | None
) -> None:
    q, k, v = qkv(50)
    rest = {"feature_map": feature_map, "decay": decay}
    before = form(q, k, v, **rest)
    for i in (0, 1, 17, 49):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, i:] = 5 * draws(2, 4, 50 - i, WIDTH, seed=9)
        after = form(*changed, **rest)
        assert torch.equal(after[:, :, :i], before[:, :, :i])
        assert not torch.equal(after[:, :, i], before[:, :, i])


@given(cuts=st.lists(st.integers(1, 19), max_size=4, unique=True), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_split_continues_to_what_the_whole_gives(cuts: list[int], seed: int) -> None:
    q, k, v = qkv(20, seed, torch.float64)
    decay = torch.tensor([0.9, 0.5, 1.0, 0.7])
    lengths = [b - a for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 20], strict=True)]
    for feature_map in (elu_plus_one, exp):
        whole = naive.linear_attention(q, k, v, feature_map=feature_map, causal=True, decay=decay)
        state, outputs = None, []
        for i, part in enumerate(zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)):
            form = (linear_attention_continued, linear_attention_recurrent)[i % 2]
            out, state = form(*part, feature_map=feature_map, state=state, decay=decay)
            outputs.append(out)
        torch.testing.assert_close(torch.cat(outputs, 2), whole, rtol=1e-10, atol=1e-10)


@every_form
@pytest.mark.parametrize("decay", [None, torch.tensor([0.9, 0.5, 1.0, 0.7])], ids=["1", "decay"])
def test_features_to_come_may_overflow(form: Callable[..., Tensor], decay: Tensor | None) -> None:
    q, k, v = qkv(9)
    clean = form(q, k, v, feature_map=torch.exp, decay=decay)
    k[:, :, 5:] = 100.0  # exp(100) is no float32
    out = form(q, k, v, feature_map=torch.exp, decay=decay)
    assert torch.equal(out[:, :, :5], clean[:, :, :5])


@every_form
@pytest.mark.parametrize("size", [200.0, 3e3])
def test_exponential_features_neither_overflow_nor_lose_the_result(
    form: Callable[..., Tensor], size: float
) -> None:
    # exp(200) is no float32. Two keys: weights exp(size) and exp(size + 1) for the same query.
    q = torch.zeros(1, 1, 2, 1)
    k = torch.tensor([size, size + 1.0]).view(1, 1, 2, 1)
    v = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1)
    expected = torch.tensor([1.0, 1.0 / (1.0 + torch.e)])
    for sign in (1.0, -1.0):  # far below 0, both would vanish
        out = form(q, k - (1 - sign) * size, v, feature_map=exp)
        torch.testing.assert_close(out.flatten(), expected, rtol=1e-6, atol=1e-6)
    both = linear_attention(q, k, v, feature_map=exp)
    torch.testing.assert_close(both.flatten(), expected[1:].expand(2), rtol=1e-6, atol=1e-6)


@every_form
@every_map
def test_rows_that_may_look_nowhere_are_zero_with_zero_gradients(
    form: Callable[..., Tensor], feature_map: FeatureMap
) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(6))
    attend = torch.tensor([False, False, False, True, True, True])
    out = form(q, k, v, feature_map=feature_map, attend=attend)
    assert torch.equal(out[:, :, :3], torch.zeros_like(out[:, :, :3]))
    gradients = torch.autograd.grad(out[:, :, :3].sum(), (q, k, v))
    assert all(torch.equal(x, torch.zeros_like(x)) for x in gradients)


@every_form
def test_a_query_without_features_is_answered_by_zero(form: Callable[..., Tensor]) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(4))
    out = form(-q.abs(), k, v, feature_map=relu)
    assert torch.equal(out, torch.zeros_like(out))
    for gradient in torch.autograd.grad(out.sum(), (q, k, v)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@every_form
@every_map
def test_what_stands_at_padding_never_matters(
    form: Callable[..., Tensor], feature_map: FeatureMap
) -> None:
    q, k, v = qkv(7)
    attend = torch.tensor([True, True, False, True, False, True, True])[None, None, None]
    before = form(q, k, v, feature_map=feature_map, attend=attend)
    k, v = (x.masked_fill(~attend.mT, torch.nan).requires_grad_() for x in (k, v))
    after = form(q, k, v, feature_map=feature_map, attend=attend)
    assert torch.equal(after, before)
    for gradient in torch.autograd.grad(after.sum(), (k, v)):
        assert torch.equal(gradient[:, :, [2, 4]], torch.zeros(2, 4, 2, WIDTH))


def test_tokens_without_positions_may_change_places() -> None:
    q, k, v = qkv(9, dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    out = linear_attention(q, k, v, feature_map=elu_plus_one)
    moved = linear_attention(*(x[:, :, order] for x in (q, k, v)), feature_map=elu_plus_one)
    torch.testing.assert_close(moved, out[:, :, order], rtol=1e-12, atol=1e-12)


def test_half_precision_is_summed_in_float32() -> None:
    q, k, v = (x.bfloat16() for x in qkv(300))
    exact = naive.linear_attention(
        *(x.double() for x in (q, k, v)), feature_map=elu_plus_one, causal=True
    )
    for form in CAUSAL:
        out = form(q, k, v, feature_map=elu_plus_one)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, exact.bfloat16()) or (out - exact).abs().max() < 2**-7


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


@pytest.mark.parametrize("feature_map", [elu_plus_one, exp])
def test_chunks_and_recurrence_make_no_matrix_of_all_tokens(feature_map: FeatureMap) -> None:
    length = 512
    made = [draws(1, 1, length, WIDTH, seed=i).requires_grad_() for i in range(3)]
    for form in (chunked, recurrent, linear_attention):
        with Largest() as largest:
            form(*made, feature_map=feature_map).sum().backward()
        assert largest.numbers <= 32 * length  # length * length is 512 * length
    with Largest() as largest:
        parallel(*made, feature_map=feature_map)
    assert largest.numbers >= length * length


def test_state_of_decoding_is_of_constant_size() -> None:
    state, sizes = None, set()
    for x in draws(1, 1, 2000, WIDTH).split(1, 2):
        _, state = linear_attention_recurrent(x, x, x, feature_map=exp, state=state)
        sizes.add(sum(part.nbytes for part in state if part is not None))
    assert len(sizes) == 1
    assert state is not None
    assert state.memory.shape == (1, 1, WIDTH, WIDTH)
    assert state.normalizer.shape == (1, 1, WIDTH)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"attend": torch.ones(5, 5, dtype=torch.bool)}, ValueError, "attend .* for single quer"),
        ({"attend": torch.zeros(1, 5)}, TypeError, "attend is torch.float32, expected bool"),
        ({"attend": torch.ones(4, dtype=torch.bool)}, ValueError, "attend has shape"),
        (
            {"decay": torch.tensor([1.0, 0.5, 0.0, 0.5])},
            ValueError,
            r"decay is .*, expected numbers",
        ),
        ({"decay": 0.9}, TypeError, "decay is 0.9, expected a tensor"),
        ({"feature_map": torch.sum}, ValueError, r"feature_map made .* expected .* M\)"),
        ({"decay": torch.ones(3)}, ValueError, "decay has shape .3,., expected .4,."),
        ({"q": draws(2, 4, 4, WIDTH)}, ValueError, "causal=True with T_q=4 queries and T_k=5"),
        ({"k": draws(2, 3, 5, WIDTH), "v": draws(2, 3, 5, WIDTH)}, ValueError, "H_kv=3"),
        ({"chunk": 0}, ValueError, "chunk=0"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    q, k, v = qkv(5)
    given = {"q": q, "k": k, "v": v, "feature_map": relu, **change}
    with pytest.raises(error, match=says):
        linear_attention_chunked(**given)


def test_chunks_with_decay_compile_to_one_graph() -> None:
    q, k, v = qkv(9)
    decay = torch.tensor([0.9, 0.5, 1.0, 0.7])

    def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention_chunked(q, k, v, feature_map=relu, decay=decay)

    compiled = torch.compile(chunked, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), chunked(q, k, v))


def test_states_and_decay_that_do_not_fit_are_named() -> None:
    q, k, v = qkv(5)
    with pytest.raises(ValueError, match="decay needs causal=True"):
        linear_attention(q, k, v, feature_map=relu, decay=torch.ones(4))
    _, state = linear_attention_recurrent(q, k, v, feature_map=relu)
    with pytest.raises(ValueError, match="another feature_map"):
        linear_attention_recurrent(q, k, v, feature_map=exp, state=state)
    with pytest.raises(ValueError, match=r"state.memory has shape \(2, 4, 3, 3\)"):
        linear_attention_recurrent(q[:1], k[:1], v[:1], feature_map=relu, state=state)
