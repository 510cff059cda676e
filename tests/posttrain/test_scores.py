"""Scores equal those of transformers' own classifiers, whatever they are computed beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.decoder import HeadKind, unsupported
from posttrain.models import LanguageModel
from posttrain.reward_models import last_columns, with_scalar_head
from posttrain.scores import TokenHead, shared_prompt_scores, token_scores

LENGTHS = (9, 4, 12, 1)
Named = Callable[[str], Any]


def classifier(model: Any, kind: HeadKind) -> Any:  # noqa: ANN401 transformers' classes
    lm = LanguageModel(model, None, 0, ())  # type: ignore[arg-type]  # no tokenizer is needed
    return with_scalar_head(lm, kind, seed=0)


def rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return ``(4, 12)`` tokens of ragged rows and the mask of their real columns."""
    tokens = torch.randint(1, 97, (4, 12), generator=torch.Generator().manual_seed(seed))
    real = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    return tokens.masked_fill(~real, 0), real


def test_last_scores_are_those_of_the_sequence_classifier(any_model: nn.Module) -> None:
    model = classifier(any_model, "ForSequenceClassification")
    decodable = unsupported(model, "ForSequenceClassification") is None
    assert decodable == (unsupported(any_model) is None)
    tokens, real = rows()
    found = token_scores(model, tokens, last_columns(real)).sum(-1)
    with torch.no_grad():
        expected = [model(tokens[i : i + 1, :n]).logits[0, 0] for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["llama-biases-tied", "mistral-sliding", "llama-rope-dynamic", "gpt2"]
)
def test_all_scores_and_gradients_are_those_of_the_token_classifier(
    name: str, model_of: Named
) -> None:
    model = classifier(model_of(name), "ForTokenClassification")  # eval: its dropout is off
    tokens, real = rows(1)
    weights = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2))
    found = token_scores(model, tokens, real)
    assert (found[~real] == 0).all()
    (found * weights).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = torch.zeros(())
    for i, n in enumerate(LENGTHS):
        scores = model(tokens[i : i + 1, :n]).logits[0, :, 0]
        torch.testing.assert_close(found[i, :n], scores, rtol=1e-4, atol=1e-4)
        loss = loss + (scores * weights[i, :n]).sum()
    loss.backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=2e-3, atol=2e-4)


def test_rows_beside_and_padding_change_nothing(model_of: Named) -> None:
    model = classifier(model_of("llama-rope-llama3"), "ForTokenClassification")
    tokens, real = rows(3)
    whole = token_scores(model, tokens, real)
    wider = torch.nn.functional.pad(tokens, (0, 5), value=7)
    again = token_scores(model, wider, torch.nn.functional.pad(real, (0, 5)))[:, :12]
    torch.testing.assert_close(again, whole, rtol=1e-5, atol=1e-6)
    order = [2, 0, 3, 1]
    turned = token_scores(model, tokens[order], real[order])
    torch.testing.assert_close(turned, whole[order], rtol=1e-5, atol=1e-6)
    one = token_scores(model, tokens[2:3], real[2:3])
    torch.testing.assert_close(one, whole[2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llama-biases-tied", "mistral-sliding", "gpt2"])
def test_shared_prompts_change_nothing(name: str, model_of: Named) -> None:
    model = classifier(model_of(name), "ForSequenceClassification")
    tokens, _ = rows(4)
    tokens[1, :4], tokens[3, :1] = tokens[0, :4], tokens[2, :1]
    ends = torch.tensor([[8], [4], [11], [1]]) == torch.arange(12)
    shared = shared_prompt_scores(
        model, tokens, ends, group_size=2, prompt_lengths=torch.tensor([4, 1])
    )
    torch.testing.assert_close(shared, token_scores(model, tokens, ends), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3-wide-heads", "gpt2"])
def test_token_head_is_the_difference_of_two_logits(name: str, model_of: Named) -> None:
    model = model_of(name)
    tokens, real = rows(5)
    found = token_scores(model, tokens, real, TokenHead(good=11, bad=5))
    with torch.no_grad():
        logits = model(tokens, attention_mask=real.long()).logits
    expected = torch.where(real, logits[..., 11] - logits[..., 5], 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama-biases-tied", "gpt2"])
def test_nothing_wanted_has_a_gradient_of_zero_everywhere(name: str, model_of: Named) -> None:
    model = classifier(model_of(name), "ForSequenceClassification")
    for tokens in (torch.zeros(0, 3).long(), torch.ones(2, 3).long()):
        scores = token_scores(model, tokens, torch.zeros(tokens.shape).bool())
        assert scores.shape == tokens.shape
        scores.sum().backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()


def test_wrong_shapes_and_models_without_scores_are_refused(model_of: Named) -> None:
    with pytest.raises(ValueError, match=r"tokens have shape \(3,\)"):
        token_scores(nn.Linear(1, 1), torch.zeros(3).long(), torch.zeros(3).bool())
    policy = model_of("llama-biases-tied")
    with pytest.raises(TypeError, match="a LlamaForCausalLM has no head that gives scores: make"):
        token_scores(policy, torch.zeros(1, 3).long(), torch.ones(1, 3).bool())
