"""What holds of every mixer, whatever it computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from generative.attention.delta_mixer import DeltaRule
from generative.attention.features import exp, relu
from generative.attention.flash import flash_attention
from generative.attention.gated_mixers import GatedAttention, MixedChunkAttention
from generative.attention.linear_mixer import LinearAttention, RandomFeatures
from generative.attention.mixers import MixerConfig, SoftmaxAttention
from generative.attention.positions import T5, ALiBi, Rotary

WIDTH, TOKENS = 16, 9


@dataclass(frozen=True)
class Kind:
    """A mixer, and what is promised of it."""

    config: MixerConfig
    ordered: bool = True
    """Whether it sees order without a causal mask."""
    causal_alone: bool = False


KINDS = {
    "softmax": Kind(SoftmaxAttention(heads=4), ordered=False),
    "grouped": Kind(SoftmaxAttention(heads=4, key_heads=2), ordered=False),
    "normed": Kind(SoftmaxAttention(heads=2, query_key_norm=True), ordered=False),
    "rotary": Kind(SoftmaxAttention(heads=2, positions=Rotary())),
    "alibi": Kind(SoftmaxAttention(heads=4, positions=ALiBi())),
    "t5": Kind(SoftmaxAttention(heads=4, positions=T5(buckets=4, farthest=6))),
    "flash": Kind(
        SoftmaxAttention(heads=4, key_heads=2, positions=Rotary(), attention=flash_attention)
    ),
    "linear": Kind(LinearAttention(heads=4), ordered=False),
    "linear-grouped": Kind(LinearAttention(heads=4, key_heads=2, chunk=2), ordered=False),
    "linear-relu": Kind(LinearAttention(heads=2, feature_map=relu, chunk=4), ordered=False),
    "linear-exp": Kind(LinearAttention(heads=4, feature_map=exp, chunk=3), ordered=False),
    "linear-random": Kind(
        LinearAttention(heads=2, feature_map=RandomFeatures(features=12), chunk=4), ordered=False
    ),
    "retention": Kind(
        LinearAttention(heads=4, normalize=False, decays=True, chunk=4), causal_alone=True
    ),
    "delta": Kind(DeltaRule(heads=4, decays=False, chunk=4), causal_alone=True),
    "gated-delta": Kind(DeltaRule(heads=2, chunk=2), causal_alone=True),
    "gau": Kind(GatedAttention(key_size=8), ordered=False),
    "gau-rotary": Kind(GatedAttention(key_size=8, positions=Rotary())),
    "flash-gau": Kind(MixedChunkAttention(key_size=8, chunk=4, positions=Rotary())),
    "flash-gau-plain": Kind(MixedChunkAttention(key_size=8, chunk=3)),
    "window": Kind(SoftmaxAttention(heads=2, positions=Rotary(), window=3)),
}

each_kind = pytest.mark.parametrize("name", KINDS)
each_parallel_kind = pytest.mark.parametrize(
    "name", [name for name, kind in KINDS.items() if not kind.causal_alone]
)


def built(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        mixer = KINDS[name].config.build(WIDTH)
        for parameter in mixer.parameters():  # norms and offsets too, which begin at 1 and 0
            parameter.data += 0.1 * torch.randn_like(parameter)
    return mixer.to(dtype)


def inputs(rows: int = 2, tokens: int = TOKENS, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, tokens, WIDTH, generator=g, dtype=torch.float64).to(dtype)


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
