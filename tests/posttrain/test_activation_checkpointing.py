"""Activation checkpointing: the same bits from less memory, in the decoder and in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from launch.errors import UsageError
from launch.memory import checkpoint_activations
from launch.optimizers import AdamW
from launch.runtime import Runtime, RuntimeConfig
from posttrain.adapters import LoRA, with_adapters
from posttrain.decoder import unsupported
from posttrain.log_probs import shared_prompt_log_probs, token_log_probs
from posttrain.models import LanguageModel
from posttrain.rollout import Engine, Sampling

TOKENS = torch.randint(1, 97, (6, 24), generator=torch.Generator().manual_seed(3))
NAMES = ("llama-biases-tied", "qwen2-sliding", "qwen3-wide-heads", "gpt2", "llama-rope-dynamic")


def gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor], int]:
    """Return log-probs, gradients, and the bytes that autograd keeps beside the parameters."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x: Tensor) -> Tensor:
        place = x.untyped_storage()
        if place.data_ptr() not in own:
            kept[place.data_ptr()] = place.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        log_probs = token_log_probs(model, TOKENS)
        size = sum(kept.values())
        log_probs.square().sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return log_probs.detach(), found, size


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits(model_of: Callable[[str], nn.Module], name: str, lora: bool) -> None:
    found = []
    for checkpoints in (False, True):
        model = model_of(name)
        if lora:
            model = with_adapters(LanguageModel(model, None, 0, ()), LoRA(rank=2)).model  # type: ignore[arg-type]  # no tokenizer is needed
        if checkpoints:
            reason = unsupported(model)
            checkpoint_activations(model)
            assert unsupported(model) == reason
        found.append(gradients(model))
    (log_probs, grads, size), (again, grads_again, smaller) = found
    assert torch.equal(again, log_probs)
    assert grads.keys() == grads_again.keys()
    assert all(torch.equal(x, grads_again[n]) for n, x in grads.items())
    if name not in ("gpt2", "llama-rope-dynamic"):  # those run again in whole, whatever is asked
        assert smaller < size / 2


def test_layers_are_run_again_in_the_models_own_forward(
    model_of: Callable[[str], nn.Module],
) -> None:
    model = model_of("gpt2")
    counts = []
    for checkpoints in (False, True):
        if checkpoints:
            checkpoint_activations(model)
        seen: list[int] = []
        layer = model.transformer.h[0].mlp
        handle = layer.register_forward_pre_hook(lambda *_, s=seen: s.append(1))
        token_log_probs(model, TOKENS).sum().backward()
        handle.remove()
        counts.append(len(seen))
    # a pass, and one more of all layers; within that one, each layer once more
    assert counts == [2, 3]


@pytest.mark.filterwarnings("ignore:sampling runs through model.forward")
@pytest.mark.parametrize("name", ["qwen2-sliding", "gpt2"])
def test_sampling_keeps_its_caches(model_of: Callable[[str], nn.Module], name: str) -> None:
    model = model_of(name)
    prompts, sampling = [[5, 6, 7], [8, 9]], Sampling(max_tokens=6)
    expected = Engine(model).generate(prompts, sampling, 2)
    checkpoint_activations(model)
    found = Engine(model).generate(prompts, sampling, 2)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.old_log_probs, expected.old_log_probs)


def test_shared_prompts_give_the_same_bits(model_of: Callable[[str], nn.Module]) -> None:
    tokens = TOKENS[:1].expand(6, -1).clone()
    tokens[:, 12:] = TOKENS[:, 12:]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    found = []
    for checkpoints in (False, True):
        model = model_of("llama-rope-llama3")
        if checkpoints:
            checkpoint_activations(model)
        lengths = torch.tensor([12])
        log_probs = shared_prompt_log_probs(
            model, tokens, mask, group_size=6, prompt_lengths=lengths
        )
        log_probs.sum().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_asks_for_it(model_of: Callable[[str], nn.Module], precision: str) -> None:
    models = []
    config = RuntimeConfig(precision=precision)  # type: ignore[arg-type]  # one of its kinds
    for checkpoints in (False, True):
        model = model_of("qwen2-sliding")
        with Runtime(replace(config, activation_checkpointing=checkpoints)) as run:
            prepared, optimizer = run.prepare(model, AdamW(learning_rate=1e-2).build(model))
            for _ in range(2):
                run.backward(-token_log_probs(prepared, TOKENS).sum())
                run.step(optimizer)
        assert model.is_activation_checkpointing == checkpoints
        models.append(model.state_dict())
    assert all(torch.equal(x, models[1][name]) for name, x in models[0].items())


def test_models_without_such_layers_are_named() -> None:
    with pytest.raises(UsageError, match="Linear knows no layers to compute again"):
        checkpoint_activations(nn.Linear(2, 2))
