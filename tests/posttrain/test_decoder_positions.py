"""Rotary frequencies that depend on the length, where the length matters."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.decoder_positions import forget_lengths, most_positions, same_frequencies_up_to
from posttrain.log_probs import token_log_probs
from posttrain.rollout import Engine, Sampling

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 8.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 8,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("Llama", {"max_position_embeddings": 8, "rope_parameters": DYNAMIC}),
    "longrope": (
        "Phi3",
        {
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 8,
            "rope_parameters": LONG,
        },
    ),
}

both = pytest.mark.parametrize("kind", KINDS)


def sharp(kind: str) -> nn.Module:
    import transformers

    family, more = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**SIZES, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def alone(kind: str, tokens: Tensor) -> Tensor:
    """``(T, V)`` log-probs of one pass through a model that has run nothing before."""
    with torch.no_grad():
        return sharp(kind)(tokens[None], use_cache=False).logits[0].log_softmax(-1)


@both
def test_the_length_matters_in_these_examples(kind: str) -> None:
    tokens = torch.arange(3, 15)
    assert not torch.allclose(alone(kind, tokens)[:8], alone(kind, tokens[:8]), atol=1e-2)


@both
def test_what_is_drawn_is_the_distribution_of_a_pass_over_what_lies_before(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = Engine(sharp(kind))
    prompts = [list(range(1, 13)), [3, 4], [5, 6, 7, 8, 9, 10, 11]]
    sampling = Sampling(max_tokens=9)
    rollout = engine.generate(prompts, sampling, 2)
    for tokens, mask, found in zip(
        rollout.tokens, rollout.mask, rollout.old_log_probs, strict=True
    ):
        for t in mask.nonzero().view(-1).tolist():
            expected = alone(kind, tokens[:t])[-1, tokens[t]]
            torch.testing.assert_close(found[t], expected, atol=1e-4, rtol=0)
    again = engine.generate(prompts[1:], sampling, 2, seeds=[1, 2])
    assert again.completions() == rollout.completions()[2:]


@both
def test_log_probs_are_those_of_each_row_on_its_own(kind: str) -> None:
    model = sharp(kind)
    tokens = torch.randint(41, (3, 20), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([20, 13, 6])
    mask = torch.arange(20) < lengths[:, None]
    found = token_log_probs(model, tokens, mask)
    for row, n in enumerate(lengths.tolist()):
        expected = alone(kind, tokens[row, :n])[:-1].gather(1, tokens[row, 1:n, None])[:, 0]
        torch.testing.assert_close(found[row, 1:n], expected, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for row, n in enumerate(lengths.tolist()):
        forget_lengths(model)
        logits = model(tokens[row : row + 1, :n], use_cache=False).logits[0, :-1]
        logits.log_softmax(-1).gather(1, tokens[row, 1:n, None]).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-4, rtol=1e-4)


def test_reach_is_read_off_the_config() -> None:
    import transformers

    def llama(**rope: object) -> object:
        return transformers.LlamaConfig(
            max_position_embeddings=32, rope_parameters={"rope_theta": 1e4, **rope}
        )

    plain, linear = llama(rope_type="default"), llama(rope_type="linear", factor=2.0)
    dynamic = llama(rope_type="dynamic", factor=2.0)
    assert [most_positions(c) for c in (plain, linear, dynamic)] == [32, None, None]
    assert [same_frequencies_up_to(c) for c in (plain, linear, dynamic)] == [None, None, 32]
    assert most_positions(transformers.GPT2Config(n_positions=17)) == 17
    assert same_frequencies_up_to(transformers.GPT2Config()) is None
    assert same_frequencies_up_to(sharp("longrope").config) == 8
