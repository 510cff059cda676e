"""What holds of every mixer, whatever it computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from generative.attention import naive
from generative.attention.cache import QuantizedKeyValues
from generative.attention.decoder_lm import DecoderConfig
from generative.attention.delta_mixer import DeltaRule
from generative.attention.features import exp, relu
from generative.attention.flash import flash_attention
from generative.attention.gated_mixers import GatedAttention, MixedChunkAttention
from generative.attention.linear_mixer import LinearAttention, RandomFeatures
from generative.attention.mixers import MixerConfig, SoftmaxAttention
from generative.attention.positions import T5, ALiBi, Rotary
from generative.model_folder import load_model, new_model, save_model

WIDTH, TOKENS = 16, 9


@dataclass(frozen=True)
class Kind:
    """A mixer, and what is promised of it."""

    config: MixerConfig
    ordered: bool = True
    """Whether it sees order without a causal mask."""
    causal_alone: bool = False
    """Whether it has no form in which tokens see those after them."""
    linear_memory: bool = False
    """Whether no tensor of T x T is ever made."""
    constant_state: bool = False
    """Whether the state takes the same bytes whatever the number of tokens."""


LINEAR = {"linear_memory": True, "constant_state": True}
KINDS = {
    "softmax": Kind(SoftmaxAttention(heads=4), ordered=False),
    "grouped": Kind(SoftmaxAttention(heads=4, key_heads=2), ordered=False),
    "normed": Kind(SoftmaxAttention(heads=2, query_key_norm=True), ordered=False),
    "rotary": Kind(SoftmaxAttention(heads=2, positions=Rotary())),
    "alibi": Kind(SoftmaxAttention(heads=4, positions=ALiBi())),
    "t5": Kind(SoftmaxAttention(heads=4, positions=T5(buckets=4, farthest=6))),
    "flash": Kind(
        SoftmaxAttention(heads=4, key_heads=2, positions=Rotary(), attention=flash_attention),
        linear_memory=True,
    ),
    "linear": Kind(LinearAttention(heads=4), ordered=False, **LINEAR),
    "linear-grouped": Kind(LinearAttention(heads=4, key_heads=2, chunk=2), ordered=False, **LINEAR),
    "linear-relu": Kind(
        LinearAttention(heads=2, feature_map=relu, chunk=4), ordered=False, **LINEAR
    ),
    "linear-exp": Kind(LinearAttention(heads=4, feature_map=exp, chunk=3), ordered=False, **LINEAR),
    "linear-random": Kind(
        LinearAttention(heads=2, feature_map=RandomFeatures(features=12), chunk=4),
        ordered=False,
        **LINEAR,
    ),
    "retention": Kind(
        LinearAttention(heads=4, normalize=False, decays=True, chunk=4), causal_alone=True, **LINEAR
    ),
    "delta": Kind(DeltaRule(heads=4, decays=False, chunk=4), causal_alone=True, **LINEAR),
    "gated-delta": Kind(DeltaRule(heads=2, chunk=2), causal_alone=True, **LINEAR),
    "gau": Kind(GatedAttention(key_size=8), ordered=False),
    "gau-rotary": Kind(GatedAttention(key_size=8, positions=Rotary())),
    "flash-gau": Kind(MixedChunkAttention(key_size=8, chunk=4, positions=Rotary()), **LINEAR),
    "flash-gau-plain": Kind(MixedChunkAttention(key_size=8, chunk=3), **LINEAR),
    "window": Kind(SoftmaxAttention(heads=2, positions=Rotary(), window=3), constant_state=True),
}

each_kind = pytest.mark.parametrize("name", KINDS)
each_parallel_kind = pytest.mark.parametrize(
    "name", [name for name, kind in KINDS.items() if not kind.causal_alone]
)


def built(
    name: str, dtype: torch.dtype = torch.float64, config: MixerConfig | None = None
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        mixer = (config or KINDS[name].config).build(WIDTH)
        for parameter in mixer.parameters():  # norms and offsets too, which begin at 1 and 0
            parameter.data += 0.1 * torch.randn_like(parameter)
    return mixer.to(dtype)


def inputs(rows: int = 2, tokens: int = TOKENS, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, tokens, WIDTH, generator=g, dtype=torch.float64).to(dtype)


def make_naive(mixer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the plainest forms in the place of the fast ones; ``state`` and ``chunk`` go unused."""

    def linear(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        options.pop("chunk", None)
        return naive.linear_attention(q, k, v, **options)  # type: ignore[arg-type]  # as given

    def continued(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, None]:
        return linear(q, k, v, causal=True, **options), None

    def delta(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, None]:
        del options["chunk"], options["state"]
        return naive.gated_delta_rule(q, k, v, **options), None  # type: ignore[arg-type]  # as given

    def chunks(*heads: Tensor, chunk: int, **options: object) -> Tensor:
        size = heads[0].shape[2] ** -0.5
        scales = {"quad_scale": size, "lin_scale": size / chunk}
        return naive.mixed_chunk_attention(*heads, chunk=chunk, **scales, **options)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr("generative.attention.linear_mixer.linear_attention", linear)
    monkeypatch.setattr("generative.attention.linear_mixer.linear_attention_continued", continued)
    monkeypatch.setattr("generative.attention.delta_mixer.gated_delta_rule_chunked", delta)
    monkeypatch.setattr(
        "generative.attention.gau.squared_relu_attention", naive.squared_relu_attention
    )
    monkeypatch.setattr("generative.attention.gau.flash_mixing", chunks)
    if hasattr(mixer, "attention"):
        monkeypatch.setattr(mixer, "attention", naive.softmax_attention)


@each_kind
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_outputs_and_gradients_are_those_of_the_naive_form(
    name: str, dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, x = built(name, dtype), inputs(dtype=dtype).requires_grad_()
    attend = torch.ones(2, 1, 1, TOKENS, dtype=torch.bool)
    attend[0, :, :, 2] = attend[1, :, :, 5:7] = False
    given = [x, *mixer.parameters()]

    def found() -> list[tuple[Tensor, ...]]:
        passes = []
        for causal in (True,) if KINDS[name].causal_alone else (True, False):
            for mask in (None, attend):
                out = mixer(x, causal=causal, attend=mask)
                gradients = torch.autograd.grad(out.square().sum(), given, allow_unused=True)
                passes.append((out, *(g for g in gradients if g is not None)))
        return passes

    fast = found()
    make_naive(mixer, monkeypatch)
    plain = found()
    for ours, truth in zip(fast, plain, strict=True):
        for one, other in zip(ours, truth, strict=True):
            scale = max(1.0, other.abs().max().item())
            torch.testing.assert_close(one, other, rtol=near, atol=near * scale)


class Largest(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: object = (),
        kwargs: object = None,
    ) -> object:
        out = function(*args, **(kwargs or {}))  # type: ignore[misc, dict-item]  # as torch gives
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.numel():
                held = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
                self.numbers = max(self.numbers, held)  # an expanded view takes no memory
        return out


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.linear_memory])
def test_no_tensor_of_all_pairs_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, config = 2_048, KINDS[name].config
    if hasattr(config, "chunk"):
        config = replace(config, chunk=16)  # type: ignore[type-var]  # a dataclass
    mixer = built(name, torch.float32, config)
    x = inputs(rows=1, tokens=tokens, dtype=torch.float32).requires_grad_()
    with Largest() as largest:
        mixer(x, causal=True).sum().backward()
    assert largest.numbers < tokens * tokens / 8
    if "delta" not in name:  # whose naive form is a recurrence
        make_naive(mixer, monkeypatch)
        with Largest() as naive_largest, torch.no_grad():
            mixer(x, causal=True)
        assert naive_largest.numbers >= tokens * tokens


