from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
DECODED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-biases-tied": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "qwen2-rope-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2-sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3-wide-heads": ("Qwen3", {"head_dim": 20, "attention_bias": True}),
    "mistral-sliding": ("Mistral", {"sliding_window": 6}),
    "mistral-narrow-heads": ("Mistral", {"sliding_window": None, "head_dim": 8}),
}
PORTABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-rope-dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "gpt2": ("GPT2", {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "gemma2-capped-logits": (
        "Gemma2",
        {"head_dim": 12, "query_pre_attn_scalar": 12, "final_logit_softcapping": 0.5},
    ),
}
VARIANTS = DECODED | PORTABLE


def build(name: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    family, settings = VARIANTS[name]
    config = AutoConfig.for_model(family.lower(), **(SMALL | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():  # larger than at the start of training: sharper distributions
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other are slower than one, on models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model_of() -> Callable[[str], nn.Module]:
    """Build a small random model of one of the names above."""
    return build


@pytest.fixture(params=list(DECODED))
def decoded_model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture(params=list(VARIANTS))
def any_model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)
