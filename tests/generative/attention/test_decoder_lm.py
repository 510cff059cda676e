"""The modern decoder: sizes by hand, padding, lengths, and the effects of biases."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from generative.attention.decoder_lm import DecoderConfig, DecoderLM
from generative.attention.mixers import AttentionBiases, SoftmaxAttention, SoftmaxMixer
from generative.attention.positions import Rotary

SMALL = DecoderConfig(
    vocabulary=11,
    width=16,
    blocks=2,
    mixer=SoftmaxAttention(heads=4, key_heads=2, positions=Rotary(), query_key_norm=True),
    most_tokens=8,
)


def built(config: DecoderConfig = SMALL) -> DecoderLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build().double()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def test_parameters_are_counted_by_hand() -> None:
    # A block: queries and output 2 * 256, keys and values 2 * 16 * 8, their norms 2 * 4, norms
    # 2 * 16, MLP 3 * 16 * 43 (43 is 8/3 of 16, rounded up): 512 + 256 + 8 + 32 + 2064 = 2872.
    count = sum(p.numel() for p in built().parameters())
    assert count == 11 * 16 + 2 * 2872 + 16
    untied = built(replace(SMALL, tied=False, mlp_bias=True, hidden=40))
    # 3 * 16 * 40 = 1920 in the place of 2064, biases 40 + 40 + 16, a head 11 * 16.
    assert sum(p.numel() for p in untied.parameters()) == count + 2 * (96 - 144) + 176


def test_the_head_of_an_untied_model_is_its_own() -> None:
    model = built(replace(SMALL, tied=False))
    before = model(tokens(1, 4))
    model.head.weight.data *= 2  # type: ignore[union-attr]  # untied, so there
    torch.testing.assert_close(model(tokens(1, 4)), 2 * before)


def test_padding_changes_nothing() -> None:
    model, own = built(), tokens(2, 5)
    padded = torch.cat((own, tokens(2, 3, seed=1)), 1)
    torch.testing.assert_close(model(padded)[:, :5], model(own), rtol=0, atol=1e-12)
    left = torch.cat((tokens(2, 3, seed=1), own), 1)
    mask = torch.arange(8).expand(2, 8) >= 3
    # Rotary scores depend on distances alone, so that padding on the left moves nothing.
    torch.testing.assert_close(model(left, mask=mask)[:, 3:], model(own), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "moves"),
    [("key", False), ("query", True), ("value", True), ("output", True)],
)
def test_effects_of_biases_are_as_documented(kind: str, moves: bool) -> None:
    plain = SoftmaxMixer(8, SoftmaxAttention(heads=2)).double()
    biased = SoftmaxMixer(
        8, SoftmaxAttention(heads=2, biases=AttentionBiases(**{kind: True}))
    ).double()
    g = torch.Generator().manual_seed(0)
    biased.load_state_dict(plain.state_dict(), strict=False)
    bias = torch.randn(8, generator=g, dtype=torch.float64)
    getattr(biased, kind).bias.data = bias
    x = torch.randn(1, 5, 8, generator=g, dtype=torch.float64)
    moved = biased(x, causal=True) - plain(x, causal=True)
    assert (moved.abs().max() > 1e-3) == moves
    if kind == "value":  # a constant, that of an output bias
        torch.testing.assert_close(moved, plain.output(bias).expand_as(moved))
    if kind == "output":
        torch.testing.assert_close(moved, bias.expand_as(moved))
    nowhere = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    zero = biased(x, attend=nowhere)
    assert torch.equal(zero, bias.expand_as(x) if kind == "output" else torch.zeros_like(x))


def test_query_key_norm_bounds_the_scores() -> None:
    # Normed queries and keys have length sqrt(K), so a score is at most sqrt(K): of 4 features, 2.
    mixer = SoftmaxMixer(8, SoftmaxAttention(heads=2, query_key_norm=True))
    x = 1_000 * torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    q, k, _ = mixer._heads(x, torch.arange(6))
    assert (q @ k.mT / 2).abs().max() <= 2 + 1e-4


def test_bad_input_is_named() -> None:
    model = built()
    with pytest.raises(ValueError, match="9 tokens, but most_tokens=8"):
        model(tokens(1, 9))
    with pytest.raises(ValueError, match="9 tokens, but most_tokens=8"):
        model.new_state(1, 9)
    state = model.new_state(1, 3)
    model.extend(tokens(1, 2), state)
    with pytest.raises(ValueError, match="columns=3, but 2 tokens after 2 make 4"):
        model.extend(tokens(1, 2), state)
    with pytest.raises(ValueError, match=r"mask is torch.int64 of shape \(1, 4\)"):
        model(tokens(1, 4), mask=tokens(1, 4))
    with pytest.raises(ValueError, match="heads=3 with width=16"):
        replace(SMALL, mixer=SoftmaxAttention(heads=3)).build()
    with pytest.raises(ValueError, match="key_heads=3 with heads=4"):
        SoftmaxAttention(heads=4, key_heads=3)
    with pytest.raises(ValueError, match="blocks=0: give at least 1"):
        replace(SMALL, blocks=0)
