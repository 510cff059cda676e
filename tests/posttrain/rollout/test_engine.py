from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.log_probs import token_log_probs
from posttrain.rollout import Engine, Rollout, Sampling

ModelOf = Callable[[str], nn.Module]


def quiet_engine(model: nn.Module) -> Engine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Engine(model)


def prompts(lengths: Sequence[int] = (5, 9, 9, 1, 40, 36)) -> list[list[int]]:
    g = torch.Generator().manual_seed(3)
    return [torch.randint(1, 97, (n,), generator=g).tolist() for n in lengths]


def test_greedy_tokens_equal_transformers_generate(any_model: nn.Module) -> None:
    rows = prompts()
    rollout = quiet_engine(any_model).generate(rows, Sampling(max_tokens=12, temperature=0))
    for p, row in enumerate(rows):
        expected = any_model.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert rollout.tokens[p, : len(row) + 12].tolist() == expected[0].tolist()


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=12),
        Sampling(max_tokens=12, temperature=0.7, top_k=20, top_p=0.8, stop_tokens=tuple(range(25))),
    ],
)
def test_log_probs_equal_a_full_forward_pass(
    any_model: nn.Module, group_size: int, sampling: Sampling
) -> None:
    rollout = quiet_engine(any_model).generate(prompts(), sampling, group_size)
    with torch.no_grad():
        old = token_log_probs(any_model, rollout.tokens, rollout.mask)
        tempered = token_log_probs(
            any_model, rollout.tokens, rollout.mask, temperature=sampling.temperature
        )
    torch.testing.assert_close(rollout.old_log_probs, old, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.tempered_log_probs, tempered, rtol=0, atol=1e-4)
    if sampling.temperature == 1:
        assert rollout.tempered_log_probs is rollout.old_log_probs


def test_a_completion_depends_on_neither_batch_nor_group_size(any_model: nn.Module) -> None:
    engine, rows, seeds = quiet_engine(any_model), prompts(), [7, -3, 2**63 + 5, 0, 1, 11]
    sampling = Sampling(max_tokens=20, temperature=1.2, top_p=0.95, stop_tokens=(1, 2, 3, 4, 5))
    whole = engine.generate(rows, sampling, 4, seeds=seeds).completions()
    torch.manual_seed(99)
    part = engine.generate([rows[5], rows[1]], sampling, 2, seeds=[11, -3]).completions()
    assert part == [whole[20], whole[21], whole[4], whole[5]]
    alone = engine.generate([rows[4]], sampling, seeds=[1]).completions()
    assert alone == [whole[16]]


def test_completions_of_a_group_and_of_equal_prompts_differ(model_of: ModelOf) -> None:
    engine = Engine(model_of("llama-biases-tied"))
    done = engine.generate([[1, 2, 3]] * 3, Sampling(max_tokens=16), 3).completions()
    assert len({tuple(row) for row in done}) == 9


def test_default_seeds_are_the_places_of_the_prompts(model_of: ModelOf) -> None:
    engine, rows = Engine(model_of("qwen2-sliding")), prompts()[:3]
    sampling = Sampling(max_tokens=8)
    given = engine.generate(rows, sampling, seeds=[0, 1, 2])
    assert given.completions() == engine.generate(rows, sampling).completions()
    other = engine.generate(rows, sampling, seeds=[3, 4, 5])
    assert given.completions() != other.completions()


