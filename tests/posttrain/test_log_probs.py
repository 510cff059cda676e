from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from launch.backends import Routed
from launch.placement import Placement
from posttrain.data.packing import Document, pack
from posttrain.log_probs import (
    shared_prompt_log_probs,
    shared_prompt_log_probs_and_entropy,
    token_log_probs,
    token_log_probs_and_entropy,
)

ModelOf = Callable[[str], nn.Module]


def truth(model: nn.Module, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """What a full forward pass gives, column 0 zero."""
    log_probs = (model(tokens).logits.float() / temperature).log_softmax(-1)
    out = torch.zeros(tokens.shape)
    out[:, 1:] = log_probs[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(2)
    return out


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        scale = max(1.0, float(grad.abs().max()))
        torch.testing.assert_close(ours[name] / scale, grad / scale, rtol=0, atol=1e-5)


def batch(rows: int = 6, width: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 97, (rows, width), generator=g)
    mask = torch.rand(rows, width, generator=g) < 0.4
    mask[3] = False
    return tokens, mask, torch.randn(rows, width, generator=g)


def test_figures_and_gradients_equal_a_full_forward_pass(any_model: nn.Module) -> None:
    tokens, mask, weights = batch()
    theirs = truth(any_model, tokens, 0.7) * mask
    expected = gradients(any_model, (theirs * weights).sum())
    ours = token_log_probs(any_model, tokens, mask, temperature=0.7)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert bool((ours[~mask] == 0).all())
    assert bool((ours[:, 0] == 0).all())
    assert_same_gradients(gradients(any_model, (ours * weights).sum()), expected)


def test_without_a_mask_every_column_but_the_first_is_wanted(any_model: nn.Module) -> None:
    tokens, _, _ = batch()
    with torch.no_grad():
        ours = token_log_probs(any_model, tokens)
        torch.testing.assert_close(ours, truth(any_model, tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2-rope-yarn", "gpt2"])
def test_what_lies_beyond_the_last_wanted_column_is_never_looked_at(
    model_of: ModelOf, name: str
) -> None:
    model, (tokens, mask, _) = model_of(name), batch()
    mask[:, 15:] = False
    spoilt = tokens.clone()
    spoilt[:, 15:] = -100
    with torch.no_grad():
        ours, clean = (token_log_probs(model, x, mask) for x in (spoilt, tokens))
    assert bool((ours == clean).all())


@pytest.mark.parametrize("name", ["llama-biases-tied", "gpt2"])
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_wanted_hangs_on_every_parameter_with_gradient_zero(
    model_of: ModelOf, name: str, rows: int
) -> None:
    model = model_of(name)
    tokens = torch.zeros(rows, 7, dtype=torch.int64)
    ours = token_log_probs(model, tokens, torch.zeros_like(tokens, dtype=torch.bool))
    assert ours.shape == (rows, 7)
    assert bool((ours == 0).all())
    ours.sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize(
    "name", ["llama-rope-llama3", "mistral-sliding", "qwen3-wide-heads", "gpt2"]
)
def test_packed_documents_are_isolated(model_of: ModelOf, name: str) -> None:
    model, g = model_of(name), torch.Generator().manual_seed(1)
    documents = [
        Document(torch.randint(1, 97, (n,), generator=g).tolist(), [False] + [True] * (n - 1))
        for n in (3, 17, 9, 1, 12, 8, 30)
    ]
    packed = pack(documents, length=32)
    ours = token_log_probs(model, packed.tokens, packed.mask, position_ids=packed.position_ids)
    separate = {tuple(d.tokens): truth(model, torch.tensor([d.tokens]))[0] for d in documents}
    found = 0
    for row in range(len(packed)):
        starts = [*(packed.position_ids[row] == 0).nonzero().view(-1).tolist(), 32]
        for start, stop in pairwise(starts):
            expected = separate.get(tuple(packed.tokens[row, start:stop].tolist()))
            if expected is not None:
                found += 1
                torch.testing.assert_close(ours[row, start:stop], expected, rtol=0, atol=1e-5)
    assert found == len(documents)
    whole = gradients(model, sum(lp.sum() for lp in separate.values()))
    ours = token_log_probs(model, packed.tokens, packed.mask, position_ids=packed.position_ids)
    assert_same_gradients(gradients(model, ours.sum()), whole)


def test_positions_that_begin_elsewhere_turn_by_their_own_angle(model_of: ModelOf) -> None:
    for name in ("llama-rope-linear", "llama-rope-dynamic"):
        model, (tokens, _, _) = model_of(name), batch()
        positions = torch.arange(23).expand(6, -1).clone() + 4
        with torch.no_grad():
            logits = model(tokens, position_ids=positions, use_cache=False).logits.log_softmax(-1)
            theirs = logits[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(2)
            ours = token_log_probs(model, tokens, position_ids=positions)[:, 1:]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def groups(prompts: list[int], size: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 97, (len(prompts) * size, width), generator=g)
    lengths = torch.tensor(prompts)
    for p, length in enumerate(prompts):
        tokens[p * size : (p + 1) * size, :length] = tokens[p * size, :length]
    columns = torch.arange(width)
    ends = torch.randint(max(prompts), width + 1, (len(tokens), 1), generator=g)
    mask = (columns >= lengths.repeat_interleave(size)[:, None]) & (columns < ends)
    return tokens, mask, lengths


def test_shared_prompts_change_neither_figures_nor_gradients(any_model: nn.Module) -> None:
    tokens, mask, lengths = groups([5, 9, 2, 7], 3, 23)
    mask[4], mask[6:9] = False, False  # a row, and a whole group, without a wanted column
    mask[2, 3] = True  # one within the prompt
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(3))
    plain = token_log_probs(any_model, tokens, mask)
    expected = gradients(any_model, (plain * weights).sum())
    ours = shared_prompt_log_probs(any_model, tokens, mask, group_size=3, prompt_lengths=lengths)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    assert_same_gradients(gradients(any_model, (ours * weights).sum()), expected)


def test_shared_prompts_of_long_rows_take_flash_attention(model_of: ModelOf) -> None:
    model = model_of("qwen2-rope-yarn")
    tokens, mask, lengths = groups([130, 40], 2, 150)
    plain = token_log_probs(model, tokens, mask)
    expected = gradients(model, plain.sum())
    ours = shared_prompt_log_probs(model, tokens, mask, group_size=2, prompt_lengths=lengths)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    assert_same_gradients(gradients(model, ours.sum()), expected)


def test_shared_prompts_take_no_rows(model_of: ModelOf) -> None:
    model, none = model_of("llama-biases-tied"), torch.zeros(0, 5, dtype=torch.int64)
    ours = shared_prompt_log_probs(
        model, none, none.bool(), group_size=4, prompt_lengths=torch.zeros(0, dtype=torch.int64)
    )
    assert ours.shape == (0, 5)
    assert ours.requires_grad


@pytest.mark.parametrize("name", ["qwen3-wide-heads", "gemma2-capped-logits"])
def test_entropy_is_that_of_the_tempered_distribution(model_of: ModelOf, name: str) -> None:
    model, (tokens, mask, _) = model_of(name), batch()
    log_probs, entropy = token_log_probs_and_entropy(model, tokens, mask, temperature=0.7)
    logits = (model(tokens).logits / 0.7).detach()
    expected = torch.zeros(tokens.shape)
    expected[:, 1:] = torch.distributions.Categorical(logits=logits).entropy()[:, :-1]
    mask[:, 0] = False
    torch.testing.assert_close(entropy, expected * mask, rtol=0, atol=1e-5)
    assert not entropy.requires_grad
    plain = token_log_probs(model, tokens, mask, temperature=0.7)
    assert bool((log_probs == plain).all())
    shared = {"group_size": 1, "prompt_lengths": torch.ones(6, dtype=torch.int64)}
    _, again = shared_prompt_log_probs_and_entropy(model, tokens, mask, temperature=0.7, **shared)
    torch.testing.assert_close(again, entropy, rtol=0, atol=1e-5)


class Largest(TorchDispatchMode):
    """Notes the largest floating tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.elements = max(self.elements, x.numel())
        return result


@contextmanager
def large_vocabulary(name: str) -> Iterator[nn.Module]:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"vocab_size": 4096, "hidden_size": 16, "num_attention_heads": 2}
    settings |= {"num_hidden_layers": 1, "intermediate_size": 16, "num_key_value_heads": 1}
    yield AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings))


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
@pytest.mark.parametrize("shared", [False, True])
def test_logits_of_the_whole_batch_never_exist(name: str, shared: bool) -> None:
    rows, width = 32, 64
    tokens = torch.arange(width).expand(rows, -1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with large_vocabulary(name) as model, Largest() as largest:
        if shared:
            lengths = torch.full((8,), 32)
            ours = shared_prompt_log_probs(
                model, tokens, mask, group_size=4, prompt_lengths=lengths
            )
        else:
            ours = token_log_probs(model, tokens, mask)
        ours.sum().backward()
    assert largest.elements <= rows * width * 4096 // 4


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gemma2"])
def test_nor_do_they_at_small_sizes(name: str, rows: int) -> None:
    """A head that is a matrix is taken in chunks, any other a few rows at a time."""
    if name == "gemma2" and rows == 1:
        pytest.skip("a single row of a model with another head runs as one")
    with large_vocabulary(name) as model:
        model.resize_token_embeddings(512)
        tokens = torch.arange(64).expand(rows, -1)
        with Largest() as largest:
            token_log_probs(model, tokens).sum().backward()
    assert largest.elements < rows * 64 * 512 * 3 // 4


@pytest.mark.parametrize("name", ["llama-biases-tied", "gpt2", "gemma2-capped-logits"])
@pytest.mark.parametrize("temperature", [1e-38, 1e-300, 1e300])
def test_extreme_temperatures_give_numbers(
    model_of: ModelOf, name: str, temperature: float
) -> None:
    model, (tokens, _, _) = model_of(name), batch()
    with torch.no_grad():
        tokens[:, 1:] = model(tokens).logits.argmax(-1)[:, :-1]
        tokens[:, 2:] = 5
        likeliest = model(tokens).logits.argmax(-1)[:, 0]
        ours = token_log_probs(model, tokens, temperature=temperature)
        assert ours.isfinite().all()
        expected = 0.0 if temperature < 1 else -math.log(97)
        assert torch.equal(likeliest, tokens[:, 1])
        torch.testing.assert_close(ours[:, 1], torch.full((6,), expected))


def test_a_prepared_model_is_run_inside_its_wrapper(model_of: ModelOf) -> None:
    model, (tokens, mask, _) = model_of("llama-biases-tied"), batch()
    calls = []

    class Wrapper(nn.Module):
        def forward(
            self,
            function: Callable[..., Tensor],
            arguments: Sequence[object],
            named: dict[str, object],
        ) -> Tensor:
            calls.append(function.__name__)
            return function(model, *arguments, **named)

    routed = Routed(Placement(model, Wrapper(), ()), None)
    ours = token_log_probs(routed, tokens, mask)
    assert bool((ours == token_log_probs(model, tokens, mask)).all())
    shared_prompt_log_probs(
        routed, tokens, mask, group_size=1, prompt_lengths=torch.ones(6, dtype=torch.int64)
    )
    assert calls == ["token_log_probs", "shared_prompt_log_probs"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_come_out_as_float32(model_of: ModelOf, dtype: torch.dtype) -> None:
    model, (tokens, mask, _) = model_of("qwen3-wide-heads"), batch()
    exact = token_log_probs(model, tokens, mask).detach()
    ours = token_log_probs(model.to(dtype), tokens, mask)
    assert ours.dtype == torch.float32
    ours.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(ours.detach(), exact, rtol=0.1, atol=0.3)


def test_dropout_in_training_is_the_models_own(model_of: ModelOf) -> None:
    model, (tokens, mask, _) = model_of("llama-biases-tied"), batch()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    still = token_log_probs(model.eval(), tokens, mask)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.allclose(token_log_probs(model, tokens, mask), still, atol=1e-3)


def test_wrong_arguments_are_named(model_of: ModelOf) -> None:
    model, (tokens, mask, _) = model_of("llama-biases-tied"), batch()
    with pytest.raises(ValueError, match=r"shape \(6,\), expected \(B, T\)"):
        token_log_probs(model, tokens[:, 0])
    with pytest.raises(ValueError, match=r"mask has shape \(6, 22\), but tokens \(6, 23\)"):
        token_log_probs(model, tokens, mask[:, 1:])
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="temperature="):
            token_log_probs(model, tokens, mask, temperature=temperature)
    shared = {"group_size": 2, "prompt_lengths": torch.tensor([3, 3])}
    with pytest.raises(ValueError, match="got 6 rows"):
        shared_prompt_log_probs(model, tokens, mask, **shared)
    lengths = torch.tensor([3, 24, 3])
    with pytest.raises(ValueError, match="between 3 and 24"):
        shared_prompt_log_probs(model, tokens, mask, group_size=2, prompt_lengths=lengths)
    tokens[1] = tokens[0]
    tokens[3] = tokens[2]
    tokens[5] = tokens[4]
    tokens[3, 1] += 1
    lengths = torch.tensor([3, 3, 3])
    with pytest.raises(ValueError, match="row 3 differs from row 2 at column 1"):
        shared_prompt_log_probs(model, tokens, mask, group_size=2, prompt_lengths=lengths)
