"""When a reference is built, that it is frozen, and where it lies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from launch.errors import UsageError
from launch.optimizers import AdamW
from launch.runtime import Runtime
from posttrain.adapters import LoRA, trained_state, with_adapters
from posttrain.data.packing import Document
from posttrain.data.preferences import Pair
from posttrain.data.tasks import Prompt
from posttrain.log_probs import token_log_probs
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.objectives import DPO, GRPO, IPO, KTO, ORPO, PreferenceObjective, SimPO
from posttrain.rewards import Sample
from posttrain.rollout import Sampling
from posttrain.trainers import GRPOConfig, PreferenceConfig, references, train_grpo
from posttrain.trainers.preference import train_preferences
from posttrain.trainers.references import Reference, moved, reference_of

TOKENS = torch.randint(1, 40, (3, 10), generator=torch.Generator().manual_seed(0))
ELSEWHERE = torch.device("meta")  # a device that every machine has
CPU = torch.device("cpu")
PAIRS: list[Pair] = [
    (
        Document([3, 4, 5, 6 + i], [False] * 2 + [True] * 2),
        Document([3, 4, 9], [False] * 2 + [True]),
    )
    for i in range(4)
]
PREFERENCES = PreferenceConfig(
    steps=2, pairs_per_step=4, row_length=8, optimizer=AdamW(learning_rate=1e-2)
)
POLICY = GRPOConfig(
    steps=2,
    prompts_per_step=2,
    group_size=3,
    sampling=Sampling(max_tokens=4),
    optimizer=AdamW(learning_rate=1e-2),
    samples_every=0,
)


def remainders(samples: Sequence[Sample]) -> list[float]:
    return [sum(sample.tokens) % 5 / 5 for sample in samples]


@dataclass
class Sums:
    reward: object = remainders

    def train(self) -> list[Prompt]:
        return [Prompt(text=f"{i} plus {i + 1} is", answer="7") for i in range(4)]

    def heldout(self) -> list[Prompt]:
        return []


@pytest.fixture
def lm() -> LanguageModel:
    texts = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
    return tiny_model(train_tokenizer(texts, vocabulary=80), layers=2, width=16, heads=2, seed=1)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every model that a reference is copied from."""
    seen: list[nn.Module] = []

    def deepcopy(model: nn.Module) -> nn.Module:
        seen.append(model)
        return copy.deepcopy(model)

    monkeypatch.setattr(references, "copy", SimpleNamespace(deepcopy=deepcopy))
    return seen


def train_policy(cfg: GRPOConfig, lm: LanguageModel) -> dict[str, torch.Tensor]:
    with Runtime(seed=5) as run:
        train_grpo(cfg, lm, Sums(), run)
    return dict(lm.model.state_dict())


def train_pairs(cfg: PreferenceConfig, lm: LanguageModel) -> dict[str, torch.Tensor]:
    with Runtime(seed=5) as run:
        train_preferences(cfg, lm.model, PAIRS, run)
    return dict(lm.model.state_dict())


@pytest.mark.parametrize(
    ("objective", "in_reward", "lora", "expected"),
    [
        (GRPO(kl_weight=0.0), 0.0, False, 0),
        (GRPO(kl_weight=0.1), 0.0, False, 1),
        (GRPO(kl_weight=0.0), 0.1, False, 1),
        (GRPO(kl_weight=0.1), 0.0, True, 0),
    ],
)
def test_a_policy_that_is_compared_with_nothing_builds_no_reference(
    objective: GRPO,
    in_reward: float,
    lora: bool,
    expected: int,
    lm: LanguageModel,
    copies: list[nn.Module],
) -> None:
    cfg = replace(POLICY, steps=1, objective=objective, kl_in_reward=in_reward)
    train_policy(cfg, with_adapters(lm, LoRA(rank=2)) if lora else lm)
    assert len(copies) == expected


@pytest.mark.parametrize(
    ("objective", "expected"), [(DPO(), 1), (IPO(), 1), (KTO(), 1), (SimPO(), 0), (ORPO(), 0)]
)
def test_preferences_build_one_where_the_objective_asks(
    objective: PreferenceObjective, expected: int, lm: LanguageModel, copies: list[nn.Module]
) -> None:
    cfg = replace(PREFERENCES, steps=1, objective=objective)
    train_pairs(cfg, lm)
    assert len(copies) == expected
    train_pairs(cfg, with_adapters(lm, LoRA(rank=2)))
    assert len(copies) == expected  # with adapters it is the model itself


def test_adapters_off_is_the_base_model_to_the_bit(lm: LanguageModel) -> None:
    with torch.no_grad():
        base = token_log_probs(lm.model, TOKENS)
    adapted = with_adapters(lm, LoRA(rank=2))
    reference = reference_of(adapted.model, CPU, offload=False)
    assert reference.model is adapted.model
    train_pairs(PREFERENCES, adapted)
    with reference.using() as frozen:
        assert torch.equal(token_log_probs(frozen, TOKENS), base)
    policy = token_log_probs(adapted.model, TOKENS)
    assert policy.requires_grad
    assert not torch.allclose(policy, base, atol=1e-4)


