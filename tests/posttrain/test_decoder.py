from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from posttrain.decoder import has_dropout, read_decoder, unsupported
from posttrain.decoder_layout import rounded, sequences


def test_hidden_states_equal_the_models_own(decoded_model: nn.Module) -> None:
    assert unsupported(decoded_model) is None
    lengths, g = [5, 23, 1, 12], torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 97, (n,), generator=g) for n in lengths]
    tokens = torch.zeros(rounded(sum(lengths)), dtype=torch.int64)
    positions = torch.zeros_like(tokens)
    tokens[: sum(lengths)] = torch.cat(rows)
    positions[: sum(lengths)] = torch.cat([torch.arange(n) for n in lengths])
    with torch.no_grad():
        ours = read_decoder(decoded_model).hidden_states(
            tokens, positions, sequences(torch.tensor(lengths)), torch.arange(sum(lengths))
        )
        truth = [decoded_model.model(row[None]).last_hidden_state[0] for row in rows]
    torch.testing.assert_close(ours, torch.cat(truth), rtol=1e-5, atol=2e-5)


def test_read_decoder_holds_the_models_own_parameters(model_of: Callable[..., nn.Module]) -> None:
    model = model_of("qwen2-sliding")
    decoder = read_decoder(model)
    assert decoder.embedding.weight is model.model.embed_tokens.weight
    assert decoder.layers[1].down is model.model.layers[1].mlp.down_proj
    assert [layer.window for layer in decoder.layers] == [None, 7, 7]


def test_size_counts_what_a_token_is_multiplied_by(model_of: Callable[..., nn.Module]) -> None:
    # per layer: q, k, v (8 + 4 + 4 heads' halves of 48 rows), o, then gate, up and down of 96
    layer = (48 + 24 + 24) * 48 + 48 * 48 + 3 * 48 * 96
    assert read_decoder(model_of("qwen2-rope-yarn")).size == 3 * layer + 97 * 48


class Patched(nn.Linear):
    pass


def hooked(model: nn.Module) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def replaced(model: nn.Module) -> None:
    model.model.layers[0].self_attn.q_proj = Patched(48, 48)


def another_forward(model: nn.Module) -> None:
    model.model.norm.forward = lambda x: x


def gelu(model: nn.Module) -> None:
    model.config.hidden_act = "gelu"


def other_attention(model: nn.Module) -> None:
    model.config._attn_implementation = "my_attention"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked, "model.layers.1.mlp has a hook"),
        (replaced, "model.layers.0.self_attn.q_proj is a Patched"),
        (another_forward, "model.norm has a hook or another forward"),
        (gelu, "activation is gelu"),
        (other_attention, "attention is my_attention"),
    ],
)
def test_unsupported_names_what_it_does_not_know(
    model_of: Callable[..., nn.Module], change: Callable[[nn.Module], None], reason: str
) -> None:
    model = model_of("llama-rope-linear")
    change(model)
    assert reason in str(unsupported(model))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gpt2", "GPT2LMHeadModel is not a Llama, Qwen2, Qwen3 or Mistral"),
        ("gemma2-capped-logits", "Gemma2ForCausalLM is not"),
        ("llama-rope-dynamic", "type dynamic"),
    ],
)
def test_unsupported_names_other_models(
    model_of: Callable[..., nn.Module], name: str, reason: str
) -> None:
    assert reason in str(unsupported(model_of(name)))


def test_unsupported_takes_no_subclass(model_of: Callable[..., nn.Module]) -> None:
    model = model_of("llama-rope-linear")

    class LlamaForCausalLM(type(model)):  # type: ignore[misc]  # a class made at run time
        pass

    model.__class__ = LlamaForCausalLM
    assert "is not a Llama" in str(unsupported(model))


def test_has_dropout_in_training_alone(model_of: Callable[..., nn.Module]) -> None:
    model = model_of("qwen2-sliding")
    model.config.attention_dropout = 0.1
    assert not has_dropout(model)
    assert has_dropout(model.train())
