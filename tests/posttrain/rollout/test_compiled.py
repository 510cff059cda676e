from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from posttrain.decoder import read_decoder
from posttrain.rollout import Engine, Sampling, compiled_kernels
from posttrain.rollout.compiled import CompiledDecoding
from posttrain.rollout.decoding import Decoding
from posttrain.rollout.engine import _compiles
from posttrain.rollout.sampling import draw

ModelOf = Callable[[str], nn.Module]
Finished = dict[int, list[int]]  # after which step which completions are finished


def prompts(lengths: Sequence[int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randint(1, 97, (n,), generator=g) for n in lengths]


def logits_of(
    kind: type[Decoding],
    model: nn.Module,
    lengths: Sequence[int],
    group_size: int,
    steps: int,
    finished: Finished,
) -> list[Tensor]:
    """Extend prompts by given tokens; return each step's logits, and the slots that were kept."""
    rows = len(lengths) * group_size
    tokens = torch.randint(1, 97, (steps, rows), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        session = kind(read_decoder(model), prompts(lengths), group_size, steps)
        of_slots, alive = torch.arange(rows), torch.ones(rows, dtype=torch.bool)
        seen = [session.start()]
        for t in range(steps):
            if t in finished:
                alive[finished[t]] = False
                slots = session.compact(alive[of_slots])
                assert slots is not None
                of_slots = of_slots[slots]
                seen.append(of_slots)
            seen.append(session.advance(tokens[t, of_slots]))
    return seen


def check_twins(
    model: nn.Module,
    lengths: Sequence[int],
    group_size: int,
    steps: int = 5,
    finished: Finished | None = None,
) -> None:
    case = (model, lengths, group_size, steps, finished or {})
    plain, compiled = (logits_of(kind, *case) for kind in (Decoding, CompiledDecoding))
    for expected, logits in zip(plain, compiled, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("lengths", [(9, 9), (5, 9, 1, 20)])
def test_compiled_logits_equal_the_twins(
    decoded_model: nn.Module, lengths: Sequence[int], group_size: int
) -> None:
    check_twins(decoded_model, lengths, group_size)


@pytest.mark.parametrize("heads", [1, 4])
def test_compiled_logits_equal_the_twins_with_one_key_head(heads: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 97}
    config = LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=1)
    check_twins(LlamaForCausalLM(config), (4, 7), group_size=2)


@pytest.mark.parametrize("name", ["qwen3-wide-heads", "mistral-sliding"])
@pytest.mark.parametrize(
    ("group_size", "finished"),
    [
        (1, {2: [0, 2], 6: [1]}),  # lines go
        (4, {2: [0, 1, 5, 7, 9, 12, 15], 6: [2, 3, 4, 6, 8, 10]}),  # lines get narrower, then go
    ],
)
def test_compiled_logits_equal_the_twins_after_compaction(
    model_of: ModelOf, name: str, group_size: int, finished: Finished
) -> None:
    check_twins(model_of(name), (5, 9, 1, 20), group_size, steps=9, finished=finished)


@pytest.mark.parametrize("group_size", [1, 2])
def test_compiled_logits_equal_the_twins_when_the_cache_widens(
    model_of: ModelOf, group_size: int
) -> None:
    check_twins(model_of("mistral-sliding"), (3, 5), group_size, steps=70)


@pytest.mark.parametrize("group_size", [1, 2])
def test_compiled_logits_equal_the_twins_after_long_prompts(
    model_of: ModelOf, group_size: int
) -> None:
    check_twins(model_of("qwen2-rope-yarn"), (150, 7), group_size)


def test_prompts_in_turns_give_the_same(model_of: ModelOf, monkeypatch: pytest.MonkeyPatch) -> None:
    case = (CompiledDecoding, model_of("llama-biases-tied"), (5, 9, 1, 20), 2, 4, {})
    whole = logits_of(*case)
    monkeypatch.setattr("posttrain.rollout.decoding._PREFILL_TOKENS", {"cpu": 6})
    for expected, logits in zip(whole, logits_of(*case), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_swiglu_is_exact_to_float_rounding() -> None:
    gate = np.linspace(-120, 120, 200_001, dtype=np.float32)[None]
    up = np.ones_like(gate)
    exact = gate.astype(np.float64)
    exact = exact / (1 + np.exp(-exact))
    compiled_kernels.swiglu(gate, up)
    # Below -87 the true value, under 1e-36, may be lost.
    np.testing.assert_allclose(gate, exact, rtol=4e-7, atol=1e-36)


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 97, 512])
def test_compiled_draws_equal_the_twins(vocabulary: int) -> None:
    g = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(400, vocabulary, generator=g)
    logits[::7, ::2] = -torch.inf if vocabulary > 1 else 0
    numbers = torch.rand(400, dtype=torch.float64, generator=g)
    numbers[:3], numbers[-3:] = 2.0**-53, 1 - 2.0**-53
    sampling = Sampling(max_tokens=1)
    tokens, log_probs, tempered = CompiledDecoding.draw(logits.clone(), numbers, sampling)
    expected, expected_log_probs, _ = draw(logits.clone(), numbers, sampling)
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(log_probs, expected_log_probs, rtol=0, atol=2e-6)
    assert tempered is log_probs


def test_a_score_that_is_not_a_number_is_not_hidden(model_of: ModelOf) -> None:
    model = model_of("llama-rope-linear")
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0, 0] = torch.nan
    assert logits_of(CompiledDecoding, model, (4,), 1, 2, {})[-1].isnan().all()


def test_engine_compiles_small_float32_models_on_few_threads_alone(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama-rope-linear")
    decoder = read_decoder(model)
    assert _compiles(model, decoder)
    torch.set_num_threads(4)
    assert not _compiles(model, decoder)
    torch.set_num_threads(1)
    monkeypatch.setattr("posttrain.rollout.engine._SMALL", decoder.size - 1)
    assert not _compiles(model, decoder)
    monkeypatch.undo()
    model.model.norm.double()
    assert not _compiles(model, decoder)


def test_engine_samples_in_either_way_the_same(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model_of("qwen3-wide-heads"))
    sampling = Sampling(max_tokens=20, temperature=1.2, top_p=0.95, stop_tokens=(1, 2, 3, 4, 5))
    rows = [row.tolist() for row in prompts((5, 9, 1, 20))]
    compiled = engine.generate(rows, sampling, 4)
    monkeypatch.setattr("posttrain.rollout.engine._SMALL", 0)
    plain = engine.generate(rows, sampling, 4)
    assert compiled.completions() == plain.completions()
    torch.testing.assert_close(compiled.old_log_probs, plain.old_log_probs, rtol=0, atol=1e-5)


def test_loops_compile_where_no_folder_can_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    real = compiled_kernels.njit

    def njit(function: Callable[..., object], **options: object) -> object:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **options)

    monkeypatch.setattr(compiled_kernels, "njit", njit)

    def double(x: int) -> int:
        return 2 * x

    assert compiled_kernels.compiled()(double)(21) == 42
