"""The contract of the engine, held over every family that it decodes itself and over others.

A model that joins ``FAMILIES`` is held to all of it.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.rollout import Engine, Rollout, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

V = 37
POSITIONS = 64
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "vocab_size": V,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
ROPE = {"rope_theta": 10000.0}
YOUNG = {"original_max_position_embeddings": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 8}),
    "mistral-window": ("Mistral", {"sliding_window": 4}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, **ROPE}}),
    "llama-yarn": (
        "Llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, **ROPE, **YOUNG}},
    ),
    "llama-llama3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **ROPE,
                **YOUNG,
            }
        },
    ),
    "llama-dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **ROPE}},
    ),
    "gpt2": ("GPT2", {}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 2.0},
    ),
}
PORTABLE = ("gpt2", "gemma2", "llama-dynamic")
PROMPTS = [[5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [3], [0, 0, 2, 2, 36, 0], [9, 2, 8]]
"""Of unequal lengths; pad and eos are among their ids like any other."""
FEW = ("llama", "qwen3", "mistral-window", "gpt2")

every_family = pytest.mark.parametrize("name", FAMILIES)
few_families = pytest.mark.parametrize("name", FEW)


def fresh(name: str, seed: int = 0) -> PreTrainedModel:
    """Return a model whose distributions are neither flat nor certain, in evaluation mode."""
    import transformers

    kind, more = FAMILIES[name]
    config_of = getattr(transformers, f"{kind}Config")
    model_of = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_of(config_of(**{**(GPT2 if kind == "GPT2" else SIZES), **more}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8)
                else:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@cache
def shared_model(name: str) -> PreTrainedModel:
    return fresh(name)


def engine_for(model: nn.Module) -> Engine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Engine(model)


@cache
def shared_engine(name: str) -> Engine:
    return engine_for(shared_model(name))


def log_softmax(model: PreTrainedModel, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    return torch.log_softmax(logits.float() / temperature, -1)


def completions(rollout: Rollout) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(rollout.tokens, rollout.mask, strict=True)]


def row_log_probs(
    model: PreTrainedModel, rollout: Rollout, temperature: float = 1.0
) -> Iterator[Tensor]:
    """Yield each row's log-probs, from a full forward pass over that row alone."""
    for row, keep in zip(rollout.tokens, rollout.mask, strict=True):
        places = keep.nonzero().view(-1)
        scored = log_softmax(model, row[None, : int(places[-1]) + 1], temperature)[0]
        yield scored[places - 1].gather(1, row[places][:, None])[:, 0]


