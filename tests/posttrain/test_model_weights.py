from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from posttrain.model_weights import describe_misfit, find_misfit, harmless

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
}
GPT2: dict[str, Any] = {"vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 5}
MODELS = {
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**SIZES | more)),
    "llama-biased": lambda **more: LlamaForCausalLM(
        LlamaConfig(**SIZES | {"attention_bias": True, "mlp_bias": True} | more)
    ),
    "llama-wide": lambda **more: LlamaForCausalLM(LlamaConfig(**SIZES | {"head_dim": 6} | more)),
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**SIZES | more)),
    "qwen2-tied": lambda **more: Qwen2ForCausalLM(
        Qwen2Config(**SIZES | {"tie_word_embeddings": True} | more)
    ),
    "qwen2-headless": lambda **more: Qwen2Model(
        Qwen2Config(**SIZES | {"tie_word_embeddings": True} | more)
    ),
    "qwen3": lambda **more: Qwen3ForCausalLM(Qwen3Config(**SIZES | more)),
    "qwen3-biased": lambda **more: Qwen3ForCausalLM(
        Qwen3Config(**SIZES | {"attention_bias": True, "head_dim": 2} | more)
    ),
    "mistral": lambda **more: MistralForCausalLM(MistralConfig(**SIZES | more)),
    "gpt2": lambda **more: GPT2LMHeadModel(GPT2Config(**GPT2 | more)),
    "gpt2-inner": lambda **more: GPT2LMHeadModel(GPT2Config(**GPT2 | {"n_inner": 7} | more)),
    "gpt2-headless": lambda **more: GPT2Model(GPT2Config(**GPT2 | more)),
}


def of(name: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the config and the shapes that transformers itself writes."""
    with torch.device("meta"):
        model: PreTrainedModel = MODELS[name]()
    shapes = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return model.config.to_dict(), shapes


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_writes_fits_and_nothing_less_or_more(name: str) -> None:
    config, shapes = of(name)
    assert find_misfit(config, shapes) is None
    assert find_misfit({"model_type": config["model_type"]}, shapes) is None or "biased" in name
    for key, shape in shapes.items():
        said = find_misfit(config, {k: v for k, v in shapes.items() if k != key})
        assert said is not None
        assert key in said or "headless" in name
        said = find_misfit(config, shapes | {key: (*shape[:-1], shape[-1] + 1)})
        assert said is not None
        assert f"has shape {[*shape[:-1], shape[-1] + 1]}" in said
    said = find_misfit(config, shapes | {"model.extra.weight": (3,)})
    assert said is not None
    assert "unexpected: " in said


@pytest.mark.parametrize("name", MODELS)
def test_buffers_of_older_files_do_no_harm(name: str) -> None:
    config, shapes = of(name)
    prefix = "transformer.h.0" if config["model_type"] == "gpt2" else "model.layers.0"
    old = {f"{prefix}.self_attn.rotary_emb.inv_freq": (1,), f"{prefix}.attn.bias": (1, 1, 5, 5)}
    assert find_misfit(config, shapes | old) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "unexpected: model.layers.0.self_attn.k_proj.bias and 5 more"),
        ({"model_type": "mistral"}, "unexpected: model.layers.0.self_attn.k_proj.bias and 5 more"),
        (
            {"model_type": "qwen3"},
            "missing: model.layers.0.self_attn.q_norm.weight and 3 more; "
            "unexpected: model.layers.0.self_attn.k_proj.bias and 5 more",
        ),
        (
            {"model_type": "gpt2"},
            "missing: transformer.wte.weight and 3 more; "
            "unexpected: model.embed_tokens.weight and 25 more",
        ),
        (
            {"num_hidden_layers": 3},
            "2 layers are stored, but num_hidden_layers is 3; "
            "missing: model.layers.2.input_layernorm.weight and 11 more",
        ),
        (
            {"num_hidden_layers": 1},
            "2 layers are stored, but num_hidden_layers is 1; "
            "unexpected: model.layers.1.input_layernorm.weight and 11 more",
        ),
        (
            {"vocab_size": 13},
            "model.embed_tokens.weight (vocab_size x hidden_size) has shape [11, 8], "
            "promised is [13, 8] (1 more such)",
        ),
        (
            {"num_key_value_heads": 4},
            "model.layers.0.self_attn.k_proj.weight (num_key_value_heads*head_dim x hidden_size) "
            "has shape [4, 8], promised is [8, 8] (7 more such)",
        ),
        (
            {"hidden_size": 16},
            "model.embed_tokens.weight (vocab_size x hidden_size) has shape [11, 8], "
            "promised is [11, 16] (26 more such)",
        ),
    ],
)
def test_a_config_that_is_not_the_weights_own(change: dict[str, Any], said: str) -> None:
    config, shapes = of("qwen2")
    assert find_misfit(config | change, shapes) == said


def test_a_head_is_promised_where_it_is_not_tied() -> None:
    config, shapes = of("qwen2-tied")
    untied = config | {"tie_word_embeddings": False}
    assert find_misfit(untied, shapes) == "missing: lm_head.weight"
    assert find_misfit(config, shapes | {"lm_head.weight": (11, 8)}) is None


def test_a_config_of_a_million_layers_is_refused_at_once() -> None:
    config, shapes = of("qwen2")
    said = find_misfit(config | {"num_hidden_layers": 10**9}, shapes)
    assert said is not None
    assert said.startswith("2 layers are stored, but num_hidden_layers is 1000000000; missing: ")


def test_sizes_that_are_no_numbers_promise_nothing() -> None:
    config, shapes = of("qwen2")
    assert find_misfit(config | {"hidden_size": "8", "vocab_size": None}, shapes) is None


def test_other_families_and_quantised_weights_are_left_to_loading() -> None:
    config, shapes = of("qwen2")
    assert find_misfit(config | {"model_type": "phi3"}, shapes) is None
    quantised = config | {"quantization_config": {"bits": 4}, "hidden_size": 99}
    assert find_misfit(quantised, shapes) is None
    named = {"model_type": "bert", "architectures": ["Qwen2ForCausalLM"]}
    assert find_misfit(named, shapes) == (
        "Qwen2ForCausalLM has model_type 'qwen2', but the config says 'bert'"
    )


def test_what_is_harmless() -> None:
    assert harmless("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert harmless("h.0.attn.masked_bias")
    assert not harmless("h.0.attn.c_attn.bias")
    assert not harmless("model.layers.0.self_attn.q_proj.bias")


def test_nothing_to_describe() -> None:
    assert describe_misfit([], [], []) is None
