"""The graph engine against ``Engine``, its readable twin. Without CUDA the same step runs bare."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.decoder import Decoder
from posttrain.rollout import Engine, Rollout, Sampling
from posttrain.rollout.graph_engine import GraphDecoding, GraphEngine

ModelOf = Callable[[str], nn.Module]
NAMES = ["llama-biases-tied", "qwen3-wide-heads", "mistral-sliding"]
PLAIN = Sampling(max_tokens=40)
CUT = Sampling(max_tokens=40, temperature=0.7, top_k=20, top_p=0.8, stop_tokens=(1, 2, 3))


def prompts(lengths: Sequence[int] = (5, 9, 9, 1, 40, 36)) -> list[list[int]]:
    g = torch.Generator().manual_seed(3)
    return [torch.randint(1, 97, (n,), generator=g).tolist() for n in lengths]


def check_same(found: Rollout, expected: Rollout, atol: float = 1e-5) -> None:
    assert found.completions() == expected.completions()
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.mask, expected.mask)
    assert list(found.finish_reasons) == list(expected.finish_reasons)
    for name in ("old_log_probs", "tempered_log_probs"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def shapes(engine: GraphEngine) -> set[tuple[int, int]]:
    """Return the numbers of slots and columns for which a step was captured."""
    assert engine._decoding is not None
    return {(rows, columns) for rows, columns, *_ in engine._decoding.replays}


def test_greedy_rollout_equals_the_engines(decoded_model: nn.Module) -> None:
    sampling = Sampling(max_tokens=40, temperature=0)
    expected = Engine(decoded_model).generate(prompts(), sampling)
    check_same(GraphEngine(decoded_model).generate(prompts(), sampling), expected)


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("sampling", [PLAIN, CUT], ids=["plain", "cut"])
def test_sampled_rollout_equals_the_engines(
    decoded_model: nn.Module, group_size: int, sampling: Sampling
) -> None:
    seeds = [7, -3, 2**63 + 5, 0, 1, 11]
    expected = Engine(decoded_model).generate(prompts(), sampling, group_size, seeds=seeds)
    engine = GraphEngine(decoded_model)
    check_same(engine.generate(prompts(), sampling, group_size, seeds=seeds), expected)
    assert (expected.old_log_probs is expected.tempered_log_probs) == (sampling is PLAIN)


@pytest.mark.parametrize("name", NAMES)
def test_finished_slots_are_let_go(model_of: ModelOf, name: str) -> None:
    model, rows = model_of(name), prompts([4, 17, 9] * 8)
    sampling = Sampling(max_tokens=110, temperature=1.5, stop_tokens=(1, 2))
    engine = GraphEngine(model)
    check_same(engine.generate(rows, sampling, 2), Engine(model).generate(rows, sampling, 2))
    assert len({slots for slots, _ in shapes(engine)}) > 1


@pytest.mark.parametrize("max_tokens", [1, 31, 32, 33, 64])
@pytest.mark.parametrize("stops", [(), (5, 6, 7, 1000, -1)], ids=["free", "stops"])
def test_lengths_around_the_hosts_look(
    model_of: ModelOf, max_tokens: int, stops: tuple[int, ...]
) -> None:
    model = model_of("llama-biases-tied")
    sampling = Sampling(max_tokens=max_tokens, stop_tokens=stops)
    expected = Engine(model).generate(prompts(), sampling, 2)
    check_same(GraphEngine(model).generate(prompts(), sampling, 2), expected)


def test_attention_reads_no_more_columns_than_the_next_multiple(model_of: ModelOf) -> None:
    model, sampling = model_of("mistral-sliding"), Sampling(max_tokens=130)
    rows = prompts([70, 3, 60])
    engine = GraphEngine(model)
    check_same(engine.generate(rows, sampling), Engine(model).generate(rows, sampling))
    assert shapes(engine) == {(3, 128), (3, 256)}


def test_a_prompt_is_run_once_for_its_group(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, run = [], Decoder.hidden_states

    def counted(self: Decoder, tokens: Tensor, *rest: object) -> Tensor:
        counts.append(len(tokens))
        return run(self, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "hidden_states", counted)
    GraphEngine(model_of("llama-biases-tied")).generate(prompts([16, 16]), PLAIN, 8)
    assert counts == [32]


def test_turns_that_fit_the_cache_give_the_same(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("qwen2-rope-yarn")
    whole = GraphEngine(model).generate(prompts(), CUT, 2)
    monkeypatch.setattr("posttrain.rollout.engine._CACHE_BYTES", 1)
    check_same(GraphEngine(model).generate(prompts(), CUT, 2), whole)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_in_place_is_seen_without_new_buffers(model_of: ModelOf, name: str) -> None:
    model = model_of(name)
    engine = GraphEngine(model)
    before = engine.generate(prompts(), PLAIN, 2)
    held = engine._decoding
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(torch.tensor(prompts()[1:2]), use_cache=False).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    after = engine.generate(prompts(), PLAIN, 2)
    check_same(after, Engine(model).generate(prompts(), PLAIN, 2))
    assert after.completions() != before.completions()
    assert engine._decoding is held


def test_parameters_that_moved_are_seen(model_of: ModelOf) -> None:
    model = model_of("llama-biases-tied")
    engine = GraphEngine(model)
    engine.generate(prompts(), PLAIN)
    held = engine._decoding
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.2
    check_same(engine.generate(prompts(), PLAIN), Engine(model).generate(prompts(), PLAIN))
    assert engine._decoding is not held


def test_buffers_grow_and_stay_for_smaller_calls(model_of: ModelOf) -> None:
    model = model_of("qwen3-wide-heads")
    engine, reference = GraphEngine(model), Engine(model)
    for lengths, tokens, group_size in (((4,), 8, 2), ((3,) * 6, 8, 4), ((130,), 8, 1)):
        sampling = Sampling(max_tokens=tokens)
        for _ in range(2):
            found = engine.generate(prompts(lengths), sampling, group_size)
            check_same(found, reference.generate(prompts(lengths), sampling, group_size))
    held = engine._decoding
    assert held is not None
    assert (held.rows, held.columns) == (24, 256)
    engine.generate(prompts([4]), Sampling(max_tokens=8))
    assert engine._decoding is held


def test_two_shapes_do_not_meet_in_one_that_is_far_too_large(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = GraphEngine(model_of("llama-biases-tied"))
    engine.generate(prompts([4]), Sampling(max_tokens=2), 16)
    held = engine._decoding
    assert held is not None
    assert held.token_bytes == 2 * 3 * 2 * 12 * 4  # keys and values, layers, heads, width, bytes
    monkeypatch.setattr("posttrain.rollout.graph_engine._CACHE_BYTES", 16 * 256 * 576 - 1)
    engine.generate(prompts([130]), Sampling(max_tokens=2))
    held = engine._decoding
    assert held is not None
    assert (held.rows, held.columns) == (1, 256)


def test_weights_that_were_not_finite_leave_nothing_behind(model_of: ModelOf) -> None:
    model = model_of("llama-biases-tied")
    engine, weights = GraphEngine(model), {k: x.clone() for k, x in model.state_dict().items()}
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight.fill_(torch.nan)
    engine.generate(prompts([40]), Sampling(max_tokens=60, temperature=0))
    model.load_state_dict(weights)
    expected = Engine(model).generate(prompts([3]), PLAIN)
    check_same(engine.generate(prompts([3]), PLAIN), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_other_types_of_weights(model_of: ModelOf, name: str, dtype: torch.dtype) -> None:
    """One token: what follows another token cannot be compared."""
    model, sampling = model_of(name).to(dtype), Sampling(max_tokens=2, temperature=0)
    found = GraphEngine(model).generate(prompts(), sampling)
    expected = Engine(model).generate(prompts(), sampling)
    same = found.tokens == expected.tokens
    near = 1e-6 if dtype is torch.float64 else 0.1
    torch.testing.assert_close(
        found.old_log_probs[same], expected.old_log_probs[same], rtol=0, atol=near
    )
    assert same.float().mean() > 0.98


def test_parameters_of_two_types_run_as_the_engine_runs_them(model_of: ModelOf) -> None:
    model = model_of("llama-biases-tied").bfloat16()
    model.model.norm.float()
    engine = GraphEngine(model)
    check_same(engine.generate(prompts(), PLAIN), Engine(model).generate(prompts(), PLAIN), 0.0)
    assert engine._decoding is None


def test_other_families_are_sampled_through_forward_with_one_warning(model_of: ModelOf) -> None:
    model = model_of("gpt2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = GraphEngine(model)
        found = engine.generate(prompts(), PLAIN, 2)
    assert len(caught) == 1
    assert "GPT2LMHeadModel" in str(caught[0].message)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_same(found, Engine(model).generate(prompts(), PLAIN, 2), 0.0)


def test_no_prompts_give_an_empty_rollout(model_of: ModelOf) -> None:
    rollout = GraphEngine(model_of("llama-biases-tied")).generate([], PLAIN, 4)
    assert rollout.tokens.shape == (0, 0)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[97]], {}, "prompt 0 has token 97"),
        ([[1]], {"group_size": 0}, "group_size=0"),
        ([[1]], {"seeds": [1, 2]}, "got 2 seeds for 1 prompts"),
    ],
)
def test_bad_calls_are_refused_as_by_the_engine(
    model_of: ModelOf, rows: list[list[int]], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GraphEngine(model_of("llama-biases-tied")).generate(rows, PLAIN, **settings)


def test_model_and_rollout_can_be_trained_afterwards(model_of: ModelOf) -> None:
    model = model_of("qwen2-sliding").train()
    state = torch.get_rng_state()
    rollout = GraphEngine(model).generate(prompts(), PLAIN, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()
    scale = torch.ones(rollout.mask.shape, requires_grad=True)
    loss = (
        model(rollout.tokens, use_cache=False).logits.mean() + (scale * rollout.old_log_probs).sum()
    )
    loss.backward()
    assert torch.equal(scale.grad, rollout.old_log_probs)
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- what a graph needs -----------------------------------------------------------------------

READS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "unique",
    "repeat_interleave",
)


class Watch(TorchDispatchMode):
    """Notes the operations that a graph cannot hold, because the host waits for their result."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        name = str(function)
        self.count += 1
        by_mask = "index" in name and any(
            isinstance(x, Tensor) and x.dtype == torch.bool
            for part in args
            if isinstance(part, list | tuple)
            for x in part
        )
        if by_mask or any(read in name for read in READS):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def ready(model: nn.Module, sampling: Sampling) -> GraphDecoding:
    """Return a decoding that has begun."""
    engine = GraphEngine(model)
    engine.generate(prompts(), sampling, 2)
    assert engine._decoding is not None
    return engine._decoding


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cut", [{}, {"top_k": 20, "top_p": 0.8}], ids=["plain", "cut"])
def test_step_asks_nothing_of_the_host(
    model_of: ModelOf, name: str, temperature: float, cut: dict[str, float]
) -> None:
    sampling = Sampling(max_tokens=3, temperature=temperature, **cut)
    decoding = ready(model_of(name), sampling)
    decoding.step_number.zero_()
    with torch.no_grad(), Watch() as watch:
        decoding.step(12, 128, sampling)
    assert watch.count > 50
    assert watch.found == []


