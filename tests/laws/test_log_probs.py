"""The law of log-probs: they are the naive log-softmax and gather, in figures and gradients.

It is held over every family that the decoder knows and over others, whose heads may be more than a
matrix. A model that joins ``MODELS`` is held to all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.log_probs import shared_prompt_log_probs, token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

V = 41
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "vocab_size": V,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "rope_theta": 10000.0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-key-head": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-head-bias": ("Llama", {}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 4}),
    "gpt2": ("GPT2", {}),
    "gemma2-soft-cap": (
        "Gemma2",
        {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 2.0},
    ),
    "cohere-logit-scale": ("Cohere", {"logit_scale": 0.3}),
    "granite-logits-scaling": ("Granite", {"logits_scaling": 3.0}),
}
FEW = ("llama", "qwen3", "mistral-window", "gpt2")
LENGTHS = (13, 4, 9, 2)

every_model = pytest.mark.parametrize("name", MODELS)
few_models = pytest.mark.parametrize("name", FEW)


def fresh(name: str) -> PreTrainedModel:
    """Return a model whose distributions are neither flat nor certain, in evaluation mode."""
    import transformers

    kind, more = MODELS[name]
    config_of = getattr(transformers, f"{kind}Config")
    model_of = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_of(config_of(**{**(GPT2 if kind == "GPT2" else SIZES), **more}))
        if name == "llama-head-bias":
            model.lm_head = nn.Linear(16, V, bias=True)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5)
                else:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@cache
def cached(name: str) -> PreTrainedModel:
    return fresh(name)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_batch() -> tuple[Tensor, Tensor]:
    """Return right-padded tokens, pad and eos ids among them, and a mask with holes."""
    g = seeded()
    tokens = torch.randint(V, (len(LENGTHS), max(LENGTHS)), generator=g)
    place = torch.arange(max(LENGTHS))
    real = place < torch.tensor(LENGTHS)[:, None]
    tokens = torch.where(real, tokens, 0)
    mask = real & (torch.rand(tokens.shape, generator=g) < 0.7)
    mask[:, 0] = True  # column 0 is 0 all the same
    mask[3] = False
    return tokens, mask


def naive(model: PreTrainedModel, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``(B, T)`` of a plain forward pass; causal, so that right padding is not seen."""
    logits = model(tokens, use_cache=False).logits
    scored = torch.log_softmax(logits[:, :-1].float() / temperature, -1)
    return nn.functional.pad(scored.gather(2, tokens[:, 1:, None]).squeeze(2), (1, 0))