@each_kind
def test_states_take_constant_memory_where_that_is_promised(name: str) -> None:
    mixer, x = built(name), inputs(rows=1)
    state = mixer.new_state(1, 100)  # type: ignore[operator]  # a Mixer
    mixer.extend(x, state)  # type: ignore[operator]  # a Mixer
    first = state.nbytes
    longer = mixer.new_state(1, 1_000)  # type: ignore[operator]  # a Mixer
    for _ in range(20):
        mixer.extend(x, longer)  # type: ignore[operator]  # a Mixer
    assert longer.length == 20 * TOKENS
    assert (longer.nbytes == first) == KINDS[name].constant_state


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if n[:5] in ("linea", "reten")
                                  or "delta" in n])  # fmt: skip
def test_chunk_size_does_not_matter(name: str) -> None:
    x = inputs()
    found = [
        built(name, config=replace(KINDS[name].config, chunk=chunk))(x, causal=True)  # type: ignore[type-var]  # a dataclass
        for chunk in (1, 2, 5, 9, 64)
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [None, 4])
def test_an_int8_cache_is_near_and_split_alike(window: int | None) -> None:
    config = SoftmaxAttention(heads=2, positions=Rotary(), window=window, cache=QuantizedKeyValues)
    mixer, x = built("", torch.float32, config), inputs(dtype=torch.float32)
    parts = []
    for cuts in ([TOKENS], [1] * TOKENS, [4, 5]):
        state = mixer.new_state(2, TOKENS)  # type: ignore[operator]  # a Mixer
        parts.append(torch.cat([mixer.extend(p, state) for p in x.split(cuts, 1)], 1))  # type: ignore[operator]  # a Mixer
    for part in parts[1:]:
        torch.testing.assert_close(part, parts[0], rtol=0, atol=1e-5)
    exact = mixer(x, causal=True)
    assert 0 < (parts[0] - exact).abs().max() < 0.02 * exact.abs().max()
    plain = built("", torch.float32, replace(config, cache=None)).new_state(2, TOKENS)  # type: ignore[operator]  # a Mixer
    if window is None:
        assert state.nbytes < 0.45 * plain.nbytes


