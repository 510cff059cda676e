"""The encoder-decoder of 2017: padding, causality, and decoding that equals the parallel pass."""

import pytest
import torch
from torch import Tensor

from generative.attention.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(vocabulary=11, width=16, layers=2, heads=4, hidden=32, most_tokens=12)


@pytest.fixture
def model() -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Transformer(SMALL).double()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def test_padding_of_the_source_changes_nothing(model: Transformer) -> None:
    source, target = tokens(3, 5), tokens(3, 4, seed=1)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 5:] = False
    padded = torch.cat((source, tokens(3, 3, seed=2)), 1)
    torch.testing.assert_close(
        model(padded, target, source_mask=mask), model(source, target), rtol=0, atol=1e-12
    )


def test_a_token_sees_none_after_it(model: Transformer) -> None:
    model = model.float()
    source, target = tokens(2, 5), tokens(2, 7, seed=1)
    changed = target.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = model(source, target), model(source, changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("cuts", [(1,) * 7, (7,), (3, 1, 3)])
def test_decoding_equals_the_parallel_pass(model: Transformer, cuts: tuple[int, ...]) -> None:
    source, target = tokens(2, 5), tokens(2, 7, seed=1)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    state = model.new_state(source, 7, source_mask=mask)
    parts = [model.extend(part, state) for part in target.split(list(cuts), 1)]
    whole = model(source, target, source_mask=mask)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    assert state.length == 7


def test_rows_of_a_state_are_repeated_and_chosen(model: Transformer) -> None:
    source, target = tokens(2, 5), tokens(2, 3, seed=1)
    state = model.new_state(source, 4)
    model.extend(target[:, :2], state)
    state.repeat(3)
    state.select(torch.tensor([5, 0]))  # of row 1, then of row 0
    logits = model.extend(target[:, 2:].flip(0), state)
    torch.testing.assert_close(logits[:, -1].flip(0), model(source, target)[:, -1])


def test_attention_maps_are_those_of_the_forward_pass(model: Transformer) -> None:
    source, target = tokens(2, 5), tokens(2, 3, seed=1)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    maps = model.attention_maps(source, target, source_mask=mask)
    assert maps.shape == (2, 2, 4, 3, 5)
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
    assert maps[:, 1, :, :, 3:].abs().max() == 0
    # From the last layer's maps to the logits, by hand.
    layer = model.decoder[-1]
    seen = []
    hook = layer.cross.register_forward_hook(lambda m, given, out: seen.append((given, out)))
    model(source, target, source_mask=mask)
    hook.remove()
    (_, _, values, _), out = seen[0]
    by_hand = layer.cross.output((maps[-1] @ values).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(out, by_hand)


def test_parameters_are_counted_by_hand() -> None:
    # Embedding 11*16 = 176. Encoder layer: attention 4*256, norms 2*32, inner 16*32+32+32*16+16:
    # 1024 + 64 + 1072 = 2160. Decoder layer: 2*1024 + 3*32 + 1072 = 3216. Two of each.
    assert sum(p.numel() for p in Transformer(SMALL).parameters()) == 176 + 2 * (2160 + 3216)


def test_bad_input_is_named(model: Transformer) -> None:
    with pytest.raises(ValueError, match="source has 13 tokens, but most_tokens=12"):
        model(tokens(1, 13), tokens(1, 3))
    with pytest.raises(ValueError, match="target has 13 tokens, but most_tokens=12"):
        model(tokens(1, 3), tokens(1, 13))
    with pytest.raises(ValueError, match=r"source_mask is torch.float32 of shape \(1, 3\)"):
        model(tokens(1, 3), tokens(1, 3), source_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"source_mask is torch.bool of shape \(1, 4\)"):
        model(tokens(1, 3), tokens(1, 3), source_mask=torch.ones(1, 4, dtype=torch.bool))
    state = model.new_state(tokens(1, 3), 2)
    with pytest.raises(ValueError, match="columns=2, but 3 tokens after 0 make 3"):
        model.extend(tokens(1, 3), state)
    with pytest.raises(ValueError, match="width=18 with heads=4"):
        TransformerConfig(width=18, heads=4)