def test_watch_sees_what_asks_the_host() -> None:
    x = torch.arange(3)
    with Watch() as watch:
        x[x > 1]
        bool(x.sum())
        x.nonzero()
    assert len(watch.found) == 3


@pytest.mark.parametrize("name", ["qwen3-wide-heads", "mistral-sliding"])
def test_a_recorded_step_can_be_repeated(
    model_of: ModelOf, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording holds every number and address that Python saw, as a CUDA graph does."""
    recordings = []

    def recorded(self: GraphDecoding, step: Callable[[], None]) -> Callable[[], object]:
        buffers = [x for x in (*self.caches, *vars(self).values()) if isinstance(x, Tensor)]
        before = [x.clone() for x in buffers]
        recordings.append(make_fx(lambda: step())())
        for x, old in zip(buffers, before, strict=True):
            x.copy_(old)  # recording takes a step, which capturing does not
        return recordings[-1]

    monkeypatch.setattr(GraphDecoding, "_captured", recorded)
    model = model_of(name)
    engine = GraphEngine(model)
    sampling = Sampling(max_tokens=40, temperature=1.5, stop_tokens=(1, 2, 3))
    for _ in range(2):
        expected = Engine(model).generate(prompts(), sampling, 4)
        check_same(engine.generate(prompts(), sampling, 4), expected)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    assert len(recordings) > 1


# --- on a GPU ---------------------------------------------------------------------------------

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("sampling", [Sampling(max_tokens=70, temperature=0), PLAIN, CUT], ids=str)
def test_replays_equal_the_engine_on_a_gpu(
    decoded_model: nn.Module, group_size: int, sampling: Sampling
) -> None:
    model = decoded_model.to("cuda")
    engine = GraphEngine(model)
    for _ in range(2):  # the second call replays from its first step on
        found = engine.generate(prompts(), sampling, group_size)
        check_same(found, Engine(model).generate(prompts(), sampling, group_size), 1e-4)


@pytest.mark.gpu
@on_gpu
def test_finished_slots_and_updates_on_a_gpu(model_of: ModelOf) -> None:
    model, rows = model_of("qwen3-wide-heads").to("cuda"), prompts([4, 17, 9] * 8)
    sampling = Sampling(max_tokens=110, temperature=1.5, stop_tokens=(1, 2))
    engine = GraphEngine(model)
    for _ in range(3):
        expected = Engine(model).generate(rows, sampling, 2)
        check_same(engine.generate(rows, sampling, 2), expected, 1e-4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_on_a_gpu_stays_near_a_full_pass(model_of: ModelOf, name: str) -> None:
    from posttrain.log_probs import token_log_probs

    model = model_of(name).to("cuda", torch.bfloat16)
    rollout = GraphEngine(model).generate(prompts(), Sampling(max_tokens=40), 4)
    with torch.no_grad():
        full = token_log_probs(model, rollout.tokens, rollout.mask)
    gaps = (rollout.old_log_probs - full)[rollout.mask].abs()
    assert gaps.mean() < 0.05