@each_kind
def test_a_change_leaves_what_is_before_it_bit_equal(name: str) -> None:
    mixer, x = built(name, torch.float32), inputs(dtype=torch.float32)
    for place in range(1, TOKENS):
        changed = x.clone()
        changed[:, place] += 1
        before, after = mixer(x, causal=True), mixer(changed, causal=True)
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.allclose(before[:, place], after[:, place])


@each_kind
def test_outputs_do_not_depend_on_how_long_the_sequence_is(name: str) -> None:
    mixer, x = built(name), inputs()
    whole = mixer(x, causal=True)
    for tokens in range(1, TOKENS):
        torch.testing.assert_close(
            mixer(x[:, :tokens], causal=True), whole[:, :tokens], rtol=0, atol=1e-10
        )


@each_kind
@pytest.mark.parametrize("cuts", [[1] * TOKENS, [TOKENS], [4, 1, 4], [2, 7], [8, 1]])
def test_any_split_of_extend_is_the_parallel_pass(name: str, cuts: list[int]) -> None:
    mixer, x = built(name), inputs()
    state = mixer.new_state(2, TOKENS)  # type: ignore[operator]  # a Mixer
    parts = []
    for part in x.split(cuts, 1):
        parts.append(mixer.extend(part, state))  # type: ignore[operator]  # a Mixer
        assert state.length == sum(p.shape[1] for p in parts)
    torch.testing.assert_close(torch.cat(parts, 1), mixer(x, causal=True), rtol=0, atol=1e-10)


@each_kind
def test_rows_that_may_look_nowhere_are_zero_with_zero_gradients(name: str) -> None:
    mixer, x = built(name), inputs().requires_grad_()
    attend = torch.ones(2, 1, 1, TOKENS, dtype=torch.bool)
    attend[1] = False
    for causal in (True,) if KINDS[name].causal_alone else (False, True):
        out = mixer(x, causal=causal, attend=attend)
        assert torch.equal(out[1], torch.zeros_like(out[1]))
        assert out[0].abs().sum() > 0
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(gradient[1], torch.zeros_like(gradient[1]))


@each_kind
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("garbage", [1e4, float("nan")])
def test_padding_never_matters(name: str, causal: bool, garbage: float) -> None:
    if KINDS[name].causal_alone and not causal:
        with pytest.raises(ValueError, match="causal=False"):
            built(name)(inputs())
        return
    mixer, x = built(name), inputs()
    own = x[:, :6].clone().requires_grad_()
    alone = mixer(own, causal=causal)
    (expected,) = torch.autograd.grad(alone.square().sum(), own)
    padded = x.clone()
    padded[:, 6:] = garbage
    padded.requires_grad_()
    attend = (torch.arange(TOKENS) < 6).view(1, 1, 1, TOKENS)
    out = mixer(padded, causal=causal, attend=attend)[:, :6]
    torch.testing.assert_close(out, alone, rtol=0, atol=1e-10)
    if not math.isnan(garbage):  # NaN comes back through the padding's own, unused queries
        (gradient,) = torch.autograd.grad(out.square().sum(), padded)
        torch.testing.assert_close(gradient[:, :6], expected, rtol=0, atol=1e-9)


@each_parallel_kind
def test_without_positions_tokens_are_a_set(name: str) -> None:
    mixer, x = built(name), inputs()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    same = torch.allclose(mixer(x[:, order]), mixer(x)[:, order], rtol=0, atol=1e-10)
    assert same != KINDS[name].ordered