def gradients(model: nn.Module, scalar: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    scalar.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    assert all(grad is not None for grad in found.values()), "a parameter is not connected"
    return {name: grad for name, grad in found.items() if grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(
            found[name], grad, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def weights_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=seeded(1))


@every_model
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_figures_and_gradients_are_the_naive_ones(name: str, temperature: float) -> None:
    model = cached(name)
    tokens, mask = a_batch()
    found = token_log_probs(model, tokens, mask, temperature=temperature)
    expected = naive(model, tokens, temperature)
    assert found.dtype == torch.float32
    assert found.shape == tokens.shape
    counts = mask.clone()
    counts[:, 0] = False
    assert (found[~counts] == 0).all()
    torch.testing.assert_close(found[counts], expected[counts], atol=2e-5, rtol=1e-5)
    weights = weights_like(found) * counts
    assert_same_gradients(
        gradients(model, (found * weights).sum()), gradients(model, (expected * weights).sum())
    )


@every_model
def test_without_a_mask_every_column_is_wanted(name: str) -> None:
    model = cached(name)
    tokens = torch.randint(V, (3, 11), generator=seeded(2))
    with torch.no_grad():
        found = token_log_probs(model, tokens)
        assert (found[:, 0] == 0).all()
        torch.testing.assert_close(found, naive(model, tokens), atol=2e-5, rtol=1e-5)


@few_models
@pytest.mark.parametrize("lengths", [(3, 13), (13, 3), (1, 3, 12), (2, 30), (4, 12, 16)], ids=str)
def test_lengths_that_fill_a_round_number_of_tokens(name: str, lengths: tuple[int, ...]) -> None:
    """Short rows before long ones, 16 or 32 tokens in all: nothing is left to round up."""
    model = cached(name)
    tokens = torch.randint(V, (len(lengths), max(lengths) + 1), generator=seeded(7))
    mask = torch.arange(tokens.shape[1]) == torch.tensor(lengths)[:, None]
    found, expected = token_log_probs(model, tokens, mask), naive(model, tokens)
    torch.testing.assert_close(found[mask], expected[mask], atol=2e-5, rtol=1e-5)
    weights = weights_like(expected) * mask
    assert_same_gradients(
        gradients(model, (found * weights).sum()), gradients(model, (expected * weights).sum())
    )


@every_model
def test_the_mask_only_chooses(name: str) -> None:
    """It is no attention mask: a column that is not wanted is still attended to."""
    model = cached(name)
    tokens = torch.randint(V, (2, 9), generator=seeded(3))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 8] = mask[1, 3] = True
    with torch.no_grad():
        all_of_it, some = token_log_probs(model, tokens), token_log_probs(model, tokens, mask)
    torch.testing.assert_close(some, torch.where(mask, all_of_it, 0.0), atol=1e-5, rtol=1e-5)
    assert some.count_nonzero() == 2


@every_model
def test_what_lies_beyond_the_last_wanted_column_has_no_influence(name: str) -> None:
    model = cached(name)
    tokens, mask = a_batch()
    real = torch.arange(tokens.shape[1]) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        expected = token_log_probs(model, tokens, mask)
        for junk in (V - 1, -100, 10**9):
            filled = torch.where(real, tokens, junk)
            torch.testing.assert_close(token_log_probs(model, filled, mask), expected)
        wider = nn.functional.pad(tokens, (0, 20), value=7)
        found = token_log_probs(model, wider, nn.functional.pad(mask, (0, 20)))
        torch.testing.assert_close(found[:, : tokens.shape[1]], expected, atol=1e-5, rtol=1e-5)
        alone = token_log_probs(model, tokens[2:3, : LENGTHS[2]], mask[2:3, : LENGTHS[2]])
        torch.testing.assert_close(alone, expected[2:3, : LENGTHS[2]], atol=1e-5, rtol=1e-5)


@every_model
def test_restarting_positions_isolate_documents(name: str) -> None:
    model = cached(name)
    parts = [(5, 1, 7), (2, 11)]
    tokens = torch.randint(V, (2, 13), generator=seeded(4))
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in sizes]) for sizes in parts])
    found = token_log_probs(model, tokens, position_ids=position_ids)
    pieces = []
    for row, sizes in enumerate(parts):
        pieces.append(
            torch.cat([naive(model, part) for part in tokens[row : row + 1].split(sizes, 1)], 1)
        )
    expected = torch.cat(pieces)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[position_ids == 0] == 0).all()
    weights = weights_like(found)
    assert_same_gradients(
        gradients(model, (found * weights).sum()), gradients(model, (expected * weights).sum())
    )


@every_model
@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (0, 1), (2, 4)])
def test_where_nothing_is_wanted_the_graph_still_holds_every_parameter(
    name: str, shape: tuple[int, int]
) -> None:
    """Processes without rows must take part in the reduction of gradients."""
    model = cached(name)
    tokens = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, 0] = True
    found = token_log_probs(model, tokens, mask)
    assert found.shape == shape
    assert (found == 0).all()
    assert all((grad == 0).all() for grad in gradients(model, found.sum()).values())
    if shape[0] == 0 or shape[1] == 1:
        gradients(model, token_log_probs(model, tokens).sum())
    found = shared_prompt_log_probs(
        model,
        tokens,
        mask,
        group_size=max(1, shape[0]),
        prompt_lengths=torch.ones(min(1, shape[0]), dtype=torch.int64),
    )
    assert found.shape == shape
    assert all((grad == 0).all() for grad in gradients(model, found.sum()).values())


def groups(prompts: tuple[int, ...], size: int, own: int) -> tuple[Tensor, Tensor]:
    """Return tokens and mask of ``size`` completions each, of unequal lengths, 0 among them."""
    g = seeded(5)
    width = max(prompts) + own
    rows = []
    for n in prompts:
        prompt = torch.randint(V, (n,), generator=g)
        rows += [
            torch.cat((prompt, torch.randint(V, (width - n,), generator=g))) for _ in range(size)
        ]
    starts = torch.tensor(prompts).repeat_interleave(size)[:, None]
    lengths = torch.randint(0, own + 1, (len(rows), 1), generator=g)
    place = torch.arange(width)
    return torch.stack(rows), (place >= starts) & (place < starts + lengths)


@every_model
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_shared_prompts_change_nothing(name: str, temperature: float) -> None:
    model, prompts, size = cached(name), (6, 1, 9), 3
    tokens, mask = groups(prompts, size, own=5)
    found = shared_prompt_log_probs(
        model,
        tokens,
        mask,
        group_size=size,
        prompt_lengths=torch.tensor(prompts),
        temperature=temperature,
    )
    expected = token_log_probs(model, tokens, mask, temperature=temperature)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = weights_like(found)
    assert_same_gradients(
        gradients(model, (found * weights).sum()), gradients(model, (expected * weights).sum())
    )