def ends(rollout: Rollout, rows: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Check every row against its own tokens."""
    group = len(rollout.tokens) // len(rows)
    for i, (tokens, mask) in enumerate(zip(rollout.tokens, rollout.mask, strict=True)):
        prompt = rows[i // group]
        done = tokens[mask].tolist()
        start, stop = len(prompt), len(prompt) + len(done)
        assert tokens[:start].tolist() == list(prompt)
        assert mask.nonzero().view(-1).tolist() == list(range(start, stop))
        assert not any(token in sampling.stop_tokens for token in done[:-1])
        stopped = done[-1] in sampling.stop_tokens
        assert stopped or len(done) == sampling.max_tokens
        assert rollout.finish_reasons[i] == ("stop" if stopped else "length")
        for x in (rollout.old_log_probs[i], rollout.tempered_log_probs[i]):
            assert not x[~mask].any()
            assert bool((x[mask] < 0).all())


@pytest.mark.parametrize("name", ["qwen2-rope-yarn", "mistral-sliding", "gpt2"])
@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_rows_end_at_their_first_stop_token(model_of: ModelOf, name: str, group_size: int) -> None:
    rows = prompts([4, 17, 9] * 8)
    for count in (2, 30):
        sampling = Sampling(max_tokens=30, temperature=1.5, stop_tokens=tuple(range(count)))
        rollout = quiet_engine(model_of(name)).generate(rows, sampling, group_size)
        ends(rollout, rows, sampling)
        assert "stop" in rollout.finish_reasons
        width = max(len(p) for p in rows) + 30
        assert rollout.tokens.shape[1] <= width
        assert bool(rollout.mask[:, -1].any())


def test_a_stop_token_at_the_last_place_is_a_stop(model_of: ModelOf) -> None:
    engine = Engine(model_of("qwen3-wide-heads"))
    free = engine.generate([[5, 6]], Sampling(max_tokens=1))
    assert free.finish_reasons == ["length"]
    token = int(free.tokens[0, 2])
    again = engine.generate([[5, 6]], Sampling(max_tokens=1, stop_tokens=(token,)))
    assert again.completions() == [[token]]
    assert again.finish_reasons == ["stop"]


def test_without_stop_tokens_the_models_own_are_not_asked(model_of: ModelOf) -> None:
    model = model_of("llama-biases-tied")
    model.config.eos_token_id = list(range(97))
    model.generation_config.eos_token_id = list(range(97))
    rollout = Engine(model).generate(prompts(), Sampling(max_tokens=7))
    assert rollout.mask.sum(1).tolist() == [7] * 6
    assert set(rollout.finish_reasons) == {"length"}


def test_long_completions_widen_the_cache(model_of: ModelOf) -> None:
    model = model_of("mistral-sliding")
    for group_size in (1, 2):
        rollout = Engine(model).generate(prompts([5, 3]), Sampling(max_tokens=150), group_size)
        with torch.no_grad():
            full = token_log_probs(model, rollout.tokens, rollout.mask)
        torch.testing.assert_close(rollout.old_log_probs, full, rtol=0, atol=1e-4)


def test_turns_that_fit_the_cache_give_the_same(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sampling = Engine(model_of("qwen2-rope-yarn")), Sampling(max_tokens=10)
    whole = engine.generate(prompts(), sampling, 2)
    monkeypatch.setattr("posttrain.rollout.engine._CACHE_BYTES", 1)
    monkeypatch.setattr("posttrain.rollout.decoding._PREFILL_TOKENS", {"cpu": 6})
    parts = engine.generate(prompts(), sampling, 2)
    assert parts.completions() == whole.completions()
    torch.testing.assert_close(parts.old_log_probs, whole.old_log_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama-biases-tied", "gpt2"])
def test_training_mode_and_gradients_are_left_alone(model_of: ModelOf, name: str) -> None:
    model = model_of(name).train()
    next(model.children()).eval()
    first = next(model.parameters())
    first.requires_grad_(False)
    flags = [module.training for module in model.modules()]
    rollout = quiet_engine(model).generate(prompts()[:2], Sampling(max_tokens=4))
    assert [module.training for module in model.modules()] == flags
    assert not first.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not rollout.old_log_probs.is_inference()
    weight = torch.ones_like(rollout.old_log_probs, requires_grad=True)
    (weight * rollout.old_log_probs).sum().backward()  # may be saved for a backward pass


def test_dropout_is_off_while_a_portable_model_samples() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    engine = quiet_engine(GPT2LMHeadModel(config).train())
    sampling = Sampling(max_tokens=10)
    assert (
        engine.generate([[1, 2]], sampling).completions()
        == engine.generate([[1, 2]], sampling).completions()
    )


def test_an_update_of_the_parameters_is_seen(model_of: ModelOf) -> None:
    model = model_of("qwen2-rope-yarn")
    engine, sampling = Engine(model), Sampling(max_tokens=5, temperature=0)
    engine.generate([[1, 2]], sampling)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.3)
    rollout = engine.generate([[1, 2]], sampling)
    with torch.no_grad():
        full = token_log_probs(model, rollout.tokens, rollout.mask)
    torch.testing.assert_close(rollout.old_log_probs, full, rtol=0, atol=1e-4)


def test_other_families_are_sampled_through_forward_with_one_warning(model_of: ModelOf) -> None:
    model = model_of("gpt2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = Engine(model)
        engine.generate([[1, 2]], Sampling(max_tokens=2))
        engine.generate([[1, 2]], Sampling(max_tokens=2))
    assert len(caught) == 1
    assert "model.forward" in str(caught[0].message)
    assert "GPT2LMHeadModel" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_known_model_gives_no_warning(model_of: ModelOf) -> None:
    Engine(model_of("qwen2-rope-yarn")).generate([[1]], Sampling(max_tokens=1))


def test_no_prompts_give_an_empty_rollout(model_of: ModelOf) -> None:
    for name in ("llama-biases-tied", "gpt2"):
        rollout = quiet_engine(model_of(name)).generate([], Sampling(max_tokens=3), 4)
        assert rollout.tokens.shape == rollout.mask.shape == rollout.old_log_probs.shape == (0, 0)
        assert list(rollout.finish_reasons) == []


def test_prompts_may_be_tensors(model_of: ModelOf) -> None:
    engine, sampling = Engine(model_of("llama-biases-tied")), Sampling(max_tokens=3)
    rows = torch.tensor([[1, 2], [3, 4]])
    assert (
        engine.generate(rows, sampling).completions()
        == engine.generate(rows.tolist(), sampling).completions()
    )


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [2, 97]], {}, "prompt 1 has token 97, but the model's ids go from 0 to 96"),
        ([[-1]], {}, "prompt 0 has token -1"),
        ([[1.5]], {}, "expected integer token ids"),
        ([[1] * 250], {}, "prompt 0 has 250 tokens; with max_tokens=8 .* 256 positions"),
        ([[1], [2]], {"seeds": [1]}, "got 1 seeds for 2 prompts"),
        ([[1]], {"group_size": 0}, "group_size=0"),
    ],
)
def test_what_cannot_be_continued_is_named_before_any_work(
    model_of: ModelOf, rows: list[list[int]], more: dict[str, list[int]], message: str
) -> None:
    for name in ("llama-biases-tied", "gpt2"):
        with pytest.raises(ValueError, match=message):
            quiet_engine(model_of(name)).generate(rows, Sampling(max_tokens=8), **more)


def test_a_full_context_is_allowed(model_of: ModelOf) -> None:
    rollout = Engine(model_of("llama-biases-tied")).generate([[1] * 248], Sampling(max_tokens=8))
    assert rollout.tokens.shape == (1, 256)


@pytest.mark.parametrize("heads", [1, 4])
def test_one_key_head_serves_every_query_head(heads: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 97}
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=1)
    model, sampling = LlamaForCausalLM(config).eval(), Sampling(max_tokens=9, stop_tokens=(1, 2))
    for rows in (prompts(), prompts([4, 4])):
        rollout = Engine(model).generate(rows, sampling, 3)
        with torch.no_grad():
            old = token_log_probs(model, rollout.tokens, rollout.mask)
        torch.testing.assert_close(rollout.old_log_probs, old, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn", "dynamic"])
def test_scaled_positions_have_no_end_and_others_do(model_of: ModelOf, kind: str) -> None:
    rows, sampling = [[1] * 250], Sampling(max_tokens=8)
    name = {"linear": "llama-rope-linear", "yarn": "qwen2-rope-yarn"}.get(
        kind, "llama-rope-dynamic"
    )
    assert quiet_engine(model_of(name)).generate(rows, sampling).tokens.shape == (1, 258)


@pytest.mark.parametrize("name", ["llama-biases-tied", "gpt2"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [1.0]}, r"seeds=\[1.0\]: give a sequence of integers"),
        ({"seeds": "7"}, "seeds='7': give a sequence of integers"),
        ({"seeds": 7}, "seeds=7: give a sequence of integers"),
        ({"seeds": torch.tensor([0.5])}, "seeds=tensor"),
        ({"group_size": 1.5}, "group_size=1.5: give an integer"),
        ({"group_size": "2"}, "group_size='2': give an integer"),
    ],
)
def test_what_is_no_integer_is_refused(
    model_of: ModelOf, name: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        quiet_engine(model_of(name)).generate([[1]], Sampling(max_tokens=2), **settings)


@pytest.mark.parametrize("name", ["llama-biases-tied", "gpt2", "gemma2-capped-logits"])
def test_a_prompt_needs_logits_of_its_last_token_alone(model_of: ModelOf, name: str) -> None:
    model, counts = model_of(name), []

    class Heads(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            function: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            result = function(*args, **(kwargs or {}))
            logits = isinstance(result, torch.Tensor) and result.shape[-1:] == (97,)
            if logits and result.shape != (48, 97):  # but for the transposed weight
                counts.append(result.numel() // 97)
            return result

    with Heads():
        quiet_engine(model).generate(prompts([30, 30]), Sampling(max_tokens=3), 2)
    assert counts
    assert max(counts) <= 4