@each_kind
def test_rows_do_not_see_each_other(name: str) -> None:
    mixer, x = built(name), inputs(rows=3)
    alone = torch.cat([mixer(row[None], causal=True) for row in x])
    torch.testing.assert_close(mixer(x, causal=True), alone, rtol=0, atol=1e-10)
    assert mixer(x[:0], causal=True).shape == (0, TOKENS, WIDTH)


@each_kind
def test_states_are_repeated_and_selected(name: str) -> None:
    mixer, x = built(name), inputs()
    extend: Callable[..., Tensor] = mixer.extend  # type: ignore[assignment]  # a Mixer
    state = mixer.new_state(2, TOKENS)  # type: ignore[operator]  # a Mixer
    extend(x[:, :5], state)
    held = state.nbytes
    state.repeat(3)  # rows 0 0 0 1 1 1
    assert state.nbytes == 3 * held > 0
    state.select(torch.tensor([4, 0]))
    assert state.nbytes == held
    rest = extend(x[:, 5:].flip(0), state)
    expected = mixer(x, causal=True)[:, 5:].flip(0)
    torch.testing.assert_close(rest, expected, rtol=0, atol=1e-10)


@each_kind
def test_states_are_of_the_mixers_dtype(name: str) -> None:
    mixer, x = built(name, torch.float32), inputs(dtype=torch.float32)
    state = mixer.new_state(2, TOKENS)  # type: ignore[operator]  # a Mixer
    assert mixer.extend(x, state).dtype == torch.float32  # type: ignore[operator]  # a Mixer
    assert mixer.bfloat16()(x.bfloat16(), causal=True).dtype == torch.bfloat16


@each_kind
@pytest.mark.parametrize("shape", [(7, WIDTH), (2, 7, WIDTH + 1), (2, 0, WIDTH)])
def test_tokens_that_do_not_fit_are_named(name: str, shape: tuple[int, ...]) -> None:
    mixer, x = built(name), torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^x has "):
        mixer(x, causal=True)
    with pytest.raises(ValueError, match=r"^x has "):
        mixer.extend(x, mixer.new_state(2, 8))  # type: ignore[operator]


@each_kind
def test_autocast_changes_rounding_alone(name: str) -> None:
    mixer, x = built(name, torch.float32), inputs(dtype=torch.float32).requires_grad_()
    exact = mixer(x, causal=True)
    attend = torch.ones(2, 1, 1, TOKENS, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        for mask in (None, attend):
            out = mixer(x, causal=True, attend=mask)
            assert (out - exact).abs().max() < 0.05 * exact.abs().max()
        state = mixer.new_state(2, TOKENS)  # type: ignore[operator]  # a Mixer
        with torch.no_grad():
            parts = [mixer.extend(part, state) for part in x.split([4, 1, 4], 1)]  # type: ignore[operator]  # a Mixer
    assert (torch.cat(parts, 1) - exact).abs().max() < 0.05 * exact.abs().max()
    (gradient,) = torch.autograd.grad(out.float().square().sum(), x)
    (expected,) = torch.autograd.grad(exact.square().sum(), x)
    assert (gradient - expected).abs().max() < 0.05 * expected.abs().max()


@each_kind
def test_masks_that_do_not_fit_are_named(name: str) -> None:
    mixer, x = built(name), inputs()
    with pytest.raises(TypeError, match=r"attend is torch\.float32, expected bool"):
        mixer(x, causal=True, attend=torch.ones(2, 1, 1, TOKENS))
    with pytest.raises(ValueError, match=r"attend has shape \(2, 1, 1, 5\)"):
        mixer(x, causal=True, attend=torch.ones(2, 1, 1, 5, dtype=torch.bool))


INT8 = SoftmaxAttention(heads=2, cache=QuantizedKeyValues)


@pytest.mark.parametrize(
    "mixer", [*(kind.config for kind in KINDS.values()), INT8], ids=[*KINDS, "int8"]
)
def test_a_saved_model_has_the_same_mixer(mixer: MixerConfig, tmp_path: Path) -> None:
    config = DecoderConfig(width=WIDTH, blocks=1, mixer=mixer)
    model, tokens = new_model(config, 1).eval(), torch.arange(TOKENS)[None]
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.config == config
    assert torch.equal(again(tokens), model(tokens))