@few_models
def test_shared_prompts_may_count_themselves(name: str) -> None:
    """Demonstrations are trained on whole, here with another mask in each row."""
    model, prompts, size = cached(name), (5, 3), 2
    tokens, _ = groups(prompts, size, own=4)
    mask = torch.rand(tokens.shape, generator=seeded(6)) < 0.6
    found = shared_prompt_log_probs(
        model, tokens, mask, group_size=size, prompt_lengths=torch.tensor(prompts)
    )
    expected = token_log_probs(model, tokens, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = weights_like(found)
    assert_same_gradients(
        gradients(model, (found * weights).sum()), gradients(model, (expected * weights).sum())
    )


@few_models
def test_micro_batches_of_groups_add_up(name: str) -> None:
    model, prompts, size = cached(name), (6, 2, 9, 4), 2
    tokens, mask = groups(prompts, size, own=5)
    lengths = torch.tensor(prompts)
    weights = weights_like(mask)

    def run(first: int, last: int) -> tuple[Tensor, Tensor]:
        rows = slice(first * size, last * size)
        found = shared_prompt_log_probs(
            model,
            tokens[rows],
            mask[rows],
            group_size=size,
            prompt_lengths=lengths[first:last],
        )
        return found.detach(), (found * weights[rows]).sum()

    figures, total = run(0, 4)
    whole = gradients(model, total)
    parts = [run(first, last) for first, last in ((0, 1), (1, 3), (3, 4))]
    torch.testing.assert_close(torch.cat([f for f, _ in parts]), figures, atol=1e-5, rtol=1e-5)
    added = [gradients(model, part) for _, part in parts]
    assert_same_gradients(
        {key: sum((a[key] for a in added), torch.zeros(())) for key in whole}, whole
    )


@few_models
def test_long_rows_take_the_same_laws(name: str) -> None:
    """Beyond a few dozen tokens attention goes another way."""
    kind, more = MODELS[name]
    import transformers

    config_of = getattr(transformers, f"{kind}Config")
    model_of = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    size = {"n_positions": 320} if kind == "GPT2" else {"max_position_embeddings": 320}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = GPT2 if kind == "GPT2" else SIZES
        model = model_of(config_of(**{**base, **more, **size})).eval()
    prompts, group = (150, 90), 2
    tokens, mask = groups(prompts, group, own=60)
    expected = naive(model, tokens)
    weights = weights_like(expected) * mask
    wanted = gradients(model, (expected * weights).sum())
    shared = {"group_size": group, "prompt_lengths": torch.tensor(prompts)}
    for found in (
        token_log_probs(model, tokens, mask),
        shared_prompt_log_probs(model, tokens, mask, **shared),  # type: ignore[arg-type]
    ):
        torch.testing.assert_close(found[mask], expected[mask], atol=2e-5, rtol=1e-5)
        assert_same_gradients(gradients(model, (found * weights).sum()), wanted)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest new floating-point tensor holds."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.numbers = max(self.numbers, x.numel())
        return result


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logits_of_all_tokens_never_exist(name: str) -> None:
    """Neither forward nor backward: no tensor of half the size of ``(B, T, V)`` is made."""
    import transformers

    kind, _ = MODELS[name]
    config_of = getattr(transformers, f"{kind}Config")
    model_of = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    vocabulary, rows, columns = 60_000, 8, 24
    base = GPT2 if kind == "GPT2" else SIZES
    model = model_of(config_of(**{**base, "vocab_size": vocabulary}))
    tokens = torch.randint(vocabulary, (rows, columns), generator=seeded())
    mask = torch.ones_like(tokens, dtype=torch.bool)
    tokens[:, :8] = tokens[0, :8]
    with Largest() as plain:
        token_log_probs(model, tokens, mask).sum().backward()
    with Largest() as shared:
        shared_prompt_log_probs(
            model, tokens, mask, group_size=rows, prompt_lengths=torch.tensor([8])
        ).sum().backward()
    for largest in (plain, shared):
        assert vocabulary <= largest.numbers < rows * columns * vocabulary / 2


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


def test_dropout_is_the_models_own() -> None:
    """In training it acts, from the global stream alone, and in evaluation it does not."""
    import transformers

    tokens, mask = a_batch()
    for model in (
        fresh("gpt2"),
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, attention_dropout=0.5)),
    ):
        with torch.random.fork_rng(devices=[]), training(model):
            torch.manual_seed(1)
            first = token_log_probs(model, tokens, mask)
            second = token_log_probs(model, tokens, mask)
            torch.manual_seed(1)
            again = token_log_probs(model, tokens, mask)
            assert not torch.equal(first, second)
            assert torch.equal(first, again)
            found = gradients(model, first.sum())
            assert_same_gradients(found, gradients(model, again.sum()))
            assert all(grad.isfinite().all() for grad in found.values())
        with torch.no_grad():
            quiet = token_log_probs(model, tokens, mask)
            assert torch.equal(quiet, token_log_probs(model, tokens, mask))
            assert not torch.equal(quiet, first)


