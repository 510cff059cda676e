"""Divergences of two models at the wanted columns, against transformers' own forward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from posttrain import log_probs_head
from posttrain.log_probs import token_divergences
from posttrain.objectives import DistillObjective, ForwardKL, JensenShannon, ReverseKL

ModelOf = Callable[[str], nn.Module]
PAIRS = {
    "two-decoders": ("qwen2-rope-yarn", "llama-biases-tied"),
    "windows": ("qwen2-sliding", "mistral-sliding"),
    "portable-student": ("gpt2", "llama-rope-llama3"),
    "portable-teacher": ("qwen3-wide-heads", "gemma2-capped-logits"),
    "lengths-matter": ("llama-rope-dynamic", "gpt2"),
}


def data(rows: int = 4, columns: int = 11) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(97, (rows, columns), generator=g)
    lengths = torch.tensor([columns, 5, 8, 1])[:rows, None]
    place = torch.arange(columns)
    mask = (torch.rand(rows, columns, generator=g) < 0.6) & (place < lengths)
    return tokens, mask


def reference(
    student: nn.Module,
    teacher: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    objective: DistillObjective,
    temperature: float,
) -> Tensor:
    """Return ``(M,)`` divergences with whole ``(B, T, V)`` logits."""
    log_p, log_q = (
        (model(tokens).logits / temperature).log_softmax(-1) for model in (student, teacher)
    )
    wanted = mask[:, 1:]
    return objective.between(log_p[:, :-1][wanted], log_q[:, :-1][wanted].detach())


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if x is None else x for x in found]


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_divergences_and_gradients_equal_those_of_whole_logits(
    pair: tuple[str, str], model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(log_probs_head._CHUNK, "cpu", 1)  # chunks of 64 rows, or fewer
    student, teacher = model_of(pair[0]), model_of(pair[1])
    tokens, mask = data()
    for objective, temperature in ((ReverseKL(), 1.0), (JensenShannon(0.3), 0.7)):
        found = token_divergences(
            student, teacher, tokens, mask, objective.between, temperature=temperature
        )
        mask[:, 0] = False
        expected = reference(student, teacher, tokens, mask, objective, temperature)
        torch.testing.assert_close(found.divergence[mask], expected, rtol=1e-4, atol=1e-5)
        assert not found.divergence[~mask].any()
        weight = torch.linspace(1, 2, len(expected))
        ours = gradients(student, (found.divergence[mask] * weight).sum())
        theirs = gradients(student, (expected * weight).sum())
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert all(parameter.grad is None for parameter in teacher.parameters())


def test_kl_and_entropy_come_with_every_divergence_and_have_no_gradient(model_of: ModelOf) -> None:
    student, teacher = model_of("qwen2-rope-yarn"), model_of("llama-biases-tied")
    tokens, mask = data()
    found = token_divergences(student, teacher, tokens, mask, ForwardKL().between)
    mask[:, 0] = False
    log_p, log_q = (m(tokens).logits[:, :-1].log_softmax(-1) for m in (student, teacher))
    p = log_p.exp()
    kl, entropy = (p * (log_p - log_q)).sum(-1), -(p * log_p).sum(-1)
    torch.testing.assert_close(found.kl[mask], kl[mask[:, 1:]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.entropy[mask], entropy[mask[:, 1:]], rtol=1e-4, atol=1e-5)
    assert not found.kl.requires_grad
    assert not found.entropy.requires_grad
    assert not torch.equal(found.divergence, found.kl)


@pytest.mark.parametrize("name", ["qwen2-rope-yarn", "gpt2"])
def test_a_model_is_at_zero_from_itself(name: str, model_of: ModelOf) -> None:
    student, teacher = model_of(name), model_of(name)
    tokens, mask = data()
    found = token_divergences(student, teacher, tokens, mask, ReverseKL().between).divergence
    assert not found.any()
    assert not any(x.any() for x in gradients(student, found.sum()))


@pytest.mark.parametrize("name", ["qwen2-rope-yarn", "gpt2"])
def test_padding_order_and_parts_change_nothing(name: str, model_of: ModelOf) -> None:
    student, teacher = model_of(name), model_of("llama-biases-tied")
    tokens, mask = data()

    def compared(tokens: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            return token_divergences(student, teacher, tokens, mask, ReverseKL().between).divergence

    whole = compared(tokens, mask)
    close = {"rtol": 1e-5, "atol": 1e-6}
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(compared(tokens[order], mask[order]), whole[order], **close)
    parts = [compared(*part) for part in zip(tokens.split(1), mask.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, **close)
    wide = [torch.nn.functional.pad(x, (0, 5, 0, 2)) for x in (tokens, mask)]
    torch.testing.assert_close(compared(*wide)[:4, :11], whole, **close)


@pytest.mark.parametrize("name", ["qwen2-rope-yarn", "gpt2"])
@pytest.mark.parametrize("rows", [0, 2])
def test_nothing_wanted_hangs_on_every_parameter(name: str, rows: int, model_of: ModelOf) -> None:
    student = model_of(name)
    tokens = torch.zeros(rows, 5, dtype=torch.int64)
    found = token_divergences(student, student, tokens, tokens.bool(), ReverseKL().between)
    assert found.divergence.shape == (rows, 5)
    total = found.divergence.sum() if rows else found.divergence.sum() + 0.0
    assert not any(x.any() for x in gradients(student, total))


@pytest.mark.parametrize("name", ["qwen2-rope-yarn", "gpt2"])
def test_vocabularies_that_differ_are_refused(name: str, model_of: ModelOf) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    tokens, mask = data()
    with pytest.raises(ValueError, match="logits of 97 tokens, the teacher of 64"):
        token_divergences(
            model_of(name),
            LlamaForCausalLM(config),
            tokens % 64,
            mask,
            ReverseKL().between,
        )
