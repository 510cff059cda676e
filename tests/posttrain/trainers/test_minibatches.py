from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from launch.optimizers import AdamW
from launch.runtime import Runtime
from launch.schedule import Constant
from launch.streams import stream
from posttrain.data.tasks import Prompt
from posttrain.models import LanguageModel, tiny_model, train_tokenizer
from posttrain.objectives import GRPO
from posttrain.rewards import Late, Sample
from posttrain.rollout import RolloutBatch, Sampling
from posttrain.trainers import GRPOConfig, train_grpo
from posttrain.trainers.minibatches import Minibatches

TEXTS = [f"{a} plus {b} is {a + b}" for a in range(10) for b in range(10)]
CONFIG = GRPOConfig(
    steps=6,
    prompts_per_step=2,
    group_size=3,
    minibatches=3,
    sampling=Sampling(max_tokens=5),
    optimizer=AdamW(learning_rate=1e-2),
    samples_every=0,
)


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return tiny_model(train_tokenizer(TEXTS, vocabulary=80), layers=1, width=16, heads=2, seed=1)


def fresh(made: LanguageModel) -> LanguageModel:
    return replace(made, model=copy.deepcopy(made.model))


def remainders(samples: Sequence[Sample]) -> list[float]:
    return [sum(sample.tokens) % 5 / 5 for sample in samples]


def lengths(samples: Sequence[Sample]) -> list[float]:
    return [float(len(sample.tokens)) + (sum(sample.tokens) % 2) for sample in samples]


@dataclass
class Words:
    reward: Any = remainders
    count: int = 12

    def train(self) -> list[Prompt]:
        return [Prompt(text=f"{i} plus {i + 1} is", answer="7") for i in range(self.count)]

    def heldout(self) -> list[Prompt]:
        return []


def train(
    cfg: GRPOConfig,
    lm: LanguageModel,
    output: Path | None = None,
    *,
    resume: bool = False,
    task: Words | None = None,
) -> list[dict[str, float]]:
    with Runtime(
        output=output, seed=5, resume=resume, resumable=frozenset({"steps", "save_every"})
    ) as run:
        train_grpo(cfg, lm, task or Words(), run)
    if output is None:
        return []
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in lm.model.state_dict().items()}


def timeless(record: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in record.items() if not k.startswith(("seconds", "speed/"))}