@every_family
def test_greedy_tokens_are_those_of_generate(name: str) -> None:
    model, new = shared_model(name), 14
    rollout = shared_engine(name).generate(PROMPTS, Sampling(max_tokens=new, temperature=0))
    for row, prompt in enumerate(PROMPTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert rollout.tokens[row, : len(prompt) + new].tolist() == expected[0].tolist()
    assert list(rollout.finish_reasons) == ["length"] * len(PROMPTS)


@every_family
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_full_forward_pass(name: str, temperature: float) -> None:
    model = shared_model(name)
    sampling = Sampling(max_tokens=12, temperature=temperature, top_k=20, stop_tokens=(2, 7, 8))
    rollout = shared_engine(name).generate(PROMPTS, sampling, 3)
    assert rollout.old_log_probs.dtype == rollout.tempered_log_probs.dtype == torch.float32
    for row, expected in enumerate(row_log_probs(model, rollout)):
        found = rollout.old_log_probs[row][rollout.mask[row]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for row, expected in enumerate(row_log_probs(model, rollout, temperature)):
        found = rollout.tempered_log_probs[row][rollout.mask[row]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (rollout.old_log_probs[~rollout.mask] == 0).all()
    assert (rollout.tempered_log_probs[~rollout.mask] == 0).all()


@few_families
@pytest.mark.parametrize("lengths", [(3, 13), (13, 3), (1, 3, 12), (2, 30)], ids=str)
def test_lengths_that_fill_a_round_number_of_tokens(name: str, lengths: tuple[int, ...]) -> None:
    """Short prompts before long ones, 16 or 32 tokens in all: nothing is left to round up."""
    engine, sampling = shared_engine(name), Sampling(max_tokens=3)
    prompts = [[(7 * i + n) % V for i in range(n)] for n in lengths]
    rollout = engine.generate(prompts, sampling, 2)
    for p, prompt in enumerate(prompts):
        alone = completions(engine.generate([prompt], sampling, 2, seeds=[p]))
        assert completions(rollout)[2 * p : 2 * p + 2] == alone
    for row, expected in enumerate(row_log_probs(shared_model(name), rollout)):
        found = rollout.old_log_probs[row][rollout.mask[row]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_tempered_log_probs_are_the_same_tensor_at_temperature_one() -> None:
    rollout = shared_engine("llama").generate(PROMPTS, Sampling(max_tokens=4))
    assert rollout.tempered_log_probs is rollout.old_log_probs


@every_family
def test_layout(name: str) -> None:
    group = 6
    sampling = Sampling(max_tokens=6, temperature=1.5, stop_tokens=(2, 5, 13, 30))
    rollout = shared_engine(name).generate(PROMPTS, sampling, group)
    rows, columns = rollout.tokens.shape
    assert rows == len(PROMPTS) * group == len(rollout.finish_reasons)
    assert rollout.tokens.dtype == torch.int64
    assert rollout.mask.dtype == torch.bool
    for tensor in (rollout.mask, rollout.old_log_probs, rollout.tempered_log_probs):
        assert tensor.shape == (rows, columns)
    ends = []
    for row in range(rows):
        prompt = PROMPTS[row // group]
        n = int(rollout.mask[row].sum())
        ends.append(len(prompt) + n)
        assert rollout.tokens[row, : len(prompt)].tolist() == prompt
        assert rollout.mask[row].nonzero().view(-1).tolist() == list(range(len(prompt), ends[-1]))
        sampled = rollout.tokens[row, len(prompt) : ends[-1]].tolist()
        stopped = sampled[-1] in sampling.stop_tokens
        assert not any(token in sampling.stop_tokens for token in sampled[:-1])
        assert rollout.finish_reasons[row] == ("stop" if stopped else "length")
        assert stopped or n == sampling.max_tokens
    assert max(ends) == columns
    assert len(set(rollout.finish_reasons)) == 2, "the example must show both reasons"


@few_families
def test_a_stop_token_at_the_last_place_is_a_stop(name: str) -> None:
    engine = shared_engine(name)
    free = completions(engine.generate([[5, 6, 7]], Sampling(max_tokens=8)))[0]
    place = next(i for i in range(2, 8) if free[i] not in free[:i])
    for most, reason in ((place + 1, "stop"), (place + 4, "stop"), (place, "length")):
        sampling = Sampling(max_tokens=most, stop_tokens=(free[place],))
        rollout = engine.generate([[5, 6, 7]], sampling)
        assert completions(rollout)[0] == free[: min(place + 1, most)]
        assert list(rollout.finish_reasons) == [reason]


@few_families
def test_without_stop_tokens_nothing_stops_whatever_the_config_says(name: str) -> None:
    rollout = shared_engine(name).generate(PROMPTS, Sampling(max_tokens=40), 8)
    assert (rollout.mask.sum(1) == 40).all()
    assert any(2 in tokens[:-1] for tokens in completions(rollout)), "eos must have been drawn"


@every_family
def test_a_completion_depends_on_nothing_beside_it(name: str) -> None:
    engine, sampling = shared_engine(name), Sampling(max_tokens=10, stop_tokens=(2, 4))
    seeds = [11, -4, 2**63 + 5, 7, 7]
    whole = completions(engine.generate(PROMPTS, sampling, 4, seeds=seeds))
    order = [3, 0, 4, 2, 1]
    torch.manual_seed(99)
    turned = completions(
        engine.generate([PROMPTS[p] for p in order], sampling, 4, seeds=[seeds[p] for p in order])
    )
    for at, p in enumerate(order):
        assert turned[at * 4 : at * 4 + 4] == whole[p * 4 : p * 4 + 4]
    for p, prompt in enumerate(PROMPTS):
        for group in (1, 3):
            alone = completions(engine.generate([prompt], sampling, group, seeds=[seeds[p]]))
            assert alone == whole[p * 4 : p * 4 + group]


@few_families
def test_a_longer_limit_only_prolongs(name: str) -> None:
    engine = shared_engine(name)
    short = completions(engine.generate(PROMPTS, Sampling(max_tokens=5), 2))
    long = completions(engine.generate(PROMPTS, Sampling(max_tokens=40), 2))
    assert [tokens[:5] for tokens in long] == short


def test_seeds_count_from_zero_and_tell_completions_apart() -> None:
    engine, sampling = shared_engine("llama"), Sampling(max_tokens=8)
    prompts = [[5, 6]] * 4
    default = completions(engine.generate(prompts, sampling, 2))
    assert default == completions(engine.generate(prompts, sampling, 2, seeds=[0, 1, 2, 3]))
    assert len({tuple(tokens) for tokens in default}) == 8
    same = completions(engine.generate(prompts, sampling, 2, seeds=[3] * 4))
    assert same == default[6:] * 4
    assert completions(engine.generate(prompts, sampling, 2, seeds=(3, 2, 1, 0))) == [
        tokens for p in (3, 2, 1, 0) for tokens in default[2 * p : 2 * p + 2]
    ]


def enumerated(log_probs: list[float], sampling: Sampling) -> list[float]:
    """Return the distribution that is drawn from, in the plainest way."""
    weights = [math.exp(x / sampling.temperature) for x in log_probs]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if sampling.top_k:
        order = order[: sampling.top_k]
    left = sum(weights[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        kept.append(i)
        reached += weights[i] / left
        if reached >= sampling.top_p:
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (1.6, 0, 1.0), (1.0, 5, 1.0), (0.6, 0, 0.7), (1.5, 6, 0.8), (1.0, 3, 0.5)],
)
def test_draws_follow_temperature_then_top_k_then_top_p(
    name: str, temperature: float, top_k: int, top_p: float
) -> None:
    draws = 4096
    sampling = Sampling(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    prompt = [5, 6, 7]
    rollout = shared_engine(name).generate([prompt], sampling, draws)
    expected = enumerated(
        log_softmax(shared_model(name), torch.tensor([prompt]))[0, -1].tolist(), sampling
    )
    seen = Counter(rollout.tokens[:, -1].tolist())
    for token, p in enumerate(expected):
        off = abs(seen[token] / draws - p)
        assert off <= 4.5 * math.sqrt(p * (1 - p) / draws), (token, seen[token] / draws, p)
        assert p == 0 or p < 4 / draws or seen[token], f"{token} is kept but never drawn"


def test_the_order_matters_where_the_enumeration_says_so() -> None:
    """Top-p is of what top-k left: of .4 .3 .2 .1 and top_k=2, top_p=.5 keeps one token."""
    model = fresh("llama")
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits are 0 but for what the head's bias adds
        model.lm_head = nn.Linear(16, V)
        model.lm_head.bias.fill_(-1e4)
        model.lm_head.bias[[20, 21, 22, 23]] = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    engine = engine_for(model)

    def kept(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> set[int]:
        sampling = Sampling(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
        rollout = engine.generate([[1]], sampling, 512)
        return set(rollout.tokens[:, -1].tolist())

    assert kept() == {20, 21, 22, 23}
    assert kept(top_p=0.65) == {21, 22}
    assert kept(top_p=0.75) == {21, 22, 23}
    assert kept(top_k=2, top_p=0.5) == {21}, "top-p before top-k would keep 22 as well"
    assert kept(top_k=2, top_p=0.6) == {21, 22}
    assert kept(temperature=0.5, top_p=0.65) == {21, 22}
    assert kept(temperature=0.2, top_p=0.7) == {21}, "top-p before temperature would keep more"
    assert kept(temperature=5.0, top_p=0.75) == {21, 22, 23}
    assert kept(top_k=1) == kept(temperature=0) == kept(top_p=1e-9) == {21}
    assert kept(top_k=10 * V) == kept()


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-30, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    engine = shared_engine("llama")
    greedy = engine.generate(PROMPTS, Sampling(max_tokens=6, temperature=0))
    rollout = engine.generate(PROMPTS, Sampling(max_tokens=6, temperature=temperature))
    assert torch.equal(rollout.tokens, greedy.tokens)
    torch.testing.assert_close(rollout.old_log_probs, greedy.old_log_probs)
    assert rollout.tempered_log_probs.isfinite().all()


@few_families
def test_mode_gradients_and_random_state_are_left_alone(name: str) -> None:
    model = fresh(name)
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    model.get_input_embeddings().weight.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
        gradients.append(None if parameter.grad is None else parameter.grad.clone())
    before = {key: x.clone() for key, x in model.state_dict().items()}
    caches, random_state, torch_state = (
        model.config.use_cache,
        random.getstate(),
        torch.get_rng_state(),
    )
    engine_for(model).generate(PROMPTS, Sampling(max_tokens=5, stop_tokens=(2,)), 2)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (gradient is None) == (parameter.grad is None)
        assert gradient is None or torch.equal(gradient, parameter.grad)
    for key, x in model.state_dict().items():
        assert torch.equal(x, before[key])
    assert model.config.use_cache == caches
    assert random.getstate() == random_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.is_grad_enabled()


@few_families
def test_the_model_can_be_trained_after_a_rollout(name: str) -> None:
    model = fresh(name).train()
    rollout = engine_for(model).generate(PROMPTS, Sampling(max_tokens=5), 2)
    scale = torch.ones(rollout.mask.shape, requires_grad=True)
    (
        model(rollout.tokens, use_cache=False).logits.sum() + (scale * rollout.old_log_probs).sum()
    ).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(scale.grad, rollout.old_log_probs)


def test_dropout_is_off_while_sampling() -> None:
    model = fresh("gpt2")
    quiet = engine_for(model).generate(PROMPTS, Sampling(max_tokens=8, temperature=0))
    assert model.config.resid_pdrop > 0
    loud = engine_for(model.train()).generate(PROMPTS, Sampling(max_tokens=8, temperature=0))
    assert torch.equal(quiet.tokens, loud.tokens)


@few_families
def test_an_update_is_seen_by_the_next_rollout(name: str) -> None:
    model = fresh(name)
    engine, sampling = engine_for(model), Sampling(max_tokens=10)
    before = engine.generate(PROMPTS, sampling, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(torch.tensor(PROMPTS[1:2]), use_cache=False).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    after = engine.generate(PROMPTS, sampling, 2)
    assert not torch.equal(before.tokens, after.tokens)
    for row, expected in enumerate(row_log_probs(model, after)):
        found = after.old_log_probs[row][after.mask[row]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    model.load_state_dict(shared_model(name).state_dict())
    assert torch.equal(engine.generate(PROMPTS, sampling, 2).tokens, before.tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_other_models_warn_and_once(name: str) -> None:
    model = shared_model(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = Engine(model)
        for _ in range(2):
            engine.generate([[1, 2], [3]], Sampling(max_tokens=2), 2)
    assert len(caught) == (1 if name in PORTABLE else 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_weights(dtype: torch.dtype) -> None:
    model = fresh("qwen2").to(dtype)
    rollout = engine_for(model).generate(PROMPTS, Sampling(max_tokens=6), 2)
    assert rollout.old_log_probs.dtype == torch.float32
    near = 1e-5 if dtype is torch.float64 else 0.1
    for row, expected in enumerate(row_log_probs(model, rollout)):
        found = rollout.old_log_probs[row][rollout.mask[row]]
        torch.testing.assert_close(found, expected, atol=near, rtol=0)


@few_families
def test_every_position_can_be_used(name: str) -> None:
    engine = shared_engine(name)
    long, short = [i % V for i in range(POSITIONS - 5)], [4, 5]
    rollout = engine.generate([long, short], Sampling(max_tokens=5), 2)
    assert rollout.tokens.shape == (4, POSITIONS)
    alone = engine.generate([short], Sampling(max_tokens=5), 2, seeds=[1])
    assert completions(alone) == completions(rollout)[2:]
    with pytest.raises(ValueError, match=rf"prompt 1 .*{POSITIONS}"):
        engine.generate([short, long], Sampling(max_tokens=6))


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_scaled_positions_reach_beyond_the_original_ones(kind: str) -> None:
    """Dynamic scaling changes nothing before that; there the whole sequence counts."""
    import transformers

    rope = {"rope_type": kind, "factor": 4.0, **ROPE}
    config = transformers.LlamaConfig(
        **{**SIZES, "max_position_embeddings": 8}, rope_parameters=rope
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    prompts = [list(range(1, 13)), [3, 4]]
    rollout = engine_for(model).generate(prompts, Sampling(max_tokens=8), 2)
    for row, expected in enumerate(row_log_probs(model, rollout)):
        found = rollout.old_log_probs[row][rollout.mask[row]]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@few_families
def test_no_prompts_give_no_rows(name: str) -> None:
    rollout = shared_engine(name).generate([], Sampling(max_tokens=3), 4)
    assert rollout.tokens.shape[0] == rollout.mask.shape[0] == len(rollout.finish_reasons) == 0


def test_prompts_and_seeds_of_other_types() -> None:
    import numpy as np

    engine, sampling = shared_engine("llama"), Sampling(max_tokens=6)
    expected = engine.generate([[5, 6], [7, 8]], sampling, 2, seeds=[3, 4]).tokens
    tensors = torch.tensor([[5, 6], [7, 8]])
    for prompts in (((5, 6), (7, 8)), tensors, list(tensors.int()), list(tensors.numpy())):
        assert torch.equal(engine.generate(prompts, sampling, 2, seeds=[3, 4]).tokens, expected)
    for seeds in (range(3, 5), np.array([3, 4]), torch.tensor([3, 4]), [np.int64(3), np.int64(4)]):
        assert torch.equal(
            engine.generate([[5, 6], [7, 8]], sampling, 2, seeds=seeds).tokens, expected
        )


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [3, V]], {}, rf"prompt 1 has token {V}"),
        ([[-1]], {}, "prompt 0 has token -1"),
        ([[1.5]], {}, "float"),
        ([[1]], {"group_size": 0}, "group_size=0"),
        ([[1]], {"group_size": -2}, "group_size=-2"),
        ([[1], [2]], {"seeds": [0]}, "1 seeds for 2 prompts"),
    ],
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_bad_calls_are_refused(
    name: str, prompts: list[list[int]], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        shared_engine(name).generate(prompts, Sampling(max_tokens=2), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"stop_tokens": 2},
        {"stop_tokens": None},
        {"stop_tokens": ("</s>",)},
    ],
    ids=str,
)
def test_bad_sampling_is_refused_when_it_is_made(settings: dict[str, Any]) -> None:
    """By its own name, before any work."""
    with pytest.raises((ValueError, TypeError), match=next(iter(settings))):
        Sampling(**{"max_tokens": 4, **settings})


def test_sampling_takes_keywords_only() -> None:
    with pytest.raises(TypeError):
        Sampling(4)  # type: ignore[misc]
    assert Sampling(max_tokens=4) == Sampling(
        max_tokens=4, temperature=1.0, top_k=0, top_p=1.0, stop_tokens=()
    )