def test_the_gradient_is_that_of_the_dropout_that_was_drawn() -> None:
    """What is computed again in the backward pass draws the same; a finite difference tells."""
    model = fresh("gpt2").double()
    tokens, mask = a_batch()
    weight, step = model.transformer.h[0].mlp.c_fc.weight, 1e-3

    def total() -> Tensor:
        torch.manual_seed(3)
        return token_log_probs(model, tokens, mask).double().sum()

    with torch.random.fork_rng(devices=[]), training(model):
        (grad,) = torch.autograd.grad(total(), weight)
        place = int(grad.abs().argmax())
        with torch.no_grad():
            weight.view(-1)[place] += step
            above = total()
            weight.view(-1)[place] -= 2 * step
            below = total()
    difference = (above - below) / (2 * step)
    torch.testing.assert_close(grad.view(-1)[place], difference, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-window", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_of_weights(name: str, dtype: torch.dtype) -> None:
    model = fresh(name).to(dtype)
    tokens, mask = a_batch()
    found = token_log_probs(model, tokens, mask)
    assert found.dtype == torch.float32
    counts = mask.clone()
    counts[:, 0] = False
    assert (found[~counts] == 0).all()
    expected = naive(model, tokens)
    near = 1e-5 if dtype is torch.float64 else 0.15
    torch.testing.assert_close(found[counts], expected[counts], atol=near, rtol=0)
    for grad in gradients(model, found.sum()).values():
        assert grad.dtype == dtype
        assert grad.isfinite().all()
    prompt = tokens[:1].expand(4, -1)
    shared = {"group_size": 4, "prompt_lengths": torch.tensor([5])}
    both = shared_prompt_log_probs(model, prompt, mask, **shared)  # type: ignore[arg-type]
    assert both.dtype == torch.float32
    torch.testing.assert_close(both, token_log_probs(model, prompt, mask), atol=near, rtol=0)


@few_models
def test_mode_caches_and_random_state_are_left_alone(name: str) -> None:
    model = fresh(name).train()
    tokens, mask = a_batch()
    before, caches = torch.get_rng_state(), model.config.use_cache
    model.eval()
    token_log_probs(model, tokens, mask).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config.use_cache == caches
    assert not any(module.training for module in model.modules())


@few_models
def test_frozen_parameters_stay_without_gradient(name: str) -> None:
    """As with a frozen body: what may learn gets the naive gradient, the rest none."""
    model = fresh(name)
    head = model.get_output_embeddings().weight
    model.requires_grad_(False)
    head.requires_grad_(True)
    tokens, mask = a_batch()
    mask[:, 0] = False
    (found,) = torch.autograd.grad(token_log_probs(model, tokens, mask).sum(), head)
    (expected,) = torch.autograd.grad((naive(model, tokens) * mask).sum(), head)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    assert not token_log_probs(model, tokens, mask).requires_grad


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"mask": torch.ones(4, 3, dtype=torch.bool)}, "mask"),
        ({"position_ids": torch.zeros(4, 3, dtype=torch.int64)}, "position_ids"),
    ],
    ids=str,
)
def test_bad_calls_are_refused(name: str, settings: dict[str, Any], words: str) -> None:
    tokens, _ = a_batch()
    with pytest.raises(ValueError, match=words):
        token_log_probs(cached(name), tokens, **settings)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_groups_that_share_no_prompt_are_refused(name: str) -> None:
    model = cached(name)
    tokens, mask = groups((4, 3), 2, own=3)
    lengths = torch.tensor([4, 3])

    def call(size: int, prompt_lengths: Tensor, given: Tensor = tokens) -> None:
        shared_prompt_log_probs(model, given, mask, group_size=size, prompt_lengths=prompt_lengths)

    with pytest.raises(ValueError, match="group_size=3"):
        call(3, lengths)
    with pytest.raises(ValueError, match="group_size=0"):
        call(0, lengths)
    with pytest.raises(ValueError, match="prompt_lengths"):
        call(2, torch.tensor([4, 3, 3]))
    with pytest.raises(ValueError, match="prompt_lengths"):
        call(2, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="prompt_lengths"):
        call(2, torch.tensor([4, 99]))
    other = tokens.clone()
    other[3, 1] = (other[3, 1] + 1) % V
    with pytest.raises(ValueError, match=r"row 3 .* column 1"):
        call(2, lengths, other)