def share_of(rank: int, world: int) -> Runtime:
    """A runtime of which only share, stream and device are used."""
    fake = SimpleNamespace(
        share=lambda count: range(rank * count // world, (rank + 1) * count // world),
        stream=lambda name, step: stream(5, name, step),
        device=torch.device("cpu"),
    )
    return cast(Runtime, fake)


def numbered(rows: range) -> RolloutBatch:
    tokens = torch.tensor([[i, i] for i in rows])
    return RolloutBatch(
        tokens=tokens,
        mask=torch.ones_like(tokens, dtype=torch.bool),
        old_log_probs=torch.zeros(tokens.shape),
        advantages=torch.zeros(tokens.shape),
    )


@pytest.mark.parametrize("world", [1, 2, 5])
def test_each_row_is_taken_once_and_by_the_same_step_on_any_number_of_processes(world: int) -> None:
    taken: dict[int, list[int]] = {4: [], 5: [], 6: []}
    for rank in range(world):
        parts = Minibatches(CONFIG, share_of(rank, world))
        prompts = range(rank * 6 // world, (rank + 1) * 6 // world)
        parts.fill(numbered(range(3 * prompts.start, 3 * prompts.stop)), 4)
        for step in taken:
            assert parts.are_due(step) == (step == 4)
            taken[step] += parts.take(step).tokens[:, 0].tolist()
    assert sorted(row for rows in taken.values() for row in rows) == list(range(18))
    order = torch.randperm(18, generator=stream(5, "minibatches", 4)).tolist()
    assert [sorted(rows) for rows in taken.values()] == [
        sorted(order[6 * i : 6 * i + 6]) for i in range(3)
    ]


def test_old_policy_is_the_one_that_sampled_and_rollouts_are_drawn_when_due(
    made: LanguageModel, tmp_path: Path
) -> None:
    records = train(CONFIG, fresh(made), tmp_path / "run")
    assert ["reward" in record for record in records] == [True, False, False] * 2
    assert [record["ratio/mean"] == pytest.approx(1, abs=1e-5) for record in records] == [
        True, False, False, True, False, False,
    ]  # fmt: skip
    assert all(record["kl/old"] > 1e-6 for record in records[1:3])


def test_without_updates_the_parts_make_the_gradient_of_the_whole(
    made: LanguageModel, tmp_path: Path
) -> None:
    # At learning rate 0 the losses of the parts sum to that of all: denominators count sequences.
    cfg = replace(CONFIG, steps=3, optimizer=AdamW(learning_rate=0.0))
    parts = train(cfg, fresh(made), tmp_path / "parts")
    whole = replace(cfg, steps=1, prompts_per_step=6, minibatches=1)
    (record,) = train(whole, fresh(made), tmp_path / "whole")
    assert parts[0]["reward"] == record["reward"]
    assert sum(part["loss"] for part in parts) / 3 == pytest.approx(record["loss"], abs=1e-6)
    tokens = [part["entropy"] for part in parts]
    assert min(tokens) < record["entropy"] < max(tokens)


@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_goes_on_in_the_middle_of_a_rollout(
    made: LanguageModel, stop: int, tmp_path: Path
) -> None:
    cfg = replace(CONFIG, objective=GRPO(kl_weight=0.1), refresh_every=2, schedule=Constant())
    straight, resumed = fresh(made), fresh(made)
    expected = train(cfg, straight, tmp_path / "straight")
    train(replace(cfg, steps=stop), fresh(made), tmp_path / "cut")
    actual = train(cfg, resumed, tmp_path / "cut", resume=True)
    assert [timeless(record) for record in actual] == [timeless(record) for record in expected]
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=0, atol=0)


def test_micro_batches_do_not_change_the_parts(made: LanguageModel) -> None:
    whole, small = fresh(made), fresh(made)
    train(CONFIG, whole)
    train(replace(CONFIG, micro_batch=1), small)
    torch.testing.assert_close(weights(small), weights(whole), rtol=1e-4, atol=2e-5)


def test_completions_grow_longer_after_their_step(made: LanguageModel) -> None:
    cfg = replace(CONFIG, steps=3, minibatches=1, max_tokens_after={2: 9, 1: 7})
    longest: list[int] = []

    def seen(samples: Sequence[Sample]) -> list[float]:
        longest.append(max(len(sample.tokens) for sample in samples))
        return remainders(samples)

    train(cfg, fresh(made), task=Words(seen))
    assert longest == [5, 7, 9]


def test_the_reward_changes_after_its_step(made: LanguageModel, tmp_path: Path) -> None:
    cfg = replace(CONFIG, steps=3, minibatches=1)
    task = Words(Late(first=remainders, then=lengths, after=2))
    records = train(cfg, fresh(made), tmp_path / "run", task=task)
    assert [record["reward"] < 1 for record in records] == [True, True, False]


def test_the_reference_becomes_the_policy_when_it_is_due(
    made: LanguageModel, tmp_path: Path
) -> None:
    cfg = replace(CONFIG, minibatches=1, steps=4, objective=GRPO(kl_weight=0.1), refresh_every=2)
    records = train(cfg, fresh(made), tmp_path / "run")
    far = [record["kl/ref"] > 1e-7 for record in records]
    assert far == [False, True, False, True]  # equal to the policy at the first, and at the third


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minibatches": 0}, "minibatches=0: give at least 1"),
        ({"refresh_every": 5}, "no reference is used"),
        ({"refresh_every": -1, "kl_in_reward": 0.1}, "refresh_every=-1: give 0 or more"),
        ({"max_tokens_after": {0: 5}}, "a step of at least 1"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_a_rollout_needs_prompts_for_all_its_steps(made: LanguageModel) -> None:
    with pytest.raises(ValueError, match="6"):
        train(CONFIG, fresh(made), task=Words(count=5))
