from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from launch.metrics import Mean
from launch.optimizers import AdamW
from launch.runtime import Runtime
from launch.streams import keys
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.rewards import Reward, Sample, WeightedSum
from posttrain.rollout import Engine, Rollout, Sampling
from posttrain.trainers import DynamicSampling, GRPOConfig, train_grpo
from posttrain.trainers.collection import Collected, Collector, replace_rows, spreads

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
PROMPTS = [Prompt(text=f"{i % 10} plus {i // 10} is", answer=str(i)) for i in range(40)]
CONFIG = GRPOConfig(
    steps=2,
    prompts_per_step=6,
    group_size=3,
    sampling=Sampling(max_tokens=4),
    optimizer=AdamW(learning_rate=1e-2),
    dynamic_sampling=DynamicSampling(rounds=8),
    samples_every=0,
)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)


def odd_ones(samples: Sequence[Sample]) -> torch.Tensor:
    """Spread for prompts with an odd answer alone, and only where completions differ."""
    tails = [sum(sample.tokens) % 7 / 7 for sample in samples]
    odd = [int(sample.answer) % 2 for sample in samples]
    return torch.tensor([tail * o for tail, o in zip(tails, odd, strict=True)])


def level(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.ones(len(samples))


def fake_run(share: range, seed: int = 3) -> Runtime:
    """A runtime that has this share of the prompts; nothing else of it is used."""

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        yield

    def seeds(name: str, step: int, rows: Sequence[int]) -> list[int]:
        return keys(seed, name, step, rows)

    fake = SimpleNamespace(seed=seed, share=lambda count: share, phase=phase, seeds=seeds)
    return cast(Runtime, fake)


def collect(
    lm: LanguageModel, share: range, step: int = 1, reward: Reward = odd_ones, rounds: int = 8
) -> Collected:
    cfg = replace(CONFIG, dynamic_sampling=DynamicSampling(rounds=rounds) if rounds else None)
    engine = Engine(lm.model)
    run = fake_run(share)
    return Collector(cfg, engine, lm, PROMPTS, cfg.sampling, reward, run).collect(step)


def mean(found: Collected, name: str) -> float:
    figure = found.figures[name]
    assert isinstance(figure, Mean)
    return float(figure.total) / float(figure.count)


def test_groups_without_spread_are_replaced_until_the_batch_is_full(lm: LanguageModel) -> None:
    plain = collect(lm, range(6), rounds=0)
    assert plain.figures == {}
    flat = [not spread for spread in spreads(plain.scores, 3)]
    assert 0 < sum(flat) < 6
    full = collect(lm, range(6))
    assert all(spreads(full.scores, 3))
    assert mean(full, "groups/replaced") == sum(flat) / 6
    assert mean(full, "groups/sampled") >= 1 + sum(flat) / 6
    assert mean(full, "reward/sampled") == pytest.approx(plain.scores.mean().item())
    for group, was_flat in enumerate(flat):
        rows = slice(3 * group, 3 * group + 3)
        same = plain.samples[rows] == full.samples[rows]
        assert same != was_flat  # what had a spread stays where it was
    torch.testing.assert_close(full.scores, odd_ones(full.samples), rtol=0, atol=0)


def test_everything_about_a_row_is_replaced_together(lm: LanguageModel) -> None:
    found = collect(lm, range(6), reward=WeightedSum({"odd": (2.0, odd_ones)}))
    completions = found.rollout.completions()
    assert [list(sample.tokens) for sample in found.samples] == completions
    assert [s.finish_reason for s in found.samples] == list(found.rollout.finish_reasons)
    torch.testing.assert_close(found.parts["odd"] * 2, found.scores)
    assert found.rollout.tempered_log_probs is found.rollout.old_log_probs
    assert (found.rollout.old_log_probs[~found.rollout.mask] == 0).all()


@pytest.mark.parametrize("cut", [0, 2, 5])
@pytest.mark.parametrize("step", [1, 7])
def test_number_of_processes_changes_nothing(lm: LanguageModel, cut: int, step: int) -> None:
    whole = collect(lm, range(6), step)
    parts = [collect(lm, share, step) for share in (range(cut), range(cut, 6))]
    assert whole.samples == parts[0].samples + parts[1].samples
    torch.testing.assert_close(whole.scores, torch.cat([part.scores for part in parts]))


def test_a_batch_that_is_full_is_left_alone(lm: LanguageModel) -> None:
    def different(samples: Sequence[Sample]) -> torch.Tensor:
        return torch.arange(len(samples)).float()

    found = collect(lm, range(6), reward=different)
    assert found.samples == collect(lm, range(6), reward=different, rounds=0).samples
    assert mean(found, "groups/replaced") == 0.0
    assert mean(found, "groups/sampled") == 1.0


def test_what_can_never_be_filled_stays_and_is_counted(lm: LanguageModel) -> None:
    found = collect(lm, range(6), reward=level, rounds=2)
    assert found.samples == collect(lm, range(6), reward=level, rounds=0).samples
    assert mean(found, "groups/sampled") == 3.0
    assert mean(found, "groups/replaced") == 0.0


def test_rounds_have_to_be_positive() -> None:
    with pytest.raises(ValueError, match=r"rounds=0: .*set dynamic_sampling to null"):
        DynamicSampling(rounds=0)


def test_rows_of_a_longer_rollout_are_put_in_with_padding() -> None:
    short = Rollout(
        tokens=torch.tensor([[1, 2], [1, 3]]),
        mask=torch.tensor([[False, True], [False, True]]),
        old_log_probs=torch.tensor([[0.0, -1.0], [0.0, -2.0]]),
        tempered_log_probs=torch.tensor([[0.0, -1.5], [0.0, -2.5]]),
        finish_reasons=("stop", "length"),
    )
    long = Rollout(
        tokens=torch.tensor([[1, 4, 5]]),
        mask=torch.tensor([[False, True, True]]),
        old_log_probs=torch.tensor([[0.0, -3.0, -4.0]]),
        tempered_log_probs=torch.tensor([[0.0, -3.5, -4.5]]),
        finish_reasons=("stop",),
    )
    made = replace_rows(short, [1], long, [0])
    assert made.tokens.tolist() == [[1, 2, 0], [1, 4, 5]]
    assert made.mask.int().tolist() == [[0, 1, 0], [0, 1, 1]]
    assert made.old_log_probs.tolist() == [[0, -1, 0], [0, -3, -4]]
    assert made.tempered_log_probs.tolist() == [[0, -1.5, 0], [0, -3.5, -4.5]]
    assert list(made.finish_reasons) == ["stop", "stop"]
    assert short.tokens.tolist() == [[1, 2], [1, 3]]
    narrow = replace_rows(long, [0], short, [1])
    assert narrow.tokens.tolist() == [[1, 3, 0]]


@dataclass
class Sums:
    reward: Reward = odd_ones
    count: int = 40
    seen: list[str] = field(default_factory=list)

    def train(self) -> list[Prompt]:
        return PROMPTS

    def heldout(self) -> list[Prompt]:
        return []


def test_training_logs_what_was_replaced(lm: LanguageModel, tmp_path: Path) -> None:
    with Runtime(output=tmp_path / "run", seed=5) as run:
        train_grpo(CONFIG, lm, Sums(), run)
    records = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["groups/flat"] == 0.0 for record in records)
    assert all(record["groups/sampled"] >= 1 + record["groups/replaced"] for record in records)
    assert sum(record["groups/replaced"] for record in records) > 0
    assert {"reward", "reward/sampled"} <= records[0].keys()


def test_training_warns_once_of_groups_that_stay_without_spread(lm: LanguageModel) -> None:
    cfg = replace(CONFIG, dynamic_sampling=DynamicSampling(rounds=1))
    with (
        Runtime() as run,
        pytest.warns(RuntimeWarning, match=r"100% of the groups .* replaced 1 times") as seen,
    ):
        train_grpo(cfg, lm, Sums(reward=level), run)
    assert len(seen) == 1