def test_a_copy_stays_as_the_policy_moves_until_it_is_refreshed(lm: LanguageModel) -> None:
    reference = reference_of(lm.model.train(), CPU, offload=False)
    before = token_log_probs(lm.model, TOKENS).detach()
    train_pairs(PREFERENCES, lm)
    after = token_log_probs(lm.model, TOKENS).detach()
    with reference.using() as frozen:
        assert not frozen.training
        assert torch.equal(token_log_probs(frozen, TOKENS), before)
    reference.refresh(lm.model)
    with reference.using() as frozen:
        assert torch.equal(token_log_probs(frozen, TOKENS), after)


def test_a_refresh_of_what_never_changes_is_refused(lm: LanguageModel) -> None:
    cfg = replace(POLICY, objective=GRPO(kl_weight=0.1), refresh_every=1)
    with pytest.raises(UsageError, match=r"refresh_every is above 0.*train without lora"):
        train_policy(cfg, with_adapters(lm, LoRA()))


def test_dropout_of_adapters_is_refused(lm: LanguageModel) -> None:
    dropping = with_adapters(lm, LoRA(dropout=0.1))
    for train in (
        lambda: train_policy(POLICY, dropping),
        lambda: train_pairs(PREFERENCES, dropping),
    ):
        with pytest.raises(UsageError, match=r"lora.dropout=0.1: .* use 0"):
            train()


def test_moved_brings_every_tensor_and_leaves_the_old_ones(lm: LanguageModel) -> None:
    before = {name: x.clone() for name, x in lm.model.state_dict().items()}
    places = [p.data_ptr() for p in lm.model.parameters()]

    def run() -> None:
        with moved(lm.model, ELSEWHERE):
            assert {x.device for x in (*lm.model.parameters(), *lm.model.buffers())} == {ELSEWHERE}
            assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert [p.data_ptr() for p in lm.model.parameters()] == places
    assert all(torch.equal(x, before[name]) for name, x in lm.model.state_dict().items())


def test_offload_keeps_the_reference_on_the_cpu_between_passes(lm: LanguageModel) -> None:
    def devices(reference: Reference) -> set[torch.device]:
        return {p.device for p in reference.model.parameters()}

    kept = reference_of(lm.model, ELSEWHERE, offload=True)
    assert devices(kept) == {CPU}
    with kept.using():
        assert devices(kept) == {ELSEWHERE}
    assert devices(kept) == {CPU}
    assert devices(reference_of(lm.model, ELSEWHERE, offload=False)) == {ELSEWHERE}


def test_offload_changes_no_bit_and_moves_once_a_step(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []

    @contextmanager
    def counted(model: nn.Module, device: torch.device) -> Iterator[None]:
        seen.append(device)
        with moved(model, device):
            yield

    policy = replace(POLICY, objective=GRPO(kl_weight=0.1))
    models = [replace(lm, model=copy.deepcopy(lm.model)) for _ in range(4)]
    expected = train_policy(policy, models[0]), train_pairs(PREFERENCES, models[1])
    monkeypatch.setattr(references, "moved", counted)
    found = (
        train_policy(replace(policy, offload_reference=True), models[2]),
        train_pairs(replace(PREFERENCES, offload_reference=True), models[3]),
    )
    assert len(seen) == policy.steps + PREFERENCES.steps
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offload_frees_the_gpu(lm: LanguageModel) -> None:
    gpu = torch.device("cuda")
    with torch.no_grad():
        expected = token_log_probs(lm.model, TOKENS)
    before = torch.cuda.memory_allocated()
    reference = reference_of(lm.model, gpu, offload=True)
    for _ in range(2):
        with reference.using() as frozen:
            assert torch.cuda.memory_allocated() > before
            found = token_log_probs(frozen, TOKENS.to(gpu)).cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("kind", ["pairs", "policy"])
def test_training_moves_the_adapters_and_no_weight(kind: str, lm: LanguageModel) -> None:
    base = {name: p.clone() for name, p in lm.model.named_parameters()}
    adapted = with_adapters(lm, LoRA(rank=2))
    start = {n: x.clone() for n, x in trained_state(adapted.model).state_dict().items()}
    if kind == "pairs":
        train_pairs(PREFERENCES, adapted)
    else:
        train_policy(replace(POLICY, objective=GRPO(kl_weight=0.1)), adapted)
    assert all(torch.equal(p, base[name]) for name, p in lm.model.named_parameters())
    state = trained_state(adapted.model).state_dict()
    assert all(not torch.equal(x, start[n]) for n, x in state.items())
